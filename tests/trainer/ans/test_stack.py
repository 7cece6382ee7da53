"""The stack of many lanes: pushes and pops undo each other, and cost what the distributions say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.ans.cumulative import Cells, Table
from trainer.ans.stack import ExhaustedError, Stack
from trainer.ans.tails import NORMAL


def cells(generator: np.random.Generator, lanes: int, n: int, floor: int) -> Cells:
    mean, scale = generator.normal(size=(lanes, n)), np.exp(generator.normal(size=(lanes, n)))
    return Cells(NORMAL, mean, scale, 2.0**-6, 2**9, floor)


@settings(deadline=None, max_examples=30)
@given(
    st.integers(1, 5),
    st.integers(1, 7),
    st.lists(st.tuples(st.booleans(), st.integers(1, 30), st.integers(1, 5)), min_size=1, max_size=12),
    st.integers(0, 1000),
)
def test_any_sequence_of_pushes_and_pops_is_undone_exactly(lanes, width, operations, seed):
    generator = np.random.default_rng(seed)
    stack, done = Stack(lanes, width), []
    for pushes, n, rows in operations:
        stack.rows = min(rows, lanes)
        distribution = cells(generator, lanes, n, floor=1)
        if pushes:
            symbols = generator.integers(0, 2**9, size=(lanes, n))
            symbols[stack.rows :] = 0
            stack.push(distribution, symbols)
        else:
            symbols = stack.pop(distribution)
        done.append((pushes, stack.rows, distribution, symbols))
    decoder = Stack.restore(stack.heads, stack.words)
    for pushes, rows, distribution, symbols in reversed(done):
        decoder.rows = rows
        if pushes:
            assert (decoder.pop(distribution) == symbols).all()
        else:
            decoder.push(distribution, symbols)
    assert decoder.is_initial()


@pytest.mark.parametrize("p", [0.5, 0.02, 1e-6])
def test_symbols_take_the_bits_of_their_probability(p):
    generator = np.random.default_rng(0)
    stack = Stack(16, 16)
    before = np.log2(stack.heads.astype(float)).sum()
    distribution = Table.of(np.tile([1 - p, p], (16, 50_000 // 16, 1)))
    symbols = (generator.random(distribution.shape) < p).astype(np.int64)
    stack.push(distribution, symbols)
    bits = np.log2(stack.heads.astype(float)).sum() + 16 * len(stack.words) - before
    assert bits == pytest.approx((32 - np.log2(distribution.interval(symbols).size)).sum(), rel=1e-4, abs=0.1)


def test_the_bits_that_it_begins_with_are_counted():
    stack = Stack(2, 3)
    assert stack.initial_bits == 6 * 48
    uniform = Table.of(np.full((2, 300, 256), 1 / 256))
    stack.pop(uniform)
    assert stack.initial_bits == 6 * 48 + 16 * stack.drawn
    assert 600 * 8 - 6 * 16 <= 16 * stack.drawn <= 600 * 8
    assert len(stack.words) == 0


def test_a_decoder_draws_no_words():
    stack = Stack(1, 1)
    with pytest.raises(ExhaustedError):
        Stack.restore(stack.heads, stack.words).pop(Table.of(np.full((1, 30, 16), 1 / 16)))


def test_it_is_as_short_as_the_ans_coder_of_constriction():
    """An independent coder of the same symbols by the same weights, which it takes to 24 bits."""
    constriction = pytest.importorskip("constriction")
    generator = np.random.default_rng(0)
    weights = generator.dirichlet(np.full(17, 0.2), size=(1, 20_000))
    symbols = (weights.cumsum(-1) < generator.random((1, 20_000, 1))).sum(-1)
    stack = Stack(1, 1)
    stack.push(Table.of(weights), symbols)
    other = constriction.stream.stack.AnsCoder()
    model = constriction.stream.model.Categorical(perfect=False)
    other.encode_reverse(symbols[0].astype(np.int32), model, weights[0].astype(np.float32))
    assert 16 * len(stack.words) + 16 == pytest.approx(other.num_bits(), abs=64)


def test_a_symbol_without_a_slot_is_not_pushed():
    narrow = Cells(NORMAL, np.zeros((1, 1)), np.full((1, 1), 1e3), 1.0, 10, floor=0)
    with pytest.raises(ValueError, match="without a slot"):
        Stack(1, 1).push(narrow, np.array([[9]]))
