"""Complete k-space of others to train on: fastMRI, OCMR and any ISMRMRD file, CMRxRecon.

All become the same: one ``Volume`` a file, whose slices are complex64 (coil, ky, kx) with the phase encoding along ky
and the readout's oversampling cut away. Undersampled files cannot teach and are left out by name. Patients, never
files or slices, are parted into training, watching and testing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from models.mr_recon.fft import fftc, ifftc

FORMATS: Final = ("fastmri", "ismrmrd", "cmrxrecon")
#: Parts of all patients to train on and to watch; the rest is left for a test.
TRAIN, WATCH = 0.70, 0.15
#: Names of complete k-space in CMRxRecon's files, by year; the single-coil one has no coil axis.
CMRX: Final = ("kspace_full", "kspace", "kspace_single_full")


class FormatError(Exception):
    """A folder or file is in none of the known layouts: see ``adapters`` for which they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """One file of complete k-space."""

    path: Path
    #: Whatever names the patient in this layout.
    patient: str
    slices: int
    #: Slice by number, complex64 (coil, ky, kx).
    read: Callable[[int], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a folder holds."""

    volumes: list[Volume]
    #: Files left out, and why.
    left_out: dict[str, str]


def part_of(patient: str) -> str:
    """``train``, ``watch`` or ``test``: always the same for the same patient, whatever else is there."""
    share = int(hashlib.sha256(patient.encode()).hexdigest()[:8], 16) / 2**32
    return "train" if share < TRAIN else "watch" if share < TRAIN + WATCH else "test"


def find(folder: Path, layout: str = "auto") -> Found:
    """Every file of complete k-space below ``folder``.

    Raises
    ------
    FormatError
        If there is none.
    """
    volumes, left_out = [], {}
    for file in sorted(path for path in folder.rglob("*") if path.suffix in (".h5", ".mrd", ".mat")):
        try:
            volumes.append(OPENERS[layout_of(file) if layout == "auto" else layout](file))
        except FormatError as error:
            left_out[str(file.relative_to(folder))] = str(error)
    if not volumes:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(left_out.items())[:5])
        raise FormatError(f"no complete k-space below {folder}{': ' if reasons else ''}{reasons}")
    return Found(volumes=volumes, left_out=left_out)


def layout_of(file: Path) -> str:
    """Which layout a file is in."""
    import h5py

    try:
        with h5py.File(file) as content:
            names = set(content)
            if "dataset" in names and "data" in content["dataset"]:
                return "ismrmrd"
    except OSError as error:
        raise FormatError("not an HDF5 file (MATLAB before v7.3 is not either)") from error
    if file.suffix == ".mat" and names & set(CMRX):
        return "cmrxrecon"
    if "kspace" in names:
        return "fastmri"
    raise FormatError(f"holds {', '.join(sorted(names)) or 'nothing'}: no known k-space")


def _fastmri(file: Path) -> Volume:
    """``kspace`` (slice, coil, readout, phase), without the coil axis in single-coil files."""
    import h5py

    with h5py.File(file) as content:
        if "mask" in content:
            raise FormatError("undersampled (it has a mask)")
        shape, patient = content["kspace"].shape, str(content.attrs.get("patient_id", file.stem))
        header = bytes(content["ismrmrd_header"][()]) if "ismrmrd_header" in content else b""
    kept = _recon_columns(header) or shape[-2]

    def read(number: int) -> Tensor:
        with h5py.File(file) as content:
            one = torch.from_numpy(np.asarray(content["kspace"][number], np.complex64))
        one = one if one.ndim == 3 else one[None]
        return without_oversampling(one.transpose(-1, -2), kept)

    return Volume(path=file, patient=patient, slices=shape[0], read=read)


def _recon_columns(header: bytes) -> int:
    """Points along the readout of the reconstructed image; 0 where the header does not say."""
    match = re.search(rb"<reconSpace>.*?<matrixSize>\s*<x>\s*(\d+)\s*</x>", header, re.DOTALL)
    return int(match[1]) if match else 0


def _cmrxrecon(file: Path) -> Volume:
    """MATLAB (nx, ny, coil, slice, phase), which HDF5 shows reversed, complex as a compound of real and imag."""
    import h5py

    with h5py.File(file) as content:
        name = next((one for one in CMRX if one in content), None)
        if name is None:
            raise FormatError("holds none of " + ", ".join(CMRX))
        axes = content[name].shape
    single = name == "kspace_single_full"
    if len(axes) != (4 if single else 5):
        raise FormatError(f"{name} has {len(axes)} axes")

    def read(number: int) -> Tensor:
        with h5py.File(file) as content:
            one = content[name][divmod(number, axes[1])]
        full = one["real"] + 1j * one["imag"] if one.dtype.names else one
        found = torch.from_numpy(np.asarray(full, np.complex64))
        return found[None] if single else found

    return Volume(path=file, patient=file.parent.name, slices=axes[0] * axes[1], read=read)


def _ismrmrd(file: Path) -> Volume:
    """Acquisitions in any order; images are parted by slice, phase, contrast, repetition and set, averages summed."""
    import h5py
    import ismrmrd

    if file.name.startswith("us_"):
        raise FormatError("undersampled (OCMR names it us_)")
    with h5py.File(file) as content:
        xml = bytes(content["dataset"]["xml"][0])
    encoding = ismrmrd.xsd.CreateFromDocument(xml).encoding[0]
    if encoding.trajectory.value != "cartesian":
        raise FormatError(f"{encoding.trajectory.value} trajectory")
    encoded, recon = encoding.encodedSpace, encoding.reconSpace
    columns = encoded.matrixSize.x
    kept = min(columns, round(columns * recon.fieldOfView_mm.x / encoded.fieldOfView_mm.x))
    keys = _images_of(file, encoded.matrixSize.y)

    def read(number: int) -> Tensor:
        return without_oversampling(_assemble(file, keys[number], encoding), kept)

    return Volume(path=file, patient=file.stem, slices=len(keys), read=read)


#: Flags of readouts that are no lines of an image: noise, calibration alone, navigation, phase correction, feedback,
#: dummy, surface coil (ISMRMRD, bit = n - 1).
NOT_IMAGE: Final = sum(1 << (n - 1) for n in (19, 20, 23, 24, 26, 27, 28, 29))
COUNTERS: Final = ("slice", "phase", "contrast", "repetition", "set")


def _heads(file: Path) -> Any:  # noqa: ANN401 - a structured array
    import h5py

    with h5py.File(file) as content:
        return content["dataset"]["data"]["head"]


def _images_of(file: Path, rows: int) -> list[tuple[tuple[int, ...], list[int]]]:
    """(counters, acquisitions) of every image; refuses a file that lacks lines."""
    lines: dict[tuple[int, ...], dict[int, list[int]]] = {}
    for number, head in enumerate(_heads(file)):
        if int(head["flags"]) & NOT_IMAGE:
            continue
        key = tuple(int(head["idx"][name]) for name in COUNTERS)
        lines.setdefault(key, {}).setdefault(int(head["idx"]["kspace_encode_step_1"]), []).append(number)
    if not lines:
        raise FormatError("holds no lines of an image")
    key, fewest = min(((key, len(found)) for key, found in lines.items()), key=lambda pair: pair[1])
    # partial Fourier and interpolated matrices leave an edge out; a gap within is undersampling
    present = sorted(lines[key])
    if fewest < 2 or present != list(range(present[0], present[-1] + 1)) or fewest < rows // 2:
        raise FormatError(f"undersampled: {fewest} of {rows} lines")
    return [(key, sorted(chain.from_iterable(found.values()))) for key, found in sorted(lines.items())]


def _assemble(file: Path, image: tuple[tuple[int, ...], list[int]], encoding: Any) -> Tensor:  # noqa: ANN401
    import h5py

    rows, columns = encoding.encodedSpace.matrixSize.y, encoding.encodedSpace.matrixSize.x
    limits = encoding.encodingLimits.kspace_encoding_step_1
    shift = rows // 2 - (limits.center if limits is not None else rows // 2)
    full: np.ndarray | None = None
    count = np.zeros(rows)
    with h5py.File(file) as content:
        for number in image[1]:
            one = content["dataset"]["data"][number]
            head = one["head"]
            coils, samples = int(head["active_channels"]), int(head["number_of_samples"])
            values = np.asarray(one["data"], np.float32).view(np.complex64).reshape(coils, samples)
            full = np.zeros((coils, rows, columns), np.complex64) if full is None else full
            row = int(head["idx"]["kspace_encode_step_1"]) + shift
            first = columns // 2 - int(head["center_sample"])  # an asymmetric echo begins later
            begin, end = max(0, first), min(columns, first + samples)
            if 0 <= row < rows:
                full[:, row, begin:end] += values[:, begin - first : end - first]
                count[row] += 1
    assert full is not None
    return torch.from_numpy(full / np.maximum(count, 1).astype(np.float32)[:, None])


def without_oversampling(kspace: Tensor, kept: int) -> Tensor:
    """(coil, ky, kx) of the central ``kept`` columns of the image."""
    columns = kspace.shape[-1]
    if kept >= columns:
        return kspace.contiguous()
    first = columns // 2 - kept // 2
    return fftc(ifftc(kspace, (-1,))[..., first : first + kept], (-1,))


OPENERS: Final[dict[str, Callable[[Path], Volume]]] = {
    "fastmri": _fastmri,
    "ismrmrd": _ismrmrd,
    "cmrxrecon": _cmrxrecon,
}


def parted(volumes: list[Volume], part: str) -> Iterator[Volume]:
    """The volumes of the patients of one part."""
    return (one for one in volumes if part_of(one.patient) == part)
