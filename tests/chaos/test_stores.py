"""A short selection of the matrix of stores: one that fails now and then, and one that refuses from some moment on."""

from __future__ import annotations

import pytest

from datasets.packing.pack import pack
from datasets.packing.sources.digits import Digits
from tests.chaos.matrix import Bench
from tests.chaos.stores import StoreBench, troubles
from tests.jobs.conftest import digits  # noqa: F401  (a fixture)


@pytest.mark.parametrize("kind", [pytest.param("resets", marks=pytest.mark.slow), "credentials"])
def test_a_run_gets_over_a_store_that_fails(tmp_path, digits, s3_environment, kind):  # noqa: F811
    pack(Digits(), f"{s3_environment.bucket('chaos')}/digits")
    (trouble,) = (each for each in troubles() if each.name.startswith(kind))
    result = StoreBench(Bench(tmp_path, digits), s3_environment).trouble(1, trouble)
    assert result.injected > 0
    assert result.wrong == []
