"""The figures of a run as Prometheus gauges, at the endpoint where Ray exports its own."""

from __future__ import annotations

import re
from typing import Any

from trainer.checkpoints.journal import Row
from trainer.tracking.listener import Listener, Pictures


class RayMetricsTracker(Listener):
    """Every number of a row as a gauge `lowerbound_NAME`, labelled with the run. Only inside a Ray worker."""

    def __init__(self, run_name: str):
        from ray.util.metrics import Gauge

        self._make = Gauge
        self._labels = {"run": run_name}
        self._gauges: dict[str, Any] = {}

    def on_row(self, row: Row, pictures: Pictures) -> None:
        for name, value in row.items():
            if isinstance(value, int | float):
                self._gauge(name).set(float(value), tags=self._labels)

    def _gauge(self, name: str) -> Any:
        if name not in self._gauges:
            known = gauge_name(name)
            self._gauges[name] = self._make(known, description=f"{name} of a training run", tag_keys=("run",))
        return self._gauges[name]


def gauge_name(metric: str) -> str:
    """The Prometheus name of a figure: lowerbound_train_rate_z1 for `train/rate/z1`."""
    return "lowerbound_" + re.sub(r"[^a-zA-Z0-9_]", "_", metric)
