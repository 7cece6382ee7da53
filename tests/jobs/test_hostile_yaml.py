"""Configurations that would take all memory, or never end, are one line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster.storage.storage import Storage
from jobs.config.loading import config_of, load_config
from jobs.errors import ConfigError

BOMBS = {
    "aliases": "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)),
    "merges": "a0: &a0 {x: 1}\n"
    + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 12)),
    "deep": "a: " + "[" * 20_000,
    "deep mapping": "{a: " * 500 + "1" + "}" * 500,
    "itself": "a: &a [*a]\n",
    "long number": "seed: " + "9" * 100_000,
    "huge": "a: " + "x" * (2 << 20),
    "not UTF-8": "a: \udcff",
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_is_one_line(tmp_path, kind):
    data = BOMBS[kind].encode(errors="surrogateescape")
    (tmp_path / "c.yaml").write_bytes(data)
    (tmp_path / "config.yaml").write_bytes(data)
    (tmp_path / "d.yaml").write_text("base: c.yaml\n")
    for read in (
        lambda: load_config(str(tmp_path / "c.yaml")),
        lambda: load_config(str(tmp_path / "d.yaml")),
        lambda: config_of(Storage(str(tmp_path))),
    ):
        with pytest.raises((ConfigError, OSError), match=r"c(onfig)?\.yaml: (not YAML|has 2,)") as caught:
            read()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("base", ["/dev/zero", "pipe"])
def test_a_base_is_a_file(tmp_path, base):
    os.mkfifo(tmp_path / "pipe")
    path = Path(tmp_path / "c.yaml")
    path.write_text(f"base: {base}\n")
    with pytest.raises(ConfigError, match="a pipe or device, not a file"):
        load_config(str(path))
