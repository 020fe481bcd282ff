"""The conformance gate: what is right passes, and each thing that is wrong is refused by its name."""

from __future__ import annotations

import contextlib
import io
import time
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
from pydicom import Dataset, dcmread

from dicomnode import pipeline as dn
from dicomnode.encode.gate import check_objects
from dicomnode.encode.image import encode_images
from dicomnode.encode.keys import encode_key_images
from dicomnode.encode.marks import encode_marks
from dicomnode.encode.report import encode_reports
from dicomnode.encode.seg import encode_segmentation
from dicomnode.errors import EncodingError
from dicomnode.volumes.series import load
from tests import factories, phantoms

SOURCES = {
    "ct": lambda: factories.ct_series(6),
    "ct tilted": lambda: factories.ct_series(6, tilt=18.5),
    "ct uneven": lambda: factories.ct_series(6, step=[1.0, 2.0, 3.0, 1.0, 2.5]),
    "ct japanese": lambda: factories.ct_series(6, charset="\\ISO 2022 IR 87"),
    "ct without type 2": lambda: factories.ct_series(6, missing=["StudyID", "PatientSex", "KVP", "AccessionNumber"]),
    "ct with odd values": lambda: factories.ct_series(6, values={"StudyDate": "2026-01-05", "StudyTime": "10:20:30"}),
    "mr": lambda: factories.mr_series(6),
    "enhanced ct": lambda: [factories.enhanced_ct(6)],
    "enhanced mr": lambda: [factories.enhanced_mr(6)],
}


def written(source, **context) -> tuple[dn.Result, dict[str, Dataset]]:
    """One object of every kind by name, and the result they say."""
    context = phantoms.context(**context)
    shifted = phantoms.shifted(source.images, -3.0)
    result = replace(phantoms.bleeding(source.images), images=shifted.images)
    found = {f"image {n}": ds for n, ds in enumerate(encode_images(source, shifted, context))}
    (segmentation,) = result.segmentations
    seg = found["seg"] = encode_segmentation(source, segmentation, context, series_number=9020)
    found["labelmap"] = encode_segmentation(source, segmentation, context, series_number=9025, labelmap=True)
    for number, (role, ds) in enumerate(
        encode_reports(source, result, context, series_number=9050, segs={segmentation.role: seg})
    ):
        found["report" if number == 0 else role] = ds
    found["marks"] = encode_marks(source, result, context, series_number=9060)
    objects = [seg, found["report"], found["marks"]]
    found["keys"] = encode_key_images(source, result, context, series_number=9070, objects=objects)
    return result, found


@pytest.mark.parametrize("case", SOURCES)
def test_what_the_node_writes_passes(tmp_path, case):
    source = load(factories.write_series(tmp_path, SOURCES[case]()))
    result, objects = written(source)
    check_objects(list(objects.values()), source, result)


def test_what_was_written_to_a_file_passes(tmp_path):
    source = load(factories.write_series(tmp_path / "in", factories.ct_series(6)))
    result, objects = written(source)
    paths = factories.write_series(tmp_path / "out", objects.values())
    check_objects([dcmread(path) for path in paths], source, result)


def test_an_explicit_negative_passes(tmp_path):
    source = load(factories.write_series(tmp_path, factories.ct_series(4)))
    result = phantoms.not_bleeding(source.images)
    reports = encode_reports(source, result, phantoms.context(), series_number=9050, segs={})
    check_objects([ds for _, ds in reports], source, result)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    source = load(factories.write_series(tmp_path_factory.mktemp("good"), factories.ct_series(6, rows=32, columns=24)))
    return source, *written(source)


def frames(ds):
    return ds.PerFrameFunctionalGroupsSequence


def shared(ds):
    return ds.SharedFunctionalGroupsSequence[0]


def every_frame(change):
    def damage(ds):
        for number, frame in enumerate(frames(ds)):
            change(frame, number)

    return damage


def move(by):
    def change(frame, _):
        x, y, z = frame.PlanePositionSequence[0].ImagePositionPatient
        item = Dataset()  # a new one: highdicom shares one between the frames of a plane
        item.ImagePositionPatient = [x, y, float(z) + by]
        frame.PlanePositionSequence = [item]

    return every_frame(change)


