"""Denoising with its summary through a real PACS: derived series, page, report and outlines, all valid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from dicomnode.config import Destination
from dicomnode.dispatch import send_files
from models.ct_denoise import projection, simulate
from models.ct_denoise.phantoms import clean_image
from tests.acceptance.harness import RunningNode, cli, destination, rule
from tests.acceptance.test_orthanc import validated
from tests.acceptance.test_results_kit import SC, SEG, SR3D, classes, texts
from tests.factories import ct_series, write_series
from tests.peers.orthanc import Orthanc

CT = "1.2.840.10008.5.1.4.1.1.2"
SLICES, SIZE, PIXEL_MM = 4, 192, 0.9


def slices() -> np.ndarray:
    """Simulated slices with noise (slice, row, column) [HU]."""
    seeds = range(simulate.EVALUATION_SEED + 900, simulate.EVALUATION_SEED + 900 + SLICES)
    clean = torch.stack([clean_image(seed, SIZE, PIXEL_MM, torch.device("cpu")) for seed in seeds])
    noise = [simulate.insert_noise(one[None], PIXEL_MM, sigma_hu=14.0, seed=s)[0] for s, one in enumerate(clean)]
    made = projection.apply_kernel(clean, projection.KERNELS["std"], PIXEL_MM) + torch.stack(noise)
    return made.clamp(-1024.0, 3000.0).numpy()


def test_the_summary_of_a_denoised_series_arrives_beside_it(tmp_path: Path) -> None:
    datasets = ct_series(SLICES, rows=SIZE, columns=SIZE, hu=slices())
    sources = write_series(tmp_path / "sent", datasets)
    uid = str(datasets[0].SeriesInstanceUID)
    with Orthanc(tmp_path) as pacs:
        node = RunningNode(
            tmp_path / "node",
            rules=[rule(pipeline="denoise") | {"options": {"strength": "high", "summary": True}}],
            pipelines={"denoise": {"class": "pipelines.ct_denoise:CTDenoising"}},
            destinations={"PACS": destination(pacs.port, "ORTHANC")},
        )
        with node:
            here = Destination(ae_title="AINODE", host="127.0.0.1", port=node.port)
            assert not [one.problem for one in send_files(here, "CT1", sources) if one.problem]
            job = node.wait_closed(uid, limit_s=180)[0]
            shown = cli(node, "jobs", "show", str(job.id))
            there = pacs.datasets()
    found = classes(there)
    assert (found[CT], found[SC]) == (SLICES, 1) and found[SR3D] >= 1
    assert found[SEG] == (1 if job.quality["largest_structure_mm2"] > 0.0 else 0)
    validated(sources, write_series(tmp_path / "results", there))
    said = " ".join(texts(ds) for ds in there if ds.SOPClassUID == SR3D)
    assert "Noise before" in said and "Mean frequency of the noise after" in said
    [page] = [ds for ds in there if ds.SOPClassUID == SC]
    assert page.pixel_array.std() > 10.0 and "RUO" in page.SeriesDescription
    assert "summary" in shown.lower()
