"""LDV 3.0: 365 lossless videos, the first 335 for training and the last 30 for testing. Unpacks to OUT/LDV.

The data set's own page has all of LDV 3.0 on Google Drive (--source drive, needs gdown). The first 335 videos, LDV 2.0,
are also on a server (--source server): enough to train, without the test set.

    python data_scripts/ldv.py --prepare
    python data_scripts/ldv.py --source server
"""

from __future__ import annotations

import argparse
import sys

import _command

SOURCES = {"drive": "ldv3", "server": "ldv2"}
SPLITS = {"drive": ["ldv-train", "ldv-test"], "server": ["ldv-train"]}


def main(argv: list[str] | None = None) -> int:
    parser = _command.parser(__doc__)
    parser.add_argument("--source", choices=list(SOURCES), default="drive", help="where from (drive)")
    _command.add_source_options(parser, "")
    _command.add_prepare_options(parser)
    return _command.run(_run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> None:
    try:
        _command.fetch_archives(args, [SOURCES[args.source]])
    except (FileNotFoundError, ConnectionError) as error:
        if args.source == "drive" and args.url is None:
            raise ConnectionError(f"{error} The 335 training videos can also be had with --source server.") from error
        raise
    _command.prepare_after(args, SPLITS[args.source])


if __name__ == "__main__":
    sys.exit(main())
