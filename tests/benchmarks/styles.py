"""How often samples have the style that their prompt asks for, in the eyes of a classifier trained on real icons.

    python -m tests.benchmarks.styles RUN data/icons

The classifier, a small convolutional network, knows four styles: outline, fill, thin and bold. Prompts are captions of
held-out icons (`validation`) with one of them. Printed per style: the share of real held-out icons, and of samples at
each guidance, that it gives the style of their caption; chance is 25%.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import webdataset
from torch import Tensor, nn

import trainer

STYLES = ("outline", "fill", "thin", "bold")
EPOCHS, BATCH = 12, 64


class Icons(NamedTuple):
    """Icons of the four styles."""

    images: Tensor  # uint8 [n, 1, H, W]
    styles: Tensor  # int64 [n], numbers in STYLES
    captions: list[str]

    @staticmethod
    def read(folder: Path) -> Icons:
        shards = sorted(map(str, folder.glob("*.tar")))
        samples = webdataset.WebDataset(shards, shardshuffle=False).decode("l8").to_tuple("png", "txt", "json")
        found = [(image, text, STYLES.index(f["style"])) for image, text, f in samples if f["style"] in STYLES]
        images, captions, styles = zip(*found, strict=True)
        return Icons(torch.from_numpy(np.stack(images))[:, None], torch.tensor(styles), list(captions))


class Classifier(nn.Sequential):
    """Logits [n, 4] of images [n, 1, H, W] in {0, 1}."""

    def __init__(self) -> None:
        channels = (1, 32, 64, 64)
        layers = itertools.chain.from_iterable(
            (nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU(), nn.MaxPool2d(2))
            for i, o in itertools.pairwise(channels)
        )
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], len(STYLES)))


def train(icons: Icons, seed: int) -> Classifier:
    """A classifier of balanced classes."""
    torch.manual_seed(seed)
    model = Classifier()
    counts = torch.bincount(icons.styles, minlength=len(STYLES))
    balance = (1 / counts.clamp(min=1))[icons.styles]
    steps = EPOCHS * len(icons.images) // BATCH
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        chosen = torch.multinomial(balance, BATCH, replacement=True)
        loss = F.cross_entropy(model(icons.images[chosen].float()), icons.styles[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def agrees(model: Classifier, images: Tensor, styles: Tensor) -> Tensor:
    """Whether the classifier gives each image its style, bool [n]."""
    logits: Tensor = model(images.float())
    return logits.argmax(1) == styles


def table(columns: dict[str, Tensor], styles: Tensor) -> str:
    """Shares by style and of the styles together (each with the same weight), with standard errors."""
    lines = [f"{'style':<10}{'prompts':>8}" + "".join(f"{name:>16}" for name in columns)]
    for style, name in enumerate(STYLES):
        mine = [hits[styles == style].float() for hits in columns.values()]
        cells = [f"{100 * m.mean():8.0f}% ± {100 * m.std() / len(m) ** 0.5:3.0f}" for m in mine]
        lines.append(f"{name:<10}{len(mine[0]):>8}" + "".join(f"{cell:>16}" for cell in cells))
    means = [
        torch.stack([hits[styles == style].float().mean() for style in range(len(STYLES))]).mean()
        for hits in columns.values()
    ]
    return "\n".join([*lines, f"{'mean':<18}" + "".join(f"{f'{100 * mean:.0f}%':>16}" for mean in means)])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="URL of a run, or of an export")
    parser.add_argument("icons", type=Path, help="folder of packed icons, with train and validation")
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 2.0, 4.0])
    parser.add_argument("--per-style", type=int, default=100, help="prompts of each style, repeated if there are fewer")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    classifier = train(Icons.read(options.icons / "train"), options.seed)
    held_out = Icons.read(options.icons / "validation")
    model = trainer.load(options.run)
    own = [(held_out.styles == style).nonzero()[:, 0] for style in range(len(STYLES))]
    chosen = torch.cat([numbers.repeat(options.per_style)[: options.per_style] for numbers in own])
    prompts, styles = [held_out.captions[i] for i in chosen], held_out.styles[chosen]
    columns = {"real": agrees(classifier, held_out.images[chosen], styles)}
    for guidance in options.guidance:
        drawn = trainer.sample(model, len(prompts), prompt=prompts, seed=options.seed, guidance=guidance)
        columns[f"guidance {guidance:g}"] = agrees(classifier, drawn.cpu(), styles)
    print(table(columns, styles))


if __name__ == "__main__":
    main()
