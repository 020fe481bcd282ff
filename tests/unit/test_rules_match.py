from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from dicomnode.config import Rule
from dicomnode.errors import ConfigError
from dicomnode.rules import check_rules, evaluate
from tests.factories import ct_series

# pydicom warns about what these tests garble.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def rule(name="r", **when):
    return Rule.model_validate({"name": name, "when": when["when"], "pipeline": "p", "send_to": ["x"]})


@pytest.fixture
def ct():
    dataset = ct_series(n=1)[0]
    dataset.Modality = "CT "
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.KVP = "120.0"
    dataset.SeriesDescription = "Routine Head"
    dataset.BodyPartExamined = ""
    dataset.PatientName, dataset.PatientID = "Doe^Jane", "SECRET-4711"
    dataset.ReferringPhysicianName = "Grey^M"
    item = Dataset()
    item.ScheduledProcedureStepID = "STEP1"
    other = Dataset()
    other.ScheduledProcedureStepID = "STEP2"
    dataset.RequestAttributesSequence = [item, other]
    dataset.add_new(0x00091001, "LO", "private thing")
    return dataset


def one(dataset, name, condition, facts=None):
    verdict = evaluate([rule(when={name: condition})], dataset, facts or {})[0]
    assert verdict.matched == verdict.conditions[0].ok
    return verdict.conditions[0]


@pytest.mark.parametrize(
    ("name", "condition", "ok"),
    [
        ("Modality", "CT", True),
        ("Modality", "ct", False),
        ("Modality", ["MR", "CT"], True),
        ("ImageType", "AXIAL", True),
        ("ImageType", {"contains": "LOCALIZER"}, False),
        ("ImageType", {"not": {"contains": "LOCALIZER"}}, True),
        ("ImageType", {"contains": ["PRIMARY", "AXIAL"]}, True),
        ("ImageType", {"contains": ["PRIMARY", "MPR"]}, False),
        ("KVP", 120, True),
        ("KVP", "120", True),
        ("KVP", {"min": 100, "max": 140}, True),
        ("KVP", {"min": 121}, False),
        ("KVP", {"max": 119.9}, False),
        ("KVP", {"min": 121, "max": 119}, False),
        ("Modality", {"min": 1}, False),
        ("SeriesDescription", {"matches": "(?i)head"}, True),
        ("SeriesDescription", {"matches": "^head"}, False),
        ("SeriesDescription", {"matches": "Routine", "not": {"matches": "Head"}}, False),
        ("BodyPartExamined", "absent", True),
        ("BodyPartExamined", "present", False),
        ("BodyPartExamined", {"not": {"equals": "HEAD"}}, True),
        ("BodyPartExamined", {"matches": ".*"}, False),
        ("ContrastBolusAgent", "absent", True),
        ("Modality", "present", True),
        ("Modality", "absent", False),
        ("RequestAttributesSequence", "present", True),
        ("RequestAttributesSequence.ScheduledProcedureStepID", "STEP2", True),
        ("RequestAttributesSequence.ScheduledProcedureStepID", "STEP3", False),
        ("(0009,1001)", "private thing", True),
        ("(0018,0060)", {"min": 100}, True),
        ("SOPClassUID", "CTImageStorage", True),
        ("SOPClassUID", "CT Image Storage", True),
        ("SOPClassUID", "MRImageStorage", False),
        ("SOPClassUID", {"not": {"equals": "CTImageStorage"}}, False),
        ("SOPClassUID", "1.2.840.10008.5.1.4.1.1.2", True),
        ("TransferSyntaxUID", "ExplicitVRLittleEndian", True),
        ("Rows", 32, True),
        ("PatientSex", "absent", None),
    ],
    ids=str,
)
def test_conditions(ct, name, condition, ok):
    found = one(ct, name, condition)
    assert ok is None or found.ok is ok, found
    assert found.why


@pytest.mark.parametrize(
    ("name", "condition", "value", "ok"),
    [
        ("series.slices", {"min": 10}, 28, True),
        ("series.slices", 28, 28, True),
        ("series.orientation", ["axial", "oblique"], "oblique", True),
        ("series.contrast", "no", "no", True),
        ("series.contrast", False, "no", True),  # YAML reads an unquoted no so
        ("series.contrast", True, "no", False),
        ("series.contrast", {"not": {"equals": True}}, "unknown", True),
        ("series.rows", 256, [128, 256], True),
        ("series.phases", {"min": 10}, "unequal", False),
        ("series.slice_spacing", {"max": 5}, None, False),
        ("series.slice_spacing", "absent", None, True),
    ],
    ids=str,
)
def test_facts_are_conditions_like_attributes(ct, name, condition, value, ok):
    assert one(ct, name, condition, {} if value is None else {name: value}).ok is ok


