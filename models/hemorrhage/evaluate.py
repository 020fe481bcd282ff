"""Measure the detector beside others on the same cases: ``python -m models.hemorrhage.evaluate``.

Prints tables and writes ``evaluation.json`` beside the weights. Held-out simulated heads are made once and kept in
``--cache``; real data and other people's weights are read from ``--data`` where the folder exists. `BlastCT`'s answers
are kept in the cache too: they do not depend on our weights.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from models.hemorrhage import bars, baselines, cases, intracranial, metrics, paint, simulate
from models.hemorrhage.cases import Labels, Mask, Study
from models.hemorrhage.detect import CLASSES, Detection, Detector, load

#: Where a checkout of the evaluation data usually lies, and where what can be made again is kept.
DATA: Final = Path("../shared/data")
CACHE: Final = Path("build/hemorrhage")
#: Operating points of the package that are reported.
POINTS: Final = ("triage", "second-read")
#: Simulated heads that blast-ct judges: with blood, and without. ml-ct 4.2 asks for 20 and 10, which take it about
#: 20 minutes of one core (``--judged 20 10``).
JUDGED: Final = (8, 1)
#: Brain without its fluid lies above [HU].
BRAIN_LEAST_HU: Final = 20.0
#: How far beyond the blood blast-ct is asked [mm].
MARGIN_MM: Final = 12.0

Table = list[dict[str, Any]]


def detect(detector: Detector, study: Study) -> tuple[Detection, float]:
    """The detector's answer and its CPU seconds."""
    begun = time.process_time()
    found = detector.detect(study.hu, study.pixel_spacing, study.positions, study.orientation)
    return found, time.process_time() - begun


def judged(study: Study, found: Labels) -> tuple[Labels, Labels]:
    """Truth and answer without the voxels that nobody can call."""
    truth = np.zeros(study.hu.shape, np.uint8) if study.truth is None else study.truth
    if study.ignore is None:
        return truth, found
    return np.where(study.ignore, 0, truth).astype(np.uint8), np.where(study.ignore, 0, found).astype(np.uint8)


def row_of(study: Study, detection: Detection, seconds: float, points: dict[str, float]) -> dict[str, Any]:
    """Everything that is measured of one study."""
    truth, found = judged(study, detection.labels)
    box = _box(truth, found)
    truth, found = truth[:, *box], found[:, *box]
    blood, seen = truth > 0, found > 0
    parts = metrics.components(seen)
    sizes = metrics.component_ml(parts, study.voxel_ml)
    hit = np.unique(parts[blood])
    false = np.setdiff1d(np.arange(1, len(sizes)), hit)
    row: dict[str, Any] = {
        "group": study.group,
        "name": study.name,
        "truth_ml": study.volume_ml(blood),
        "found_ml": study.volume_ml(seen),
        "dice": metrics.dice(blood, seen),
        "component_dice": metrics.component_dice(blood, seen),
        "false_components": len(false),
        "false_ml": float(sizes[false].sum()),
        "negative": not blood.any() and (study.ignore is None or not study.ignore.any()),
        "score": float(detection.study["any"]),
        "cpu_s": seconds,
        "note": detection.confidence_note,
        "shift_mm": detection.midline_shift_mm,
        "true_shift_mm": study.midline_shift_mm,
        "lesions": metrics.lesions(truth, found, study.voxel_ml),
        "scores": {name: float(detection.study[name]) for name in CLASSES},
        "flagged": {point: bool(detection.study["any"] >= threshold) for point, threshold in points.items()},
        "classes": {},
    }
    if blood.any():
        row["volume_similarity"] = metrics.volume_similarity(row["truth_ml"], row["found_ml"])
        step = float(np.median(study.steps_mm))
        row["hd95_mm"] = metrics.hd95_mm(blood, seen, (step, *study.pixel_spacing))
    for label, name in enumerate(CLASSES, start=1):
        own, got = study.volume_ml(truth == label), study.volume_ml(found == label)
        if own or got:
            row["classes"][name] = {
                "truth_ml": own,
                "found_ml": got,
                "dice": metrics.dice(truth == label, found == label),
            }
    return row


