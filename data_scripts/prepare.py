"""Make training-ready folders (OUT/prepared/NAME) from the data that the other scripts have fetched into OUT.

gcgkit/data/prepare.py describes such a folder. Your own videos or folders of images: --clips FOLDER and a NAME.

    python data_scripts/prepare.py davis-train davis-val --captions blip
    python data_scripts/prepare.py mine --clips my/videos
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import _command


def main(argv: list[str] | None = None) -> int:
    parser = _command.parser(__doc__)
    parser.add_argument("names", nargs="+", metavar="NAME", help=f"of {', '.join(_command.SETS)}, or your own")
    parser.add_argument("--clips", type=Path, metavar="FOLDER", help="your own footage; installed: the demo's clips")
    parser.add_argument("--verify", action="store_true", help="compare prepared files with their manifest instead")
    _command.add_prepare_options(parser, flag=False)
    return _command.run(_run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> None:
    if args.verify:
        from gcgkit.data import prepare as preparation

        for name in args.names:
            preparation.verify(args.out / "prepared" / name)
            print(f"{args.out / 'prepared' / name} is as its manifest says.")
        return
    if args.clips is not None and len(args.names) != 1:
        raise ValueError("--clips makes one folder: give one NAME.")
    _command.prepare_sets(args, args.names, clips=args.clips)


if __name__ == "__main__":
    sys.exit(main())
