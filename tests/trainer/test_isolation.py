"""The trainer stands by itself: none of its modules needs Ray, WebDataset, W&B, a store's client or our datasets/."""

import ast
import subprocess
import sys

import pytest

from tests.testbed.processes import REPOSITORY

BLOCKED = ["ray", "webdataset", "wandb", "obstore", "pyarrow", "datasets", "jobs"]
NEVER = {"ray", "webdataset", "datasets", "jobs"}  # not within a function either

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


@pytest.mark.parametrize("name", modules())
def test_no_module_of_the_trainer_names_the_others(name):
    path = REPOSITORY / "trainer" / "/".join(name.split(".")[1:])
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    imported = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported.add(node.module.partition(".")[0])
    assert imported & NEVER == set()
