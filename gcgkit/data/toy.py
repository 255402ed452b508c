"""A data set of a few frames in DAVIS's own layout, made of clips that install by name (§4.2).

It takes the same way as the real set, from archive to training folder, in a few seconds and without a network. A model
trained on it learns nothing about colours.
"""

import io
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from ..utils import files
from . import captions, catalog, clips, prepare

# Name in the toy set: installed clip and its first frame.
CLIPS: dict[str, tuple[str, int]] = {"rabbit": ("bigbuckbunny", 30), "skyline": ("city", 20), "street": ("bikes", 106)}
SIZE = (480, 854)  # height, width of DAVIS's frames
NAME = "davis-train"
frames_of = partial(clips.load_clip, size=SIZE)  # frames of an installed clip, cut to DAVIS's size


def write_archive(path: str | Path, frames: Mapping[str, np.ndarray]) -> Path:
    """Write clips ``{name: (T, H, W, 3)}``, RGB uint8, as a zip in the layout of DAVIS's archives; return its path.

    Raises ValueError without clips.
    """
    if not frames:
        raise ValueError("frames is empty: give at least one clip, {name: (T, H, W, 3)}.")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # JPEG does not compress further
        for name, clip in frames.items():
            for i, frame in enumerate(clip):
                data = cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))[1]
                archive.writestr(f"DAVIS/JPEGImages/480p/{name}/{i:05d}.jpg", data.tobytes())
        archive.writestr("DAVIS/ImageSets/2017/train.txt", "".join(f"{name}\n" for name in frames))
    path = Path(path)
    aside = path.with_name(f".{path.name}.partial")
    aside.write_bytes(buffer.getvalue())
    aside.replace(path)
    return path


def unpack(archive: str | Path, root: str | Path, say=print) -> list[Path]:
    """Unpack such an archive under ``root`` with `catalog.get_archive`, as the real one; return the files.

    say: gets a line on the result, with folders relative to ``root``. Errors as ``catalog.get_archive``.
    """
    report = lambda text: say(text.replace(f"{root}/", "").replace(str(root), "the data folder"))  # noqa: E731
    toy = catalog.Archive("a toy in DAVIS's layout", str(archive), Path(archive).name, "those of its clips")
    return catalog.get_archive(toy, root, say=report)


def prepared(root: str | Path, count: int = 12) -> Path:
    """Make a folder of prepared sets with the toy set and captions of its own colours, in one call.

    root: a folder to make it in. count: frames of each clip. A second call repeats no work. Errors as the functions
    above.
    """
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    folder = root / "prepared" / NAME
    if not (root / "toy.zip").is_file():
        write_archive(root / "toy.zip", {name: frames_of(*place, count) for name, place in CLIPS.items()})
    unpack(root / "toy.zip", root, say=lambda text: None)
    prepare.prepare(prepare.davis_sources(root, "train"), folder, about="installed clips")
    captions.caption_folder(folder, captions.ColorCaptions())
    return root / "prepared"


def listing(archive: str | Path) -> dict[str, str]:
    """Summarise an archive: the number and size of the files of each folder, by the folder's or list's name."""
    found: dict[str, list[int]] = {}
    with zipfile.ZipFile(archive) as opened:
        for entry in opened.infolist():
            path = Path(entry.filename)
            key = path.as_posix() if path.suffix == ".txt" else f"{path.parent.as_posix()}/*{path.suffix}"
            found.setdefault(key, []).append(entry.file_size)
    return {
        key: f"{len(sizes)} file{'s'[: len(sizes) - 1]}, {files.size_text(sum(sizes))}" for key, sizes in found.items()
    }
