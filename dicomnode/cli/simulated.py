"""Simulated scans as a modality would send them, for the demo: it must run where there is no data."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

_INTERCEPT: Final = -1024
#: Where the demo's heads come from: loaded by name, as pipelines are, since the node knows no model.
_HEADS: Final = "models.hemorrhage.example"


class Scan(Protocol):
    """One simulated scan."""

    @property
    def hu(self) -> NDArray[np.float32]:
        """(slice, row, column) [HU]."""

    @property
    def positions(self) -> NDArray[np.float64]:
        """ImagePositionPatient of each plane: (slice, 3) LPS [mm]."""

    @property
    def spacing(self) -> tuple[float, float]:
        """Distance between rows, between columns [mm]."""


def head(*, bleeding: bool) -> Scan:
    """Simulate a head scan."""
    module: Any = importlib.import_module(_HEADS)
    scan: Scan = module.head(bleeding=bleeding)
    return scan


def head_ct(when: datetime, scan: Scan, *, patient_id: str, name: str) -> Iterator[Dataset]:
    """Yield a head CT as CT Image Storage objects; like some real ones it has no SeriesDescription."""
    stored = np.clip(np.rint(scan.hu) - _INTERCEPT, 0, 4095).astype("<u2")
    shared = _shared(when, "CT", CTImageStorage)
    shared.PatientID, shared.PatientName = patient_id, name
    heights = scan.positions[:, 2]
    step = abs(float(np.median(np.diff(heights))))
    # A scanner numbers from the neck up or down; what counts is the position.
    for number in range(len(stored)):
        ds = _instance(shared, number, stored[number], [float(value) for value in scan.positions[number]])
        ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        ds.StudyDescription, ds.BodyPartExamined, ds.ProtocolName = "HEAD", "HEAD", "HEAD ROUTINE"
        ds.KVP, ds.XRayTubeCurrent, ds.ConvolutionKernel = "120", 60, "STANDARD"
        ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = str(_INTERCEPT), "1", "HU"
        ds.WindowCenter, ds.WindowWidth = "40", "80"
        ds.PixelSpacing, ds.SliceThickness = [f"{value:g}" for value in scan.spacing], f"{step:g}"
        yield ds


def unwanted(when: datetime, study_uid: str) -> Iterator[Dataset]:
    """Yield three MR localizers of the same patient, which no rule of the demo wants."""
    shared = _shared(when, "MR", MRImageStorage)
    shared.StudyInstanceUID = study_uid
    rng = np.random.default_rng(2)
    for number in range(3):
        ds = _instance(shared, number, rng.integers(0, 500, (64, 64)).astype("<u2"), [0, 0, number * 10.0])
        ds.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        ds.SeriesDescription, ds.ScanningSequence, ds.SequenceVariant = "3-plane loc", "GR", "SP"
        ds.ScanOptions, ds.MRAcquisitionType, ds.EchoTime, ds.EchoTrainLength = "", "2D", "3", 1
        ds.PixelSpacing, ds.SliceThickness, ds.RepetitionTime = ["4", "4"], "8", "8"
        yield ds


def _shared(when: datetime, modality: str, sop_class: str) -> Dataset:
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID, ds.Modality = sop_class, modality
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = (generate_uid() for _ in range(3))
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = "Demo^One", "DEMO-1", "", "O"
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = when.strftime("%Y%m%d")
    ds.StudyTime = ds.SeriesTime = ds.AcquisitionTime = ds.ContentTime = when.strftime("%H%M%S")
    ds.AccessionNumber, ds.StudyID, ds.ReferringPhysicianName = "DEMO0001", "1", ""
    ds.Manufacturer, ds.ManufacturerModelName = "Simulated", "Procedural head"
    ds.SeriesNumber, ds.AcquisitionNumber, ds.PatientPosition = 2, 1, "HFS"
    ds.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
    ds.PositionReferenceIndicator, ds.FrameOfReferenceUID = "", ds.FrameOfReferenceUID
    return ds


def _instance(shared: Dataset, number: int, pixels: NDArray[np.uint16], position: list[float]) -> Dataset:
    ds = Dataset()
    ds.update(shared)
    ds.SOPInstanceUID, ds.InstanceNumber = generate_uid(), number + 1
    ds.ImagePositionPatient = [f"{value:g}" for value in position]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = pixels.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.PixelData = pixels.tobytes()
    ds["PixelData"].VR = "OW"
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta = meta
    return ds
