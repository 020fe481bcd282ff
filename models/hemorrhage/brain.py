"""A procedural brain to fill a cavity: tissue, CSF, ventricles, falx and tentorium, vessels and calcifications.

Every dense thing painted here is a mimic: it is never labelled as blood (ml-ct 1.3).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.hemorrhage.grid import Array, Coordinates, capsule, cover, ellipsoid, noise, paint, smooth_min, upsample
from models.hemorrhage.head import Frame


@dataclass(frozen=True, slots=True, kw_only=True)
class Brain:
    """What fills the cavity, on the fine grid; mass effect displaces it as a whole (bleeds.py)."""

    #: Tissue without its CSF, with falx, sinuses, vessels and calcifications [HU].
    tissue: Array
    #: Share of CSF in sulci, cisterns and under the inner table; the ventricles are not in it.
    csf: Array
    #: Share of ventricle.
    ventricle: Array
    #: Distance from the mid-plane [mm], positive on the patient's left.
    aside: Array
    #: Height above the tentorium [mm], coarse grid.
    above: Array
    #: Subarachnoid space that blood could fill: CSF and twice its width, coarse grid.
    subarachnoid: Array
    #: Distances to single ventricles [mm], coarse grid: right, left, third, fourth.
    chambers: tuple[Array, ...]
    #: CSF [HU].
    csf_hu: float
    #: Atrophy, 0 young to 1 old.
    atrophy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What the parts of one brain share."""

    c: Coordinates
    depth: Array
    above: Array
    atrophy: float
    #: The two tissues [HU].
    white: float
    grey: float
    #: Blood in vessels [HU].
    pool: float


def _above_tentorium(c: Coordinates) -> Array:
    """Height above a tent from the petrous ridges and transverse sinuses to the straight sinus [mm]."""
    apex = 8.0 - 0.25 * np.abs(c.y - 40)
    tent = np.maximum(apex - 0.55 * np.abs(c.x), -26.0)
    front = np.clip((c.y - 8) / 12.0, 0.0, 1.0)  # no tentorium in front of the petrous ridges
    height: Array = (c.z - (tent * front - 60.0 * (1.0 - front))).astype(np.float32)
    return height


def _ventricles(plan: _Plan, rng: np.random.Generator) -> tuple[Array, ...]:
    """Distances to both lateral, the third and the fourth ventricle (ml-ct 2.2: tapered capsules)."""
    c, size = plan.c, 0.55 + 1.2 * plan.atrophy * rng.uniform(0.6, 1.2)
    lateral = []
    for side in (c, c.mirrored()):
        s = size * rng.uniform(0.88, 1.12)
        out = 3.0 * (s - 1.0)
        parts = [
            capsule(side, (7 + out, -33, 10), (9 + out, -12, 20), 4.2 * s, 4.5 * s),
            capsule(side, (9 + out, -12, 20), (14 + out, 18, 22), 4.2 * s, 5.5 * s),
            capsule(side, (14 + out, 18, 22), (24 + out, 34, 10), 5.5 * s, 6.5 * s),
            capsule(side, (24 + out, 36, 8), (21 + out, 60, 6), 5.0 * s, 1.2 * s),
            capsule(side, (25 + out, 32, 6), (32 + out, 8, -18), 3.6 * s, 1.8 * s),
            capsule(side, (32 + out, 8, -18), (29 + out, -6, -22), 1.8 * s, 2.2 * s),
        ]
        union = parts[0]
        for part in parts[1:]:
            union = smooth_min(union, part, 3.0)
        lateral.append((union + 0.5 * noise(rng, 16.0)).astype(np.float32))
    third = np.maximum(ellipsoid(c, (0, -2, 2), (1.2 + 2.6 * size, 15, 11)), -30 - c.y)
    fourth = ellipsoid(c, (0, 32, -30), (3.0 + 4.5 * size, 3.0 + 2.5 * size, 11))
    aqueduct = capsule(c, (0, 12, -6), (0, 26, -22), 1.0)
    return lateral[1], lateral[0], third.astype(np.float32), smooth_min(fourth, aqueduct, 2.0)


