"""A heart in its surroundings, painted plane by plane: tissues, neighbours and what belongs to no chamber.

A ``Scene`` holds everything that a stack shares; ``paint`` makes one plane of it at one time, as an image without
units and as the shares of every pixel that are right ventricle, myocardium and left cavity. Ranges: ml-mr 2.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.cardiac.heart import STEPS, Heart, draw_heart

Field = NDArray[np.float32]

TISSUES: Final = ("blood", "myo", "fat", "lung", "liver", "muscle", "gas")
#: Least difference of blood and myocardium where intensities are random (ml-mr 2.2).
LEAST_CONTRAST: Final = 0.12
#: Pathologies of failing hearts, the thickest trabecular rim [mm] of others (ml-mr 2.2) and of these, and how much
#: larger than others' their papillary muscles may be: seen in the patients of the tuning.
FAILING: Final = ("dilated", "infarct")
RIM_MM: Final = (4.5, 6.5)
SLACK: Final = 1.5
#: Share of scans in which fat is opposed to water, as in bSSFP with TE near TR/2 (Hargreaves 2003, MRM 50:210). Its
#: signal is negative until ``acquire.expose`` takes the magnitude: pixels that hold both are dark and line the wall.
OPPOSED: Final = 0.6
#: Distance of the planes whose mean makes one thick slice, over the slice thickness.
SUBSLICES: Final = (-1 / 3, 0.0, 1 / 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plane:
    """Where the pixels of one image are in the heart's frame; arrays are (row, column)."""

    #: To the patient's left and up [mm].
    x: Field
    y: Field
    #: Distance from the axis [mm], and place in a table of angles.
    r: Field
    index: NDArray[np.int32]
    weight: Field
    #: Edge of a pixel [mm].
    pixel_mm: float

    @classmethod
    def of(cls, x: Field, y: Field, pixel_mm: float) -> Plane:
        """A plane from coordinates, whatever bent them."""
        place = (np.arctan2(y, x) % (2.0 * np.pi)) * (STEPS / (2.0 * np.pi))
        index = np.minimum(place.astype(np.int32), STEPS - 1)
        weight = (place - index).astype(np.float32)
        return cls(x=x, y=y, r=np.sqrt(x * x + y * y), index=index, weight=weight, pixel_mm=pixel_mm)

    def look_up(self, table: NDArray[np.float64]) -> Field:
        """A table of angles at every pixel."""
        closed = np.append(table, table[0]).astype(np.float32)
        low = closed[self.index]
        return np.asarray(low + self.weight * (closed[self.index + 1] - low))

    def inside(self, distance: Field) -> Field:
        """The share of each pixel where a signed distance [mm] is negative, with an edge of one pixel."""
        return np.clip(0.5 - distance / self.pixel_mm, 0.0, 1.0)

    def ellipse(self, blob: Blob, drift_mm: float = 0.0) -> Field:
        """Signed distance to an ellipse [mm], exact on its outline only."""
        dx, dy = self.x - float(blob.x + blob.tilt * drift_mm), self.y - float(blob.y)
        c, s = float(np.cos(blob.turn)), float(np.sin(blob.turn))
        u, v = dx * (c / blob.a) + dy * (s / blob.a), dy * (c / blob.b) - dx * (s / blob.b)
        return np.asarray((np.sqrt(u * u + v * v) - 1.0) * min(blob.a, blob.b))


@dataclass(frozen=True, slots=True)
class Blob:
    """An ellipse of one value; lengths in mm.

    Plain floats: a NumPy scalar of double precision would make every array that meets it double as well.
    """

    x: float
    y: float
    a: float
    b: float
    turn: float
    value: float
    #: Shift along x for each mm along the axis.
    tilt: float = 0.0

    @classmethod
    def of(cls, *values: float) -> Blob:
        """A blob from numbers of any kind."""
        return cls(*(float(value) for value in values))


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One patient's chest around the heart."""

    heart: Heart
    #: Intensity by name of the tissue.
    tissue: dict[str, float]
    #: Thickness [mm] and share of muscle of the trabecular rim, which belongs to the cavities.
    rim_mm: float
    rim_share: float
    rim_gain: NDArray[np.float64]
    #: Papillary muscles: angle, share of the endocardial radius, half axes [mm], lowest and highest z.
    papillaries: tuple[tuple[float, float, float, float, float, float], ...]
    #: Thickness of the fat around the heart [mm] and of the right ventricle's free wall.
    fat: NDArray[np.float64]
    pericardium_mm: float
    free_wall_mm: float
    organs: tuple[Blob, ...]
    atria: tuple[Blob, ...]
    specks: tuple[Blob, ...]
    #: Chest wall and liver: direction and distance [mm] of their near faces.
    wall: tuple[float, float]
    liver: tuple[float, float]
    #: (3, 14, 14) smooth textures: of tissue, of blood, of shading by in-flow.
    texture: NDArray[np.float64]
    texture_gain: float


