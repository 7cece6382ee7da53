"""Write a report about one run, or about several laid over each other: a single HTML file that loads nothing.

    python -m jobs.report RUN_URL [RUN_URL ...] --out report.html

It has the curves, samples, data ledger, attempts, environment, evaluations and configuration, as the run folder records
them; of a run in progress up to its newest checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from cluster.storage.storage import Storage, absolute
from jobs.cli import command_parser, run
from jobs.errors import ConfigError
from jobs.reporting.history import RunHistory, read_history
from jobs.reporting.page import page

PICTURES = 8.0  # MB


def main(arguments: Sequence[str]) -> None:
    parser = command_parser("report", __doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="URL of a run folder")
    parser.add_argument("--out", default="report.html", help="file to write, path or URL (default: report.html)")
    parser.add_argument(
        "--pictures", type=float, default=PICTURES, metavar="MB", help=f"pictures in the file (default: {PICTURES:g})"
    )
    options = parser.parse_args(arguments)
    if not options.pictures >= 0:
        raise ConfigError(f"--pictures {options.pictures}: at least 0")
    out = absolute(options.out)
    folder, _, name = out.rpartition("/")
    if not Path(name).suffix or Path(out).is_dir():
        raise ConfigError(f"--out {options.out}: name a file, such as report.html")
    histories = with_different_names([read_history(url) for url in dict.fromkeys(map(absolute, options.runs))])
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    text = page(histories, made, round(options.pictures * 1e6)).encode()
    Storage(folder or "/").write(name, text)
    for problem in dict.fromkeys(problem for history in histories for problem in history.problems):
        print(f"warning: {problem}")
    print(f"report, {len(text) / 1e6:.1f} MB: {out}")


def with_different_names(histories: list[RunHistory]) -> list[RunHistory]:
    """Runs of one name are called by as much of their URLs as tells them apart."""
    parts = [history.url.strip("/").split("/") for history in histories]
    depth = 1
    while len({tuple(part[-depth:]) for part in parts}) < len(parts):
        depth += 1
    return [history._replace(name="/".join(part[-depth:])) for history, part in zip(histories, parts, strict=True)]


if __name__ == "__main__":
    run(main)
