"""Pictures as frames: folders of pictures in natural order, and clips as PNG frames ``00000.png, 00001.png, ...``.

Every file that looks like a picture is a frame. One that OpenCV and Pillow cannot read is refused by name, never passed
over. Numbered PNG frames are the common form of methods and compared systems: from 0 on, without gaps. A folder gets
its name only when it is complete. The file `RANDOM_WEIGHTS` marks frames that only show that a system runs.
"""

import mimetypes
import re
import shutil
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from ..utils.files import partial_path, write_error
from .codecs import MAX_PIXELS

IMAGE_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".avif", ".jp2", ".j2k", ".jpx", ".gif",
    ".pbm", ".pgm", ".ppm", ".pnm", ".ras", ".sr", ".tga", ".pcx", ".sgi",
)  # fmt: skip
IMAGE_FPS = 25.0  # images carry no frame rate
RANDOM_WEIGHTS = "RANDOM_WEIGHTS.txt"  # lies beside frames that a system made without its weights
FRAME_NAME = re.compile(r"(\d{5,})\.png")
_UNREAD = {  # pictures that are not read: cameras' raw data, linear light, layers, drawings
    ".arw", ".cin", ".cr2", ".cr3", ".dng", ".dpx", ".exr", ".hdr", ".heic", ".heif", ".jxl", ".kra", ".nef", ".orf",
    ".pfm", ".psd", ".raf", ".rw2", ".svg", ".xcf",
}  # fmt: skip


def is_image(path: Path) -> bool:
    """Return True for a file that looks like a picture, even if it cannot be read."""
    suffix = path.suffix.lower()
    kind = mimetypes.guess_type(f"a{suffix}")[0] or ""
    return suffix in IMAGE_SUFFIXES or suffix in _UNREAD or kind.startswith("image/")


def image_files(path: Path) -> list[Path] | None:
    """Return the pictures of a folder in natural order, or one picture; None for anything else.

    Raises ValueError for a folder without pictures, and for a picture of a kind that is not read.
    """
    if not path.is_dir():
        return [path] if path.suffix.lower() in IMAGE_SUFFIXES and path.suffix.lower() != ".gif" else None
    files = [file for file in path.iterdir() if is_image(file) and not file.name.startswith(".")]
    if not files:
        raise ValueError(f"{path} is a folder without images ({', '.join(IMAGE_SUFFIXES)}).")
    if unread := [file for file in files if file.suffix.lower() not in IMAGE_SUFFIXES]:
        _raise_unread(min(unread))
    return sorted(files, key=_natural_order)


def check_images(files: list[Path]) -> tuple[int, int, bool]:
    """Return height and width of pictures, and True if one is partly transparent, from their headers.

    Raises ValueError, naming the file, for one that cannot be read, has another size or holds several pictures.
    """
    first, transparent = None, False
    for file in files:
        deep = False
        try:
            with Image.open(file) as image:
                size = image.size if image.getexif().get(274, 1) < 5 else image.size[::-1]  # turned when it is read
                several = getattr(image, "n_frames", 1) > 1 and image.format not in ("JPEG", "MPO")
                transparent |= image.has_transparency_data
                deep = _is_deep(image)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            size, several = read_image(file).shape[1::-1], False
        if deep:
            _raise_unread(file)
        if several:
            raise ValueError(f"{file} holds several pictures: save them as a file each.")
        first = first or size
        if size != first:
            _raise_other_size(file, size, first)
    return first[1], first[0], transparent


def iterate_images(files: list[Path]) -> Iterator[np.ndarray]:
    """Yield images as RGB ``(H, W, 3)``; raise ValueError at the first that cannot be read or has another size."""
    shape = None
    for file in files:
        frame = read_image(file)
        if shape is not None and frame.shape != shape:
            _raise_other_size(file, frame.shape[1::-1], shape[1::-1])
        shape = frame.shape
        yield frame