def _cisterns(plan: _Plan, rng: np.random.Generator) -> Array:
    c, w = plan.c, 0.6 + 0.9 * plan.atrophy
    parts = [ellipsoid(c, (0, -8, -16), (9 + 5 * w, 8 + 3 * w, 6)), ellipsoid(c, (0, 5, -34), (13, 4 + 2 * w, 14))]
    parts += [ellipsoid(c, (0, 34, -2), (9, 4 + 2 * w, 6)), ellipsoid(c, (0, 60, -56), (13, 8, 4 + 4 * w))]
    ring = np.abs(ellipsoid(c, (0, 16, -14), (18, 16, 30)) + 1.6 * noise(rng, 18.0)) - (0.6 + 1.1 * w)
    ring += np.clip(2.5 * noise(rng, 20.0) - 1.0, 0.0, 4.0)  # never a whole circle
    parts.append(np.maximum(ring, np.abs(c.z + 10) - 14))
    for side in (c, c.mirrored()):
        parts.append(capsule(side, (10, -10, -15), (30, -10, -12), 1.2 + 1.2 * w, 1.4 + 1.6 * w))
        parts.append(capsule(side, (14, 10, -38), (26, 16, -38), 1.5 + w))
        bent = 36 + 0.15 * (side.z - 5) ** 2 / 10 + 3 * np.sin(side.y / 9.0)
        sheet = np.maximum(np.abs(side.x - bent) - (0.5 + 1.5 * w), np.abs(side.z - 2) - 14)
        parts.append(np.maximum(sheet, np.abs(side.y - 2) - 20))
        tilt = np.abs(side.z - (2 + 0.35 * (side.y + 10))) - (0.4 + 1.6 * w)
        parts.append(np.maximum(np.maximum(tilt, 32 - side.x), np.abs(side.y + 2) - 24))
    union = parts[0]
    for part in parts[1:]:
        union = np.minimum(union, part)
    return (union + 0.8 * noise(rng, 11.0)).astype(np.float32)


def _sulci(plan: _Plan, rng: np.random.Generator, fold: Array, depth: Array) -> Array:
    """Share of CSF in sulci: ridges of band-limited noise, deeper ones rarer (fine grid)."""
    broken = upsample(np.clip(0.8 + 1.0 * noise(rng, 26.0), 0.0, 1.0))
    width = 0.26 + 0.7 * plan.atrophy
    reach = 10.0 + 10.0 * plan.atrophy
    gate = np.clip((reach + 6.0 - depth) / 10.0, 0.0, 1.0)
    share: Array = np.exp(-((fold / width) ** 2)) * broken * gate * rng.uniform(0.7, 1.0)
    return share


