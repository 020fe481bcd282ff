"""The study head: fit it on slice findings of simulated studies, calibrate it, and choose operating points."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from models.hemorrhage import inputs, lesion
from models.hemorrhage.bundle import POSTPROCESSING, Package
from models.hemorrhage.detect import CLASSES, Detector
from models.hemorrhage.net import CLASS_LOGITS, FINDINGS, Networks
from models.hemorrhage.placing import spacings
from models.hemorrhage.postprocess import components
from models.hemorrhage.simulate import VENTRICLE, Case, fetch

#: The head learns that a study shows a class from this visible volume on [mL], and its score says so from the second on
#: (ml-ct 4.2); below it, but above nothing, a study counts neither way.
SHOWN_ML: Final = 0.3
SCORED_ML: Final = 1.0
#: Passes over the cases that the head is fitted on.
EPOCHS: Final = 40
#: Lesions to learn their classes from are at least this large [mL]; steps, weight decay and noise of that fit.
LESION_ML: Final = 0.2
LESION_STEPS: Final = 400
LESION_DECAY: Final = 3e-2
LESION_NOISE: Final = 0.35
#: What the operating points ask for on calibration heads: sensitivity at a least specificity (ml-ct 4.2), and false
#: positives per study (ml-ct 1.3).
TRIAGE_SENSITIVITY: Final = 0.97
TRIAGE_SPECIFICITY: Final = 0.90
SECOND_READ_FALSE: Final = 0.03


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """What a manifest and a log say about the study head."""

    #: Temperature, bias and operating points by finding.
    calibration: dict[str, Any]
    log: dict[str, Any]


def volumes_ml(case: Case) -> NDArray[np.float64]:
    """Visible volume of each class (5,) [mL]."""
    area = np.stack([(case.labels == value).sum((1, 2)) for value in range(1, CLASS_LOGITS)])
    return (area * spacings(case.height)).sum(1) * inputs.WORK_MM**2 / 1000.0


def features_of(detector: Detector, case: Case) -> Tensor:
    """Features of every slice of a case (slice, FEATURES), made as detection makes them."""
    depth_mm = case.height.astype(np.float64)
    work, labels, _ = detector.examine(np.array(case.hu).astype(np.float32), depth_mm, spacings(case.height))
    return detector.features(work, labels, depth_mm)


def _collect(detector: Detector, files: list[Path], least_ml: float) -> tuple[list[Tensor], Tensor, Tensor]:
    """Features, truth and validity (study, FINDINGS) of all cases; ``least_ml`` of blood make a positive."""
    features, truth, valid = [], [], []
    for number, file in enumerate(files):
        case = fetch(file)
        features.append(features_of(detector, case))
        volume = volumes_ml(case)
        volume = np.concatenate(([volume.sum()], volume))
        truth.append(volume >= least_ml)
        valid.append((volume >= least_ml) | (volume == 0))
        if (number + 1) % 20 == 0:
            print(f"study {number + 1}/{len(files)}", flush=True)
    return features, torch.tensor(np.array(truth)).float(), torch.tensor(np.array(valid)).float()


def _provisional(networks: Networks, device: torch.device) -> Detector:
    """A detector with the first post-processing and no calibration."""
    names = ("any", *CLASSES)
    neutral = {"temperature": dict.fromkeys(names, 1.0), "bias": dict.fromkeys(names, 0.0)}
    package = Package(
        name="",
        version="",
        sha256="",
        operating_points={},
        calibration=neutral,
        postprocessing=POSTPROCESSING,
        manifest={},
    )
    return Detector(package, networks, device)


def _logits(networks: Networks, features: list[Tensor]) -> Tensor:
    with torch.no_grad():
        return torch.cat([networks.study(part[None]) for part in features])


def auc(score: NDArray[np.floating], truth: NDArray[np.bool_]) -> float:
    """Area under the ROC curve: the share of (positive, negative) pairs in the right order."""
    positive, negative = score[truth], score[~truth]
    if not len(positive) or not len(negative):
        return float("nan")
    wins = (positive[:, None] > negative[None, :]).mean() + 0.5 * (positive[:, None] == negative[None, :]).mean()
    return float(wins)


def calibration_error(probability: NDArray[np.floating], truth: NDArray[np.bool_], bins: int = 10) -> float:
    """Expected calibration error over equal-width bins."""
    place = np.clip((probability * bins).astype(int), 0, bins - 1)
    error = 0.0
    for k in range(bins):
        mine = place == k
        if mine.any():
            error += mine.mean() * abs(float(probability[mine].mean()) - float(truth[mine].mean()))
    return float(error)


def _scale(logits: Tensor, truth: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Temperature and bias of every finding by maximum likelihood, held near 1 and 0 by a weak prior."""
    sharp, bias = torch.zeros(FINDINGS, requires_grad=True), torch.zeros(FINDINGS, requires_grad=True)
    optimiser = torch.optim.LBFGS([sharp, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        scaled = logits * sharp.exp() + bias
        value = (functional.binary_cross_entropy_with_logits(scaled, truth, reduction="none") * valid).sum(0).sum()
        value = value + 0.5 * (sharp**2).sum() + 0.1 * (bias**2).sum()
        value.backward()
        return value

    optimiser.step(loss)
    return torch.exp(-sharp).detach(), bias.detach()


def _operating_points(probability: NDArray[np.floating], truth: NDArray[np.bool_]) -> dict[str, float]:
    """Thresholds for one finding by the two rules.

    Triage finds the share of the positives it is asked for, but not at any price: blood that nobody can see scores like
    none, and a threshold among the negatives' scores would flag them without finding it.
    """
    positive, negative = np.sort(probability[truth]), np.sort(probability[~truth])
    triage = float(positive[int((1 - TRIAGE_SENSITIVITY) * len(positive))]) if len(positive) else 0.5
    if len(negative):
        triage = max(triage, float(np.quantile(negative, TRIAGE_SPECIFICITY)))
    second = (
        float(negative[min(len(negative) - 1, int((1 - SECOND_READ_FALSE) * len(negative)))]) if len(negative) else 0.5
    )
    triage = float(np.clip(triage, 0.10, 0.50))  # far from both ends: there are few heads to choose on
    return {"triage": round(triage, 3), "second-read": round(float(np.clip(max(second, triage), 0.5, 0.9)), 3)}


def lesions_of(files: list[Path]) -> tuple[Tensor, Tensor]:
    """Features and classes of all labelled lesions in simulated cases."""
    found, classes = [], []
    for file in files:
        case = fetch(file)
        labels = np.array(case.labels)
        if not labels.any():
            continue
        fields = lesion.Fields(
            hu=np.array(case.hu).astype(np.float32),
            near=np.array(case.depth).astype(np.float32) / 4.0,
            ventricle=((np.array(case.masks) & VENTRICLE) > 0).astype(np.float32),
            depth_mm=case.height.astype(np.float64),
            thickness_mm=spacings(case.height),
        )
        for value in range(1, CLASS_LOGITS):
            parts, count = components(labels == value)
            for number in range(1, count + 1):
                at = np.flatnonzero(parts == number)
                ml = fields.thickness_mm[np.unravel_index(at, labels.shape)[0]].sum() * inputs.WORK_MM**2 / 1000.0
                if ml >= LESION_ML:
                    found.append(lesion.features(at, fields))
                    classes.append(value - 1)
    return torch.from_numpy(np.array(found)), torch.tensor(classes)


def fit_lesions(net: lesion.LesionNet, files: list[Path], held_out: list[Path], seed: int) -> dict[str, float]:
    """Fit ``net`` on the true lesions of ``files``; returns its accuracy there and on ``held_out``."""
    numbers, classes = lesions_of(files)
    torch.manual_seed(seed)
    net.hidden.reset_parameters()
    net.out.reset_parameters()
    net.mean.copy_(numbers.mean(0))
    net.scale.copy_(numbers.std(0) + 1e-3)
    share = torch.bincount(classes, minlength=lesion.CLASSES).float().clamp(min=1.0)
    weight = (len(classes) / lesion.CLASSES / share).sqrt()
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=LESION_DECAY)
    for _ in range(LESION_STEPS):
        noisy = numbers + LESION_NOISE * net.scale * torch.randn(
            numbers.shape
        )  # predicted lesions are not the true ones
        loss = functional.cross_entropy(net(noisy), classes, weight=weight)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    net.eval()
    others, truth = lesions_of(held_out)
    with torch.no_grad():
        right = [float((net(x).argmax(1) == y).float().mean()) for x, y in ((numbers, classes), (others, truth))]
    return {"lesions": len(classes), "accuracy": round(right[0], 3), "held_out_accuracy": round(right[1], 3)}


def fit(networks: Networks, unseen: list[Path], calibration: list[Path], device: torch.device, seed: int) -> Fitted:
    """Fit the study head of ``networks`` on ``unseen`` and calibrate it on ``calibration``; changes ``networks``.

    Neither may hold a head that the slice network was trained on: there it is surer of itself than it will be again.
    """
    networks.slices.to(device).eval()
    networks.study.to(device).requires_grad_(True)
    networks.lesions.to(device).eval()
    rng = np.random.default_rng([seed, 5])
    features, truth, valid = _collect(_provisional(networks, device), unseen, SHOWN_ML)
    truth, valid = truth.to(device), valid.to(device)
    torch.manual_seed(seed)
    for module in networks.study.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    steps = EPOCHS * len(features) // 8
    optimiser = torch.optim.AdamW(networks.study.parameters(), lr=4e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=max(1, steps))
    for _ in range(steps):
        some = rng.choice(len(features), 8)
        logits = torch.cat([networks.study(features[k][None].clone()) for k in some])
        loss = (functional.binary_cross_entropy_with_logits(logits, truth[some], reduction="none") * valid[some]).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    networks.study.eval()
    print(f"study head: {steps} steps on {len(features)} cases, last loss {loss.item():.3f}", flush=True)
    return _calibrate(networks, calibration, device)


def _calibrate(networks: Networks, calibration: list[Path], device: torch.device) -> Fitted:
    features, truth, valid = _collect(_provisional(networks, device), calibration, SCORED_ML)
    logits = _logits(networks, features).cpu()
    temperature, bias = _scale(logits, truth, valid)
    probability = torch.sigmoid(logits / temperature + bias).numpy()
    names = ("any", *CLASSES)
    points: dict[str, dict[str, float]] = {"triage": {}, "second-read": {}}
    log: dict[str, Any] = {"cases": len(features)}
    for k, name in enumerate(names):
        use = valid[:, k].numpy() > 0
        real = truth[use, k].numpy() > 0
        for point, threshold in _operating_points(probability[use, k], real).items():
            points[point][name] = threshold
        log[name] = {
            "positives": int(real.sum()),
            "auc": round(auc(probability[use, k], real), 4),
            "ece": round(calibration_error(probability[use, k], real), 4),
        }
        print(f"calibration heads, {name}: {log[name]}", flush=True)
    scale = {
        "temperature": dict(zip(names, [round(float(t), 4) for t in temperature], strict=True)),
        "bias": dict(zip(names, [round(float(b), 4) for b in bias], strict=True)),
        "set_on": f"{len(features)} simulated studies; uncalibrated for patients",
    }
    return Fitted(calibration={"calibration": scale, "operating_points": points}, log=log)
