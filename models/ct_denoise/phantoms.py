"""Clean images to train on: domain-randomised shapes and head slices, both drawn from a seed, in HU.

The random images look like no anatomy. They hold what a denoiser must not confuse with noise: edges of every contrast,
blobs down to half a millimetre, lines, faint texture, at random size, place and HU.

Each image is the plane z = 0 of an object with a third dimension: the same seed at another z is the same anatomy that
far away. Fields change half as fast through the plane as in it; outlines grow, shrink and shift; blobs begin and end,
so that the small ones lie in one plane only. What z = 0 looks like does not depend on any of that.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

#: Tissue mixture: (probability, lowest HU, highest HU).
TISSUES: Final = (
    (0.06, -1000.0, -980.0),  # gas
    (0.10, -920.0, -760.0),  # lung
    (0.20, -125.0, -70.0),  # fat
    (0.14, -8.0, 15.0),  # water, bile, cerebrospinal fluid
    (0.34, 20.0, 75.0),  # brain, muscle, parenchyma, blood
    (0.10, 80.0, 300.0),  # contrast medium, calcified tissue
    (0.06, 300.0, 1500.0),  # bone
)
#: Share of head slices among the clean images.
HEAD_SHARE: Final = 0.3
#: Standard deviation of the blur that makes a field of correlation length 1 (`Draw.field`): 4 / (sqrt(2) pi).
FIELD_BLUR: Final = 4.0 / (math.sqrt(2.0) * math.pi)
#: Fields change this much more slowly through the plane than in it, as bodies do along their axis: a real abdomen 2 mm
#: away differs from itself by what isotropic fields do at 0.5 mm.
ALONG: Final = 2.0
#: Seed of what only planes other than z = 0 draw, apart from that of the image.
THROUGH_SEED: Final = 11_000_000_000
#: Spread of what the half axes of an outline gain [mm] and its centre shifts [mm] per millimetre through the plane.
GROWTH: Final = 0.3
SHIFT: Final = 0.3
#: Share of the blobs that run through the planes as a vessel does, times as long as they are wide.
VESSELS: Final = 0.3
VESSEL_LENGTH: Final = 12.0
#: Slices of `thick_image`: their thickness [mm], of how many planes they are made, the share of heads, and the seed of
#: what belongs to the slice and not to a plane.
THICKNESS_MM: Final = (0.6, 7.0)
THICK_PLANES: Final = 5
THICK_HEADS: Final = 0.5
THICK_SEED: Final = 13_000_000_000


class Draw:
    """Random numbers and random fields of one image, all from one seed."""

    def __init__(self, seed: int, size: int, pixel_mm: float, device: torch.device, z_mm: float = 0.0) -> None:
        self.size, self.pixel_mm, self.device, self.z_mm = size, pixel_mm, device, z_mm
        self.generator = torch.Generator().manual_seed(seed)
        #: What tells the planes apart; all but z = 0 draw the same numbers of it.
        self.through = torch.Generator().manual_seed(seed + THROUGH_SEED)
        axis = (torch.arange(size, device=device) - (size - 1) / 2.0) * pixel_mm
        #: Position of each pixel from the centre [mm].
        self.y, self.x = torch.meshgrid(axis, axis, indexing="ij")

    def uniform(self, low: float, high: float) -> float:
        """A number between ``low`` and ``high``."""
        return low + (high - low) * float(torch.rand((), generator=self.generator))

    def log_uniform(self, low: float, high: float) -> float:
        """A number between ``low`` and ``high``, every octave as likely."""
        return math.exp(self.uniform(math.log(low), math.log(high)))

    def chance(self, probability: float) -> bool:
        """True with ``probability``."""
        return self.uniform(0.0, 1.0) < probability

    def normal_through(self) -> float:
        """A normal number that belongs to the third dimension."""
        return float(torch.randn((), generator=self.through))

    def uniform_through(self, low: float, high: float) -> float:
        """A number between ``low`` and ``high`` that belongs to the third dimension."""
        return low + (high - low) * float(torch.rand((), generator=self.through))

    def field(self, scale_mm: float) -> Tensor:
        """Gaussian random field of unit variance, correlation length ``scale_mm``, periodic.

        Its correlation over a distance r is exp(-r^2 / (2 blur)^2), through the plane `ALONG` times as far.
        """
        white = torch.randn(self.size, self.size, generator=self.generator)
        if self.z_mm:
            alike = math.exp(-((self.z_mm / (2.0 * FIELD_BLUR * ALONG * scale_mm)) ** 2))
            other = torch.randn(self.size, self.size, generator=self.through)
            white = alike * white + math.copysign(math.sqrt(1.0 - alike**2), self.z_mm) * other
        white = white.to(self.device)
        fy = torch.fft.fftfreq(self.size, self.pixel_mm, device=self.device)
        fx = torch.fft.rfftfreq(self.size, self.pixel_mm, device=self.device)
        squared = fy[:, None] ** 2 + fx[None, :] ** 2
        smooth = torch.fft.irfft2(torch.fft.rfft2(white) * torch.exp(-squared * (4.0 * scale_mm) ** 2), s=white.shape)
        field: Tensor = smooth / smooth.std().clamp(min=1e-6)
        return field

    def ridges(self, scale_mm: float, width: float) -> Tensor:
        """Curved lines, 0..1: where a band-limited field crosses zero."""
        band = self.field(scale_mm) - 0.5 * self.field(2.0 * scale_mm)
        return torch.exp(-((band / width) ** 2))

    def tissue(self) -> float:
        """HU of a random tissue."""
        pick = self.uniform(0.0, sum(probability for probability, _, _ in TISSUES))
        for probability, low, high in TISSUES[:-1]:
            pick -= probability
            if pick < 0.0:
                return self.uniform(low, high)
        return self.uniform(*TISSUES[-1][1:])

    def edge(self, distance_mm: Tensor) -> Tensor:
        """1 inside (distance > 0), 0 outside, one pixel wide in between."""
        return (distance_mm / self.pixel_mm + 0.5).clamp(0.0, 1.0)

    def ellipse(self, x: float, y: float, a: float, b: float, angle: float, warp: Tensor | float = 0.0) -> Tensor:
        """Approximate depth [mm] inside an ellipse of half axes ``a`` and ``b``, its outline moved by ``warp`` [mm]."""
        if self.z_mm:
            a, b = (max(half + GROWTH * self.normal_through() * self.z_mm, 0.2 * half) for half in (a, b))
            x, y = (centre + SHIFT * self.normal_through() * self.z_mm for centre in (x, y))
        c, s = math.cos(angle), math.sin(angle)
        u = ((self.x - x) * c + (self.y - y) * s) / a
        v = (-(self.x - x) * s + (self.y - y) * c) / b
        rho = torch.sqrt(u * u + v * v)
        slope = torch.sqrt((u / a) ** 2 + (v / b) ** 2) / rho.clamp(min=1e-3)
        return (1.0 - rho) / slope.clamp(min=1e-4) + warp


def _mix(image: Tensor, weight: Tensor, value: Tensor | float) -> Tensor:
    return image + weight * (value - image)


def _blob(
    draw: Draw,
    out: Tensor,
    place: tuple[float, float],
    radius: float,
    shape: tuple[float, float],
    height: float,
    inside: Tensor,
) -> None:
    """Add an ellipse at ``place`` (x, y) [mm] of ``radius`` [mm] and ``shape`` (aspect, angle) to ``out`` in place."""
    (cx, cy), (aspect, angle) = place, shape
    half_fov = draw.size * draw.pixel_mm / 2.0
    reach = int(2.0 * radius / draw.pixel_mm) + 3
    column = max(int((cx + half_fov) / draw.pixel_mm), 0)
    row = max(int((cy + half_fov) / draw.pixel_mm), 0)
    window = (slice(max(row - reach, 0), row + reach), slice(max(column - reach, 0), column + reach))
    c, s = math.cos(angle), math.sin(angle)
    dx, dy = draw.x[window] - cx, draw.y[window] - cy
    rho = torch.sqrt(((dx * c + dy * s) / aspect) ** 2 + (-dx * s + dy * c) ** 2)
    out[window] += height * draw.edge(radius - rho) * inside[window]


def _section(draw: Draw, radius: float) -> tuple[float, float, float]:
    """What a blob of ``radius`` at z = 0 is in the plane of ``draw``: its radius, 0 where it has ended, and its shift.

    An ellipsoid about as long as it is wide, or a vessel; it is cut at z = 0 anywhere, and leans.
    """
    long = VESSEL_LENGTH if draw.uniform_through(0.0, 1.0) < VESSELS else 1.0
    half = long * radius * draw.uniform_through(0.6, 1.6)
    centre = half * draw.uniform_through(-0.8, 0.8)
    x, y = (draw.z_mm * SHIFT * draw.normal_through() for _ in range(2))
    here, there = (1.0 - ((z - centre) / half) ** 2 for z in (draw.z_mm, 0.0))
    return radius * math.sqrt(max(here, 0.0) / there), x, y


def _other_blobs(draw: Draw, out: Tensor, count: int, inside: Tensor) -> None:
    """Add to ``out`` in place what lies in planes beside z = 0 and not in it, up to 4 mm away."""
    half_fov = draw.size * draw.pixel_mm / 2.0
    for _ in range(count):
        radius = math.exp(draw.uniform_through(math.log(0.5), math.log(9.0)))
        height = math.exp(draw.uniform_through(math.log(4.0), math.log(250.0)))
        height, side = (math.copysign(part, draw.uniform_through(-1.0, 1.0)) for part in (height, 1.0))
        place = (draw.uniform_through(-0.8, 0.8) * half_fov, draw.uniform_through(-0.8, 0.8) * half_fov)
        half = radius * draw.uniform_through(0.6, 1.6)
        shape = (draw.uniform_through(0.6, 1.6), draw.uniform_through(0.0, math.pi))
        depth = (draw.z_mm - side * (half + draw.uniform_through(0.0, 4.0))) / half
        if abs(depth) < 1.0:
            _blob(draw, out, place, radius * math.sqrt(1.0 - depth**2), shape, height, inside)


def _blobs(draw: Draw, image: Tensor, count: int, inside: Tensor) -> Tensor:
    """Round inserts of 0.5 to 9 mm radius and 4 to 250 HU, either sign; smaller ones are more frequent."""
    half_fov = draw.size * draw.pixel_mm / 2.0
    out = image.clone()
    for _ in range(count):
        radius = draw.log_uniform(0.5, 9.0)
        contrast = draw.log_uniform(4.0, 250.0) * (1.0 if draw.chance(0.5) else -1.0)
        cx, cy = draw.uniform(-0.8, 0.8) * half_fov, draw.uniform(-0.8, 0.8) * half_fov
        aspect, angle = draw.uniform(0.6, 1.6), draw.uniform(0.0, math.pi)
        if draw.z_mm:
            radius, right, down = _section(draw, radius)
            cx, cy = cx + right, cy + down
        if radius > 0.0:
            _blob(draw, out, (cx, cy), radius, (aspect, angle), contrast, inside)
    if draw.z_mm:
        _other_blobs(draw, out, count // 2, inside)
    return out


def random_shapes(draw: Draw) -> Tensor:
    """One domain-randomised image (row, column) [HU]."""
    half_fov = draw.size * draw.pixel_mm / 2.0
    image = torch.full((draw.size, draw.size), draw.uniform(-20.0, 80.0), device=draw.device)
    for _ in range(3 + int(draw.uniform(0, 7))):
        scale = draw.log_uniform(3.0, 60.0)
        threshold = draw.uniform(0.2, 1.6)
        weight = ((draw.field(scale) - threshold) * scale / draw.pixel_mm + 0.5).clamp(0.0, 1.0)
        image = _mix(image, weight, draw.tissue())
    inside = torch.ones_like(image)
    if draw.chance(0.85):
        warp = draw.uniform(0.0, 6.0) * draw.field(25.0)
        a, b = (draw.uniform(0.55, 0.95) * half_fov for _ in range(2))
        depth = draw.ellipse(0.0, 0.0, a, b, draw.uniform(0.0, math.pi), warp)
        rind = draw.uniform(2.0, 20.0)
        image = _mix(image, draw.edge(rind - depth), draw.uniform(-120.0, -80.0))
        if draw.chance(0.25):
            thick = draw.uniform(2.0, 9.0)
            shell = draw.edge(depth - rind) * draw.edge(rind + thick - depth)
            image = _mix(image, shell, draw.uniform(400.0, 1700.0))
        inside = draw.edge(depth)
        image = _mix(image, 1.0 - inside, -1000.0)
    tissue = inside * (image > -300.0)
    for _ in range(int(draw.uniform(0, 4))):
        lines = draw.ridges(draw.uniform(3.0, 14.0), draw.uniform(0.05, 0.25)) * (draw.field(12.0) > 0.3)
        image = image + lines * tissue * draw.log_uniform(5.0, 200.0) * (1.0 if draw.chance(0.6) else -1.0)
    image = _blobs(draw, image, 20 + int(draw.uniform(0, 100)), tissue)
    texture = draw.field(draw.uniform(0.5, 1.0)) + draw.field(2.0) + draw.field(6.0)
    return (image + draw.uniform(0.0, 3.5) * texture * tissue).clamp(-1000.0, 3000.0)


def _brain(draw: Draw, depth: Tensor, lateral: Tensor) -> Tensor:
    """Brain, sulci and ventricles (row, column) [HU]; ``depth`` [mm] from the inner table, ``lateral`` [mm] signed."""
    white, step, fluid = draw.uniform(23.0, 31.0), draw.uniform(5.0, 12.0), draw.uniform(2.0, 11.0)
    cortex = draw.edge(draw.uniform(4.0, 7.0) + 2.0 * draw.field(9.0) - depth)
    image = white + step * cortex
    sulci = draw.ridges(draw.uniform(3.0, 6.0), draw.uniform(0.12, 0.3)) * (draw.field(22.0) > -0.4)
    gate = draw.edge(draw.uniform(12.0, 22.0) + 4.0 * draw.field(15.0) - depth)
    image = _mix(image, (sulci * gate).clamp(0.0, 1.0), fluid)
    image = _mix(image, draw.edge(draw.uniform(0.6, 4.0) + draw.field(20.0) - depth), fluid)
    size = draw.uniform(0.5, 1.7)
    for side in (-1.0, 1.0):
        for y, tilt in ((-22.0, 0.5), (20.0, -0.5)):
            horn = draw.ellipse(side * 9.0 * size, y, 4.0 * size, 16.0 * size, side * tilt, draw.field(8.0))
            image = _mix(image, draw.edge(horn), fluid)
        nucleus = draw.ellipse(side * 22.0, 0.0, 8.0, 14.0, side * 0.3, draw.field(8.0))
        image = _mix(image, draw.edge(nucleus), white + step)
    falx = draw.edge(draw.uniform(0.5, 1.2) - (lateral + 0.8 * draw.field(25.0)).abs()) * (draw.y.abs() > 30.0)
    image = _mix(image, falx, draw.uniform(40.0, 62.0))
    if draw.chance(0.5):  # a bleed: bright, sharp-edged, must survive
        radius, x, y = draw.log_uniform(2.0, 24.0), draw.uniform(-45.0, 45.0), draw.uniform(-55.0, 55.0)
        bleed = draw.ellipse(
            x, y, radius, radius * draw.uniform(0.5, 1.0), draw.uniform(0, 3.1), 0.15 * radius * draw.field(7.0)
        )
        image = _mix(image, draw.edge(bleed + radius * 0.6), white - 8.0)
        image = _mix(image, draw.edge(bleed), draw.uniform(50.0, 80.0))
    if draw.chance(0.4):  # an old infarct or leukoaraiosis: faint and dark
        x, y, radius = draw.uniform(-45.0, 45.0), draw.uniform(-55.0, 55.0), draw.uniform(4.0, 25.0)
        image = _mix(
            image,
            0.8 * draw.edge(draw.ellipse(x, y, radius, radius, 0.0, 3.0 * draw.field(8.0))),
            draw.uniform(8.0, 22.0),
        )
    return image + draw.uniform(0.0, 1.0) * (draw.field(0.8) + draw.field(3.0))


def head_slice(draw: Draw) -> Tensor:
    """One axial head slice (row, column) [HU]: scalp, skull with diploe, brain, ventricles, sometimes a lesion."""
    scale = draw.uniform(0.75, 1.05)
    a, b = scale * draw.uniform(70.0, 80.0), scale * draw.uniform(86.0, 98.0)
    angle = draw.uniform(-0.3, 0.3)
    scalp = draw.uniform(3.0, 9.0)
    skull = (draw.uniform(4.0, 9.0) * scale + 1.2 * draw.field(25.0)).clamp(min=2.5)
    depth = draw.ellipse(0.0, 0.0, a, b, angle, 1.5 * draw.field(40.0))
    lateral = draw.x * math.cos(angle) + draw.y * math.sin(angle)
    image = torch.full_like(depth, -1000.0)
    soft = _mix(
        torch.full_like(depth, draw.uniform(42.0, 72.0)), (draw.field(9.0) > 0.0).float(), draw.uniform(-110.0, -70.0)
    )
    image = _mix(image, draw.edge(depth), soft)
    into = depth - scalp
    image = _mix(image, draw.edge(into), draw.uniform(1100.0, 1900.0))
    table = draw.uniform(1.0, 2.0)
    diploe = draw.edge(into - table) * draw.edge(skull - table - into)
    image = _mix(image, diploe, draw.uniform(350.0, 900.0) + 90.0 * draw.field(0.8))
    inner = into - skull
    image = _mix(image, draw.edge(inner), _brain(draw, inner, lateral))
    if draw.chance(0.5):  # sinuses and mastoid cells near the base
        cells = (
            draw.edge(3.0 * draw.field(draw.uniform(1.5, 3.0)) - 1.0) * draw.edge(depth - scalp) * (draw.y < -0.55 * b)
        )
        image = _mix(image, cells, draw.uniform(-1000.0, -950.0))
    return _blobs(draw, image, int(draw.uniform(0, 30)), draw.edge(inner)).clamp(-1000.0, 3000.0)


def clean_image(
    seed: int, size: int, pixel_mm: float, device: torch.device, z_mm: float = 0.0, heads: float = HEAD_SHARE
) -> Tensor:
    """The clean image of ``seed``, and what lies ``z_mm`` beside it: (row, column) [HU]; ``heads``: share of heads."""
    draw = Draw(seed, size, pixel_mm, device, z_mm)
    return head_slice(draw) if draw.chance(heads) else random_shapes(draw)


def _region(draw: Draw, scale_mm: float) -> Tensor:
    """Approximate depth [mm] inside random regions some ``scale_mm`` wide, negative outside."""
    return (draw.field(scale_mm) - draw.uniform(0.7, 1.6)) * scale_mm


def _spongy_bone(draw: Draw, image: Tensor) -> Tensor:
    """``image`` with cancellous bone in places: a fine net of 0.3-0.7 lp/mm within a shell."""
    depth = _region(draw, draw.uniform(5.0, 18.0))
    tissue = (image > -300.0).to(image.dtype)
    shell = draw.uniform(0.5, 2.5) if draw.chance(0.6) else 0.0
    image = _mix(image, draw.edge(depth) * tissue, draw.uniform(400.0, 1300.0))
    net = draw.field(draw.uniform(0.4, 0.8)) + draw.uniform(0.0, 0.8) * draw.field(draw.uniform(1.0, 2.0))
    inner = draw.uniform(40.0, 350.0) + draw.log_uniform(12.0, 90.0) * net
    return _mix(image, draw.edge(depth - shell) * tissue, inner)


def _streaked_muscle(draw: Draw, image: Tensor) -> Tensor:
    """``image`` with strands of fat in places, 1 to 4 mm apart."""
    inside = draw.edge(_region(draw, draw.uniform(8.0, 25.0)))
    soft = ((image > -150.0) & (image < 200.0)).to(image.dtype)
    strands = draw.ridges(draw.uniform(0.8, 3.0), draw.uniform(0.1, 0.4))
    return image - draw.log_uniform(8.0, 80.0) * strands * inside * soft


def thick_image(seed: int, size: int, pixel_mm: float, device: torch.device) -> Tensor:
    """The clean image of ``seed`` as a slice of 0.6 to 7 mm shows it, half of them heads: (row, column) [HU].

    The mean of `THICK_PLANES` planes: what slants through the slice has no sharp edge, as in most clinical images. What
    is fine in real slices is added after it, as it would not outlast the mean: cancellous bone, strands of fat and
    texture.
    """
    draw = Draw(seed + THICK_SEED, size, pixel_mm, device)
    reach = 0.5 * draw.log_uniform(*THICKNESS_MM)
    places = [reach * (2.0 * (k + 0.5) / THICK_PLANES - 1.0) for k in range(THICK_PLANES)]
    image = torch.stack([clean_image(seed, size, pixel_mm, device, z, THICK_HEADS) for z in places]).mean(0)
    for chance, part in ((0.6, _spongy_bone), (0.3, _spongy_bone), (0.5, _streaked_muscle)):
        if draw.chance(chance):
            image = part(draw, image)
    soft = ((image + 150.0) / 50.0).clamp(0.0, 1.0) * ((250.0 - image) / 50.0).clamp(0.0, 1.0)
    return image + draw.uniform(0.0, 2.0) * (draw.field(0.8) + draw.field(2.5)) * soft
