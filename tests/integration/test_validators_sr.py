"""Independent programs accept the reports, and read from them what went in."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest

from dicomnode import pipeline as dn
from dicomnode.encode.marks import encode_marks
from dicomnode.encode.report import encode_reports
from dicomnode.volumes.series import load
from tests import factories, phantoms, reports
from tests.integration.test_validators import entity_errors, errors_of
from tests.peers import pixelmed

SHIFT = dn.Code("shift", "99TEST", "Midline shift")


def with_everything(images):
    """Positive, with values of the whole examination, one of which could not be measured."""
    result = phantoms.bleeding(images)
    loose = (
        dn.Measurement(name=SHIFT, value=4.2, unit=dn.MM, interval=(3.0, 5.0), site=phantoms.BRAIN),
        dn.Measurement(
            name=dn.Code("118512005", "SCT", "Thickness"),
            value=None,
            unit=dn.MM,
            segment=phantoms.SDH.key,
            qualifier=dn.Code("114007", "DCM", "Measurement not attempted"),
        ),
    )
    calibrated = dataclasses.replace(result.findings[1], calibrated=True, reason="one of two lesions")
    findings = (result.findings[0], calibrated, result.findings[2])
    return dataclasses.replace(result, findings=findings, measurements=(*result.measurements, *loose))


CASES = {
    "positive": (lambda: factories.ct_series(5), phantoms.bleeding),
    "negative": (lambda: factories.ct_series(3), phantoms.not_bleeding),
    "undetermined": (lambda: factories.ct_series(3), phantoms.not_evaluated),
    "everything": (lambda: factories.ct_series(5, charset="\\ISO 2022 IR 87"), with_everything),
    "many segments": (lambda: factories.ct_series(3, columns=64), lambda images: reports.many_segments(images, 6)),
    "enhanced": (lambda: [factories.enhanced_ct(5)], phantoms.bleeding),
    "mr": (lambda: factories.mr_series(4), phantoms.bleeding),
}
REPLACES = [("1.2", "1.2.3", "1.2.840.10008.5.1.4.1.1.88.34", "1.2.3.1")]
OTHER_BYTES = {"everything"}  # dcentvfy compares bytes, and the same name has others in Unicode


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Case -> (sources, segmentations, reports) as files."""
    found = {}
    for case, (series, pipeline) in CASES.items():
        folder = tmp_path_factory.mktemp(case.replace(" ", "-"))
        sources = factories.write_series(folder / "source", series())
        source = load(sources)
        result = pipeline(source.images)
        context = phantoms.context(revision=2, predecessor="1.2.3") if case == "everything" else phantoms.context()
        segs = reports.segmentations(source, result, context)
        replaces = REPLACES if case == "everything" else ()
        documents = encode_reports(source, result, context, series_number=9050, segs=segs, replaces=replaces)
        marks = encode_marks(source, result, context, series_number=9060)
        objects = [(f"seg-{role}", ds) for role, ds in segs.items()]
        objects += documents + ([("marks", marks)] if marks else [])
        paths = []
        for role, ds in objects:
            paths.append(folder / f"{role}.dcm")
            ds.save_as(paths[-1], enforce_file_format=True)
        found[case] = sources, paths[: len(segs)], paths[len(segs) :]
    return found


def require(*programs: str, package: str) -> None:
    missing = [one for one in programs if shutil.which(one) is None]
    if missing and os.environ.get("CI"):
        pytest.fail(f"{', '.join(missing)} must be installed in CI ({package})")
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed ({package})")


def test_pixelmed_finds_no_error(written):
    """All in one Java machine: starting it and compiling the templates takes longer than judging a report."""
    pixelmed.require()
    judged = ("negative", "undetermined", "everything")
    paths = [path for case in judged for path in written[case][2]]
    found = pixelmed.validate(paths)
    assert {
        f"{path.parent.name}/{path.name}": verdict.errors for path, verdict in found.items() if verdict.errors
    } == {}
    assert all("Found Root Template TID_1500" in verdict.text for verdict in found.values())
    marks = [verdict for path, verdict in found.items() if path.stem == "marks"]
    assert marks and all("Image Region" not in line for verdict in marks for line in verdict.warnings)


@pytest.mark.parametrize("case", CASES)
def test_dicom3tools_finds_no_error(written, case):
    require("dciodvfy", "dcentvfy", package="Debian package dicom3tools")
    sources, segs, documents = written[case]
    assert documents
    for path in documents:
        assert errors_of(path) == []
    found = entity_errors([*sources, *segs, *documents])
    if case in OTHER_BYTES:
        found = [line for line in found if "Element=<PatientName>" not in line]
    assert found == []


def test_dcmtk_prints_the_whole_tree(written):
    require("dsrdump", package="Debian package dcmtk")
    _, _, documents = written["everything"]
    printed = ""
    for path in documents:
        run = subprocess.run(["dsrdump", "+Pl", path], capture_output=True, check=True, timeout=60)
        said = [line for line in run.stderr.decode().splitlines() if "Specific Character Set: ISO_IR 192" not in line]
        assert said == []
        printed += run.stdout.decode(errors="replace")
    for text in (
        "Cerebral hemorrhage",
        '="1.5" (ml',
        "Laterality",
        "not for diagnosis",
        "POLYLINE",
        "Referenced Segment",
    ):
        assert text in printed


def test_dcmqi_reads_the_volumes(written, tmp_path):
    """The reader of 3D Slicer."""
    reader = shutil.which("tid1500reader", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if reader is None:
        assert not os.environ.get("CI"), "dcmqi must be installed in CI"
        pytest.skip("tid1500reader not installed (PyPI dcmqi)")
    for case in ("positive", "many segments", "enhanced"):
        _, _, documents = written[case]
        out = tmp_path / "out.json"
        command = [reader, "--inputDICOM", documents[0], "--outputMetadata", out]
        subprocess.run(command, capture_output=True, check=True, timeout=60)
        read = json.loads(out.read_text())["Measurements"]
        values = [
            float(item["value"])
            for group in read
            for item in group["measurementItems"]
            if item["quantity"]["CodeMeaning"] == "Volume"
        ]
        wanted = {"positive": [1.5, 3.0], "enhanced": [1.5, 3.0], "many segments": [n / 7 for n in range(1, 7)]}
        np.testing.assert_allclose(values, wanted[case], rtol=1e-6)
        assert [group["ReferencedSegment"] for group in read] == list(range(1, len(read) + 1))
        assert {group["segmentationSOPInstanceUID"] for group in read} == {
            str(pydicom.dcmread(written[case][1][0]).SOPInstanceUID)
        }
