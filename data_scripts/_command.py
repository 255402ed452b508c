"""Common code of this folder's scripts: their shared options, and errors as one sentence."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the scripts run from a clone that is not installed, too

SPLITS = Path(__file__).parent / "splits"
SETS = ("davis-train", "davis-val", "davis-test-dev", "ldv-train", "ldv-test", "photos-train")


def parser(description: str, out: str = "data") -> argparse.ArgumentParser:
    """Return a parser with the options that every script takes."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, default=Path(out), metavar="FOLDER", help=f"where to put it ({out})")
    made.add_argument("--dry-run", action="store_true", help="say what would be done and how big it is, do nothing")
    made.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)
    return made


def add_source_options(made: argparse.ArgumentParser, count: str) -> None:
    """Add ``--url``, ``--sha256`` and ``--remove-archives``."""
    made.add_argument(
        "--url", nargs="+", metavar="URL", help=f"mirror or local file instead of the known address{count}"
    )
    made.add_argument(
        "--sha256", nargs="+", metavar="HEX", help=f"expected digest{count} instead of the known one; none accepts any"
    )
    made.add_argument("--remove-archives", action="store_true", help="delete an archive once it is unpacked")


def paired(parts: list[str], values: list[str] | None, option: str) -> dict[str, str]:
    """Assign an option's values to the parts, one for each; ValueError for another number."""
    if values is None:
        return {}
    if len(values) != len(parts):
        raise ValueError(f"{option} needs as many values as there are parts ({', '.join(parts)}), not {len(values)}.")
    return dict(zip(parts, values, strict=True))


def fetch_archives(args: argparse.Namespace, parts: list[str]) -> None:
    """Fetch and unpack some of ``gcgkit.data.catalog.ARCHIVES``, or describe it for a dry run."""
    from gcgkit.data import catalog as sources

    urls, digests = paired(parts, args.url, "--url"), paired(parts, args.sha256, "--sha256")
    for part in parts:
        archive = sources.ARCHIVES[part]
        if args.dry_run:
            print(sources.describe(archive, args.out, urls.get(part)))
            continue
        digest = digests.get(part, sources.KNOWN)
        sources.get_archive(
            archive,
            args.out,
            url=urls.get(part),
            sha256=None if digest == "none" else digest,
            keep=not args.remove_archives,
        )


def add_prepare_options(made: argparse.ArgumentParser, flag: bool = True) -> None:
    """Add the options of prepared folders, with ``--prepare`` itself if the script's first purpose is fetching."""
    if flag:
        made.add_argument("--prepare", action="store_true", help="go on to OUT/prepared, ready for training")
    made.add_argument("--format", choices=("png", "jpg"), default="png", help="of prepared frames (png)")
    made.add_argument("--size", nargs=2, type=int, metavar=("HEIGHT", "WIDTH"), help="of prepared frames (256 448)")
    made.add_argument("--show", type=Path, metavar="PNG", help="picture of a training batch of what was prepared")
    made.add_argument("--workers", type=int, help="threads that prepare (as many as cores)")
    add_caption_options(made, "--captions")


def add_caption_options(made: argparse.ArgumentParser, option: str) -> None:
    """Add the options that choose how captions are written."""
    mandatory = option == "--by"
    choices = ("blip", "colors") if mandatory else ("none", "blip", "colors")
    made.add_argument(option, choices=choices, default=choices[0], help=f"who captions frames ({choices[0]})")
    made.add_argument("--every", type=int, default=30, metavar="N", help="caption every N-th frame (30)")
    made.add_argument("--batch", type=int, default=16, help="frames that BLIP sees at once (16)")
    made.add_argument("--model", help="BLIP's hub id or folder")
    made.add_argument("--revision", help="of the hub id")
    made.add_argument("--device", help="where BLIP runs (CUDA if there is one)")
    made.set_defaults(gray=None, strip_colors=False)
    if mandatory:
        shown = "show gray frames (BLIP's default for test sets) or true colours (for others)"
        made.add_argument("--gray", action=argparse.BooleanOptionalAction, help=shown)
        made.add_argument("--strip-colors", action="store_true", help="remove colour words from the captions")


def prepare_after(args: argparse.Namespace, names: list[str]) -> None:
    """Prepare some sets if ``--prepare`` was given."""
    if args.prepare:
        prepare_sets(args, names)