def half_resolution(ds):
    values = dcmread(io.BytesIO(file_of(ds))).pixel_array[:, ::2, ::2]
    ds.Rows, ds.Columns = values.shape[1:]
    ds.PixelData = np.packbits(values.ravel(), bitorder="little").tobytes()
    shared(ds).PixelMeasuresSequence[0].PixelSpacing = ["1.0", "1.0"]


def file_of(ds) -> bytes:
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def orthogonal(ds):
    shared(ds).PlaneOrientationSequence[0].ImageOrientationPatient = ["1", "0", "0", "0", "0", "-1"]


def flipped(ds):
    shared(ds).PlaneOrientationSequence[0].ImageOrientationPatient = ["-1", "0", "0", "0", "-1", "0"]


def mirrored_pixels(ds):
    values = dcmread(io.BytesIO(file_of(ds))).pixel_array[:, :, ::-1]
    ds.PixelData = np.packbits(values.ravel(), bitorder="little").tobytes()


def one_bit(ds):
    raw = bytearray(ds.PixelData)
    raw[5] ^= 0b0001_0000
    ds.PixelData = bytes(raw)


def swap_planes(ds):
    first, second = frames(ds)[0], frames(ds)[1]
    first.DerivationImageSequence, second.DerivationImageSequence = (
        second.DerivationImageSequence,
        first.DerivationImageSequence,
    )


def swap_planes_altogether(ds):
    """Positions and references agree with each other, and the masks lie on the wrong planes."""
    *others, last = frames(ds)
    place = last.PlanePositionSequence[0].ImagePositionPatient
    other = next(frame for frame in others if frame.PlanePositionSequence[0].ImagePositionPatient != place)
    for keyword in ("DerivationImageSequence", "PlanePositionSequence"):
        kept = other[keyword].value
        other[keyword].value = last[keyword].value
        last[keyword].value = kept


def swap_segments(ds):
    for frame in frames(ds):
        item = frame.SegmentIdentificationSequence[0]
        item.ReferencedSegmentNumber = 3 - item.ReferencedSegmentNumber


def drop_frame(ds):
    size = ds.Rows * ds.Columns // 8
    ds.PerFrameFunctionalGroupsSequence = frames(ds)[:-1]
    ds.NumberOfFrames = len(frames(ds))
    ds.PixelData = ds.PixelData[: size * len(frames(ds))]


def repeat_frame(ds):
    size = ds.Rows * ds.Columns // 8
    ds.PerFrameFunctionalGroupsSequence = [*frames(ds), deepcopy(frames(ds)[0])]
    ds.NumberOfFrames = len(frames(ds))
    ds.PixelData = ds.PixelData + ds.PixelData[:size]


def relabel(ds):
    ds.SegmentSequence[0].SegmentLabel, ds.SegmentSequence[1].SegmentLabel = (
        ds.SegmentSequence[1].SegmentLabel,
        ds.SegmentSequence[0].SegmentLabel,
    )


def source_image(frame):
    return frame.DerivationImageSequence[0].SourceImageSequence[0]


def another_instance(frame, _):
    source_image(frame).ReferencedSOPInstanceUID = "1.2.3.4"


