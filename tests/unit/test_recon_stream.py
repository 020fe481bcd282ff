"""Measurements line by line: complete and broken, live and from a file."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dicomnode import pipeline as dn
from dicomnode.execute.contract import check_result
from dicomnode.kspace import Calibration, Flag, Limit, Trajectory
from tests.mrd_factory import Ellipse, Scan, bits
from tests.recon import error, pipeline

FULL = Scan(matrix=(48, 48), coils=4, noise=0.02, noise_lines=8)
#: The whole body is one ellipse of 1: signal is known in every pixel of it.
DISC = Scan(matrix=(48, 48), coils=4, ellipses=(Ellipse(a=90, b=80),), noise=0.1, noise_lines=64)


def run(scan: Scan, readouts=None, *, header: dn.KSpaceHeader | None = None, incomplete=False, **options) -> dn.Result:
    lines = scan.readouts() if readouts is None else readouts
    made = dn.KSpace(header=header or scan.header(), readouts=lines, incomplete=incomplete)
    return pipeline(**options).run(made)


def planes(result: dn.Result) -> tuple[dn.ReconstructedPlane, ...]:
    assert len(result.reconstructions) == 1
    return result.reconstructions[0].planes


def plane(result: dn.Result) -> dn.ReconstructedPlane:
    (only,) = planes(result)
    return only


def imaging(lines) -> list[int]:
    return [n for n, line in enumerate(lines) if not line.has(Flag.IS_NOISE_MEASUREMENT)]


# Live and from a file


def test_a_stream_gives_the_same_pixels_as_a_run_bit_for_bit() -> None:
    scan = replace(FULL, slices=3, acceleration=2, acs=16)
    whole = run(scan).reconstructions[0]
    stream, given = pipeline().begin(scan.header()), []
    for line in scan.readouts():
        given += stream.add(line)
    given += stream.finish()
    assert [len(made.planes) for made in given] == [1, 1, 1]
    for part, wanted in zip(given, whole.planes, strict=True):
        assert (part.scale, part.description, part.label) == (whole.scale, whole.description, whole.label)
        assert part.planes[0].array.tobytes() == wanted.array.tobytes()
    assert [p.array.tobytes() for p in planes(stream.result())] == [p.array.tobytes() for p in whole.planes]


def test_a_slice_is_given_out_by_its_last_line_and_not_before() -> None:
    scan = replace(FULL, slices=2)
    stream, when = pipeline().begin(scan.header()), []
    lines = scan.readouts()
    for number, line in enumerate(lines):
        if stream.add(line):
            when.append(number)
    assert when == [8 + 48 - 1, 8 + 96 - 1]
    assert stream.finish() == []


def test_a_full_slice_needs_no_last_flag() -> None:
    scan = replace(FULL, slices=2, averages=2, last_flags=False)
    stream = pipeline().begin(scan.header())
    given = [number for number, line in enumerate(scan.readouts()) if stream.add(line)]
    assert given == [8 + 2 * 48 - 1, 8 + 4 * 48 - 1]


def test_a_cine_waits_for_all_of_its_phases() -> None:
    scan = replace(FULL, phases=4, trigger_ticks=80)
    stream = pipeline(tick_ms=2.5).begin(scan.header())
    given = [made for line in scan.readouts() for made in stream.add(line)]
    assert len(given) == 1
    assert [p.phase for p in given[0].planes] == [0, 1, 2, 3]
    assert [p.trigger_time for p in given[0].planes] == [0.0, 200.0, 400.0, 600.0]
    assert all(error(scan, p) < 0.15 for p in given[0].planes)


def test_repetitions_contrasts_and_slices_are_images_of_their_own() -> None:
    scan = replace(FULL, repetitions=2, contrasts=2, slices=2, coils=1)
    made = planes(run(scan))
    assert {(p.repetition, p.contrast, p.slice) for p in made} == {
        (r, c, s) for r in (0, 1) for c in (0, 1) for s in (0, 1)
    }
    by = {(p.repetition, p.contrast, p.slice): p.array.mean() for p in made}
    assert by[0, 1, 0] / by[0, 0, 0] == pytest.approx(0.7, rel=0.05)  # the factory's echoes decay
    assert by[0, 0, 1] / by[0, 0, 0] == pytest.approx(1.2, rel=0.05)  # and its slices brighten
    assert all(p.trigger_time is None for p in made)


def test_segments_only_order_the_lines() -> None:
    lines = [replace(line, segment=line.step_1 % 3) for line in FULL.readouts()]
    assert plane(run(FULL, lines)).array.tobytes() == plane(run(FULL)).array.tobytes()


def test_a_file_gives_what_the_stream_gave(tmp_path: Path) -> None:
    mrd = pytest.importorskip("dicomnode.volumes.mrd")
    scan = replace(FULL, acceleration=2, acs=16, slices=2)
    from_file = pipeline().run(mrd.open_mrd(scan.write(tmp_path / "scan.h5")))
    assert [p.array.tobytes() for p in planes(from_file)] == [p.array.tobytes() for p in planes(run(scan))]


def test_the_scale_is_that_of_the_first_slice_for_all() -> None:
    scan = replace(FULL, slices=3)
    made = run(scan).reconstructions[0]
    alone = run(replace(scan, slices=1)).reconstructions[0]
    stored = [float(np.quantile(p.array * made.scale, 0.999)) for p in made.planes]
    assert made.scale == pytest.approx(alone.scale, rel=0.02)
    assert stored[1] / stored[0] == pytest.approx(1.2, rel=0.05)
    assert 0.7 * 4095 < stored[0] < 4095


@pytest.mark.parametrize(
    "scan",
    [
        replace(FULL, slices=2, contrasts=2, repetitions=2, coils=1),
        replace(FULL, phases=3, slices=2, trigger_ticks=10, coils=1),
        replace(FULL, partitions=4, coils=1),
    ],
    ids=["echoes", "cine", "volume"],
)
def test_results_keep_the_contract_of_the_node(scan: Scan) -> None:
    check_result(run(scan), scan.kspace())


# Lines in any order, twice, or not at all


def test_reordered_lines_give_the_same_image() -> None:
    scan = replace(FULL, acceleration=2, acs=16, last_flags=False)
    lines = scan.readouts()
    noise, rest = lines[:8], lines[8:]
    random.Random(3).shuffle(rest)
    assert plane(run(scan, noise + rest)).array.tobytes() == plane(run(scan)).array.tobytes()


def test_averages_lower_the_noise_by_their_square_root() -> None:
    one = replace(DISC, coils=1, averages=1)
    four = replace(one, averages=4)

    def spread(scan: Scan) -> float:
        a, b = (plane(run(replace(scan, seed=seed))).array for seed in (1, 2))
        inside = scan.truth(48, 48) == 1.0
        return float((a - b)[inside].std())

    assert spread(one) / spread(four) == pytest.approx(2.0, rel=0.1)


def test_some_lines_averaged_more_often_than_others_do_not_bend_the_image() -> None:
    lines = FULL.readouts()
    double = [replace(line, average=1) for line in lines[8:] if line.step_1 % 3 == 0]
    limits = {**FULL.header().encodings[0].limits, "average": Limit(0, 1, 0)}
    header = replace(FULL.header(), encodings=(replace(FULL.header().encodings[0], limits=limits),))
    made = plane(run(FULL, lines[:8] + double + lines[8:], header=header))
    assert np.allclose(made.array, plane(run(FULL)).array, rtol=1e-3, atol=1e-3 * made.array.max())


def test_dropped_lines_are_filled_in_and_counted_in_the_image() -> None:
    scan = replace(FULL, coils=6)
    lines = [line for line in scan.readouts() if line.has(Flag.IS_NOISE_MEASUREMENT) or line.step_1 not in (5, 40)]
    made = plane(run(scan, lines))
    assert made.remark == "incomplete k-space: 46 of 48 lines"
    assert error(scan, made) < 1.3 * error(scan, plane(run(scan)))


def test_a_measurement_cut_short_gives_what_is_whole_and_says_what_is_not() -> None:
    scan = replace(FULL, slices=3)
    lines = scan.readouts()[: 8 + 48 + 40]
    result = run(scan, lines, incomplete=True)
    assert [p.slice for p in planes(result)] == [0, 1]
    assert planes(result)[1].remark == "incomplete k-space: 40 of 48 lines; reconstructed by CG-SENSE"
    few = run(scan, scan.readouts()[: 8 + 48 + 20], incomplete=True)
    assert [p.slice for p in planes(few)] == [0]
    assert any("20 of 48 lines" in note and "25%" in note for note in few.notes)
    assert any("ended before" in note for note in few.notes)


def test_a_cut_irregular_pattern_is_measured_against_the_header() -> None:
    scan = replace(FULL, matrix=(64, 64), acceleration=4, acs=8, pattern="variable", noise_lines=0)
    lines = scan.readouts()
    with pytest.raises(dn.Unsuitable, match="10 of 16 lines"):
        run(scan, lines[:10], incomplete=True)


def test_how_much_may_be_missing_is_an_option() -> None:
    lines = FULL.readouts()[: 8 + 30]
    with pytest.raises(dn.Unsuitable, match="30 of 48 lines"):
        run(FULL, lines)
    assert plane(run(FULL, lines, max_missing=0.5)).remark == "incomplete k-space: 30 of 48 lines"


def test_lines_after_their_image_are_left_out_and_counted() -> None:
    lines = FULL.readouts()
    result = run(FULL, [*lines, replace(lines[-1], flags=0), replace(lines[-1], flags=0)])
    assert plane(result).array.tobytes() == plane(run(FULL)).array.tobytes()
    assert "2 readouts came after their image was complete, and were left out" in result.notes


# Readouts that are not what they should be


def test_a_line_that_is_not_finite_is_left_out_and_marked() -> None:
    lines = FULL.readouts()
    bad = lines[20].data.copy()
    bad[1, 7] = np.nan
    lines[20] = replace(lines[20], data=bad)
    result = run(FULL, lines)
    assert np.isfinite(plane(result).array).all()
    assert plane(result).remark == "incomplete k-space: 47 of 48 lines"
    assert "1 readouts with values that are not finite left out" in result.notes


def test_the_last_line_ends_its_slice_even_if_its_samples_are_bad() -> None:
    lines = FULL.readouts()
    lines[-1] = replace(lines[-1], data=np.full_like(lines[-1].data, np.inf))
    stream = pipeline().begin(FULL.header())
    given = [made for line in lines for made in stream.add(line)]
    assert len(given) == 1


@pytest.mark.parametrize("field", ["step_1", "slice", "contrast", "phase", "repetition", "average"])
def test_a_counter_outside_its_limits_is_left_out_and_named(field: str) -> None:
    lines = FULL.readouts()
    stray = replace(lines[30], flags=0, **{field: 4000})
    result = run(FULL, [*lines[:31], stray, *lines[31:]])
    name = "kspace_encoding_step_1" if field == "step_1" else field
    assert f"1 readouts outside encodingLimits of {name} left out" in result.notes
    assert plane(result).array.tobytes() == plane(run(FULL)).array.tobytes()


def test_a_header_without_limits_still_has_a_matrix_to_leave() -> None:
    header = replace(FULL.header(), encodings=(replace(FULL.header().encodings[0], limits={}),))
    lines = FULL.readouts()
    result = run(FULL, [*lines, replace(lines[-1], flags=0, step_1=48)], header=header)
    assert "1 readouts outside the encoded matrix left out" in result.notes
    assert plane(result).array.tobytes() == plane(run(FULL)).array.tobytes()


@pytest.mark.parametrize("shape", [(0, 96), (4, 0)])
def test_readouts_without_channels_or_samples_are_left_out(shape) -> None:
    lines = FULL.readouts()
    lines[20] = replace(lines[20], data=np.zeros(shape, np.complex64))
    result = run(FULL, lines)
    assert plane(result).remark == "incomplete k-space: 47 of 48 lines"
    assert "1 readouts without channels or samples left out" in result.notes


def test_an_encoding_that_does_not_exist_is_left_out() -> None:
    lines = FULL.readouts()
    result = run(FULL, [replace(lines[20], encoding=3, flags=0), *lines])
    assert "1 readouts of an encoding that the header does not have left out" in result.notes


def test_a_change_of_the_receiver_coils_is_refused() -> None:
    lines = FULL.readouts()
    lines[20] = replace(lines[20], data=lines[20].data[:3])
    with pytest.raises(dn.Unsuitable, match="has 3 receiver channels, those before it had 4"):
        run(FULL, lines)


def test_mixed_sample_counts_are_refused_but_not_of_noise() -> None:
    lines = FULL.readouts()
    lines[2] = replace(lines[2], data=lines[2].data[:, :50])
    assert len(planes(run(FULL, lines))) == 1
    lines[20] = replace(lines[20], data=lines[20].data[:, :90])
    with pytest.raises(dn.Unsuitable, match="mixed sample counts"):
        run(FULL, lines)


def test_more_samples_than_the_matrix_are_refused() -> None:
    lines = [replace(line, data=np.pad(line.data, ((0, 0), (0, 8)))) for line in FULL.readouts()]
    with pytest.raises(dn.Unsuitable, match="104 samples, and the encoded matrix 96 columns"):
        run(FULL, lines)


@pytest.mark.parametrize(
    "flag",
    [
        Flag.IS_DUMMYSCAN_DATA, Flag.IS_NAVIGATION_DATA, Flag.IS_HPFEEDBACK_DATA, Flag.IS_RTFEEDBACK_DATA,
        Flag.IS_SURFACECOILCORRECTIONSCAN_DATA, Flag.IS_PARALLEL_CALIBRATION, Flag.IS_PHASECORR_DATA,
    ],
)  # fmt: skip
def test_what_is_not_image_data_does_not_change_the_image(flag: Flag) -> None:
    lines = FULL.readouts()
    aside = [replace(lines[n], data=1000 * lines[n].data, flags=bits(flag)) for n in (10, 30, 32)]
    assert plane(run(FULL, lines[:9] + aside + lines[9:])).array.tobytes() == plane(run(FULL)).array.tobytes()


def test_unknown_flags_are_ignored_and_counted() -> None:
    lines = [replace(line, flags=line.flags | 1 << 45) for line in FULL.readouts()]
    result = run(FULL, lines)
    assert plane(result).array.tobytes() == plane(run(FULL)).array.tobytes()
    assert "56 readouts have flags that are not known; they were ignored" in result.notes


def test_discarded_samples_have_no_part_in_the_image() -> None:
    lines = []
    for line in FULL.readouts():
        junk = np.full((4, 6), 1e3, np.complex64)
        padded = np.concatenate((junk, line.data, junk[:, :3]), axis=1)
        changed = replace(line, data=padded, discard_pre=6, discard_post=3, center_sample=line.center_sample + 6)
        lines.append(line if line.has(Flag.IS_NOISE_MEASUREMENT) else changed)
    assert plane(run(FULL, lines)).array.tobytes() == plane(run(FULL)).array.tobytes()


def test_a_centre_that_was_never_filled_in_is_the_middle() -> None:
    lines = [replace(line, center_sample=0) for line in FULL.readouts()]
    result = run(FULL, lines)
    assert plane(result).array.tobytes() == plane(run(FULL)).array.tobytes()
    assert "center_sample is 0 in whole readouts: their middle was taken" in result.notes


def test_reversed_lines_are_turned_round() -> None:
    lines = []
    for line in FULL.readouts():
        if line.step_1 % 2 and not line.has(Flag.IS_NOISE_MEASUREMENT):
            turned = np.ascontiguousarray(line.data[:, ::-1])
            line = replace(line, data=turned, flags=line.flags | bits(Flag.IS_REVERSE), center_sample=96 - 1 - 48)
        lines.append(line)
    assert plane(run(FULL, lines)).array.tobytes() == plane(run(FULL)).array.tobytes()


# Measurements of which nothing can be made


@pytest.mark.parametrize(
    ("kept", "reason"),
    [
        (lambda line: line.has(Flag.IS_NOISE_MEASUREMENT), "no imaging readouts: 8 of noise"),
        (lambda line: line.has(Flag.IS_PARALLEL_CALIBRATION), "no imaging readouts: 16 of calibration"),
        (lambda line: False, "nothing came"),
    ],
    ids=["noise only", "calibration only", "empty"],
)
def test_a_measurement_without_images_says_what_it_has(kept, reason: str) -> None:
    scan = replace(FULL, acceleration=2, acs=16, calibration="separate")
    with pytest.raises(dn.Unsuitable, match=reason):
        run(scan, [line for line in scan.readouts() if kept(line)])


def test_a_measurement_of_unusable_lines_says_why() -> None:
    lines = [replace(line, data=np.full_like(line.data, np.nan)) for line in FULL.readouts()]
    with pytest.raises(dn.Unsuitable, match="56 readouts with values that are not finite"):
        run(FULL, lines)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"multiband": 2}, "multiband 2"),
        ({"trajectory": Trajectory.OTHER}, "trajectory 'other'"),
        ({"encoded_matrix": (0, 48, 1)}, "no matrix"),
        ({"recon_matrix": (48, 0, 1)}, "no matrix"),
        ({"encoded_matrix": (65535, 65535, 1)}, "beyond"),
        ({"recon_fov": (0.0, 256.0, 5.0)}, "no field of view"),
        ({"encoded_fov": (512.0, float("nan"), 5.0)}, "no field of view"),
        ({"trajectory": Trajectory.SPIRAL, "encoded_matrix": (96, 48, 8)}, "three dimensions"),
    ],
)
def test_a_header_that_rules_images_out_is_refused_at_once(changed, reason: str) -> None:
    encoding = replace(FULL.header().encodings[0], **changed)
    if "three" in reason:
        encoding = replace(encoding, limits={})
    with pytest.raises(dn.Unsuitable, match=reason):
        pipeline().begin(replace(FULL.header(), encodings=(encoding,)))
    with pytest.raises(dn.Unsuitable, match="no encoding"):
        pipeline().begin(replace(FULL.header(), encodings=()))


# What is measured only in part, and noise


@pytest.mark.parametrize(
    "part", [{"partial_fourier": 0.625}, {"echo_fraction": 0.7}, {"partial_fourier": 0.75, "echo_fraction": 0.8}]
)
def test_partial_fourier_and_asymmetric_echoes_are_filled_in(part) -> None:
    whole = error(FULL, plane(run(FULL)))
    made = plane(run(replace(FULL, **part)))
    assert made.remark == ""
    assert error(FULL, made) < 1.35 * whole


def test_too_little_beyond_the_centre_is_filled_with_zeros_and_said() -> None:
    scan = replace(FULL, partial_fourier=0.52)
    assert "too little beyond the centre" in run(scan).reconstructions[0].description


def test_partial_fourier_of_an_undersampled_measurement() -> None:
    scan = replace(FULL, matrix=(64, 64), coils=6, acceleration=2, acs=20)
    assert error(scan, plane(run(replace(scan, partial_fourier=0.7)))) < 1.35 * error(scan, plane(run(scan)))


def test_whitening_reaches_the_signal_to_noise_ratio_of_theory() -> None:
    """Roemer 1990, Magn Reson Med 16:192, eq. 32: rho * sqrt(s^H C^-1 s); a magnitude has half of C's noise power."""
    scan = replace(DISC, correlation=0.6, gains=(1.0, 5.0, 0.3, 1.0))
    images = np.stack([plane(run(replace(scan, seed=seed))).array for seed in range(12)])
    inside = scan.truth(48, 48) == 1.0
    inside &= np.abs(np.add.outer(np.arange(48) - 24.0, np.zeros(48))) < 12
    measured = (images.mean(0) / images.std(0, ddof=1))[inside]
    gains = np.array(scan.gains)
    mixing = gains[:, None] * scan.mixing() * scan.noise
    seen = gains[:, None, None] * scan.maps(48, 48)
    whitened = np.tensordot(np.linalg.inv(mixing), seen, 1)
    theory = np.sqrt(2 * (np.abs(whitened) ** 2).sum(0))[inside]
    assert np.median(measured / theory) == pytest.approx(1.0, abs=0.1)
    blind = [line for line in scan.readouts() if not line.has(Flag.IS_NOISE_MEASUREMENT)]
    assert any("no noise scan" in note for note in run(scan, blind).notes)


