"""Captions follow their images: the same tokens at a position, however the images are read."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from datasets.conditions.captions import MOST_BYTES, TextCondition, caption_of
from datasets.config import DataConfig
from datasets.errors import DataError
from datasets.loading.batches import Tokens
from datasets.loading.build import evaluation_batches, training_batches
from datasets.loading.conditions import check_conditions
from datasets.reading.step_reader import ReadPlan
from datasets.reading.vocabulary import PADDING, captions_of_set, read_tokenizer, spread, train_tokenizer, vocabulary_of
from tests.datasets.conditions.captioned_sets import (
    caption,
    members_of,
    recaption,
    tokenizer,
    write_captioned,
)
from tests.datasets.small_sets import number_of

COUNTS = [13, 40, 7, 25]
TEXT = {"kind": "text", "max_tokens": 16}


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return write_captioned(tmp_path_factory.mktemp("set"), COUNTS)


@pytest.fixture(scope="module")
def words():
    return tokenizer()


def config(index, conditions, **settings):
    settings = {"streams": 4, "window": 8, "cache": 0, "workers": 0} | settings
    return DataConfig(shards=index.url, conditions=conditions, **settings)


def take(index, words, conditions, steps=12, settings=None, **arguments):
    given = config(index, conditions, **(settings or {}))
    with training_batches(given, index, seed=5, batch=16, tokenizers={"caption": words}, **arguments) as batches:
        return [next(batches) for _ in range(steps)], batches.unknown


def texts(words, tokens):
    decode = Tokenizer.from_str(words).decode
    return [decode(row[:n]).strip() for row, n in zip(tokens.ids.tolist(), tokens.lengths.tolist(), strict=True)]


@pytest.mark.parametrize("settings", [{}, {"workers": 2}, {"cache": 1 << 20}, {"memory": 1}])
def test_each_image_comes_with_its_caption(index, words, settings):
    batches, unknown = take(index, words, {"caption": TEXT}, settings=settings)
    for batch in batches:
        found = texts(words, batch.conditions["caption"])
        assert found == [caption(number_of(image[0].numpy())) for image in batch.images]
        assert not any(row[n:].any() for row, n in zip(*batch.conditions["caption"], strict=True))
    assert not unknown


def test_the_caption_of_a_position_is_a_function_of_seed_and_position(index, words):
    several = {"caption": TEXT | {"members": ["txt", "json.meta.recaption"], "probabilities": [0.3, 0.7]}}
    whole, _ = take(index, words, several)
    cached, _ = take(index, words, several, settings={"cache": 1 << 20})
    processes, _ = take(index, words, several, settings={"workers": 3})
    later, _ = take(index, words, several, steps=8, start=64)
    for others in (cached, processes):
        for one, other in zip(whole, others, strict=True):
            assert all(map(torch.equal, one.tensors(), other.tensors()))
    for one, other in zip(whole[4:], later, strict=True):
        assert all(map(torch.equal, one.tensors(), other.tensors()))
    ranks = [take(index, words, several, ranks=2, rank=rank)[0] for rank in range(2)]
    for step, batch in enumerate(whole):
        parts = [
            part
            for rank in ranks
            for part in zip(rank[step].positions.tolist(), texts(words, rank[step].conditions["caption"]), strict=True)
        ]
        assert sorted(parts) == list(
            zip(batch.positions.tolist(), texts(words, batch.conditions["caption"]), strict=True)
        )
    found = Counter()
    for batch in whole:
        numbers = [number_of(image[0].numpy()) for image in batch.images]
        for number, text in zip(numbers, texts(words, batch.conditions["caption"]), strict=True):
            assert text in (caption(number), recaption(number))
            found[text == recaption(number)] += 1
    assert 0.55 < found[True] / found.total() < 0.85  # 192 draws at 0.7: 4.5 standard deviations


def test_an_evaluation_reads_captions_too(index, words):
    with evaluation_batches(config(index, {"caption": TEXT}), index, batch=9, tokenizers={"caption": words}) as batches:
        for batch in batches:
            real = int((batch.weights > 0).sum())
            tokens = Tokens(*(column[:real] for column in batch.conditions["caption"]))
            assert texts(words, tokens) == [caption(number) for number in batch.positions[:real].tolist()]


def test_unusable_captions_count_as_unknown(tmp_path, words):
    broken = {
        1: {"txt": b"\xff\xfe\xff"},
        2: {"txt": b"  \n "},
        3: {},
        4: {"txt": b"x" * (MOST_BYTES + 1)},
        5: {"txt": b"lock " * 50},
    }
    index = write_captioned(
        tmp_path / "set", [16], lambda number: broken.get(number, {"txt": caption(number).encode()})
    )
    for settings in ({}, {"workers": 1}, {"cache": 1 << 20}):
        (batch,), unknown = take(index, words, {"caption": TEXT}, steps=1, settings=settings | {"streams": 1})
        lengths = {
            number_of(image[0].numpy()): length
            for image, length in zip(batch.images, batch.conditions["caption"].lengths.tolist(), strict=True)
        }
        assert [lengths[number] for number in (1, 2, 3, 4, 5)] == [0, 0, 0, 0, 16]
        assert all(lengths[number] for number in range(16) if number not in (1, 2, 3, 4))
        assert unknown == dict.fromkeys(
            ["caption/undecodable", "caption/empty", "caption/missing", "caption/too-long", "caption/truncated"], 1
        )
        assert batch.weights.all()


def test_they_may_make_an_image_corrupt_instead(tmp_path, words):
    index = write_captioned(tmp_path / "set", [16], lambda number: {"txt": b"" if number == 3 else b"lock"})
    bad = {"caption": TEXT | {"missing": "bad"}}
    with pytest.raises(DataError, match="sample '000003': caption: txt is empty"):
        take(index, words, bad, steps=1, settings={"streams": 1})
    for settings in ({}, {"cache": 1 << 20}):
        settings |= {"streams": 1, "on_bad": "quarantine", "bad_share": 1}
        (batch,), _ = take(index, words, bad, steps=1, settings=settings)
        (row,) = (batch.weights == 0).nonzero()[:, 0].tolist()
        assert not batch.conditions["caption"].ids[row].any()
        assert batch.conditions["caption"].lengths[row] == 0


@pytest.mark.parametrize(
    ("data", "source", "found"),
    [
        (b"A  cat\n", "txt", "A cat"),
        (json.dumps({"caption": "x"}).encode(), "json.caption", "x"),
        (json.dumps({"a": {"b": "x"}}).encode(), "json.a.b", "x"),
        (json.dumps({"a": {"b": "x"}}).encode(), "json.a", "undecodable"),
        (json.dumps({"a": None}).encode(), "json.a", "missing"),
        (json.dumps(["a"]).encode(), "json.a", "missing"),
        (json.dumps({"a": 5}).encode(), "json.a", "undecodable"),
        (b"{", "json.a", "undecodable"),
        (b"[" * 100_000, "json.a", "undecodable"),
        (None, "txt", "missing"),
    ],
)
def test_captions_of_members(data, source, found):
    text = caption_of(data, source)
    assert found in (text.caption, text.problem)


def test_a_condition_names_what_the_samples_lack(index):
    def refused(conditions):
        with pytest.raises(DataError) as raised:
            check_conditions(config(index, conditions), index)
        return str(raised.value)

    check_conditions(config(index, {"caption": TEXT | {"members": ["txt", "json.meta.recaption"]}}), index)
    message = refused({"caption": TEXT | {"members": ["caption"]}})
    assert "samples have no member .caption; they have clip.npy, json, png, txt" in message
    assert "its .json has no text 'json.alt'" in refused({"caption": TEXT | {"members": ["json.alt"]}})
    assert "no text 'json.similarity'" in refused({"caption": TEXT | {"members": ["json.similarity"]}})
    assert "no label (.cls)" in refused({"label": {"kind": "class"}})
    assert "no member .t5.npy" in refused({"t5": {"kind": "vector", "member": "t5.npy", "size": 3}})


def test_a_tokenizer_is_trained_on_the_sets_captions(index):
    found = list(captions_of_set(index, ("txt", "json.meta.recaption")))
    numbers = range(sum(COUNTS))
    assert sorted(found) == sorted([caption(n) for n in numbers] + [recaption(n) for n in numbers])
    text = train_tokenizer(found, 300)
    assert vocabulary_of(text) <= 300
    trained = Tokenizer.from_str(text)
    assert trained.token_to_id(PADDING) == 0
    assert trained.decode(trained.encode("Snow \u2603, never seen").ids).strip() == "snow \u2603, never seen"
    assert len(trained.encode("folder").ids) == 1  # a frequent word is one token


def test_a_large_set_is_sampled_evenly(index):
    ranges = list(spread(index, 20, 5))
    assert sum(part.stop - part.start for part in ranges) <= 20
    assert {part.shard for part in ranges} == {0, 1, 3}


def test_something_else_is_no_tokenizer(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"tokenizer\.json: not a tokenizer\.json that tokenizers can read"):
        read_tokenizer(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match=r"no tokenizer\.json can be read here"):
        read_tokenizer(str(tmp_path / "none.json"))


def test_bytes_read_stay_near_those_of_the_shards(index, words):
    from datasets.order.training_steps import TrainingSteps
    from datasets.reading.step_reader import BatchArrays, StepReader

    text = TextCondition("caption", ("txt",), (1.0,), 16, words)
    steps = TrainingSteps(5, 17, 1, 85)
    reader = StepReader(ReadPlan(index, steps, conditions=(text,)))
    for _ in range(index.images // 17):
        arrays = {"caption.ids": np.zeros((17, 16), np.int32), "caption.lengths": np.zeros(17, np.int32)}
        shape = (17, index.height, index.width, 1)
        reader.read(BatchArrays(np.empty(shape, np.uint8), np.zeros(17, np.int64), np.zeros(17, np.float32), arrays))
    ahead = sum(len(part.data) for _, future in reader.windows.ahead.values() for part in future.result().parts)
    reader.close()
    assert reader.shards.bytes_read - ahead <= sum(index.shard(number).bytes for number in range(len(index)))


def test_members_are_what_img2dataset_writes():
    assert set(members_of(3)) >= {"txt", "json"}
