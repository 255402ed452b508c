"""Read and write whole films at their own frame times, with every sound and subtitle stream copied (§4).

Reading: `probe`, `frames`, `times`. Writing: `write` encodes coloured frames at the source's timestamps and copies its
sound and subtitles packet by packet; `check_output` checks beforehand that the chosen file can hold them.
Lossy files are BT.709, limited range, yuv420p, or yuv444p for an odd side: the size is kept exactly.
"""

from __future__ import annotations

import glob
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from ..utils import files
from .codecs import (
    ENCODERS,
    add_video,
    checked_frames,
    container_options,
    ffmpeg_errors,
    image_files,
    open_video,
    writing_errors,
)
from .film_reader import FilmInfo, clock_offset, frames, probe, times

__all__ = ["FILM_SUFFIXES", "FilmInfo", "check_output", "frames", "probe", "times", "write"]

FILM_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")
_CRF = {"h264": 16, "hevc": 18, "vp9": 22, "av1": 24}  # visually near lossless, in each encoder's own scale
_STALE = 600  # seconds
_MP4 = (".mp4", ".m4v", ".mov")
_WEB_CODECS = ("vp9", "av1")  # the codecs that .webm holds
_ROUNDING = Fraction(1, 1000)  # Matroska counts milliseconds
_KEPT_TAGS = ("language", "title", "handler_name")
_OWN_TAGS = ("major_brand", "minor_version", "compatible_brands", "encoder", "duration")  # of the source's container


@dataclass(frozen=True)
class _Plan:
    """The checked arguments for writing a film."""

    out: Path
    source: Path
    info: FilmInfo
    codec: str
    crf: int
    preset: str
    lossless: bool
    rate: Fraction


def write(
    out,
    frames: Iterable[np.ndarray],
    source,
    *,
    lossless: bool = False,
    codec: str = "h264",
    crf: int | None = None,
    preset: str = "medium",
    rate: float | Fraction | None = None,
) -> Path:
    """Write frames ``(H, W, 3)`` uint8 RGB as `out`, at the times and with the sound and subtitles of `source`.

    Frames are taken one at a time; their number and size must be those of `source` (upright). `out` is a film (.mp4,
    .m4v, .mov, .mkv, .webm, .avi), or, without a suffix, a new folder of PNG images. The images have the names of
    `source` if that is a folder of images, else their numbers from 000000.png on. codec: h264, hevc, vp9 or av1, of
    quality `crf` (smaller is better); `preset`: a preset of x264 and x265. lossless=True keeps every RGB value instead
    (FFV1 in .mkv and .avi, VP9 in .webm, else H.264 in RGB). rate: frames per second if `source` is a folder of images
    (25). Data streams and cover pictures are left out. `out` gets its name only when it is complete; returns it.
    Raises ValueError for a wrong number or size of frames and for streams that the container cannot hold,
    FileNotFoundError for a missing source, and OSError for a full disk.
    """
    plan = _plan(out, source, lossless, codec, crf, preset, rate)
    ticks = _frame_ticks(plan)
    counted = _exactly(frames, len(ticks), plan)
    if _is_folder(plan.out):
        _write_images(plan.out, counted, _image_names(plan, len(ticks)))
        return plan.out
    with _partial(plan.out) as partial:
        _write_film(partial, counted, ticks, plan)
        _check_written(partial, ticks, plan)
        os.replace(partial, plan.out)
    return plan.out


def check_output(
    out,
    source,
    *,
    lossless: bool = False,
    codec: str = "h264",
    crf: int | None = None,
    preset: str = "medium",
    rate: float | Fraction | None = None,
) -> None:
    """Raise the errors that `write` would raise before its first frame; leave no file behind.

    Call it before hours of colouring: it opens the encoder and offers the container every stream of the source.
    """
    plan = _plan(out, source, lossless, codec, crf, preset, rate)
    ticks = _frame_ticks(plan)
    if _is_folder(plan.out):
        return
    with _partial(plan.out) as partial, _opened(partial, len(ticks), plan):
        pass


def _is_folder(out: Path) -> bool:
    return out.is_dir() or not out.suffix


