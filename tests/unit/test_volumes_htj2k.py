"""High-Throughput JPEG 2000: decoded exactly.

The codestream in ``golden`` is a 48 x 64 ramp made by us and compressed once with OpenJPH
(``ojph_compress -reversible true -prog_order RPCL -num_decomps 3``), because no Python package encodes HTJ2K.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom.encaps import encapsulate

from dicomnode.volumes import series
from tests import factories

RAMP = np.add.outer(np.arange(48), np.arange(64)) * 13 % 4096
SYNTAXES = {
    "lossless": "1.2.840.10008.1.2.4.201",
    "lossless RPCL": "1.2.840.10008.1.2.4.202",
    "any": "1.2.840.10008.1.2.4.203",
}


@pytest.mark.parametrize("syntax", SYNTAXES.values(), ids=SYNTAXES)
def test_htj2k_decodes_to_the_very_pixels(tmp_path: Path, syntax: str) -> None:
    codestream = (Path(__file__).parents[1] / "golden" / "ramp-htj2k-rpcl.j2c").read_bytes()
    made = factories.ct_series(n=3, rows=48, columns=64, signed=False, bits_stored=12)
    for dataset in made:
        dataset.PixelData = encapsulate([codestream])
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = syntax
    source = series.load(factories.write_series(tmp_path, made))
    assert all(np.array_equal(plane, RAMP) for plane in source.stored)
