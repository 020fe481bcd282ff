"""Patients of ACDC, M&Ms and M&Ms-2, as they lie on disk (ml-mr 4), read through SimpleITK.

ACDC (Bernard, IEEE TMI 2018, 37:2514): ``patientNNN/`` with ``Info.cfg`` (ED, ES: frame numbers from 1),
``patientNNN_4d.nii.gz`` and ``patientNNN_frameXX[_gt].nii.gz``; labels 1 RV, 2 myocardium, 3 left cavity, as ours.
M&Ms (Campello, IEEE TMI 2021, 40:3543): ``CODE/CODE_sa.nii.gz`` and ``_sa_gt``, four-dimensional, labelled at the
phases ED and ES (from 0) of a CSV beside. M&Ms-2: ``NNN/NNN_SA_CINE``, ``NNN_SA_ED[_gt]``, ``NNN_SA_ES[_gt]``. In both
the labels are **1 left cavity**, 2 myocardium, **3 RV**: unlike ours.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Final

import numpy as np
import SimpleITK
from numpy.typing import NDArray

from models.cardiac import localise
from models.cardiac.cases import Case, Example, labelled

#: M&Ms' labels to ours.
MNMS: Final = np.array([0, 3, 2, 1], np.uint8)
ACDC: Final = np.array([0, 1, 2, 3], np.uint8)


class UnreadableCaseError(Exception):
    """A patient of a data set is not as its layout says; the message names the file and what is wrong."""


def read_image(path: Path) -> tuple[NDArray[np.float32], tuple[float, float]]:
    """([phase,] slice, row, column) of a NIfTI file, and its (row, column) spacing [mm]."""
    if not path.is_file():
        raise UnreadableCaseError(f"{path.name} is missing in {path.parent.name}")
    try:
        image = SimpleITK.ReadImage(str(path))
    except RuntimeError as error:
        raise UnreadableCaseError(f"{path.name} does not read as NIfTI") from error
    spacing = image.GetSpacing()
    return np.asarray(SimpleITK.GetArrayFromImage(image), np.float32), (float(spacing[1]), float(spacing[0]))


def read_labels(path: Path, to_ours: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """([phase,] slice, row, column) labels in our order."""
    values = np.rint(read_image(path)[0]).astype(np.int64)
    if values.min() < 0 or values.max() >= len(to_ours):
        raise UnreadableCaseError(f"{path.name} has the labels {np.unique(values).tolist()}; 0 to 3 are known")
    return to_ours[values]


def acdc(folder: Path) -> Case:
    """The patient of one folder of ACDC."""
    facts = {}
    for line in (folder / "Info.cfg").read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        facts[key.strip()] = value.strip()
    phases = []
    for name in ("ED", "ES"):
        if not facts.get(name, "").isdecimal():
            raise UnreadableCaseError(f"{folder.name}/Info.cfg names no frame of {name}")
        stem = f"{folder.name}_frame{int(facts[name]):02d}"
        image, spacing = read_image(folder / f"{stem}.nii.gz")
        phases.append((image, read_labels(folder / f"{stem}_gt.nii.gz", ACDC), spacing))
    return _case(folder.name, phases, folder / f"{folder.name}_4d.nii.gz", facts)


def mnms(folder: Path) -> Case:
    """The patient of one folder of M&Ms: phases with anything labelled are ED and ES."""
    code = folder.name
    images, spacing = read_image(folder / f"{code}_sa.nii.gz")
    labels = read_labels(folder / f"{code}_sa_gt.nii.gz", MNMS)
    if images.ndim != 4 or labels.shape != images.shape:
        raise UnreadableCaseError(f"{code}: images are {images.shape}, labels {labels.shape}, not both 4-D and alike")
    facts = _row(folder, "External code", code)
    named = [int(facts[name]) for name in ("ED", "ES") if facts.get(name, "").isdecimal()]
    wanted = named or np.flatnonzero(labels.any((1, 2, 3))).tolist()
    if not all(0 <= p < len(images) and labels[p].any() for p in wanted) or not wanted:
        raise UnreadableCaseError(f"{code}: phases {wanted} of {len(images)} are not all labelled")
    return _case(code, [(images[p], labels[p], spacing) for p in wanted], None, facts, images)


def mnms2(folder: Path) -> Case:
    """The patient of one folder of M&Ms-2, short axis only."""
    code, phases = folder.name, []
    for name in ("ED", "ES"):
        image, spacing = read_image(folder / f"{code}_SA_{name}.nii.gz")
        phases.append((image, read_labels(folder / f"{code}_SA_{name}_gt.nii.gz", MNMS), spacing))
    return _case(code, phases, folder / f"{code}_SA_CINE.nii.gz", _row(folder, "SUBJECT_CODE", code))


def _case(
    name: str,
    phases: list[tuple[NDArray[np.float32], NDArray[np.uint8], tuple[float, float]]],
    whole: Path | None,
    facts: dict[str, str],
    cine: NDArray[np.float32] | None = None,
) -> Case:
    """One case; the heart is looked for where the pipeline looks for it, or it is where the labels are."""
    for image, labels, _ in phases:
        if image.shape != labels.shape or image.ndim != 3:
            raise UnreadableCaseError(f"{name}: an image is {image.shape}, its labels are {labels.shape}")
    spacing = phases[0][2]
    if cine is None and whole is not None and whole.is_file():
        cine = read_image(whole)[0]
    if cine is not None and cine.ndim == 4 and len(cine) > 1:
        centre = localise.centre(cine, spacing)
    else:
        at = np.argwhere(np.stack([labels for _, labels, _ in phases]) > 0)
        if not len(at):
            raise UnreadableCaseError(f"{name}: nothing is labelled")
        centre = float(at[:, 2].mean()), float(at[:, 3].mean())
    drawn: list[Example] = []
    empty: list[Example] = []
    for image, labels, _ in phases:
        with_any, without = labelled(image, labels, centre, spacing)
        drawn += with_any
        empty += without
    return Case(name=name, drawn=tuple(drawn), empty=tuple(empty), facts=facts)


def _row(folder: Path, column: str, code: str) -> dict[str, str]:
    """The patient's line of the data set's CSV, which lies in one of the folders above; empty if there is none."""
    for above in list(folder.parents)[:4]:
        for path in sorted(above.glob("*.csv")):
            with path.open(encoding="utf-8-sig", newline="") as file:
                for row in csv.DictReader(file):
                    if row.get(column, "").strip().lstrip("0") == code.lstrip("0"):
                        return {key: (value or "").strip() for key, value in row.items() if key}
    return {}
