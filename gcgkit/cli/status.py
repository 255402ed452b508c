"""The command ``gcgkit status``: how far the colouring of a film is."""

import argparse
from pathlib import Path

ABOUT = "Tell how far the colouring of a film is, what is left, and what went wrong."


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's argument."""
    parser.add_argument("output", metavar="OUT", type=Path, help="film that colorize writes, its job's folder, or many")


def run(args: argparse.Namespace) -> None:
    """Print a job's state. Raises FileNotFoundError for what is no job, and ValueError for a damaged one."""
    from ..films.status import report

    print(report(args.output))
