"""Real CT for retraining: pairs of full and low dose, or a hospital's own series with noise inserted.

``mayo:FOLDER``   LDCT-and-Projection-data: ``<patient>/<study>/<... Full Dose Images ...>/*.dcm`` and Low Dose Images
``aapm:FOLDER``   AAPM Low Dose CT Grand Challenge: ``.../L067/full_3mm/*.IMA`` and ``quarter_3mm``
``dicom:FOLDER``  any CT in DICOM files; the low dose is simulated (`lowdose`), no label is needed

Slices are paired by position and split *by patient*: a patient in training is in no test.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.ct_denoise import lowdose
from models.ct_denoise.data import CLEAN_STEP, Pool
from models.ct_denoise.simulate import POOL_SIZE

#: Positions of a pair of slices may differ by this much [mm].
SAME_POSITION_MM: Final = 0.1
#: The patient whom the literature on the AAPM challenge leaves out for testing.
AAPM_TEST: Final = "L506"
#: Shares of the patients kept for tests and for validation; at least one each where there are three.
TEST_SHARE: Final = 0.1
#: Dose that a hospital's own series is brought to.
INSERTED_DOSE: Final = 0.25
#: The mode of air and the least share of soft tissue of values that are HU.
AIR_MODE_HU: Final = (-1045.0, -960.0)
LEAST_TISSUE: Final = 0.005

#: What goes beside data and weights, by kind.
LICENCES: Final = {
    "mayo": "LDCT-and-Projection-data (The Cancer Imaging Archive; Moen et al., Med Phys 2021;48:902). Access is"
    " limited: the terms accepted at download hold for the images, and may hold for weights trained on them. Cite it.",
    "aapm": "AAPM Low Dose CT Grand Challenge (McCollough et al., Med Phys 2017;44:e339). Given on request and"
    " agreement: read it before weights trained on these images leave the house.",
    "dicom": "Images of your own patients. Ethics approval and data protection are yours to settle; weights may hold"
    " traces of the images they were trained on. Do not publish them unasked.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """One reconstruction: its files in order of position [mm]."""

    patient: str
    #: What pairs with what: the slice thickness or the study; the series itself where nothing is paired.
    group: str
    #: "full" or "low".
    dose: str
    files: tuple[tuple[float, Path], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Full and low dose of one slice; ``low`` is None where noise is to be inserted."""

    patient: str
    group: str
    position_mm: float
    full: Path
    low: Path | None


def _header(path: Path, *, pixels: bool = False) -> Any:  # noqa: ANN401 - pydicom's Dataset, imported only here
    import pydicom  # retraining needs it, inference does not

    return pydicom.dcmread(path, force=True, stop_before_pixels=not pixels)


def _position(header: Any) -> float | None:  # noqa: ANN401
    if "ImagePositionPatient" not in header or "ImageOrientationPatient" not in header:
        return None
    along = [float(part) for part in header.ImageOrientationPatient]
    return float(np.dot([float(part) for part in header.ImagePositionPatient], np.cross(along[:3], along[3:])))


def _ordered(files: Iterator[Path]) -> tuple[tuple[float, Path], ...]:
    placed = [(position, file) for file in files if (position := _position(_header(file))) is not None]
    return tuple(sorted(placed))


def _patient(folder: Path, root: Path, otherwise: int) -> str:
    """The part of the path that names a patient (L067, C004, N012), or the one ``otherwise`` levels up."""
    parts = folder.relative_to(root).parts
    named = [part for part in parts if re.fullmatch(r"[LCN]\d{3}", part)]
    return named[-1] if named else parts[max(0, len(parts) - 1 - otherwise)]


def mayo(root: Path) -> list[Stack]:
    """The reconstructions of LDCT-and-Projection-data; projections are left alone."""
    stacks = []
    for folder in sorted(part for part in root.rglob("*") if part.is_dir()):
        said = re.search(r"(full|low)[ _-]?dose[ _-]?images", folder.name, re.IGNORECASE)
        files = _ordered(file for file in sorted(folder.glob("*.dcm"))) if said else ()
        if said and files:
            patient = _patient(folder, root, 2)
            stacks.append(Stack(patient=patient, group=folder.parent.name, dose=said[1].lower(), files=files))
    return stacks