def _box(*masks: NDArray[np.uint8]) -> tuple[slice, slice]:
    """Rows and columns that hold everything in ``masks`` (slice, row, column)."""
    flat = np.any([mask.any(axis=0) for mask in masks], axis=0)
    if not flat.any():
        return slice(0, 1), slice(0, 1)
    rows, columns = (np.flatnonzero(flat.any(axis=axis)) for axis in (1, 0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def measure(detector: Detector, studies: Iterable[Study]) -> Table:
    """A row per study."""
    points = {name: float(detector.package.operating_points[name]["any"]) for name in POINTS}
    rows: Table = []
    for study in studies:
        detection, seconds = detect(detector, study)
        rows.append(row_of(study, detection, seconds, points))
        print(
            f"{study.group}: {study.name}: {rows[-1]['truth_ml']:.1f} mL, found {rows[-1]['found_ml']:.1f} mL, "
            f"Dice {rows[-1]['dice']:.2f}, false {rows[-1]['false_ml']:.1f} mL, score {rows[-1]['score']:.2f}",
            flush=True,
        )
    return rows


def negatives(data: Path) -> Iterator[Study]:
    """Real series without blood: the head and changed copies of it, the phantom, the abdomen."""
    head = cases.real(data, "ct-head-ge", "real negative")
    if head is not None:
        yield head
        yield from paint.negatives(paint.Head.of(head))
    for name, group in (("std-brain-5mm", "head phantom"), ("ct-body-siemens", "abdomen")):
        study = cases.real(data, name, group)
        if study is not None:
            yield study


def painted(data: Path) -> Iterator[Study]:
    """The real head with our own bleeds."""
    head = cases.real(data, "ct-head-ge")
    if head is not None:
        yield from paint.every(paint.Head.of(head))


def some_painted(data: Path) -> Iterator[Study]:
    """One painted bleed of each kind and the small one, out of `painted`: what the others are asked about."""
    study = cases.real(data, "ct-head-ge")
    if study is not None:
        head = paint.Head.of(study)
        yield paint.intraparenchymal(head, 5.2, 0)
        yield paint.intraparenchymal(head, 15.2, 0)
        yield paint.extra_axial(head, paint.SUBDURAL, 8.0, 55.0, 0)
        yield paint.extra_axial(head, paint.EPIDURAL, 14.0, 30.0, 0)
        yield paint.intraventricular(head, 0.3, 1)
        yield paint.subarachnoid(head, 22.0, 0)


def thresholded(studies: Iterable[Study]) -> Table:
    """The thresholding baseline on the same studies."""
    rows: Table = []
    for study in studies:
        inside = intracranial.mask(study.hu, study.pixel_spacing)
        truth, found = judged(study, baselines.threshold(study, inside).astype(np.uint8))
        rows.append(_overlap(study, truth > 0, found > 0))
    return rows


def _overlap(study: Study, blood: Mask, seen: Mask) -> dict[str, Any]:
    return {
        "group": study.group,
        "name": study.name,
        "truth_ml": study.volume_ml(blood),
        "found_ml": study.volume_ml(seen),
        "false_ml": study.volume_ml(seen & ~blood),
        "dice": metrics.dice(blood, seen),
        "component_dice": metrics.component_dice(blood, seen),
    }


class Judge:
    """blast-ct with its answers kept: a study's answer is the same whatever our weights are."""

    def __init__(self, data: Path, cache: Path) -> None:
        files = sorted(data.glob("**/weights-blastct-v1/model_1.pt"))
        self.file = files[0] if files else None
        self.cache = cache / "blastct"
        self.net: baselines.BlastCT | None = None

    def answer(self, study: Study, region: Mask) -> Labels:
        """Classes 0..4 where ``region``."""
        key = hashlib.sha256(study.hu.tobytes() + region.tobytes() + study.positions.tobytes()).hexdigest()[:24]
        kept = self.cache / f"{key}.npz"
        if not kept.exists():
            if self.net is None:
                assert self.file is not None
                self.net = baselines.BlastCT(self.file)
            found = self.net(study, region)
            kept.parent.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(kept, labels=found)
        with np.load(kept) as stored:
            labels: Labels = stored["labels"]
        return labels

    def rows(self, studies: Iterable[Study]) -> Table:
        """Its overlap with the blood of every study, asked near the blood; in the whole skull where there is none."""
        rows: Table = []
        for study in studies if self.file is not None else ():
            truth, _ = judged(study, np.zeros(study.hu.shape, np.uint8))
            inside = intracranial.mask(study.hu, study.pixel_spacing)
            region = inside & _around(truth > 0, study) if truth.any() else inside
            begun = time.process_time()
            raw = self.answer(study, region)
            _, found = judged(study, raw)
            row = _overlap(study, truth > 0, np.isin(found, (baselines.IPH, baselines.EXTRA_AXIAL, baselines.IVH)))
            row |= {
                "kind": CLASSES[int(np.bincount(truth[truth > 0]).argmax()) - 1] if truth.any() else "",
                "inside_dice": metrics.dice(truth >= 4, np.isin(found, (baselines.IPH, baselines.IVH))),
                "extra_axial_dice": metrics.dice(np.isin(truth, (1, 2, 3)), found == baselines.EXTRA_AXIAL),
                "oedema_ml": study.volume_ml(raw == baselines.OEDEMA),
                "contrast_hu": _contrast_hu(study, truth > 0, inside),
            }
            rows.append(row)
            print(f"blast-ct: {study.name}: Dice {row['dice']:.2f}, {time.process_time() - begun:.0f} s", flush=True)
        return rows


def _contrast_hu(study: Study, blood: Mask, inside: Mask) -> float | None:
    """How much brighter the blood is than the rest of the skull's content, by medians; None without blood."""
    rest = inside & ~blood & (study.hu > BRAIN_LEAST_HU)
    return float(np.median(study.hu[blood]) - np.median(study.hu[rest])) if blood.any() else None


def _around(blood: Mask, study: Study) -> Mask:
    """The box round the blood with a margin of `MARGIN_MM`."""
    box = np.zeros(blood.shape, bool)
    where = np.argwhere(blood)
    margin = np.ceil(MARGIN_MM / np.array([float(np.median(study.steps_mm)), *study.pixel_spacing])).astype(int)
    low, high = np.maximum(where.min(axis=0) - margin, 0), where.max(axis=0) + margin + 1
    box[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    return box


def one_kind(studies: Callable[[], Iterable[Study]], count: Sequence[int]) -> Iterator[Study]:
    """The first ``count`` studies with blood that can be seen, then those without any."""
    for wanted, positive in zip(count, (True, False), strict=True):
        left = wanted
        for study in studies() if wanted else ():
            volume = study.volume_ml(np.asarray(study.truth) > 0)
            if left and (volume >= bars.VISIBLE_ML if positive else volume == 0.0):
                left -= 1
                yield study
            if not left:
                break


def show(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print ``rows`` as a markdown table."""
    if not rows:
        return
    keys = [key for key in rows[0] if not isinstance(rows[0][key], dict | list)]
    print(f"\n{title}\n\n| " + " | ".join(keys) + " |\n|" + " --- |" * len(keys))
    for row in rows:
        cells = [f"{v:.3f}" if isinstance(v, float) else str(v) for v in (row.get(key, "") for key in keys)]
        print("| " + " | ".join(cells) + " |")


def about(detector: Detector, count: int) -> dict[str, Any]:
    """Which weights were measured on which cases."""
    package = detector.package
    return {
        "version": package.version,
        "weights_sha256": package.sha256,
        "postprocessing": dict(package.postprocessing),
        "operating_points": {name: dict(package.operating_points[name]) for name in POINTS},
        "simulator_version": simulate.VERSION,
        "synthetic_seeds": [simulate.TEST_SEED, simulate.TEST_SEED + (count - 1) // 2],
        "synthetic_studies": count,
    }


def main() -> None:
    """Read the command line, measure, print and keep."""
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=here, help="folder with manifest and weights")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of evaluation data; skipped where absent")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of what can be made again")
    parser.add_argument("--out", type=Path, default=here / "evaluation.json")
    parser.add_argument("--cases", type=int, default=200, help="simulated studies, half of them negative")
    parser.add_argument("--judged", type=int, nargs=2, default=JUDGED, metavar=("POSITIVE", "NEGATIVE"))
    parser.add_argument("--only", nargs="+", metavar="TABLE", help="measure these tables, keep the others of --out")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    detector, data = load(arguments.weights, torch.device("cpu")), arguments.data
    judge = Judge(data, arguments.cache)

    def synthetic() -> Iterator[Study]:
        return cases.synthetic(arguments.cases, arguments.cache / "test")

    steps: dict[str, Callable[[], Any]] = {
        "about": lambda: about(detector, arguments.cases),
        "negatives": lambda: measure(detector, negatives(data)),
        "painted": lambda: measure(detector, painted(data)),
        "synthetic": lambda: measure(detector, synthetic()),
        "threshold_real": lambda: thresholded(chain(islice(negatives(data), 1), some_painted(data))),
        "threshold_synthetic": lambda: thresholded(one_kind(synthetic, arguments.judged)),
        "blastct_real": lambda: judge.rows(chain(islice(_labelled(negatives(data)), 1), some_painted(data))),
        "blastct_synthetic": lambda: judge.rows(one_kind(synthetic, arguments.judged)),
    }
    kept = json.loads(arguments.out.read_text()) if arguments.only and arguments.out.exists() else {}
    found = kept | {name: step() for name, step in steps.items() if not arguments.only or name in arguments.only}
    found["summary"] = bars.summary(found)
    found["bars"] = bars.table(found["summary"])
    for name, rows in found.items():
        show(name, rows if isinstance(rows, list) else [rows])
    arguments.out.write_text(json.dumps(found, indent=1, default=_plain) + "\n")
    print(f"\nwrote {arguments.out}")


def _labelled(studies: Iterable[Study]) -> Iterator[Study]:
    for study in studies:
        yield study if study.truth is not None else replace(study, truth=np.zeros(study.hu.shape, np.uint8))


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(type(value).__name__)


if __name__ == "__main__":
    main()
