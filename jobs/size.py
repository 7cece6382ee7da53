"""Predict the memory, traffic, time and price of a run, before it starts: python -m jobs.size CONFIG [key=value ...]

    python -m jobs.size CONFIG --gpu H100 --mfu 0.4 --price 2.5
    python -m jobs.size CONFIG --image 3x256x256 --classes 1000 --gpu H100 --ranks 8,16,64

A training step is traced with tensors that have shapes and no data: no GPU is needed. --image describes a set that
does not exist yet. --ranks prints a table for several numbers of ranks.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jobs.cli import config_parser, run
from jobs.errors import ConfigError


def main(arguments: Sequence[str]) -> None:
    from jobs.sizing.hardware import add_options, hardware_of

    parser = config_parser("size", __doc__)
    parser.add_argument("--image", metavar="CxHxW", help="shape of the images, of a set that does not exist yet")
    parser.add_argument("--classes", type=int, default=0, metavar="N", help="with --image: number of classes")
    parser.add_argument("--ranks", metavar="N,N,...", help="numbers of ranks, for a table")
    add_options(parser)
    options = parser.parse_intermixed_args(arguments)
    hardware, ranks = hardware_of(options), _numbers(options.ranks)

    from jobs.config.loading import load_config
    from jobs.config.resolved import resolve
    from jobs.sizing.prediction import predict
    from jobs.sizing.report import setting_report, size_report, table
    from jobs.sizing.setting import described, of_run

    config = load_config(options.config, options.overrides)
    resolved = None if options.image else resolve(config, gpu=config.ray.gpus_per_worker != 0)
    setting = of_run(resolved) if resolved else described(config, options.image, options.classes)
    if ranks:
        sys.stdout.write(table([predict(setting, number, hardware, what_fits=False) for number in ranks]))
    else:
        sys.stdout.write(size_report(resolved, hardware) if resolved else setting_report(setting, hardware, {}))


def _numbers(text: str | None) -> list[int]:
    numbers = [part.strip() for part in (text or "").split(",") if part.strip()]
    if not all(number.isdecimal() and int(number) > 0 for number in numbers):
        raise ConfigError(f"--ranks {text}: must be numbers of ranks, as in 8,16,64")
    return [int(number) for number in numbers]


if __name__ == "__main__":
    run(main)
