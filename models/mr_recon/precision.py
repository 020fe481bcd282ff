"""Half precision where the device computes it natively; only ever around real convolutions, never around FFT or CG."""

from __future__ import annotations

import torch


def precision(device: torch.device) -> torch.autocast:
    """Autocast to bfloat16 on CUDA and on CPUs that have it; elsewhere it does nothing."""
    if device.type == "cuda":
        return torch.autocast("cuda", torch.bfloat16)
    # torch has no public question for this one; without it bfloat16 would be emulated, and slower than float32
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return torch.autocast("cpu", torch.bfloat16, enabled=device.type == "cpu" and native is not None and bool(native()))
