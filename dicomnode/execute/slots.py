"""From the configuration to slots: one a GPU where there are any, else one on the CPU."""

from __future__ import annotations

import os
from pathlib import Path

from dicomnode.config import Config
from dicomnode.execute.executor import PipelineSpec
from dicomnode.execute.local import LocalExecutor
from dicomnode.execute.worker import SlotSettings


def gpus() -> int:
    """How many NVIDIA GPUs the kernel driver shows (torch is not asked: this process must not load it)."""
    folder = Path("/proc/driver/nvidia/gpus")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def devices(config: Config) -> list[str]:
    """Device of each slot."""
    if config.execute.slots != "auto":
        return list(config.execute.slots)
    found = gpus()
    return [f"cuda:{number}" for number in range(found)] if found else ["cpu"]


def specs(config: Config) -> list[PipelineSpec]:
    """Return every configured pipeline, as a slot loads it."""
    return [
        PipelineSpec(name=name, class_name=one.class_, weights=one.weights, options=one.options)
        for name, one in config.pipelines.items()
    ]


def local_executor(config: Config) -> LocalExecutor:
    """Build the embedded executor for the configured slots."""
    names = devices(config)
    threads = config.execute.threads or max(1, len(os.sched_getaffinity(0)) // len(names))
    settings = [
        SlotSettings(
            slot=f"{number}-{device}",
            device=device,
            threads=threads,
            pipelines=specs(config),
            log_level=config.node.log.level,
            log_style=config.node.log.style,
            parent=os.getpid(),
        )
        for number, device in enumerate(names)
    ]
    return LocalExecutor(settings, start_timeout_s=config.execute.start_timeout_s)
