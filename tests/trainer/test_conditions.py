"""Which conditions a figure is given, and the words for it."""

import pytest

from trainer.conditions import in_words, parse_uses, training_in_words
from trainer.errors import TrainingError

BOTH = ("label", "caption")


@pytest.mark.parametrize(
    ("text", "names", "uses", "words"),
    [
        ("given", (), {}, "unconditional"),
        ("none", (), {}, "unconditional"),
        ("given", ("label",), {"label": "given"}, "conditional on label"),
        ("none", ("label",), {"label": "none"}, "unconditional (label left out)"),
        ("label=none", ("label",), {"label": "none"}, "unconditional (label left out)"),
        ("given", BOTH, {"label": "given", "caption": "given"}, "conditional on label and caption"),
        ("label=none", BOTH, {"label": "none", "caption": "given"}, "conditional on caption (label left out)"),
        ("none,label=given", BOTH, {"label": "given", "caption": "none"}, "conditional on label (caption left out)"),
        (
            "shuffled,label=given",
            BOTH,
            {"label": "given", "caption": "shuffled"},
            "conditional on label and another image's caption",
        ),
        ("none", BOTH, {"label": "none", "caption": "none"}, "unconditional (label and caption left out)"),
    ],
)
def test_conditions_are_chosen_together_or_by_name(text, names, uses, words):
    assert parse_uses(text, names) == uses
    assert in_words(uses) == words


@pytest.mark.parametrize(
    ("text", "names", "message"),
    [
        ("no", ("label",), "condition no: one of given, none, shuffled, or NAME=one of them"),
        ("label=maybe", ("label",), "condition label=maybe: one of given, none, shuffled, or NAME=one of them"),
        ("class=none", ("label",), "condition class: the model has label"),
        ("label=none", (), "condition label: the model has no conditions"),
    ],
)
def test_a_choice_that_does_not_exist_is_an_error_that_lists_those_that_do(text, names, message):
    with pytest.raises(TrainingError) as refused:
        parse_uses(text, names)
    assert str(refused.value) == message


def test_training_bounds_say_from_how_many_images_a_condition_is_hidden():
    assert training_in_words({}) == "unconditional"
    assert training_in_words({"label": 0.0}) == "conditional on label"
    assert training_in_words({"label": 0.1}) == "conditional on label (label hidden from 10% of the images)"