def prepare_sets(args: argparse.Namespace, names: list[str], clips: Path | None = None) -> None:
    """Prepare sets by name, or your own footage, and caption them if asked."""
    from gcgkit.data import prepare as preparation

    for name in names:
        folder = args.out / "prepared" / name
        if args.dry_run and not _can_read(args.out, name, clips):
            print(f"{folder}: would be prepared once its data set is there.")
            continue
        sources, about = _sources(args.out, name, clips)
        if args.dry_run:
            print(f"{folder}: would hold {len(sources)} clips.")
            continue
        manifest = preparation.prepare(
            sources,
            folder,
            kind="photos" if name.startswith("photos") and clips is None else "clips",
            size=tuple(args.size) if args.size else None,
            image_format=args.format,
            about=about,
            workers=args.workers,
        )
        frames = sum(clip["frames"] for clip in manifest["clips"])
        print(f"{folder}: {len(manifest['clips'])} clips, {frames} frames of {manifest['width']}x{manifest['height']}.")
        if args.captions != "none":
            caption(args, folder, args.captions)
    if args.show and not args.dry_run:
        from gcgkit.training import show_batch

        height, width = args.size or (256, 448)
        values = {"data.sets": ",".join(names), "data.height": height, "data.width": width}
        changes = [text for key, value in values.items() for text in ("--set", f"{key}={value}")]
        show_batch.main([str(args.out / "prepared"), *changes, "--out", str(args.show)])


def caption(args, folder: Path, by: str, name: str | None = None, dry_run: bool = False) -> None:
    """Caption a prepared folder: BLIP sees a test set's frames in gray, unless the command says otherwise."""
    from gcgkit.data import captions, catalog
    from gcgkit.data import prepare as preparation

    path, split = folder / (name or preparation.CAPTIONS), catalog.SPLITS.get(folder.name)
    gray = args.gray if args.gray is not None else by == "blip" and split is not None and split.used == "testing"
    missing = len(captions.missing_captions(folder, every=args.every, path=path))
    seen = f"{by} sees them in {'gray' if gray else 'true colours'}"
    if dry_run:
        print(f"{path}: {missing} frames want a caption; {seen}.")
        return
    if missing:
        blip = captions.Blip(args.model or captions.BLIP, args.revision, args.device)
        captioner = blip if by == "blip" else captions.ColorCaptions()
        options = {"every": args.every, "batch": args.batch, "gray": gray, "strip_colors": args.strip_colors}
        captions.caption_folder(folder, captioner, path=path, **options)
    print(f"{path}: {missing} captions were added; {seen}.")


def _sources(data: Path, name: str, clips: Path | None):
    """Return the clips of a set by its name, and a note on their origin."""
    from gcgkit.data import prepare as preparation

    if clips == Path("installed"):
        from gcgkit.data.clips import NAMES, find

        return [preparation.Source(name, find(name)) for name in NAMES], "installed clips"
    if clips is not None:
        return preparation.folder_sources(clips), str(clips)
    if name not in SETS:
        raise ValueError(f"there is no set called {name!r}: give some of {', '.join(SETS)}, or --clips FOLDER.")
    kind, _, part = name.partition("-")
    if kind == "davis":
        return preparation.davis_sources(data, part), f"DAVIS 2017, {part}"
    if kind == "ldv":
        return preparation.ldv_sources(data, split(name)), f"LDV 3.0, {part}"
    return preparation.photo_sources(data), "BSDS500 and ImageNet samples"


def _can_read(data: Path, name: str, clips: Path | None) -> bool:
    try:
        return bool(_sources(data, name, clips))
    except FileNotFoundError:
        return False


def split(name: str) -> list[str]:
    """Return the lines of ``splits/<name>.txt``."""
    return (SPLITS / f"{name}.txt").read_text(encoding="utf-8").split()


def run(main: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> int:
    """Run a script's main function; return 0 when done, 1 with one sentence for an error, 130 when interrupted."""
    try:
        main(args)
        return 0
    except KeyboardInterrupt:
        print("interrupted; run again to continue.", file=sys.stderr)
        return 130
    except Exception as error:
        if args.debug:
            raise
        known = isinstance(error, (ValueError, OSError))
        text = " ".join(str(error).split())
        print(text if known else f"unexpected {type(error).__name__}: {text} (--debug shows where)", file=sys.stderr)
        return 1
