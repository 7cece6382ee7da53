"""The doctor's findings: on this machine as it is, and on reports of machines that are not well."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.storage.storage import Storage
from jobs.config.loading import load_config
from jobs.doctor import CLOCK_SECONDS, Finding, diagnose, nodes_findings
from jobs.ray.node_report import NodeReport, inspect
from tests.testbed.jobs import fork_job

WELL = NodeReport("a", {"ray": "2.60.0", "torch": "2.13.0"}, 1, 1, 1 << 34, True, store="ok")


def finding(check: str, findings: list[Finding]) -> Finding:
    return next(row for row in findings if row.check == check)


def test_machines_that_are_alike_are_well() -> None:
    assert all(row.ok for row in nodes_findings([WELL, WELL._replace(host="b", clock_offset=1.0)], needs_gpu=True))


@pytest.mark.parametrize(
    ("check", "changed", "said"),
    [
        (
            "versions",
            {"versions": {"ray": "2.59.0", "torch": "2.13.0"}},
            "b: ray 2.59.0, not 2.60.0; install one image",
        ),
        ("clock", {"clock_offset": -2 * CLOCK_SECONDS}, "differs by 10.0 s; run NTP"),
        ("CUDA", {"gpus": 0}, "b: torch uses 0 of 1 GPUs"),
        ("/dev/shm", {"shared_memory": 64 << 20}, "b: 0.1 GiB free; increase it"),
        ("store", {"store": "s3://x: access denied; check the credentials"}, "b: s3://x: access denied"),
    ],
)
def test_a_machine_that_is_not_well_is_named_with_what_to_do(check: str, changed: dict, said: str) -> None:
    findings = nodes_findings([WELL, WELL._replace(host="b", **changed)])
    assert [row.check for row in findings if not row.ok] == [check]
    assert said in finding(check, findings).message


def test_a_run_that_asks_for_gpus_needs_some() -> None:
    blind = WELL._replace(gpus=0, gpus_listed=0)
    assert finding("GPUs", nodes_findings([blind])).ok
    assert not finding("GPUs", nodes_findings([blind], needs_gpu=True)).ok


def test_a_machine_reports_its_own_store_and_leaves_the_probe_for_who_asked(config_file: Callable[..., Path]) -> None:
    config = load_config(str(config_file()))
    report = inspect(config.run, config.data)
    assert report.store == "ok"
    assert [entry.path for entry in Storage(config.run).list()] == [report.probe]
    assert report.versions["ray"] == "2.60.0"


def test_a_store_that_cannot_be_read_is_told(config_file: Callable[..., Path], tmp_path: Path) -> None:
    config = load_config(str(config_file(data={"shards": str(tmp_path / "none")})))
    report = inspect(config.run, config.data)
    assert "no such folder" in report.store
    assert not finding("store", nodes_findings([report])).ok


@pytest.mark.parametrize(
    ("mode", "key", "ok", "said"),
    [
        ("off", None, True, "no key needed"),
        ("auto", None, True, "metrics stay in the run folder"),
        ("online", None, False, "no WANDB_API_KEY on"),
        ("online", "a-key", True, "every machine has a key"),
    ],
)
def test_the_key_of_wandb_is_missed_where_it_is_needed(
    config_file: Callable[..., Path], mode: str, key: str | None, ok: bool, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    row = finding("W&B", diagnose(load_config(str(config_file(tracking={"mode": mode})))))
    assert row.ok == ok
    assert said in row.message
    assert "a-key" not in row.message


def test_the_doctors_status_says_whether_all_is_well(config_file: Callable[..., Path]) -> None:
    path = str(config_file())
    assert fork_job("doctor", path).status == 0
    told = fork_job("doctor", path, "tracking.mode=online")
    assert told.status == 1
    assert [line for line in told.stdout.splitlines() if line.startswith("BAD")]
    assert not list(Path(load_config(path).run).glob("doctor-*"))
