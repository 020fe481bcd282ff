"""A result that breaks the contract is refused with everything that is wrong with it."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from dicomnode import pipeline as dn
from dicomnode.errors import ResultInvalid
from dicomnode.execute.contract import check_result
from dicomnode.execute.perform import findings_of, quality_of
from dicomnode.volumes.series import load
from tests import factories, phantoms
from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return load(factories.write_series(tmp_path_factory.mktemp("ct"), factories.ct_series(6))).images


def changed(result, **changes):
    """A result whose first segmentation is changed."""
    first = replace(result.segmentations[0], **changes)
    return replace(result, segmentations=(first, *result.segmentations[1:]))


def with_map(result, **changes):
    one = dn.ParametricMap(quantity=phantoms.SCORE, unit=dn.Code("1", "UCUM", "no units"), **changes)
    return replace(result, parametric_maps=(one,))


def test_what_pipelines_say_is_accepted(images):
    for result in (
        phantoms.identity(images), phantoms.bleeding(images), phantoms.not_bleeding(images),
        phantoms.not_evaluated(images), phantoms.mapped(images),
    ):  # fmt: skip
        check_result(result, images)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda r, _: "nothing", "returned str"),
        (lambda r, _: dn.Result(), "says nothing"),
        (lambda r, _: replace(r, window=(float("nan"), 80.0)), r"the window is \(center nan, width 80.0\)"),
        (lambda r, _: replace(r, window=(40.0, float("inf"))), r"the window is \(center 40.0, width inf\)"),
        (lambda r, _: replace(r, window=(40.0, 0.0)), "width is above 0"),
        (lambda r, _: changed(r, labels=r.segmentations[0].labels[:-1]), "the series is"),
        (lambda r, _: changed(r, labels=r.segmentations[0].labels.astype(np.int16)), "labels are uint8"),
        (lambda r, _: changed(r, labels=r.segmentations[0].labels * np.uint8(2)), "declares 2 segments"),
        (lambda r, _: changed(r, labels=np.zeros_like(r.segmentations[0].labels)), "empty"),
        (lambda r, _: changed(r, segments=()), "declares no segments"),
        (lambda r, _: changed(r, segments=(phantoms.IPH, phantoms.IPH)), "two segments have the key"),
        (lambda r, _: changed(r, segments=(phantoms.IPH, replace(phantoms.SDH, label="x" * 65))), "64 characters"),
        (lambda r, _: changed(r, segments=(phantoms.IPH, replace(phantoms.SDH, colour=(1, 2, 256)))), "sRGB"),
        (lambda r, _: changed(r, role="report"), "taken by the node"),
        (lambda r, _: replace(r, segmentations=r.segmentations * 2), "have the role"),
        (lambda r, _: replace(r, key_planes=(dn.KeyPlane(plane=6, reason="x"),)), "key plane 6 of 6"),
        (lambda r, _: replace(r, key_planes=(dn.KeyPlane(plane=1, reason="x", segments=("a",)),)), "unknown segment"),
        (lambda r, _: replace(r, findings=(replace(r.findings[0], probability=1.2),)), "probability 1.2"),
        (lambda r, _: replace(r, findings=(replace(r.findings[0], segment="a"),)), "unknown segment 'a'"),
        (lambda r, _: replace(r, measurements=(replace(r.measurements[0], value=float("nan")),)), "is nan"),
        (lambda r, _: replace(r, measurements=(replace(r.measurements[0], value=None),)), "say why"),
        (lambda r, _: replace(r, measurements=(replace(r.measurements[0], interval=(2.0, 3.0)),)), "outside"),
        (lambda r, _: replace(r, measurements=(replace(r.measurements[0], segment="a"),)), "unknown segment 'a'"),
        (lambda r, i: with_map(r, values=np.zeros_like(i.array[1:])), "parametric map 'map' is float32"),
        (lambda r, i: with_map(r, values=i.array.astype(np.float64)), "maps are float32"),
        (lambda r, i: with_map(r, values=np.full_like(i.array, np.inf)), "parametric map 'map' holds values that are"),
        (lambda r, i: with_map(r, values=i.array, shown=(1.0, 1.0)), "shows values from 1.0 to 1.0"),
        (lambda r, i: with_map(r, values=i.array, phase=0), "parametric map 'map' is of phase 0"),
        (lambda r, i: with_map(r, values=i.array, role="presentation"), "taken by the node"),
        (lambda r, i: with_map(r, values=i.array, role="presentation-2"), "taken by the node"),
        (lambda r, i: with_map(r, values=i.array, role="phase-1"), "taken by the node"),
        (lambda r, _: changed(r, role="heart-phases"), "taken by the node"),
        (lambda r, _: changed(r, role="heart-labelmap"), "taken by the node"),
        (lambda r, _: changed(r, role="magnitude-enhanced"), "taken by the node"),
        (lambda r, i: with_map(r, values=i.array, label="x" * 65), "a label of 1 to 64 characters"),
        (lambda r, i: with_map(r, values=i.array, role=r.segmentations[0].role), "have the role"),
        (lambda r, i: phantoms.result(np.full_like(i.array, np.nan)), "not finite"),
        (lambda r, i: phantoms.result(np.zeros_like(i.array)), "constant"),
        (lambda r, i: phantoms.result(i.array[1:]), "the series is float32"),
    ],
)  # fmt: skip
def test_what_breaks_the_contract_is_named(images, broken, said):
    with pytest.raises(ResultInvalid, match=said):
        check_result(broken(phantoms.bleeding(images), images), images)


def test_every_fault_is_named_at_once(images):
    result = phantoms.bleeding(images)
    result = replace(result, key_planes=(dn.KeyPlane(plane=-1, reason="x"),), findings=(
        replace(result.findings[0], probability=2.0),))  # fmt: skip
    with pytest.raises(ResultInvalid, match=r"probability 2.0.*key plane -1"):
        check_result(result, images)


def test_findings_are_kept_as_plain_values(images):
    [first, *_] = findings_of(phantoms.bleeding(images))
    assert first == {
        "code": ["1386000", "SCT", "Intracranial hemorrhage"], "presence": "present", "probability": 0.97,
        "urgency": "minutes", "reason": "",
    }  # fmt: skip


def test_what_is_stored_with_the_job_is_plain_json_whatever_numbers_the_pipeline_uses(images):
    """PostgreSQL refuses NaN in JSON, and nobody's JSON has numpy: either would cost the job its findings."""
    finding = dn.Finding(code=phantoms.HEMORRHAGE, presence=dn.Presence.PRESENT, probability=np.float32(0.5))
    result = dn.Result(findings=(finding,), quality={"noise": np.float32(3), "coverage": float("nan")})
    check_result(result, images)
    quality, notes = quality_of(result)
    assert json.loads(json.dumps([quality, findings_of(result)], allow_nan=False))[0] == {"noise": 3.0}
    assert notes == ["quality coverage is nan: not kept"]


def test_the_findings_of_the_pipeline_guide_keep_the_contract(images):
    guide = (REPOSITORY / "pipelines" / "README.md").read_text(encoding="utf-8")
    _, listing, *_ = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    names: dict = {"dn": dn}
    exec(listing, names)  # our own text
    labels = np.zeros(images.array.shape, np.uint8)
    check_result(names["report"](labels, 0.0, 0.03), images)
    labels[2, 10:20, 10:20] = 1
    check_result(names["report"](labels, 1.0, 0.9), images)