def _plan(out, source, lossless, codec, crf, preset, rate) -> _Plan:
    """Check the arguments and return them as a plan."""
    out, info = Path(out), probe(source)
    suffix = out.suffix.lower()
    if out.exists() and out.samefile(source):
        raise ValueError(f"{out} is the source itself; write to another name.")
    if _is_folder(out):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ValueError(f"{out} exists and is not empty; name a new folder for the images.")
    elif suffix not in FILM_SUFFIXES:
        raise ValueError(f"{out} must end in one of {', '.join(FILM_SUFFIXES)}, or have no suffix for a folder of PNG.")
    if codec not in ENCODERS:
        raise ValueError(f"codec must be one of {', '.join(ENCODERS)}, not {codec!r}.")
    if suffix == ".webm" and not lossless and codec not in _WEB_CODECS:
        raise ValueError(f"{out} holds no {codec}: choose codec vp9 or av1 for .webm, or write to .mkv or .mp4.")
    if suffix == ".avi" and not lossless and codec != "h264":
        raise ValueError(f"{out} holds no {codec}: choose codec h264 for .avi, or write to .mkv or .mp4.")
    if crf is not None and (isinstance(crf, bool) or not isinstance(crf, int) or not 0 <= crf <= 63):
        raise ValueError(f"crf must be a whole number from 0 (best) to 63, not {crf!r}.")
    if rate is None or not info.is_folder:
        rate = info.rate
    if isinstance(rate, bool) or not isinstance(rate, (int, float, Fraction)) or not 0 < rate <= 1000:
        raise ValueError(f"rate must be a number of frames per second above 0 and up to 1000, not {rate!r}.")
    rate = Fraction(rate).limit_denominator(1001)  # 29.97… is 30000/1001 again
    return _Plan(out, Path(source), info, codec, _CRF[codec] if crf is None else crf, preset, lossless, rate)


