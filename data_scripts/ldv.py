"""LDV 3.0: 365 lossless videos, the first 335 for training and the last 30 for testing. Unpacks to OUT/LDV.

The data set's own page has all of LDV 3.0 on a server (--source server) and on Google Drive (--source drive, needs
gdown). The server also has the first 335 videos (--source ldv2): enough to train, without the test set.

    python data_scripts/ldv.py --prepare
    python data_scripts/ldv.py --source drive
"""

from __future__ import annotations

import argparse
import sys

import _command

SOURCES = {"server": "ldv3", "drive": "ldv3-drive", "ldv2": "ldv2"}


def main(argv: list[str] | None = None) -> int:
    parser = _command.parser(__doc__)
    parser.add_argument("--source", choices=list(SOURCES), default="server", help="where from (server)")
    _command.add_source_options(parser, "")
    _command.add_prepare_options(parser)
    return _command.run(_run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> None:
    try:
        _command.fetch_archives(args, [SOURCES[args.source]])
    except (FileNotFoundError, ConnectionError) as error:
        if args.url is None:
            others = " or ".join(f"--source {source}" for source in SOURCES if source != args.source)
            raise ConnectionError(f"{error} Other places: {others} (ldv2 has the 335 training videos).") from error
        raise
    _command.prepare_after(args, ["ldv-train"] if args.source == "ldv2" else ["ldv-train", "ldv-test"])


if __name__ == "__main__":
    sys.exit(main())
