"""Which destination gets which object of a job, by its profile, and which gets none."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dicomnode.config import Config
from dicomnode.domain import FALLS_BACK_TO, Flavour, Output


def takes(config: Config, made: Sequence[Output]) -> Callable[[str, Output], bool]:
    """Whether a destination wants an object of ``made``; label maps and Enhanced MR where the job made some."""
    flavours = {output.flavour for output in made}

    def wanted(destination: str, output: Output) -> bool:
        profile = config.destinations.get(destination)
        if profile is None:
            return True  # no longer configured: the outbox says so
        absent = {Flavour(profile.segmentation), Flavour(profile.reconstructions)} - flavours
        if output.flavour in {FALLS_BACK_TO.get(one) for one in absent}:
            return output.kind in profile.objects
        return profile.takes(output.kind, output.flavour)

    return wanted


def unserved(config: Config, send_to: Sequence[str], made: Sequence[Output]) -> list[str]:
    """A sentence for each destination of ``send_to`` that gets nothing of ``made``: silence would look like loss."""
    wanted, said = takes(config, made), []
    for name in send_to:
        profile = config.destinations.get(name)
        if profile is not None and not any(wanted(name, output) for output in made):
            said.append(f"Nothing is sent to {name}: it takes {', '.join(profile.objects)}, and this result has none")
    return said
