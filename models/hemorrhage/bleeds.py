"""Hemorrhages for a procedural head: epidural, subdural, subarachnoid, intraparenchymal, intraventricular (ml-ct 2.2).

A bleed is a share of blood per voxel and a density. Mass effect displaces the brain before the blood is painted, so the
labels of ventricles and mid-plane stay exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from models.hemorrhage.brain import Brain
from models.hemorrhage.grid import Array, Point, cover, ellipsoid, noise, upsample
from models.hemorrhage.head import Frame

#: Label values, as ``detect.CLASSES`` counts them.
EPIDURAL: Final = 1
SUBDURAL: Final = 2
SUBARACHNOID: Final = 3
INTRAPARENCHYMAL: Final = 4
INTRAVENTRICULAR: Final = 5


@dataclass(slots=True, kw_only=True)
class Bleeding:
    """All blood of one head, filled in by the functions below."""

    #: Share of blood by label value, coarse grid.
    shares: dict[int, Array] = field(default_factory=dict)
    #: Density by label value [HU], coarse.
    density: dict[int, Array] = field(default_factory=dict)
    #: Displacement of the brain (x, y, z) [mm], coarse.
    push: Array
    #: Low-density edema round clots: its share, coarse.
    edema: Array
    #: How much sulci and ventricles beneath are squeezed shut, coarse.
    squeeze: Array

    def add(self, label: int, share: Array, density: Array) -> None:
        """Join ``share`` of blood to the class ``label``."""
        old = self.shares.get(label)
        if old is None:
            self.shares[label], self.density[label] = share.astype(np.float32), density.astype(np.float32)
            return
        self.density[label] = np.where(share > old, density, self.density[label]).astype(np.float32)
        self.shares[label] = np.maximum(old, share).astype(np.float32)


def nothing(frame: Frame) -> Bleeding:
    """A head without blood."""
    empty = np.zeros_like(frame.depth)
    return Bleeding(push=np.zeros((3, *empty.shape), np.float32), edema=empty, squeeze=empty.copy())


def _surface_point(frame: Frame, brain: Brain, rng: np.random.Generator, supratentorial: bool) -> Point:
    """A random place on the vault's inner table."""
    c = frame.at
    shell = (np.abs(frame.cavity) < 1.5) & (np.abs(c.x) > 12)
    shell &= (brain.above > 6) & (c.z > -32) if supratentorial else (brain.above < -4) & (c.y > 35) & (c.z > -56)
    places = np.flatnonzero(shell)
    place = int(places[rng.integers(len(places))])
    return float(c.x.flat[place]), float(c.y.flat[place]), float(c.z.flat[place])


def _from(frame: Frame, centre: Point) -> Array:
    c = frame.at
    distance: Array = np.sqrt((c.x - centre[0]) ** 2 + (c.y - centre[1]) ** 2 + (c.z - centre[2]) ** 2)
    return distance


def _clot(rng: np.random.Generator, low: float, high: float, swirl_chance: float) -> Array:
    """Density of a clot [HU]: a mean, texture, and fresh darker swirls in some."""
    density = rng.uniform(low, high) + 2.5 * noise(rng, 12.0)
    if rng.random() < swirl_chance:
        density -= rng.uniform(5, 20) * np.clip(noise(rng, 22.0) - 0.6, 0.0, 1.0)
    return density.astype(np.float32)


def _push_from(out: Bleeding, frame: Frame, centre: Point, thickness: float, reach: float, share: float) -> None:
    """Move the brain inwards from ``centre``, fading with distance and towards the skull."""
    c, away = frame.at, _from(frame, centre)
    inward = -np.array(centre, np.float32) / (float(np.linalg.norm(centre)) + 1e-6)
    amount = share * thickness * np.exp(-((away / (reach + 28.0)) ** 2)) * np.clip(frame.depth / 10.0, 0.0, 1.0)
    amount *= np.clip((c.z + 45) / 20.0, 0.0, 1.0)
    out.push += inward[:, None, None, None] * amount
    out.squeeze = np.maximum(out.squeeze, 0.9 * np.exp(-((away / (reach + 6.0)) ** 4)) * min(1.0, thickness / 8.0))


