"""Caption sampled frames of prepared folders into captions.jsonl; existing and edited captions stay.

BLIP is downloaded at first use, unless data_scripts/weights.py has brought it; colors needs no weights. BLIP sees the
test sets in gray, since true colours would tell it what a method has to guess. Each line says who wrote it from what.

    python data_scripts/caption.py data/prepared/davis-train
    python data_scripts/caption.py data/prepared/photos-train --by colors
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import _command


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="prepared folders")
    _command.add_caption_options(parser, "--by")
    parser.add_argument("--out", metavar="FILE", help="another file name than captions.jsonl, in each folder")
    parser.add_argument("--dry-run", action="store_true", help="say how many frames want a caption, do nothing")
    parser.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)
    return _command.run(_run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> None:
    for folder in args.folders:
        _command.caption(args, folder, args.by, name=args.out, dry_run=args.dry_run)


if __name__ == "__main__":
    sys.exit(main())
