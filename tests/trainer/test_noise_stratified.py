"""Stratified times: one in each cell of [0, 1), over all ranks together; several of an image spread evenly."""

import pytest
import torch

from trainer.noise import Noise


def cells(t: torch.Tensor, n: int) -> list[int]:
    return sorted((t * n).floor().long().tolist())


@pytest.mark.parametrize("batch", [1, 7, 128])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_each_cell_holds_one_image_of_the_global_batch_over_all_ranks_together(batch, ranks):
    offsets = []
    for step in (0, 1, 5):
        positions = torch.arange(step * batch, (step + 1) * batch)
        shares = [Noise(4, "train", positions[rank::ranks], batch).stratified("t") for rank in range(ranks)]
        times = torch.cat(shares).double()
        assert cells(times, batch) == list(range(batch))
        offsets.append((times.min() * batch).item())
    assert batch == 1 or len(set(offsets)) == 3  # every step has a u0 of its own


def test_times_of_an_image_in_evaluation_fall_in_one_cell_each():
    noise = Noise(4, "evaluate", torch.arange(50), dtype=torch.float64)
    times = torch.stack([noise.with_draw(k, 8).stratified("t") for k in range(8)])  # [K, B]
    for image in range(50):
        assert cells(times[:, image], 8) == list(range(8))
    assert len({round(t, 9) for t in (times[0] % 0.125).tolist()}) == 50  # every image has a u of its own


def test_times_are_uniform_over_steps():
    times = torch.cat(
        [Noise(0, "train", torch.arange(k * 4, k * 4 + 4), 4, dtype=torch.float64).stratified("t") for k in range(2000)]
    )
    counts = torch.histc(times, 16, 0, 1)
    assert ((counts - 500).abs() < 5 * 500**0.5).all()
