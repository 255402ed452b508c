"""Write whole films at their source's frame times, with its sound, subtitles and the rest (§4); reading is exported.

Reading: `probe`, `frames`, `times`. Writing: `write` encodes coloured frames at the source's timestamps and keeps what
else the source holds, as ``streams`` describes; `check_output` rehearses that before hours of colouring.
Lossy files are BT.709, limited range, yuv420p, or yuv444p for an odd side: the size is kept exactly.
"""

import glob
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np

from ..utils import files
from . import streams
from .codecs import (
    ENCODERS,
    add_video,
    checked_frames,
    container_options,
    existing_path,
    open_container,
    open_video,
    writing_errors,
)
from .film_reader import FilmInfo, alphas, clock_offset, frames, probe, times
from .images import image_files, read_comment, write_frames

__all__ = ["FILM_SUFFIXES", "FilmInfo", "check_output", "comments", "frames", "probe", "times", "write"]

FILM_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts")
_CRF = {"h264": 16, "hevc": 18, "vp9": 22, "av1": 24}  # visually near lossless, in each encoder's own scale
_STALE = 600  # seconds
_ROUNDING = Fraction(1, 1000)  # Matroska counts milliseconds
_REHEARSED = 64  # packets of sound and subtitles


@dataclass(frozen=True)
class _Plan:
    """The checked arguments for writing a film. offset: seconds by which the source's clock is set back."""

    out: Path
    source: Path
    info: FilmInfo
    codec: str
    crf: int
    preset: str
    lossless: bool
    pixels: str | None
    rate: Fraction
    offset: Fraction
    beside: streams.Choice
    comment: str | None

    @property
    def keeps_alpha(self) -> bool:
        """True where the source is partly transparent and the output can be: PNG, and FFV1."""
        able = _is_folder(self.out) or (self.lossless and self.out.suffix.lower() in (".mkv", ".avi"))
        return self.info.has_alpha and able


def write(out, frames: Iterable[np.ndarray], source, **options) -> Path:
    """Write frames ``(H, W, 3)`` uint8 RGB as `out`, at the times of `source` and with all that it holds beside them.

    Frames are taken one at a time; their number and size must be those of `source` (upright). `out` is a film (.mp4,
    .m4v, .mov, .mkv, .webm, .avi, .ts), or, without a suffix, a new folder of PNG images. The images have the names of
    `source` if that is a folder of images, else their numbers from 000000.png on. `out` gets its name only when it is
    complete; returns it.

    Options: codec: h264, hevc, vp9 or av1 (vp9 in .webm, else h264), of quality crf (smaller is better), in the pixel
    format pixels, such as "yuv444p"; preset: a preset of x264 and x265. lossless=True keeps every RGB value instead
    (FFV1 in .mkv and .avi, VP9 in .webm, else H.264 in RGB). FFV1 and PNG keep the source's transparency. rate: frames
    per second if `source` is a folder of images (25). sound: "auto" copies it where the container can hold it and
    encodes it elsewhere; "copy", "encode", "none". comment: a line of ASCII for the film's comment, after its own; the
    first picture of a folder carries it. A .ts has no place for it.
    Raises ValueError for a wrong number or size of frames and for sound and options that the container cannot hold,
    FileNotFoundError for a missing source, and OSError for a full disk.
    """
    plan = _plan(out, source, **options)
    ticks = _frame_ticks(plan)
    counted = _with_alpha(_exactly(frames, len(ticks), plan), plan)
    if _is_folder(plan.out):
        write_frames(counted, plan.out, _image_names(plan, len(ticks)), plan.comment)
        return Path(out)
    with _partial(plan.out) as partial:
        _write_film(partial, counted, ticks, plan)
        _check_written(partial, ticks, plan)
        os.replace(partial, plan.out)
    return Path(out)