@dataclass(frozen=True, slots=True)
class Painted:
    """One plane: an image and the shares of each pixel; arrays are (row, column)."""

    image: Field
    rv: Field
    myo: Field
    lv: Field


def draw_scene(rng: np.random.Generator, pathology: str | None = None) -> Scene:
    """Draw a patient."""
    heart, tissue = draw_heart(rng, pathology), _tissues(rng)
    reach = heart.radius_mm + heart.wall_mm
    smooth = np.cos(np.arange(STEPS) * 2 * np.pi / STEPS * rng.integers(1, 4) + rng.uniform(0, 6))
    over_rv = np.cos(np.arange(STEPS) * 2 * np.pi / STEPS - heart.septum)
    papillaries = _papillaries(rng, heart)
    scene = Scene(
        heart=heart,
        tissue=tissue,
        rim_mm=rng.uniform(0.0, RIM_MM[heart.pathology in FAILING]),
        rim_share=rng.uniform(0.15, 0.75),
        rim_gain=1.0 + 0.7 * np.interp(np.arange(STEPS), np.linspace(0, STEPS, 17), _closed(rng, 16)),
        papillaries=papillaries,
        fat=np.clip(rng.uniform(0.5, 6.0) * (1.0 + 0.5 * smooth + 0.7 * over_rv), 0.0, 14.0),
        pericardium_mm=rng.uniform(0.6, 2.0),
        free_wall_mm=rng.uniform(2.0, 4.5),
        organs=_organs(rng, tissue, reach),
        atria=_atria(rng, heart, tissue),
        specks=_specks(rng, heart),
        wall=(np.deg2rad(rng.uniform(40.0, 160.0)), reach + rng.uniform(2.0, 40.0)),
        liver=(np.deg2rad(rng.uniform(-150.0, -40.0)), reach + rng.uniform(0.0, 30.0)),
        texture=rng.normal(0.0, 1.0, (3, 14, 14)),
        texture_gain=rng.uniform(0.3, 1.6),
    )
    if rng.random() < OPPOSED:
        tissue["fat"] = -tissue["fat"]
    return scene


def _papillaries(rng: np.random.Generator, heart: Heart) -> tuple[tuple[float, float, float, float, float, float], ...]:
    """Two groups of papillary muscles; in failing hearts often of several heads, large and slack against the wall."""
    out, slack = [], heart.pathology in FAILING and rng.random() < 0.5
    for low, high in ((15.0, 70.0), (-120.0, -50.0)):
        for _ in range(int(rng.integers(1, 4)) if slack else 1):
            angle, ends = np.deg2rad(rng.uniform(low, high)), (rng.uniform(0.2, 0.35), rng.uniform(0.6, 0.8))
            size = np.sort(rng.uniform((2.0, 3.0), (5.0, 7.0))) * (heart.radius_mm / 26.0) ** 0.5
            size *= rng.uniform(1.0, SLACK) if slack else 1.0
            out.append((angle, rng.uniform(*((0.6, 0.95) if slack else (0.45, 0.78))), size[0], size[1], *ends))
    return tuple(out)


def _tissues(rng: np.random.Generator) -> dict[str, float]:
    if rng.random() < 0.2:
        while True:
            values = dict(zip(TISSUES, rng.uniform(0.02, 1.0, len(TISSUES)).tolist(), strict=True))
            if abs(values["blood"] - values["myo"]) >= LEAST_CONTRAST:
                return values
    blood = rng.uniform(0.65, 1.0)
    return {
        "blood": blood,
        "myo": rng.uniform(0.12, 0.45) * blood,
        "fat": rng.uniform(0.45, 1.25),
        "lung": rng.uniform(0.01, 0.12),
        "liver": rng.uniform(0.2, 0.6),
        "muscle": rng.uniform(0.15, 0.4),
        "gas": rng.uniform(0.0, 0.05),
    }