WRONG_OVERLAYS = {
    "half a slice off": (move(1.25), "frame 1: lies 1.250 mm from the nearest plane of the source"),
    "a whole slice off": (move(2.5), r"frame 1: lies on plane \d of the source but names plane \d"),
    "half resolution": (half_resolution, "Rows is 16, the source's 32: another resolution"),
    "orthogonal": (orthogonal, "ImageOrientationPatient is"),
    "turned by 180 degrees": (flipped, "ImageOrientationPatient is"),
    "mirrored pixels": (mirrored_pixels, r"frame 1: differs from the result in \d+ voxels of plane \d"),
    "one voxel": (one_bit, "frame 1: differs from the result in 1 voxels"),
    "other spacing": (
        lambda ds: setattr(shared(ds).PixelMeasuresSequence[0], "PixelSpacing", ["0.5", "0.6"]),
        "PixelSpacing is",
    ),
    "empty derivation": (
        every_frame(lambda frame, _: setattr(frame, "DerivationImageSequence", [])),
        r"frame 1: names 0 source images \(DerivationImageSequence\), not one",
    ),
    "absent derivation": (
        every_frame(lambda frame, _: delattr(frame, "DerivationImageSequence")),
        "frame 1: names 0 source images",
    ),
    "derivation from elsewhere": (every_frame(another_instance), "frame 1: names 1.2.3.4 frame 0"),
    "planes swapped by reference": (swap_planes, r"frame 1: lies on plane \d of the source but names plane \d"),
    "planes swapped altogether": (swap_planes_altogether, "differs from the result|comes twice"),
    "no series reference": (
        lambda ds: delattr(ds, "ReferencedSeriesSequence"),
        "ReferencedSeriesSequence does not name the source's series",
    ),
    "another series reference": (
        lambda ds: setattr(ds.ReferencedSeriesSequence[0], "SeriesInstanceUID", "1.2.3"),
        "ReferencedSeriesSequence does not name",
    ),
    "another frame of reference": (
        lambda ds: setattr(ds, "FrameOfReferenceUID", "1.2.3"),
        "FrameOfReferenceUID is not the source's",
    ),
    "no positions": (
        every_frame(lambda frame, _: delattr(frame, "PlanePositionSequence")),
        "frame 1: has no position of its own",
    ),
    "segments swapped": (swap_segments, "differs from the result"),
    "labels swapped": (relabel, "its segments are none of the result's segmentations"),
    "frame left out": (drop_frame, r"\d+ voxels of the result are in no frame"),
    "frame twice": (repeat_frame, r"segment \d comes twice on plane \d"),
    "no colour": (
        lambda ds: delattr(ds.SegmentSequence[0], "RecommendedDisplayCIELabValue"),
        "segment 1 has no colour",
    ),
    "no algorithm": (
        lambda ds: delattr(ds.SegmentSequence[1], "SegmentationAlgorithmIdentificationSequence"),
        "segment 2 does not say which algorithm found it",
    ),
    "shared tracking": (
        lambda ds: setattr(ds.SegmentSequence[1], "TrackingUID", ds.SegmentSequence[0].TrackingUID),
        "segments have no tracking UID of their own",
    ),
    "no purpose": (
        every_frame(lambda frame, _: source_image(frame).pop("PurposeOfReferenceCodeSequence", None)),
        "does not say what its source image is to it",
    ),
    "instances not listed": (
        lambda ds: setattr(ds.ReferencedSeriesSequence[0], "ReferencedInstanceSequence", []),
        "ReferencedSeriesSequence does not list the source's instances",
    ),
    "pixels cut off": (lambda ds: setattr(ds, "PixelData", ds.PixelData[:-2]), "PixelData has"),
    "frames miscounted": (lambda ds: setattr(ds, "NumberOfFrames", 9), "3 frames are described, but 9"),
}


def refused(good, name, damage, message):
    source, result, objects = good
    damaged = deepcopy(objects[name])
    damage(damaged)
    images = name.startswith("image")
    checked = [damaged if key == name else ds for key, ds in objects.items() if images == key.startswith("image")]
    with pytest.raises(EncodingError, match=message) as caught:
        check_objects(checked, source, result)
    return str(caught.value)


@pytest.mark.parametrize("case", WRONG_OVERLAYS)
def test_a_silently_wrong_overlay_is_refused(good, case):
    damage, message = WRONG_OVERLAYS[case]
    told = refused(good, "seg", damage, message)
    assert f"SEG {good[2]['seg'].SOPInstanceUID} would be wrong" in told


@pytest.mark.parametrize("case", ["half a slice off", "empty derivation", "orthogonal", "no series reference"])
def test_a_label_map_is_looked_at_alike(good, case):
    damage, message = WRONG_OVERLAYS[case]
    refused(good, "labelmap", damage, message)


def test_a_label_map_with_one_other_value_is_refused(good):
    def damage(ds):
        raw = bytearray(ds.PixelData)
        raw[0] = 1
        ds.PixelData = bytes(raw)

    refused(good, "labelmap", damage, "differs from the result in 1 voxels")


def test_the_wrong_phase_of_a_cine_is_refused(tmp_path):
    """Two segmentations with the same segments: the one may not carry the mask of the other."""
    source = load(factories.write_series(tmp_path, factories.ct_series(4)))
    (one,) = phantoms.bleeding(source.images).segmentations
    diastole = replace(one, role="diastole")
    systole = replace(one, role="systole", labels=np.roll(one.labels, 2, axis=2))
    result = dn.Result(segmentations=(diastole, systole))
    context = phantoms.context()
    objects = [encode_segmentation(source, each, context, series_number=9020) for each in result.segmentations]
    check_objects(objects, source, result)
    exchanged = (replace(diastole, labels=systole.labels), replace(systole, labels=diastole.labels))
    with pytest.raises(EncodingError, match="differs from the result"):
        check_objects(objects, source, dn.Result(segmentations=exchanged))


