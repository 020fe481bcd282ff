"""Small data sets in the exact layouts of those that one may retrain on, with a heart of discs that beats."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from highdicom import AlgorithmIdentificationSequence
from highdicom.seg import Segmentation, SegmentDescription
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from tests import cine, factories

#: Phases of the trees; the heart is largest at the first and smallest at the second of these.
PHASES, ED, ES = 8, 0, 3
SLICES, PIXELS = 5, 48
#: Radius of the cavity [pixels] by phase.
RADIUS = (11.0, 9.0, 7.0, 6.0, 7.0, 8.0, 9.0, 10.0)
TYPES = {
    "lv": Code("87878005", "SCT", "Left ventricle"),
    "myo": Code("49848007", "SCT", "Myocardium of left ventricle"),
    "rv": Code("53085002", "SCT", "Right ventricle"),
}


def heart() -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """(phase, slice, row, column) images, and labels 1 RV, 2 myocardium, 3 cavity; the last slice is empty."""
    y, x = np.mgrid[:PIXELS, :PIXELS]
    labels = np.zeros((PHASES, SLICES, PIXELS, PIXELS), np.uint8)
    for p, radius in enumerate(RADIUS):
        r = np.hypot(y - 22, x - 26)
        one = np.where(np.hypot(y - 22, x - 10) < 8, 1, 0)
        one = np.where(r < radius + 4, 2, one)
        labels[p, :-1] = np.where(r < radius, 3, one)
    images = np.choose(labels, [300, 900, 200, 900]).astype(np.float32)
    return images, labels


def nifti(path: Path, array: NDArray[Any], spacing: Sequence[float]) -> None:
    """([phase,] slice, row, column) with spacing (column, row, slice[, phase])."""
    path.parent.mkdir(parents=True, exist_ok=True)
    volumes = [SimpleITK.GetImageFromArray(one) for one in (array if array.ndim == 4 else [array])]
    image = SimpleITK.JoinSeries(volumes) if array.ndim == 4 else volumes[0]
    image.SetSpacing(tuple(spacing[: array.ndim]))
    SimpleITK.WriteImage(image, str(path))


def acdc(root: Path, number: int) -> Path:
    """``training/patientNNN``; frames count from 1."""
    images, labels = heart()
    folder = root / "training" / f"patient{number:03d}"
    spacing = (1.5, 1.5, 10.0, 1.0)
    nifti(folder / f"{folder.name}_4d.nii.gz", images, spacing)
    for phase in (ED, ES):
        stem = f"{folder.name}_frame{phase + 1:02d}"
        nifti(folder / f"{stem}.nii.gz", images[phase], spacing)
        nifti(folder / f"{stem}_gt.nii.gz", labels[phase], spacing)
    info = {"ED": ED + 1, "ES": ES + 1, "Group": "DCM", "Height": "184.0", "NbFrame": PHASES, "Weight": "95.0"}
    (folder / "Info.cfg").write_text("".join(f"{key}: {value}\n" for key, value in info.items()))
    return folder


#: Ours to M&Ms': 1 left cavity, 2 myocardium, 3 right ventricle.
TO_MNMS = np.array([0, 3, 2, 1], np.uint8)


def mnms(root: Path, codes_of: Sequence[str]) -> None:
    """``Training/Labeled/CODE`` and the CSV beside; ED and ES count from 0, all other phases are without labels."""
    images, labels = heart()
    only = np.zeros_like(labels)
    only[[ED, ES]] = TO_MNMS[labels[[ED, ES]]]
    for code in codes_of:
        folder = root / "Training" / "Labeled" / code
        nifti(folder / f"{code}_sa.nii.gz", images, (1.4, 1.4, 9.2, 1.0))
        nifti(folder / f"{code}_sa_gt.nii.gz", only, (1.4, 1.4, 9.2, 1.0))
    with (root / "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["", "External code", "VendorName", "Vendor", "Centre", "ED", "ES", "Age", "Pathology"])
        for number, code in enumerate(codes_of):
            writer.writerow([number, code, "Siemens", "A", "1", ED, ES, "50", "NOR"])


def mnms2(root: Path, number: int) -> Path:
    """``dataset/NNN`` with short and long axis."""
    images, labels = heart()
    folder = root / "dataset" / f"{number:03d}"
    spacing = (1.3, 1.3, 10.0, 1.0)
    nifti(folder / f"{folder.name}_SA_CINE.nii.gz", images, spacing)
    for name, phase in (("ED", ED), ("ES", ES)):
        nifti(folder / f"{folder.name}_SA_{name}.nii.gz", images[phase], spacing)
        nifti(folder / f"{folder.name}_SA_{name}_gt.nii.gz", TO_MNMS[labels[phase]], spacing)
        nifti(folder / f"{folder.name}_LA_{name}.nii.gz", images[phase, :1], spacing)
    return folder


def stack_files(name: str, series: str = "sax") -> list[Dataset]:
    """The heart as DICOM: one series, phase after phase."""
    images, _ = heart()
    found = cine.one_series(SLICES, PHASES, rows=PIXELS, columns=PIXELS, series=f"{name} {series}", name=name)
    for number, ds in enumerate(found):
        ds.PixelData = images[number // SLICES, number % SLICES].astype("<u2").tobytes()
    return found


def kaggle(root: Path, names: Sequence[str], edv: float = 90.0, esv: float = 30.0) -> None:
    """``train/N/study/sax_K`` and ``2ch_1``, and ``train.csv`` with volumes."""
    for name in names:
        for number, ds in enumerate(stack_files(name)):
            at = root / "train" / name / "study" / f"sax_{5 + number % SLICES}"
            at.mkdir(parents=True, exist_ok=True)
            ds.save_as(at / f"IM-4562-{number // SLICES + 1:04d}.dcm", enforce_file_format=True)
        factories.write_series(root / "train" / name / "study" / "2ch_21", cine.long_axis(1, PHASES))
    with (root / "train" / "train.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Id", "Systole", "Diastole"])
        writer.writerows([name, esv, edv] for name in names)


def corrected(root: Path, name: str, *, structures: Sequence[str] = ("lv", "myo", "rv")) -> Path:
    """A patient's folder with the cine in one sub-folder and the corrected SEG of ED and ES in another."""
    _, labels = heart()
    paths = factories.write_series(root / name / "cine", stack_files(name))
    sources = [dcmread(path) for path in paths]
    wanted = {"rv": 1, "myo": 2, "lv": 3}
    (root / name / "seg").mkdir()
    for time_point, phase in (("ED", ED), ("ES", ES)):
        time = sorted({float(ds.TriggerTime) for ds in sources})[phase]
        here = [ds for ds in sources if float(ds.TriggerTime) == time]
        # Where plane k of the heart is: files carry it in SliceLocation, as `tests.cine` writes it.
        here.sort(key=lambda ds: float(ds.SliceLocation))
        masks = np.stack([labels[phase] == wanted[key] for key in structures], -1).astype(np.uint8)
        seg = Segmentation(
            source_images=here,
            pixel_array=masks,
            segmentation_type="BINARY",
            segment_descriptions=[_segment(number, key) for number, key in enumerate(structures, 1)],
            series_instance_uid=generate_uid(),
            series_number=100,
            sop_instance_uid=generate_uid(),
            instance_number=1,
            manufacturer="Reader",
            manufacturer_model_name="Workstation",
            software_versions="1",
            device_serial_number="1",
        )
        seg.save_as(root / name / "seg" / f"{time_point}.dcm")
    return root / name


def _segment(number: int, key: str) -> SegmentDescription:
    return SegmentDescription(
        segment_number=number,
        segment_label=key,
        segmented_property_category=codes.SCT.AnatomicalStructure,
        segmented_property_type=TYPES[key],
        algorithm_type="SEMIAUTOMATIC",
        algorithm_identification=AlgorithmIdentificationSequence(
            name="reader", version="1", family=codes.DCM.ArtificialIntelligence
        ),
    )