def read_image(file: Path) -> np.ndarray:
    """Return an image file as RGB ``(H, W, 3)`` uint8, upright; raise ValueError for any other file."""
    try:
        data = np.fromfile(file, np.uint8)  # cv2.imread fails on some non-ASCII paths
    except OSError as error:  # a folder, or a link that leads nowhere
        raise type(error)(f"{file} cannot be read as an image ({error.strerror}).") from None
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
        if image is not None:
            return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    except cv2.error:  # more pixels than OpenCV allows
        pass
    try:
        with Image.open(file) as image:
            if image.width * image.height <= MAX_PIXELS and not _is_deep(image):
                return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        pass
    raise ValueError(f"{file} cannot be read as an image.")


def read_alpha(file: Path) -> np.ndarray:
    """Return the opacity of an image file that `read_image` reads, uint8 ``(H, W)``, upright."""
    with Image.open(file) as image:
        return np.array(ImageOps.exif_transpose(image).convert("RGBA").getchannel("A"))


def read_comment(file: Path) -> str:
    """Return the comment in a picture; "" where there is none."""
    with Image.open(file) as image:
        return str(image.info.get("Comment", ""))


def write_frames(
    frames: Iterable[np.ndarray], folder: Path, names: list[str] | None = None, comment: str | None = None
) -> Path:
    """Write RGB or RGBA frames as ``00000.png ...``; return the folder, which gets its name only when it is complete.

    names: other names, as many as frames. comment: ASCII text in the first file. An empty folder of that name is
    replaced.
    """
    aside = partial_path(folder)
    shutil.rmtree(aside, ignore_errors=True)
    try:
        _or_told(folder, lambda: aside.mkdir(parents=True))
        for number, frame in enumerate(frames):
            order = cv2.COLOR_RGBA2BGRA if frame.shape[-1] == 4 else cv2.COLOR_RGB2BGR
            data = cv2.imencode(".png", cv2.cvtColor(np.ascontiguousarray(frame), order))[1].tobytes()
            if comment and number == 0:
                chunk = b"tEXtComment\0" + comment.encode("ascii")
                length, check = (struct.pack(">I", value) for value in (len(chunk) - 4, zlib.crc32(chunk)))
                data = data[:33] + length + chunk + check + data[33:]  # after PNG's signature and header
            path = aside / (names[number] if names else f"{number:05d}.png")
            _or_told(path, lambda path=path, data=data: path.write_bytes(data))
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def check_names(folder: Path) -> int:
    """Return the number of frames ``00000.png ...`` in a folder; raise ValueError, naming it, if one is missing."""
    numbers = sorted(int(found[1]) for path in folder.iterdir() if (found := FRAME_NAME.fullmatch(path.name)))
    if not numbers:
        raise ValueError(f"{folder} holds no frames 00000.png, 00001.png, ...: name them so.")
    if numbers != list(range(len(numbers))):
        lost = next(i for i, number in enumerate(numbers) if i != number)
        raise ValueError(f"{folder} lacks the frame {lost:05d}.png: frames are numbered from 0 without gaps.")
    return len(numbers)


def _or_told(path: Path, write: Callable) -> None:
    try:
        write()
    except OSError as error:
        raise write_error(error, path) from None


def _is_deep(image: Image.Image) -> bool:
    """Return True for a TIFF of 32 bits a value, which has no white level."""
    return image.format == "TIFF" and image.mode in ("F", "I")


def _raise_unread(file: Path) -> None:
    raise ValueError(f"{file} is a picture of a kind that is not read: convert it to PNG, or move it away.")


def _raise_other_size(file: Path, own, usual) -> None:
    own, usual = (f"{width}x{height}" for width, height in (own, usual))
    raise ValueError(f"{file} is {own} and the images before it {usual}; all must have one size.")


def _natural_order(file: Path) -> list[tuple[int, str]]:
    """Return a sorting key that puts frame2 before frame10, in whichever case it is written."""
    parts = re.split(r"([0-9]+)", file.name.casefold())
    return [*((int(part), "") if part.isdecimal() else (-1, part) for part in parts), (0, file.name)]
