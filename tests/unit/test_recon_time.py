"""How long a slice takes after its last line, in processor time of one core: other load does not count."""

from __future__ import annotations

import time

import pytest
import torch

from tests.mrd_factory import Scan
from tests.recon import pipeline


@pytest.mark.slow
def test_a_slice_is_ready_within_two_seconds_of_its_last_line() -> None:
    scan = Scan(matrix=(192, 192), coils=8, acceleration=4, acs=24, noise=0.02, noise_lines=16)
    lines, stream, threads = scan.readouts(), pipeline().begin(scan.header()), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for line in lines[:-1]:
            assert not stream.add(line)
        began = time.process_time()
        (made,) = stream.add(lines[-1])
        took = time.process_time() - began
    finally:
        torch.set_num_threads(threads)
    assert made.label == "CS wavelet"  # four folded images in eight coils: the slower of the two
    assert took < 2.0, f"{took:.2f} s"
