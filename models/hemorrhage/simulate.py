"""Simulate labelled head scans into a cache: ``python -m models.hemorrhage.simulate --heads 200``.

Every head is scanned four times, each time with another protocol and pose: twice without blood, twice with. A case is
the same on every machine for the same seed, and a command that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from models.hemorrhage import inputs
from models.hemorrhage.acquire import Scan
from models.hemorrhage.scene import make_base, make_scan

#: Scans of one head, and which of them bleed.
VARIANTS: Final = 4
#: Version of the simulator: a cache of another one is not read.
VERSION: Final = 2
#: Training heads count from 0; those that training looks at and the study head is fitted on, those of calibration and
#: those of the test from these seeds; frozen.
STUDY_SEED: Final = 500_000
CALIBRATION_SEED: Final = 500_020
TEST_SEED: Final = 700_000
#: The simulated image is larger than the work grid, so that the head finder has to find the head.
FIELD: Final = (208, 184)
#: Bits of ``Case.masks``.
CAVITY: Final = 1
VENTRICLE: Final = 2
LEFT: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One simulated scan on the work grid; arrays are (slice, row, column)."""

    #: [HU].
    hu: NDArray[np.int16]
    #: 0 none, 1..5 as ``detect.CLASSES``, 255 unclear.
    labels: NDArray[np.uint8]
    #: Bits ``CAVITY``, ``VENTRICLE``, ``LEFT``.
    masks: NDArray[np.uint8]
    #: As ``inputs.depth_of``.
    depth: NDArray[np.uint8]
    #: Distance below the vertex (slice,) [mm].
    height: NDArray[np.float32]


def bleeds_in(variant: int) -> bool:
    """Whether this variant of a head is a positive: exactly half are not."""
    return variant % 2 == 1


def to_case(seed: int, variant: int, base: tuple | None = None) -> Case | None:  # type: ignore[type-arg]
    """Scan ``variant`` of head ``seed`` on the work grid, as detection would see it."""
    scan = make_scan(base or make_base(seed), seed, variant, bleeds_in(variant), FIELD, inputs.WORK_MM)
    heights = scan.positions[:, 2]
    frame = inputs.find_frame(scan.hu, scan.spacing, scan.positions[:, 1::-1], heights)
    if frame is None:
        return None
    first = [
        round((frame.centre[a] - scan.positions[0, 1 - a]) / inputs.WORK_MM) - inputs.WORK_SIZE[a] // 2 for a in (0, 1)
    ]
    cut = [_crop(field, first, fill) for field, fill in ((scan.hu, -1000.0), (scan.labels, 0))]
    masks = CAVITY * scan.cavity + VENTRICLE * scan.ventricle + LEFT * scan.left
    hu = np.round(cut[0]).astype(np.int16)
    return Case(
        hu=hu,
        labels=cut[1],
        masks=_crop(masks.astype(np.uint8), first, 0),
        depth=inputs.depth_of(hu.astype(np.float32)),
        height=(frame.vertex - heights).astype(np.float32),
    )


def held_out_scan(seed: int, variant: int, base: tuple | None = None) -> Scan:  # type: ignore[type-arg]
    """Scan ``variant`` of a held-out head with finer pixels than the network's, as a scanner would send it.

    ``seed`` from ``TEST_SEED`` on; ImageOrientationPatient is (1, 0, 0, 0, 1, 0) in the frame of the positions.
    """
    size = (2 * FIELD[0], 2 * FIELD[1])
    return make_scan(base or make_base(seed), seed, variant, bleeds_in(variant), size, inputs.WORK_MM / 2)


def _crop(field: NDArray, first: list[int], fill: float) -> NDArray:  # type: ignore[type-arg]
    """Cut the work grid out of (slice, row, column), filling what lies outside."""
    out = np.full((len(field), *inputs.WORK_SIZE), fill, field.dtype)
    source, target = [], []
    for begin, size, have in zip(first, inputs.WORK_SIZE, field.shape[1:], strict=True):
        low, high = max(0, begin), min(have, begin + size)
        source.append(slice(low, high))
        target.append(slice(low - begin, high - begin))
    out[:, target[0], target[1]] = field[:, source[0], source[1]]
    return out


def case_file(folder: Path, seed: int, variant: int) -> Path:
    """Where a case lies."""
    return folder / f"v{VERSION}" / f"{seed}-{variant}.npy"


def store(case: Case, file: Path) -> None:
    """Write a case as one structured array, which can be read slice by slice."""
    record = np.dtype([("hu", "<i2"), ("labels", "u1"), ("masks", "u1"), ("depth", "u1")])
    array = np.empty(case.hu.shape, record)
    for name in record.names or ():
        array[name] = getattr(case, name)
    file.parent.mkdir(parents=True, exist_ok=True)
    np.save(file.with_suffix(".height.npy"), case.height)
    np.save(file.with_suffix(".new.npy"), array)
    file.with_suffix(".new.npy").replace(file)


def fetch(file: Path) -> Case:
    """Read a case; its arrays are views of the file."""
    array = np.load(file, mmap_mode="r")
    height = np.load(file.with_suffix(".height.npy"))
    return Case(hu=array["hu"], labels=array["labels"], masks=array["masks"], depth=array["depth"], height=height)


def simulate(folder: Path, first: int, heads: int) -> list[Path]:
    """Make the cases of ``heads`` heads from seed ``first`` that are not there yet; returns all their files."""
    begun, made, files = time.monotonic(), 0, []
    for index in range(heads):
        seed = first + index
        todo = [case_file(folder, seed, v) for v in range(VARIANTS)]
        files += todo
        if all(file.exists() for file in todo):
            continue
        base = make_base(seed)
        for variant, file in enumerate(todo):
            case = to_case(seed, variant, base)
            if case is None:
                raise RuntimeError(f"no head found in simulated case {seed}-{variant}")
            store(case, file)
        made += 1
        if made % 5 == 0:
            left = (heads - index - 1) * (time.monotonic() - begun) / made
            print(f"head {index + 1}/{heads} | {left / 60:.0f} min left", flush=True)
    return files


def main() -> None:
    """Read the command line and simulate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/hemorrhage/cases"))
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--heads", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    simulate(options.out, options.first, options.heads)


if __name__ == "__main__":
    main()