def add_epidural(out: Bleeding, frame: Frame, brain: Brain, rng: np.random.Generator) -> None:
    """A lens: t(r) = T (1 - (r/R)^2)^0.8."""
    centre = _surface_point(frame, brain, rng, rng.random() < 0.88)
    thickness = float(np.exp(rng.uniform(np.log(4.0), np.log(24.0))))
    radius = min(42.0, thickness * rng.uniform(1.25, 2.6) + 6.0)
    away = _from(frame, centre) + 1.5 * noise(rng, 20.0)
    local = thickness * np.clip(1.0 - (away / radius) ** 2, 0.0, 1.0) ** 0.8
    share = cover(frame.vault_depth - local, 1.5) * (local > 0.3) * (frame.cavity < 1.0)
    out.add(EPIDURAL, share, _clot(rng, 55, 80, 0.35))
    _push_from(out, frame, centre, thickness, radius, rng.uniform(0.3, 0.7))


def add_subdural(out: Bleeding, frame: Frame, brain: Brain, rng: np.random.Generator) -> None:
    """A crescent over one hemisphere, or along falx or tentorium; some isodense, some with a fluid level."""
    c = frame.at
    kind = rng.random()
    density = _clot(rng, 52, 76, 0.3)
    if kind < 0.12:
        density = _clot(rng, 40, 48, 0.2)
    elif kind < 0.28:  # a level, denser behind
        level = rng.uniform(-25, 40)
        density = density - rng.uniform(15, 30) * np.clip((level - c.y) / 10.0, 0.0, 1.0)
    if rng.random() < 0.22:
        _parafalcine(out, frame, brain, density.astype(np.float32), rng)
        return
    centre = _surface_point(frame, brain, rng, True)
    side = np.sign(centre[0])
    thickness, reach = float(np.exp(rng.uniform(np.log(3.0), np.log(18.0)))), rng.uniform(42, 95)
    away = _from(frame, centre) + 3.0 * noise(rng, 35.0)
    local = thickness * np.clip(1.0 - (away / reach) ** 2, 0.0, 1.0) ** rng.uniform(0.35, 0.6)
    local = local * np.clip(1.0 + 0.18 * noise(rng, 25.0), 0.4, 1.5)
    inside = np.maximum(frame.vault_depth - local, np.maximum(2.5 - side * c.x, 1.5 - brain.above))
    out.add(SUBDURAL, cover(inside, 1.5) * (local > 0.5) * (frame.cavity < 1.0), density.astype(np.float32))
    _push_from(out, frame, centre, thickness, 0.75 * reach, rng.uniform(0.3, 0.7))


def _parafalcine(out: Bleeding, frame: Frame, brain: Brain, density: Array, rng: np.random.Generator) -> None:
    c, side, width = frame.at, rng.choice([-1.0, 1.0]), rng.uniform(2.6, 7.0)
    middle, reach = (rng.uniform(-50, 50), rng.uniform(20, 60)), rng.uniform(28, 60)
    if rng.random() < 0.3:  # on the tentorium
        fade = np.clip(1.0 - ((c.y - 45) / 45) ** 2, 0.0, 1.0) ** 0.5
        inside = np.maximum(brain.above - 1.5 - width * fade, 0.8 - brain.above)
        inside = np.maximum(np.maximum(inside, 2 - side * c.x), np.maximum(14 - c.y, side * c.x - rng.uniform(30, 55)))
    else:
        fade = np.clip(1.0 - ((c.y - middle[0]) / reach) ** 2 - ((c.z - middle[1]) / reach) ** 2, 0.0, 1.0) ** 0.45
        inside = np.maximum(side * c.x - width * fade, 0.6 - side * c.x)
        inside = np.maximum(np.maximum(inside, 18 - 0.008 * c.y**2 - c.z), 3.0 - brain.above)
    out.add(SUBDURAL, cover(inside, 1.5) * (frame.depth > 0), density)