def _falx(tissue: Array, plan: _Plan, rng: np.random.Generator) -> None:
    """Falx, tentorium and the venous sinuses at their edges."""
    c, membrane, pool = plan.c, rng.uniform(40, 62), plan.pool
    bow = 0.8 * noise(rng, 60.0)
    lower = 24.0 - 0.012 * c.y**2 - 12.0 * (c.y > 20) * np.clip((c.y - 20) / 30, 0, 1)
    lower = np.where(c.y < -40, np.minimum(lower, 10.0), lower)
    sheet = np.maximum(np.abs(c.x + bow) - rng.uniform(0.5, 1.3), np.maximum(lower - c.z, -plan.above))
    paint(tissue, sheet, membrane, 1.6, rng.uniform(0.5, 1.0))
    tent = np.maximum(np.abs(plan.above) - rng.uniform(0.7, 1.5), np.maximum(11.0 - c.y, 10 + 0.0 * c.x - np.abs(c.x)))
    paint(tissue, tent, membrane, 1.8, rng.uniform(0.4, 1.0))
    sagittal = np.maximum(np.abs(c.x + bow) + 0.7 * plan.depth - rng.uniform(3.0, 7.5), np.maximum(-8 - c.z, -55 - c.y))
    paint(tissue, sagittal, pool, 2.0)
    paint(tissue, capsule(c, (0, 28, 10), (0, 74, -14), rng.uniform(1.6, 3.0)), pool)
    wide = (rng.uniform(8, 26), rng.uniform(5, 11))  # the confluence, a thick band on some occipital bones
    confluence = ellipsoid(c, (rng.uniform(-10, 10), 84, -14 + rng.uniform(-5, 7)), (wide[0], 40, wide[1]))
    paint(tissue, np.maximum(confluence, plan.depth - rng.uniform(4, 11)), pool, 2.0)
    dominant = rng.uniform(0.5, 1.0, 2) * rng.uniform(1.0, 1.5)
    for side, size in zip((c, c.mirrored()), dominant, strict=True):
        groove = np.abs(side.z + 15 + 0.08 * (74 - side.y)) + 0.8 * plan.depth - 7.5 * size
        paint(tissue, np.maximum(np.maximum(groove, 36 - side.y), 2 - side.x), pool)
        sigmoid = capsule(side, (57, 34, -24), (44, 24, -56), 5.5 * size, 4.0 * size)
        paint(tissue, np.maximum(sigmoid, plan.depth - 7), pool)
        paint(tissue, capsule(side, (11, -14, -24), (14, 2, -27), rng.uniform(3, 6.5)), rng.uniform(42, 68))
        if rng.random() < 0.35:  # the calcified siphon
            paint(tissue, capsule(side, (11, -12, -22), (12, -4, -25), 1.6), rng.uniform(150, 700))
    paint(tissue, ellipsoid(c, (0, -8, -23), tuple(rng.uniform(3, 9, 3))), rng.uniform(40, 70))  # type: ignore[arg-type]
    paint(tissue, capsule(c, (-7, 1, -20), (7, 1, -20), rng.uniform(0.6, 2.0)), rng.uniform(200, 900))  # dorsum sellae


def _vessels(tissue: Array, plan: _Plan, rng: np.random.Generator) -> None:
    """The large arteries of the base and calcified walls in some of them."""
    c, pool, r = plan.c, plan.pool, rng.uniform(1.0, 2.0)
    courses = [((0, 1, -22), (rng.uniform(-4, 4), 5, -50), 1.3 * r)]
    for sign in (-1, 1):
        bend = rng.uniform(-3, 3)
        courses.append(((sign * 10, -8, -20), (sign * 30, -8 + bend, -12), r))
        courses.append(((sign * 30, -8 + bend, -12), (sign * 38, 8, 0), 0.8 * r))
        courses.append(((sign * 3, -20, -14), (sign * 2, -32, 12), 0.8 * r))
        courses.append(((sign * 3, 0, -21), (sign * 18, 16, -14), 0.8 * r))
        courses.append(((sign * 10, -8, -20), (sign * 12, -4, -28), 1.3 * r))
        courses.append(((sign * 8, 8, -58), (sign * 2, 4, -46), 1.0 * r))
    for start, end, radius in courses:
        paint(tissue, capsule(c, start, end, radius), pool + rng.uniform(-4, 8))
        if rng.random() < 0.12 * (1 + 2 * plan.atrophy):
            point = tuple(start[k] + rng.random() * (end[k] - start[k]) for k in range(3))
            paint(tissue, ellipsoid(c, point, (1.8, 1.8, 1.8)), rng.uniform(120, 500))  # type: ignore[arg-type]


def _calcifications(tissue: Array, plan: _Plan, rng: np.random.Generator) -> None:
    c = plan.c
    if rng.random() < 0.7:
        paint(tissue, ellipsoid(c, (0, 28, 3), tuple(rng.uniform(1.5, 4.5, 3))), rng.uniform(80, 500))  # type: ignore[arg-type]
    for sign in (-1, 1):
        if rng.random() < 0.55:
            place = (sign * rng.uniform(20, 28), rng.uniform(26, 42), rng.uniform(2, 14))
            paint(tissue, ellipsoid(c, place, tuple(rng.uniform(1.5, 5, 3))), rng.uniform(60, 400))  # type: ignore[arg-type]
        if rng.random() < 0.15:
            place = (sign * rng.uniform(15, 24), rng.uniform(-10, 6), rng.uniform(-2, 8))
            paint(tissue, ellipsoid(c, place, tuple(rng.uniform(1.5, 5, 3))), rng.uniform(50, 250))  # type: ignore[arg-type]
    for _ in range(rng.poisson(0.8)):
        place = (rng.uniform(-2, 2), rng.uniform(-70, 60), rng.uniform(15, 68))
        paint(tissue, ellipsoid(c, place, tuple(rng.uniform(1, 5, 3))), rng.uniform(100, 700))  # type: ignore[arg-type]
    for _ in range(rng.poisson(0.3)):
        place = (rng.uniform(-50, 50), rng.uniform(-60, 60), rng.uniform(-40, 60))
        paint(tissue, ellipsoid(c, place, tuple(rng.uniform(1, 2.5, 3))), rng.uniform(80, 600))  # type: ignore[arg-type]


