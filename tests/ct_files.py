"""CT slices as files: a noisy water disc, for whatever reads a site's or a collection's series."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from models.ct_denoise import projection, simulate

SIZE, PIXEL_MM = 176, 1.0
AXIS = (torch.arange(SIZE) - (SIZE - 1) / 2.0) * PIXEL_MM
RADIUS = torch.sqrt(AXIS[:, None] ** 2 + AXIS[None] ** 2)
WATER = torch.where(RADIUS < 70.0, 45.0, -1000.0)


def water(sigma_hu: float, seed: int) -> np.ndarray:
    """The disc with noise of ``sigma_hu`` in its middle, (row, column) [HU]."""
    clean = projection.apply_kernel(WATER, projection.KERNELS["std"], PIXEL_MM)
    return (clean + simulate.insert_noise(WATER[None], PIXEL_MM, sigma_hu=sigma_hu, seed=seed)[0]).numpy()


def write(path: Path, values: np.ndarray, z_mm: float, **changes: object) -> None:
    """``values`` [HU] as the CT slice at ``z_mm``; ``changes`` are further attributes by keyword."""
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID = CTImageStorage
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID = generate_uid()
    header.Modality, header.PatientID, header.SeriesInstanceUID = "CT", "A-1", "1.2.3"
    header.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    header.ImagePositionPatient = [0.0, 0.0, z_mm]
    header.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    header.PixelSpacing = [PIXEL_MM, PIXEL_MM]
    header.RescaleSlope, header.RescaleIntercept = 1, -1024
    header.Rows = header.Columns = SIZE
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated = header.BitsStored = 16
    header.HighBit, header.PixelRepresentation = 15, 0
    for keyword, value in changes.items():
        setattr(header, keyword, value)
    stored = (np.clip(values, -1024.0, 3071.0) - header.RescaleIntercept).round().astype("<u2")
    header.PixelData = stored.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    header.save_as(path, enforce_file_format=True)
