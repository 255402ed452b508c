"""Exercises of the notebooks: checks that accept an attempt, or say what to look at.

An exercise has four cells: the question, an empty attempt ``answer_1 = ...``, a folded check, and a folded solution
that fills in the same name and is checked in the same way.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch

from ..utils.checks import to_numpy


class Verdict:
    """The result of a check. It is true only if the answer is right; a notebook shows its sentence."""

    def __init__(self, right: bool, text: str):
        self.right, self.text = right, text

    def __bool__(self) -> bool:
        return self.right

    def __repr__(self) -> str:
        return self.text


class Check:
    """Conditions of a right answer, asked in order until one fails.

    Args:
        conditions: ``{what to look at: condition}``; a condition takes the answer and returns True if it holds. It is
            asked only about answers for which those before it hold, so a later one may rely on an earlier.
    """

    def __init__(self, conditions: Mapping[str, Callable[[object], bool]]):
        if not conditions:
            raise ValueError("conditions is empty: give at least one {what to look at: condition}.")
        self.conditions = dict(conditions)

    def __call__(self, answer: object) -> Verdict:
        """Check an answer; ``...`` and None are attempts not made yet. An error in a condition is a wrong answer."""
        if answer is ... or answer is None:
            return Verdict(False, "Nothing to check yet: put your answer into the cell above, and run both again.")
        for hint, condition in self.conditions.items():
            try:
                holds = bool(condition(answer))
            except Exception as error:  # whatever a wrong answer may do
                reason = " ".join(str(error).split())[:300] or "no message"
                return Verdict(False, f"Not yet. {hint} ({type(error).__name__}: {reason})")
            if not holds:
                return Verdict(False, f"Not yet. {hint}")
        return Verdict(True, "Right.")


def near(expected, tolerance: float = 0.01) -> Callable[[object], bool]:
    """Return a condition: every number of the answer is within ``tolerance`` of the expected ones, of the same shape.

    expected: numbers, an array, a tensor, ``{name: number}``, or a function that makes them when first asked.
    """

    def holds(answer) -> bool:
        wanted = expected() if callable(expected) else expected
        if isinstance(wanted, Mapping):
            return set(answer) == set(wanted) and all(holds_each(answer[name], wanted[name]) for name in wanted)
        return holds_each(answer, wanted)

    def holds_each(answer, wanted) -> bool:
        answer, wanted = (np.asarray(to_numpy(x), float) for x in (answer, wanted))  # bytes would wrap around
        return answer.shape == wanted.shape and bool(np.all(np.abs(answer - wanted) <= tolerance))

    return holds


def rebuilt(kind: type[torch.nn.Module], trained: torch.nn.Module, channels: int) -> torch.nn.Module:
    """Return a student's module ``kind(features, width, channels)`` with the weights of a trained attention.

    Raises RuntimeError, as PyTorch does, for layers of other names or sizes.
    """
    module = kind(trained.to_q.in_features, trained.to_q.out_features, channels)
    module = module.to(trained.to_q.weight)  # device and precision
    module.load_state_dict(trained.state_dict())
    return module