def aapm(root: Path) -> list[Stack]:
    """The reconstructions of the AAPM challenge; each slice thickness by itself."""
    stacks = []
    for folder in sorted(part for part in root.rglob("*") if part.is_dir()):
        said = re.fullmatch(r"(full|quarter)_(\d+mm)(_sharp)?", folder.name, re.IGNORECASE)
        files = _ordered(f for f in sorted(folder.iterdir()) if f.suffix.lower() in {".ima", ".dcm"}) if said else ()
        if said and files:
            dose = "full" if said[1].lower() == "full" else "low"
            group = said[2] + (said[3] or "")
            stacks.append(Stack(patient=_patient(folder, root, 1), group=group, dose=dose, files=files))
    return stacks


def own(root: Path) -> list[Stack]:
    """Every original axial CT series of a folder; patients are named by a digest."""
    series: dict[tuple[str, str], list[tuple[float, Path]]] = {}
    for file in sorted(part for part in root.rglob("*") if part.is_file()):
        header = _header(file)
        kind = [str(part).upper() for part in header.get("ImageType", [])]
        position = _position(header)
        if header.get("Modality") != "CT" or position is None or "LOCALIZER" in kind or kind[:1] == ["DERIVED"]:
            continue
        patient = hashlib.sha256(str(header.get("PatientID", "")).encode()).hexdigest()[:12]
        series.setdefault((patient, str(header.SeriesInstanceUID)), []).append((position, file))
    return [
        Stack(patient=patient, group=uid, dose="full", files=tuple(sorted(files)))
        for (patient, uid), files in series.items()
    ]


KINDS: Final[Mapping[str, Callable[[Path], list[Stack]]]] = {"mayo": mayo, "aapm": aapm, "dicom": own}


def pairs(kind: str, root: Path) -> list[Pair]:
    """Every slice that training may use, in order; full and low dose matched by position."""
    stacks, made = KINDS[kind](root), []
    low = {(stack.patient, stack.group): stack.files for stack in stacks if stack.dose == "low"}
    for stack in (part for part in stacks if part.dose == "full"):
        partners = low.get((stack.patient, stack.group), ())
        places = np.array([position for position, _ in partners])
        for position, file in stack.files:
            partner = None
            if kind != "dicom":
                nearest = int(np.abs(places - position).argmin()) if len(places) else -1
                if nearest < 0 or abs(places[nearest] - position) > SAME_POSITION_MM:
                    continue
                partner = partners[nearest][1]
            given = {"patient": stack.patient, "group": stack.group, "position_mm": position}
            made.append(Pair(**given, full=file, low=partner))  # type: ignore[arg-type]
    return made


