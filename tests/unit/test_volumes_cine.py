"""A cine is put together the same from every layout, and what is none is refused by its name."""

from __future__ import annotations

import random
import tarfile
from pathlib import Path

import numpy as np
import pytest

from dicomnode import errors
from dicomnode.pipeline import Geometry
from dicomnode.volumes.cine import load_cine
from tests import cine, factories

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "mr-cardiac-scd"


@pytest.fixture
def load(tmp_path):
    """Write data sets in a random order and load them."""

    def loaded(datasets, **knobs):
        paths = factories.write_series(tmp_path / str(len(list(tmp_path.iterdir()))), datasets)
        random.Random(1).shuffle(paths)
        return load_cine(paths, **knobs)

    return loaded


def require_whole(source, slices=8, phases=10, step=8.0):
    """The cine of `tests.cine.heart`, image by image."""
    series = source.series
    assert series.array.shape[:2] == (phases, slices)
    rows, columns = series.array.shape[2:]
    expected = cine.heart(slices, phases, rows, columns)
    expected = expected[:, ::-1] if series.array[0, 0, 0, 0] else expected
    np.testing.assert_array_equal(series.array, expected.astype(np.float32))
    assert series.geometry is Geometry.REGULAR
    assert series.step == pytest.approx(step, abs=1e-3)
    assert series.slice_positions == pytest.approx(step * np.arange(slices), abs=1e-2)
    np.testing.assert_array_equal(source.stored.reshape(series.array.shape), expected)


@pytest.mark.parametrize("layout", ["one_series", "series_per_slice", "interleaved", "repeated"])
def test_single_frame_layouts_give_the_same_cine(load, layout):
    source = load(getattr(cine, layout)())
    require_whole(source)
    series = source.series
    assert series.ordered_by == "TriggerTime"
    assert (np.diff(series.trigger_times, axis=0) > 0).all()
    assert series.intervals.tolist() == [cine.INTERVAL] * 8
    assert series.acquisition["HeartRate"] == 71
    assert "PatientID" not in series.acquisition


def test_enhanced_layouts_give_the_same_cine(load):
    frames = cine.one_series()
    random.Random(3).shuffle(frames)
    for datasets in ([cine.enhanced(frames)], cine.enhanced_per_slice()):
        source = load(datasets)
        require_whole(source)
        assert source.series.ordered_by == "NominalCardiacTriggerDelayTime"
        assert source.series.intervals.tolist() == [cine.INTERVAL] * 8
        assert any("phases ordered by NominalCardiacTriggerDelayTime" in note for note in source.notes)


def test_every_phase_is_a_series_of_its_own(load):
    for datasets in (cine.one_series(), [cine.enhanced(cine.one_series())], cine.enhanced_per_slice()):
        source = load(datasets)
        for phase in (0, 4, 9):
            at = source.at_phase(phase)
            np.testing.assert_array_equal(at.images.array, source.series.array[phase])
            np.testing.assert_array_equal(at.images.volume.array, source.series.array[phase])
            np.testing.assert_array_equal(at.stored, source.stored.reshape(source.series.array.shape)[phase])
            for index, plane in enumerate(at.planes):
                flat = source.planes[phase * 8 + index]
                assert at.headers[plane.header] is source.headers[flat.header]
                assert plane.frame == flat.frame
                if not plane.frame:
                    time = float(at.headers[plane.header].TriggerTime)
                    assert time == pytest.approx(source.series.trigger_times[phase, index])
        with pytest.raises(IndexError):
            source.at_phase(10)


def test_of_a_repeated_slice_the_latest_complete_acquisition_is_taken(load):
    source = load(cine.repeated(which=2))
    times = source.series.trigger_times
    assert sorted(times[0].tolist()) == [10.0] * 7 + [12.0]
    (said,) = source.series.left_out
    assert "an earlier acquisition of 10 phases left out" in said
    again = cine.repeated(which=2)
    source = load(again[:-1])  # the repetition was stopped: 9 phases
    require_whole(source)
    assert "an incomplete acquisition of 9 phases left out" in source.series.left_out[0]
    assert source.series.trigger_times[0].tolist() == [10.0] * 8


def test_repetitions_are_told_apart_by_series_number_time_or_order(load):
    def told(**values):
        return cine.changed(cine.repeated(), lambda index: index >= 80, **values)

    for datasets in (
        told(SeriesInstanceUID=factories.uid("again"), AcquisitionTime="084000"),
        told(AcquisitionNumber="2"),
        told(AcquisitionTime="084000"),
        cine.changed(told(), lambda _: True, AcquisitionTime=None),
    ):
        source = load(datasets)
        require_whole(source)
        assert sorted(source.series.trigger_times[0].tolist()) == [10.0] * 7 + [12.0]


def test_equal_phases_that_nothing_tells_apart_are_refused(load):
    copies = cine.one_series(name="copy")[2::8]
    with pytest.raises(errors.DuplicatePositions, match="same phase of one plane"):
        load(cine.one_series() + copies)


