"""The machines that a prediction is for, from command-line options and data sheets."""

from __future__ import annotations

import argparse
from typing import NamedTuple

from cluster.storage.sizes import parse_bytes
from jobs.cli import check_at_least_one
from jobs.errors import ConfigError

# Memory of a GPU from the makers' data sheets, 10^9 bytes. Of products with several sizes the larger one.
MEMORY = {
    "B200": 180,
    "GB200": 186,
    "H200": 141,
    "H200 NVL": 141,
    "GH200": 144,
    "H100": 80,
    "H100 NVL": 94,
    "H100 PCIE": 80,
    "A100": 80,
    "A100 PCIE": 80,
    "A40": 48,
    "A30": 24,
    "A10": 24,
    "A10G": 24,
    "L40S": 48,
    "L40": 48,
    "L4": 24,
    "RTX 4090": 24,
    "RTX 3090": 24,
}


class Hardware(NamedTuple):
    """What a rank runs on."""

    gpu: str | None = None
    """Product in the tables of peaks and memory; None: nothing is known, and no times are predicted."""
    machine: int = 8
    """Ranks on each machine."""
    mfu: float = 0.4
    """Share of the peak FLOP/s that the model is assumed to reach."""
    inside: int = 300 * 10**9
    """Bytes a second that a rank sends to ranks of its machine."""
    network: int = 50 * 10**9
    """Bytes a second that a rank sends to ranks of other machines."""
    store: int = 10**9
    """Bytes a second that all ranks together write to the store of the run."""
    price: float | None = None
    """Of a GPU for an hour."""

    @property
    def peak(self) -> float | None:
        """FLOP/s of dense bfloat16 matrix products."""
        return None if self.gpu is None else _peaks()[self.gpu]

    @property
    def memory(self) -> int | None:
        """Bytes."""
        return None if self.gpu is None else MEMORY[self.gpu] * 10**9


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `hardware_of` reads."""
    group = parser.add_argument_group("hardware of the prediction")
    group.add_argument("--gpu", metavar="NAME", help="H100, A100, L40S ...: predict times and what fits its memory")
    group.add_argument("--machine", type=int, default=8, metavar="N", help="ranks on each machine (8)")
    group.add_argument("--mfu", type=float, default=0.4, metavar="SHARE", help="share of the peak FLOP/s reached (0.4)")
    group.add_argument("--inside", default="300GB", metavar="BYTES", help="bytes a second between ranks of a machine")
    group.add_argument("--network", default="50GB", metavar="BYTES", help="bytes a second a rank to other machines")
    group.add_argument("--store", default="1GB", metavar="BYTES", help="bytes a second that checkpoints take (1GB)")
    group.add_argument("--price", type=float, metavar="N", help="price of a GPU for an hour, in any currency")


def hardware_of(options: argparse.Namespace) -> Hardware:
    """The options' hardware. Raises ConfigError in one line."""
    gpu = options.gpu and " ".join(options.gpu.upper().replace("-", " ").split())
    if gpu and gpu not in MEMORY:
        raise ConfigError(f"--gpu {options.gpu}: unknown; one of {', '.join(MEMORY)}")
    if not 0 < options.mfu <= 1:
        raise ConfigError(f"--mfu {options.mfu:g}: a share, above 0 and at most 1")
    check_at_least_one(options, "machine")
    if options.price is not None and not gpu:
        raise ConfigError("--price: needs --gpu, since the price follows from the time")
    rates = {}
    for name in ("inside", "network", "store"):
        try:
            rate = parse_bytes(getattr(options, name))
        except ValueError as error:
            raise ConfigError(f"--{name}: {error}") from error
        if not isinstance(rate, int) or rate < 1:
            raise ConfigError(f"--{name} {getattr(options, name)}: at least 1 byte a second")
        rates[name] = rate
    return Hardware(gpu or None, options.machine, options.mfu, price=options.price, **rates)


def _peaks() -> dict[str, float]:
    from trainer.tracking.flops import PEAKS  # with PyTorch, which listing jobs does not need

    return PEAKS
