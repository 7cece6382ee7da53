"""Do all the harm of the matrix to real processes and print what came of it.

    python -m tests.chaos [--runs N] [--kills N] [--folder FOLDER] [--out TABLE.md]

Each of the N runs of a line is killed N times. Bitwise comparisons: threads are fixed, ranks at most two.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.chaos.matrix import MOMENTS, Bench, table


def main() -> int:
    """Status 1 if anything went wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=6)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="lowerbound-chaos-"))
    digits = folder / "digits"
    if not digits.exists():
        subprocess.run([sys.executable, "-m", "jobs.pack", "--source", "digits", "--out", str(digits)], check=True)
    bench, results = Bench(folder / "runs", digits, asked.seed), []
    harms = [
        lambda: bench.kills(1, MOMENTS[:1], asked.runs, asked.kills),
        lambda: bench.kills(1, MOMENTS[1:], asked.runs, asked.kills),
        lambda: bench.kills(2, MOMENTS[:1], asked.runs, asked.kills),
        lambda: bench.kills(2, MOMENTS[1:], asked.runs, asked.kills),
        lambda: bench.terminations(1, 2, 3),
        lambda: bench.terminations(2, 2, 3),
        *(lambda how=how: bench.damage(1, how) for how in ("flipped byte", "truncated file")),
        lambda: bench.full_disk(1),
        lambda: bench.full_disk(2),
    ]
    for harm in harms:
        results.append(harm())
        print(table(results[-1:]).splitlines()[-1], flush=True)
        if asked.out:
            asked.out.write_text(table(results))
    print(table(results))
    return int(any(result.wrong for result in results))


if __name__ == "__main__":
    sys.exit(main())