def test_scouts_long_axes_and_late_enhancement_are_left_out_and_named(load):
    source = load([*cine.one_series(), *cine.scouts(), *cine.long_axis(), *cine.late_enhancement()])
    require_whole(source)
    said = "; ".join(source.series.left_out)
    assert "8 images left out: inversion-prepared" in said
    assert "30 images left out: another direction or grid (3 planes with phases)" in said
    assert said.count("another direction") == 2  # the scouts' three directions are told in one sentence
    assert set(source.series.left_out) <= set(source.notes)


def test_the_oblique_stack_wins_over_a_longer_axial_one(load):
    axial = cine.one_series(12, orientation=factories.AXIAL, series="axial")
    source = load(cine.one_series() + axial)
    require_whole(source)
    assert load(axial).series.array.shape[:2] == (10, 12)  # alone, it is what there is


def test_of_two_shifted_stacks_one_is_taken_whole(load):
    shifted = 3.0 * factories.normal_of(cine.SHORT_AXIS) + (-28.7592, -199.666, 111.184)
    source = load(cine.one_series() + cine.one_series(series="second", origin=shifted, clock="0850"))
    require_whole(source)
    assert "8 planes left out: another stack" in source.series.left_out[0]
    assert {ds.SeriesInstanceUID for ds in source.headers} == {factories.uid("study", "second")}


