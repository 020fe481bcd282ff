"""The training pool: simulated slices made once and kept, and the patches drawn from them at every step."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.ct_denoise import projection
from models.ct_denoise.phantoms import Draw
from models.ct_denoise.projection import KERNELS, Kernel
from models.ct_denoise.simulate import POOL_SIZE, Slice, simulate_slice

#: Values of the clean image are kept in sixteenths of a HU (int16 reaches +-2047 HU).
CLEAN_STEP: Final = 1.0 / 16.0
#: Half-width of the central square in which a slice's noise is measured [pixel].
CENTRE: Final = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Patches:
    """One batch; every tensor (patch, 1, row, column) [HU]."""

    #: Noise-free, filtered with the same kernel as the noise: the network is never asked to deblur.
    clean: Tensor
    #: First and second noise realisation.
    noise: tuple[Tensor, Tensor]
    #: A low-contrast insert at a random place.
    insert: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """What the patches are made of, beyond the slices of the pool."""

    #: Share of the patches whose contrasts are pressed together, so that edges of every shape are faint.
    faint: float = 0.0
    #: Share of the inserts that are large and strong enough to be seen in the noise.
    visible: float = 0.0


def draw_kernel(draw: Draw) -> Kernel:
    """A random kernel of a random family, its frequency axis and edge boost varied by up to a quarter."""
    kernel = KERNELS[("soft", "std", "sharp")[min(int(draw.uniform(0, 3)), 2)]]
    return Kernel(
        cutoff=kernel.cutoff * draw.uniform(0.8, 1.25),
        power=kernel.power * draw.uniform(0.85, 1.15),
        boost=kernel.boost * draw.uniform(0.5, 1.3),
        boost_at=kernel.boost_at * draw.uniform(0.85, 1.15),
    )


def render(item: Slice, kernel: Kernel, sigma_hu: float) -> tuple[Tensor, Tensor]:
    """Clean image and noise of ``item`` through ``kernel``, the noise scaled to ``sigma_hu`` at the centre.

    Returns (row, column) and (realisation, row, column) [HU]. A rendered slice keeps its kernel.
    """
    if item.rendered:
        return item.clean, item.noise * (sigma_hu / item.sigma_hu)
    both = projection.apply_kernel(torch.cat((item.clean[None], item.noise)), kernel, item.pixel_mm)
    clean, noise = both[0], both[1:]
    middle = clean.shape[-1] // 2
    core = noise[:, middle - CENTRE : middle + CENTRE, middle - CENTRE : middle + CENTRE]
    return clean, noise * (sigma_hu / core.std().clamp(min=1e-3))


class Pool:
    """Simulated slices in memory, and on disk in one safetensors file with its seeds in the metadata."""

    def __init__(
        self, clean: Tensor, noise: Tensor, pixel_mm: list[float], sigma_hu: list[float], *, rendered: bool = False
    ) -> None:
        self.clean, self.noise, self.pixel_mm, self.sigma_hu = clean, noise, pixel_mm, sigma_hu
        #: The slices have been through a scanner's kernel and are taken as they are.
        self.rendered = rendered

    def __len__(self) -> int:
        return len(self.pixel_mm)

    def __getitem__(self, index: int) -> Slice:
        return Slice(
            clean=self.clean[index].float() * CLEAN_STEP,
            noise=self.noise[index].float(),
            pixel_mm=self.pixel_mm[index],
            sigma_hu=self.sigma_hu[index],
            rendered=self.rendered,
        )

    @classmethod
    def make(
        cls, count: int, first_seed: int, device: torch.device, file: Path | None = None, *, thick: bool = False
    ) -> Pool:
        """Simulate ``count`` slices, or read them from ``file`` where an earlier run left them.

        ``thick``: as of `simulate_slice`.
        """
        key = {"first_seed": first_seed, "size": POOL_SIZE, "version": 1} | ({"thick": 2} if thick else {})
        kept = cls._read(file, key, device) if file is not None and file.exists() else None
        if kept is not None and len(kept) >= count:
            return cls(kept.clean[:count], kept.noise[:count], kept.pixel_mm[:count], kept.sigma_hu[:count])
        slices = []
        for index in range(0 if kept is None else len(kept), count):
            item = simulate_slice(first_seed + index, device=device, thick=thick)
            clean = (item.clean / CLEAN_STEP).round().clamp(-32768, 32767).to(torch.int16)
            slices.append((clean, item.noise.half(), item.pixel_mm, item.sigma_hu))
            if (index + 1) % 20 == 0:
                print(f"simulated {index + 1} of {count} slices", flush=True)
        clean, noise, pixel_mm, sigma_hu = zip(*slices, strict=True)
        pool = cls(torch.stack(clean), torch.stack(noise), list(pixel_mm), list(sigma_hu))
        pool = pool if kept is None else kept._with(pool)
        if file is not None:
            pool._write(file, key)
        return pool

    def _with(self, other: Pool) -> Pool:
        clean, noise = torch.cat((self.clean, other.clean)), torch.cat((self.noise, other.noise))
        return Pool(clean, noise, self.pixel_mm + other.pixel_mm, self.sigma_hu + other.sigma_hu)

    @classmethod
    def _read(cls, file: Path, key: dict[str, int], device: torch.device) -> Pool | None:
        """The pool in ``file``, None where it is another one."""
        stored = load_file(file)
        found = json.loads(bytes(stored["key"].tolist()))
        if {name: found.get(name) for name in key} != key:
            return None
        pixel_mm, sigma_hu = stored["pixel_mm"].tolist(), stored["sigma_hu"].tolist()
        return cls(stored["clean"].to(device), stored["noise"].to(device), pixel_mm, sigma_hu)

    def _write(self, file: Path, key: dict[str, int]) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        values = {"clean": self.clean.cpu(), "noise": self.noise.cpu()}
        numbers = {"pixel_mm": self.pixel_mm, "sigma_hu": self.sigma_hu}
        values |= {name: torch.tensor(part, dtype=torch.float64) for name, part in numbers.items()}
        values["key"] = torch.tensor(list(json.dumps(key).encode()), dtype=torch.uint8)
        save_file(values, file.with_suffix(".new"))
        file.with_suffix(".new").replace(file)


def _insert(draw: Draw, size: int, pixel_mm: float) -> Tensor:
    """A soft-edged disc of 2 to 20 mm and 3 to 40 HU, either sign: (row, column) [HU]."""
    axis = torch.arange(size, dtype=torch.float32) * pixel_mm
    span = size * pixel_mm
    x, y = draw.uniform(0.2, 0.8) * span, draw.uniform(0.2, 0.8) * span
    distance = torch.sqrt((axis[:, None] - y) ** 2 + (axis[None, :] - x) ** 2)
    radius = draw.log_uniform(1.0, 10.0)
    height = draw.log_uniform(3.0, 40.0) * (1.0 if draw.chance(0.5) else -1.0)
    return height * torch.sigmoid((radius - distance) * 3.0 / max(pixel_mm, 0.5))


def _visible_insert(draw: Draw, size: int, pixel_mm: float, sigma_hu: float) -> Tensor:
    """An ellipse of 5 to 36 mm that stands out of the noise ``sigma_hu``: (row, column) [HU]."""
    axis = torch.arange(size, dtype=torch.float32) * pixel_mm
    span = size * pixel_mm
    x, y, angle = draw.uniform(0.1, 0.9) * span, draw.uniform(0.1, 0.9) * span, draw.uniform(0.0, math.pi)
    radius, aspect = draw.log_uniform(2.5, 18.0), draw.log_uniform(1.0, 2.0)
    c, s = math.cos(angle), math.sin(angle)
    dx, dy = axis[None, :] - x, axis[:, None] - y
    distance = torch.sqrt(((dx * c + dy * s) / aspect) ** 2 + ((-dx * s + dy * c) * aspect) ** 2)
    height = min(max(draw.log_uniform(0.7, 4.0) * sigma_hu, 5.0), 100.0) * (1.0 if draw.chance(0.5) else -1.0)
    return height * torch.sigmoid((radius - distance) * 3.0 / max(pixel_mm, 0.5))


def _press(clean: Tensor, draw: Draw) -> Tensor:
    """``clean`` with its contrasts pressed together round a soft tissue's HU."""
    middle, share = draw.uniform(-20.0, 80.0), draw.log_uniform(0.04, 0.5)
    return middle + share * (clean.clamp(-200.0, 400.0) - middle)


