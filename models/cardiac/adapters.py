"""Data sets to retrain on, in their own layouts (ml-mr 4): which one a folder holds, its patients, and their split.

=============  ===================================================================  =====================
format         on disk                                                              says
=============  ===================================================================  =====================
``acdc``       ``patientNNN/Info.cfg`` and NIfTI                                    all labels
``mnms``       ``CODE/CODE_sa.nii.gz``, ``_sa_gt`` (M&Ms)                           all labels, remapped
``mnms2``      ``NNN/NNN_SA_ED.nii.gz``, ``_gt`` ... (M&Ms-2)                       all labels, remapped
``sunnybrook`` ``NAME/sax``, ``i-contours``, ``o-contours``                         inner; outer at ED
``kaggle``     ``N/study/sax_K``, ``train.csv`` (Data Science Bowl 2016)            volumes alone
``seg``        a folder a patient: DICOM cine and corrected SEG                     what its segments name
=============  ===================================================================  =====================
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from models.cardiac import nifti, own, scd
from models.cardiac.cases import Case, recentred
from models.cardiac.nifti import UnreadableCaseError
from models.cardiac.tune import examples

#: Share of the patients that is trained on and watched for stopping; the rest is tested on once (ml-mr 4).
TRAINED: Final = 0.70
WATCHED: Final = 0.15


class UnknownLayoutError(Exception):
    """A folder holds none of the layouts that are known, or several: name one with ``--format``."""


@dataclass(frozen=True, slots=True)
class Format:
    """One layout."""

    #: Patient folders below the data set's.
    folders: Callable[[Path], Iterator[Path]]
    read: Callable[[Path], Case]


def _sunnybrook(folder: Path) -> Case:
    drawn, empty = examples(scd.read(folder))
    return Case(name=folder.name, drawn=tuple(drawn), empty=tuple(empty))


def _with_segmentations(folder: Path) -> Iterator[Path]:
    for patient in sorted(path for path in folder.iterdir() if path.is_dir()):
        if any(one.SOPClassUID in own.SEGMENTATIONS for one in own.objects(patient)):
            yield patient


FORMATS: Final[Mapping[str, Format]] = {
    "acdc": Format(lambda root: (path.parent for path in root.rglob("Info.cfg")), nifti.acdc),
    "mnms": Format(lambda root: (path.parent for path in root.rglob("*_sa_gt.nii.gz")), nifti.mnms),
    "mnms2": Format(lambda root: (path.parent for path in root.rglob("*_SA_ED_gt.nii.gz")), nifti.mnms2),
    "sunnybrook": Format(lambda root: (path.parent for path in root.rglob("i-contours")), _sunnybrook),
    "kaggle": Format(lambda root: (path for path in {one.parents[1] for one in root.rglob("study/sax_*")}), own.kaggle),
    "seg": Format(_with_segmentations, own.corrected),
}


def format_of(folder: Path) -> str:
    """The one layout that a folder holds."""
    if not folder.is_dir():
        raise UnknownLayoutError(f"{folder} is no folder")
    # Reading every header is slow: only where no name says what it is.
    found = [name for name, one in FORMATS.items() if name != "seg" and next(one.folders(folder), None) is not None]
    if not found and next(FORMATS["seg"].folders(folder), None) is not None:
        found = ["seg"]
    if len(found) != 1:
        what = f"several layouts ({', '.join(found)})" if found else f"none of the layouts {', '.join(FORMATS)}"
        raise UnknownLayoutError(f"{folder} holds {what}; name one with --format, or its folder with --data")
    return found[0]


def read(folder: Path, name: str = "auto") -> tuple[str, list[Case], list[str]]:
    """Every patient of a folder: the format, the cases, and a sentence on each that could not be read.

    Raises
    ------
    UnknownLayoutError
        If it holds no such patients.
    """
    name = format_of(folder) if name == "auto" else name
    cases: dict[str, Case] = {}
    lost: list[str] = []
    for patient in sorted(set(FORMATS[name].folders(folder))):
        try:
            case = FORMATS[name].read(patient)
        except UnreadableCaseError as error:
            lost.append(str(error))
            continue
        if case.name in cases:
            raise UnknownLayoutError(f"{folder} holds two patients called {case.name}: the split would mix them up")
        drawn, empty = recentred(case.drawn, case.empty)
        cases[case.name] = replace(case, drawn=tuple(drawn), empty=tuple(empty))
    if not cases:
        raise UnknownLayoutError(
            f"{folder} holds no readable patient of {name}: {'; '.join(lost[:3]) or 'none at all'}"
        )
    return name, list(cases.values()), lost


def split(cases: Sequence[Case]) -> tuple[list[Case], list[Case], list[Case]]:
    """Patients to train on, to watch and to test on: by a digest of their names, so that it is always the same one.

    Fewer than three patients are all trained on.
    """
    ordered = sorted(cases, key=lambda case: hashlib.sha256(case.name.encode()).hexdigest())
    if len(ordered) < 3:
        return ordered, [], []
    watched = max(1, round(WATCHED * len(ordered)))
    tested = max(1, len(ordered) - watched - round(TRAINED * len(ordered)))
    first = len(ordered) - watched - tested
    return ordered[:first], ordered[first : first + watched], ordered[first + watched :]