def check_output(out, source, **options) -> tuple[str, ...]:
    """Raise the errors that `write` would raise; return sentences on sound and other streams that do not stay as is.

    Call it before hours of colouring: it writes two frames and the beginning of the sound, reads them, and leaves no
    file behind.
    """
    plan = _plan(out, source, **options)
    count = 16 if plan.out.suffix.lower() == ".ts" else 2  # FFmpeg knows a transport stream by many packets only
    ticks = _frame_ticks(plan)[:count]
    aspect, kept, notes = Fraction(1), True, list(plan.beside.notes)  # pictures have square pixels
    if not _is_folder(plan.out):
        with _partial(_in_existing_folder(plan.out)) as partial:
            _write_film(partial, _with_alpha(islice(frames(plan.source), count), plan), ticks, plan, _REHEARSED)
            _check_written(partial, ticks, plan)
            aspect, kept = probe(partial).pixel_aspect, plan.comment in comments(partial)
    if aspect != plan.info.pixel_aspect:
        way = f"its pixels are {plan.info.pixel_aspect} as wide as high; an .mp4 or .mkv in h264 keeps that"
        notes.append(f"{plan.out} will look squeezed or stretched beside {plan.source}: {way}.")
    if plan.comment and not kept:
        notes.append(f"{plan.out} cannot tell that it is finished; without the job's folder, nothing does.")
    if plan.info.bit_depth > 8:
        notes.append(f"{plan.source} has {plan.info.bit_depth} bits a colour channel, and {plan.out} will have 8.")
    if plan.info.has_alpha and not plan.keeps_alpha:
        way = "a lossless .mkv or a folder of pictures keeps it"
        notes.append(f"{plan.source} holds transparency, and {plan.out} will not: {way}.")
    return tuple(notes)


def comments(path) -> list[str]:
    """Return the lines of a film's comment, or that of a folder's first picture; none where there is none."""
    try:
        if images := image_files(existing_path(path)):
            return read_comment(images[0]).splitlines()
        with open_container(Path(path)) as container:
            return [
                line for k, text in container.metadata.items() if k.lower() == "comment" for line in text.splitlines()
            ]
    except (ValueError, OSError):
        return []


def _is_folder(out: Path) -> bool:
    return out.is_dir() or not out.suffix


def _plan(
    out,
    source,
    *,
    lossless=False,
    codec=None,
    crf=None,
    preset="medium",
    pixels=None,
    rate=None,
    sound="auto",
    comment=None,
) -> _Plan:
    """Check the arguments and return them as a plan."""
    out, info = files.behind_link(out), probe(source)
    suffix = out.suffix.lower()
    if out.exists() and out.samefile(source):
        raise ValueError(f"{out} is the source itself; write to another name.")
    if _is_folder(out):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ValueError(f"{out} exists and is not empty; name a new folder for the images.")
    elif suffix not in FILM_SUFFIXES:
        raise ValueError(f"{out} must end in one of {', '.join(FILM_SUFFIXES)}, or have no suffix for a folder of PNG.")
    if lossless and not codec is crf is pixels is None:
        raise ValueError("A lossless film has a codec of its own: leave out lossless, or codec, crf and pixel format.")
    codec = codec or ("vp9" if suffix == ".webm" else "h264")
    if codec not in ENCODERS:
        raise ValueError(f"codec must be one of {', '.join(ENCODERS)}, not {codec!r}.")
    if crf is not None and (isinstance(crf, bool) or not isinstance(crf, int) or not 0 <= crf <= 63):
        raise ValueError(f"crf must be a whole number from 0 (best) to 63, not {crf!r}.")
    if sound not in streams.SOUND:
        raise ValueError(f"sound must be one of {', '.join(streams.SOUND)}, not {sound!r}.")
    if rate is None or not info.is_folder:
        rate = info.rate
    if isinstance(rate, bool) or not isinstance(rate, (int, float, Fraction)) or not 0 < rate <= 1000:
        raise ValueError(f"rate must be a number of frames per second above 0 and up to 1000, not {rate!r}.")
    rate = Fraction(rate).limit_denominator(1001)  # 29.97… is 30000/1001 again
    offset, beside = Fraction(0), streams.Choice()
    if not info.is_folder:
        with open_video(Path(source)) as (container, stream):
            offset = clock_offset(container, stream)
        offset += times(source)[0] if suffix in streams.RESTARTING else 0
        beside = streams.choose(Path(source), out, sound, offset)
    crf = _CRF[codec] if crf is None else crf
    return _Plan(out, Path(source), info, codec, crf, preset, lossless, pixels, rate, offset, beside, comment)


