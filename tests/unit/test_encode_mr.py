"""From raw data objects to MR images: everything a run on k-space writes, and everything it refuses."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread

from dicomnode import pipeline as dn
from dicomnode.dicom import RAW_DATA_STORAGE
from dicomnode.encode.mr import encode_reconstruction
from dicomnode.encode.mr_series import stored_values
from dicomnode.errors import EncodingError, ResultInvalid, UnreadableRawData, Unsuitable
from dicomnode.execute.contract import check_result
from dicomnode.execute.executor import PipelineSpec, Request
from dicomnode.execute.perform import perform
from dicomnode.kspace import KSpace
from dicomnode.volumes import measurement
from tests import factories, phantoms
from tests.mrd_factory import Scan
from tests.raw_scans import LearnedRSS, PlainRSS, like, point_scan, seen_at, wrapped
from tests.toys import Shift


def request(folder: Path, paths: list[Path], **changes: Any) -> Request:
    values: dict[str, Any] = {
        "job_id": 1, "key": "a1" * 32, "run": "1", "version": "unknown", "weights_digest": "", "paths": paths,
        "pipeline": PipelineSpec(name="plain", class_name="tests.raw_scans:PlainRSS", weights=None, options={}),
        "incomplete": False, "revision": 0, "created_at": datetime(2026, 1, 5, 11, tzinfo=UTC),
        "results": folder / "results", "series_number": 9000, "device_serial": "node-1",
        "default_charset": "ISO_IR 100",
    }  # fmt: skip
    return Request(**(values | changes))


def run(
    folder: Path, scan: Scan, pipeline: dn.Pipeline[KSpace] | None = None, subject: str = "", **options: Any
) -> tuple[list[Dataset], list[Path], Any]:
    file = scan.write(folder / "scan.h5", subject)
    paths = wrapped(folder / "raw", file, **options)
    performed = perform(pipeline or PlainRSS(), request(folder, paths), "", lambda _phase, _fraction: None)
    return [dcmread(folder / "results" / one.path) for one in performed.outputs], paths, performed


@pytest.mark.parametrize("x_y", [(-41.3, 25.7), (36.9, -12.2), (0.0, 0.0)])
@pytest.mark.parametrize("changes", [{}, {"matrix": (63, 48)}, {"matrix": (64, 47)}, {"matrix": (61, 45)}])
def test_a_point_lies_where_it_was_within_a_hundredth_of_a_millimetre(tmp_path, changes, x_y):
    scan, where = point_scan(*x_y, **changes)
    (image,), _, _ = run(tmp_path, scan)
    assert np.linalg.norm(seen_at(image, scan) - where) < 0.01
    assert [float(value) for value in image.PixelSpacing] == pytest.approx([144.0 / image.Rows, 256.0 / image.Columns])


def test_identity_marks_and_references(tmp_path):
    (image,), raws, _ = run(tmp_path, Scan(coils=2), source=like(AccessionNumber="A-17"))
    raw, source = dcmread(raws[0]), like(AccessionNumber="A-17")
    for keyword in ("PatientID", "PatientName", "PatientBirthDate", "StudyInstanceUID", "AccessionNumber", "StudyDate"):
        assert image.get(keyword) == source.get(keyword), keyword
    assert image.Modality == "MR" and list(image.ImageType) == ["ORIGINAL", "PRIMARY", "M"]
    assert image.SeriesDescription.endswith("[plain RSS, RUO]") and image.ContentQualification == "RESEARCH"
    assert image.DerivationDescription == "inverse FFT, root sum of squares"
    (reference,) = image.SourceInstanceSequence
    assert (reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID) == (
        RAW_DATA_STORAGE,
        raw.SOPInstanceUID,
    )
    assert [item.PurposeOfReferenceCodeSequence[0].CodeValue for item in image.ContributingEquipmentSequence] == [
        "109101",
        "109102",
    ]
    assert image.ContributingEquipmentSequence[0].Manufacturer == source.Manufacturer
    assert "SourceImageSequence" not in image and "AcquisitionTime" not in image
    assert image.PatientPosition == "HFS" and float(image.MagneticFieldStrength) == 1.5
    assert float(image.ImagingFrequency) == 63.87 and float(image.RepetitionTime) == 50.0
    assert not any(element.tag.is_private for element in image)


def test_a_learned_series_says_that_it_is_derived(tmp_path):
    (image,), _, _ = run(tmp_path, Scan(), LearnedRSS())
    assert list(image.ImageType) == ["DERIVED", "PRIMARY", "M"]
    assert image.SeriesDescription.endswith("[AI plain RSS, RUO]")


def test_one_scale_for_the_series_gives_the_values_back(tmp_path):
    images, _, performed = run(tmp_path, Scan(slices=3, coils=2))
    slopes = {float(ds.RealWorldValueMappingSequence[0].RealWorldValueSlope) for ds in images}
    assert len(images) == 3 and len(slopes) == 1
    assert "RescaleSlope" not in images[0] and images[0].BitsStored == 16
    # The factory's slices are brighter one after the other: a scale per slice would hide that.
    means = [float(ds.pixel_array.mean()) for ds in images]
    assert means[1] / means[0] == pytest.approx(1.2, abs=0.02) and means[2] / means[0] == pytest.approx(1.4, abs=0.02)
    assert {float(ds.SpacingBetweenSlices) for ds in images} == {8.0}
    assert [int(ds.InstanceNumber) for ds in images] == [1, 2, 3]
    assert len({ds.SOPInstanceUID for ds in images}) == 3 and performed.quality["seconds_computing"] > 0


def test_echo_time_goes_by_the_contrast_and_repetitions_are_counted(tmp_path):
    images, _, _ = run(tmp_path, Scan(contrasts=2, repetitions=2))
    seen = [(float(ds.EchoTime), int(ds.TemporalPositionIdentifier), int(ds.EchoNumbers)) for ds in images]
    assert seen == [(5.0, 1, 1), (5.0, 2, 1), (10.0, 1, 2), (10.0, 2, 2)]


def test_a_frame_of_reference_is_repeated_or_is_one_of_its_own_for_the_measurement(tmp_path):
    folders = [tmp_path / name for name in ("given", "first", "second")]
    for folder in folders:
        folder.mkdir()
    (image,), _, _ = run(folders[0], Scan(), frame_of_reference="1.2.3.4")
    assert image.FrameOfReferenceUID == "1.2.3.4"
    (first,), _, performed = run(folders[1], Scan())
    (second,), _, _ = run(folders[2], Scan(), LearnedRSS())
    assert first.FrameOfReferenceUID == second.FrameOfReferenceUID != like().FrameOfReferenceUID
    assert any("FrameOfReferenceUID" in note for note in performed.notes)


def test_the_raw_object_counts_where_the_mrd_header_names_another_patient(tmp_path):
    subject = (
        "<subjectInformation><patientName>Other^Patient</patientName><patientID>OTHER</patientID></subjectInformation>"
    )
    (image,), _, performed = run(tmp_path, Scan(), subject=subject)
    assert image.PatientID == like().PatientID and "Other" not in str(image.PatientName)
    assert any("PatientID of the MRD header differ" in note for note in performed.notes)


def test_several_parts_are_all_referred_to(tmp_path):
    (image,), raws, _ = run(tmp_path, Scan(), part_bytes=100_000)
    assert len(raws) > 2
    named = [item.ReferencedSOPInstanceUID for item in image.SourceInstanceSequence]
    assert named == [dcmread(path).SOPInstanceUID for path in raws]


def test_nothing_remains_of_the_temporary_file(tmp_path):
    run(tmp_path, Scan())
    assert [path.name for path in (tmp_path / "results" / "1").iterdir()] == ["1"]


def test_the_same_run_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        run(tmp_path / name, Scan(slices=2))
    first, second = (sorted((tmp_path / name / "results" / "1" / "1").iterdir()) for name in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


# -- what is refused


def test_how_the_patient_lay_must_be_known(tmp_path):
    file = Scan().write(tmp_path / "scan.h5")
    changed = file.with_name("unknown.h5")
    import h5py

    changed.write_bytes(file.read_bytes())
    with h5py.File(changed, "r+") as opened:
        xml = opened["dataset/xml"][0]
        opened["dataset/xml"][0] = xml.replace(b"<patientPosition>HFS</patientPosition>", b"")
    paths = wrapped(tmp_path / "raw", changed)
    with pytest.raises(Unsuitable, match="patientPosition"):
        perform(PlainRSS(), request(tmp_path, paths), "", lambda *_: None)
    given = wrapped(tmp_path / "given", changed, patient_position="FFS")
    (output,) = perform(PlainRSS(), request(tmp_path, given, run="2"), "", lambda *_: None).outputs
    assert dcmread(tmp_path / "results" / output.path).PatientPosition == "FFS"


def test_a_damaged_file_fails_by_name_and_foreign_raw_data_is_unsuitable(tmp_path):
    file = tmp_path / "not.h5"
    file.write_bytes(b"this is no HDF5 file")
    paths = wrapped(tmp_path / "raw", file)
    with pytest.raises(UnreadableRawData, match="is no MRD file or is damaged"):
        perform(PlainRSS(), request(tmp_path, paths), "", lambda *_: None)
    ds = dcmread(paths[0])
    ds.CreatorVersionUID = "1.2.3"
    ds.save_as(paths[0])
    with pytest.raises(Unsuitable, match="whose content only its maker can read"):
        perform(PlainRSS(), request(tmp_path, paths), "", lambda *_: None)


def test_images_are_not_for_a_pipeline_of_k_space_nor_raw_data_for_one_of_images(tmp_path):
    images = factories.write_series(tmp_path / "images", factories.mr_series(3))
    with pytest.raises(Unsuitable, match="dicomnode wrap"):
        perform(PlainRSS(), request(tmp_path, images), "", lambda *_: None)
    raws = wrapped(tmp_path / "raw", Scan().write(tmp_path / "scan.h5"))
    with pytest.raises(Unsuitable, match="Raw Data Storage"):
        perform(Shift(), request(tmp_path, raws), "", lambda *_: None)


def test_an_incomplete_measurement_is_for_pipelines_that_take_it(tmp_path):
    class Tolerant(PlainRSS):
        accepts_incomplete = True

    file = Scan().write(tmp_path / "scan.h5")
    paths = wrapped(tmp_path / "raw", file, incomplete=True)
    with pytest.raises(Unsuitable, match="ended before it was complete"):
        perform(PlainRSS(), request(tmp_path, paths), "", lambda *_: None)
    (output,) = perform(Tolerant(), request(tmp_path, paths), "", lambda *_: None).outputs
    image = dcmread(tmp_path / "results" / output.path)
    assert image.SeriesDescription.endswith("RUO, incomplete]") and "input incomplete" in image.DerivationDescription


# -- the contract and the gate


def plane(**changes: Any) -> dn.ReconstructedPlane:
    values: dict[str, Any] = {
        "array": np.ones((4, 6), np.float32), "position": np.zeros(3), "orientation": np.array([1.0, 0, 0, 0, 1, 0])
    }  # fmt: skip
    return dn.ReconstructedPlane(**(values | changes))


def series(*planes: dn.ReconstructedPlane, **changes: Any) -> dn.Reconstruction:
    values: dict[str, Any] = {
        "planes": planes or (plane(),), "pixel_spacing": (1.0, 2.0), "thickness": 5.0, "role": "magnitude",
        "label": "test", "description": "test", "learned": False, "scale": 1000.0,
    }  # fmt: skip
    return dn.Reconstruction(**(values | changes))


KSPACE = KSpace(header=Scan().header(), readouts=())
WRONG = {
    "no reconstruction": (dn.Result(), "has no reconstruction"),
    "two sizes": (series(plane(), plane(array=np.ones((5, 6), np.float32), slice=1)), "2 sizes"),
    "same counters": (series(plane(), plane()), "two planes"),
    "float64": (series(plane(array=np.ones((4, 6)))), "float64"),
    "not finite": (series(plane(array=np.full((4, 6), np.nan, np.float32))), "not finite"),
    "negative magnitude": (series(plane(array=np.full((4, 6), -1, np.float32))), "below 0"),
    "skewed": (series(plane(orientation=np.array([1.0, 0, 0, 0.1, 1, 0]))), "right angle"),
    "no direction": (series(plane(orientation=np.zeros(6))), "right angle"),
    "no position": (series(plane(position=np.array([0, np.nan, 0]))), "position"),
    "no scale": (series(scale=0.0), "scale"),
    "no label": (series(label=""), "label"),
    "no role": (series(role=""), "no role"),
    "no description": (series(description=""), "description"),
    "reserved role": (series(role="report"), "taken by the node"),
    "component": (series(component="X"), "component"),
    "no thickness": (series(thickness=0.0), "thickness"),
    "finding": (
        dn.Result(
            findings=(dn.Finding(code=phantoms.HEMORRHAGE, presence=dn.Presence.ABSENT),), reconstructions=(series(),)
        ),
        "only reconstructions",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_result_that_breaks_the_contract_is_refused(case):
    made, said = WRONG[case]
    result = made if isinstance(made, dn.Result) else dn.Result(reconstructions=(made,))
    with pytest.raises(ResultInvalid, match=said):
        check_result(result, KSPACE)


def test_reconstructions_come_from_k_space_alone():
    check_result(dn.Result(reconstructions=(series(),)), KSPACE)
    images = dn.ImageSeries(
        array=np.zeros((1, 4, 6), np.float32), padding=np.zeros((1, 4, 6), bool), units=dn.HU,
        positions=np.zeros((1, 3)), orientation=np.array([1.0, 0, 0, 0, 1, 0]), pixel_spacing=(1.0, 1.0),
        geometry=dn.Geometry.SINGLE,
    )  # fmt: skip
    finding = dn.Finding(code=phantoms.HEMORRHAGE, presence=dn.Presence.ABSENT)
    with pytest.raises(ResultInvalid, match="no k-space"):
        check_result(dn.Result(findings=(finding,), reconstructions=(series(),)), images)


@pytest.fixture
def source(tmp_path):
    file = Scan().write(tmp_path / "scan.h5")
    return measurement.load(wrapped(tmp_path / "raw", file), tmp_path / "again.h5")


def test_values_above_the_range_are_clipped_and_said(source):
    made = series(plane(array=np.linspace(0, 100, 24, dtype=np.float32).reshape(4, 6)), scale=1000.0)
    (ds,) = encode_reconstruction(source, made, phantoms.context())
    assert "8 of 24 values are above the range" in ds.ImageComments and ds.pixel_array.max() == 65535


def test_phase_images_keep_their_sign(source):
    made = series(plane(array=np.linspace(-3, 3, 24, dtype=np.float32).reshape(4, 6)), component="P")
    (ds,) = encode_reconstruction(source, made, phantoms.context())
    assert ds.PixelRepresentation == 1 and ds.ImageType[2] == "P"
    assert ds.pixel_array.min() == -3000 and ds.pixel_array.max() == 3000
    assert stored_values(np.float32([[-1.0]]), 10.0)[1] == 1, "a magnitude has no sign"


def test_the_gate_lets_no_plane_out_that_a_viewer_would_see_elsewhere(source, monkeypatch):
    made = series()
    monkeypatch.setattr("dicomnode.encode.mr.numbers", lambda values: [str(round(float(v) + 0.001, 3)) for v in values])
    with pytest.raises(EncodingError, match=r"ImagePositionPatient is not the plane's.*PixelSpacing"):
        list(encode_reconstruction(source, made, phantoms.context()))


def test_a_scale_that_leaves_nothing_is_refused(source):
    with pytest.raises(EncodingError, match="scale is too small"):
        list(encode_reconstruction(source, series(scale=1e-6), phantoms.context()))


def test_planes_are_numbered_as_a_viewer_pages(source):
    planes = tuple(plane(slice=n % 3, phase=n // 3, position=np.array([0, 0, 7.0 * (n % 3)])) for n in range(6))
    made = list(encode_reconstruction(source, series(*reversed(planes)), phantoms.context()))
    assert [float(ds.SliceLocation) for ds in made] == [0, 0, 7, 7, 14, 14]
    assert float(made[0].SpacingBetweenSlices) == 7.0
    uneven = (*planes[:3], replace(planes[3], slice=3, position=np.array([0, 0, 50.0])))
    assert all(
        "SpacingBetweenSlices" not in ds for ds in encode_reconstruction(source, series(*uneven), phantoms.context())
    )