def _old_damage(tissue: Array, csf: Array, plan: _Plan, ventricles: Array, rng: np.random.Generator) -> None:
    """Leukoaraiosis, lacunes and old infarcts: dark, never blood."""
    c = plan.c
    if rng.random() < plan.atrophy * 0.9:
        halo = ventricles - rng.uniform(3, 11) + 3.0 * noise(rng, 18.0)
        paint(tissue, halo, rng.uniform(17, 24), 6.0, rng.uniform(0.3, 0.9))
    for _ in range(rng.poisson(0.6 * plan.atrophy)):
        place = (rng.uniform(-30, 30), rng.uniform(-35, 25), rng.uniform(-8, 25))
        paint(tissue, ellipsoid(c, place, tuple(rng.uniform(1.5, 5, 3))), rng.uniform(6, 20))  # type: ignore[arg-type]
    if rng.random() < 0.22:
        place = (rng.choice([-1, 1]) * rng.uniform(22, 60), rng.uniform(-60, 65), rng.uniform(-35, 50))
        radius = rng.uniform(8, 28)
        scar = ellipsoid(c, place, (radius, radius * rng.uniform(0.7, 1.5), radius)) + 0.25 * radius * noise(rng, 22.0)
        scar = np.maximum(scar, -plan.above) if place[2] > -15 else scar
        paint(tissue, scar, rng.uniform(9, 24), 5.0, rng.uniform(0.6, 1.0))
        paint(csf, scar + 4.0, 1.0, 4.0, rng.uniform(0.0, 0.6))


def _parenchyma(plan: _Plan, rng: np.random.Generator, fold: Array, depth: Array) -> Array:
    """Cortex along sulci and surface, white matter, deep nuclei, cerebellum and brain stem [HU] (fine grid)."""
    c, grey, white = plan.c, plan.grey, plan.white
    ribbon = rng.uniform(0.35, 0.6)
    cortex = np.clip(1.6 - np.abs(fold) / ribbon, 0.0, 1.0) * np.clip((22.0 - depth) / 8.0, 0.0, 1.0)
    cortex = np.maximum(cortex, np.clip((4.5 - depth) / 2.0, 0.0, 1.0))
    medial = upsample(np.clip((5.0 - np.abs(c.x)) / 2.0, 0, 1) * (np.clip((-c.z + 24) / 6, 0, 1) < 1))
    cortex = np.maximum(cortex, medial)
    blend = upsample(np.clip((19.0 - plan.depth) / 12.0, 0.0, 1.0) * 0.5)  # folds too fine to be drawn
    cortex = np.clip(np.maximum(cortex, blend) + 0.16 * upsample(noise(rng, 24.0)), 0.0, 1.0)
    tissue: Array = white + (grey - white) * cortex
    deep = grey - rng.uniform(0, 2.5)
    for side in (c, c.mirrored()):
        paint(tissue, ellipsoid(side, (13, -20, 10), (5, 12, 10)), deep, 2.5)
        paint(tissue, ellipsoid(side, (23, -4, 3), (7, 15, 10)), deep, 2.5)
        paint(tissue, ellipsoid(side, (11, 12, 8), (9, 13, 10)), deep - 1, 2.5)
        paint(tissue, np.abs(ellipsoid(side, (34, -2, 3), (5, 18, 14))) - 1.5, deep, 2.5)
    folia = upsample(noise(rng, 7.0, 0.4, (0.7, 1.0, 1.6)))
    below = cover(upsample(plan.above) + 1.0, 3.0) * upsample(np.clip((c.y - 14) / 4, 0, 1))
    tissue += below * (rng.uniform(29, 38) + 0.8 * folia - tissue)
    stem = capsule(c, (0, 12, -4), (0, 24, -66), 15.0, 8.0)
    paint(tissue, np.maximum(stem, c.z + 6), rng.uniform(27, 34), 4.0)
    paint(tissue, capsule(c, (0, 22, -60), (0, 30, -130), 6.5), rng.uniform(28, 38), 2.0)
    texture: Array = upsample(noise(rng, 30.0)) * 0.8 + upsample(noise(rng, 9.0)) * 0.7
    return tissue + texture