def test_the_noise_that_was_found_is_reported() -> None:
    assert run(DISC).quality["noise_sd"] == pytest.approx(0.1, rel=0.05)
    lines = [line for line in DISC.readouts() if not line.has(Flag.IS_NOISE_MEASUREMENT)]
    estimated = run(DISC, lines)
    assert estimated.quality["noise_sd"] == pytest.approx(0.1, rel=0.6)
    assert any("no noise scan" in note for note in estimated.notes)


def test_a_dead_channel_is_left_out_and_named() -> None:
    scan = replace(FULL, gains=(1.0, 0.0, 1.0, 1.0))
    result = run(scan)
    assert any(note.startswith("receiver channel 1 left out") for note in result.notes)
    assert np.isfinite(plane(result).array).all()


def test_calibration_of_the_first_repetition_serves_those_without() -> None:
    scan = replace(FULL, matrix=(64, 64), coils=6, repetitions=2, acceleration=2, acs=20)
    lattice = set(replace(scan, acs=0).sampled())
    lines = [
        line for line in scan.readouts()
        if line.has(Flag.IS_NOISE_MEASUREMENT) or line.repetition == 0 or line.step_1 in lattice
    ]  # fmt: skip
    made = planes(run(scan, lines))
    assert error(scan, made[1]) < 1.3 * error(scan, made[0])
    assert "root sum" not in made[1].remark


