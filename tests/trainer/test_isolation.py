"""The trainer imports without Ray, WebDataset, W&B, a store's client and our datasets/.

That no function of it imports Ray, WebDataset, datasets/ or jobs/ either is a contract in pyproject.toml (make lint).
"""

import subprocess
import sys

from tests.testbed.processes import REPOSITORY

BLOCKED = ["ray", "webdataset", "wandb", "obstore", "pyarrow", "datasets", "jobs"]

WALK = f"""
import importlib, pkgutil, sys

blocked = {BLOCKED!r}
for name in blocked:
    sys.modules[name] = None  # as if it were not installed
for name in blocked:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        continue
    sys.exit(f"{{name}} is not blocked")

import trainer
for module in pkgutil.walk_packages(trainer.__path__, "trainer."):
    importlib.import_module(module.name)
    print(module.name)
"""


def modules():
    paths = (path.relative_to(REPOSITORY) for path in (REPOSITORY / "trainer").rglob("*.py"))
    names = {".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in paths}
    return sorted(names - {"trainer"})


def test_every_module_of_the_trainer_is_imported_without_the_others():
    command = [sys.executable, "-c", WALK]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == modules()