def add_subarachnoid(out: Bleeding, frame: Frame, brain: Brain, rng: np.random.Generator) -> None:
    """Blood mixed into CSF of the basal cisterns, of a patch of convexity, or everywhere."""
    c, kind = frame.at, rng.random()
    if kind < 0.45:
        region = np.clip(1.4 - np.sqrt((c.x / 50) ** 2 + ((c.y + 2) / 36) ** 2 + ((c.z + 16) / 24) ** 2), 0.0, 1.0)
    elif kind < 0.85:
        centre = _surface_point(frame, brain, rng, True)
        region = np.clip((rng.uniform(22, 50) - _from(frame, centre)) / 8.0, 0.0, 1.0)
        region *= np.clip(np.sign(centre[0]) * c.x / 2.0, 0.0, 1.0)
    else:
        region = np.ones_like(c.x)
    patchy = np.clip(rng.uniform(0.7, 1.3) + 0.5 * noise(rng, 30.0), 0.0, 1.0)
    mixing = np.clip(rng.uniform(0.45, 1.15), 0.0, 1.0)
    share = brain.subarachnoid * np.clip(region * 1.5, 0.0, 1.0) * patchy * mixing * (frame.depth > 0.5)
    out.add(SUBARACHNOID, share, _clot(rng, 52, 78, 0.0))


def _parenchymal_place(frame: Frame, brain: Brain, rng: np.random.Generator) -> tuple[Point, float]:
    """Centre and largest radius by kind: ganglia 45 %, lobar 35, cerebellum 10, pons 4, contusion 6 (ml-ct 2.2)."""
    kind, side = rng.random(), float(rng.choice([-1, 1]))
    if kind < 0.45:
        return (side * rng.uniform(10, 32), rng.uniform(-16, 20), rng.uniform(-4, 16)), 26.0
    if kind < 0.55:
        return (side * rng.uniform(5, 32), rng.uniform(38, 62), rng.uniform(-46, -18)), 18.0
    if kind < 0.59:
        return (rng.uniform(-5, 5), rng.uniform(14, 20), rng.uniform(-34, -18)), 10.0
    c = frame.at
    ok = (brain.above > 12) & (frame.depth > 7) & (frame.depth < 34) & (np.abs(c.x) > 12)
    largest = 26.0
    if kind < 0.67:  # contusions: poles of the frontal and temporal lobes
        ok = (frame.depth > 3) & (frame.depth < 11) & (c.z < -4) & (c.y < 0) & (brain.above > 6)
        largest = 12.0
    places = np.flatnonzero(ok)
    place = int(places[rng.integers(len(places))])
    return (float(c.x.flat[place]), float(c.y.flat[place]), float(c.z.flat[place])), largest