def _frame_ticks(plan: _Plan) -> list[int]:
    """Return the time of every frame in ticks of `_time_base`."""
    if plan.info.is_folder:
        return list(range(len(times(plan.source))))
    seconds, base, suffix = times(plan.source), _time_base(plan), plan.out.suffix.lower()
    if suffix in streams.RESTARTING:
        seconds = [second - seconds[0] for second in seconds]
    ticks = [round(second / base) for second in seconds]
    if suffix == ".avi" and any(
        abs(tick * base - second) > base / 4 for tick, second in zip(ticks, seconds, strict=True)
    ):
        raise ValueError(f"{plan.out} cannot keep the frame times of {plan.source}, which vary: choose .mkv or .mp4.")
    return ticks


def _time_base(plan: _Plan) -> Fraction:
    return 1 / plan.rate if plan.info.is_folder or plan.out.suffix.lower() == ".avi" else plan.info.time_base


def _exactly(frames, count: int, plan: _Plan) -> Iterator[np.ndarray]:
    """Yield checked frames; raise ValueError unless there are exactly `count`, of the source's size."""
    given = 0
    size = (plan.info.height, plan.info.width)
    for frame in checked_frames(frames):
        if given == count:
            raise ValueError(f"{plan.source} has {count} frames, and more were given to be written to {plan.out}.")
        if frame.shape[:2] != size:
            raise ValueError(f"frames[{given}] has size {frame.shape[:2]}, those of {plan.source} {size}.")
        yield frame
        given += 1
    if given < count:
        raise ValueError(f"{plan.source} has {count} frames, but only {given} were given to be written to {plan.out}.")


def _with_alpha(pictures: Iterator[np.ndarray], plan: _Plan) -> Iterator[np.ndarray]:
    """Return pictures ``(H, W, 3)``, or with the source's opacity ``(H, W, 4)`` where the output keeps it."""
    if not plan.keeps_alpha:
        return pictures
    return (np.dstack(pair) for pair in zip(pictures, alphas(plan.source), strict=False))


