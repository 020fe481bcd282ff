"""Which rung reconstructs what, and what becomes of those that fail."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dicomnode import pipeline as dn
from dicomnode.kspace import Flag
from models.mr_recon import ladder
from models.mr_recon.checks import Check
from models.mr_recon.domain import Domain, Range
from models.mr_recon.linops import Sense
from models.mr_recon.solvers import conjugate_gradient
from tests.mrd_factory import Scan
from tests.recon import error, pipeline

FULL = Scan(matrix=(48, 48), coils=4, noise=0.02, noise_lines=8)
UNIFORM = Scan(matrix=(64, 64), coils=6, noise=0.02, noise_lines=8, acceleration=3, acs=20)
VARIABLE = Scan(matrix=(64, 64), coils=6, noise=0.01, noise_lines=8, acceleration=3, acs=16, pattern="variable")

WIDE = Domain(
    acceleration={"uniform": Range(least=2, most=8), "variable": Range(least=2, most=8)},
    calibration={"uniform": Range(least=4, most=64), "variable": Range(least=4, most=64)},
    coils=Range(least=1, most=10), rows=Range(least=32, most=512), columns=Range(least=32, most=512),
    partial_fourier=False,
)  # fmt: skip


class Network:
    """CG-SENSE in the place of a network, with something done to its images."""

    def __init__(self, domain: Domain = WIDE, distort=lambda image: image) -> None:
        self.domain, self.distort, self.calls = domain, distort, 0

    def reconstruct(self, maps, y, mask):
        self.calls += 1
        operator = Sense(maps, mask)
        return self.distort(conjugate_gradient(operator.normal, operator.adjoint(y), iterations=15))


def run(scan: Scan, network=None, readouts=None, **options) -> dn.Result:
    made = pipeline(learned=network is not None, **options)
    if network is not None:
        made.ladder = ladder.Ladder(made.options.method, network)
    return made.run(dn.KSpace(header=scan.header(), readouts=scan.readouts() if readouts is None else readouts))


def rung(result: dn.Result) -> str:
    return result.reconstructions[0].description.split("(")[1].split(")")[0]


@pytest.mark.parametrize(
    ("scan", "wanted"),
    [
        (FULL, "fft-adaptive"),
        (replace(FULL, coils=1), "fft-adaptive"),
        (replace(UNIFORM, acceleration=2), "sense-cg"),
        (UNIFORM, "sense-cg"),
        (replace(UNIFORM, acceleration=6), "cs-l1"),
        (VARIABLE, "cs-l1"),
        (replace(VARIABLE, coils=1), "cs-l1"),
        (replace(UNIFORM, calibration="separate"), "sense-cg"),
        (replace(UNIFORM, acs=0), "fft-rss"),
    ],
    ids=lambda value: (
        value if isinstance(value, str) else f"R{value.acceleration}-{value.pattern}-{value.coils}-{value.acs}"
    ),
)
def test_the_first_rung_that_fits_is_taken(scan: Scan, wanted: str) -> None:
    result = run(scan)
    assert rung(result) == wanted
    assert not result.reconstructions[0].learned
    assert "fallback" not in result.reconstructions[0].description


def test_a_beating_heart_whose_lines_shift_is_reconstructed_in_time() -> None:
    scan = Scan(phases=8, coils=6, acceleration=4, pattern="shifted", noise=0.02, noise_lines=8, matrix=(48, 48))
    assert rung(run(scan)) == "cs-kttv"
    # The same lines in every phase: time adds nothing.
    assert rung(run(replace(scan, pattern="uniform", acs=20))) in ("sense-cg", "cs-l1")


@pytest.mark.parametrize("method", ["sense-cg", "grappa", "cs-l1"])
def test_undersampled_images_are_close_to_the_truth(method: str) -> None:
    whole = error(UNIFORM, run(replace(UNIFORM, acceleration=1, acs=0)).reconstructions[0].planes[0])
    unresolved = error(UNIFORM, run(UNIFORM, method="fft-rss").reconstructions[0].planes[0])
    made = run(UNIFORM, method=method)
    assert rung(made) == method
    assert error(UNIFORM, made.reconstructions[0].planes[0]) < whole + 0.25 * (unresolved - whole)


def test_without_calibration_lines_aliasing_is_said() -> None:
    description = run(replace(UNIFORM, acs=0)).reconstructions[0].description
    assert "no calibration lines: undersampling is not resolved" in description


@pytest.mark.parametrize(
    ("scan", "method", "wanted", "reason"),
    [
        (VARIABLE, "grappa", "sense-cg", "uniform undersampling"),
        (replace(UNIFORM, acs=10), "grappa", "sense-cg", "needs 16 calibration lines"),
        (UNIFORM, "fft-adaptive", "sense-cg", "needs every line"),
        (UNIFORM, "cs-kttv", "sense-cg", "needs 8 frames"),
        (replace(UNIFORM, acs=0), "sense-cg", "fft-rss", "calibration lines"),
        (UNIFORM, "learned", "sense-cg", "no weights are installed"),
    ],
)
def test_a_method_that_does_not_fit_gives_way_and_says_why(scan, method, wanted, reason) -> None:
    result = run(scan, method=method)
    assert rung(result) == wanted
    assert f"Reconstruction fallback: {method}: " in result.reconstructions[0].description
    assert reason in result.reconstructions[0].description
    assert any(note.startswith("Reconstruction fallback: ") and reason in note for note in result.notes)


@pytest.mark.parametrize("raised", [torch.linalg.LinAlgError("singular"), RuntimeError("no memory"), ValueError("odd")])
def test_a_rung_that_fails_steps_down_to_the_plain_image(monkeypatch, raised) -> None:
    def fail(*_args, **_options):
        raise raised

    monkeypatch.setattr(ladder, "_cg", fail)
    monkeypatch.setattr(ladder.grappa, "fill", fail)
    result = run(UNIFORM)
    assert rung(result) == "fft-rss"
    assert f"sense-cg: {raised}" in result.reconstructions[0].description
    assert f"grappa: {raised}" in result.reconstructions[0].description


def test_coil_maps_that_fail_leave_what_needs_none(monkeypatch) -> None:
    def fail(*_args):
        raise torch.linalg.LinAlgError("no eigenvalues")

    monkeypatch.setattr(ladder.coils, "choose", fail)
    result = run(UNIFORM)
    assert rung(result) == "grappa"
    assert "coil maps: no eigenvalues" in result.reconstructions[0].description


def test_values_that_are_not_finite_do_not_leave(monkeypatch) -> None:
    monkeypatch.setattr(ladder, "_cg", lambda operator, y: torch.full_like(y[:, 0], torch.nan))
    result = run(UNIFORM)
    assert rung(result) == "grappa"
    assert "sense-cg: values that are not finite" in result.reconstructions[0].description


def test_maps_that_explain_the_calibration_badly_make_way_for_grappa(monkeypatch) -> None:
    found = ladder.coils.choose

    def leaking(acs, shape):
        return replace(found(acs, shape), leakage=0.3)

    monkeypatch.setattr(ladder.coils, "choose", leaking)
    result = run(UNIFORM)
    assert rung(result) == "grappa"
    assert "30% of the calibration unexplained" in result.reconstructions[0].description


def test_a_network_inside_its_domain_that_passes_is_taken_and_marked() -> None:
    network = Network()
    result = run(UNIFORM, network)
    assert network.calls == 1
    assert rung(result) == "learned"
    assert result.reconstructions[0].learned
    assert result.reconstructions[0].label == "AI reconstruction"
    assert result.quality["data_residual"] < 0.2


def test_a_network_outside_its_domain_is_not_run_and_the_reason_is_written() -> None:
    network = Network(replace(WIDE, acceleration={"variable": Range(least=2, most=8)}))
    result = run(UNIFORM, network)
    assert network.calls == 0
    assert rung(result) == "sense-cg"
    assert "Reconstruction fallback: learned: uniform sampling" in result.reconstructions[0].description


def test_a_fully_sampled_measurement_needs_no_network_and_no_excuse() -> None:
    network = Network()
    result = run(FULL, network)
    assert network.calls == 0
    assert "fallback" not in result.reconstructions[0].description


@pytest.mark.parametrize(
    "distort", [lambda image: image * 1.2, lambda image: image.roll(3, -1), lambda image: image * 0]
)
def test_a_network_that_contradicts_the_data_is_not_shown(distort) -> None:
    network = Network(distort=distort)
    result = run(UNIFORM, network)
    assert network.calls == 1
    assert rung(result) == "sense-cg"
    assert not result.reconstructions[0].learned
    assert "Reconstruction fallback: learned: " in result.reconstructions[0].description
    assert "is above" in result.reconstructions[0].description


def test_a_mark_that_refuses_nothing_is_written_into_the_image(monkeypatch) -> None:
    from models.mr_recon import checks

    judged = (Check("prior influence", 0.03, 0.01, False, refuses=False),)
    monkeypatch.setattr(checks, "judge", lambda *_args: judged)
    result = run(UNIFORM, Network())
    assert rung(result) == "learned"
    assert "strong prior influence" in result.reconstructions[0].description


def test_a_series_that_began_without_a_network_stays_without() -> None:
    """The first slice of a series says whether it is derived by a network: no later one may differ unmarked."""
    refused = iter([1.3, 1.0, 1.0])
    network = Network(distort=lambda image: image * next(refused))
    scan = replace(UNIFORM, slices=3)
    result = run(scan, network)
    made = result.reconstructions[0]
    assert network.calls == 1
    assert not made.learned
    assert [plane.remark for plane in made.planes] == ["", "", ""] or all(
        "AI" not in plane.remark for plane in made.planes
    )


def test_a_slice_the_network_fails_on_is_marked_in_a_learned_series() -> None:
    scales = iter([1.0, 1.3, 1.0])
    network = Network(distort=lambda image: image * next(scales))
    made = run(replace(UNIFORM, slices=3), network).reconstructions[0]
    assert made.learned
    assert made.planes[0].remark == made.planes[2].remark == ""
    assert "reconstructed by CG-SENSE" in made.planes[1].remark
    assert "learned: " in made.planes[1].remark


def test_averages_do_not_turn_a_good_network_away() -> None:
    assert rung(run(replace(UNIFORM, averages=3), Network())) == "learned"


def test_many_coils_are_compressed_for_a_network() -> None:
    seen = []

    class Counting(Network):
        def reconstruct(self, maps, y, mask):
            seen.append((maps.shape[-3], y.shape[-3]))
            return super().reconstruct(maps, y, mask)

    assert rung(run(replace(UNIFORM, coils=14), Counting())) == "learned"
    assert seen[0][0] == seen[0][1] <= 10


def test_an_unknown_method_is_refused_with_the_ones_there_are() -> None:
    with pytest.raises(ValueError, match="auto, learned, cs-kttv"):
        pipeline(method="magic")


def alike(readouts, different=1):
    """All channels but some are nearly one of these: of many coils, so many tell places apart."""
    for readout in readouts:
        if readout.has(Flag.IS_NOISE_MEASUREMENT):
            yield readout
            continue
        data = readout.data.copy()
        for channel in range(different, len(data)):
            data[channel] = 0.05 * data[channel] + 0.95 * data[channel % different]
        yield replace(readout, data=data)


def test_coils_that_are_alike_do_not_unfold_by_sense() -> None:
    scan = Scan(matrix=(64, 64), coils=2, noise=0.02, noise_lines=8, acceleration=2, acs=20)
    result = run(scan, readouts=alike(scan.readouts()))
    assert rung(result) == "cs-l1"
    assert "Reconstruction fallback: sense-cg: amplifies noise" in result.reconstructions[0].description
    assert result.quality["noise_amplification"] > ladder.conditioning.AMPLIFICATION
    # Who asks for it by name gets it.
    assert rung(run(scan, readouts=alike(scan.readouts()), method="sense-cg")) == "sense-cg"


def test_many_coils_of_which_one_virtual_coil_is_left_count_as_one() -> None:
    """A network for one coil was trained on irregular lines alone: it must never be shown regular ones."""
    network = Network()
    scan = Scan(matrix=(64, 64), coils=12, noise=0.02, noise_lines=8, acceleration=2, acs=20)
    result = run(scan, network, readouts=alike(scan.readouts()))
    assert network.calls == 0
    assert "learned: 1 coils cannot tell 2 folded images apart" in result.reconstructions[0].description


def test_a_network_is_judged_by_the_virtual_coils_that_it_is_given() -> None:
    """Twelve coils that are compressed to two unfold no three images, though twelve, or the ten at most, would."""
    network = Network()
    scan = Scan(matrix=(64, 64), coils=12, noise=0.02, noise_lines=8, acceleration=3, acs=20)
    result = run(scan, network, readouts=alike(scan.readouts(), different=2))
    assert network.calls == 0
    assert "learned: 2 coils cannot tell 3 folded images apart" in result.reconstructions[0].description
    run(scan, network)
    assert network.calls == 1, "twelve that differ do"


def test_good_coils_amplify_noise_little() -> None:
    assert run(UNIFORM).quality["noise_amplification"] < ladder.conditioning.AMPLIFICATION


def test_an_amplification_that_cannot_be_measured_is_said_and_stops_nothing(monkeypatch) -> None:
    def fail(*_args):
        raise RuntimeError("no memory")

    monkeypatch.setattr(ladder.conditioning, "amplification", fail)
    result = run(UNIFORM)
    assert rung(result) == "sense-cg"
    assert "noise amplification not known (no memory)" in result.reconstructions[0].description


#: The torso is 150 mm high.
FOLDED = replace(UNIFORM, fov=(256.0, 110.0), matrix=(64, 48), acceleration=2)


def test_a_body_that_folds_over_is_left_to_grappa_and_shown_to_no_network() -> None:
    network = Network()
    result = run(FOLDED, network)
    assert network.calls == 0
    assert rung(result) == "grappa"
    assert "learned: coil maps leave" in result.reconstructions[0].description


def test_a_body_that_folds_over_irregular_lines_has_two_sets_of_maps(monkeypatch) -> None:
    scan = replace(FOLDED, pattern="variable")
    whole = replace(FOLDED, acceleration=1, acs=0)
    made = run(scan)
    assert rung(made) == "cs-l1"
    assert "two sets" in made.reconstructions[0].description
    monkeypatch.setattr(ladder, "LEAKAGE_ESPIRIT", 1.0)
    one = run(scan)
    assert rung(one) == "cs-l1" and "two sets" not in one.reconstructions[0].description
    truth = run(whole).reconstructions[0].planes[0].array

    def apart(result: dn.Result) -> float:
        image = result.reconstructions[0].planes[0].array
        image = image * ((image * truth).sum() / (image**2).sum())
        return float(((image - truth) ** 2).sum() / (truth**2).sum())

    assert apart(made) < 0.7 * apart(one)


def test_networks_are_not_shown_what_their_maps_cannot_explain(monkeypatch) -> None:
    found = ladder.coils.choose
    monkeypatch.setattr(ladder.coils, "choose", lambda acs, shape: replace(found(acs, shape), leakage=0.06))
    network = Network()
    result = run(replace(VARIABLE, acs=10), network)
    assert network.calls == 0
    assert "learned: coil maps leave 6% of the calibration unexplained" in result.reconstructions[0].description
