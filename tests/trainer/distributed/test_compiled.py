"""A model that is compiled inside DDP still exchanges gradients while the backward pass runs."""

from __future__ import annotations

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch._dynamo.backends.debugging import aot_eager
from torch.nn.parallel import DistributedDataParallel

from tests.testbed.ranks import together
from tests.trainer.models import GREY, batch, training_noise
from trainer.distributed.sharding import Parallel
from trainer.models.vae import VaeConfig


def two_steps_in_small_buckets() -> None:
    torch.set_num_threads(1)
    graphs, events = [], []

    def backend(graph, inputs):
        graphs.append(graph)
        return aot_eager(graph, inputs)

    network = {"kind": "mlp", "hidden": [512, 512, 512]}
    config = VaeConfig.model_validate({"kind": "vae", "encoder": network, "decoder": network})
    model = config.build(GREY)
    model.compile(backend=backend)
    buckets = DistributedDataParallelKwargs(bucket_cap_mb=1, gradient_as_bucket_view=True)  # a layer each
    parallel = Parallel(model, Accelerator(cpu=True, kwargs_handlers=[buckets]), "ddp")
    ddp = parallel.forward
    assert isinstance(ddp, DistributedDataParallel)

    def exchange(_, bucket):
        events.append("bucket")
        dist.all_reduce(bucket.buffer())
        done = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    ddp.register_comm_hook(None, exchange)
    first = next(model.encoder.parameters())  # whose gradient the backward pass computes last
    first.register_post_accumulate_grad_hook(lambda _: events.append("last gradient"))
    for step in range(2):
        events.clear()
        elbo = parallel(batch(model.spec), None, training_noise(first=8 * step), torch.tensor(0.0))
        elbo.loss.mean().backward()
    assert len(graphs) > 2  # the backward pass of each is one call
    assert events.index("last gradient") >= 2


def test_gradients_are_exchanged_bucket_by_bucket():
    together(2, two_steps_in_small_buckets)
