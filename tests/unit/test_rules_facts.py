from __future__ import annotations

import os
import tarfile
import warnings
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import Dataset, Sequence, dcmread
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from dicomnode.config import Rule
from dicomnode.dicom import MANUFACTURER
from dicomnode.domain import INDEX_TAGS
from dicomnode.rules import KNOWN_FACTS, check_rules, evaluate, is_regular_stack, series_facts
from tests.factories import CORONAL, SAGITTAL, ct_series, enhanced_ct

# pydicom warns about the invalid UIDs of real scanners, and about what these tests garble.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
DATA = Path(os.environ.get("DICOMNODE_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))


def index(dataset):
    """What the receiver would index of it."""
    header = {}
    for keyword in INDEX_TAGS.values():
        value = dataset.get(keyword)
        if value not in (None, "") and not keyword.startswith(("Patient", "Issuer")):
            several = not isinstance(value, str) and hasattr(value, "__iter__")
            header[keyword] = "\\".join(map(str, value)) if several else str(value)
    return header


def facts_of(datasets):
    return series_facts([index(ds) for ds in datasets], datasets[0])


@pytest.mark.parametrize(
    ("knobs", "expected"),
    [
        ({}, {"orientation": "axial", "slices": 8, "slice_spacing": 2.5, "spacing_uniform": "yes", "phases": 1}),
        ({"orientation": CORONAL}, {"orientation": "coronal"}),
        ({"orientation": SAGITTAL}, {"orientation": "sagittal"}),
        ({"tilt": 18.5}, {"orientation": "axial", "tilt_deg": 18.5, "spacing_uniform": "yes"}),
        ({"gap": (3,)}, {"gaps": 1, "spacing_uniform": "no", "slices": 7}),
        ({"n": 10, "step": 5.0}, {"coverage_mm": 50.0}),
        ({"duplicate": (2,)}, {"phases": "unequal", "slices": 8, "instances": 9}),
        ({"rows": 16}, {"rows": 16, "columns": 32}),
        ({"missing": ("ImagePositionPatient",)}, {"orientation": "unknown"}),
    ],
    ids=str,
)
def test_facts_of_a_stack(knobs, expected):
    found = facts_of(ct_series(**knobs))
    assert {name: found.get(f"series.{name}") for name in expected} == expected


def test_different_sizes_are_listed_and_different_orientations_are_mixed():
    found = facts_of(ct_series(n=3) + ct_series(n=3, rows=16, orientation=CORONAL))
    assert found["series.rows"] == [16, 32]
    assert found["series.orientation"] == "mixed"
    assert "series.slices" not in found


@pytest.mark.parametrize(
    ("values", "contrast", "basis"),
    [
        ({"ContrastBolusAgent": "Omnipaque 350"}, "yes", "ContrastBolusAgent"),
        ({"ContrastBolusAgent": "NONE"}, "no", "ContrastBolusAgent"),
        ({"ContrastBolusAgent": "", "SeriesDescription": "T1 post gd"}, "yes", "SeriesDescription"),
        ({"SeriesDescription": "Head without contrast"}, "no", "SeriesDescription"),
        ({"SeriesDescription": "Thorax W/O"}, "no", "SeriesDescription"),
        ({"ProtocolName": "PLAIN HEAD"}, "no", "ProtocolName"),
        ({"SeriesDescription": "Abdomen portal venous"}, "yes", "SeriesDescription"),
        ({"SeriesDescription": "Schaedel nativ"}, "no", "SeriesDescription"),
        ({"SeriesDescription": "C-SPINE"}, "unknown", None),
        ({"SeriesDescription": "Routine head"}, "unknown", None),
    ],
    ids=str,
)
def test_contrast_is_said_with_its_basis(values, contrast, basis):
    dataset = ct_series(n=1)[0]
    for keyword in ("SeriesDescription", "StudyDescription", "ProtocolName"):
        setattr(dataset, keyword, "")
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    found = facts_of([dataset])
    assert found["series.contrast"] == contrast
    assert basis is None or found["series.contrast_basis"] == basis


def test_our_own_results_are_recognised_by_maker_or_contributing_equipment():
    dataset = ct_series(n=1)[0]
    assert facts_of([dataset])["series.own_result"] == "no"
    item = Dataset()
    item.Manufacturer = MANUFACTURER
    dataset.ContributingEquipmentSequence = Sequence([item])
    assert facts_of([dataset])["series.own_result"] == "yes"
    del dataset.ContributingEquipmentSequence
    dataset.Manufacturer = MANUFACTURER.upper() + " "
    assert facts_of([dataset])["series.own_result"] == "yes"


def test_planes_of_an_enhanced_object_come_from_its_functional_groups():
    dataset = enhanced_ct(n=6)
    found = facts_of([dataset])
    assert found["series.multiframe"] == "yes"
    assert found["series.frames"] == dataset.NumberOfFrames
    assert found["series.orientation"] == "axial"
    assert found["series.slices"] == 6


def test_every_fact_is_known_to_the_check_and_words_are_of_its_list():
    for knobs in ({}, {"gap": (3,)}, {"missing": ("ImageOrientationPatient",)}):
        for name, value in facts_of(ct_series(**knobs)).items():
            assert name in KNOWN_FACTS
            assert not KNOWN_FACTS[name] or value in KNOWN_FACTS[name]


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    st.lists(st.dictionaries(st.sampled_from(sorted(INDEX_TAGS.values())), st.text(max_size=30)), max_size=4),
    st.dictionaries(st.sampled_from(sorted(INDEX_TAGS)), st.binary(max_size=30)),
)
def test_garbled_values_never_raise(headers, elements):
    representative = Dataset()
    for tag, raw in elements.items():
        representative[Tag(tag)] = RawDataElement(Tag(tag), None, len(raw), raw, 0, True, True)
    found = series_facts(headers, representative)
    assert found["series.instances"] == len(headers)


# -- real series without a SeriesDescription


@cache
def real(archive: str, folder: str) -> list[Dataset]:
    path = DATA / archive
    if not path.exists():
        pytest.skip(f"{path.name} is not here (set DICOMNODE_TEST_DATA)")
    found = []
    with tarfile.open(path) as tar, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for member in tar:
            if (
                member.isfile()
                and f"/{folder}" in f"/{member.name}"
                and not member.name.endswith((".txt", ".csv", ".md"))
            ):
                stream = tar.extractfile(member)
                assert stream is not None
                found.append(dcmread(stream, stop_before_pixels=True))
    return found


RULES = [
    Rule.model_validate({"name": name, "when": when, "pipeline": "p", "send_to": ["x"]})
    for name, when in {
        "head CT": {
            "Modality": "CT", "series.orientation": "axial", "series.slices": {"min": 20, "max": 60},
            "series.coverage_mm": {"min": 100, "max": 220}, "series.contrast": {"not": {"equals": "yes"}},
            "ImageType": {"not": {"contains": "LOCALIZER"}}, "KVP": {"min": 70},
        },
        "cine": {
            "Modality": "MR", "series.phases": {"min": 10}, "series.slices": {"min": 6},
            "series.orientation": "oblique",
        },
        "localizer": {"Modality": "MR", "series.orientation": "mixed"},
    }.items()
]  # fmt: skip
SERIES = [
    ("ct-head-ge/ct-head-ge.tar.xz", "ct-head-ge/", "head CT"),
    ("mr-cardiac-scd/SCD0000101.tar.xz", "sax/", "cine"),
    ("mr-cardiac-scd/SCD0000301.tar.xz", "sax/", "cine"),
]


@pytest.mark.parametrize(("archive", "folder", "wanted"), SERIES)
def test_real_series_without_a_description_are_routed_by_content(archive, folder, wanted):
    datasets = real(archive, folder)
    assert not any(ds.get("SeriesDescription") for ds in datasets)
    check_rules(RULES)
    verdicts = evaluate(RULES, datasets[0], facts_of(datasets))
    assert [verdict.rule for verdict in verdicts if verdict.matched] == [wanted], verdicts


def test_a_real_localizer_of_the_same_series_is_told_apart_by_its_orientations():
    datasets = real("mr-cardiac-scd/SCD0000101.tar.xz", "localizers/")
    verdicts = evaluate(RULES, datasets[0], facts_of(datasets))
    assert [verdict.rule for verdict in verdicts if verdict.matched] == ["localizer"]


def test_the_real_head_is_tilted_and_uneven_and_the_real_cine_regular():
    head = real("ct-head-ge/ct-head-ge.tar.xz", "ct-head-ge/")
    assert facts_of(head)["series.tilt_deg"] == 18.5
    verdict = is_regular_stack([index(ds) for ds in head])
    assert (verdict.regular, verdict.holes) == (False, False)
    cine = [index(ds) for ds in real("mr-cardiac-scd/SCD0000101.tar.xz", "sax/")]
    assert is_regular_stack(cine).reason == "12 positions every 10.00 mm, 20 phases each"
    assert is_regular_stack(cine[:-1]).holes