def containers(ds, code):
    named = [item for item in tree(ds) if item.get("ConceptNameCodeSequence")]
    return [item for item in named if item.ConceptNameCodeSequence[0].CodeValue == code]


def tree(ds):
    for item in ds.get("ContentSequence") or ():
        yield item
        yield from tree(item)


def of_type(ds, value_type):
    return [item for item in tree(ds) if item.ValueType == value_type]


def without(code):
    def damage(ds):
        for parent in (ds, *tree(ds)):
            items = parent.get("ContentSequence") or ()
            kept = [
                item
                for item in items
                if not item.get("ConceptNameCodeSequence") or item.ConceptNameCodeSequence[0].CodeValue != code
            ]
            if len(kept) < len(items):
                parent.ContentSequence = kept

    return damage


def uidref_before_tracking(ds):
    group = containers(ds, "125007")[0]
    item = deepcopy(containers(ds, "112040")[0])
    item.ConceptNameCodeSequence[0].CodeValue = "121012"
    group.ContentSequence = [item, *group.ContentSequence]


def same_tracking(ds):
    first, second = containers(ds, "112040")[:2]
    second.UID = first.UID


def nameless(ds):
    del containers(ds, "125007")[0].ContentSequence[-1].ConceptNameCodeSequence


def root_of(code):
    return lambda ds: setattr(ds.ConceptNameCodeSequence[0], "CodeValue", code)


def no_number(ds):
    of_type(ds, "NUM")[0].MeasuredValueSequence[0].NumericValue = None


def no_unit(ds):
    of_type(ds, "NUM")[0].MeasuredValueSequence[0].MeasurementUnitsCodeSequence = []


def no_value_at_all(ds):
    number = of_type(ds, "NUM")[0]
    number.MeasuredValueSequence = []
    if "NumericValueQualifierCodeSequence" in number:
        del number.NumericValueQualifierCodeSequence


def points(values):
    return lambda ds: setattr(of_type(ds, "SCOORD")[0], "GraphicData", values)


def group_of_another_kind(ds):
    groups = containers(ds, "125007")
    other = deepcopy(groups[0])
    other.ContentSequence = [
        item for item in other.ContentSequence if item.ValueType not in ("SCOORD", "IMAGE", "SCOORD3D")
    ]
    containers(other, "112040")[0].UID = "2.25.77"
    parent = containers(ds, "126010")[0]
    parent.ContentSequence = [*parent.ContentSequence, other]


