"""Pack what ``train`` and ``tune`` left: ``python -m models.cardiac.pack --members wide fine``.

Writes weights, manifest and training log beside this file, or into ``--out``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from models.cardiac.bundle import save, views_of
from models.cardiac.train import MEMBERS


def main() -> None:
    """Read the command line and pack the members."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/cardiac"))
    parser.add_argument("--members", nargs="+", choices=sorted(MEMBERS), default=["wide"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="weights, log and manifest")
    options = parser.parse_args()
    states, members, log = {}, {}, {}
    for name in options.members:
        member, folder = MEMBERS[name], options.work / name
        simulation = torch.load(folder / "simulation.pt", map_location="cpu", weights_only=True)
        tuned = torch.load(folder / "tuned-none.checkpoint", map_location="cpu", weights_only=True)
        states[name] = torch.load(folder / "tuned-none.pt", map_location="cpu", weights_only=True)
        count = sum(int(value.numel()) for value in states[name].values())
        members[name] = {"arguments": {"widths": list(member.widths)}, "parameters": count}
        members[name]["views"] = views_of(member.pixels, member.pixel_mm)
        log[name] = json.loads(simulation["member"]) | {
            "simulator": {"simulation": simulation.get("simulator", 1), "tuning": tuned.get("simulator", 1)},
            "simulation_seconds": round(simulation["seconds"]),
            "tuning_seconds": round(tuned["seconds"]),
            "held_out_simulations": simulation["history"],
        }
    options.out.mkdir(parents=True, exist_ok=True)
    text = "procedurally generated hearts (simulate.py) and the contours of SCD0000101, SCD0000301, SCD0000501 (CC0)"
    save(states, {"training_data": text, "members": members}, options.out)
    (options.out / "training.json").write_text(json.dumps(log, indent=1) + "\n")


if __name__ == "__main__":
    main()
