"""How often the bound finds an image's caption among K, and a caption's image among K."""

from __future__ import annotations

import time
from typing import Any

from jobs.errors import ConfigError
from jobs.evaluating.opened import Opened, opened
from jobs.run.reports import keep, weights_text
from trainer.distributed.ranks import on_rank_zero, world_size
from trainer.tracking.display import say_on_rank_zero
from trainer.tracking.plots import bars
from trainer.training.retrieval import Retrieval, Share, bounds_in_groups, groups_of, retrieval


def evaluate_retrieval(settings: dict[str, Any]) -> None:
    """Evaluate and report. All ranks together."""
    k = settings["retrieval"]
    if k < 2:
        raise ConfigError(f"--retrieval {k}: at least 2")
    own = opened(settings)
    names = [name for name, use in own.uses.items() if use == "given"]
    if not names or "shuffled" in own.uses.values():
        raise ConfigError(f"--retrieval: needs a condition that is given; the model is {own.in_words()}")
    without = all(own.model.hidden_in_training[name] for name in names)
    table = own.table(names)
    members = groups_of(table, k, settings["seed"]).cpu()
    rows, others = members.repeat_interleave(k, 1).flatten(), members.repeat(1, k).flatten()
    same = table.same(rows.to(own.device), others.to(own.device)).cpu().reshape(-1, k, k)
    total = len(table) * (k + without)
    each = f"{k} {' and '.join(names)}s each{' and with none' if without else ''}"
    say_on_rank_zero(f"{len(table):,} images with {each}: {total:,} bounds of {settings['samples']} draws")
    with own.batches() as batches:
        bounds, none = bounds_in_groups(
            own.model, batches, own.estimate, own.uses, table, k, without, _Pace(total).update
        )
    found = retrieval(bounds, none, same)
    lines = [f"warning: {line}" for line in own.warnings({}, len(table))]
    on_rank_zero(lambda: _report(own, found, names, lines))


class _Pace:
    """Tells once, after the first batch, how long it will take."""

    def __init__(self, total: int):
        self.total, self.began, self.told = total, time.monotonic(), False

    def update(self, done: int) -> None:
        """`done` bounds of this rank."""
        if not self.told:
            self.told = True
            seconds = (time.monotonic() - self.began) * max(0, self.total / world_size() - done) / done
            say_on_rank_zero(f"about {seconds / 60:.1f} minutes at the pace of the first batch")


def _report(own: Opened, found: Retrieval, names: list[str], lines: list[str]) -> None:
    what = " and ".join(names)
    shares = {
        f"{what} of an image, by the bound": ("caption", found.caption),
        f"image of a {what}, by the bound": ("image", found.image),
    }
    if found.image_by_gain is not None:
        shares[f"image of a {what}, by the bound less the one without"] = ("image_by_gain", found.image_by_gain)
    report = own.facts(found.images) | {"retrieval": found.k, "groups": found.images // found.k}
    figures: dict[str, float] = {"retrieval/chance": 1 / found.k}
    for name, share in shares.values():
        figures |= {f"retrieval/{name}": share.mean, f"retrieval/{name}/standard_error": share.standard_error}
    report |= {"figures": figures, "duplicates": found.duplicates}
    title = f"found among {found.k}: {found.images:,} images"
    plot = bars({name: share.mean for name, (_, share) in shares.items()} | {"chance": 1 / found.k}, title, "share")
    lines += [f"{title}, {weights_text(own.loaded)}, {own.in_words()}, {report['precision']}, chance {1 / found.k:.1%}"]
    lines += [f"  {name}: {_percent(share)}" for name, (_, share) in shares.items()]
    if found.duplicates:
        lines.append(
            f"  {found.duplicates:,} images have the same {what} as another of their group; equal ones are ties"
        )
    for line in [*lines, *keep(own.subject, own.name("retrieval", found.k), report, plot)]:
        say_on_rank_zero(line)


def _percent(share: Share) -> str:
    return f"{share.mean:.1%} ± {share.standard_error:.1%}"
