"""Prepared data: frames at 448x256 with a manifest and captions, the same layout for clips and photographs (§4.2).

A prepared folder holds one split of one data set and nothing else; training reads any number of them::

    <root>/davis-train/                    also davis-val, davis-test-dev, ldv-train, ldv-test, photos-train
        manifest.json                      settings and clips, see below
        captions.jsonl                     optional; one line per captioned frame, see below
        frames/<clip>/00000.png            RGB frames in order, numbered from 0 without gaps (.jpg with --format jpg)

A photograph is a clip of one frame. Gray frames are not stored: ``gcgkit.color.to_gray`` (``cv2.cvtColor``) makes them
from the RGB frames. ``manifest.json`` holds::

    {"version": 1, "name": "davis-train", "kind": "clips" | "photos", "complete": true,
     "height": 256, "width": 448, "fit": "stretch" | "cover", "format": "png" | "jpg", "source": "DAVIS 2017, train",
     "clips": [{"clip": "bear", "frames": 82, "source_size": [480, 854], "bytes": 28311552, "sha256": "..."}, ...]}

``clips`` is sorted by name. All frames of a folder have the manifest's ``height`` and ``width``. Clips are stretched to
256 and 448 as in the paper (854x480 loses 1.6 % of its width). Photographs are scaled to cover 341 and 597, a third
larger, and cut in the middle, so that crops of one photograph can be target and reference. ``sha256`` of a clip is
over its files' own SHA-256 digests, sorted by name. ``complete`` is false during a run and after a killed one; the same
command then continues. A clip's folder gets its name when all its frames are in it.

``captions.jsonl`` has one JSON object per line, in any order, and may be edited by hand::

    {"clip": "bear", "frame": 0, "caption": "a bear walking over rocks"}

A frame without a line takes the caption of the clip's nearest captioned frame, the earlier one in a tie. A clip without
captions has the empty caption. See ``gcgkit.data.captions.read_captions`` and ``nearest_caption``.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
from tqdm.auto import tqdm

from .. import video
from ..utils.files import require_space, write_error, write_text
from ..video import film
from ..video.codecs import open_video
from ..video.images import image_files
from . import footage

VERSION = 1
MANIFEST = "manifest.json"
CAPTIONS = "captions.jsonl"
PHOTO_SIZE = (footage.SIZE[0] * 4 // 3, footage.SIZE[1] * 4 // 3)  # height, width
_BYTES_PER_PIXEL = {"png": 2.3, "jpg": 0.75}  # at most, measured on DAVIS at 448x256: 1.9 to 2.3 and 0.6 to 0.7
_SAVE_EVERY = 5.0  # seconds between two writes of the manifest


@dataclass(frozen=True)
class Source:
    """A clip before preparation: its name and a folder of images, a video file, or one image (a photograph)."""

    clip: str
    path: Path


def davis_folder(data: str | Path) -> Path | None:
    """Return DAVIS's own folder, ``data`` itself or ``DAVIS`` in it; None where its frames are in neither."""
    return next((root for root in (Path(data), Path(data) / "DAVIS") if (root / "JPEGImages/480p").is_dir()), None)


def davis_sources(data: str | Path, split: str | None = None) -> list[Source]:
    """List the clips of DAVIS (`davis_folder`), or of a split in the order of ``ImageSets/2017/<split>.txt``.

    split: "train", "val" or "test-dev". Raises FileNotFoundError for a missing list or clip, with the command that
    fetches them.
    """
    root = davis_folder(data) or Path(data) / "DAVIS"
    frames, listed = root / "JPEGImages/480p", root / "ImageSets/2017" / f"{split}.txt"
    command = f"python data_scripts/davis.py --out {root.parent}"
    if split is not None and not listed.is_file():
        have = ", ".join(sorted(path.stem for path in listed.parent.glob("*.txt"))) or "none"
        raise FileNotFoundError(f"{listed} does not exist: run {command} (lists that are there: {have}).")
    names = listed.read_text().split() if split else sorted(path.name for path in frames.glob("*/"))
    if not names:
        raise FileNotFoundError(f"{frames} holds no clips: run {command}.")
    sources = [Source(name, frames / name) for name in names]
    _require(sources, command)
    return sources


def ldv_sources(data: str | Path, numbers: Iterable[str]) -> list[Source]:
    """List the videos ``LDV/<number>.mkv`` of the given numbers ("001" ...).

    Raises FileNotFoundError if any is missing, with the command that fetches them.
    """
    sources = [Source(number, Path(data) / "LDV" / f"{number}.mkv") for number in numbers]
    _require(sources, f"python data_scripts/ldv.py --out {data}")
    return sources


