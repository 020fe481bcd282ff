"""Pack what ``train`` and ``tune`` left: ``python -m models.cardiac.pack``.

Writes weights, manifest and training log beside this file, or into ``--out``. The log also holds the first stage of the
networks that a member's own began with, which are not packed themselves.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from models.cardiac.bundle import save, views_of
from models.cardiac.train import MEMBERS, SHIPPED


def first_stage(work: Path, name: str) -> dict[str, Any]:
    """How a member was trained on simulations."""
    kept = torch.load(work / name / "simulation.pt", map_location="cpu", weights_only=True)
    said: dict[str, Any] = json.loads(kept["member"])
    said["simulator"] = {"simulation": kept.get("simulator", 1)}
    return said | {"simulation_seconds": round(kept["seconds"]), "held_out_simulations": kept["history"]}


def main() -> None:
    """Read the command line and pack the members."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/cardiac"))
    parser.add_argument("--members", nargs="+", choices=sorted(MEMBERS), default=list(SHIPPED))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="weights, log and manifest")
    options = parser.parse_args()
    states, members, log = {}, {}, {}
    for name in options.members:
        member, folder = MEMBERS[name], options.work / name
        tuned = torch.load(folder / "tuned-none.checkpoint", map_location="cpu", weights_only=True)
        states[name] = torch.load(folder / "tuned-none.pt", map_location="cpu", weights_only=True)
        count = sum(int(value.numel()) for value in states[name].values())
        members[name] = {"arguments": {"widths": list(member.widths)}, "parameters": count}
        members[name]["views"] = views_of(member.pixels, member.pixel_mm)
        log[name] = first_stage(options.work, name)
        log[name]["simulator"] |= {"tuning": tuned.get("simulator", 1)}
        log[name]["tuning_seconds"] = round(tuned["seconds"])
    for name in options.members:
        while (name := MEMBERS[name].start) and name not in log:
            log[name] = first_stage(options.work, name)
    options.out.mkdir(parents=True, exist_ok=True)
    text = "procedurally generated hearts (simulate.py) and the contours of SCD0000101, SCD0000301, SCD0000501 (CC0)"
    save(states, {"training_data": text, "members": members}, options.out)
    (options.out / "training.json").write_text(json.dumps(log, indent=1) + "\n")


if __name__ == "__main__":
    main()
