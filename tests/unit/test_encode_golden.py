"""The derived CT image as last reviewed; set DICOMNODE_UPDATE_GOLDEN=1 to write it anew after a wanted change."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from dicomnode import __version__
from dicomnode.dicom import IMPLEMENTATION_VERSION_NAME
from dicomnode.encode.image import encode_images
from dicomnode.volumes.series import load
from tests import factories, phantoms

GOLDEN = Path(__file__).resolve().parents[1] / "golden"

SERIES = {
    "ct_derived": lambda: factories.ct_series(2, rows=8, columns=8, padding=-2000, charset="\\ISO 2022 IR 87"),
    "enhanced_ct_derived": lambda: [factories.enhanced_ct(2, rows=8, columns=8)],
}


def readable(ds) -> dict:
    """Keyword -> value, file meta included, pixels as a digest, the version masked."""
    found = {element.keyword: str(element.value) for element in ds.file_meta}
    found |= _elements(ds)
    text = json.dumps(found, ensure_ascii=False)
    text = text.replace(IMPLEMENTATION_VERSION_NAME, "DICOMNODE_<version>").replace(
        f"dicomnode {__version__}", "dicomnode <version>"
    )
    return json.loads(text)


def _elements(ds) -> dict:
    found = {}
    for element in ds:
        if element.VR == "SQ":
            found[element.keyword] = [_elements(item) for item in element.value]
        elif element.keyword in ("PixelData", "FloatPixelData"):
            found[element.keyword] = f"{len(element.value)} bytes, sha256 {hashlib.sha256(element.value).hexdigest()}"
        else:
            value = element.value
            many = not isinstance(value, str | bytes) and hasattr(value, "__iter__") and element.VR != "PN"
            found[element.keyword] = [str(part) for part in value] if many else "" if value is None else str(value)
    return found


@pytest.mark.parametrize("name", SERIES)
def test_derived_object_is_as_reviewed(tmp_path, name):
    source = load(factories.write_series(tmp_path, SERIES[name]()))
    seen = readable(next(encode_images(source, phantoms.shifted(source.images, 2.0), phantoms.context())))
    path = GOLDEN / f"{name}.json"
    if os.environ.get("DICOMNODE_UPDATE_GOLDEN"):
        path.write_text(json.dumps(seen, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
    assert seen == json.loads(path.read_text(encoding="utf-8"))
