"""A procedural head without its brain: cavity, skull, skull base, face, scalp and neck (ml-ct 2.2).

All sizes are adult means from ml-ct 2.2 or read off textbook sections, varied at random; no patient image was used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import ndimage

from models.hemorrhage.grid import (
    COARSE_MM,
    Array,
    Coordinates,
    capsule,
    coarse_coordinates,
    cover,
    ellipsoid,
    noise,
    paint,
    smooth_min,
    upsample,
)

#: Bone of the tables and of the diploe between them [HU] (ml-ct 2.2).
TABLE_HU: Final = (1350.0, 2000.0)
DIPLOE_HU: Final = (450.0, 850.0)
AIR_HU: Final = -1000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What the parts of one head share, on the coarse grid."""

    #: Warped coordinates of the brain's frame.
    at: Coordinates
    #: Signed distance to the inner table [mm], negative inside the cavity.
    cavity: Array
    #: Depth below the inner table [mm], 0 outside.
    depth: Array
    #: Depth below the vault alone, without fossae and ridges: what extra-axial blood lies against [mm].
    vault_depth: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Shell:
    """A head with an empty cavity."""

    frame: Frame
    #: Everything outside the cavity, fine grid [HU].
    hu: Array
    #: Share of each fine voxel inside the cavity.
    inside: Array


def _warped(rng: np.random.Generator) -> Coordinates:
    c = coarse_coordinates()
    size = rng.uniform(0.93, 1.07)
    parts = []
    for axis in (c.x, c.y, c.z):
        bend = noise(rng, 120.0) * rng.uniform(0.8, 2.2) + noise(rng, 50.0) * rng.uniform(0.1, 0.5)
        parts.append((axis / (size * rng.uniform(0.95, 1.05)) + bend).astype(np.float32))
    return Coordinates(x=parts[0], y=parts[1], z=parts[2])


def _cavity(c: Coordinates, rng: np.random.Generator) -> tuple[Array, Array]:
    """Signed distance to the inner table: vault cut by the anterior floor, fossae, petrous ridges and canal.

    The second is the distance to the vault alone.
    """
    e, a, b, h = rng.uniform(2.1, 2.45), rng.uniform(65, 70), rng.uniform(81, 88), rng.uniform(70, 77)
    narrow = 1.0 + 0.10 * np.clip(c.y / b, -1.0, 1.0)  # the forehead is narrower than the parietal eminences
    power = np.abs(c.x / (a * narrow)) ** e + np.abs(c.y / b) ** e + np.abs(c.z / h) ** e
    vault = (power ** (1.0 / e) - 1.0) * 72.0
    roof = np.where(c.y < -25, -17.0, -17.0 - 0.25 * (c.y + 25.0)) + 5.0 * np.exp(-((np.abs(c.x) - 32) ** 2) / 300.0)
    vault = vault.astype(np.float32)
    cavity = np.maximum(vault, roof - c.z)
    low = rng.uniform(-4, 4)
    for side in (c, c.mirrored()):
        middle = ellipsoid(side, (34, -12, -24 + low), (26, 31, 21))
        cavity = smooth_min(cavity, np.maximum(middle, vault - 1.0), 5.0)
    posterior = ellipsoid(c, (0, 45, -28), (53, 40, 36 + low))
    cavity = smooth_min(cavity, np.maximum(posterior, vault - 1.0), 5.0)
    cavity = smooth_min(cavity, capsule(c, (0, 22, -50), (0, 30, -130), 11.5, 8.5), 5.0)
    for side in (c, c.mirrored()):
        ridge = capsule(side, (12, 4, -33 + low / 2), (64, 27, -31), rng.uniform(5.5, 8.0), 9.0)
        wing = capsule(side, (12, -26, -23), (74, -34, rng.uniform(4, 14)), rng.uniform(1.6, 2.6), 4.0)
        cavity = -smooth_min(-cavity, smooth_min(ridge, wing, 3.0), 2.5)
    clivus = capsule(c, (0, -13, -26), (0, 11, -60), 8.5, 6.0)
    cavity = -smooth_min(-cavity, clivus, 3.0)
    return _normalised(cavity), _normalised(vault)


def _normalised(field: Array) -> Array:
    """A field that is zero on a surface, as a first-order distance to it [mm]."""
    gradient = np.sqrt(sum(g**2 for g in np.gradient(field, COARSE_MM)))
    distance: Array = (field / np.clip(gradient, 0.5, 2.0)).astype(np.float32)
    return distance


def make_frame(rng: np.random.Generator) -> Frame:
    """Coordinates, inner table and depth of a random head."""
    at = _warped(rng)
    cavity, vault = _cavity(at, rng)
    far = ndimage.distance_transform_edt(cavity < 0).astype(np.float32) * COARSE_MM - 0.5 * COARSE_MM
    depth = np.where(far < 8.0, np.maximum(-cavity, 0.0), far).astype(np.float32)
    return Frame(at=at, cavity=cavity, depth=depth, vault_depth=np.maximum(-vault, 0.0))


