"""Calls spread over a cluster ask for what it has."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.testbed.processes import REPOSITORY


@pytest.mark.ray
def test_each_call_has_a_gpu_where_the_cluster_has_any_and_it_wants_one():
    command = [sys.executable, "-m", "tests.testbed.gpus"]
    ran = subprocess.run(command, cwd=REPOSITORY, env=os.environ, capture_output=True, text=True, timeout=180)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    assert all(len(gpus) == 1 for gpus in found["True"])
    assert found["False"] == [[], [], [], []]