def add_intraparenchymal(out: Bleeding, frame: Frame, brain: Brain, rng: np.random.Generator) -> None:
    """A noise-deformed ellipsoid with a rim of edema, which may break into a ventricle."""
    centre, largest = _parenchymal_place(frame, brain, rng)
    radius = float(np.exp(rng.uniform(np.log(3.5), np.log(largest))))
    radii = tuple(float(radius * rng.uniform(0.7, 1.35)) for _ in range(3))
    distance = ellipsoid(frame.at, centre, radii)  # type: ignore[arg-type]
    distance = distance + 0.16 * radius * noise(rng, max(12.0, 1.2 * radius)) + 0.5 * noise(rng, 9.0)
    inside = np.maximum(distance, 1.2 - frame.depth)
    if centre[2] > -4:
        inside = np.maximum(inside, 2.0 - np.sign(centre[0]) * frame.at.x) if abs(centre[0]) > 8 else inside
    out.add(INTRAPARENCHYMAL, cover(inside, 1.5), _clot(rng, 54, 78, 0.3))
    ring = rng.uniform(1.0, 9.0) if rng.random() < 0.75 else 0.1
    out.edema = np.maximum(out.edema, cover(distance - ring + 1.5 * noise(rng, 18.0), 4.0) * rng.uniform(0.5, 1.0))
    away = np.maximum(_from(frame, centre), 1.0)
    outward = np.stack([frame.at.x - centre[0], frame.at.y - centre[1], frame.at.z - centre[2]]) / away
    amount = rng.uniform(0.2, 0.55) * radius**3 / (away**2 + radius**2) * np.clip(frame.depth / 12.0, 0.0, 1.0)
    out.push += (outward * np.minimum(amount, 9.0)).astype(np.float32)
    near = np.exp(-((away / (1.7 * radius + 6.0)) ** 4))
    out.squeeze = np.maximum(out.squeeze, 0.8 * near * min(1.0, radius / 14.0))
    touches = any(float(np.min(np.maximum(distance, chamber))) < 2.0 for chamber in brain.chambers)
    if touches and rng.random() < 0.6:
        add_intraventricular(out, frame, brain, rng)


def add_intraventricular(out: Bleeding, frame: Frame, brain: Brain, rng: np.random.Generator) -> None:
    """A level in the dependent horns (60 %), one ventricle, or a cast of all."""
    c, kind = frame.at, rng.random()
    open_ = np.minimum.reduce(brain.chambers)
    if kind < 0.6:
        inside = np.maximum(open_, rng.uniform(30, 48) + 0.8 * noise(rng, 20.0) - c.y)
    elif kind < 0.85:
        inside = brain.chambers[rng.integers(len(brain.chambers))]
        inside = np.maximum(inside, rng.uniform(-40, 25) - c.y + 3.0 * noise(rng, 20.0))
    else:
        inside = open_ - 0.8
    share = cover(inside, 1.5) * np.clip(rng.uniform(0.7, 1.3), 0.0, 1.0)
    out.add(INTRAVENTRICULAR, share, _clot(rng, 50, 78, 0.1))


Adder = Callable[[Bleeding, Frame, Brain, np.random.Generator], None]
ADDERS: Final[tuple[Adder, ...]] = (
    add_epidural,
    add_subdural,
    add_subarachnoid,
    add_intraparenchymal,
    add_intraventricular,
)
#: How often each class leads, and how often a second class goes with it; rare classes are over-represented on purpose.
LEADS: Final = (0.18, 0.26, 0.20, 0.24, 0.12)
SECOND_CHANCE: Final = 0.25


def draw_bleeding(frame: Frame, brain: Brain, rng: np.random.Generator) -> Bleeding:
    """One or two bleeds."""
    out = nothing(frame)
    first = int(rng.choice(5, p=LEADS))
    ADDERS[first](out, frame, brain, rng)
    if rng.random() < SECOND_CHANCE:
        ADDERS[int(rng.choice(5, p=LEADS))](out, frame, brain, rng)
    return out


def fine_density(out: Bleeding) -> tuple[dict[int, Array], Array]:
    """Shares of blood by class and the blood's density [HU], both on the fine grid; the shares sum to at most 1."""
    left: Array | None = None
    shares, mixed, weight = {}, None, None
    for label in sorted(out.shares):
        share = upsample(out.shares[label])
        share = share if left is None else share * left
        left = (1.0 - share) if left is None else left * (1.0 - share)
        shares[label] = share
        density = upsample(out.density[label])
        mixed = share * density if mixed is None else mixed + share * density
        weight = share if weight is None else weight + share
    if mixed is None or weight is None:
        raise ValueError("no bleed to paint")
    return shares, (mixed / np.maximum(weight, 1e-4)).astype(np.float32)