def split(kind: str, patients: set[str]) -> dict[str, str]:
    """Put each patient into "train", "validation" or "test": the same way whenever the same patients are there."""
    ranked = sorted(patients, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    if kind == "aapm" and AAPM_TEST in patients:
        ranked = [AAPM_TEST, *(name for name in ranked if name != AAPM_TEST)]
    if len(ranked) < 3:
        return dict.fromkeys(ranked, "train")
    few = max(1, round(TEST_SHARE * len(ranked)))
    held_back = 1 if kind == "aapm" and AAPM_TEST in patients else few
    parts = ["test"] * held_back + ["validation"] * few
    return dict(zip(ranked, [*parts, *["train"] * (len(ranked) - len(parts))], strict=True))


def read_hu(path: Path) -> tuple[NDArray[np.float32], float]:
    """Values (row, column) [HU], padding as air, and the pixel size [mm] of one file."""
    header = _header(path, pixels=True)
    stored = header.pixel_array
    values = stored.astype(np.float32) * float(header.get("RescaleSlope", 1)) + float(header.get("RescaleIntercept", 0))
    padding = stored == header.get("PixelPaddingValue", 1 << 20)
    return np.where(padding | (values < -1100.0), np.float32(-1000.0), values), float(header.PixelSpacing[0])


def not_hu(values: NDArray[np.float32]) -> str:
    """Why ``values`` (row, column) cannot be HU, empty where they can."""
    tissue = float(((values > -250.0) & (values < 300.0)).mean())
    if float(values.min()) >= 0.0:
        return f"lowest value {values.min():g}: no rescale, or clipped at 0"
    if tissue < LEAST_TISSUE:
        return f"{tissue:.1%} soft tissue"
    air = values[values < -700.0]
    if air.size > 0.02 * values.size:
        counts, edges = np.histogram(air, bins=48, range=(-1180.0, -700.0))
        mode = float(edges[int(counts.argmax())]) + 5.0
        if not AIR_MODE_HU[0] <= mode <= AIR_MODE_HU[1]:
            return f"air at {mode:.0f} HU"
    return ""


def check(kind: str, root: Path, work: Path) -> dict[str, Any]:
    """Count, verify HU on a slice of each stack, split by patient, and leave a licence note in ``work``."""
    found = pairs(kind, root)
    parts = split(kind, {pair.patient for pair in found})
    first: dict[tuple[str, str], list[Pair]] = {}
    for pair in found:
        first.setdefault((pair.patient, pair.group), []).append(pair)
    problems = {}
    for (patient, group), slices in first.items():
        middle = slices[len(slices) // 2]
        reasons = [not_hu(read_hu(file)[0]) for file in (middle.full, middle.low) if file is not None]
        if any(reasons):
            problems[f"{patient} {group}"] = "; ".join(reason for reason in reasons if reason)
    work.mkdir(parents=True, exist_ok=True)
    (work / "DATA-LICENCE.txt").write_text(LICENCES[kind] + "\n")
    return {
        "kind": kind,
        "patients": len(parts),
        "stacks": len(first),
        "slices": len(found),
        "split": {part: sorted(name for name in parts if parts[name] == part) for part in sorted(set(parts.values()))},
        "not_hu": problems,
        "licence": LICENCES[kind],
    }


def _centre(image: Tensor, size: int) -> tuple[slice, slice]:
    """The window of ``size`` round the body of ``image`` (row, column)."""
    rows, columns = torch.nonzero(image > -300.0, as_tuple=True)
    sides = zip((rows, columns), image.shape, strict=True)
    middle = [int(part.median()) if len(part) else side // 2 for part, side in sides]
    begins = [min(max(m - size // 2, 0), side - size) for m, side in zip(middle, image.shape, strict=True)]
    return slice(begins[0], begins[0] + size), slice(begins[1], begins[1] + size)


def _one(pair: Pair, seed: int) -> tuple[Tensor, Tensor, float, float] | None:
    """Clean, noise (2, row, column), pixel size [mm] and noise [HU] of a pair; None where it is of no use."""
    values, pixel_mm = read_hu(pair.full)
    if min(values.shape) < POOL_SIZE or not_hu(values):
        return None
    full = torch.from_numpy(np.ascontiguousarray(values))
    if pair.low is None:
        made = [lowdose.lower_dose(full[None], pixel_mm, INSERTED_DOSE, seed=2 * seed + k).image[0] for k in (0, 1)]
        noise = torch.stack(made) - full
    else:
        first = torch.from_numpy(read_hu(pair.low)[0]) - full
        # the pair holds one realisation; the same noise of another place is the second
        noise = torch.stack((first, first.roll((first.shape[0] // 3, first.shape[1] // 3), (0, 1))))
    window = _centre(full, POOL_SIZE)
    clean, noise = full[window], noise[(slice(None), *window)]
    tissue = (clean > -150.0) & (clean < 250.0)
    if int(tissue.sum()) < 1000:
        return None
    return clean, noise, pixel_mm, float(noise[0][tissue].std())


def make_pool(kind: str, root: Path, part: str, limit: int, device: torch.device) -> Pool:
    """A training pool of at most ``limit`` slices of the patients of ``part``, spread evenly.

    Raises
    ------
    ValueError
        If no slice is of use.
    """
    found = pairs(kind, root)
    parts = split(kind, {pair.patient for pair in found})
    chosen = [pair for pair in found if parts[pair.patient] == part]
    picked = sorted({int(i) for i in np.linspace(0, len(chosen) - 1, min(limit, len(chosen)))}) if chosen else []
    made = [one for index in picked if (one := _one(chosen[index], index)) is not None]
    if not made:
        raise ValueError(f"no {part} slice of {kind}:{root} is of use")
    clean, noise, pixel_mm, sigma_hu = zip(*made, strict=True)
    stored = (torch.stack(clean) / CLEAN_STEP).round().clamp(-32768, 32767).to(torch.int16)
    return Pool(stored.to(device), torch.stack(noise).half().to(device), list(pixel_mm), list(sigma_hu), rendered=True)
