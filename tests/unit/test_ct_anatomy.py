"""The error against the anatomy, found without knowing it, is the error that there is where it is known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from models.ct_denoise import bars, baselines, cases, evaluate_anatomy, metrics, simulate
from models.ct_denoise.projection import KERNELS

OWN_HU, FULL_HU, PIXEL_MM = 6.0, 14.0, 0.7


@pytest.fixture(scope="module")
def scan() -> tuple[torch.Tensor, cases.Case]:
    """Simulated anatomy (row, column), and the case of a scan of it that is made noisier."""
    anatomy = simulate.simulate_slice(11, 224).clean.clamp(-150.0, 230.0)  # all of it in the window of PSNR
    image, std = anatomy[None], KERNELS["std"]

    def own(seed: int) -> torch.Tensor:
        return simulate.insert_noise(image, PIXEL_MM, sigma_hu=OWN_HU, kernel=std, seed=seed)[0]

    added = simulate.insert_noise(image, PIXEL_MM, sigma_hu=FULL_HU, own_sigma_hu=OWN_HU, kernel=std, seed=2)[0]
    reference = anatomy + own(1)
    every = torch.stack([own(seed) for seed in range(20, 28)])
    return anatomy, cases.Case(
        group="known", clean=reference, noisy=reference + added, noise=added[None], sigma_hu=FULL_HU, own_hu=OWN_HU,
        own=every,
    )  # fmt: skip


@pytest.mark.parametrize("method", [baselines.identity, baselines.bilateral, baselines.non_local_means])
def test_the_error_against_the_anatomy_is_found_without_it(scan, method):
    anatomy, case = scan
    low, high = metrics.WINDOW
    image = method(case.noisy, case.sigma_hu).clamp(low, high)[case.body]
    against_reference, against_anatomy, passed = evaluate_anatomy.errors(case, method)
    assert against_reference == pytest.approx(float((image - case.clean[case.body].clamp(low, high)).square().mean()))
    truth = float((image - anatomy[case.body]).square().mean())
    assert against_anatomy == pytest.approx(truth, rel=0.12)
    # what is charged for the reference's own noise is not small beside the tolerance
    assert abs(against_reference - truth) > 0.15 * truth
    assert passed == pytest.approx(1.0, abs=0.05) if method is baselines.identity else 0.0 < passed < 0.8


def test_noise_of_bone_above_the_window_is_neither_charged_nor_taken_off(scan):
    anatomy, case = scan
    bone = torch.where(torch.arange(len(anatomy))[:, None] % 8 < 4, 900.0, 0.0).expand_as(anatomy)
    covered = replace(case, clean=case.clean + bone, noisy=case.noisy + bone)
    low, high = metrics.WINDOW
    image, truth = ((part + bone).clamp(low, high)[covered.body] for part in (case.noisy, anatomy))
    _, against_anatomy, passed = evaluate_anatomy.errors(covered, baselines.identity)
    assert against_anatomy == pytest.approx(float((image - truth).square().mean()), rel=0.08)
    assert passed == pytest.approx(1.0, abs=0.05)


def test_a_reference_without_noise_of_its_own_is_left_out_of_the_table_and_named(scan):
    _, case = scan
    plain = replace(case, own=None)
    with pytest.raises(ValueError, match="'known' has no noise of its own"):
        evaluate_anatomy.errors(plain, baselines.identity)
    rows = evaluate_anatomy.table([plain, case, case], lambda _case: {"gaussian": baselines.gaussian})
    assert [(row["group"], row["method"], row["cases"]) for row in rows] == [("known", "gaussian", 2)]
    against_reference, against_anatomy, _ = evaluate_anatomy.errors(case, baselines.gaussian)
    gained = rows[0]["psnr_anatomy_db"] - rows[0]["psnr_reference_db"]
    assert 10.0 ** (gained / 10.0) == pytest.approx(against_reference / against_anatomy)
    more = replace(case, own=1.1 * case.own)
    assert rows[0]["psnr_anatomy_1.1_db"] == pytest.approx(
        evaluate_anatomy.table([more], lambda _case: {"gaussian": baselines.gaussian})[0]["psnr_anatomy_db"], abs=0.01
    )


def test_the_bars_of_real_anatomy_are_judged_against_it_too():
    rows = [
        {"group": "real head + 12 HU", "method": name, "psnr_anatomy_db": value}
        for name, value in (("BM3D, true spectrum", 38.0), ("ours, strength 1", 38.1))
    ]
    (verdict,) = bars.verdicts({"anatomy": rows})
    assert verdict["met"] and "against the anatomy, real head" in verdict["bar"]
    rows[1]["psnr_anatomy_db"] = 37.9
    assert not bars.verdicts({"anatomy": rows})[0]["met"]
