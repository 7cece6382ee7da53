"""Progress moves by time: a line every half minute in a log, the bar every second on a terminal."""

from __future__ import annotations

import io
import sys

import pytest

from trainer.tracking import display
from trainer.tracking.display import Display


class Time:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_has_a_line_at_the_first_row_and_then_every_half_minute(capsys: pytest.CaptureFixture[str]) -> None:
    time = Time()
    with Display(10_000, 2_000, time) as shown:
        for second in range(1, 65):
            time.now = 100.0 + second
            shown.tick(2_000 + 10 * second)
            if second == 10:
                shown.update(2_100, {"train/bpd": 4.25, "train/conditions": "conditional on label"})
    assert capsys.readouterr().out.splitlines() == [
        "2,100/10,000 images  train 4.2500 bpd, conditional on label  10 images/s  0:10 elapsed, 13:10 left",
        "2,400/10,000 images  train 4.2500 bpd, conditional on label  10 images/s  0:40 elapsed, 12:40 left",
    ]


def test_slow_steps_show_progress_before_the_first_row(capsys: pytest.CaptureFixture[str]) -> None:
    time = Time()
    with Display(4_000, 0, time) as shown:
        time.now += 40
        shown.tick(80)
    assert capsys.readouterr().out == "80/4,000 images  2 images/s  0:40 elapsed, 32:40 left\n"


def test_the_bar_moves_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    time = Time()
    with Display(1_000, 0, time) as shown:
        shown.tick(10)
        assert shown.bar.n == 0
        time.now += 1.1
        shown.tick(20)
        assert shown.bar.n == 20
        shown.update(30, {"train/nats": 12.5})
        assert (shown.bar.n, shown.bar.postfix) == (30, "train 12.50 nats")


def test_other_ranks_are_silent(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(display, "rank", lambda: 1)
    with Display(1_000, 0) as shown:
        shown.update(100, {"train/bpd": 4.0})
    assert capsys.readouterr().out == ""
