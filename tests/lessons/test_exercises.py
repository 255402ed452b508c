"""Checks of exercises: a right answer passes, a wrong one is told what to look at, and an empty one waits."""

import numpy as np
import pytest
import torch

from gcgkit.guidance import ColorGuidanceAttention
from gcgkit.lessons import exercises


def test_conditions_are_asked_in_order_and_the_first_that_fails_is_told():
    asked = []

    def condition(name, least):
        return lambda answer: asked.append(name) or answer >= least

    check = exercises.Check({"Look at the first.": condition(1, 1), "Look at the second.": condition(2, 5)})
    assert check(7) and repr(check(7)) == "Right."
    asked.clear()
    assert not check(0) and asked == [1]
    assert repr(check(0)) == "Not yet. Look at the first." and repr(check(3)) == "Not yet. Look at the second."


@pytest.mark.parametrize("empty", [..., None])
def test_an_empty_attempt_waits_and_asks_nothing(empty):
    verdict = exercises.Check({"Look.": lambda answer: pytest.fail("asked")})(empty)
    assert not verdict and repr(verdict).startswith("Nothing to check yet")


def test_an_answer_that_breaks_the_check_is_wrong_and_says_why():
    verdict = exercises.Check({"Give a number.": lambda answer: answer > 0})("a word")
    assert not verdict and repr(verdict).startswith("Not yet. Give a number. (TypeError: ")

    def long(answer):
        raise RuntimeError("first line\nsecond line")

    assert repr(exercises.Check({"Look.": long})(1)) == "Not yet. Look. (RuntimeError: first line second line)"


def test_a_check_without_conditions_is_refused():
    with pytest.raises(ValueError, match="conditions is empty"):
        exercises.Check({})


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        (1.004, 1.0, True),
        (1.02, 1.0, False),
        ([1.0, 2.0], np.array([1.0, 2.005]), True),
        ([1.0, 2.0], np.array([1.0, 2.0, 3.0]), False),  # another shape
        (torch.ones(2, 3), np.ones((2, 3)), True),
        (torch.ones(2, 3), np.ones((3, 2)), False),
        ({"a": 1.0}, {"a": 1.0}, True),
        ({"a": 1.0}, {"a": 1.0, "b": 2.0}, False),
        ({"a": 1.0, "b": 2.5}, {"a": 1.0, "b": 2.0}, False),
        (float("nan"), 1.0, False),
    ],
)
def test_near_by_hand(answer, expected, right):
    assert exercises.near(expected)(answer) is right


def test_near_makes_what_it_expects_only_when_asked():
    made = []
    condition = exercises.near(lambda: made.append(1) or 2.0, tolerance=0.5)
    assert not made
    assert condition(2.4) and not condition(2.6) and made


def test_a_students_module_gets_the_trained_weights_or_says_which_do_not_fit():
    trained = ColorGuidanceAttention(latent_channels=4, features=6, hidden_dim=8).double()

    class Mine(torch.nn.Module):
        def __init__(self, features, width, channels):
            super().__init__()
            self.to_q, self.to_k = (torch.nn.Linear(features, width, bias=False) for _ in range(2))
            self.to_v = torch.nn.Linear(channels, channels, bias=False)

    built = exercises.rebuilt(Mine, trained, 4)
    for name in ("to_q", "to_k", "to_v"):
        assert torch.equal(getattr(built, name).weight, getattr(trained, name).weight)
    with pytest.raises(RuntimeError, match="to_v"):
        exercises.rebuilt(Mine, trained, 5)
