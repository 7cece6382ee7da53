"""`python -m jobs.report`: one HTML file with everything that run folders record, which loads nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import random
import re
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.storage.storage import Storage
from jobs import evaluate, report
from jobs.config.loading import load_config
from jobs.errors import ConfigError
from jobs.reporting.history import read_history
from jobs.reporting.numerals import duration, plain, tick
from jobs.reporting.thinning import thinned
from jobs.run.training import train_rank
from tests.testbed.jobs import call_job
from tests.testbed.s3 import S3Server
from tests.trainer.checkpoints.commits import write_commit
from trainer.checkpoints.commit import Commit
from trainer.checkpoints.journal import Row, write_rows
from trainer.checkpoints.lineage import Lineage

SECTIONS = [
    *("Final figures", "Curves", "Samples", "Evaluations", "Data ledger", "Attempts", "Environment", "Configuration"),
]
VOID = ("img", "meta", "line", "path", "rect", "circle")
EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


class Page(HTMLParser):
    """A parsed page: fails on tags that do not match; keeps its elements, text and the data of its charts."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}  # by the innermost element
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        """What a person reads."""
        return "\n".join(part for tag, parts in self.texts.items() if tag not in ("script", "style") for part in parts)

    @property
    def charts(self) -> list[dict[str, Any]]:
        """The figures below the pointer, of each plot."""
        return [json.loads(part) for part in self.texts["script"][:-1]]


def page_of(*runs: Path | str, out: Path, arguments: tuple[str, ...] = ()) -> Page:
    report.main([*map(str, runs), "--out", str(out), *arguments])
    return Page(out.read_text())


def assert_loads_nothing(page: Page) -> None:
    for _, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "action", "data", "xlink:href", "srcset"):
                assert (value or "").startswith(("data:image/png;base64,", "#"))
    style = "".join(page.texts["style"])
    assert "url(" not in style
    assert "@import" not in style
    script = page.texts["script"][-1]
    policy = page.all("meta")[1]["content"] or ""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert not re.search(r"fetch\(|XMLHttpRequest|import\(|WebSocket|innerHTML", script)


def make_run(
    folder: Path, rows: list[Row], config: Row | None = None, start: Commit | None = None, **facts: Any
) -> None:
    """A run folder with one attempt and one commit more, with these rows since the commit before."""
    run = Storage(str(folder))
    lineage = Lineage(run)
    attempt = lineage.claim(start, facts)
    run.write("config.yaml", yaml.safe_dump({"run": str(folder)} | (config or {})).encode())
    if rows:
        commit = Commit(rows[-1]["images"], attempt.number)
        write_rows(run, commit, rows)
        write_commit(lineage, commit, {"progress.json": b"{}"})


def rows_of(count: int, **more: Any) -> list[Row]:
    return [{"images": 10 * i, "train/bpd": 2 + 1 / i, "train/nats": 9.0} | more for i in range(1, count + 1)]


@pytest.fixture
def run(config_file: Callable[..., Path]) -> Path:
    """The folder of a finished run with an evaluation."""
    config = load_config(str(config_file()))
    train_rank(config)
    evaluate.main([config.run, "--samples", "3", "--bound", "iw"])
    return Path(config.run)