def photo_sources(data: str | Path) -> list[Source]:
    """List the photographs for training under ``photos/``, without those for measuring (`footage.photo_paths`)."""
    sources = [Source(path.stem, path) for path in footage.photo_paths(data)]
    if not sources:
        raise FileNotFoundError(f"{data}/photos holds no photographs: run python data_scripts/photos.py --out {data}.")
    return sources


def folder_sources(folder: str | Path) -> list[Source]:
    """List your own footage: every video file and folder of images in a folder, sorted by name."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder: give one that holds videos, or folders of images.")
    suffixes = (*video.VIDEO_SUFFIXES, ".avi", ".webm", ".mpg")
    found = [p for p in sorted(folder.iterdir()) if p.is_dir() or p.suffix.lower() in suffixes]
    found = [p for p in found if not p.name.startswith(".")]
    if not found:
        raise ValueError(f"{folder} holds neither videos ({', '.join(suffixes)}) nor folders of images.")
    return [Source(p.stem if p.is_file() else p.name, p) for p in found]


def prepare(
    sources: Sequence[Source],
    folder: str | Path,
    *,
    kind: str = "clips",
    size: tuple[int, int] | None = None,
    image_format: str = "png",
    about: str = "",
    workers: int | None = None,
) -> dict:
    """Write a prepared folder, as described above, and return its manifest.

    kind: "clips" (stretched to `footage.SIZE`) or "photos" (cut to `PHOTO_SIZE`); size: another (height, width).
    image_format: "png", lossless, or "jpg" (quality 95, full colour resolution). about: a note on the source of the
    frames. workers: threads, by default the number of cores. Finished clips are not prepared again.
    Raises ValueError for two clips of one name, a source that cannot be read or holds fewer frames than its file says,
    or a folder that was prepared with other settings; OSError for a full disk.
    """
    folder = Path(folder)
    settings = _settings(folder.name, kind, size, image_format, about)
    if len({source.clip for source in sources}) < len(sources):
        raise ValueError(f"two clips for {folder} have the same name; rename one.")
    known = _known(folder, settings)
    missing = [source for source in sources if source.clip not in known]
    require_space(folder, sum(map(_guess_frames, missing)) * _frame_bytes(settings), f"preparing {folder.name}")
    (folder / "frames").mkdir(parents=True, exist_ok=True)
    saved = time.monotonic()
    _write_manifest(folder, settings, sources, known)
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        begun = [pool.submit(_prepare_clip, source, folder / "frames", settings) for source in missing]
        try:
            for future in tqdm(as_completed(begun), desc=folder.name, total=len(begun), unit="clip", disable=None):
                record = future.result()
                known[record["clip"]] = record
                if time.monotonic() - saved > _SAVE_EVERY:
                    _write_manifest(folder, settings, sources, known)
                    saved = time.monotonic()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)  # after an error no other clip begins
            manifest = _write_manifest(folder, settings, sources, known)
    return manifest


def read_manifest(folder: str | Path, incomplete: bool = False) -> dict:
    """Return the manifest of a prepared folder.

    Raises FileNotFoundError if there is none. Raises ValueError if it cannot be read, has another version, or, unless
    ``incomplete`` is true, belongs to an unfinished preparation.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no {MANIFEST}: prepare it with python data_scripts/prepare.py.")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f"{path} cannot be read as a manifest: delete it and prepare again.") from None
    if version != VERSION:
        raise ValueError(f"{path} is of version {version}, not {VERSION}: prepare the folder again with this gcgkit.")
    if not (manifest.get("complete") or incomplete):
        raise ValueError(f"{folder} is not complete: run the command that prepared it again, to continue.")
    return manifest


def frame_paths(folder: str | Path, clip: dict, image_format: str) -> list[Path]:
    """Return the paths of a clip's frames; ``clip`` is its entry in the manifest, ``image_format`` the manifest's."""
    place = Path(folder) / "frames" / clip["clip"]
    return [place / f"{index:05d}.{image_format}" for index in range(clip["frames"])]


def verify(folder: str | Path) -> None:
    """Compare every file of a prepared folder with its manifest; raise ValueError at the first clip that differs."""
    manifest = read_manifest(folder)
    for clip in tqdm(manifest["clips"], desc=f"checking {Path(folder).name}", unit="clip", disable=None):
        try:
            found = _fingerprint(frame_paths(folder, clip, manifest["format"]))
        except FileNotFoundError as error:
            raise ValueError(f"{error.filename} is missing: delete its folder and prepare again.") from None
        if found != (clip["bytes"], clip["sha256"]):
            raise ValueError(f"{clip['clip']} in {folder} has changed: delete its folder and prepare again.")


