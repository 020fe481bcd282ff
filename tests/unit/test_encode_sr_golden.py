"""Reports and marks as last reviewed; set DICOMNODE_UPDATE_GOLDEN=1 to write them anew after a wanted change."""

from __future__ import annotations

import dataclasses
import json
import os

import pytest

from dicomnode import pipeline as dn
from dicomnode.encode.marks import encode_marks
from dicomnode.encode.report import encode_reports
from dicomnode.volumes.series import load
from tests import factories, phantoms, reports
from tests.unit.test_encode_golden import GOLDEN, readable


def positive(images):
    """With a value of the whole examination beside those of the segments."""
    result = phantoms.bleeding(images)
    shift = dn.Measurement(name=dn.Code("shift", "99TEST", "Midline shift"), value=4.2, unit=dn.MM, interval=(3.0, 5.0))
    return dataclasses.replace(result, measurements=(*result.measurements, shift))


@pytest.mark.parametrize(
    ("name", "role", "pipeline"),
    [
        ("sr_report", "report", positive),
        ("sr_values", "values", positive),
        ("sr_marks", "marks", positive),
        ("sr_negative", "values", phantoms.not_bleeding),
        ("sr_undetermined", "values", phantoms.not_evaluated),
    ],
)
def test_document_is_as_reviewed(tmp_path, name, role, pipeline):
    source = load(factories.write_series(tmp_path, factories.ct_series(3, charset="\\ISO 2022 IR 87")))
    result, context = pipeline(source.images), phantoms.context()
    segs = reports.segmentations(source, result, context)
    found = dict(encode_reports(source, result, context, series_number=9050, segs=segs))
    marks = encode_marks(source, result, context, series_number=9060)
    seen = readable(found[role] if role != "marks" else marks)
    path = GOLDEN / f"{name}.json"
    if os.environ.get("DICOMNODE_UPDATE_GOLDEN"):
        path.write_text(json.dumps(seen, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
    assert seen == json.loads(path.read_text(encoding="utf-8"))