def test_every_condition_is_explained_also_after_one_failed(ct):
    verdict = evaluate([rule(when={"Modality": "MR", "KVP": 120, "SeriesDescription": "absent"})], ct, {})[0]
    assert not verdict.matched
    assert [(c.keyword, c.wanted, c.seen, c.ok, c.why) for c in verdict.conditions] == [
        ("Modality", "MR", "CT", False, "differs"),
        ("KVP", "120", "120.0", True, "equals 120"),
        ("SeriesDescription", "absent", "Routine Head", False, "it is there"),
    ]


@pytest.mark.parametrize(
    ("name", "condition"),
    [
        ("PatientName", {"matches": "Doe"}),
        ("PatientID", {"matches": "4711"}),
        ("PatientID", {"not": {"matches": "4711"}}),
        ("ReferringPhysicianName", {"matches": "Grey"}),
        ("(0010,0020)", "SECRET-4711"),
    ],
)
def test_identity_is_matched_and_never_shown(ct, name, condition):
    found = one(ct, name, condition)
    assert "4711" not in found.seen + found.why.replace("SECRET-4711", "4711")
    assert "Doe" not in found.seen + found.why
    assert "withheld" in found.seen


def test_long_values_and_many_values_are_cut(ct):
    ct.SeriesDescription = "x" * 500
    assert len(one(ct, "SeriesDescription", "y").seen) < 80
    ct.ImageType = [f"V{i}" for i in range(50)]
    assert one(ct, "ImageType", "V49").ok
    assert "(50 values)" in one(ct, "ImageType", "V49").seen


def test_a_garbled_value_is_seen_as_text_and_does_not_raise(ct):
    tag = Tag(0x00180060)
    ct[tag] = RawDataElement(tag, "DS", 8, b"12x0.0..", 0, False, True)
    found = one(ct, "KVP", {"min": 100})
    assert not found.ok
    assert "not a number" in found.why


@pytest.mark.parametrize(
    ("when", "says"),
    [
        ({"SeriesDescripton": "x"}, "did you mean 'SeriesDescription'?"),
        ({"modality": "CT"}, "did you mean 'Modality'?"),
        ({"series.slice": {"min": 3}}, "did you mean 'series.slices'?"),
        ({"series.orientation": "axail"}, "did you mean 'axial'?"),
        ({"series.orientation": {"not": {"equals": "axail"}}}, "did you mean 'axial'?"),
        ({"series.contrast": 3}, "none of yes, no, unknown"),
        ({"RequestAttributesSequence": "x"}, "is a sequence"),
        ({"RequestAttributesSequence.Foo": "x"}, "'Foo' is not a DICOM keyword"),
    ],
)
def test_what_can_never_hold_is_reported_with_the_nearest_name(when, says):
    with pytest.raises(ConfigError) as caught:
        check_rules([rule(when=when)])
    assert says in str(caught.value)
    assert "rules.r.when" in str(caught.value)


def test_every_problem_is_reported_at_once_and_good_rules_pass():
    with pytest.raises(ConfigError) as caught:
        check_rules([rule("a", when={"Foo": "x", "Bar": "y"}), rule("b", when={"series.zzz": "x"})])
    assert str(caught.value).count("\n") == 3
    check_rules(
        [rule(when={"Modality": "CT", "(0009,1001)": "x", "series.contrast": False, "series.own_result": "no"})]
    )


names = st.sampled_from(["Modality", "KVP", "ImageType", "SeriesDescription", "series.slices", "series.orientation"])
conditions = st.one_of(
    st.sampled_from(["CT", "MR", "present", "absent", "axial", "AXIAL"]),
    st.integers(0, 200),
    st.builds(lambda low, high: {"min": low, "max": high}, st.integers(0, 200), st.integers(0, 200)),
    st.builds(lambda inner: {"not": {"equals": inner}}, st.sampled_from(["CT", "axial"])),
    st.just({"contains": "LOCAL"}),
)
whens = st.dictionaries(names, conditions, min_size=1, max_size=4)


@given(st.lists(whens, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_verdicts_do_not_depend_on_the_order_of_rules_or_conditions(found, random):
    dataset = ct_series(n=1)[0]
    facts = {"series.slices": 28, "series.orientation": "axial"}
    rules = [rule(f"r{number}", when=when) for number, when in enumerate(found)]
    shuffled = []
    for number, when in enumerate(found):
        items = list(when.items())
        random.shuffle(items)
        shuffled.append(rule(f"r{number}", when=dict(items)))
    random.shuffle(shuffled)
    straight = {v.rule: (v.matched, frozenset(v.conditions)) for v in evaluate(rules, dataset, facts)}
    mixed = {v.rule: (v.matched, frozenset(v.conditions)) for v in evaluate(shuffled, dataset, facts)}
    assert straight == mixed
    for verdict, when in zip(evaluate(rules, dataset, facts), found, strict=True):
        assert {c.keyword for c in verdict.conditions} == set(when)
        assert all(c.why and c.wanted and c.seen for c in verdict.conditions)