@pytest.mark.parametrize(
    ("values", "missing", "key"),
    [
        ({"TemporalPositionIdentifier": lambda phase: str(phase + 1)}, [], "TemporalPositionIdentifier"),
        ({}, [], "InstanceNumber"),
    ],
)
def test_without_trigger_times_a_named_fallback_orders_the_phases(load, values, missing, key):
    datasets = cine.changed(
        cine.one_series(missing=["TriggerTime", *missing]),
        lambda _: True,
        **{keyword: (lambda index, value=value: value(index // 8)) for keyword, value in values.items()},
    )
    source = load(datasets)
    require_whole(source)
    assert source.series.ordered_by == key
    assert np.isnan(source.series.trigger_times).all()
    assert f"no TriggerTime: phases ordered by {key}" in source.notes


def test_where_some_images_lack_trigger_time_the_fallback_orders_all(load):
    datasets = cine.changed(cine.one_series(), lambda index: index % 7 == 0, TriggerTime=None)
    source = load(datasets)
    require_whole(source)
    assert source.series.ordered_by == "InstanceNumber"


@pytest.mark.parametrize(
    ("datasets", "error", "said"),
    [
        (cine.long_axis, errors.NotCine, "at most 3 parallel planes with phases"),
        (lambda: cine.long_axis() + cine.scouts(), errors.NotCine, "27 images: 1 image of a plane|at most 3 parallel"),
        (cine.scouts, errors.NotCine, "1 image of a plane, no phases"),
        (lambda: cine.one_series(12, step=2.0), errors.NotCine, "over 40 mm"),
        (lambda: cine.one_series(phases=5), errors.NotCine, "5 images of a plane, no phases"),
        (cine.late_enhancement, errors.NotCine, "8 images: inversion-prepared"),
        (cine.phase_contrast, errors.NotCine, r"80 images: phase contrast \(ImageType P\)"),
        (cine.perfusion, errors.NotCine, "20 images of a plane at 1 values of TriggerTime"),
        (
            lambda: cine.changed(cine.perfusion(), lambda _: True, TriggerTime=lambda index: str(100 + index // 8)),
            errors.NotCine,
            "one per beat, as perfusion",
        ),
        (
            lambda: cine.one_series(values={"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]}),
            errors.NotCine,
            "a mosaic",
        ),
        (lambda: cine.one_series(values={"SequenceName": "fl2d1_v150in"}), errors.NotCine, "names a velocity"),
        (lambda: cine.one_series(values={"ScanningSequence": ["GR", "IR"]}), errors.NotCine, "inversion recovery"),
        (
            lambda: cine.changed(cine.one_series(), lambda _: True, TriggerTime=lambda index: str(400 * (index // 8))),
            errors.NotCine,
            "longer than a heartbeat",
        ),
        (
            lambda: cine.one_series(missing=["TriggerTime", "CardiacNumberOfImages"]),
            errors.NotCine,
            "nothing orders the phases",
        ),
        (lambda: cine.one_series()[:-1], errors.UnequalPhases, "10 phases in 7 planes, but 9 at"),
        (lambda: cine.one_series()[:48] + cine.one_series()[48:80][1::8], errors.NotCine, "images of a plane"),
        (lambda: factories.ct_series(8), errors.UnsupportedSOPClass, "8 of CT Image Storage"),
        (list, errors.UnsupportedSOPClass, "no files"),
        (lambda: cine.one_series(missing=["ImagePositionPatient"]), errors.MissingAttribute, "ImagePositionPatient"),
        (
            lambda: cine.changed(cine.one_series(), lambda index: index == 9, PatientID="OTHER"),
            errors.MixedGeometry,
            "PatientID differs",
        ),
    ],
)  # fmt: skip
def test_what_is_no_cine_is_refused_by_name(load, datasets, error, said):
    with pytest.raises(error, match=said):
        load(datasets())


def test_a_plane_that_lost_most_of_its_phases_is_missed(load):
    datasets = [ds for index, ds in enumerate(cine.one_series()) if index % 8 != 7 or index < 32]
    with pytest.raises(errors.UnequalPhases, match="has 4 phases, the others 10"):
        load(datasets)


def test_a_plane_that_is_missing_is_a_gap(load):
    source = load([ds for index, ds in enumerate(cine.one_series(9)) if index % 9 != 4])
    assert source.series.geometry is Geometry.GAPS
    assert "1 planes missing at steps of 8.00 mm" in source.series.geometry_note
    assert source.at_phase(1).images.regular_volume is None


def test_velocity_images_beside_their_magnitude_are_left_out(load):
    source = load(cine.one_series() + cine.phase_contrast())
    require_whole(source)
    assert "80 images left out: phase contrast" in source.series.left_out[0]


def test_other_objects_of_the_study_are_left_out(load):
    source = load([*cine.one_series(), *factories.ct_series(2)])
    require_whole(source)
    assert "2 of CT Image Storage left out: no MR images" in source.series.left_out


def test_a_frame_of_reference_drawn_anew_for_every_image_is_repaired(load):
    drawn = cine.changed(
        cine.one_series(), lambda _: True, FrameOfReferenceUID=lambda index: f"1.2.{'0' * (index % 3 > 0)}{index + 1}"
    )
    source = load(drawn)
    require_whole(source)
    assert len({ds.FrameOfReferenceUID for ds in source.headers}) == 1
    assert source.headers[0].FrameOfReferenceUID == "1.2.1"  # the first valid one, in the order of InstanceNumber
    assert any("FrameOfReferenceUID differed" in note for note in source.notes)
    two = cine.changed(cine.one_series(), lambda index: index % 8 > 5, FrameOfReferenceUID="1.2.3")
    assert load(two).series.array.shape[1] == 6  # the table was moved


def test_rounded_directions_are_one_direction(load):
    turned = [*cine.SHORT_AXIS[:3], cine.SHORT_AXIS[3] + 1e-6, *cine.SHORT_AXIS[4:]]
    text = [f"{value:.6f}" for value in turned]
    require_whole(load(cine.changed(cine.one_series(), lambda index: index % 2, ImageOrientationPatient=text)))


def test_images_of_a_plane_that_do_not_lie_on_each_other_are_refused(load):
    moved = cine.one_series(5, name="moved", origin=(-28.0, -199.666, 111.184))
    datasets = cine.one_series()
    for ds, other in zip(datasets[8:13], moved[5:10], strict=True):
        ds.ImagePositionPatient = other.ImagePositionPatient
    with pytest.raises(errors.SeriesError, match="from the first phase of its plane"):
        load(datasets)


def test_incomplete_input_and_identical_copies_are_told(load, tmp_path):
    source = load(cine.one_series() + cine.one_series()[:3], incomplete=True)
    require_whole(source)
    assert source.series.incomplete
    assert source.at_phase(0).images.incomplete
    assert "an identical copy of an instance was left out (3 times)" in source.notes
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(b"nothing")
    with pytest.raises(errors.UndecodablePixels, match=r"broken\.dcm does not read"):
        load_cine([broken])


@pytest.mark.parametrize(
    ("patient", "slices", "step"), [("SCD0000101", 12, 10.0), ("SCD0000301", 10, 8.0), ("SCD0000501", 11, 8.0)]
)
def test_real_patients_with_their_scouts(tmp_path, patient, slices, step):
    archive = DATA / f"{patient}.tar.xz"
    if not archive.exists():
        pytest.skip("shared data is absent")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    folder = tmp_path / patient
    source = load_cine([*folder.glob("sax/*.dcm"), *(p for p in folder.glob("localizers/**/*") if p.is_file())])
    series = source.series
    assert series.array.shape == (20, slices, 256, 256)
    assert series.geometry is Geometry.REGULAR
    assert series.step == pytest.approx(step, abs=1e-3)
    assert (np.diff(series.trigger_times, axis=0) > 0).all()
    assert series.left_out == (
        "5 images left out: another direction or grid (5 planes without phases), 3 times",
    )  # fmt: skip
    for index in range(slices):  # file names count slice by slice, phase by phase
        numbers = [
            int(source.headers[source.planes[phase * slices + index].header].InstanceNumber) for phase in range(20)
        ]
        assert np.diff(numbers).tolist() == [1] * 19