def _frame_ticks(plan: _Plan) -> list[int]:
    """Return the time of every frame in ticks of `_time_base`."""
    if plan.info.is_folder:
        return list(range(len(times(plan.source))))
    seconds, base = times(plan.source), _time_base(plan)
    ticks = [round(second / base) for second in seconds]
    if plan.out.suffix.lower() == ".avi" and any(
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


@contextmanager
def _partial(out: Path) -> Iterator[Path]:
    """Give a temporary name beside `out`, and remove the file afterwards."""
    partial = out.with_name(f".{out.stem}.partial-{os.getpid()}{out.suffix}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(out)
    except OSError as error:
        raise files.write_error(error, out) from None
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def _remove_stale(out: Path) -> None:
    """Remove half-written files of killed runs: their process is gone, and they are untouched for ten minutes."""
    for left in out.parent.glob(f".{glob.escape(out.stem)}.partial-*"):
        number = left.name.removeprefix(f".{out.stem}.partial-").removesuffix(out.suffix)
        if not left.is_file() or not number.isdecimal() or _is_running(int(number)):
            continue
        if time.time() - left.stat().st_mtime > _STALE:
            left.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's process, or no answer
        return True
    return True


def _write_film(partial: Path, pictures: Iterator[np.ndarray], ticks: list[int], plan: _Plan) -> None:
    """Encode the pictures, and copy sound and subtitles up to each picture's time."""
    base = _time_base(plan)
    with _opened(partial, len(ticks), plan) as (container, video, convert, copy_until):
        for tick, following, picture in zip(ticks, [*ticks[1:], None], pictures, strict=True):
            frame = convert(picture)
            frame.pts, frame.time_base = tick, base
            frame.duration = round(1 / (plan.rate * base)) if following is None else following - tick
            container.mux(video.encode(frame))
            copy_until(tick * base)
        container.mux(video.encode(None))
        copy_until(None)


@contextmanager
def _opened(partial: Path, count: int, plan: _Plan):
    """Open the output, write its header, and give (container, video stream, frame converter, stream copier)."""
    with _source(plan) as (source, offset):
        streams = [] if source is None else _streams_to_copy(source, plan.out)
        options = container_options(plan.out) | {"avoid_negative_ts": "disabled"}
        if "movflags" in options:  # the unit of start times other than 0
            options["movie_timescale"] = str(max(1000, _time_base(plan).denominator))
        with writing_errors(plan.out), av.open(f"file:{partial}", "w", container_options=options) as container:
            video, convert = _add_film_video(container, plan, count)
            pairs = {stream.index: _add_copy(container, stream, plan) for stream in streams}
            if source is not None:
                _copy_tags(source, container)
            try:
                container.start_encoding()
            except av.ArgumentError as error:
                raise _unfit(plan, [s for s in streams if s.type != "attachment"], error.strerror) from None
            yield container, video, convert, _copier(container, plan, source, pairs, offset)


@contextmanager
def _source(plan: _Plan):
    """Open the source for its sound and subtitles; give it with its start time, or None for a folder."""
    if plan.info.is_folder:
        yield None, Fraction(0)
    else:
        with open_video(plan.source) as (container, stream):
            yield container, clock_offset(container, stream)


def _streams_to_copy(source, out: Path) -> list:
    """Return the streams to copy: all sound and subtitles, and into .mkv the fonts that subtitles need."""
    kinds = ("audio", "subtitle", "attachment") if out.suffix.lower() == ".mkv" else ("audio", "subtitle")
    return [stream for stream in source.streams if stream.type in kinds]


def _add_film_video(container, plan: _Plan, count: int):
    size = (plan.info.height, plan.info.width)
    video, convert = add_video(
        container, plan.out, size, plan.rate,
        encoder=ENCODERS[plan.codec], crf=plan.crf, preset=plan.preset, lossless=plan.lossless, count=count,
    )  # fmt: skip
    video.time_base = video.codec_context.time_base = _time_base(plan)
    if plan.info.pixel_aspect != 1:
        video.codec_context.sample_aspect_ratio = plan.info.pixel_aspect
    if plan.out.suffix.lower() == ".avi":
        video.codec_context.max_b_frames = 0  # AVI cannot store frames out of order
    return video, convert


def _add_copy(container, stream, plan: _Plan):
    try:
        copy = container.add_stream_from_template(stream)
    except (ValueError, av.FFmpegError):
        raise _unfit(plan, [stream]) from None
    copy.metadata.update({k: v for k, v in stream.metadata.items() if k in _KEPT_TAGS or stream.type == "attachment"})
    copy.disposition = stream.disposition
    return copy


def _unfit(plan: _Plan, streams: list, reason: str = "") -> ValueError:
    """Return a ValueError that names the streams that the container cannot hold unchanged."""
    kinds = [getattr(stream, "name", None) or "of unknown kind" for stream in streams]
    names = [f"{s.type} stream {s.index} ({kind})" for s, kind in zip(streams, kinds, strict=True)] or ["such video"]
    own, asked = plan.source.suffix.lower(), plan.out.suffix.lower()
    better = own if own in (*_MP4, ".mkv") and own != asked else ".mkv" if asked != ".mkv" else ".mp4"
    said = f" ({reason})" if reason else ""
    return ValueError(f"{plan.out} cannot hold {', '.join(names)} of {plan.source} unchanged{said}; write to {better}.")


def _copy_tags(source, container) -> None:
    container.metadata.update({k: v for k, v in source.metadata.items() if k.lower() not in _OWN_TAGS})
    if chapters := source.chapters():
        container.set_chapters(chapters)


def _copier(container, plan: _Plan, source, pairs: dict, offset: Fraction) -> Callable[[Fraction | None], None]:
    """Return a function that muxes the copied streams' packets up to a time in seconds, or all of them for None."""
    if not any(copy.type != "attachment" for copy in pairs.values()):
        return lambda second: None
    streams = [source.streams[index] for index, copy in pairs.items() if copy.type != "attachment"]
    packets = _packets(plan.source, source, streams, plan.out.suffix.lower() in _MP4)
    waiting = next(packets, None)

    def copy_until(second: Fraction | None) -> None:
        nonlocal waiting
        while waiting is not None:
            moment = waiting.dts if waiting.pts is None else waiting.pts
            if second is not None and moment * Fraction(waiting.time_base) - offset > second:
                return
            shift = round(offset / Fraction(waiting.time_base))
            waiting.pts = None if waiting.pts is None else waiting.pts - shift
            waiting.dts = None if waiting.dts is None else waiting.dts - shift
            waiting.stream = pairs[waiting.stream_index]
            container.mux(waiting)
            waiting = next(packets, None)

    return copy_until


def _packets(path: Path, source, streams: list, into_mp4: bool) -> Iterator[av.Packet]:
    """Yield the streams' packets that have a time; raise ValueError where the source breaks off.

    MP4 marks the end of each line of text by an empty one. FFmpeg adds these itself, so those of the source stay out.
    """
    with ffmpeg_errors(f"{path} breaks off in its sound or subtitles ({{}}); repair it first."):
        for packet in source.demux(streams):
            if not packet.size or (packet.pts is None and packet.dts is None):
                continue
            if not (into_mp4 and packet.stream.name == "mov_text" and bytes(packet) == b"\0\0"):
                yield packet


def _check_written(partial: Path, ticks: list[int], plan: _Plan) -> None:
    """Raise ValueError unless the finished file has every frame at its time, to the container's own rounding."""
    base, found = _time_base(plan), times(partial)
    if len(found) != len(ticks):
        raise ValueError(f"{plan.out} came out with {len(found)} frames instead of {len(ticks)}; write to .mkv.")
    worst = max(abs(tick * base - second) for tick, second in zip(ticks, found, strict=True))
    if worst > _ROUNDING:
        raise ValueError(f"{plan.out} does not keep the frame times ({float(worst):.4f} s off); write to .mkv or .mp4.")


def _image_names(plan: _Plan, count: int) -> list[str]:
    """Return names for PNG images: those of the source's images if they stay distinct, else 000000.png …"""
    own = [f"{file.stem}.png" for file in image_files(plan.source) or ()] if plan.info.is_folder else []
    if len({name.casefold() for name in own}) == count:
        return own
    return [f"{index:06d}.png" for index in range(count)]


def _write_images(out: Path, pictures: Iterator[np.ndarray], names: list[str]) -> None:
    """Write PNG images into a new folder, which gets its name when all are written."""
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise files.write_error(error, out) from None
    try:
        for name, picture in zip(names, pictures, strict=True):
            encoded = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1]
            _write_bytes(partial / name, encoded.tobytes())
        if out.is_dir():
            out.rmdir()  # empty, as checked
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_bytes(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise files.write_error(error, path) from None