def make_brain(frame: Frame, rng: np.random.Generator) -> Brain:
    """A random brain for the cavity of ``frame``."""
    c = frame.at
    atrophy = float(np.clip(rng.beta(1.3, 1.5), 0.0, 1.0))
    white = rng.uniform(23.0, 31.0)
    grey = white + rng.uniform(6.0, 12.0)
    above = _above_tentorium(c)
    plan = _Plan(c=c, depth=frame.depth, above=above, atrophy=atrophy, white=white, grey=grey, pool=rng.uniform(40, 62))
    depth = upsample(frame.depth)
    fold = upsample(noise(rng, rng.uniform(19, 26), 0.45) + 0.35 * noise(rng, 12.0, 0.4))
    tissue = _parenchyma(plan, rng, fold, depth)
    cerebrum = cover(-upsample(above), 3.0)
    csf = _sulci(plan, rng, fold, depth) * cerebrum
    layer = (0.4 + 3.0 * atrophy**2) * np.clip(1.0 + 0.5 * noise(rng, 30.0), 0.2, 2.5) * np.where(c.y < 0, 1.2, 0.8)
    csf = np.maximum(csf, cover(depth - upsample(layer.astype(np.float32)), 1.5))
    fissure = np.maximum(np.abs(c.x) - (0.2 + 1.6 * atrophy) * np.clip(1 + 0.8 * noise(rng, 22.0), 0.1, 2), 18 - c.z)
    canal = np.maximum(c.z + 58, np.hypot(c.x, c.y - 28) - 14)
    cisterns = np.minimum(np.minimum(_cisterns(plan, rng), fissure), np.where(c.z < -64, canal, 9.0))
    csf = np.maximum(csf, cover(upsample(cisterns.astype(np.float32)), 1.8))
    csf *= 1.0 - cover(upsample(capsule(c, (0, 22, -60), (0, 30, -130), 6.0)), 2.0)
    chambers = _ventricles(plan, rng)
    ventricles = np.minimum.reduce(chambers)
    _old_damage(tissue, csf, plan, ventricles, rng)
    _falx(tissue, plan, rng)
    _vessels(tissue, plan, rng)
    _calcifications(tissue, plan, rng)
    csf = csf * np.clip(1.0 - (tissue - grey - 4.0) / 8.0, 0.0, 1.0)  # membranes and vessels lie in the CSF
    wide = np.minimum(cisterns - 0.8, frame.depth - 2.0)
    sulcal = np.exp(-((fold[::2, ::2, ::2] / (0.1 + 0.15 * atrophy)) ** 2)) * np.clip((16 - frame.depth) / 6, 0, 1)
    space = np.maximum(cover(wide, 1.5), sulcal * (above > 0)).astype(np.float32)
    calm = np.clip(1.0 - (tissue - 60.0) / 20.0, 0.0, 1.0)  # choroid calcification stays in the ventricle
    return Brain(
        tissue=tissue,
        csf=csf.astype(np.float32),
        ventricle=cover(upsample(ventricles), 1.6) * calm,
        aside=upsample(c.x),
        above=above,
        subarachnoid=space,
        chambers=chambers,
        csf_hu=float(rng.uniform(2.0, 11.0)),
        atrophy=atrophy,
    )
