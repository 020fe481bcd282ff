"""Parametric maps: every value where it was computed, with what it means; and each thing wrong is refused by name."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
from highdicom.pm import ParametricMap as Reader
from pydicom import Dataset
from pydicom.pixels import apply_windowing

from dicomnode import pipeline as dn
from dicomnode.domain import ObjectKind
from dicomnode.encode.gate import check_objects
from dicomnode.encode.pm import encode_parametric_map
from dicomnode.encode.result import encode_result
from dicomnode.errors import EncodingError
from dicomnode.volumes.cine import load_cine
from dicomnode.volumes.series import load
from tests import cine, factories, phantoms
from tests.unit.test_encode_gate import SOURCES

MAP = [ObjectKind.PARAMETRIC_MAP]


def written(source, result, **context) -> Dataset:
    (one,) = encode_result(source, result, phantoms.context(**context), kinds=MAP)
    return one.dataset


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    source = load(factories.write_series(tmp_path_factory.mktemp("good"), factories.ct_series(5, rows=24, columns=20)))
    result = phantoms.mapped(source.images)
    return source, result, written(source, result)


@pytest.mark.parametrize("case", SOURCES)
def test_every_value_lies_on_the_plane_it_was_computed_on(tmp_path, case):
    source = load(factories.write_series(tmp_path, SOURCES[case]()))
    result = phantoms.mapped(source.images)
    ds = written(source, result)
    values = np.frombuffer(ds.FloatPixelData, "<f4").reshape(-1, ds.Rows, ds.Columns)
    assert len(values) == len(source.planes)
    places = np.array(
        [frame.PlanePositionSequence[0].ImagePositionPatient for frame in ds.PerFrameFunctionalGroupsSequence], float
    )
    for place, frame in zip(places, values, strict=True):
        plane = int(np.linalg.norm(source.images.positions - place, axis=1).argmin())
        np.testing.assert_array_equal(frame, result.parametric_maps[0].values[plane])


def test_highdicom_reads_the_real_world_values_back(good):
    source, result, ds = good
    read = Reader.from_dataset(deepcopy(ds))
    volume = read.get_volume(apply_real_world_transform=True)
    wanted = result.parametric_maps[0].values
    np.testing.assert_array_equal(np.sort(volume.array, axis=None), np.sort(wanted, axis=None))
    assert volume.frame_of_reference_uid == source.headers[0].FrameOfReferenceUID


def test_it_says_what_the_values_are(good):
    _, _, ds = good
    (mapping,) = ds.PerFrameFunctionalGroupsSequence[0].get("RealWorldValueMappingSequence") or (
        ds.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence
    )
    assert mapping.QuantityDefinitionSequence[0].ConceptCodeSequence[0].CodeMeaning == "Score of the toy"
    assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == "1"
    assert (mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept) == (1.0, 0.0)
    assert ds.SeriesDescription == "AI score, RUO" and ds.ContentQualification == "RESEARCH"
    assert ds.ImageType[0] == "DERIVED" and ds.SeriesNumber == 9090


def test_equal_runs_give_equal_bytes(good):
    source, result, ds = good
    assert written(source, result) == ds


def test_a_score_of_half_is_shown_half_as_bright(good):
    _, _, ds = good
    (window,) = ds.SharedFunctionalGroupsSequence[0].FrameVOILUTSequence
    assert window.VOILUTFunction == "LINEAR_EXACT" and window.WindowCenterWidthExplanation == "AI score"
    shown = apply_windowing(np.array([0.0, 0.25, 0.5, 1.0]), voi(window))
    np.testing.assert_allclose(shown / shown[-1], [0.0, 0.25, 0.5, 1.0])


def voi(window) -> Dataset:
    ds = Dataset()
    ds.update(window)
    ds.PhotometricInterpretation, ds.BitsStored, ds.PixelRepresentation = "MONOCHROME2", 8, 0
    return ds


def test_two_maps_of_one_name_lie_each_on_its_phase(tmp_path):
    source = load_cine(factories.write_series(tmp_path, cine.one_series()))
    values = np.random.default_rng(0).random((2, *source.series.array.shape[1:]), np.float32)
    first = dn.ParametricMap(values=values[0], quantity=phantoms.SCORE, unit=dn.Code("1", "UCUM", "no units"), phase=2)
    second = replace(first, values=values[1], phase=5, role="other")
    result = dn.Result(parametric_maps=(first, second))
    found = list(encode_result(source, result, phantoms.context(), kinds=MAP))
    assert [one.role for one in found] == ["map", "other"]
    moved = deepcopy(found[1].dataset)
    moved.FloatPixelData = found[0].dataset.FloatPixelData
    with pytest.raises(EncodingError, match="differs from the result"):
        check_objects([moved], source, result)


def test_a_map_of_one_phase_lies_on_that_phase(tmp_path):
    source = load_cine(factories.write_series(tmp_path, cine.one_series()))
    shape = source.series.array.shape[1:]
    values = np.random.default_rng(0).random(shape, np.float32)
    one = dn.ParametricMap(values=values, quantity=phantoms.SCORE, unit=dn.Code("1", "UCUM", "no units"), phase=2)
    ds = written(source, dn.Result(parametric_maps=(one,)))
    wanted = {str(header.SOPInstanceUID) for header in source.at_phase(2).headers}
    named = {
        str(frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID)
        for frame in ds.PerFrameFunctionalGroupsSequence
    }
    assert named == wanted


def test_it_is_made_only_where_somebody_asks(good):
    source, result, _ = good
    kinds = {one.kind for one in encode_result(source, result, phantoms.context())}
    assert ObjectKind.PARAMETRIC_MAP not in kinds and ObjectKind.SEGMENTATION in kinds


def test_without_a_frame_of_reference_there_is_none(tmp_path):
    source = load(factories.write_series(tmp_path, factories.ct_series(3, missing=["FrameOfReferenceUID"])))
    objects = list(encode_result(source, phantoms.mapped(source.images), phantoms.context(), kinds=list(ObjectKind)))
    assert ObjectKind.PARAMETRIC_MAP not in {one.kind for one in objects}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"values": np.zeros((2, 24, 20), np.float32)}, "maps are float32 on the input's planes"),
        ({"values": np.full((5, 24, 20), np.nan, np.float32)}, "holds values that are not finite"),
    ],
)
def test_what_does_not_fit_is_refused(good, changes, said):
    source, result, _ = good
    one = replace(result.parametric_maps[0], **changes)
    with pytest.raises(EncodingError, match=said):
        encode_parametric_map(source, one, phantoms.context(), series_number=1)


def frames(ds):
    return ds.PerFrameFunctionalGroupsSequence


def mapping(ds):
    groups = (ds.SharedFunctionalGroupsSequence[0], frames(ds)[0])
    return next(one.RealWorldValueMappingSequence[0] for one in groups if "RealWorldValueMappingSequence" in one)


def swapped(ds):
    first, last = frames(ds)[0], frames(ds)[-1]
    for keyword in ("PlanePositionSequence", "DerivationImageSequence"):
        kept = first[keyword].value
        first[keyword].value = last[keyword].value
        last[keyword].value = kept


def one_value(ds):
    raw = bytearray(ds.FloatPixelData)
    raw[403] ^= 0x01
    ds.FloatPixelData = bytes(raw)


WRONG = {
    "planes swapped": (swapped, "frame 1: differs from the result in"),
    "one value": (one_value, "frame 1: differs from the result in 1 voxels of plane"),
    "other unit": (
        lambda ds: setattr(mapping(ds).MeasurementUnitsCodeSequence[0], "CodeValue", "ml"),
        "its unit is",
    ),
    "other scale": (lambda ds: setattr(mapping(ds), "RealWorldValueSlope", 2.0), "are not the stored ones"),
    "other quantity": (
        lambda ds: setattr(mapping(ds).QuantityDefinitionSequence[0].ConceptCodeSequence[0], "CodeValue", "other"),
        "are of none of the result's parametric maps",
    ),
    "too narrow": (
        lambda ds: setattr(mapping(ds), "DoubleFloatRealWorldValueLastValueMapped", 0.5),
        "leaves out values of the result",
    ),
    "another frame of reference": (lambda ds: setattr(ds, "FrameOfReferenceUID", "1.2.3"), "is not the source's"),
    "too short": (lambda ds: setattr(ds, "FloatPixelData", ds.FloatPixelData[:-4]), "FloatPixelData is not their size"),
    "original": (lambda ds: setattr(ds, "ImageType", ["ORIGINAL", "PRIMARY"]), "does not say DERIVED"),
    "half a slice off": (
        lambda ds: setattr(
            frames(ds)[0].PlanePositionSequence[0],
            "ImagePositionPatient",
            [*frames(ds)[0].PlanePositionSequence[0].ImagePositionPatient[:2], "31.25"],
        ),
        "mm from the nearest plane of the source",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_the_gate_refuses_a_map_that_would_mislead(good, case):
    source, result, ds = good
    damage, said = WRONG[case]
    changed = deepcopy(ds)
    damage(changed)
    with pytest.raises(EncodingError, match=said):
        check_objects([changed], source, result)
