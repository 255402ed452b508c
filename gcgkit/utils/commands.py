"""Helpers that all commands share: sizes as options, and errors as one sentence."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable


def read_size(text: str) -> tuple[int, int] | None:
    """Return ``560x320`` as (320, 560), the height and width that ``working_size`` takes.

    Return None for any other text and for sides below 8 pixels.
    """
    match = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", text)
    return (int(match[2]), int(match[1])) if match and min(int(match[1]), int(match[2])) >= 8 else None


def parse_size(text: str) -> tuple[int, int]:
    """Return the height and width of a command's option; raise argparse's error for a text that is no size."""
    size = read_size(text)
    if size is None:
        wanted = "WIDTHxHEIGHT in pixels, each from 8 to 99999, such as 560x320"
        raise argparse.ArgumentTypeError(f"must be {wanted}, not {text!r}")
    return size


def run_reporting_errors(work: Callable[[], None]) -> int:
    """Run ``work`` and return the exit code: 0 on success, 1 after a ValueError or OSError, printed on stderr."""
    try:
        work()
    except (ValueError, OSError) as error:
        print("gcgkit:", " ".join(str(error).split()), file=sys.stderr)
        return 1
    return 0