def test_a_report_has_everything_that_the_run_folder_records(run: Path, tmp_path: Path) -> None:
    page = page_of(run, out=tmp_path / "report.html")
    assert_loads_nothing(page)
    assert page.texts["h2"] == SECTIONS
    history = read_history(str(run))
    last = [row for row in history.rows if "validation/bpd" in row][-1]
    assert any(f"{last['validation/bpd']:.4f} ± " in text for text in page.texts["b"])
    titles = page.texts["b"]
    for title in ("Negative bound", "Rates by level, training", "Distortion", "Gradient norm", "Learning rate"):
        assert title in titles
    for title in ("Throughput", "Waiting for data", "Held up by checkpoints", "Duration of an evaluation"):
        assert title in titles
    bound = page.charts[0]["curves"]
    assert [curve["name"] for curve in bound] == ["training, raw weights", "validation, averaged weights"]
    assert bound[1]["points"] == [
        [row["images"], float(f"{row['validation/bpd']:.6g}")] for row in history.rows if "validation/bpd" in row
    ]
    images = [image["alt"] for image in page.all("img")]
    assert images == [f"{name} after {n} images" for name in ("samples", "reconstructions") for n in ("640", "1,280")]
    drawn = (run / "pictures/samples-000000000640.png").read_bytes()
    assert page.all("img")[0]["src"] == f"data:image/png;base64,{base64.b64encode(drawn).decode()}"
    assert "validation-iw-3-ema" in page.text
    assert (run / "config.yaml").read_text() in page.texts["pre"]
    assert history.attempts[1].facts["provenance"]["versions"]["torch"] in page.texts["dd"]
    parameters = history.parameters
    assert parameters is not None
    assert f"{parameters:,}" in page.texts["b"]


def test_what_comes_from_files_is_escaped(tmp_path: Path) -> None:
    rows = rows_of(30)
    rows[-1] |= {
        f"train/rate/{EVIL}": 1.5,
        "quarantined": [{"epoch": 0, "position": 1, "shard": EVIL, "key": EVIL, "reason": EVIL}],
        f"memory/{EVIL}": 3.0,
    }
    folder = tmp_path / f"run {EVIL.replace('/', '')}"
    make_run(folder, rows, {"model": {EVIL: EVIL}}, host=EVIL, provenance={EVIL: EVIL, "git": {"commit": EVIL}})
    Storage(str(folder)).write("evaluations/<b>x.json", json.dumps({EVIL: EVIL, "figures": {EVIL: EVIL}}).encode())
    other = tmp_path / "other"
    make_run(other, rows)
    for runs in ([folder], [folder, other]):
        page = page_of(*runs, out=tmp_path / "report.html")
        assert_loads_nothing(page)
        scripts = page.all("script")
        assert [script.get("type") for script in scripts] == ["application/json"] * (len(scripts) - 1) + [None]
        assert page.all("img") == []
        assert EVIL in page.text


