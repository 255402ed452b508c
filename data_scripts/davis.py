"""DAVIS 2017 at 480p: train and val (833 MB), test-dev.

The archives unpack to OUT/DAVIS; --prepare also makes training-ready folders in OUT/prepared.

    python data_scripts/davis.py --prepare --captions blip
    python data_scripts/davis.py --parts trainval --url my/DAVIS-2017-trainval-480p.zip
"""

from __future__ import annotations

import argparse
import sys

import _command

PARTS = ("trainval", "test-dev")
SPLITS = {"trainval": ("davis-train", "davis-val"), "test-dev": ("davis-test-dev",)}


def main(argv: list[str] | None = None) -> int:
    parser = _command.parser(__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="all by default")
    _command.add_source_options(parser, ", one for each part")
    _command.add_prepare_options(parser)
    return _command.run(_run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> None:
    _command.fetch_archives(args, [f"davis-{part}" for part in args.parts])
    _command.prepare_after(args, [name for part in args.parts for name in SPLITS[part]])


if __name__ == "__main__":
    sys.exit(main())
