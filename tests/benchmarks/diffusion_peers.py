"""The training loops of public packages for diffusion.py:

    python -m tests.benchmarks.diffusion_peers PEER CHANNELS BATCH

Runs under the python of an environment where they are installed, without anything of ours.
"""

from __future__ import annotations

import importlib.util
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from tests.benchmarks.turns import Served

SIDE, MULTIPLIERS = 32, (1, 2, 2)


def without_operators_of_torchvision() -> None:
    """Its wheels hold operators for CUDA builds of torch only, and beside another it fails to import for want of them.

    None of them is used here, so it is enough that their names exist.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    text = Path(spec.origin).with_name("_meta_registrations.py").read_text()
    for name in re.findall(r'register_fake\("torchvision::(\w+)"\)', text):
        torch.library.define(f"torchvision::{name}", "() -> ()")


def images(count: int = 512) -> torch.Tensor:
    """Float images [count, 3, 32, 32] in [0, 1], in memory: their loaders are not what is measured."""
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def denoising_diffusion_pytorch(channels: int, batch: int) -> tuple[torch.nn.Module, Callable[[int], object]]:
    """`Trainer.train` of the package, with its images in memory and no other processes to load them."""
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet
    from denoising_diffusion_pytorch import denoising_diffusion_pytorch as package

    package.Dataset = lambda *arguments, **settings: images()
    package.cpu_count = lambda: 0
    network = Unet(dim=channels, dim_mults=MULTIPLIERS, flash_attn=True)
    diffusion = GaussianDiffusion(network, image_size=SIDE, timesteps=1000, objective="pred_noise")
    trainer = package.Trainer(
        diffusion,
        "",
        train_batch_size=batch,
        save_and_sample_every=1 << 40,
        results_folder=tempfile.mkdtemp(),
        calculate_fid=False,
    )

    def steps(count: int) -> None:
        trainer.train_num_steps = trainer.step + count
        trainer.train()

    return network, steps


def diffusers(channels: int, batch: int) -> tuple[torch.nn.Module, Callable[[int], object]]:
    """The loop of the package's examples/unconditional_image_generation/train_unconditional.py, with --use_ema."""
    from accelerate import Accelerator
    from diffusers import DDPMScheduler, UNet2DModel
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel

    widths = [channels * multiplier for multiplier in MULTIPLIERS]
    network = UNet2DModel(
        sample_size=SIDE,
        layers_per_block=2,
        block_out_channels=widths,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=widths[1] // 4,
        resnet_time_scale_shift="scale_shift",
    )
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    ema = EMAModel(network.parameters(), decay=0.9999, use_ema_warmup=True, model_cls=UNet2DModel)
    schedule = DDPMScheduler(num_train_timesteps=1000)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6)
    rate = get_scheduler("cosine", optimizer=optimizer, num_warmup_steps=500, num_training_steps=1_000_000)
    model, optimizer, rate = accelerator.prepare(network, optimizer, rate)
    ema.to(accelerator.device)
    data = images()

    def steps(count: int) -> None:
        for _ in range(count):
            clean = 2 * data[torch.randint(len(data), (batch,))].to(accelerator.device) - 1
            noise = torch.randn_like(clean)
            times = torch.randint(0, 1000, (batch,), device=clean.device).long()
            noisy = schedule.add_noise(clean, noise, times)
            with accelerator.accumulate(model):
                loss = F.mse_loss(model(noisy, times).sample.float(), noise.float())
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                rate.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                ema.step(model.parameters())
            loss.detach().item()  # it is logged every step

    return network, steps


PEERS: dict[str, Callable[[int, int], tuple[torch.nn.Module, Callable[[int], object]]]] = {
    "diffusers": diffusers,
    "denoising-diffusion-pytorch": denoising_diffusion_pytorch,
}


def our_model(peer: str, channels: int) -> dict[str, Any]:
    """The `model` section of a run of ours with the network and the loss of a peer."""
    network: dict[str, Any] = {"kind": "unet", "channels": channels, "multipliers": list(MULTIPLIERS), "dropout": 0.0}
    network |= {"blocks": 2, "heads": 4, "attention": {"diffusers": [16], "denoising-diffusion-pytorch": [8]}[peer]}
    denoiser = {"network": network, "prediction": {"kind": "eps"}, "embedding": 4 * channels}
    return {"kind": "diffusion", "denoiser": denoiser, "weighting": {"kind": "simple"}}


if __name__ == "__main__":
    served = Served()
    torch.set_num_threads(1)
    if torch.version.cuda is None:
        without_operators_of_torchvision()
    network, steps = PEERS[sys.argv[1]](int(sys.argv[2]), int(sys.argv[3]))
    served.serve(steps, parameters=sum(parameter.numel() for parameter in network.parameters()))
