"""Phase, real and imaginary images: the same live and from a file, comparable across a measurement."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from dicomnode import pipeline as dn
from dicomnode.execute.contract import check_result
from dicomnode.kspace import Flag, Limit
from tests.mrd_factory import Ellipse, Scan, bits
from tests.recon import pipeline
from tests.unit.test_recon_noncartesian import UNIFORM, measured

ALL = ["magnitude", "phase", "real", "imaginary"]
BODY = Scan(matrix=(48, 48), coils=4, ellipses=(Ellipse(a=90, b=80),), noise=0.01, noise_lines=16)
#: What the second set of a measurement is turned by [rad].
TURN = 0.7


def encoded(scan: Scan) -> dn.KSpace:
    """A measurement of two sets, the second turned by `TURN`, as velocity encoding turns what moves alike."""
    header, made = scan.header(), []
    limits = {**header.encodings[0].limits, "set": Limit(0, 1, 0)}
    ends = bits(Flag.LAST_IN_SLICE, Flag.LAST_IN_REPETITION, Flag.LAST_IN_MEASUREMENT)
    for line in scan.readouts():
        if line.has(Flag.IS_NOISE_MEASUREMENT):
            made.append(line)
            continue
        turned = line.data * np.complex64(np.exp(1j * TURN))
        made += [replace(line, flags=line.flags & ~ends), replace(line, data=turned, set=1)]
    encoding = replace(header.encodings[0], limits=limits)
    return dn.KSpace(header=replace(header, encodings=(encoding,)), readouts=made)


def by_role(result: dn.Result) -> dict[str, dn.Reconstruction]:
    return {one.role: one for one in result.reconstructions}


@pytest.mark.parametrize(
    ("method", "changes"),
    [("auto", {}), ("auto", {"acceleration": 2, "acs": 16}), ("fft-rss", {})],
    ids=["full", "undersampled", "rss"],
)
def test_phases_of_two_sets_differ_by_what_the_object_was_turned(method, changes) -> None:
    scan = replace(BODY, **changes)
    made = by_role(pipeline(images=["magnitude", "phase"], method=method).run(encoded(scan)))
    first, second = made["phase"].planes
    assert (first.set, second.set) == (0, 1)
    body = scan.truth(48, 48) > 0.99
    apart = np.angle(np.exp(1j * (second.array - first.array).astype(np.float64)))[body]
    assert np.median(apart) == pytest.approx(TURN, abs=0.02) and np.std(apart) < 0.1


def test_cine_frames_share_one_phase() -> None:
    scan = replace(BODY, phases=4, trigger_ticks=10)
    phases = by_role(pipeline(images=["phase"]).run(scan.kspace()))["phase"].planes
    body = scan.truth(48, 48) > 0.99
    for frame in phases[1:]:
        apart = np.angle(np.exp(1j * (frame.array - phases[0].array).astype(np.float64)))[body]
        assert abs(np.median(apart)) < 0.02


def test_components_belong_to_one_complex_image() -> None:
    result = pipeline(images=ALL).run(BODY.kspace())
    check_result(result, BODY.kspace())
    made = by_role(result)
    assert list(made) == ALL and [made[name].component for name in ALL] == ["M", "P", "R", "I"]
    magnitude, phase, real, imaginary = (made[name].planes[0].array for name in ALL)
    assert np.allclose(np.hypot(real, imaginary), magnitude, rtol=1e-4, atol=1e-4 * magnitude.max())
    assert np.allclose(np.arctan2(imaginary, real), phase, atol=1e-3)
    assert phase.min() >= -math.pi - 1e-6 and phase.max() <= math.pi + 1e-6
    assert made["real"].scale == made["magnitude"].scale and made["phase"].scale == pytest.approx(4096 / math.pi)
    assert made["phase"].label.endswith(", phase")


def test_radial_images_have_a_phase_too() -> None:
    made = measured(replace(BODY, noise_lines=8), UNIFORM, unit="pixel")
    turned = [replace(line, data=line.data * np.complex64(np.exp(1j * TURN))) for line in made.readouts]
    phases = [
        by_role(pipeline(images=["phase"]).run(one))["phase"].planes[0].array.astype(np.float64)
        for one in (made, dn.KSpace(header=made.header, readouts=turned))
    ]
    body = BODY.truth(48, 48) > 0.99
    apart = np.angle(np.exp(1j * (phases[1] - phases[0])))[body]
    assert np.median(apart) == pytest.approx(TURN, abs=0.02)


def test_asking_for_phase_changes_no_magnitude() -> None:
    scan = replace(BODY, acceleration=2, acs=16)
    alone = by_role(pipeline().run(scan.kspace()))["magnitude"]
    beside = by_role(pipeline(images=["magnitude", "phase"]).run(scan.kspace()))["magnitude"]
    assert np.allclose(
        alone.planes[0].array, beside.planes[0].array, rtol=1e-5, atol=1e-6 * alone.planes[0].array.max()
    )
    assert alone.scale == pytest.approx(beside.scale, rel=1e-5)


def test_a_stream_gives_every_component_of_a_slice_with_its_last_line() -> None:
    scan = replace(BODY, slices=2)
    whole = by_role(pipeline(images=["magnitude", "phase"]).run(scan.kspace()))
    stream, given = pipeline(images=["magnitude", "phase"]).begin(scan.header()), []
    for line in scan.readouts():
        given += stream.add(line)
    assert [made.role for made in given] == ["magnitude", "phase"] * 2
    for number, made in enumerate(given):
        assert made.planes[0].array.tobytes() == whole[made.role].planes[number // 2].array.tobytes()


@pytest.mark.parametrize(
    ("images", "said"), [("phase", "list"), ([], "list"), (["phase", "phase"], "at most once"), (["angle"], "angle")]
)
def test_a_wrong_list_is_refused_with_what_there_is(images, said) -> None:
    with pytest.raises(ValueError, match=said) as told:
        pipeline(images=images)
    assert "magnitude, phase, real, imaginary" in str(told.value)
