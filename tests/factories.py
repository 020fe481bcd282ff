"""Synthetic series for everybody's tests: one knob per thing that differs between scanners, or that goes wrong.

Every data set carries its file meta, so ``ds.save_as(path, enforce_file_format=True)`` works. Nothing here describes a
person: names and identifiers are invented. The same arguments give the same bytes.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydicom import Dataset, config, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.tag import Tag
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    MRImageStorage,
    generate_uid,
)
from pydicom.valuerep import PersonName, format_number_as_ds

#: Direction of a row, then of a column (ImageOrientationPatient) of the three orthogonal planes.
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)

#: One name per character set that scanners write.
NAMES: Mapping[str | None, str] = {
    None: "Doe^Jane",
    "ISO_IR 100": "Müller^Jürgen",
    "ISO_IR 192": "Müller^Jürgen=山田^太郎",
    "ISO_IR 144": "Люкceмбypг",
    "\\ISO 2022 IR 87": "Yamada^Tarou=山田^太郎=やまだ^たろう",
    "ISO 2022 IR 13\\ISO 2022 IR 87": "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう",
    "\\ISO 2022 IR 149": "Hong^Gildong=洪^吉洞=홍^길동",
    "GB18030": "Wang^XiaoDong=王^小东",
    "GBK": "Wang^XiaoDong=王^小东",
    "\\ISO 2022 IR 58": "Zhang^XiaoDong=张^小东",
}

Order = Literal["ascending", "descending", "shuffled"]


def uid(*parts: object) -> str:
    """A UID that depends on ``parts`` alone."""
    return str(generate_uid(entropy_srcs=[str(part) for part in parts]))


def head(n: int, rows: int, columns: int, *, seed: int = 0, noise: float = 8.0) -> NDArray[np.float64]:
    """A head-like phantom [HU]: air, skull ring, brain, noise; axes (slice, row, column)."""
    y, x = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
    image = np.full((rows, columns), -1000.0)
    radius = np.hypot(x / 0.75, y / 0.9)
    image[radius < 1.0] = 900.0
    image[radius < 0.88] = 35.0
    image[np.hypot(x / 0.15, y / 0.3) < 1.0] = 8.0
    rng = np.random.default_rng(seed)
    return image + rng.normal(0.0, noise, (n, rows, columns))


def normal_of(orientation: Sequence[float]) -> NDArray[np.float64]:
    """Slice normal: row direction x column direction."""
    return np.cross(orientation[:3], orientation[3:])


def tilted(orientation: Sequence[float], degrees: float) -> tuple[float, ...]:
    """``orientation`` with its column direction turned about its row direction, as a tilted gantry does."""
    row, column = np.asarray(orientation[:3], float), np.asarray(orientation[3:], float)
    angle = np.deg2rad(degrees)
    turned = np.cos(angle) * column + np.sin(angle) * np.cross(row, column)
    return (*map(float, row), *map(float, turned))


def plane_positions(
    n: int,
    *,
    step: float | Sequence[float] = 2.5,
    origin: Sequence[float] = (-64.0, -80.0, 30.0),
    orientation: Sequence[float] = AXIAL,
    shift: Sequence[float] = (0.0, 0.0, 0.0),
) -> NDArray[np.float64]:
    """ImagePositionPatient [mm] of ``n`` planes along the normal; ``shift`` [mm] is added per plane (tilt, drift)."""
    steps = np.full(n - 1, step, float) if isinstance(step, int | float) else np.asarray(step, float)
    along = np.concatenate([[0.0], np.cumsum(steps)])[:n]
    return np.asarray(origin) + along[:, None] * normal_of(orientation) + np.arange(n)[:, None] * np.asarray(shift)


def ct_series(
    n: int = 8,
    *,
    rows: int = 32,
    columns: int = 32,
    spacing: tuple[float, float] = (0.5, 0.5),
    step: float | Sequence[float] = 2.5,
    thickness: str | None = "2.5",
    orientation: Sequence[float] = AXIAL,
    origin: Sequence[float] = (-64.0, -80.0, 30.0),
    tilt: float = 0.0,
    gap: Iterable[int] = (),
    duplicate: Iterable[int] = (),
    order: Order = "ascending",
    charset: str | None = "ISO_IR 192",
    name: str | bytes | None = None,
    patient_id: str = "PHANTOM-1",
    transfer_syntax: str = ExplicitVRLittleEndian,
    fragments: int = 1,
    missing: Iterable[str] = (),
    values: Mapping[str, Any] | None = None,
    hu: ArrayLike | None = None,
    stored: ArrayLike | None = None,
    bits_stored: int = 16,
    high_bit: int | None = None,
    signed: bool = True,
    slope: str | None = "1",
    intercept: str | None = "-1024",
    padding: int | None = None,
    study: str = "study",
    series: str = "series",
    seed: int = 0,
) -> list[Dataset]:
    """A CT series, one data set per plane (CT Image Storage).

    Parameters
    ----------
    step
        Distance between neighbouring planes [mm]: along the normal, or along the table where ``tilt`` is given. A
        sequence of n - 1 numbers makes uneven spacing.
    tilt
        Gantry tilt [degrees]: planes turned, table feed not. GantryDetectorTilt is written.
    gap
        Planes (by index) that are left out.
    duplicate
        Planes (by index) that come twice, the second time as another instance.
    order
        Order of the returned list; InstanceNumber keeps the ascending order.
    charset
        SpecificCharacterSet, backslash between values; None leaves it out. ``name`` may be bytes, written as they are.
    missing
        Keywords left out.
    values
        Keywords set on every plane, after everything else. A callable is called with the plane's index.
    hu, stored
        Pixels as Hounsfield units, or as stored values; axes (slice, row, column).
    padding
        PixelPaddingValue (stored value), written outside the inscribed circle as scanners do.
    """
    planes = tilted(orientation, tilt)
    feed = normal_of(orientation)
    steps = np.full(max(n - 1, 0), step, float) if isinstance(step, int | float) else np.asarray(step, float)
    along = np.concatenate([[0.0], np.cumsum(steps)])[:n]
    positions = np.asarray(origin, float) + along[:, None] * feed
    pixels = _stored(n, rows, columns, hu, stored, bits_stored, signed, slope, intercept, seed)
    if padding is not None:
        pixels = _pad_outside_circle(pixels, padding)
    skipped, doubled = set(gap), set(duplicate)
    datasets: list[Dataset] = []
    for index in range(n):
        if index in skipped:
            continue
        for copy in range(2 if index in doubled else 1):
            ds = _common("CT", CTImageStorage, study, series, charset, name, patient_id)
            ds.SOPInstanceUID = uid(study, series, index, copy)
            ds.InstanceNumber = str(len(datasets) + 1)
            _ct_acquisition(ds, thickness, tilt)
            ds.SliceLocation = _ds(positions[index] @ feed)
            _plane(ds, positions[index], planes, spacing)
            _modality_lut(ds, slope, intercept)
            if padding is not None:
                ds.add_new(0x00280120, "SS" if signed else "US", padding)
            _pixels(ds, pixels[index], bits_stored, high_bit, signed)
            _override(ds, missing, values or {}, index)
            datasets.append(_finish(ds, transfer_syntax, fragments))
    return _ordered(datasets, order, seed)


def mr_series(n: int = 8, *, values: Mapping[str, Any] | None = None, **knobs: Any) -> list[Dataset]:
    """An MR series (MR Image Storage) with the knobs of `ct_series`; 12 bits unsigned and no rescale by default."""
    knobs = {"bits_stored": 12, "signed": False, "slope": None, "intercept": None, "series": "mr series"} | knobs
    if "hu" not in knobs and "stored" not in knobs:
        rows, columns = knobs.get("rows", 32), knobs.get("columns", 32)
        knobs["stored"] = np.clip(head(n, rows, columns, seed=knobs.get("seed", 0)) + 1000.0, 0, 4095).round()
    mr = {
        "SOPClassUID": MRImageStorage,
        "Modality": "MR",
        "ImageType": ["ORIGINAL", "PRIMARY", "OTHER"],
        "ScanningSequence": "GR",
        "SequenceVariant": "SP",
        "ScanOptions": None,
        "MRAcquisitionType": "2D",
        "RepetitionTime": "9.8",
        "EchoTime": "4.6",
        "EchoTrainLength": "1",
        "FlipAngle": "15",
        "MagneticFieldStrength": "3",
        "SpacingBetweenSlices": "2.5",
        "SeriesDescription": "T1 MPRAGE",
        "StudyDescription": "MR HEAD",
    }
    absent = (
        *knobs.pop("missing", ()),
        "KVP",
        "ConvolutionKernel",
        "GantryDetectorTilt",
        "DataCollectionDiameter",
        "ReconstructionDiameter",
        "RescaleType",
        "ExposureTime",
        "XRayTubeCurrent",
        "CTDIvol",
        "FilterType",
    )
    return ct_series(n, values=mr | dict(values or {}), missing=absent, **knobs)


def localizer(**knobs: Any) -> list[Dataset]:
    """A scout: one frontal and one lateral view in one series."""
    frontal = ct_series(1, orientation=CORONAL, series="scout", **knobs)
    lateral = ct_series(1, orientation=SAGITTAL, series="scout", seed=1, **knobs)
    lateral[0].SOPInstanceUID = lateral[0].file_meta.MediaStorageSOPInstanceUID = uid("scout", "lateral")
    lateral[0].InstanceNumber = "2"
    for ds in frontal + lateral:
        ds.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    return frontal + lateral


def enhanced_ct(n: int = 8, *, transfer_syntax: str = ExplicitVRLittleEndian, **knobs: Any) -> Dataset:
    """The series `ct_series` would give with the same knobs as one Enhanced CT instance, frames in the same order."""
    return _enhanced(ct_series(n, **knobs), EnhancedCTImageStorage, "CT", transfer_syntax)


def enhanced_mr(n: int = 8, *, transfer_syntax: str = ExplicitVRLittleEndian, **knobs: Any) -> Dataset:
    """The series `mr_series` would give with the same knobs as one Enhanced MR instance, frames in the same order."""
    return _enhanced(mr_series(n, **knobs), EnhancedMRImageStorage, "MR", transfer_syntax)


def write_series(folder: Path, datasets: Iterable[Dataset]) -> list[Path]:
    """Write each data set as a DICOM file in ``folder`` and return the paths in the same order.

    Values are written as they are, also where the standard forbids them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    mode = config.settings.writing_validation_mode
    config.settings.writing_validation_mode = config.IGNORE
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for index, ds in enumerate(datasets):
                path = folder / f"{index:05d}.dcm"
                dcmwrite(path, ds, enforce_file_format=True)
                paths.append(path)
    finally:
        config.settings.writing_validation_mode = mode
    return paths