def _organs(rng: np.random.Generator, tissue: dict[str, float], reach: float) -> tuple[Blob, ...]:
    out = []
    for _ in range(rng.integers(4, 20)):  # vessels of the lung
        place, size = rng.uniform(-95, 95, 2), rng.uniform(1.0, 3.5)
        if np.hypot(*place) > reach + 6.0:
            out.append(Blob.of(*place, size, size * rng.uniform(1, 2), rng.uniform(0, 3), tissue["blood"] * 0.8, 0.3))
    aorta = np.deg2rad(rng.uniform(-75.0, 0.0)), reach + rng.uniform(16.0, 36.0)
    size = rng.uniform(8.0, 14.0)
    out.append(Blob.of(aorta[1] * np.cos(aorta[0]), aorta[1] * np.sin(aorta[0]), size, size, 0.0, tissue["blood"]))
    for _ in range(rng.integers(1, 11)):  # anything else: stomach, spleen, bowel, fat; half of it touches the heart
        angle, size = rng.uniform(0, 2 * np.pi), rng.uniform(5.0, 32.0, 2)
        far = reach + size.min() + (rng.uniform(0.0, 8.0) if rng.random() < 0.5 else rng.uniform(8.0, 60.0))
        value = rng.uniform(0.0, 1.1) if rng.random() < 0.75 else tissue["gas"]
        place = far * np.cos(angle), far * np.sin(angle)
        turn = angle + np.pi / 2 * (size[0] > size[1]) + rng.uniform(-0.4, 0.4)  # the long side along the heart
        if rng.random() < 0.5:
            out.append(Blob.of(*place, *(size + rng.uniform(1.0, 3.0)), turn, tissue["muscle"], 0.2))
        out.append(Blob.of(*place, *size, turn, value, 0.2))
    return tuple(out)


def _atria(rng: np.random.Generator, heart: Heart, tissue: dict[str, float]) -> tuple[Blob, ...]:
    """What is above the valve plane: left atrium, aortic root, right atrium or outflow tract, all without label."""
    size, blood = heart.radius_mm, tissue["blood"] * rng.uniform(0.8, 1.05)
    out = [Blob.of(rng.uniform(0, 8), rng.uniform(-12, 2), size * rng.uniform(0.7, 1.1), size * 0.8, 0.3, blood, 0.1)]
    angle = heart.outflow
    far = size * rng.uniform(0.5, 0.9)
    out.append(Blob.of(far * np.cos(angle), far * np.sin(angle), *(rng.uniform(9, 14) * np.ones(2)), 0.0, blood))
    for shift in rng.uniform(-1.0, 1.0, rng.integers(1, 3)):
        far = size + rng.uniform(14.0, 26.0)
        angle = heart.septum + shift
        place = far * np.cos(angle), far * np.sin(angle)
        out.append(Blob.of(*place, rng.uniform(10, 24), rng.uniform(9, 18), rng.uniform(0, 3), blood, 0.1))
    return tuple(out)


def _specks(rng: np.random.Generator, heart: Heart) -> tuple[Blob, ...]:
    """Trabeculae and the moderator band inside the right ventricle."""
    out = []
    for _ in range(rng.integers(0, 7)):
        angle = heart.septum + rng.uniform(-0.8, 0.8) * heart.rv_opening
        far = heart.radius_mm + heart.wall_mm + rng.uniform(0.2, 0.9) * heart.rv_height_mm
        size = rng.uniform(1.0, 3.0)
        place = far * np.cos(angle), far * np.sin(angle)
        out.append(Blob.of(*place, size, size * rng.uniform(1, 4), rng.uniform(0, 3), rng.uniform(0.3, 0.9)))
    return tuple(out)


