"""Power-function averages, and averages of other widths made of their snapshots."""

import numpy as np
import pytest
import torch

from cluster.storage.storage import Storage
from trainer.checkpoints.commit import Commit
from trainer.checkpoints.lineage import Lineage
from trainer.checkpoints.profiles import Snapshot, combination, exponent
from trainer.checkpoints.snapshots import reconstruct, stored_snapshots, write_snapshots
from trainer.errors import TrainingError
from trainer.training.posthoc_ema import WIDTHS, PosthocEma, PowerEma

BATCH, BUDGET = 10, 20_000


def trained(run, widths=WIDTHS, every=2_000):
    """Averages of a weight that wanders, the last of each width, with snapshots in the run's folder."""
    attempt = Lineage(run).claim(None).number
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Linear(3, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    posthoc = PosthocEma(model, widths)
    for images in range(BATCH, BUDGET + 1, BATCH):
        with torch.no_grad():
            model.weight += 0.05 * torch.randn(1, 3, generator=generator) + 0.002
        posthoc.update(images, BATCH)
        if images % every == 0:
            write_snapshots(run, Commit(images, attempt), posthoc.halves())
    return [average.average["weight"] for average in posthoc.averages]


@pytest.mark.parametrize(("width", "gamma"), [(0.05, 16.97), (0.1, 6.94)])
def test_exponents_are_the_papers(width, gamma):
    assert exponent(width) == pytest.approx(gamma, abs=0.01)


@pytest.mark.parametrize("width", [0.01, 0.05, 0.2])
def test_an_average_has_the_width_that_was_asked_for(width):
    """The weights at image count tau, that is, of a model whose weight counts the images."""
    model = torch.nn.Linear(1, 1, bias=False).double()
    mean, square = PowerEma(model, width), PowerEma(model, width)
    for images in range(BATCH, BUDGET + 1, BATCH):
        for average, value in ((mean, images / BUDGET), (square, (images / BUDGET) ** 2)):
            model.weight.data.fill_(value)
            average.update(images, BATCH)
    variance = square.average["weight"].item() - mean.average["weight"].item() ** 2
    assert variance**0.5 == pytest.approx(width, rel=0.02)


@pytest.mark.parametrize("width", [0.04, 0.07, 0.1, 0.15])
def test_an_average_of_another_width_is_made_of_the_snapshots(width, tmp_path):
    folder = Storage(str(tmp_path / "two"))
    other, *_ = trained(Storage(str(tmp_path / "other")), widths=(width,))
    own = trained(folder)
    made = reconstruct(folder, width).tensors["weight"]
    error = (made - other).abs().max().item()
    assert error < 0.02
    assert error < 0.5 * min((average - other).abs().max().item() for average in own) + 2e-3


def test_an_average_of_an_earlier_time_is_made_of_the_snapshots(tmp_path):
    folder = Storage(str(tmp_path))
    trained(folder)
    stored = reconstruct(folder, 0.05, 10_000).tensors["weight"]
    assert not torch.allclose(stored, reconstruct(folder, 0.05).tensors["weight"], atol=0.05)


def test_a_stored_average_is_itself():
    stored = [Snapshot(images, width) for images in (100, 200, 300) for width in WIDTHS]
    np.testing.assert_allclose(combination(stored, stored[3]), [0, 0, 0, 1, 0, 0], atol=1e-8)


@pytest.mark.parametrize("width", [0.01, 0.08, 0.25, 0.28])
def test_factors_of_a_combination_add_up_to_one(width):
    stored = [Snapshot(images, width) for images in range(100, 1100, 100) for width in WIDTHS]
    assert combination(stored, Snapshot(1000, width)).sum() == pytest.approx(1, abs=1e-12)


def test_no_snapshots_and_a_time_beyond_them_are_told_in_one_line(tmp_path):
    folder = Storage(str(tmp_path))
    with pytest.raises(TrainingError, match="no snapshots of averages"):
        reconstruct(folder, 0.1)
    trained(folder)
    with pytest.raises(TrainingError, match="reach from 2,000 to 20,000 images, not 30,000"):
        reconstruct(folder, 0.1, 30_000)
    with pytest.raises(ValueError, match=r"width: 0\.3 is not between 0 and 0\.289"):
        exponent(0.3)


def test_snapshots_outside_of_the_history_are_passed_over(tmp_path):
    """Attempt 1 stored one more after the commit that attempt 2 went on from."""
    run = Storage(str(tmp_path))
    lineage = Lineage(run)

    def store(images, attempt, value):
        write_snapshots(run, Commit(images, attempt), {0.05: {"w": torch.full((2,), value)}})

    first = lineage.claim(None).number
    for images in (100, 200):
        store(images, first, 1.0)
    assert {s.images for s in stored_snapshots(run).values()} == {100, 200}
    second = lineage.claim(Commit(100, first)).number
    store(300, second, 2.0)
    assert {s.images for s in stored_snapshots(run).values()} == {100, 300}
    store(400, first, 9.0)  # a process that does not know yet that it was superseded
    assert reconstruct(run, 0.05).images == 300
    torch.testing.assert_close(reconstruct(run, 0.05).tensors["w"], torch.full((2,), 2.0))


def test_only_what_is_trained_is_stored():
    model = torch.nn.Linear(3, 1)
    model.bias.requires_grad_(False)
    assert all(tensors.keys() == {"weight"} for tensors in PosthocEma(model).halves().values())


def test_averages_that_start_late_are_those_of_a_run_that_starts_then(tmp_path):
    """The weights before the start count neither in the averages nor in what is made of their snapshots."""
    late, fresh = (Storage(str(tmp_path / name)) for name in ("late", "fresh"))
    first, second = (Lineage(run).claim(None).number for run in (late, fresh))
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Linear(3, 1, bias=False)
    averages, reference = PosthocEma(model), PosthocEma(model)
    averages.start = BUDGET
    for images in range(BATCH, BUDGET + 1, BATCH):
        with torch.no_grad():
            model.weight += 0.05 * torch.randn(1, 3, generator=generator)
        averages.update(BUDGET + images, BATCH)
        reference.update(images, BATCH)
        if images == BUDGET // 2:  # a restart
            saved = averages.state_dict()
            averages = PosthocEma(model)
            averages.start = BUDGET
            for name, value in averages.state_dict().items():
                value.copy_(saved[name])
        if images % 2_000 == 0:
            write_snapshots(late, Commit(BUDGET + images, first), averages.halves(), averages.start)
            write_snapshots(fresh, Commit(images, second), reference.halves())
    mine, other = reconstruct(late, 0.08), reconstruct(fresh, 0.08)
    assert (mine.images, other.images) == (2 * BUDGET, BUDGET)
    torch.testing.assert_close(mine.tensors, other.tensors, rtol=0, atol=0)


def test_snapshots_before_a_second_start_are_left_out(tmp_path):
    run = Storage(str(tmp_path))
    attempt = Lineage(run).claim(None).number
    for images, start, value in ((100, 0, 1.0), (200, 0, 1.0), (400, 300, 5.0)):
        write_snapshots(run, Commit(images, attempt), {0.05: {"w": torch.full((2,), value)}}, start)
    assert reconstruct(run, 0.05).tensors["w"].tolist() == pytest.approx([5.0, 5.0])
    assert reconstruct(run, 0.05, 200).tensors["w"].tolist() == pytest.approx([1.0, 1.0])
