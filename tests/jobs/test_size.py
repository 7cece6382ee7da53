"""What `jobs.submit --dry-run` says must be what a run then takes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cluster.storage.storage import Storage
from datasets.shards.index import Index
from jobs.config.loading import load_config
from jobs.config.resolved import resolve
from jobs.config.schema import RunConfig
from jobs.errors import ConfigError
from jobs.run.training import train_rank
from jobs.size import main
from jobs.sizing.prediction import largest_fitting, state_bytes
from jobs.sizing.report import size_report
from tests.jobs.conftest import BATCH
from tests.testbed.processes import REPOSITORY
from tests.testbed.ranks import together
from tests.trainer.models import ALL_MODELS
from trainer.checkpoints.lineage import Lineage
from trainer.distributed.device import make_accelerator
from trainer.distributed.ranks import shutdown
from trainer.distributed.sharding import Parallel, local
from trainer.images import ImageSpec
from trainer.models import ModelConfig
from trainer.models.example import example
from trainer.noise import Noise
from trainer.sizing.memory import Pass
from trainer.sizing.traffic import traffic
from trainer.tracking.flops import measure
from trainer.training.ema import Ema
from trainer.training.optimizer import adamw
from trainer.training.posthoc_ema import PosthocEma


@pytest.fixture
def config(config_file: Callable[..., Path]) -> RunConfig:
    return load_config(str(config_file()))


def megabytes(text: str, name: str) -> float:
    """A size in a report, in bytes."""
    found = re.search(rf"{name} *(?:about )?([\d.]+) (bytes|KiB|MiB|GiB)", text)
    assert found, text
    return float(found[1]) * 1024 ** ["bytes", "KiB", "MiB", "GiB"].index(found[2])


@pytest.mark.parametrize("posthoc", [0, 8 * BATCH])
def test_the_checkpoint_is_as_large_as_reported(config_file: Callable[..., Path], posthoc: int) -> None:
    config = load_config(str(config_file(optim={"posthoc": posthoc})))
    said = megabytes(size_report(resolve(config)), "checkpoint ")
    train_rank(config)
    lineage = Lineage(Storage(config.run))
    newest = next(iter(lineage.history()))
    written = sum(entry.size for entry in lineage.run.list(f"checkpoints/{newest.name}"))
    assert said <= written < said + 40_000  # names, shapes and the JSON files come on top
    assert said > 0.8 * (written - 40_000)


def test_images_steps_and_epochs_are_those_of_the_set(config: RunConfig) -> None:
    text = size_report(resolve(config))
    images = Index.of(config.data).images
    assert f"{images:,} per epoch; {20 * BATCH:,} in total, {20 * BATCH / images:.3g} epochs" in text
    assert f"20 of {BATCH} images; 1 rank, at most {BATCH} images per rank" in text


def test_the_parameters_are_counted(config: RunConfig) -> None:
    train_rank(config.model_copy(update={"trainer": config.trainer.model_copy(update={"images": BATCH})}))
    import trainer

    parameters = sum(value.numel() for value in trainer.load(config.run).parameters())
    assert f"{parameters:,} trained" in size_report(resolve(config))


def test_the_weights_gradients_moments_and_averages_add_up(config: RunConfig) -> None:
    config = config.model_copy(update={"trainer": config.trainer.model_copy(update={"micro_batch": BATCH // 2})})
    text = size_report(resolve(config))
    weights = megabytes(text, "weights")
    assert megabytes(text, "gradients") == megabytes(text, "averages") == weights
    assert megabytes(text, "moments") == pytest.approx(2 * weights, rel=0.01)
    parts = ("weights", "gradients", "moments", "averages", "activations")
    assert megabytes(text, "memory ") == pytest.approx(sum(megabytes(text, name) for name in parts), rel=0.02)


def test_post_hoc_averages_take_twice_the_memory_more(config_file: Callable[..., Path]) -> None:
    path = str(config_file())
    with_posthoc, without = (
        size_report(resolve(load_config(path, [f"optim.posthoc={every}"]))) for every in (BATCH, 0)
    )
    assert megabytes(with_posthoc, "averages") == pytest.approx(3 * megabytes(without, "averages"), rel=0.01)


def test_sharded_state_is_divided_by_the_ranks(config_file: Callable[..., Path]) -> None:
    path = str(config_file())
    whole, sharded = (
        size_report(
            resolve(load_config(path, ["ray.workers=4", "trainer.micro_batch=4", f"trainer.sharding={sharding}"]))
        )
        for sharding in ("ddp", "fsdp")
    )
    for part in ("weights", "gradients", "moments", "averages"):
        assert megabytes(sharded, part) == pytest.approx(megabytes(whole, part) / 4, rel=0.05)
    assert megabytes(sharded, "checkpoint ") == megabytes(whole, "checkpoint ")  # all ranks together


def test_the_shards_of_two_ranks_are_as_large_as_reported(config: RunConfig) -> None:
    together(2, _compare_with_report, config)


def _compare_with_report(config: RunConfig) -> None:
    """This rank's bytes after a step, against half of what the report says of the whole."""
    accelerator = make_accelerator("fp32")
    model = resolve(config).build_model()
    reported = state_bytes(model, posthoc=True)
    parallel = Parallel(model, accelerator, "fsdp")
    optimizer, averages = adamw(model, config.optim), [Ema(model, 500), *PosthocEma(model).averages]
    images = torch.zeros(4, *model.spec.shape, dtype=torch.uint8)
    parallel(images, None, Noise(0, "train", torch.arange(4), 4), torch.zeros(())).loss.mean().backward()
    optimizer.step()
    found = {
        "weights": list(model.parameters()),
        "gradients": [parameter.grad for parameter in model.parameters()],
        "optimizer": [moment for state in optimizer.state.values() for moment in state.values() if moment.ndim],
        "averages": [value for average in averages for value in average.average.values()],
    }
    for name, tensors in found.items():
        held = sum(local(tensor).numel() * local(tensor).element_size() for tensor in tensors)
        assert held == pytest.approx(getattr(reported, name) / 2, rel=0.02), name


