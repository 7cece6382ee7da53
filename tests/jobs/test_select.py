"""jobs.select as a command."""

from __future__ import annotations

import pytest

from jobs import select
from tests.datasets.selection.scored_sets import write_scored

pytest.importorskip("duckdb")


def test_a_selection_is_made_and_counted(tmp_path, capsys):
    write_scored(tmp_path / "set")
    arguments = [f"{tmp_path}/set", "--where", "caption_length >= 5", "--deduplicate", "crc", "--sample", "20"]
    assert (
        select.main([*arguments, "--out", f"{tmp_path}/out", "--split", "validation:0.3", "--split", "train:0.7"]) == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "35 of 40 images match, 30 without 5 duplicates, 20 sampled"
    counts = [int(line.split()[1]) for line in lines[1:]]
    assert sum(counts) == 20
    assert lines[1].endswith(f"shards: data.shards={tmp_path}/set data.index={tmp_path}/out/validation")


def test_a_split_without_a_share_is_a_one_line_error(tmp_path):
    write_scored(tmp_path)
    with pytest.raises(select.ConfigError, match=r"--split validation: not NAME:SHARE, such as validation:0.05"):
        select.main([str(tmp_path), "--out", f"{tmp_path}/out", "--split", "validation"])
