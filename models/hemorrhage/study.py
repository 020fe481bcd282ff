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

from models.hemorrhage import inputs
from models.hemorrhage.data import neighbours
from models.hemorrhage.net import CLASS_LOGITS, FINDINGS, Networks, SliceNet, slice_features
from models.hemorrhage.placing import spacings
from models.hemorrhage.precision import precision
from models.hemorrhage.simulate import Case, fetch

#: A study shows a class from this visible volume on [mL]; below it, but above nothing, it counts neither way.
SHOWN_ML: Final = 0.3
#: Cases whose findings the head is fitted on, and passes over them.
FIT_CASES: Final = 400
EPOCHS: Final = 30
#: What the operating points ask for on calibration heads: sensitivity, and false positives per study (ml-ct 1.3).
TRIAGE_SENSITIVITY: Final = 0.97
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


@torch.no_grad()
def features_of(net: SliceNet, case: Case, device: torch.device) -> Tensor:
    """Features of every slice of a case: (slice, FEATURES)."""
    parts = []
    for some in np.array_split(np.arange(len(case.hu)), max(1, len(case.hu) // 8)):
        stacks = [neighbours(case, int(k)) for k in some]
        hu = torch.from_numpy(np.stack([stack for stack, _ in stacks])).to(device)
        gap = torch.tensor([distance for _, distance in stacks], dtype=torch.float32, device=device)
        height = torch.from_numpy(case.height[some]).to(device)
        depth = torch.from_numpy(np.array(case.depth[some])).to(device)
        with precision(device):
            found = net(inputs.channels(hu, depth, height, gap).contiguous(memory_format=torch.channels_last))
        parts.append(slice_features(found, inputs.WORK_MM**2, height))
    return torch.cat(parts)


def _collect(net: SliceNet, files: list[Path], device: torch.device) -> tuple[list[Tensor], Tensor, Tensor]:
    """Features, truth and validity (study, FINDINGS) of all cases."""
    features, truth, valid = [], [], []
    for file in files:
        case = fetch(file)
        features.append(features_of(net, case, device))
        volume = volumes_ml(case)
        volume = np.concatenate(([volume.sum()], volume))
        truth.append(volume >= SHOWN_ML)
        valid.append((volume >= SHOWN_ML) | (volume == 0))
    return features, torch.tensor(np.array(truth)).float(), torch.tensor(np.array(valid)).float()


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
    """Thresholds for one finding by the two rules."""
    positive, negative = np.sort(probability[truth]), np.sort(probability[~truth])
    triage = float(positive[int((1 - TRIAGE_SENSITIVITY) * len(positive))]) if len(positive) else 0.5
    second = (
        float(negative[min(len(negative) - 1, int((1 - SECOND_READ_FALSE) * len(negative)))]) if len(negative) else 0.5
    )
    triage = float(np.clip(triage, 0.10, 0.50))  # far from both ends: there are few heads to choose on
    return {"triage": round(triage, 3), "second-read": round(float(np.clip(max(second, triage), 0.5, 0.9)), 3)}


def fit(networks: Networks, files: list[Path], calibration: list[Path], device: torch.device, seed: int) -> Fitted:
    """Fit the study head in ``networks`` on ``files`` and calibrate it on ``calibration``; changes ``networks``."""
    networks.slices.to(device).eval()
    networks.study.to(device)
    rng = np.random.default_rng([seed, 5])
    chosen = [files[k] for k in rng.permutation(len(files))[:FIT_CASES]]
    features, truth, valid = _collect(networks.slices, chosen, device)
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
        # a scan may begin or end anywhere: a random end is cut off in the negatives' favour of learning from few slices
        logits = torch.cat([networks.study(features[k][None]) for k in some])
        loss = (functional.binary_cross_entropy_with_logits(logits, truth[some], reduction="none") * valid[some]).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    networks.study.eval()
    print(f"study head: {steps} steps on {len(features)} cases, last loss {float(loss):.3f}", flush=True)
    return _calibrate(networks, calibration, device)


def _calibrate(networks: Networks, calibration: list[Path], device: torch.device) -> Fitted:
    features, truth, valid = _collect(networks.slices, calibration, device)
    logits = _logits(networks, features).cpu()
    temperature, bias = _scale(logits, truth, valid)
    probability = torch.sigmoid(logits / temperature + bias).numpy()
    names = ("any", "epidural", "subdural", "subarachnoid", "intraparenchymal", "intraventricular")
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
