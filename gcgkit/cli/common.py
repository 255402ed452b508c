"""Common code of the subcommands, each of which also runs by itself, as ``accelerate launch -m`` needs it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

from ..utils.commands import run_reporting_errors

SCREEN = {
    "formatter_class": partial(argparse.HelpFormatter, max_help_position=27, width=80),  # an option a line
    "allow_abbrev": False,
}


def run_standalone(
    name: str,
    about: str,
    add_options: Callable[[argparse.ArgumentParser], None],
    run: Callable[[argparse.Namespace], None],
    argv: list[str] | None = None,
    epilog: str | None = None,
) -> int:
    """Run a subcommand of ``gcgkit`` by itself, as ``accelerate launch -m`` needs it, and return the exit code."""
    parser = argparse.ArgumentParser(prog=name, description=about, epilog=epilog, **SCREEN)
    add_options(parser)
    args = parser.parse_args(argv)
    return run_reporting_errors(lambda: run(args))
