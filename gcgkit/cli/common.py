"""The form of every subcommand's ``--help``."""

import argparse
from functools import partial

SCREEN = {
    "formatter_class": partial(argparse.HelpFormatter, max_help_position=27, width=80),  # an option a line
    "allow_abbrev": False,
}