# Volumes


def test_a_volume_is_as_good_as_its_slices() -> None:
    scan = replace(FULL, partitions=6, matrix=(48, 48))
    made = planes(run(scan))
    assert [p.slice for p in made] == list(range(6))
    assert error(scan, made[3]) < 0.15


def test_a_volume_undersampled_in_both_directions_is_unfolded() -> None:
    scan = Scan(matrix=(32, 32), partitions=16, coils=6, noise=0.01, noise_lines=8, oversampling=1.0, thickness=8.0)
    kept = []
    for line in scan.readouts():
        central = abs(line.step_1 - 16) < 4 and abs(line.step_2 - 8) < 4
        if line.has(Flag.IS_NOISE_MEASUREMENT) or central or (line.step_1 % 2 == 0 and line.step_2 % 2 == 0):
            kept.append(line)
    encoding = replace(scan.header().encodings[0], acceleration=(2, 2), calibration=Calibration.EMBEDDED)
    header = replace(scan.header(), encodings=(encoding,))
    whole, made = planes(run(scan))[8], planes(run(scan, kept, header=header))[8]
    assert np.linalg.norm(made.array - whole.array) < 0.15 * np.linalg.norm(whole.array)


def test_partitions_that_only_count_slices_are_no_volume() -> None:
    encoding = replace(FULL.header().encodings[0], encoded_matrix=(96, 48, 3))
    result = run(FULL, header=replace(FULL.header(), encodings=(encoding,)))
    assert plane(result).array.tobytes() == plane(run(FULL)).array.tobytes()


# Settings


@pytest.mark.parametrize("kind", ["hamming", "tukey"])
def test_a_filter_blurs_and_is_recorded(kind: str) -> None:
    result = run(FULL, filter=kind)
    assert f"{kind} filter" in result.reconstructions[0].description
    rough = [np.abs(np.diff(p.array)).sum() for p in (plane(result), plane(run(FULL)))]
    assert rough[0] < rough[1]


@pytest.mark.parametrize("options", [{"filter": "median"}, {"max_missing": 1.0}, {"tick_ms": 0.0}])
def test_settings_that_mean_nothing_are_refused(options) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        pipeline(**options)
