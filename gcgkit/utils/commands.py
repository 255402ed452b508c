"""What commands share: sizes as options, and errors as one sentence."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable


def size_of(text: str) -> tuple[int, int] | None:
    """``560x320`` as (320, 560): height and width, as ``working_size`` has them; None for other texts and below 8."""
    match = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", text)
    return (int(match[2]), int(match[1])) if match and min(int(match[1]), int(match[2])) >= 8 else None


def parse_size(text: str) -> tuple[int, int]:
    """``size_of`` for a command's options: argparse tells of what it cannot read."""
    size = size_of(text)
    if size is None:
        wanted = "WIDTHxHEIGHT in pixels, each from 8 to 99999, such as 560x320"
        raise argparse.ArgumentTypeError(f"must be {wanted}, not {text!r}")
    return size


def told(work: Callable[[], None]) -> int:
    """Do some work: 0 when done, 1 with one sentence on stderr for bad input or a system that refuses."""
    try:
        work()
    except (ValueError, OSError) as error:
        print("gcgkit:", " ".join(str(error).split()), file=sys.stderr)
        return 1
    return 0
