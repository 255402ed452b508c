"""The photographs that the mini model trains on: BSDS500 train and test (400), one sample per ImageNet class (950).

ImageNet's samples are made smaller (short side 320); the 50 that are gray or nearly so, splits/imagenet-left-out.txt,
are left out. They land in OUT/photos/bsds and OUT/photos/imagenet.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import _command

PARTS = ("bsds", "imagenet")


def main(argv: list[str] | None = None) -> int:
    parser = _command.parser(__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="all by default")
    _command.add_source_options(parser, ", one for each part")
    _command.add_prepare_options(parser)
    return _command.run(_run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> None:
    _command.fetch_archives(args, list(args.parts))
    if "imagenet" in args.parts and not args.dry_run:
        _shrink(args)
    _command.prepare_after(args, ["photos-train"])


def _shrink(args: argparse.Namespace) -> None:
    from tqdm.auto import tqdm

    from gcgkit.data import catalog
    from gcgkit.utils import archives

    archive, target = catalog.ARCHIVES["imagenet"], args.out / "photos" / "imagenet"
    left_out = set(_command.split("imagenet-left-out"))
    photos = [p for p in archives.extracted(archive.file, args.out / archive.folder) or [] if p.stem not in left_out]
    target.mkdir(parents=True, exist_ok=True)
    for photo in tqdm(photos, desc="photos/imagenet", disable=None):
        small = target / f"{photo.stem}.jpg"
        if not small.exists():
            shrink(photo, small)
    print(f"{len(photos)} photographs are in {target}.")


def shrink(source: Path, target: Path, short_side: int = 320, quality: int = 90) -> None:
    """Write a photograph as JPEG, reduced to a short side of at most ``short_side`` pixels, never enlarged."""
    import cv2

    from gcgkit.data.footage import read_image

    image = read_image(source)
    scale = short_side / min(image.shape[:2])
    if scale < 1:
        height, width = (round(side * scale) for side in image.shape[:2])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    code, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not code:
        raise ValueError(f"{source} cannot be written as JPEG.")
    aside = target.with_name(f".{target.name}.partial")
    aside.write_bytes(data.tobytes())
    os.replace(aside, target)


if __name__ == "__main__":
    sys.exit(main())