def set_raw(ds: Dataset, keyword: str, value: Any) -> None:
    """Set an attribute; text that its VR does not allow goes to the file as it is, without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            setattr(ds, keyword, value)
        except (ValueError, TypeError, OverflowError):
            setattr(ds, keyword, None)
            ds[keyword]._value = value


def _default_name(charset: str | None) -> str | bytes:
    if charset != "\\ISO 2022 IR 58":
        return NAMES.get(charset, "Doe^Jane")
    # pydicom 3.0 writes no escape sequences for this set; delimiters reset it, so each component has its own.
    latin, ideographic = NAMES[charset].split("=")
    escaped = b"^".join(b"\x1b$)A" + part.encode("gb2312") for part in ideographic.split("^"))
    return latin.encode() + b"=" + escaped


def _ds(number: float) -> str:
    return format_number_as_ds(float(number))


def _common(
    modality: str,
    sop_class: str,
    study: str,
    series: str,
    charset: str | None,
    name: str | bytes | None,
    patient_id: str,
) -> Dataset:
    """Patient, study, series and equipment."""
    ds = Dataset()
    if charset is not None:
        ds.SpecificCharacterSet = charset.split("\\") if "\\" in charset else charset
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.InstanceCreationDate, ds.InstanceCreationTime = "20240102", "030405"
    ds.SOPClassUID = sop_class
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = "20240102"
    ds.StudyTime = ds.SeriesTime = ds.AcquisitionTime = ds.ContentTime = "030405"
    ds.AccessionNumber = "A1"
    ds.Modality = modality
    ds.Manufacturer, ds.ManufacturerModelName = "ACME", "Scanner 1"
    ds.InstitutionName = "Hospital"
    ds.DeviceSerialNumber, ds.SoftwareVersions = "SN-1", "1.2"
    ds.ReferringPhysicianName = None
    ds.StudyDescription, ds.SeriesDescription, ds.ProtocolName = "CT HEAD", "Head 2.5mm", "Head"
    text = _default_name(charset) if name is None else name
    set_raw(ds, "PatientName", PersonName(text) if isinstance(text, bytes) else text)
    set_raw(ds, "PatientID", patient_id)
    ds.IssuerOfPatientID = "HOSPITAL"
    ds.PatientBirthDate, ds.PatientSex, ds.PatientAge = "19500101", "O", "074Y"
    ds.BodyPartExamined = "HEAD"
    ds.PatientPosition = "HFS"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = uid(study), uid(study, series)
    ds.StudyID, ds.SeriesNumber, ds.AcquisitionNumber = "1", "2", "1"
    ds.FrameOfReferenceUID = uid(study, "frame of reference")
    ds.PositionReferenceIndicator = None
    return ds


def _ct_acquisition(ds: Dataset, thickness: str | None, tilt: float) -> None:
    if thickness is not None:
        ds.SliceThickness = thickness
    ds.KVP, ds.ExposureTime, ds.XRayTubeCurrent = "120", "1000", "200"
    ds.DataCollectionDiameter, ds.ReconstructionDiameter = "500", "250"
    ds.GantryDetectorTilt = _ds(tilt)
    ds.FilterType, ds.ConvolutionKernel = "HEAD", "H30s"
    ds.CTDIvol = 55.5


def _plane(
    ds: Dataset, position: NDArray[np.float64], orientation: Sequence[float], spacing: tuple[float, ...]
) -> None:
    ds.ImagePositionPatient = [_ds(value) for value in position]
    ds.ImageOrientationPatient = [_ds(value) for value in orientation]
    ds.PixelSpacing = [_ds(value) for value in spacing]


def _modality_lut(ds: Dataset, slope: str | None, intercept: str | None) -> None:
    if slope is not None:
        set_raw(ds, "RescaleSlope", slope)
    if intercept is not None:
        set_raw(ds, "RescaleIntercept", intercept)
        ds.RescaleType = "HU"
    ds.WindowCenter, ds.WindowWidth = "40", "80"


def _stored(
    n: int,
    rows: int,
    columns: int,
    hu: ArrayLike | None,
    stored: ArrayLike | None,
    bits: int,
    signed: bool,
    slope: str | None,
    intercept: str | None,
    seed: int,
) -> NDArray[np.int64]:
    """Stored values, int64 (slice, row, column), within the stored range."""
    if stored is not None:
        return np.asarray(stored).astype(np.int64)
    values = head(n, rows, columns, seed=seed) if hu is None else np.asarray(hu, float)
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    m, b = (_number(slope, 1.0), _number(intercept, 0.0))
    return np.clip(np.rint((values - b) / m), low, high).astype(np.int64)


def _number(text: str | None, default: float) -> float:
    try:
        return float(text or default) or default
    except ValueError:
        return default


def _pad_outside_circle(pixels: NDArray[np.int64], padding: int) -> NDArray[np.int64]:
    _, rows, columns = pixels.shape
    y, x = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
    return np.where(np.hypot(x, y) > 1.0, padding, pixels)


def _pixels(ds: Dataset, pixels: NDArray[np.int64], bits_stored: int, high_bit: int | None, signed: bool) -> None:
    """Image pixel module; ``pixels`` are shifted to ``high_bit`` and masked to ``bits_stored``."""
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = pixels.shape[-2:]
    if pixels.ndim == 3:
        ds.NumberOfFrames = str(len(pixels))
    ds.BitsAllocated, ds.BitsStored = 8 if bits_stored <= 8 else 16, bits_stored
    ds.HighBit = bits_stored - 1 if high_bit is None else high_bit
    ds.PixelRepresentation = int(signed)
    dtype = f"{'i' if signed else 'u'}{ds.BitsAllocated // 8}"
    if high_bit is not None and high_bit != bits_stored - 1:
        masked = (pixels & ((1 << bits_stored) - 1)) << (high_bit + 1 - bits_stored)
        raw = masked.astype(f"<u{ds.BitsAllocated // 8}")
    else:
        raw = pixels.astype(f"<{dtype}")
    data = raw.tobytes()
    ds.add_new(0x7FE00010, "OB" if ds.BitsAllocated == 8 else "OW", data + b"\0" * (len(data) % 2))


def _override(ds: Dataset, missing: Iterable[str], values: Mapping[str, Any], index: int) -> None:
    for keyword, value in values.items():
        set_raw(ds, keyword, value(index) if callable(value) else value)
    for keyword in missing:
        if keyword in ds:
            delattr(ds, keyword)


def _finish(ds: Dataset, transfer_syntax: str, fragments: int = 1) -> Dataset:
    """Give ``ds`` its file meta and encode its pixels in ``transfer_syntax``."""
    meta = FileMetaDataset()
    set_raw(meta, "MediaStorageSOPClassUID", ds.get("SOPClassUID", ""))
    set_raw(meta, "MediaStorageSOPInstanceUID", ds.get("SOPInstanceUID", ""))
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta = meta
    target = (
        transfer_syntax if hasattr(transfer_syntax, "is_compressed") else type(ExplicitVRLittleEndian)(transfer_syntax)
    )
    if target.is_encapsulated:
        ds.compress(target, generate_instance_uid=False)
        if fragments > 1:
            from pydicom.encaps import generate_frames

            frames = list(generate_frames(ds.PixelData, number_of_frames=int(ds.get("NumberOfFrames", 1) or 1)))
            ds.PixelData = encapsulate(frames, fragments_per_frame=fragments, has_bot=False)
    elif target == ExplicitVRBigEndian and ds.get("BitsAllocated") == 16:
        ds.PixelData = np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes()
    meta.TransferSyntaxUID = target
    return ds


def _ordered(datasets: list[Dataset], order: Order, seed: int) -> list[Dataset]:
    if order == "descending":
        return datasets[::-1]
    if order == "shuffled":
        random.Random(seed).shuffle(datasets)
    return datasets


#: Attributes that leave the top level of a single-frame object when it becomes a frame.
_PER_FRAME = (
    "AcquisitionDate",
    "AcquisitionTime",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
    "WindowCenter",
    "WindowWidth",
    "SliceLocation",
    "ConvolutionKernel",
    "FilterType",
    "KVP",
    "ExposureTime",
    "XRayTubeCurrent",
    "CTDIvol",
    "GantryDetectorTilt",
    "DataCollectionDiameter",
    "ReconstructionDiameter",
    "ScanningSequence",
    "SequenceVariant",
    "ScanOptions",
    "RepetitionTime",
    "EchoTime",
    "EchoTrainLength",
    "FlipAngle",
    "MRAcquisitionType",
    "InstitutionName",
)


def _enhanced(frames: list[Dataset], sop_class: str, modality: str, transfer_syntax: str) -> Dataset:
    first = frames[0]
    ds = Dataset()
    for element in first:
        if element.keyword not in _PER_FRAME and element.tag != Tag(0x7FE00010):
            ds.add(deepcopy(element))
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class, uid(first.SeriesInstanceUID, "enhanced")
    ds.InstanceNumber = "1"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    ds.AcquisitionDateTime = "20240102030405"
    ds.AcquisitionDuration = 1000.0
    ds.PixelPresentation, ds.VolumetricProperties, ds.VolumeBasedCalculationTechnique = "MONOCHROME", "VOLUME", "NONE"
    ds.ContentQualification, ds.BurnedInAnnotation, ds.LossyImageCompression = "PRODUCT", "NO", "00"
    ds.PresentationLUTShape = "IDENTITY"
    ds.PositionReferenceIndicator = None
    ds.AcquisitionContextSequence = []
    organization = Dataset()
    organization.DimensionOrganizationUID = uid(first.SeriesInstanceUID, "dimensions")
    ds.DimensionOrganizationSequence = [organization]
    pointer = Dataset()
    pointer.DimensionOrganizationUID = organization.DimensionOrganizationUID
    pointer.DimensionIndexPointer, pointer.FunctionalGroupPointer = 0x00200032, 0x00209113
    ds.DimensionIndexSequence = [pointer]
    ds.SharedFunctionalGroupsSequence = [_shared_groups(first, modality)]
    ds.PerFrameFunctionalGroupsSequence = [_frame_groups(frame, index) for index, frame in enumerate(frames)]
    if modality == "MR":
        _enhanced_mr_module(ds, first)
    ds.NumberOfFrames = str(len(frames))
    ds.add_new(0x7FE00010, first["PixelData"].VR, b"".join(frame.PixelData for frame in frames))
    return _finish(ds, transfer_syntax)


def _item(**values: Any) -> Dataset:
    ds = Dataset()
    for keyword, value in values.items():
        if value is not None:
            setattr(ds, keyword, value)
    return ds


def _shared_groups(first: Dataset, modality: str) -> Dataset:
    get = first.get
    group = Dataset()
    thickness = get("SliceThickness")
    group.PixelMeasuresSequence = [
        _item(PixelSpacing=get("PixelSpacing"), SliceThickness=None if thickness is None else str(thickness))
    ]
    group.PlaneOrientationSequence = [_item(ImageOrientationPatient=get("ImageOrientationPatient"))]
    frame_type = {
        "FrameType": ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"],
        "PixelPresentation": "MONOCHROME",
        "VolumetricProperties": "VOLUME",
        "VolumeBasedCalculationTechnique": "NONE",
    }
    anatomy = _item(CodeValue="69536005", CodingSchemeDesignator="SCT", CodeMeaning="Head")
    group.FrameAnatomySequence = [_item(FrameLaterality="U", AnatomicRegionSequence=[anatomy])]
    group.FrameVOILUTSequence = [_item(WindowCenter=get("WindowCenter"), WindowWidth=get("WindowWidth"))]
    slope, intercept = get("RescaleSlope"), get("RescaleIntercept")
    if slope is not None or intercept is not None:
        transformation = _item(RescaleSlope=slope, RescaleIntercept=intercept, RescaleType=get("RescaleType") or "US")
        group.PixelValueTransformationSequence = [transformation]
    if modality == "CT":
        group.CTImageFrameTypeSequence = [_item(**frame_type)]
        _ct_groups(group, first)
    else:
        more = {"ComplexImageComponent": "MAGNITUDE", "AcquisitionContrast": "T1"}
        group.MRImageFrameTypeSequence = [_item(**frame_type, **more)]
        group.MREchoSequence = [_item(EffectiveEchoTime=4.6)]
    return group


def _ct_groups(group: Dataset, first: Dataset) -> None:
    group.CTAcquisitionTypeSequence = [
        _item(AcquisitionType="SEQUENCED", ConstantVolumeFlag="NO", FluoroscopyFlag="NO")
    ]
    group.CTAcquisitionDetailsSequence = [
        _item(
            RotationDirection="CW",
            RevolutionTime=1.0,
            SingleCollimationWidth=1.25,
            TotalCollimationWidth=20.0,
            TableHeight="150",
            GantryDetectorTilt=first.get("GantryDetectorTilt"),
            DataCollectionDiameter="500",
        )
    ]
    group.CTTableDynamicsSequence = [_item(TableSpeed=0.0, TableFeedPerRotation=0.0, SpiralPitchFactor=1.0)]
    group.CTPositionSequence = [
        _item(
            TablePosition=0.0,
            ReconstructionTargetCenterPatient=[0.0, 0.0, 0.0],
            DataCollectionCenterPatient=[0.0, 0.0, 0.0],
        )
    ]
    group.IrradiationEventIdentificationSequence = [_item(IrradiationEventUID=uid("irradiation"))]
    group.CTGeometrySequence = [_item(DistanceSourceToDetector="950", DistanceSourceToDataCollectionCenter=540.0)]
    group.CTReconstructionSequence = [
        _item(
            ReconstructionAlgorithm="FILTER_BACK_PROJ",
            ConvolutionKernel=first.get("ConvolutionKernel"),
            ConvolutionKernelGroup="BRAIN",
            ReconstructionDiameter="250",
            ReconstructionPixelSpacing=[float(value) for value in first.get("PixelSpacing", [1, 1])],
            ReconstructionAngle=360.0,
            ImageFilter="HEAD",
        )
    ]
    group.CTExposureSequence = [
        _item(
            ExposureTimeInms=1000.0,
            XRayTubeCurrentInmA=200.0,
            ExposureInmAs=200.0,
            ExposureModulationType="NONE",
            CTDIvol=55.5,
        )
    ]
    group.CTXRayDetailsSequence = [_item(KVP="120", FocalSpots=[1.2], FilterType="NONE", FilterMaterial=["ALUMINUM"])]


def _enhanced_mr_module(ds: Dataset, first: Dataset) -> None:
    ds.ResonantNucleus, ds.KSpaceFiltering = "1H", "NONE"
    ds.MagneticFieldStrength = 3.0
    ds.ApplicableSafetyStandardAgency, ds.ApplicableSafetyStandardDescription = "IEC", "IEC 60601-2-33"
    ds.ComplexImageComponent, ds.AcquisitionContrast = "MAGNITUDE", "T1"
    ds.ContentQualification = "PRODUCT"


def _frame_groups(frame: Dataset, index: int) -> Dataset:
    group = Dataset()
    group.FrameContentSequence = [
        _item(
            FrameAcquisitionNumber=1,
            FrameAcquisitionDateTime="20240102030405",
            FrameReferenceDateTime="20240102030405",
            FrameAcquisitionDuration=1000.0,
            DimensionIndexValues=[index + 1],
        )
    ]
    group.PlanePositionSequence = [_item(ImagePositionPatient=frame.get("ImagePositionPatient"))]
    return group