def _closed(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    values = rng.uniform(-1.0, 1.0, count)
    return np.append(values, values[0])


@cache
def _splines(knots: int, pixels: int) -> NDArray[np.float64]:
    """(pixels, knots) weights of uniform cubic B-splines."""
    place = np.linspace(1.0, knots - 2.001, pixels)
    t = np.abs(place[:, None] - np.arange(knots))
    inner, outer = 2 / 3 - t**2 + t**3 / 2, (2 - t) ** 3 / 6
    return np.where(t < 1, inner, np.where(t < 2, outer, 0.0))


def smooth(knots: NDArray[np.float64], pixels: tuple[int, int]) -> Field:
    """(knot, knot) values as a smooth field (row, column)."""
    left, right = _splines(knots.shape[0], pixels[0]), _splines(knots.shape[1], pixels[1])
    return np.asarray((left @ knots) @ right.T, np.float32)


def paint(scene: Scene, plane: Plane, heights_mm: tuple[float, ...], times: tuple[float, ...]) -> Painted:
    """One thick slice as the mean of planes at ``heights_mm`` above the tip and ``times``."""
    shape = (plane.x.shape[0], plane.x.shape[1])
    background = _background(scene, plane, heights_mm[len(heights_mm) // 2])
    layers = [_heart(scene, plane, background, s, t) for s, t in zip(heights_mm, times, strict=True)]
    image, rv, myo, lv = (np.mean(np.stack(parts), 0) for parts in zip(*layers, strict=True))
    grain = smooth(scene.texture[0], shape)
    return Painted(image * (1.0 + 0.05 * scene.texture_gain * grain), rv, myo, lv)


def _over(image: Field, share: Field, value: Field | float) -> Field:
    return np.asarray(image + share * (value - image), np.float32)


def _background(scene: Scene, plane: Plane, height_mm: float) -> Field:
    tissue, drift = scene.tissue, height_mm - 50.0
    image = np.full_like(plane.x, tissue["lung"])
    face = plane.x * np.cos(scene.liver[0]) + plane.y * np.sin(scene.liver[0]) - scene.liver[1] + 0.3 * drift
    grain = smooth(scene.texture[1], (plane.x.shape[0], plane.x.shape[1]))
    image = _over(image, plane.inside(-face), tissue["liver"] * (1.0 + 0.06 * scene.texture_gain * grain))
    for organ in scene.organs:
        image = _over(image, plane.inside(plane.ellipse(organ, drift)), organ.value)
    depth = plane.x * np.cos(scene.wall[0]) + plane.y * np.sin(scene.wall[0]) - scene.wall[1]
    along = plane.y * np.cos(scene.wall[0]) - plane.x * np.sin(scene.wall[0])
    depth = depth + 0.004 * along**2  # the chest is round
    image = _over(image, plane.inside(-depth), tissue["muscle"])
    ribs = np.hypot(along % 24.0 - 12.0, (depth - 7.0) * 1.6) - 5.0
    image = _over(image, plane.inside(ribs), 0.6 * tissue["muscle"])
    image = _over(image, plane.inside(15.0 - depth), tissue["fat"])
    return _over(image, plane.inside(35.0 - depth), 0.01)


def _heart(scene: Scene, plane: Plane, background: Field, height_mm: float, t: float) -> tuple[Field, ...]:
    """Image, right ventricle, myocardium and left cavity of one thin plane."""
    heart, tissue = scene.heart, scene.tissue
    z = height_mm / heart.length_at(t)
    endo, epi = heart.endocardium(z, t), heart.epicardium(z, t)
    rv = heart.right_ventricle(z, t)
    inflow = smooth(scene.texture[2], (plane.x.shape[0], plane.x.shape[1]))
    blood = tissue["blood"] * (1.0 + 0.06 * scene.texture_gain * inflow)
    r_endo, r_epi, r_rv = (plane.look_up(table) for table in (endo, epi, epi + rv))
    free = plane.look_up(epi + rv + scene.free_wall_mm * np.minimum(1.0, rv / 4.0))
    none = np.zeros_like(plane.x)
    image = background
    if z > -CAP_OF_FAT:
        fat = plane.look_up(scene.fat) + free + (heart.radius_mm + heart.wall_mm if z > 1.0 else 0.0)
        image = _over(image, plane.inside(plane.r - fat - scene.pericardium_mm), 0.5 * tissue["muscle"])
        image = _over(image, plane.inside(plane.r - fat), tissue["fat"])
    if z > 1.0:
        for blob in scene.atria:
            wall = plane.inside(plane.ellipse(blob, height_mm - heart.length_mm) - 1.8)
            image = _over(image, wall, tissue["myo"])
        for blob in scene.atria:
            image = _over(image, plane.inside(plane.ellipse(blob, height_mm - heart.length_mm)), blob.value)
        return image, none, none, none
    if epi.max() <= 0.0:
        return image, none, none, none
    image = _over(image, plane.inside(plane.r - free), tissue["myo"])
    in_epi, in_endo = plane.inside(plane.r - r_epi), plane.inside(plane.r - r_endo) * (r_endo > 0)
    in_rv = plane.inside(plane.r - r_rv) * (1.0 - in_epi) if rv.max() > 0 else none
    image = _over(image, in_rv, blood)
    if rv.max() > 0:
        crust = in_rv - plane.inside(plane.r - r_rv + scene.rim_mm) * in_rv
        image = _over(image, crust * 0.6 * scene.rim_share, tissue["myo"])
        for speck in scene.specks:
            image = _over(image, plane.inside(plane.ellipse(speck)) * in_rv * speck.value, tissue["myo"])
    image = _over(image, in_epi, tissue["myo"])
    image = _over(image, in_endo, blood)
    if endo.max() > 0:
        inner = plane.look_up(np.maximum(0.0, endo - scene.rim_mm * scene.rim_gain))
        image = _over(image, (in_endo - plane.inside(plane.r - inner) * in_endo) * scene.rim_share, tissue["myo"])
        for angle, share, a, b, low, high in scene.papillaries:
            if low < z < high:
                far = share * float(np.interp(angle % (2 * np.pi), np.arange(STEPS) * 2 * np.pi / STEPS, endo))
                blob = Blob.of(far * np.cos(angle), far * np.sin(angle), a, b, angle, 0.0)
                image = _over(image, plane.inside(plane.ellipse(blob)) * in_endo, tissue["myo"])
    return image, in_rv, in_epi - in_endo, in_endo


#: Height below the tip down to which fat surrounds the apex.
CAP_OF_FAT: Final = 0.25
