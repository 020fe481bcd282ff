"""The learned reconstruction: network, trained domain, acceptance checks and package."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.mr_recon import bundle, checks, data, masks, phantoms, simulate, symmetry
from models.mr_recon.domain import Domain, Facts
from models.mr_recon.linops import Sense
from models.mr_recon.net import Shape, UNet, Unrolled
from models.mr_recon.solvers import conjugate_gradient

TINY = Shape(blocks=2, width=4, levels=2, iterations=3)
RECORD = {
    "acceleration": {"uniform": [2, 4], "variable": [2.0, 8.0]},
    "calibration": {"uniform": [12, 32], "variable": [6, 32]},
    "coils": [1, 12],
    "rows": [96, 224],
    "columns": [48, 512],
    "partial_fourier": False,
}
INSIDE = Facts(
    acceleration=4.0, pattern="uniform", calibration=16, coils=8, rows=160, columns=160, partial_fourier=False
)


@pytest.fixture(scope="module")
def measured():
    rng = np.random.default_rng(3)
    image = phantoms.draw_phantom(rng, (64, 56))
    return simulate.measure(rng, image, 6, masks.uniform(64, 2, 16), snr=40.0, method="low-resolution")


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(1)
    return Unrolled(TINY).eval()


def reconstructed(network, maps, y, mask):
    operator = Sense(maps, mask)
    with torch.no_grad():
        return network(operator.normal, operator.adjoint(y)[None])[0]


@pytest.mark.parametrize("shape", [(17, 23), (48, 31), (64, 64)])
def test_the_prior_takes_any_matrix_and_gives_it_back(shape):
    found = UNet(4, 3)(torch.randn(2, 2, *shape))
    assert found.shape == (2, 2, *shape)


def test_network_takes_an_odd_matrix_and_keeps_its_grid(network):
    maps, mask = torch.ones(1, 45, 37, dtype=torch.complex64), torch.ones(1, 45, 37)
    x = torch.zeros(45, 37, dtype=torch.complex64)
    x[22, 18] = 1.0
    found = reconstructed(network, maps, Sense(maps, mask).forward(x), mask)
    assert int(found.abs().argmax()) == 22 * 37 + 18


def test_scaled_data_give_the_scaled_image(network, measured):
    one = reconstructed(network, measured.maps, measured.y, measured.mask)
    two = reconstructed(network, measured.maps, 1000.0 * measured.y, measured.mask)
    assert torch.linalg.vector_norm(two - 1000.0 * one) < 2e-2 * torch.linalg.vector_norm(two)


def test_order_of_coils_does_not_matter(network, measured):
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    one = reconstructed(network, measured.maps, measured.y, measured.mask)
    two = reconstructed(network, measured.maps[order], measured.y[order], measured.mask)
    assert torch.linalg.vector_norm(two - one) < 2e-2 * torch.linalg.vector_norm(one)


def test_image_explains_the_data_whatever_the_prior_says(measured):
    torch.manual_seed(5)
    wild = Unrolled(TINY)
    with torch.no_grad():
        for net in wild.nets:
            net.last.weight.mul_(20.0)
            net.last.bias.fill_(0.3)
    operator = Sense(measured.maps, measured.mask)
    image = reconstructed(wild, measured.maps, measured.y, measured.mask)
    linear = conjugate_gradient(operator.normal, operator.adjoint(measured.y), iterations=10, damping=2e-3)

    def residual(x):
        return torch.linalg.vector_norm(operator.forward(x) - measured.y) / torch.linalg.vector_norm(measured.y)

    assert residual(image) < 1.5 * residual(linear) + 0.02


def test_gradient_reaches_every_weight(measured):
    torch.manual_seed(2)
    network = Unrolled(TINY)
    operator = Sense(measured.maps, measured.mask)
    network(operator.normal, operator.adjoint(measured.y)[None]).abs().square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.abs().sum() > 0), name


def test_slabs_have_the_operator_of_whole_measurements(measured):
    slabs, operator = data.slabs_of([measured], None), Sense(measured.maps, measured.mask)
    x = torch.randn(64, 56, dtype=torch.complex64)
    torch.testing.assert_close(slabs.normal(x[None])[0], operator.normal(x), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(slabs.right[0], operator.adjoint(measured.y), atol=1e-5, rtol=1e-4)


def test_facts_inside_the_trained_domain_are_not_refused():
    assert Domain.of(RECORD).refusal(INSIDE) == ""


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"acceleration": 5.0}, "acceleration 5.00"),
        ({"pattern": "two-dimensional"}, "two-dimensional sampling is not in the trained domain"),
        ({"pattern": "full"}, "fully sampled"),
        ({"coils": 3}, "3 coils cannot tell 4 folded images apart"),
        ({"calibration": 8}, "8 calibration lines"),
        ({"coils": 16}, "16 coils"),
        ({"rows": 64}, "64 rows"),
        ({"columns": 40}, "40 columns"),
        ({"partial_fourier": True}, "partial Fourier"),
    ],
)
def test_facts_outside_the_trained_domain_are_refused_by_name(change, word):
    assert word in Domain.of(RECORD).refusal(replace(INSIDE, **change))


def test_unknown_pattern_is_an_error():
    with pytest.raises(ValueError, match="spiral"):
        replace(INSIDE, pattern="spiral")


@pytest.fixture(scope="module")
def judged(measured):
    operator = Sense(measured.maps, measured.mask)
    linear = conjugate_gradient(operator.normal, operator.adjoint(measured.y), iterations=10, damping=2e-3)

    def judge(image):
        found = checks.judge(image, linear, operator, measured.y, measured.noise)
        return {one.name: one for one in found}, checks.refusal(found)

    return judge


def test_true_image_passes_all_checks(judged, measured):
    found, refusal = judged(measured.reference)
    assert refusal == "" and all(one.passed for one in found.values())


def test_image_that_does_not_explain_the_data_is_refused(judged, measured):
    _, refusal = judged(torch.roll(measured.reference, 3, 0))
    assert "data residual" in refusal


def test_image_of_another_brightness_is_refused(judged, measured):
    _, refusal = judged(0.9 * measured.reference)
    assert "low-frequency difference" in refusal


def test_invented_structure_marks_the_image_and_small_one_in_noise_does_not(judged, measured):
    invented = measured.reference.clone()
    invented[20:40, 20:40] *= 2.0
    found, _ = judged(invented)
    assert not found["prior influence"].passed
    assert found["prior influence"].refuses  # its lines are regular


def test_regular_lines_are_told_from_irregular_ones():
    rng = np.random.default_rng(0)
    for offset in range(4):
        lines = torch.from_numpy(masks.uniform(160, 4, 17, offset))
        assert checks.regular(lines[None, :, None].expand(1, 160, 8).float())
    assert not checks.regular(torch.from_numpy(masks.variable(160, 4.0, 16, rng))[None, :, None].float())


def test_noise_is_found_at_the_ends_of_the_readouts():
    noise = 0.3 * torch.randn(4, 128, 200, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    assert checks.noise_of(noise, torch.ones(1, 128, 200)) == pytest.approx(0.3, rel=0.05)


def test_noise_of_the_outer_lines_is_free_of_the_centres_signal():
    noise = 0.3 * torch.randn(4, 128, 200, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    noise[:, 20:108] += 5.0
    mask = torch.ones(1, 128, 200)
    mask[:, 1::2] = 0.0
    assert checks.noise_of(noise * mask, mask, 0.25) == pytest.approx(0.3, rel=0.05)
    assert checks.noise_of(noise * mask, mask) > 3.0


@pytest.mark.parametrize("number", [1, 2, 4, 8])
def test_reflections_are_undone_and_differ(number):
    x = torch.randn(3, 6, 5, dtype=torch.complex64, generator=torch.Generator().manual_seed(1))
    found = [change(x) for change in symmetry.reflections(number)]
    assert torch.equal(found[0], x)
    for change, image in zip(symmetry.reflections(number), found, strict=True):
        torch.testing.assert_close(change.back(image), x)
    assert all(not torch.allclose(a, b) for k, a in enumerate(found) for b in found[:k])


def test_there_are_eight_reflections_and_no_more():
    with pytest.raises(ValueError, match="1 to 8"):
        symmetry.reflections(9)


def test_what_knows_no_direction_is_its_own_mean(measured):
    """CG-SENSE commutes with every reflection, if the reflected measurement is the measurement of the reflection."""
    operator = Sense(measured.maps[None], measured.mask[None])
    right = operator.adjoint(measured.y[None])

    def linear(normal, b):
        return conjugate_gradient(normal, b, iterations=6, damping=1e-2)

    torch.testing.assert_close(
        symmetry.averaged(linear, operator.normal, right, 8), linear(operator.normal, right), atol=1e-3, rtol=1e-3
    )


def test_errors_with_a_direction_cancel_in_the_mean():
    """A network that is wrong along the rows in one way is wrong in the other in the flipped image."""
    truth = torch.ones(1, 8, 8, dtype=torch.complex64)
    slope = torch.linspace(-1, 1, 8)[:, None]
    for number in (2, 4, 8):
        found = symmetry.averaged(lambda _, right: right * (1 + slope), lambda x: x, truth, number)
        torch.testing.assert_close(found, truth, atol=1e-5, rtol=1e-5)


def test_package_loads_what_was_saved_and_runs_on_leading_axes(tmp_path, network, measured):
    bundle.save(network, tmp_path, RECORD, "shapes")
    learned = bundle.load(tmp_path, torch.device("cpu"))
    assert learned.domain == Domain.of(RECORD)
    y = torch.stack((measured.y, 2.0 * measured.y))
    images = learned.reconstruct(measured.maps, y, measured.mask)
    assert images.shape == (2, 64, 56)
    operator = Sense(measured.maps[None], measured.mask[None])
    with torch.no_grad():
        mean = symmetry.averaged(network, operator.normal, operator.adjoint(measured.y[None]), bundle.VARIANTS)
    torch.testing.assert_close(images[:1], mean)


@pytest.fixture
def two_networks(tmp_path, network):
    """A package whose weights for one coil are those of another network."""
    torch.manual_seed(9)
    other = Unrolled(TINY).eval()
    bundle.save(network, tmp_path, RECORD, "shapes")
    bundle.add_single(other, tmp_path, tmp_path, {"variable": [2.0, 6.0]}, "more shapes")
    return tmp_path, other


def test_one_coil_has_weights_of_its_own_where_the_package_has_them(two_networks, network):
    folder, other = two_networks
    learned = bundle.load(folder, torch.device("cpu"))
    for mine, theirs in ((learned.net_for(1), other), (learned.net_for(2), network)):
        assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True))
    y, ones = torch.randn(1, 32, 24, dtype=torch.complex64), torch.ones(1, 32, 24)
    operator = Sense(ones[None].to(torch.complex64), ones[None])
    with torch.no_grad():
        mean = symmetry.averaged(other, operator.normal, operator.adjoint(y[None]), bundle.VARIANTS_SINGLE)
    torch.testing.assert_close(learned.reconstruct(ones.to(torch.complex64), y, ones), mean[0])


def test_weights_for_one_coil_have_a_domain_of_their_own(two_networks):
    domain = bundle.load(two_networks[0], torch.device("cpu")).domain
    alone = replace(INSIDE, coils=1, pattern="variable", acceleration=6.0)
    assert domain.refusal(alone) == ""
    assert "2 to 6" in domain.refusal(replace(alone, acceleration=7.0))
    assert domain.refusal(replace(alone, acceleration=7.0, coils=8)) == ""
    assert "uniform sampling" in domain.refusal(replace(alone, pattern="uniform", acceleration=2.0))


def test_a_package_with_weights_for_one_coil_can_be_written_elsewhere(two_networks, network, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("copy")
    bundle.add_single(network, two_networks[0], elsewhere, {"variable": [2.0, 4.0]}, "shapes")
    learned = bundle.load(elsewhere, torch.device("cpu"))
    assert learned.single is not None and learned.domain.single["variable"].most == 4.0
    assert learned.manifest["single"]["training_data"] == "shapes"


def test_weights_for_one_coil_that_are_not_the_manifests_are_refused(two_networks):
    file = two_networks[0] / bundle.SINGLE
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(bytes(raw))
    with pytest.raises(bundle.WeightsMismatchError, match="single"):
        bundle.load(two_networks[0], torch.device("cpu"))


def test_weights_that_are_not_the_manifests_are_refused(tmp_path, network):
    bundle.save(network, tmp_path, RECORD, "shapes")
    file = tmp_path / bundle.WEIGHTS
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(bytes(raw))
    with pytest.raises(bundle.WeightsMismatchError, match="sha256"):
        bundle.load(tmp_path, torch.device("cpu"))


def test_unknown_architecture_is_refused(tmp_path, network):
    bundle.save(network, tmp_path, RECORD, "shapes")
    manifest = tmp_path / bundle.MANIFEST
    manifest.write_text(manifest.read_text().replace(bundle.ARCHITECTURE, "transformer"))
    with pytest.raises(bundle.WeightsMismatchError, match="transformer"):
        bundle.load(tmp_path, torch.device("cpu"))
