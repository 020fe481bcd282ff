"""The denoising network: a small residual U-Net, told the noise level, that predicts the noise and not the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.ct_denoise.adjacent import Adjacent, Seen, beside
from models.ct_denoise.blocks import level, shuffle, unshuffle
from models.ct_denoise.noise import BLUR, NOISE_MAPS, gaussian_blur

#: The network sees and changes only this range; metal and bone above it pass through [HU].
HU_RANGE: Final = (-1024.0, 2000.0)
#: Share of the least-squares estimate in what the presets take away; the rest is the cautious estimate. Chosen on the
#: physics bench (CARD.md): more of it loses faint small objects faster than it removes noise.
PRESET_SHARE: Final = 0.0
#: The cautious estimate is too small: times this, strength 0.6 takes away nearly half of the noise. More would fail the
#: bar of inserts, less that of noise (CARD.md).
PRESET_GAIN: Final = 1.235
#: Above this strength, and above every preset, the share rises to 1: the least-squares estimate alone has the best PSNR
#: and loses faint small objects.
PRESETS_UP_TO: Final = 0.8
#: Rows and columns are padded to a multiple of this: one unshuffle and two strides of 2.
MULTIPLE: Final = 8


class DenoiseUNet(nn.Module):
    """Noise-conditioned residual U-Net on pixel-unshuffled slices.

    Input channels: wide HU, soft-tissue HU, high-pass residual in units of sigma, log sigma. Output: two estimates of
    noise / sigma. The cautious one was trained to leave low-contrast objects and the texture of the noise alone; the
    other is the least-squares estimate. ``noise_map`` names the map of `NOISE_MAPS` that it was trained with.
    ``least``: blocks per level of a second network of the same kind, trained for the least-squares estimate alone. It
    gives that estimate above the presets; without it, the one network gives both.
    """

    def __init__(
        self,
        widths: Sequence[int] = (32, 48, 64),
        blocks: int | Sequence[int] = 2,
        noise_map: str = "mean",
        least: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if noise_map not in NOISE_MAPS:
            raise ValueError(f"unknown noise map {noise_map!r}; known: {', '.join(NOISE_MAPS)}")
        self.noise_map = NOISE_MAPS[noise_map]
        first, second, third = widths
        each = (blocks,) * 3 if isinstance(blocks, int) else tuple(blocks)
        self.head = nn.Conv2d(4 * 4, first, 3, padding=1)
        self.encode = nn.ModuleList(level(w, n) for w, n in zip(widths, each, strict=True))
        self.down = nn.ModuleList((nn.Conv2d(first, second, 2, 2), nn.Conv2d(second, third, 2, 2)))
        self.up = nn.ModuleList((nn.ConvTranspose2d(third, second, 2, 2), nn.ConvTranspose2d(second, first, 2, 2)))
        self.decode = nn.ModuleList((level(second, each[1]), level(first, each[0])))
        self.tail = nn.Conv2d(first, 2 * 4, 3, padding=1)
        for parameter in self.tail.parameters():
            nn.init.zeros_(parameter)
        #: The network for the least-squares estimate alone.
        self.least: DenoiseUNet | None = None if least is None else DenoiseUNet(widths, least, noise_map)
        #: What `build` was given.
        self.arguments: dict[str, Any] = {"widths": [*widths], "blocks": blocks, "noise_map": noise_map}

    def alone(self) -> DenoiseUNet:
        """The same network without the one for the least-squares estimate."""
        made = DenoiseUNet(**self.arguments)
        made.load_state_dict({name: value for name, value in self.state_dict().items() if name[:6] != "least."})
        return made

    def with_least(self, least: DenoiseUNet) -> tuple[DenoiseUNet, dict[str, Any]]:
        """The same network with ``least`` for the least-squares estimate, and the arguments it is built with."""
        arguments = self.arguments | {"least": least.arguments["blocks"]}
        made = DenoiseUNet(**arguments)
        own = self.alone().state_dict()
        made.load_state_dict(own | {f"least.{name}": value for name, value in least.state_dict().items()})
        return made, arguments

    def grow_from(self, smaller: DenoiseUNet) -> None:
        """Take the weights of ``smaller``, a network of the same widths; what it lacks becomes an identity."""
        known = smaller.state_dict()
        for name, parameter in self.state_dict().items():
            if name in known:
                parameter.copy_(known[name])
            elif ".second." in name:
                parameter.zero_()

    @staticmethod
    def channels(image: Tensor, sigma: Tensor) -> Tensor:
        """Input channels (batch, 4, row, column) of ``image`` and ``sigma`` (batch, 1, row, column) [HU]."""
        residual = (image - gaussian_blur(image, BLUR)) / sigma
        parts = (
            image / 1000.0,
            ((image - 50.0) / 200.0).clamp(-1.5, 1.5),
            residual.clamp(-8.0, 8.0),
            sigma.log() / 3.0,
        )
        return torch.cat(parts, 1)

    def forward(self, image: Tensor, sigma: Tensor) -> Tensor:
        """Predicted noise [HU] (batch, 2, row, column): cautious, least-squares; inputs (batch, 1, row, column).

        Rows and columns are multiples of `MULTIPLE`.

        The first and last convolution run in float32 even under autocast: half precision resolves 1 HU at best there.
        """
        with torch.autocast(image.device.type, enabled=False):
            given = unshuffle(self.channels(image.float(), sigma.float()))
            # pixels of all channels together: to turn them after the convolution takes as long as the convolution
            features = self.head(given.contiguous(memory_format=torch.channels_last))
        # else the skips of the first level stay in float32, for a sixth of the time; in training they do
        if torch.is_autocast_enabled(image.device.type) and not torch.is_grad_enabled():
            features = features.to(torch.get_autocast_dtype(image.device.type))
        features = features.contiguous(memory_format=torch.channels_last)
        first = self.encode[0](features)
        second = self.encode[1](self.down[0](first))
        third = self.encode[2](self.down[1](second))
        second = self.decode[0](self.up[0](third) + second)
        first = self.decode[1](self.up[1](second) + first)
        with torch.autocast(image.device.type, enabled=False):
            unit = shuffle(self.tail(first.float()))
        return unit * sigma.float()

    def look(self, image: Tensor, share: float = PRESET_SHARE) -> Seen:
        """What the network makes of slices of any size (batch, 1, row, column) [HU] by themselves.

        ``share`` of the least-squares estimate in what will be taken away: where it is 1 the cautious estimate is not
        to be used, where it is 0 the least-squares estimate is only good enough to tell how alike two slices are.
        """
        rows, columns = image.shape[-2:]
        clamped = image.clamp(*HU_RANGE)
        pad = (0, -columns % MULTIPLE, 0, -rows % MULTIPLE)
        clamped, sigma = (F.pad(part, pad, mode="replicate") for part in (clamped, self.noise_map(clamped)))
        if self.least is None or share == 0.0:
            return Seen(clamped, sigma, self.forward(clamped, sigma))
        noise = self.least(clamped, sigma)
        if share < 1.0:
            noise = torch.cat((self.forward(clamped, sigma)[:, :1], noise[:, 1:]), 1)
        return Seen(clamped, sigma, noise)

    def beside(self, seen: Seen, around: Tensor, spacing_mm: Tensor) -> Tensor:
        """Both estimates of the noise (batch, 2, row, column) [HU], made better where slices have neighbours.

        ``around``: `Seen.estimate` of the slices before and after (batch, 2, 2, row, column) [HU]; ``spacing_mm``:
        their distance (batch,), NaN where they are not to be used: those slices keep every bit.
        """
        there = torch.isfinite(spacing_mm)
        if bool(there.all()):
            return beside(seen, around, spacing_mm)
        noise = seen.noise.clone()
        if bool(there.any()):
            noise[there] = beside(seen.at(there), around[there], spacing_mm[there])
        return noise

    def taken(self, image: Tensor, noise: Tensor, strength: float, share: float | None = None) -> Tensor:
        """What is taken away from ``image`` (batch, 1, row, column) at ``strength``; ``noise`` as of `forward`, padded.

        0 where the image lies outside `HU_RANGE`. ``share`` of the least-squares estimate: as in `blend` unless given,
        and then ``strength`` is the amount.
        """
        rows, columns = image.shape[-2:]
        low, high = HU_RANGE
        inside = (image >= low) & (image <= high)
        cautious, least = noise[..., :rows, :columns].chunk(2, 1)
        share, amount = blend(strength) if share is None else (share, strength)
        return amount * torch.lerp(cautious, least, share) * inside

    def noise(
        self, image: Tensor, strength: float, share: float | None = None, adjacent: Adjacent | None = None
    ) -> Tensor:
        """The noise to take away from slices of any size at ``strength``; both (batch, 1, row, column) [HU].

        ``share``: as of `taken`. ``adjacent``: the slices beside them, where they may be used; a whole series is done
        in a third of the time by `stream.Stream`.
        """
        wanted = blend(strength)[0] if share is None else share
        seen = self.look(image, wanted)
        noise = seen.noise
        if adjacent is not None:
            around = self.look(adjacent.planes.flatten(0, 1)[:, None], wanted).estimate()
            around = around.reshape(len(image), 2, *around.shape[1:])
            noise = self.beside(seen, around, adjacent.spacing_mm)
        return self.taken(image, noise, strength, share)


def blend(strength: float) -> tuple[float, float]:
    """Share of the least-squares estimate at ``strength``, and the amount of the blend that is taken away."""
    risen = max(0.0, (strength - PRESETS_UP_TO) / (1.0 - PRESETS_UP_TO))
    return PRESET_SHARE + risen * (1.0 - PRESET_SHARE), min(1.0, PRESET_GAIN * strength)


def precision(device: torch.device) -> torch.autocast:
    """Autocast to the half precision that ``device`` computes natively: float16 on CUDA, bfloat16 on newer CPUs.

    Elsewhere it does nothing. bfloat16 moves the result by 0.04 HU rms and 0.2 HU at most at 20 HU noise.
    """
    if device.type == "cuda":
        return torch.autocast("cuda", torch.float16)
    # torch has no public question for this one; without it bfloat16 would be emulated, and slower than float32
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return torch.autocast("cpu", torch.bfloat16, enabled=device.type == "cpu" and native is not None and bool(native()))


#: Networks that a manifest may name.
ARCHITECTURES: Final = {"denoise_unet": DenoiseUNet}


def build(name: str, arguments: Mapping[str, Any] | None = None) -> DenoiseUNet:
    """Build the network ``name`` with ``arguments``, as a manifest states them."""
    if name not in ARCHITECTURES:
        raise ValueError(f"unknown network {name!r}; known: {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name](**(arguments or {}))
