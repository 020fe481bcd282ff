"""A trained model folder of nnU-Net v2, run by the nnunetv2 package in a process of its own.

The checkpoints are pickles: loading them runs what is in them. That happens in nnU-Net's process alone, with the rights
of the node's user; import only a model from somebody whose program you would also install. Stacks travel as NIfTI files
in a folder that is deleted afterwards (Isensee 2021, Nat Methods 18:203; nnU-Net v2's documentation of its commands).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import SimpleITK
import torch
from numpy.typing import NDArray

from models.cardiac import grid, localise
from models.cardiac.foreign import Description, ForeignModelError
from models.cardiac.net import CLASSES, POSITIONS
from models.cardiac.segment import WORK, Seen

COMMAND: Final = "nnUNetv2_predict_from_modelfolder"
CHECKPOINT: Final = "checkpoint_final.pth"
#: Longest run on one study [s].
LONGEST_S: Final = 1800.0
_ENDINGS: Final = (".nii.gz", ".nrrd", ".mha")


def parts(folder: Path) -> list[Path]:
    """The files of a model folder that are needed; raises `ForeignModelError` with those that are missing."""
    needed = [folder / "dataset.json", folder / "plans.json"]
    folds = sorted(folder.glob(f"fold_*/{CHECKPOINT}"))
    missing = [path.name for path in needed if not path.is_file()] + ([] if folds else [f"fold_*/{CHECKPOINT}"])
    if missing:
        raise ForeignModelError(f"{folder.name} is no model folder of nnU-Net v2: {', '.join(missing)} missing")
    return [*needed, *folds]


class NnUNet:
    """Segments stacks as `segment.Segmenter` does, through another process."""

    def __init__(self, folder: Path, described: Description, device: torch.device) -> None:
        self.folder, self.described, self.device = folder, described, device
        files = parts(folder)
        about: dict[str, Any] = json.loads(files[0].read_text(encoding="utf-8"))
        self.ending = str(about.get("file_ending", ".nii.gz"))
        if self.ending not in _ENDINGS:
            raise ForeignModelError(f"{described.name} wants {self.ending} files; {', '.join(_ENDINGS)} are written")
        if len(about.get("channel_names", {"0": "MR"})) != 1:
            raise ForeignModelError(f"{described.name} wants several channels; a cine has one")
        self.folds = [path.parent.name.removeprefix("fold_") for path in files[2:]]
        plans = json.loads(files[1].read_text(encoding="utf-8"))
        spacing = plans.get("original_median_spacing_after_transp") or [8.0]
        self.slice_mm = float(spacing[0])  # the network resamples in the plane only where it is two-dimensional
        self.command = _found(described.command or COMMAND)

    def look(self, images: NDArray[np.float32], spacing: tuple[float, float]) -> Seen:
        """See (phase, slice, row, column) images with (row, column) ``spacing`` [mm]."""
        phases, slices, rows, columns = images.shape
        with tempfile.TemporaryDirectory(prefix="nnunet-") as name:
            given, made = Path(name, "in"), Path(name, "out")
            given.mkdir()
            for p, stack in enumerate(images):
                image = SimpleITK.GetImageFromArray(stack)
                image.SetSpacing((spacing[1], spacing[0], self.slice_mm))
                SimpleITK.WriteImage(image, str(given / f"phase{p:03d}_0000{self.ending}"))
            self._run(given, made)
            called = np.stack(
                [self._read(made / f"phase{p:03d}{self.ending}", images.shape[1:]) for p in range(phases)]
            )
        centre = localise.centre(images, spacing)
        axes = grid.axes_of((rows, columns), spacing, centre)
        through = [grid.weights(WORK.places, axis) for axis in axes]
        hot = torch.nn.functional.one_hot(torch.from_numpy(called.astype(np.int64)), CLASSES).movedim(-1, 2).float()
        mean = grid.resample(hot, *through)
        mean[:, :, 0] = 1.0 - mean[:, :, 1:].sum(2)
        return Seen(
            centre=centre,
            shape=(rows, columns),
            spacing=spacing,
            mean=mean.numpy(),
            views=mean.argmax(2).numpy().astype(np.uint8)[None],
            positions=np.zeros((phases, slices, POSITIONS), np.float32),
        )

    def _run(self, given: Path, made: Path) -> None:
        words = [self.command, "-i", str(given), "-o", str(made), "-m", str(self.folder), "-f", *self.folds]
        words += ["-chk", CHECKPOINT, "-device", self.device.type, "--disable_progress_bar"]
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=LONGEST_S, check=False)  # noqa: S603
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ForeignModelError(f"nnU-Net did not run: {type(error).__name__}") from error
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise ForeignModelError(f"nnU-Net ended with {done.returncode}: {said[-1][:300] if said else 'no word'}")

    def _read(self, path: Path, shape: Sequence[int]) -> NDArray[np.uint8]:
        if not path.is_file():
            raise ForeignModelError(f"nnU-Net wrote no {path.name}")
        theirs = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
        if theirs.shape != tuple(shape):
            raise ForeignModelError(f"nnU-Net answered {theirs.shape} to {tuple(shape)}")
        out = np.zeros(theirs.shape, np.uint8)
        for index, label in self.described.labels.items():
            out[theirs == index] = label
        return out


def _found(command: str) -> str:
    """The whole path of nnU-Net's command."""
    beside = Path(sys.executable).parent / command
    found = shutil.which(command) or (str(beside) if beside.is_file() else None)
    if found is None:
        raise ForeignModelError(
            f"{command} is not installed: pip install nnunetv2 (an environment of its own will do; then name the "
            "program's path as `command` in the description)"
        )
    return found