def _soft_tissue(frame: Frame, outer: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Envelope (distance to the skin) and soft tissue between skin and bone [HU], both coarse."""
    c = frame.at
    scalp = rng.uniform(3.5, 8.0) + noise(rng, 80.0) * 0.6
    temple = np.exp(-(((np.abs(c.x) - 66) / 14) ** 2) - ((c.y + 22) / 26) ** 2 - ((c.z + 18) / 26) ** 2)
    skin = outer - scalp - temple * rng.uniform(4, 11)
    face = ellipsoid(c, (0, -42, -62), (62, 56, 66))
    neck = np.maximum(np.hypot(c.x / 1.0, (c.y - 16) / 1.1) - rng.uniform(54, 66), c.z + 45)
    nose = capsule(c, (0, -92, -42), (0, -108, -66), 4.0, 9.0)
    skin = smooth_min(smooth_min(skin, face, 18.0), neck, 22.0)
    skin = smooth_min(skin, nose, 8.0)
    layers = np.sin((np.hypot(c.x, (c.y - 20) * 0.9) + 5.0 * noise(rng, 45.0)) * 2 * np.pi / rng.uniform(14, 24))
    grain = noise(rng, rng.uniform(20, 32), 0.6, (0.5, 1.0, 1.0))
    muscle_at = (
        0.55 * layers + 0.6 * grain + 0.25 * (c.z < -25) + 2.5 * temple - 0.9 * (c.z > 0) + rng.uniform(0.0, 0.35)
    )
    muscle = np.clip(muscle_at * 2.0 + 0.5, 0.0, 1.0)
    fat, flesh = rng.uniform(-108, -80), rng.uniform(46, 66)
    tissue = fat + muscle * (flesh + 4.0 * noise(rng, 12.0) - fat)
    tissue = np.where(skin > -2.2, rng.uniform(0, 45), tissue)
    tissue = np.where((c.z > -10) & (outer < 2.6) & (temple < 0.25), rng.uniform(30, 60), tissue)  # galea
    return skin.astype(np.float32), tissue.astype(np.float32)


def _vault(volume: Array, frame: Frame, thickness: Array, rng: np.random.Generator) -> None:
    """Tables and diploe round the cavity."""
    d = frame.cavity
    table, diploe = rng.uniform(*TABLE_HU), rng.uniform(*DIPLOE_HU)
    inner = rng.uniform(1.0, 1.9)
    texture = diploe + 140.0 * noise(rng, 7.0, 0.7) + 90.0 * noise(rng, 25.0)
    paint(volume, d - thickness, table)
    paint(volume, np.maximum(inner + 0.3 - d, d - (thickness - inner)), texture, 1.8)


def _face(volume: Array, c: Coordinates, rng: np.random.Generator) -> None:
    """Orbits, paranasal sinuses, nose, zygoma, jaw and airway."""
    bone, grain = rng.uniform(700, 1300), noise(rng, 8.0, 0.6)
    cells = noise(rng, rng.uniform(9, 13), 0.5)
    block = np.maximum(np.maximum(np.abs(c.x) - 34, np.abs(c.y + 66) - 24), np.abs(c.z + 46) - 26)
    paint(volume, np.maximum(block, np.abs(grain) * 3.0 - 1.0), bone * 0.6, 2.0)
    swollen = rng.random() < 0.15
    for side in (c, c.mirrored()):
        paint(volume, ellipsoid(side, (33, -70, -44), (19, 16, 4)), bone)
        antrum = ellipsoid(side, (29, -62, -66), (15 + rng.uniform(-3, 3), 18, 17))
        paint(volume, antrum - 2.0, bone)
        paint(volume, antrum, rng.uniform(15, 45) if swollen and rng.random() < 0.5 else AIR_HU)
        orbit = capsule(side, (31, -76, -31), (17, -34, -25), 17.5, 5.5)
        paint(volume, np.maximum(orbit - 2.2, -90 - c.y), bone)
        paint(volume, orbit, rng.uniform(-95, -70))
        for dx, dz in ((9, 0), (-9, 0), (0, 9), (0, -9)):
            paint(volume, capsule(side, (31 + dx, -74, -31 + dz), (18, -38, -26), 2.0), rng.uniform(48, 66))
        paint(volume, capsule(side, (31, -66, -31), (16, -30, -24), 2.4), rng.uniform(25, 42))
        globe = ellipsoid(side, (32, -79, -31), (12.2, 12.2, 12.0))
        paint(volume, globe, rng.uniform(30, 50))
        paint(volume, globe + 1.6, rng.uniform(4, 18))
        paint(volume, ellipsoid(side, (33, -88, -31), (5, 2.5, 5)), rng.uniform(55, 95))
        paint(volume, capsule(side, (44, -66, -54), (67, -8, -48), 3.0), bone)
        paint(volume, capsule(side, (53, 0, -50), (47, -14, -112), 5.0, 4.0), bone * 1.2)
    ethmoid = np.maximum(np.maximum(np.abs(c.x) - 13, np.abs(c.y + 62) - 24), np.abs(c.z + 38) - 17)
    paint(volume, np.maximum(ethmoid, 0.28 - np.abs(cells)), AIR_HU, 0.5)
    nasal = np.maximum(np.maximum(np.abs(c.x) - 14, np.abs(c.y + 62) - 32), np.abs(c.z + 68) - 14)
    paint(volume, np.maximum(nasal, 2.0 * grain - 0.6), AIR_HU, 1.0)
    paint(volume, ellipsoid(c, (0, -22, -88), (12, 8, 30)), AIR_HU)
    if rng.random() < 0.75:
        frontal = ellipsoid(c, (rng.uniform(-8, 8), -93, -6), (rng.uniform(10, 26), 5, rng.uniform(8, 18)))
        paint(volume, np.maximum(frontal, 0.18 - np.abs(cells)), AIR_HU)


def _base(volume: Array, c: Coordinates, rng: np.random.Generator) -> None:
    """Sphenoid, clivus, petrous and mastoid bone with their air, condyles and the first two vertebrae."""
    grain, bone = noise(rng, 9.0, 0.6), rng.uniform(650, 1150)
    bubbles = noise(rng, rng.uniform(7, 9), 0.4)
    spongy = (bone + 260.0 * grain).astype(np.float32)
    paint(volume, capsule(c, (0, -16, -30), (0, 12, -62), 11.0, 8.0), spongy)
    for side in (c, c.mirrored()):
        paint(volume, capsule(side, (10, -24, -30), (46, -26, -34), 9.0, 4.0), spongy)
        paint(volume, capsule(side, (13, 4, -40), (64, 27, -40), 9.0, 13.0), spongy + 350.0)
        paint(volume, capsule(side, (26, 10, -37), (42, 17, -37), 6.0), rng.uniform(1500, 2200))
        mastoid = ellipsoid(side, (60, 33, -46), (11, 15, 22))
        paint(volume, mastoid - 2.5, bone)
        if rng.random() < 0.9:
            paint(volume, np.maximum(mastoid, 0.1 - bubbles), rng.uniform(-900, -500), 0.8)
        paint(volume, capsule(side, (47, 14, -41), (92, 14, -42), 4.5, 3.5), AIR_HU)
        paint(volume, capsule(side, (17, 8, -70), (20, 24, -64), 7.0), spongy)
        paint(volume, capsule(side, (22, 12, -86), (30, 20, -86), 7.0), spongy + 200)
        paint(volume, ellipsoid(side, (86, 20, -38), (3.5, 12, 24)), rng.uniform(0, 50))
    if rng.random() < 0.9:
        size = rng.uniform(0.6, 1.25)
        sphenoid = ellipsoid(c, (rng.uniform(-3, 3), -22, -35), (15 * size, 12 * size, 8 * size))
        paint(volume, np.maximum(sphenoid, 0.1 - np.abs(bubbles)), AIR_HU)
    ring = np.hypot(np.hypot(c.x, c.y - 26) - 23, c.z + 87) - 5.0
    paint(volume, ring, bone + 250)
    paint(volume, capsule(c, (0, 10, -76), (0, 10, -120), 5.5, 9.0), bone + 250)
    paint(volume, np.maximum(np.hypot(c.x, c.y - 29) - 20, c.z + 96), spongy)


def make_shell(frame: Frame, rng: np.random.Generator) -> Shell:
    """Paint everything but the brain."""
    c = frame.at
    base = rng.uniform(4.5, 8.0)
    uneven = noise(rng, 60.0) * 0.9 + noise(rng, 26.0) * (0.25 if rng.random() < 0.92 else 1.1)
    keel = 3.5 * np.exp(-(((c.y - 80) / 12) ** 2) - (c.x / 16) ** 2)  # occipital protuberance
    thickness = np.clip(base + uneven + keel, 2.5, 13.0)
    thickness = np.where(c.z < -12, np.clip(thickness * 0.75 + noise(rng, 14.0), 2.0, 9.0), thickness)
    outer = frame.cavity - thickness
    skin, tissue = _soft_tissue(frame, outer, rng)
    volume = np.full(tuple(2 * n - 1 for n in c.x.shape), AIR_HU, np.float32)
    paint(volume, skin, tissue)
    _face(volume, c, rng)
    _vault(volume, frame, thickness.astype(np.float32), rng)
    _base(volume, c, rng)
    outside = cover(-upsample(skin))
    volume = outside * AIR_HU + (1.0 - outside) * volume
    return Shell(frame=frame, hu=volume, inside=cover(upsample(frame.cavity)))
