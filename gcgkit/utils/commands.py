"""Helpers that all commands share: options with sizes and pairs, the device, errors as one sentence, results."""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable


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


def read_pairs(pairs: Iterable[str], example: str = "K=V", option: str = "--set") -> dict[str, str]:
    """Return an option's texts ``key=value`` as a dictionary; ValueError, with the example, for another text."""
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"{option} takes {example}, not '{pair}'.")
        found[key.strip()] = value.strip()
    return found


def read_options(pairs: Iterable[str]) -> dict:
    """Return ``key=value`` as options of the pipeline: values are JSON (``false``, ``32``) if possible, else text."""
    options: dict = read_pairs(pairs, "K=V, such as num_inference_steps=16")
    for key, value in options.items():
        try:
            options[key] = json.loads(value)
        except ValueError:
            continue
    return options


def best_device(wanted: str | None = None) -> str:
    """Return the device that is wanted, or else "cuda" if there is a GPU and "cpu" if not."""
    import torch

    return wanted or ("cuda" if torch.cuda.is_available() else "cpu")


def quiet_libraries(debug: bool = False) -> None:
    """Hide the loading bars of diffusers and transformers, and their advice unless ``debug``; errors still show."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        if not debug:
            library.utils.logging.set_verbosity_error()


def reason(error: Exception) -> str:
    """Return an error's sentence on one line; for the system's own error, one that names the path and what to do."""
    path = getattr(error, "filename", None)
    if isinstance(error, OSError) and path and error.strerror:
        return f"{path}: {error.strerror.lower()}; check the path and who may read and write there, or give another."
    return " ".join(str(error).split())


def run_reporting_errors(work: Callable[[], None]) -> int:
    """Run ``work`` and return the exit code: 0 on success, 1 after a ValueError or OSError, printed on stderr."""
    try:
        work()
    except (ValueError, OSError) as error:
        print("gcgkit:", reason(error), file=sys.stderr)
        return 1
    return 0
