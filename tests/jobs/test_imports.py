"""Commands start quickly: what takes seconds to import is imported when it is used."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.testbed.processes import REPOSITORY

WITHOUT_TORCH = ("jobs.pack", "jobs.index", "jobs.verify", "jobs.submit")
WITH_TORCH = (
    "jobs.config.loading",
    "jobs.train_local",
    "jobs.train",
    "jobs.evaluate",
    "jobs.sample",
    "jobs.doctor",
)
HEAVY = (
    "torch._dynamo", "sympy", "torch.distributed.tensor", "torch.distributed.fsdp", "accelerate", "ray", "wandb",
    "sklearn", "obstore", "webdataset", "boto3",
)  # fmt: skip

IMPORT = """
import importlib, json, sys

found = {}
for name in sys.argv[1:]:
    importlib.import_module(name)
    found[name] = sorted(sys.modules)
print(json.dumps(found))
"""


def test_commands_do_not_import_what_they_may_not_need() -> None:
    command = [sys.executable, "-c", IMPORT, *WITHOUT_TORCH, *WITH_TORCH]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=180, check=True)
    found = {name: set(modules) for name, modules in json.loads(done.stdout).items()}
    assert not {name: found[name] & {*HEAVY, "torch"} for name in WITHOUT_TORCH if found[name] & {*HEAVY, "torch"}}
    assert not {name: found[name] & {*HEAVY} for name in WITH_TORCH if found[name] & {*HEAVY}}
    assert "torch" in found["jobs.config.loading"]  # so that the lists above are not of nothing
