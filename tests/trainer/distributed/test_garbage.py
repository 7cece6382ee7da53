"""Garbage collection by hand: at the steps that it should, and as before afterwards."""

from __future__ import annotations

import gc
import weakref

import pytest

from trainer.distributed.garbage import GarbageCollection


class Node:
    """An object that refers to itself: only a collection frees it."""

    def __init__(self):
        self.me = self


def test_cycles_live_until_the_next_collection():
    with GarbageCollection(every=3) as garbage:
        node = weakref.ref(Node())
        assert not gc.isenabled()
        alive = []
        for _ in range(4):
            alive.append(node() is not None)
            garbage.step()
        assert alive == [True, True, True, False]
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_an_error_leaves_automatic_collection_on():
    with pytest.raises(RuntimeError), GarbageCollection():
        raise RuntimeError
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
