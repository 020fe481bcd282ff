"""A simulated low-dose head CT, and a series no rule wants, for the demo: ellipsoids with a reconstruction's noise.

Not a patient and not a training set: the demo must run where there is no data. Textures follow filtered back
projection (ramp filter times an apodisation), so that a denoiser meets the kind of noise it was made for.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

_SIZE: Final = 256
_PIXEL_MM: Final = 0.9
_STEP_MM: Final = 5.0
_INTERCEPT: Final = -1024

#: (centre x, y, z [mm], radii x, y, z [mm], HU) of an adult head, in painting order. Values: scalp and brain as on any
#: head CT at 120 kVp, ventricles CSF, one calcified pineal gland, one old hypodense infarct.
_ELLIPSOIDS: Final = (
    ((0, 0, 0), (78, 96, 92), 45),
    ((0, 0, 0), (73, 91, 87), 1100),
    ((0, 0, 0), (67, 85, 81), 30),
    ((0, -4, 2), (63, 80, 77), 36),
    ((-15, -14, 8), (6, 24, 12), 8),
    ((15, -14, 8), (6, 24, 12), 8),
    ((0, 8, -2), (2.5, 12, 8), 8),
    ((0, 22, 0), (3, 3, 3), 180),
    ((38, 30, 10), (12, 16, 12), 22),
    ((-26, 4, 0), (10, 16, 12), 41),
    ((26, 4, 0), (10, 16, 12), 41),
)  # fmt: skip


def head(slices: int = 24) -> NDArray[np.float32]:
    """Return a noise-free head: float32 (slice, row, column) [HU], plane 0 nearest the neck."""
    span = (np.arange(_SIZE) - (_SIZE - 1) / 2) * _PIXEL_MM
    x, y = span[None, None, :], span[None, :, None]
    z = ((np.arange(slices) - (slices - 1) / 2) * _STEP_MM)[:, None, None]
    image = np.full((slices, _SIZE, _SIZE), -1000, np.float32)
    for centre, radii, value in _ELLIPSOIDS:
        distance = sum(((axis - at) / radius) ** 2 for axis, at, radius in zip((x, y, z), centre, radii, strict=True))
        image[np.broadcast_to(distance <= 1, image.shape)] = value
    return image


def noise(shape: tuple[int, int, int], sigma: float, seed: int) -> NDArray[np.float32]:
    """Return noise of ``sigma`` [HU] with a soft kernel's spectrum (ramp times Gaussian), independent per slice."""
    rng = np.random.default_rng(seed)
    fy = np.fft.fftfreq(shape[1])[:, None]
    fx = np.fft.rfftfreq(shape[2])[None, :]
    frequency = np.hypot(fx, fy)
    weight = np.sqrt(frequency) * np.exp(-((frequency / 0.25) ** 2))
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal(shape)) * weight, s=shape[1:])
    scaled: NDArray[np.float32] = (field * (sigma / field.std())).astype(np.float32)
    return scaled


def head_ct(when: datetime, *, slices: int = 24, sigma: float = 14.0, seed: int = 1) -> Iterator[Dataset]:
    """Yield a low-dose head CT as CT Image Storage objects; like some real ones it has no SeriesDescription."""
    image = head(slices) + noise((slices, _SIZE, _SIZE), sigma, seed)
    stored = np.clip(np.rint(image) - _INTERCEPT, 0, 4095).astype("<u2")
    shared = _shared(when, "CT", CTImageStorage)
    for number in range(slices):
        ds = _instance(shared, number, stored[number], [-115.2, -115.2, number * _STEP_MM])
        ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        ds.StudyDescription, ds.BodyPartExamined, ds.ProtocolName = "HEAD", "HEAD", "HEAD ROUTINE"
        ds.KVP, ds.XRayTubeCurrent, ds.ConvolutionKernel = "120", 60, "STANDARD"
        ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = str(_INTERCEPT), "1", "HU"
        ds.WindowCenter, ds.WindowWidth = "40", "80"
        ds.PixelSpacing, ds.SliceThickness = [str(_PIXEL_MM)] * 2, str(_STEP_MM)
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
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = "Demo^Phantom", "DEMO-1", "", "O"
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = when.strftime("%Y%m%d")
    ds.StudyTime = ds.SeriesTime = ds.AcquisitionTime = ds.ContentTime = when.strftime("%H%M%S")
    ds.AccessionNumber, ds.StudyID, ds.ReferringPhysicianName = "DEMO0001", "1", ""
    ds.Manufacturer, ds.ManufacturerModelName = "Simulated", "Ellipsoids"
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
