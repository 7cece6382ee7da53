"""Our `datasets` and Hugging Face's package of the same name live on one machine: ours is first on the path."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.testbed.processes import REPOSITORY

OURS = REPOSITORY / "datasets" / "__init__.py"

BESIDE_IT = """
import importlib.metadata, json
import jobs.train_local, jobs.pack
import datasets, datasets.order.order, datasets.loading.build
import torch
from accelerate.utils import is_datasets_available
from trainer.distributed.device import make_accelerator

accelerator = make_accelerator("fp32")
model = torch.nn.Linear(3, 2)
before = model.weight.detach().clone()
prepared = accelerator.prepare(model)
optimizer = torch.optim.AdamW(model.parameters())
for last in (False, True):
    loss = prepared(torch.ones(4, 3, device=accelerator.device)).square().mean()
    if last:
        accelerator.backward(loss)
    else:
        with accelerator.no_sync(prepared):
            accelerator.backward(loss)
optimizer.step()
print(json.dumps({
    "file": datasets.__file__,
    "version": importlib.metadata.version("datasets"),
    "accelerate sees it": is_datasets_available(),
    "trained": not torch.equal(before, model.weight.detach().cpu()),
}))
"""


@pytest.fixture(scope="module")
def neighbour(tmp_path_factory):
    """A folder like site-packages with Hugging Face's datasets, as far as others look at it: metadata and a module."""
    site = tmp_path_factory.mktemp("site-packages")
    (site / "datasets").mkdir()
    (site / "datasets" / "__init__.py").write_text('__version__ = "4.4.1"\nraise RuntimeError("the wrong datasets")\n')
    info = site / "datasets-4.4.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: datasets\nVersion: 4.4.1\n")
    (info / "RECORD").write_text("datasets/__init__.py,,\n")
    return site


def python(code, *path):
    """Run `code` from the repository's root with these folders on the path."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=180)


def test_ours_is_the_one_that_is_imported():
    import datasets

    assert Path(datasets.__file__) == OURS
    assert Path(importlib.util.find_spec("datasets").origin) == OURS


def test_with_the_other_installed_jobs_are_imported_and_accelerate_prepares_and_trains(neighbour):
    done = python(BESIDE_IT, REPOSITORY, neighbour)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "file": str(OURS),
        "version": "4.4.1",  # so the other was there to be mistaken for it
        "accelerate sees it": True,
        "trained": True,
    }


def test_the_other_would_be_seen_if_it_came_first(neighbour):
    assert "the wrong datasets" in python("import datasets", neighbour, REPOSITORY).stderr
