"""Networks that somebody else trained: what one file says of them, and how they see slices like ours do.

A description (YAML) says everything that a file of weights does not::

    name: my-cine-net
    licence: CC-BY-4.0
    training_data: 400 patients of our hospital, 1.5 T and 3 T
    format: onnx                # onnx, torch-export (.pt2), torchscript, or nnunet (a model folder of nnU-Net v2)
    pixels: 224                 # square that it sees, and the edge of its pixels [mm]; not for nnunet
    pixel_mm: 1.25
    normalisation: zscore       # percentile (0 to 1.2 between the 1st and 99th), unit (0 to 1), zscore (of the former)
    axes: NCHW                  # or NHWC
    output: logits              # or probabilities
    batch: 0                    # slices at once; 0: any number
    labels: {0: background, 1: lv, 2: myo, 3: rv}

**Loading a model runs what is in it.** TorchScript and torch.export archives are programs, and nnU-Net's checkpoints
are pickles: import what you would also install. Bare pickles (``.pth``) are never loaded in this process; nnU-Net's are
loaded by the nnunetv2 package in a process of its own. The files' digests are kept, so that what runs is what was
imported.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from models.cardiac.display import TOP
from models.cardiac.net import CLASSES, POSITIONS, Logits

LABELS: Final = {"background": 0, "rv": 1, "myo": 2, "lv": 3}
FORMATS: Final = ("onnx", "torch-export", "torchscript", "nnunet")
_CHOICES: Final = {
    "format": FORMATS,
    "normalisation": ("percentile", "unit", "zscore"),
    "axes": ("NCHW", "NHWC"),
    "output": ("logits", "probabilities"),
}


class ForeignModelError(Exception):
    """A model cannot be imported or loaded; the message says what is wrong with it and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a person says of a network."""

    name: str
    licence: str
    training_data: str
    format: str
    #: Our label by index of theirs.
    labels: Mapping[int, int]
    pixels: int = 0
    pixel_mm: float = 0.0
    normalisation: str = "percentile"
    axes: str = "NCHW"
    output: str = "logits"
    batch: int = 0
    #: nnU-Net's ``nnUNetv2_predict_from_modelfolder``, if it is not on the path.
    command: str = ""


def describe(given: Mapping[str, Any]) -> Description:
    """Read a description; raises `ForeignModelError` that names everything wrong at once."""
    known = {one.name for one in fields(Description)}
    faults = [f"unknown key {key!r}" for key in given if key not in known]
    required = ("name", "licence", "training_data", "format", "labels")
    needed = required if given.get("format") == "nnunet" else (*required, "pixels", "pixel_mm")
    faults += [f"{key} is missing" for key in needed if not given.get(key)]
    for key, allowed in _CHOICES.items():
        if key in given and given[key] not in allowed:
            faults.append(f"{key} is {given[key]!r}, not one of {', '.join(allowed)}")
    labels = given.get("labels")
    named: dict[int, int] = {}
    if isinstance(labels, Mapping):
        faults += [
            f"label {value!r} is none of {', '.join(LABELS)}" for value in labels.values() if value not in LABELS
        ]
        named = {int(key): LABELS[value] for key, value in labels.items() if value in LABELS}
        faults += [f"no label is {name!r}" for name in ("lv", "myo") if LABELS[name] not in named.values()]
    elif labels is not None:
        faults.append("labels must map an index to a name")
    for key in ("pixels", "pixel_mm", "batch"):
        if key in given and (not isinstance(given[key], int | float) or given[key] < 0):
            faults.append(f"{key} must be a number of 0 or more")
    if faults:
        raise ForeignModelError(f"the description is not complete: {'; '.join(faults)}")
    return Description(**{**given, "labels": named})


class ForeignNet:
    """A foreign network that sees slices, and says of them, as ours."""

    def __init__(self, run: Callable[[Tensor], Tensor], described: Description) -> None:
        self.run, self.described = run, described

    def __call__(self, x: Tensor) -> Logits:
        """(slice, 1, row, column) of 0 to ``TOP`` to logits of our classes; of positions it knows nothing."""
        d = self.described
        given = _scaled(x.float(), d.normalisation).contiguous(memory_format=torch.contiguous_format)
        size = d.batch or len(given)
        with torch.autocast(x.device.type, enabled=False):
            parts = [self._one(part, size) for part in torch.split(given, size)]
        p = torch.cat(parts)
        p = p.softmax(1) if d.output == "logits" else p
        ours = torch.zeros(len(p), CLASSES, *p.shape[2:], device=p.device)
        for theirs, label in d.labels.items():
            ours[:, label] += p[:, theirs]
        return Logits(ours.clamp_min(1e-6).log(), torch.zeros(len(p), POSITIONS, device=p.device))

    def _one(self, part: Tensor, size: int) -> Tensor:
        d, count = self.described, len(part)
        if d.batch and count < size:  # an archive of a fixed size: fill the last batch up
            part = torch.cat((part, part[-1:].expand(size - count, -1, -1, -1)))
        out = self.run(part.movedim(1, -1).contiguous() if d.axes == "NHWC" else part)
        out = (out.movedim(-1, 1) if d.axes == "NHWC" else out).float()
        wanted = (len(part), max(d.labels) + 1, *part.shape[2:])
        if out.ndim != 4 or out.shape[1] < wanted[1] or (len(out), *out.shape[2:]) != (wanted[0], *wanted[2:]):
            raise ForeignModelError(f"{d.name} answers {tuple(out.shape)} to {tuple(part.shape)}; wanted {wanted}")
        return out[:count]


def _scaled(x: Tensor, how: str) -> Tensor:
    """Slices of 0 to ``TOP`` on another scale, each for itself."""
    if how == "percentile":
        return x
    if how == "unit":
        return x / TOP
    return (x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True).clamp_min(1e-6)


def net_of(file: Path, described: Description, device: torch.device) -> ForeignNet:
    """The network of one file, ready on ``device``."""
    load = {"onnx": _onnx, "torchscript": _torchscript, "torch-export": _exported}[described.format]
    return ForeignNet(load(file, device), described)


def _onnx(file: Path, device: torch.device) -> Callable[[Tensor], Tensor]:
    try:
        import onnxruntime  # an extra: most sites import nothing
    except ImportError as error:
        raise ForeignModelError("ONNX models need onnxruntime: pip install 'dicomnode[onnx]'") from error
    wanted = ["CUDAExecutionProvider", "CPUExecutionProvider"] if device.type == "cuda" else ["CPUExecutionProvider"]
    there = [name for name in wanted if name in onnxruntime.get_available_providers()]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=there)
    except Exception as error:  # its own exceptions share no base but this one
        raise ForeignModelError(f"{file.name} does not load as ONNX: {str(error)[:200]}") from error
    name = session.get_inputs()[0].name

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(np.asarray(session.run(None, {name: x.cpu().numpy()})[0])).to(x.device)

    return run


def _torchscript(file: Path, device: torch.device) -> Callable[[Tensor], Tensor]:
    _require_archive(file, "/code/", "TorchScript")
    return torch.jit.load(str(file), map_location=device).eval()  # type: ignore[no-untyped-call]


def _exported(file: Path, device: torch.device) -> Callable[[Tensor], Tensor]:
    _require_archive(file, "/archive_format", "torch.export")
    return torch.export.load(str(file)).module().to(device)


def _require_archive(file: Path, part: str, what: str) -> None:
    """Refuse what is no such archive before torch opens it: a bare pickle would run."""
    names = zipfile.ZipFile(file).namelist() if zipfile.is_zipfile(file) else []
    if not any(part in f"/{name}" for name in names):
        raise ForeignModelError(f"{file.name} is no {what} archive; bare pickled checkpoints are never loaded")


def digest(file: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()