def _augment(stack: Tensor, draw: Draw) -> Tensor:
    stack = torch.rot90(stack, int(draw.uniform(0, 4)), (-2, -1))
    return stack.flip(-1) if draw.chance(0.5) else stack


#: Places of a `Mixture`: many more than slices, so that each is drawn as often as any other of its kind.
PLACES: Final = 1_000_000


class Mixture:
    """Slices of two kinds, ``share`` of the draws from the second."""

    def __init__(self, first: Pool | Mixture, second: Pool, share: float) -> None:
        self.first, self.second = first, second
        self.border = round(PLACES * (1.0 - share))
        self.clean: Tensor = first.clean

    def __len__(self) -> int:
        return PLACES

    def __getitem__(self, index: int) -> Slice:
        if index < self.border:
            return self.first[index * len(self.first) // self.border]
        return self.second[(index - self.border) * len(self.second) // (PLACES - self.border)]


def draw_patches(
    pool: Pool | Mixture, seed: int, slices: int, per_slice: int, size: int, drawing: Drawing | None = None
) -> Patches:
    """The batch of step ``seed``: ``slices`` x ``per_slice`` patches; the same for the same pool and seed."""
    drawing = drawing or Drawing()
    draw = Draw(seed, 1, 1.0, torch.device("cpu"))
    device = pool.clean.device
    cleans, firsts, seconds, inserts = [], [], [], []
    for _ in range(slices):
        item = pool[min(int(draw.uniform(0, len(pool))), len(pool) - 1)]
        sigma = (item.sigma_hu * draw.log_uniform(0.5, 1.6)) if draw.chance(0.8) else draw.log_uniform(1.0, 45.0)
        clean, noise = render(item, draw_kernel(draw), sigma)
        clean = clean + draw.uniform(-3.0, 3.0)
        clipped = draw.chance(0.5)
        for _ in range(per_slice):
            room = clean.shape[-1] - size
            row, column = (int(draw.uniform(0, room)) for _ in range(2))
            part = clean[row : row + size, column : column + size]
            if draw.chance(0.5):  # noise of another place, so that place and noise are not learned together
                row, column = (int(draw.uniform(0, room)) for _ in range(2))
            parts = noise[:, row : row + size, column : column + size]
            if drawing.faint and draw.chance(drawing.faint):
                part = _press(part, draw)
            both = _augment(torch.cat((part[None], parts)), draw)
            if clipped:  # scanners store nothing below -1024
                both = torch.cat((both[:1], (both[:1] + both[1:]).clamp(min=-1024.0) - both[:1]))
            cleans.append(both[0])
            firsts.append(both[1])
            seconds.append(both[2])
            visible = bool(drawing.visible) and draw.chance(drawing.visible)
            made = _visible_insert(draw, size, item.pixel_mm, sigma) if visible else _insert(draw, size, item.pixel_mm)
            inserts.append(made.to(device))
    clean, first, second, insert = (torch.stack(part)[:, None] for part in (cleans, firsts, seconds, inserts))
    return Patches(clean=clean, noise=(first, second), insert=insert)


def true_sigma(noise: tuple[Tensor, Tensor]) -> Tensor:
    """Local standard deviation [HU] of two realisations (patch, 1, row, column), over about 32 pixels."""
    mean_square = 0.5 * (noise[0] ** 2 + noise[1] ** 2)
    coarse = torch.nn.functional.avg_pool2d(mean_square, 16)
    smooth = torch.nn.functional.avg_pool2d(coarse, 3, 1, 1, count_include_pad=False)
    sigma = torch.nn.functional.interpolate(smooth, scale_factor=16.0, mode="bilinear", align_corners=False).sqrt()
    return sigma.clamp(min=math.sqrt(0.25))
