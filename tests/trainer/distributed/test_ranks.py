"""What several processes do together, with real ones: 1, 2 and 3 ranks that reach one another by gloo."""

import datetime
import pickle
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import trainer.distributed.requests
from cluster.storage.errors import UnavailableError
from cluster.storage.storage import Storage
from trainer.checkpoints.checkpointer import Checkpointer
from trainer.checkpoints.commit import Commit
from trainer.checkpoints.lineage import Lineage
from trainer.checkpoints.retention import CheckpointConfig
from trainer.distributed.ranks import all_reduce_sum, on_rank_zero, rank, shutdown, world_size
from trainer.distributed.requests import POLL_SECONDS, Agreement, Requests
from trainer.elbo import Elbo
from trainer.errors import TrainingError
from trainer.images import ImageSpec
from trainer.models.base import Model
from trainer.training.metrics import Metrics

CPU = torch.device("cpu")


class Wish(Requests):
    """Wishes to stop while `asked`."""

    asked = False

    def stop(self):
        return self.asked


class Clock:
    """In the place of the module `time`: a clock that only moves when it is told to."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


def in_groups(me, folder):
    """A rank of a group of three and then, if it is one of the first two, of a group of two."""
    torch.set_num_threads(1)
    for ranks in (3, 2):
        if me < ranks:
            seen = in_a_group(me, ranks, f"{folder}/{ranks}")
            with open(f"{folder}/{ranks}/{me}.pickle", "wb") as file:
                pickle.dump(seen, file)


def in_a_group(me, ranks, folder):
    """Everything that one rank sees."""
    timeout = datetime.timedelta(minutes=10)
    dist.init_process_group("gloo", f"file://{folder}/store", timeout, world_size=ranks, rank=me)
    seen = {
        "identity": (rank(), world_size()),
        "sums": sums(me),
        "row": logged(me, ranks),
        "errors": errors(),
        "results": [on_rank_zero(lambda: ("from", rank(), Commit(5, 1))), on_rank_zero(lambda: None)],
        "stops": [stops(wishes[me]) for wishes in WISHES],
        "paces": [pace(seconds, steps) for seconds, steps in PACES],
        "checkpoints": checkpoints(f"{folder}/run"),
    }
    running = threads()
    shutdown()
    return seen | {"threads": (running, threads())}


def threads():
    """The names of this process's threads, whoever started them."""
    return [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]


def sums(me):
    mine = torch.tensor([1.0 + me, 10.0], dtype=torch.float64)
    total = all_reduce_sum(mine)
    return mine.tolist(), total.tolist()


def logged(me, ranks):
    """A row over ten images in uneven shares; and the same with a checkpoint in the middle, resumed by all ranks."""
    model = Model()
    model.spec = ImageSpec(1, 2, 2, 256)
    values = torch.arange(10.0).split([4, 6] if ranks == 2 else [2, 3, 5])[me]
    rows = []
    for checkpoint in (False, True):
        logged = Metrics(CPU)
        for half in values[:2], values[2:]:
            logged.add(Elbo(half, {"z1": 2 * half}), torch.ones(len(half)))
            logged.add_norm(torch.tensor(3.0))
            if checkpoint:
                state = logged.state_dict()
                logged = Metrics(CPU)
                logged.load_state_dict(state)
        rows.append(logged.row(model))
    return rows


def errors():
    def fail(error):
        raise error

    told = []
    for error in (UnavailableError("s3://x: away"), TrainingError("superseded"), OSError("disk full"), ValueError("")):
        try:
            on_rank_zero(lambda error=error: fail(error))
            told.append(None)
        except Exception as raised:
            told.append((type(raised).__name__, str(raised)))
    return told


# For each rank the step at which it begins to wish to stop.
WISHES = [(None, None, None), (0, None, None), (None, 7, None), (40, 13, 60), (3, 3, 3)]


def stops(wish):
    """The step after which a rank was told to stop, None if never; a step takes 1/50 s, a turn 12 or 13 of them."""
    clock = trainer.distributed.requests.time = Clock()
    wishes = Wish()
    agreement, told = Agreement(CPU, wishes), None
    for step in range(100):
        clock.now += 0.02
        wishes.asked = wish is not None and step >= wish
        if agreement.poll(0):
            told = step
            break
    dist.barrier()
    trainer.distributed.requests.time = time
    return told


PACES = [(1.0, 20), (0.025, 200), (0.001, 3000), (0.00001, 6000)]  # seconds that a step takes, how many steps


def pace(seconds, steps):
    """How many steps lie between the turns, one number for each turn."""
    clock = trainer.distributed.requests.time = Clock()
    agreement, turns = Agreement(CPU, Requests()), []
    for step in range(steps):
        clock.now += seconds
        before = agreement._message
        agreement.poll(0)
        if agreement._message is not before:
            turns.append(step)
    dist.barrier()
    trainer.distributed.requests.time = time
    return [later - earlier for earlier, later in pairwise(turns)]