def test_more_ranks_and_smaller_micro_batches_take_less_memory_each(config_file: Callable[..., Path]) -> None:
    path = str(config_file())
    one, four, micro = (
        megabytes(size_report(resolve(load_config(path, overrides))), "activations")
        for overrides in ([], ["ray.workers=4"], ["trainer.micro_batch=8"])
    )
    assert four == pytest.approx(one / 4, rel=0.02)
    assert micro == pytest.approx(one / 8, rel=0.02)


def test_the_estimate_is_what_autograd_keeps_and_the_flops_are_those_of_the_matrices() -> None:
    spec = ImageSpec(1, 8, 8, 17)
    network = {"kind": "mlp", "hidden": [64]}
    values = {"kind": "vae", "latent": 4, "encoder": network, "decoder": network}
    config = RunConfig.model_validate({"run": "r", "model": values, "data": {"shards": "s"}})
    model = config.model.build(spec)
    kept: dict[int, int] = {}
    own = {value.data_ptr() for value in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        noise = Noise(0, "train", torch.arange(32), 32)
        model(torch.zeros(32, 1, 8, 8, dtype=torch.uint8), None, noise, torch.zeros(())).loss.sum()

    measured = measure(model, torch.float32)
    assert 32 * measured.activations == pytest.approx(sum(kept.values()), rel=0.05)
    matrices = sum(value.numel() for value in model.parameters() if value.ndim == 2)
    first = 64 * 64  # the images need no gradient: one product of three is saved in the first layer
    assert measured.flops == pytest.approx(6 * matrices - 2 * first, rel=0.01)


def test_a_model_is_built_for_the_images_as_the_run_takes_them(config: RunConfig, config_file) -> None:
    assert resolve(config).build_model().spec.shape == (1, 8, 8)
    smaller = load_config(str(config_file()), ["data.transform.size=[4, 4]"])
    assert resolve(smaller).build_model().spec.shape == (1, 4, 4)


def test_a_model_that_does_not_fit_the_images_is_told_in_one_line(config_file: Callable[..., Path]) -> None:
    path = config_file(model={"likelihood": {"kind": "bernoulli"}})
    with pytest.raises(ConfigError, match=r"^model\."):
        resolve(load_config(str(path))).build_model()


def test_what_ranks_send_is_what_their_collectives_carry() -> None:
    together(4, _count_traffic)


def _count_traffic() -> None:
    """FSDP2 in two copies of two ranks: bytes of the collectives of a step, against the prediction."""
    accelerator = make_accelerator("fp32")
    config = TypeAdapter(ModelConfig).validate_python(ALL_MODELS["ladder-nvae"][1])
    model = config.build(ALL_MODELS["ladder-nvae"][0])
    expected = traffic(model, Pass(4, 2, 2, False), passes=2)
    parallel = Parallel(model, accelerator, "fsdp", 2)
    inputs, carried = example(model, 2), Carried()
    parallel(*inputs).loss.sum().backward()
    with carried:
        for exchange in (False, True):
            with parallel.exchanging(exchange):
                parallel(*inputs).loss.sum().backward()
    found = carried.bytes
    assert found["_allgather_base_"] / 2 == pytest.approx(expected.weights, rel=0.02)  # each sends half, to one
    assert found["_reduce_scatter_base_"] / 2 == pytest.approx(expected.gradients, rel=0.02)
    assert found["allreduce_"] == pytest.approx(expected.copies, rel=0.02)
    shutdown()


class Carried(TorchDispatchMode):
    """Counts the bytes that collectives gather or reduce, by operation."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function).removeprefix("c10d.").partition(".")[0]
        if str(function).startswith("c10d."):
            whole = args[1] if name == "_reduce_scatter_base_" else args[0]
            self.bytes[name] += sum(value.nbytes for value in tree_leaves(whole) if isinstance(value, torch.Tensor))
        return function(*args, **kwargs or {})


CONFIG = str(REPOSITORY / "jobs" / "configs" / "mnist-diffusion.yaml")


def test_a_set_that_does_not_exist_is_described_and_money_follows_from_time(capsys) -> None:
    main([CONFIG, "--image", "1x28x28", "--gpu", "h100", "--price", "2", "--mfu", "0.25", "ray.workers=2"])
    text = capsys.readouterr().out
    flops = float(re.search(r"([\d.e+]+) FLOP in total", text)[1])
    hours = flops / 989e12 / 0.25 / 3600
    found = re.search(r"([\d,]+) GPU-hours, ([\d,]+) in all", text)
    assert float(found[1].replace(",", "")) == pytest.approx(hours, rel=0.02, abs=0.5)
    assert float(found[2].replace(",", "")) == pytest.approx(2 * hours, rel=0.02, abs=0.5)
    assert "images at once, a rank's whole share, in 74.5 GiB of a H100, with 10% left free" in text


def test_the_largest_micro_batch_is_found_where_the_peak_bends() -> None:
    def peak(images: int) -> int:
        return max(1000 + images, 20 * images)  # of two moments of a step

    assert largest_fitting(peak, 64, 2000) == 64
    assert 90 <= largest_fitting(peak, 640, 2000) <= 100
    assert largest_fitting(peak, 640, 900) == 0


def test_a_table_has_a_row_for_each_number_of_ranks(capsys) -> None:
    main([CONFIG, "--image", "1x28x28", "--ranks", "2,4", "trainer.sharding=fsdp", "trainer.micro_batch=8"])
    header, _, two, four = capsys.readouterr().out.splitlines()
    cells = [dict(zip(header.split("|"), row.split("|"), strict=True)) for row in (two, four)]
    assert [cell[" ranks "].strip() for cell in cells] == ["2", "4"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gpu", "TPU"], "--gpu TPU: unknown; one of B200, "),
        (["--mfu", "40"], "--mfu 40: a share, above 0 and at most 1"),
        (["--price", "2"], "--price: needs --gpu"),
        (["--image", "28x28"], "--image 28x28: must be CHANNELSxHEIGHTxWIDTH"),
        (["--ranks", "8,some"], "--ranks 8,some: must be numbers of ranks"),
        (["--network", "fast"], "--network: 'fast' is not a number of bytes"),
    ],
)
def test_a_wrong_option_is_one_line(options: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}") as error:
        main([CONFIG, *options])
    assert "\n" not in str(error.value)