# --- one clip ---------------------------------------------------------------------------------------------------------


def _prepare_clip(source: Source, frames: Path, settings: dict) -> dict:
    """Write one clip into a temporary folder, rename it, and return its entry for the manifest."""
    target, aside = frames / source.clip, frames / f".{source.clip}.partial"
    size, suffix = (settings["height"], settings["width"]), settings["format"]
    if not target.is_dir():
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        fit = footage.cover if settings["fit"] == "cover" else footage.stretch
        for number, frame in enumerate(film.frames(source.path)):  # which refuses a video that is cut short
            data = _encode(fit(frame, size), suffix)
            try:
                (aside / f"{number:05d}.{suffix}").write_bytes(data)
            except OSError as error:
                raise write_error(error, aside) from None
        aside.rename(target)
    paths = sorted(target.glob(f"*.{suffix}"))
    total, digest = _fingerprint(paths)
    shape = video.probe(source.path)
    return {
        "clip": source.clip,
        "frames": len(paths),
        "source_size": [shape.height, shape.width],
        "bytes": total,
        "sha256": digest,
    }


def _encode(frame: np.ndarray, suffix: str) -> bytes:
    options = []
    if suffix == "jpg":
        full = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444
        options = [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, full]
    return cv2.imencode(f".{suffix}", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), options)[1].tobytes()


def _fingerprint(paths: list[Path]) -> tuple[int, str]:
    """Return the total bytes of some files, and the SHA-256 over their SHA-256 digests, in order."""
    total, digest = 0, hashlib.sha256()
    for path in paths:
        data = path.read_bytes()
        total += len(data)
        digest.update(hashlib.sha256(data).digest())
    return total, digest.hexdigest()


# --- the folder -------------------------------------------------------------------------------------------------------


def _settings(name: str, kind: str, size: tuple[int, int] | None, image_format: str, about: str) -> dict:
    if kind not in ("clips", "photos"):
        raise ValueError(f"kind must be clips or photos, not {kind!r}.")
    if image_format not in _BYTES_PER_PIXEL:
        raise ValueError(f"image_format must be one of {', '.join(_BYTES_PER_PIXEL)}, not {image_format!r}.")
    height, width = size or (footage.SIZE if kind == "clips" else PHOTO_SIZE)
    if min(height, width) < 8:
        raise ValueError(f"size must be (height, width) of at least 8 pixels each, not {(height, width)}.")
    fit = "stretch" if kind == "clips" else "cover"
    return {
        "name": name, "kind": kind, "height": height, "width": width, "fit": fit, "format": image_format,
        "source": about,
    }  # fmt: skip


def _known(folder: Path, settings: dict) -> dict[str, dict]:
    """Return the clips that an earlier run with the same settings finished, by name."""
    if not (folder / MANIFEST).is_file():
        return {}
    manifest = read_manifest(folder, incomplete=True)
    for key in ("kind", "height", "width", "fit", "format"):
        if manifest[key] != settings[key]:
            raise ValueError(
                f"{folder} was prepared with {key} {manifest[key]}, not {settings[key]}: delete it or choose another."
            )
    return {clip["clip"]: clip for clip in manifest["clips"] if (folder / "frames" / clip["clip"]).is_dir()}


def _write_manifest(folder: Path, settings: dict, sources: Sequence[Source], known: dict[str, dict]) -> dict:
    names = sorted(source.clip for source in sources)
    clips = [known[name] for name in names if name in known]
    manifest = {"version": VERSION, **settings, "complete": len(clips) == len(names), "clips": clips}
    write_text(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return manifest


def _require(sources: list[Source], command: str) -> None:
    lost = [source.path for source in sources if not source.path.exists()]
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise FileNotFoundError(f"{lost[0]}{more} cannot be found: run {command}.")


def _guess_frames(source: Source) -> int:
    """Return the number of pictures, or of a video's frames as far as its headers tell it."""
    if images := image_files(source.path):
        return len(images)
    with open_video(source.path) as (container, stream):
        rate, duration = stream.average_rate or stream.guessed_rate, container.duration
        return stream.frames or (round(duration / av.time_base * rate) if duration and rate else 300)


def _frame_bytes(settings: dict) -> float:
    return settings["height"] * settings["width"] * _BYTES_PER_PIXEL[settings["format"]]
