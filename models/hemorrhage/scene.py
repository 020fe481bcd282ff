"""A whole procedural head, with or without blood, and the scan of it with its labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from models.hemorrhage import acquire, bleeds
from models.hemorrhage.acquire import Protocol, Scan
from models.hemorrhage.brain import Brain, make_brain
from models.hemorrhage.grid import FINE_MM, FINE_SHAPE, Array, coarse_coordinates, upsample
from models.hemorrhage.head import Shell, make_frame, make_shell

#: What a reader can see: this much blood in a voxel and this contrast against the same head without it (ml-ct 2.2).
VISIBLE_SHARE: Final = 0.35
VISIBLE_CONTRAST_HU: Final = (6.0, 75.0)
#: From this share up to the visible one neither "blood" nor "none" would be right.
UNCLEAR_SHARE: Final = 0.10
#: The label of unclear voxels.
UNCLEAR: Final = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A head on the fine grid, ready to be scanned; all (slice, row, column)."""

    #: With blood, and the same head without [HU].
    hu: Array
    twin: Array
    #: Share of blood by label value.
    shares: dict[int, Array]
    #: Shares of cavity and ventricle, and distance from the mid-plane [mm], left positive.
    inside: Array
    ventricle: Array
    aside: Array
    #: How far the septum was moved sideways [mm].
    midline_shift_mm: float


def make_base(seed: int) -> tuple[Shell, Brain]:
    """The head of ``seed`` without blood; several scans and bleeds may share it."""
    rng = np.random.default_rng([seed, 1])
    frame = make_frame(rng)
    return make_shell(frame, rng), make_brain(frame, rng)


def _displace(fields: list[Array], push: Array) -> list[Array]:
    """Fine ``fields`` with the brain moved by the coarse ``push`` (x, y, z) [mm]."""
    if not np.any(push):
        return fields
    axes = [torch.linspace(-1.0, 1.0, n) for n in FINE_SHAPE]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    half = [(n - 1) * FINE_MM / 2 for n in FINE_SHAPE]
    dx, dy, dz = (torch.from_numpy(upsample(push[k])) for k in range(3))
    grid = torch.stack((x - dx / half[2], y - dy / half[1], z + dz / half[0]), -1)[None]
    stack = torch.from_numpy(np.stack(fields))[None]
    moved = torch.nn.functional.grid_sample(stack, grid, padding_mode="border", align_corners=True)
    return [np.asarray(part.numpy()) for part in moved[0]]


def _septum_shift(push: Array) -> float:
    """The largest sideways movement of the septum between the frontal horns and the splenium [mm]."""
    c = coarse_coordinates()
    septum = (np.abs(c.x) < 3) & (np.abs(c.z - 14) < 10)
    bands = [septum & (np.abs(c.y - y) < 6) for y in range(-30, 31, 10)]
    return float(max(abs(float(push[0][band].mean())) for band in bands))


def make_scene(shell: Shell, brain: Brain, bleeding: bleeds.Bleeding, edema_hu: float) -> Scene:
    """Put brain and blood into the shell."""
    tissue, csf, ventricle, aside = _displace([brain.tissue, brain.csf, brain.ventricle, brain.aside], bleeding.push)
    if bleeding.shares:
        squeeze = upsample(bleeding.squeeze)
        csf = csf * (1.0 - 0.9 * squeeze)
        ventricle = ventricle * (1.0 - 0.4 * squeeze)
        edema = upsample(bleeding.edema)
        tissue = tissue + edema * (np.minimum(tissue, edema_hu) - tissue)
    brain_hu = tissue + csf * (brain.csf_hu - tissue)
    brain_hu = brain_hu + ventricle * (brain.csf_hu - brain_hu)
    twin = shell.hu + shell.inside * (brain_hu - shell.hu)
    if not bleeding.shares:
        shares: dict[int, Array] = {}
        return Scene(
            hu=twin,
            twin=twin,
            shares=shares,
            inside=shell.inside,
            ventricle=ventricle,
            aside=aside,
            midline_shift_mm=0.0,
        )
    shares, density = bleeds.fine_density(bleeding)
    shares = {label: share * shell.inside for label, share in shares.items()}
    total = np.minimum(sum(shares.values()), 1.0)  # type: ignore[call-overload]
    hu = twin + total * (density - twin)
    shift = _septum_shift(bleeding.push)
    return Scene(
        hu=hu, twin=twin, shares=shares, inside=shell.inside, ventricle=ventricle, aside=aside, midline_shift_mm=shift
    )


def visible_labels(shares: dict[int, Array], contrast_hu: Array) -> NDArray[np.uint8]:
    """The visible-label rule on averaged slices: labels 1..5, 0 none, ``UNCLEAR``."""
    labels = np.zeros(contrast_hu.shape, np.uint8)
    if not shares:
        return labels
    names = np.array(sorted(shares), np.uint8)
    stack = np.stack([shares[int(label)] for label in names])
    total = stack.sum(0)
    labels[total > UNCLEAR_SHARE] = UNCLEAR
    low, high = VISIBLE_CONTRAST_HU
    seen = (total > VISIBLE_SHARE) & (contrast_hu > low) & (contrast_hu < high)
    labels[seen] = names[stack.argmax(0)][seen]
    return labels


def scan(scene: Scene, protocol: Protocol, rng: np.random.Generator) -> Scan:
    """Scan the scene."""
    names = sorted(scene.shares)
    fields = [scene.hu, scene.inside, scene.ventricle, scene.aside]
    fields += [scene.twin] * bool(names) + [scene.shares[name] for name in names]
    sliced = acquire.slices_of(fields, protocol)
    cavity = sliced[1] > 0.5
    contrast = sliced[0] - sliced[4] if names else np.zeros_like(sliced[0])
    labels = visible_labels({name: sliced[5 + k] for k, name in enumerate(names)}, contrast)
    count = len(protocol.heights)
    positions = np.zeros((count, 3))
    corner = [-(n - 1) / 2 * protocol.pixel_mm for n in protocol.size]
    positions[:, 0], positions[:, 1], positions[:, 2] = corner[1], corner[0], protocol.heights
    return Scan(
        hu=acquire.image(sliced[0], protocol, rng),
        labels=labels,
        cavity=cavity,
        ventricle=sliced[2] > 0.5,
        left=(sliced[3] > 0) & cavity,
        positions=positions,
        spacing=(protocol.pixel_mm, protocol.pixel_mm),
        protocol=protocol,
        midline_shift_mm=scene.midline_shift_mm,
    )


def make_scan(
    base: tuple[Shell, Brain], seed: int, variant: int, positive: bool, size: tuple[int, int], pixel_mm: float
) -> Scan:
    """Scan number ``variant`` of the head ``base`` made from ``seed``; the same arguments give the same scan."""
    rng = np.random.default_rng([seed, 2, variant])
    shell, brain = base
    bleeding = bleeds.draw_bleeding(shell.frame, brain, rng) if positive else bleeds.nothing(shell.frame)
    scene = make_scene(shell, brain, bleeding, float(rng.uniform(12, 24)))
    return scan(scene, acquire.draw_protocol(rng, size, pixel_mm), rng)