def test_no_credentials_of_urls_are_passed_on(tmp_path: Path) -> None:
    secret = {"a": "https://me:hunter2@host/x", "b": "https://host/x.tar?X-Sig=abcdef&b=1", "c": "s3://bucket/x?.tar"}
    make_run(tmp_path / "run", rows_of(3), {"data": secret})
    make_run(tmp_path / "other", rows_of(3))
    page_of(tmp_path / "run", tmp_path / "other", out=tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "hunter2" not in text
    assert "abcdef" not in text
    assert "https://...@host/x" in text
    assert "s3://bucket/x?.tar" in text


@pytest.mark.parametrize("count", [1, 480, 481, 20_000])
def test_thinning_keeps_extremes_ends_and_means(count: int) -> None:
    values = random.Random(count)
    curve = [(float(i), values.gauss(0, 1)) for i in range(count)]
    curve[count // 3] = (count // 3, 1e6)
    curve[count // 2] = (count // 2, -1e6)
    parts = thinned(curve)
    if count <= 480:
        assert parts == [(x, y, y, y) for x, y in curve]
        return
    assert len(parts) == 240
    assert max(part.high for part in parts) == 1e6
    assert min(part.low for part in parts) == -1e6
    assert (parts[0].x < 100, parts[-1].x) == (True, count - 1)
    for part, after in pairwise(parts):
        assert part.x < after.x
    inside = [y for x, y in curve if x * 240 < count - 1]
    assert parts[0][1:] == pytest.approx((sum(inside) / len(inside), min(inside), max(inside)))


def test_thinning_interrupts_a_curve_only_where_nothing_is_finite() -> None:
    curve = [(float(i), math.nan if i < 5000 or i % 2 else 1.0) for i in range(20_000)]
    parts = thinned(curve)
    assert all(math.isnan(part.y) == (part.x < 5000) for part in parts)


def test_a_long_run_makes_a_small_file_with_its_spikes(tmp_path: Path) -> None:
    rows = rows_of(20_000, **{"train/gradient_norm": 1.0, "train/rate/z1": 2.0})
    rows[12_345]["train/gradient_norm"] = 777_000.0
    rows[12_400]["train/bpd"] = float("nan")
    make_run(tmp_path / "run", rows)
    page = page_of(tmp_path / "run", out=tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 150_000
    spikes = [point for chart in page.charts for point in chart["curves"][0]["points"] if point[-1] == 777_000.0]
    assert len(spikes) == 1
    assert spikes[0][0] == pytest.approx(123_460, abs=200_000 / 240)
    assert spikes[0][1:] == pytest.approx([1 + 776_999 / 83, 1.0, 777_000.0], rel=0.02)  # mean, lowest, highest
    assert "NaN" not in (tmp_path / "report.html").read_text()


def test_numbers_are_short() -> None:
    ticks = [tick(value) for value in (0.0, 1000, 25_000, 1.5e6, 2e9, 0.00025, 1e-5, -20_000)]
    assert ticks == ["0", "1000", "25k", "1.5M", "2G", "0.00025", "1e-5", "-20k"]
    figures = [plain(value) for value in (2.0, 79.998, 999.96, 1234.5, 0.001, 2.0014e-05, -0.5)]
    assert figures == ["2", "80.00", "1,000", "1,234", "0.001", "2.001e-5", "-0.5000"]
    assert [duration(value) for value in (45.0, 720.0, 12_600.0, 181_440.0)] == ["45 s", "12 min", "3.5 h", "2.1 d"]


def test_values_that_would_flatten_a_curve_are_named_and_shown_on_demand(tmp_path: Path) -> None:
    rows = rows_of(200)
    rows[50]["train/bpd"] = 16_366.0
    make_run(tmp_path / "run", rows)
    page = page_of(tmp_path / "run", out=tmp_path / "report.html")
    assert "Outside the axis: highest 16,366." in page.text
    assert "whole range" in page.texts["button"]


def test_several_runs_are_laid_over_each_other(tmp_path: Path) -> None:
    for name, bound in (("a", 3.0), ("b", 2.5)):
        rows = rows_of(20, elapsed=4.0)
        rows.append({"images": 200, "validation/bpd": bound, "validation/nats": 9.0, "validation/standard_error": 0.9})
        make_run(tmp_path / name / "vae", rows, {"trainer": {"batch": 64}, "optim": {"lr": bound}})
    page = page_of(tmp_path / "a/vae", tmp_path / "b/vae", out=tmp_path / "report.html")
    assert_loads_nothing(page)
    assert page.texts["h2"] == SECTIONS
    assert [curve["name"] for curve in page.charts[0]["curves"]] == ["a/vae", "b/vae"]
    assert [curve["colour"] for curve in page.charts[0]["curves"]] == ["c0", "c1"]
    assert [curve["points"][-1] for curve in page.charts[0]["curves"]] == [[200.0, 3.0], [200.0, 2.5]]
    assert "3.0000 ± 0.3000" in page.text  # the error is of nats, shown in bits per dimension
    assert "Settings that differ: 1" in page.text
    assert "optim.lr" in page.texts["td"]
    assert "trainer.batch" not in page.texts["td"]


def test_bits_per_dimension_are_shown_only_if_all_runs_have_them(tmp_path: Path) -> None:
    make_run(tmp_path / "images", rows_of(20))
    make_run(tmp_path / "density", [{"images": 10 * i, "train/nats": -3.0} for i in range(1, 20)])
    page = page_of(tmp_path / "images", tmp_path / "density", out=tmp_path / "report.html")
    assert [curve["points"][-1][1] for curve in page.charts[0]["curves"]] == [9.0, -3.0]


def test_restarts_and_rollbacks_are_marked_and_explained(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    make_run(folder, rows_of(10))
    make_run(folder, rows_of(20)[10:15], start=Commit(100, 1))  # abandoned
    make_run(folder, rows_of(20)[10:], start=Commit(100, 1), rolled_back="diverged: 50 steps", lr_factor=0.5)
    page = page_of(folder, out=tmp_path / "report.html")
    marks = {line["class"] for line in page.all("line") if "mark" in (line["class"] or "")}
    assert marks == {"mark rollback"}
    assert "rolled back: diverged: 50 steps; learning rate x 0.5" in page.text
    cells = page.texts["td"]
    assert [cells[i] for i in range(len(cells)) if cells[i] in ("yes", "no")] == ["yes", "no", "yes"]
    assert "1 of them after a rollback" in page.text


def test_bounds_say_what_they_are_conditional_on(tmp_path: Path) -> None:
    for name, conditions in (("a", "unconditional"), ("b", "conditional on label")):
        row = {"images": 100, "validation/bpd": 2.0, "validation/nats": 90.0, "validation/conditions": conditions}
        make_run(tmp_path / name, [row])
    both = page_of(tmp_path / "a", tmp_path / "b", out=tmp_path / "both.html").text
    assert (
        "a: unconditional; b: conditional on label. Bounds that are conditional on different things do not rank."
        in both
    )
    assert "bpd, averaged weights, conditional on label" in both
    alone = page_of(tmp_path / "b", out=tmp_path / "alone.html").texts["p"]
    assert "conditional on label." in alone


def test_the_best_evaluation_and_what_followed_it_are_told(tmp_path: Path) -> None:
    bounds = [2.2, 2.0, 2.1, 2.3]
    rows = [
        {"images": 100 * (i + 1), "validation/bpd": bound, "validation/nats": bound} for i, bound in enumerate(bounds)
    ]
    make_run(tmp_path / "run", rows)
    page = page_of(tmp_path / "run", out=tmp_path / "report.html")
    assert "after 200 images, 2 evaluations before the last" in page.text
    assert {"2.3000", "2.0000"} <= set(page.texts["b"])


def test_the_ledger_names_incomplete_epochs_and_quarantined_images(tmp_path: Path) -> None:
    epochs = [
        {"epoch": i, "expected": 100, "seen": 99 if i == 1 else 100, "quarantined": int(i == 1)} for i in range(3)
    ]
    bad = {"epoch": 1, "position": 150, "shard": "a.tar", "key": "cat-7", "reason": "truncated"}
    rows = [{"images": 100 * (i + 1), "train/nats": 1.0, "ledger": [epoch]} for i, epoch in enumerate(epochs)]
    rows[1]["quarantined"] = [bad]
    make_run(tmp_path / "run", rows)
    page = page_of(tmp_path / "run", out=tmp_path / "report.html")
    assert "3 finished epochs: 299 of 300 images seen" in page.text
    assert "1 epochs are not complete:" in page.text
    assert {"cat-7", "truncated"} <= set(page.texts["td"])


def test_lists_in_reports_such_as_the_worst_images_are_tables(tmp_path: Path) -> None:
    make_run(tmp_path / "run", rows_of(3))
    worst = {"figures": {"evaluation/nats": 3.5}, "worst_images": [{"key": "cat-7", "nats": 16366.0}]}
    Storage(str(tmp_path / "run")).write("evaluations/validation.json", json.dumps(worst).encode())
    page = page_of(tmp_path / "run", out=tmp_path / "report.html")
    assert "validation: worst images" in page.text
    assert {"cat-7", "16,366"} <= set(page.texts["td"])
    assert "3.5000" in page.texts["b"]


def test_pictures_are_thinned_to_a_size(tmp_path: Path) -> None:
    make_run(tmp_path / "run", rows_of(3))
    run = Storage(str(tmp_path / "run"))
    for images in range(100, 2100, 100):
        run.write(f"pictures/samples-{images:012d}.png", bytes(30_000))
    page = page_of(run.url, out=tmp_path / "report.html", arguments=("--pictures", "0.21"))
    assert [image["alt"] for image in page.all("img")] == [
        f"samples after {images} images" for images in ("100", "600", "1,100", "1,500", "2,000")
    ]
    assert "5 of 20 shown, to bound the size of this file" in page.text
    assert (tmp_path / "report.html").stat().st_size < 250_000
    assert page_of(run.url, out=tmp_path / "report.html", arguments=("--pictures", "0")).all("img") == []


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    make_run(tmp_path / "run", [], {"trainer": {"images": 1000}})
    page = page_of(tmp_path / "run", out=tmp_path / "report.html")
    assert_loads_nothing(page)
    assert page.texts["h2"] == SECTIONS
    assert "not finished" in page.texts["b"]
    assert "0 of 1,000 images in its metrics" in page.text


def test_a_run_of_one_row(tmp_path: Path) -> None:
    make_run(tmp_path / "run", [{"images": 0, "train/nats": 0.0, "train/lr": 0.0, "train/gradient_norm": 0.0}])
    page = page_of(tmp_path / "run", out=tmp_path / "report.html")
    assert [chart["curves"][0]["points"] for chart in page.charts] == [[[0.0, 0.0]]] * 3


@pytest.mark.parametrize(
    ("path", "content", "told"),
    [
        ("evaluations/bad.json", b"{", "evaluations/bad.json"),
        ("attempts/0002.json", b"[[", "attempts"),
        ("final/config.json", b"[]", "final/config.json"),
        ("config.yaml", b"a: [", "config.yaml"),
    ],
)
def test_a_damaged_file_is_named_and_the_rest_shown(path: str, content: bytes, told: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    make_run(folder, rows_of(30))
    Storage(str(folder)).write(path, content)
    done = call_job("report", str(folder), "--out", str(tmp_path / "report.html"))
    assert done.status == 0, done.stderr
    assert re.search(rf"^warning: .*{re.escape(told)}.* cannot be read: ", done.stdout, re.MULTILINE)
    page = Page((tmp_path / "report.html").read_text())
    assert page.texts["h2"] == SECTIONS
    assert "cannot be read" in page.text


def test_torn_rows_are_left_out_of_a_report_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "run"
    make_run(folder, rows_of(30))
    part = Storage(str(folder)).read("metrics/000000000300-0001.jsonl")
    Storage(str(folder)).write("metrics/000000000300-0001.jsonl", part + b'{"imag')
    done = call_job("report", str(folder), "--out", str(tmp_path / "report.html"))
    assert done.status == 0, done.stderr
    assert "metrics/000000000300-0001.jsonl: 1 lines are damaged and left out" in caplog.text
    assert Page((tmp_path / "report.html").read_text()).texts["h2"] == SECTIONS


def test_a_report_of_and_to_an_object_store(tmp_path: Path, s3_environment: S3Server) -> None:
    make_run(tmp_path / "run", rows_of(30))
    url = s3_environment.bucket("reports") + "/run"
    target = Storage(url)
    for entry in (local := Storage(str(tmp_path / "run"))).list():
        target.write(entry.path, local.read(entry.path))
    target.write("pictures/samples-000000000300.png", b"png")
    done = call_job("report", url, "--out", f"{url}/report.html")
    assert done.status == 0, done.stderr
    page = Page(target.read("report.html").decode())
    assert_loads_nothing(page)
    assert url in page.text
    assert page.charts[0]["curves"][0]["points"][-1][0] == 300.0
    assert len(page.all("img")) == 1


def test_user_errors_are_one_line(tmp_path: Path) -> None:
    make_run(tmp_path / "run", rows_of(3))
    with pytest.raises(ConfigError, match=r"no run here; a run folder has a config\.yaml"):
        report.main([str(tmp_path), "--out", str(tmp_path / "report.html")])
    with pytest.raises(ConfigError, match=r"name a file, such as report\.html"):
        report.main([str(tmp_path / "run"), "--out", str(tmp_path)])
    with pytest.raises(ConfigError, match=r"--pictures -1\.0: at least 0"):
        report.main([str(tmp_path / "run"), "--pictures", "-1"])


def test_the_end_of_a_run_names_the_command(
    config_file: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = load_config(str(config_file("a run", trainer={"pictures": 0})))
    train_rank(config)
    command = f"python -m jobs.report '{config.run}' --out report.html"
    assert capsys.readouterr().out.rstrip().endswith(f"Report: {command}")
