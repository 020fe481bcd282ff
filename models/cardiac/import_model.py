"""Import a network of somebody else: ``python -m models.cardiac.import_model FILE --describe model.yaml --out DIR``.

FILE is an ONNX, torch.export or TorchScript file, or a model folder of nnU-Net v2; what the description must say is in
``foreign``. The network segments simulated stacks first: one that finds no left ventricle in them is refused. The
folder that is written is what a pipeline's ``weights`` may point at::

    pipelines:
      cardiac: {class: "pipelines.cardiac:CardiacCine", weights: DIR}

**This runs the model.** Import only what you would also install.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import yaml

from models.cardiac import bundle, foreign, nnunet, packages, shapes
from models.cardiac.foreign import ForeignModelError
from models.cardiac.simulate import TEST_SEED, Stack, simulate_stack

#: Stacks of the self-test, and the Dice of the left cavity that they must reach (ml-mr 4).
SELF_TEST_SEEDS: Final = (TEST_SEED + 900, TEST_SEED + 901)
LEAST_DICE: Final = 0.5


def self_test_stack(seed: int) -> Stack:
    """One small stack of the self-test."""
    return simulate_stack(seed, phases=4, pixels=96, pixel_mm=2.0, step_mm=14.0)


def self_test(segmenter: packages.Looks) -> float:
    """Dice of the left cavity over simulated stacks, all phases."""
    both = sizes = 0.0
    for seed in SELF_TEST_SEEDS:
        made = self_test_stack(seed)
        seen = segmenter.look(made.images, (made.pixel_mm, made.pixel_mm))
        for phase in range(len(made.images)):
            p, corner = seen.native(phase)
            called = seen.whole(p.argmax(1).numpy().astype(np.uint8), corner) == shapes.LV
            truth = made.labels[phase] == shapes.LV
            both += 2.0 * float((called & truth).sum())
            sizes += float(called.sum() + truth.sum())
    return both / sizes


def import_model(model: Path, given: dict[str, Any], out: Path, device: torch.device) -> float:
    """Write the package ``out`` of a described network; returns the Dice of its self-test.

    Raises
    ------
    ForeignModelError
        The description, the file or the self-test does not hold; nothing is written.
    """
    described = foreign.describe(given)
    if out.exists():
        raise ForeignModelError(f"{out} exists; name a new folder")
    if not model.exists():
        raise ForeignModelError(f"{model} does not exist")
    files = nnunet.parts(model) if described.format == "nnunet" else [model]
    root = model if described.format == "nnunet" else model.parent
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as name:
        folder = Path(name) / "package"
        listed = {}
        for file in files:
            inside = file.relative_to(root)
            (folder / inside).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / inside)
            listed[str(inside)] = {"sha256": foreign.digest(folder / inside)}
        manifest = bundle.STATEMENT | {
            "name": described.name, "version": f"imported.{next(iter(listed.values()))['sha256'][:8]}",
            "licence": described.licence, "training_data": described.training_data, "files": listed, "foreign": given,
        }  # fmt: skip
        _write(folder, manifest)
        _, segmenter = packages.load(folder, device)
        dice = self_test(segmenter)
        if dice <= LEAST_DICE:
            raise ForeignModelError(
                f"self-test: Dice of the left cavity on simulated stacks is {dice:.2f}, not above {LEAST_DICE}: are "
                "labels, axes, normalisation and pixel_mm those that it was trained with?"
            )
        _write(
            folder, manifest | {"metrics": {"self_test": {"lv_dice": round(dice, 4), "stacks": len(SELF_TEST_SEEDS)}}}
        )
        folder.rename(out)
    return dice


def _write(folder: Path, manifest: dict[str, Any]) -> None:
    (folder / bundle.MANIFEST).write_text(yaml.safe_dump(manifest, sort_keys=False, width=110))


def main() -> None:
    """Read the command line and import."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a file, or a model folder of nnU-Net v2")
    parser.add_argument("--describe", type=Path, required=True, help="YAML: see models/cardiac/foreign.py")
    parser.add_argument("--out", type=Path, required=True, help="folder that is written")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    given = yaml.safe_load(options.describe.read_text(encoding="utf-8"))
    if not isinstance(given, dict):
        sys.exit(f"{options.describe} is no mapping")
    try:
        dice = import_model(options.model, given, options.out, torch.device(options.device))
    except ForeignModelError as error:
        sys.exit(f"refused: {error}")
    print(f"imported into {options.out}; Dice of the left cavity on simulated stacks {dice:.2f}")


if __name__ == "__main__":
    main()