def checkpoints(url):
    """Two ranks save, resume and are superseded together."""
    process = Checkpointer(url, CheckpointConfig(), lambda line: None)
    assert process.claim(lambda sections: None) is None
    state = {"model": {"w": torch.full((2,), 3.0)}, "progress": {"images": 100}}
    process.save(100, state, [{"images": 100}])
    process.save(200, state | {"progress": {"images": 200}}, [{"images": 200}])
    again = Checkpointer(url, CheckpointConfig(), lambda line: None)
    loaded = again.claim(lambda sections: None)
    weights = loaded.tensors("model")["w"]
    failure = None
    try:
        process.save(300, state, [])
    except TrainingError as error:
        failure = str(error)
    dist.barrier()
    attempts = {number: attempt.start for number, attempt in Lineage(Storage(url)).attempts().items()}
    return loaded.sections["progress"], weights.tolist(), again.attempt.number, failure, attempts


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    """A folder with what each rank of each group saw."""
    folder = tmp_path_factory.mktemp("ranks")
    for ranks in (2, 3):
        (folder / str(ranks)).mkdir()
    mp.spawn(in_groups, (str(folder),), 3)
    return folder


@pytest.fixture(params=[2, 3], ids=["two ranks", "three ranks"])
def seen(request, groups):
    """What each rank saw."""
    return [pickle.loads((groups / f"{request.param}/{me}.pickle").read_bytes()) for me in range(request.param)]


def all_agree(seen, key):
    values = [each[key] for each in seen]
    assert all(value == values[0] for value in values)
    return values[0]


def test_every_rank_knows_its_place(seen):
    assert [each["identity"] for each in seen] == [(me, len(seen)) for me in range(len(seen))]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are listed in /proc")
def test_no_thread_of_a_group_is_left_when_its_ranks_have_left(seen):
    """One that still held a tensor while the interpreter ends would abort the process."""
    for each in seen:
        running, left = each["threads"]
        assert [name for name in running if "gloo" in name]
        assert [name for name in left if "gloo" in name] == []


def test_sums_are_those_of_all_ranks_and_leave_their_own_alone(seen):
    n = len(seen)
    for me, each in enumerate(seen):
        assert each["sums"] == ([1.0 + me, 10.0], [n * (n + 1) / 2, 10.0 * n])


def test_a_row_is_a_mean_over_the_images_of_all_ranks_also_over_a_checkpoint(seen):
    straight, resumed = all_agree(seen, "row")
    assert straight == resumed
    assert straight["train/distortion"] == 4.5
    assert straight["train/nats"] == 13.5
    assert straight["train/gradient_norm"] == 3.0


def test_an_error_of_rank_zero_is_raised_on_every_rank(seen):
    own = [
        ("UnavailableError", "s3://x: away"),
        ("TrainingError", "superseded"),
        ("OSError", "disk full"),
        ("ValueError", ""),
    ]
    assert seen[0]["errors"] == own
    assert all(each["errors"] == own for each in seen)


def test_what_rank_zero_finds_is_given_to_all(seen):
    assert all_agree(seen, "results") == [("from", 0, Commit(5, 1)), None]


@pytest.mark.parametrize("number", range(len(WISHES)))
def test_all_ranks_stop_at_one_step_soon_after_the_first_of_them_wished_to(seen, number):
    told = all_agree([{"stop": each["stops"][number]} for each in seen], "stop")
    wishes = [wish for wish in WISHES[number][: len(seen)] if wish is not None]
    if wishes:
        assert min(wishes) < told <= min(wishes) + 2 * 13  # asked at the next turn, told at the one after
    else:
        assert told is None


@pytest.mark.parametrize(("number", "seconds"), [(number, seconds) for number, (seconds, _) in enumerate(PACES)])
def test_the_ranks_ask_one_another_about_four_times_a_second(seen, number, seconds):
    """The number of steps between the turns settles at a quarter of a second's worth and stays there."""
    turns = all_agree([{"pace": each["paces"][number]} for each in seen], "pace")
    expected = min(max(round(POLL_SECONDS / seconds), 1), 1000)
    assert len(turns) >= 4
    assert turns[3:] == [expected] * len(turns[3:])
    assert max(turns) == expected  # on the way there it never waits for longer


def test_ranks_save_resume_and_are_superseded_together(seen):
    progress, weights, number, failure, attempts = all_agree(seen, "checkpoints")
    assert progress == {"images": 200}
    assert weights == [3.0, 3.0]
    assert number == 2
    assert "attempt 2 has taken over this run, so attempt 1 stops here" in failure
    assert attempts == {1: None, 2: Commit(200, 1)}


# ---- without a process group


def test_a_single_process_is_rank_zero_of_one():
    assert (rank(), world_size()) == (0, 1)
    assert all_reduce_sum(torch.tensor([2.0])).tolist() == [2.0]
    assert on_rank_zero(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        on_rank_zero(lambda: 1 / 0)


def test_a_single_process_stops_at_once():
    wishes, told = Wish(), []
    agreement = Agreement(CPU, wishes)
    for wishes.asked in (False, False, True, False):
        told.append(agreement.poll(0))
    assert told == [False, False, True, True]