def image_elsewhere(ds):
    of_type(ds, "IMAGE")[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID = "1.2.3.4"


def image_of_another_class(ds):
    of_type(ds, "IMAGE")[0].ReferencedSOPSequence[0].ReferencedSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"


def segment_that_is_not(ds):
    (item, *_) = [item for item in of_type(ds, "IMAGE") if "ReferencedSegmentNumber" in item.ReferencedSOPSequence[0]]
    item.ReferencedSOPSequence[0].ReferencedSegmentNumber = 7


def frame_that_is_not(ds):
    of_type(ds, "IMAGE")[0].ReferencedSOPSequence[0].ReferencedFrameNumber = 2


def no_evidence(ds):
    series = ds.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    series.ReferencedSOPSequence = series.ReferencedSOPSequence[:1]


BROKEN_TREES = {
    "another title": ("report", root_of("126001"), "its root is not"),
    "no imaging measurements": ("report", without("126010"), r"the container Imaging Measurements \(126010, DCM\)"),
    "no tracking identifier": ("report", without("112039"), "measurement group 1: Tracking Identifier is absent"),
    "no tracking uid": ("report", without("112040"), "Tracking Unique Identifier is not the first UIDREF"),
    "another uid first": ("report", uidref_before_tracking, "Tracking Unique Identifier is not the first UIDREF"),
    "shared tracking": ("report", same_tracking, "2 measurement groups share the tracking UID"),
    "item without a name": ("report", nameless, "1 items have no concept name"),
    "no number": ("report", no_number, "the value is not a finite number"),
    "no unit": ("report", no_unit, "the unit is absent"),
    "no value and no reason": ("report", no_value_at_all, "neither a value nor a reason"),
    "mixed groups": ("report", group_of_another_kind, r"measurement groups are mixed \(of segments, without region\)"),
    "mixed marks": (
        "marks",
        group_of_another_kind,
        r"groups are mixed \(with coordinates, without region\)",
    ),
    "point outside": ("marks", points([1.0, 1.0, 25.0, 1.0]), "an outline leaves its image of 32 x 24"),
    "point nowhere": ("marks", points([float("nan"), 1.0, 2.0, 1.0]), "an outline is not made of pairs of finite"),
    "odd points": ("marks", points([1.0, 1.0, 2.0]), "an outline is not made of pairs"),
    "image elsewhere": ("marks", image_elsewhere, "refers to 1.2.3.4, which is neither of the source nor"),
    "image of another class": ("report", image_of_another_class, "but it is 1.2.840.10008.5.1.4.1.1.2"),
    "segment that is not": ("report", segment_that_is_not, "refers to segment 7 of"),
    "frame that is not": ("marks", frame_that_is_not, "refers to frame 2 of"),
    "not in the evidence": ("marks", no_evidence, "is referred to but not listed as evidence"),
    "item without relationship": (
        "report",
        lambda ds: delattr(ds.ContentSequence[0], "RelationshipType"),
        "has no value type or no relationship",
    ),
    "text without text": (
        "report",
        lambda ds: setattr(of_type(ds, "TEXT")[0], "TextValue", None),
        "has no name or no value",
    ),
    "code without scheme": (
        "report",
        lambda ds: delattr(of_type(ds, "CODE")[0].ConceptCodeSequence[0], "CodingSchemeDesignator"),
        "ConceptCodeSequence has no coding scheme",
    ),
    "code without meaning": (
        "keys",
        lambda ds: delattr(ds.ConceptNameCodeSequence[0], "CodeMeaning"),
        "ConceptNameCodeSequence has no code value or no meaning",
    ),
    "key image elsewhere": ("keys", image_elsewhere, "refers to 1.2.3.4, which is neither"),
    "key image not in the evidence": ("keys", no_evidence, "is referred to but not listed as evidence"),
}


@pytest.mark.parametrize("case", BROKEN_TREES)
def test_a_tree_that_viewers_cannot_read_is_refused(good, case):
    name, damage, message = BROKEN_TREES[case]
    refused(good, name, damage, message)


def test_a_report_on_an_object_that_is_not_sent_is_refused(good):
    source, result, objects = good
    with pytest.raises(EncodingError, match="is neither of the source nor of this result"):
        check_objects([objects["report"]], source, result)


def test_a_key_object_with_named_references_is_refused(good):
    def damage(ds):
        of_type(ds, "IMAGE")[0].ConceptNameCodeSequence = deepcopy(ds.ConceptNameCodeSequence)

    refused(good, "keys", damage, "a reference has a concept name")


EVERYTHING = {
    "another patient": (lambda ds: setattr(ds, "PatientID", "OTHER"), "PatientID is not the source's"),
    "another name": (lambda ds: setattr(ds, "PatientName", "Doe^Jane"), "PatientName is not the source's"),
    "no issuer": (lambda ds: delattr(ds, "IssuerOfPatientID"), "IssuerOfPatientID is not the source's"),
    "another study": (lambda ds: setattr(ds, "StudyInstanceUID", "1.2.3"), "StudyInstanceUID is not the source's"),
    "another order": (lambda ds: setattr(ds, "AccessionNumber", "B2"), "AccessionNumber is not the source's"),
    "not for research": (lambda ds: setattr(ds, "ContentQualification", "PRODUCT"), "does not say RESEARCH"),
    "no mark": (lambda ds: setattr(ds, "SeriesDescription", "AI hemorrhage"), "SeriesDescription does not say RUO"),
    "long mark": (lambda ds: ds.__setattr__("SeriesDescription", "RUO" + "x" * 62), "does not say RUO in 64"),
    "bad uid": (
        lambda ds: ds["SeriesInstanceUID"].__setattr__("_value", "1.02"),
        "SeriesInstanceUID is not a valid",
    ),
    "no maker": (lambda ds: delattr(ds, "Manufacturer"), r"Manufacturer is absent \(type"),
    "foreign attribute": (lambda ds: setattr(ds, "KVP", "120"), "KVP is not in the IOD"),
    "private attribute": (lambda ds: ds.add_new(0x00091001, "LO", "x"), "is not in the IOD"),
    "another character set": (
        lambda ds: setattr(ds, "SpecificCharacterSet", "ISO_IR 100"),
        "names would be read wrongly",
    ),
    "no contributors": (
        lambda ds: delattr(ds, "ContributingEquipmentSequence"),
        "ContributingEquipmentSequence does not say who made it",
    ),
    "no series": (lambda ds: delattr(ds, "SeriesInstanceUID"), "SeriesInstanceUID is absent"),
    "another file": (
        lambda ds: setattr(ds.file_meta, "MediaStorageSOPInstanceUID", "1.2.3"),
        "the file meta information names another object",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["seg", "report", "keys"])
@pytest.mark.parametrize("case", EVERYTHING)
def test_what_holds_for_every_object(good, name, case):
    damage, message = EVERYTHING[case]
    refused(good, name, damage, message)


def test_attributes_of_segments_are_wanted(good):
    refused(
        good, "seg", lambda ds: delattr(ds.SegmentSequence[0], "SegmentAlgorithmType"), "SegmentSequence: SegmentAlgo"
    )
    refused(good, "seg", lambda ds: setattr(ds, "ImageType", ["ORIGINAL", "PRIMARY"]), "ImageType does not say DERIVED")


def test_the_uids_are_new_and_used_once(good):
    source, result, objects = good
    header = source.headers[0]

    def source_uid(ds):
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID

    refused(good, "seg", source_uid, "SOPInstanceUID is the source's")
    refused(
        good, "seg", lambda ds: setattr(ds, "SeriesInstanceUID", header.SeriesInstanceUID), "SeriesInstanceUID is the"
    )
    with pytest.raises(EncodingError, match="SOPInstanceUID is used 2 times"):
        check_objects([objects["seg"], objects["seg"]], source, result)
    series = objects["seg"].SeriesInstanceUID
    refused(good, "labelmap", lambda ds: setattr(ds, "SeriesInstanceUID", series), "shares its series with another")


def test_a_derived_image_made_from_elsewhere_is_refused(good):
    def elsewhere(ds):
        ds.SourceImageSequence[0].ReferencedSOPInstanceUID = "1.2.3.4"

    refused(good, "image 2", elsewhere, "refers to 1.2.3.4, which is neither of the source")
    refused(good, "image 0", lambda ds: delattr(ds, "RescaleSlope"), r"RescaleSlope is absent \(type 1\)")


def test_every_fault_of_every_object_is_told_at_once(good):
    source, result, objects = good
    changed = deepcopy(objects)
    changed["seg"].PatientID = "OTHER"
    changed["seg"].AccessionNumber = "B2"
    changed["keys"].ContentQualification = "PRODUCT"
    with pytest.raises(EncodingError) as caught:
        check_objects(list(changed.values()), source, result)
    told = str(caught.value)
    assert "PatientID is not the source's; AccessionNumber is not the source's" in told
    assert f"KO {objects['keys'].SOPInstanceUID}" in told
    assert "OTHER" not in told  # an identity is at no place of a message


REFERS_TO = {
    "seg": [],
    "labelmap": [],
    "report": ["seg"],
    "marks": [],
    "keys": ["seg", "report", "marks"],
    "image 0": [],
}


@pytest.mark.parametrize("name", REFERS_TO)
def test_no_damage_of_the_top_level_breaks_the_gate_itself(good, name):
    """Whatever is absent or empty: the gate passes the object or refuses it by name, and never fails otherwise."""
    source, result, objects = good
    others = [objects[key] for key in REFERS_TO[name]]
    for element in objects[name]:
        for empty in (False, True):
            damaged = Dataset()
            damaged.update(objects[name])
            damaged.file_meta = objects[name].file_meta
            del damaged[element.tag]
            if empty:
                damaged.add_new(element.tag, element.VR, [] if element.VR == "SQ" else None)
            with contextlib.suppress(EncodingError):
                check_objects([damaged, *others], source, result)


@pytest.mark.benchmark
def test_300_derived_images_pass_in_half_a_second(tmp_path):
    source = load(factories.write_series(tmp_path, factories.ct_series(300, rows=16, columns=16)))
    shifted = phantoms.shifted(source.images, -3.0)
    objects = list(encode_images(source, shifted, phantoms.context()))
    check_objects(objects[:1], source, shifted)  # reads the tables
    start = time.process_time()
    check_objects(objects, source, shifted)
    assert time.process_time() - start < 0.5