@contextmanager
def _partial(out: Path) -> Iterator[Path]:
    """Give a temporary name beside `out`, and remove the file afterwards."""
    partial = files.partial_path(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(out)
    except OSError as error:
        raise files.write_error(error, out) from None
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def _in_existing_folder(out: Path) -> Path:
    """Return the name of `out` in the nearest folder above it that exists: what a rehearsal removes, others may use."""
    try:
        return next(folder for folder in out.absolute().parents if folder.exists()) / out.name
    except OSError as error:
        raise files.write_error(error, out) from None


def _remove_stale(out: Path) -> None:
    """Remove half-written files of killed runs: their process is gone, and they are untouched for ten minutes."""
    begin = f".{files.short_name(out.stem)}.partial-"
    for left in out.parent.glob(f"{glob.escape(begin)}*"):
        number = left.name.removeprefix(begin).removesuffix(out.suffix)
        if not left.is_file() or not number.isdecimal() or _is_running(int(number)):
            continue
        with suppress(FileNotFoundError):  # removed by another process just now
            if time.time() - left.stat().st_mtime > _STALE:
                left.unlink()


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's process, or no answer
        return True
    return True


def _write_film(
    partial: Path, pictures: Iterator[np.ndarray], ticks: list[int], plan: _Plan, most: int | None = None
) -> None:
    """Encode the pictures, and copy sound and subtitles up to each picture's time; at most `most` packets of them."""
    base = _time_base(plan)
    with _opened(partial, len(ticks), plan, most) as (container, video, convert, copy_until):
        for tick, following, picture in zip(ticks, [*ticks[1:], None], pictures, strict=True):
            frame = convert(picture)
            frame.pts, frame.time_base = tick, base
            frame.duration = round(1 / (plan.rate * base)) if following is None else following - tick
            container.mux(video.encode(frame))
            copy_until(tick * base)
        container.mux(video.encode(None))
        copy_until(None)


@contextmanager
def _opened(partial: Path, count: int, plan: _Plan, most: int | None = None):
    """Open the output, write its header, and give (container, video stream, frame converter, stream copier)."""
    suffix = plan.out.suffix.lower()
    options = container_options(plan.out) | {"avoid_negative_ts": "disabled"}
    if "movflags" in options:  # the unit of start times other than 0
        options["movie_timescale"] = str(max(1000, _time_base(plan).denominator))
    with (
        nullcontext() if plan.info.is_folder else open_container(plan.source) as source,
        writing_errors(plan.out),
        av.open(f"file:{partial}", "w", container_options=options) as container,
    ):
        video, convert = _add_film_video(container, plan, count)
        pairs = {} if source is None else streams.add(container, source, plan.source, plan.beside, suffix)
        if plan.comment:
            key = next((key for key in container.metadata if key.lower() == "comment"), "comment")
            container.metadata[key] = "\n".join(filter(None, (container.metadata.get(key), plan.comment)))
        container.start_encoding()
        copy_until = streams.copier(container, source, plan.source, pairs, plan.offset, suffix, most)
        yield container, video, convert, copy_until


def _add_film_video(container, plan: _Plan, count: int):
    size = (plan.info.height, plan.info.width)
    video, convert = add_video(
        container, plan.out, size, plan.rate, encoder=ENCODERS[plan.codec], crf=plan.crf, preset=plan.preset,
        lossless=plan.lossless, pixels=plan.pixels, alpha=plan.keeps_alpha, count=count,
    )  # fmt: skip
    video.time_base = video.codec_context.time_base = _time_base(plan)
    if plan.info.pixel_aspect != 1:
        video.codec_context.sample_aspect_ratio = plan.info.pixel_aspect
    if plan.out.suffix.lower() == ".avi":
        video.codec_context.max_b_frames = 0  # AVI cannot store frames out of order
    return video, convert


def _check_written(partial: Path, ticks: list[int], plan: _Plan) -> None:
    """Raise ValueError unless the finished file has every frame at its time, to the container's own rounding."""
    base = _time_base(plan)
    try:
        found = times(partial)
    except ValueError:
        raise ValueError(f"{plan.out} cannot be read again once it is written; write to .mkv or .mp4.") from None
    if len(found) != len(ticks):
        raise ValueError(f"{plan.out} came out with {len(found)} frames instead of {len(ticks)}; write to .mkv.")
    begin = found[0] if plan.out.suffix.lower() in streams.RESTARTING else 0
    worst = max(abs(tick * base - second + begin) for tick, second in zip(ticks, found, strict=True))
    if worst > _ROUNDING:
        raise ValueError(f"{plan.out} does not keep the frame times ({float(worst):.4f} s off); write to .mkv or .mp4.")


def _image_names(plan: _Plan, count: int) -> list[str]:
    """Return names for PNG images: those of the source's images if they stay distinct, else 000000.png …"""
    own = [f"{file.stem}.png" for file in image_files(plan.source) or ()] if plan.info.is_folder else []
    if len({name.casefold() for name in own}) == count:
        return own
    return [f"{index:06d}.png" for index in range(count)]
