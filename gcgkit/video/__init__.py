"""Read and write video files and image folders, with colours and sound kept.

H.264 files are converted with the BT.709 matrix to limited range, and tagged so. Files without a tag are read as
players read them: BT.709 above 576 lines or from 1280 pixels on, BT.601 below. As in ``film``, frames come upright, and
interlaced and HDR files raise ValueError. Unlike there, frame times count as even.
"""

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path

import av
import numpy as np

from ..utils import files
from . import film_reader
from .codecs import (
    FEW_FRAMES,
    add_video,
    checked_frames,
    container_options,
    existing_path,
    open_video,
    writing_errors,
)
from .film_reader import first_frame, upright_size
from .images import IMAGE_FPS, IMAGE_SUFFIXES, image_files, read_image

__all__ = [
    "IMAGE_FPS",
    "IMAGE_SUFFIXES",
    "VIDEO_SUFFIXES",
    "Audio",
    "Video",
    "VideoInfo",
    "iterate",
    "probe",
    "read",
    "read_audio",
    "write",
]

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv")  # for `write`; `read` takes all that FFmpeg reads
_GUESSED_FRAMES = 64  # first allocation for a file without a number of frames


@dataclass(frozen=True)
class Audio:
    """Decoded sound: samples ``(channels, N)`` float32 in -1..1, their rate in Hz, and FFmpeg's name of the layout."""

    samples: np.ndarray
    rate: int
    layout: str


@dataclass(frozen=True)
class Video:
    """A decoded clip: frames ``(T, H, W, 3)`` uint8 RGB, frames per second, and the sound, if any."""

    frames: np.ndarray
    fps: float
    audio: Audio | None = None


@dataclass(frozen=True)
class VideoInfo:
    """Size, rate and length from a file's header; num_frames is None if the header has none."""

    height: int
    width: int
    fps: float
    num_frames: int | None
    has_audio: bool


def read(path, start: int = 0, stop: int | None = None, *, audio: bool = True) -> Video:
    """Read the frames start..stop-1 of a video file, or of a folder of images in natural order, with their sound.

    audio=False leaves the sound out. Raises FileNotFoundError for a missing path. Raises ValueError for a file that is
    no video, is interlaced or HDR (the message names the FFmpeg filter to use), for an empty range or folder, or for
    frames of different sizes.
    """
    path = Path(path)
    frame_source, information = iterate(path, start, stop), probe(path)
    end = information.num_frames or start + _GUESSED_FRAMES
    frames = _collect(frame_source, (end if stop is None else min(stop, end)) - start)
    if frames is None:
        raise ValueError(f"{path} has no frame in the range from {start} to {'its end' if stop is None else stop}.")
    sound = None
    if audio and information.has_audio:
        sound = read_audio(path, start / information.fps, (start + len(frames)) / information.fps)
    return Video(frames, information.fps, sound)


def iterate(path, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
    """Yield the frames start..stop-1 of a video or image folder, one at a time, ``(H, W, 3)`` uint8 RGB.

    Raises as `read` does, but yields nothing for an empty range.
    """
    return film_reader.frames(path, start, stop, whole=False)


def probe(path) -> VideoInfo:
    """Return upright size, frame rate and number of frames of a video or image folder. Errors as `read`."""
    path = existing_path(path)
    images = image_files(path)
    if images is not None:
        height, width = read_image(images[0]).shape[:2]
        return VideoInfo(height, width, IMAGE_FPS, len(images), False)
    with open_video(path) as (container, stream):
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        height, width = upright_size(first_frame(path, container, stream))
        return VideoInfo(height, width, float(rate), stream.frames or None, bool(container.streams.audio))


def read_audio(path, begin: float, end: float) -> Audio | None:
    """Read a file's sound between two times in seconds, with samples ``(channels, N)`` and silence in its gaps.

    Return None if the file has no sound that can be decoded. Raises FileNotFoundError or ValueError as `read` does.
    """
    with open_video(existing_path(path)) as (container, _):
        if not container.streams.audio:
            return None
        stream = container.streams.audio[0]
        rate, layout = stream.rate, stream.layout.name
        resampler = av.AudioResampler(format="fltp", layout=layout, rate=rate)
        length = round((end - begin) * rate)
        samples = np.zeros((stream.channels, length), np.float32)
        position = None
        for frame in container.decode(stream):
            if position is None:
                position = round(((frame.time or 0.0) - begin) * rate)
            if position >= length:
                break
            for piece in resampler.resample(frame):
                block = piece.to_ndarray()  # (channels, n)
                low, high = max(0, position), min(length, position + block.shape[1])
                if high > low:
                    samples[:, low:high] = block[:, low - position : high - position]
                position += block.shape[1]
    return None if position is None else Audio(samples, rate, layout)


def write(
    path,
    frames,
    fps: float,
    audio: Audio | None = None,
    *,
    codec: str = "libx264",
    crf: int = 16,
    preset: str = "medium",
    lossless: bool = False,
) -> None:
    """Write frames to a video file; its suffix (.mp4, .mkv, .mov) chooses the container.

    frames: RGB ``(T, H, W, 3)`` or gray ``(T, H, W)`` uint8, or any iterable of such frames, which is read one at a
    time. Lossy by default: `codec` at quality `crf` (0 best..51), yuv420p, or yuv444p for an odd side, because the
    size is kept. lossless=True keeps every RGB value: FFV1 in .mkv, x264's RGB mode elsewhere. `audio` becomes AAC
    (FLAC in a lossless .mkv). The file gets its name only when it is complete.
    Raises ValueError for bad frames, fps, suffix or codec, and OSError for a place that cannot be written to.
    """
    path = files.behind_link(path)
    if not (isinstance(fps, (int, float, Fraction)) and math.isfinite(fps) and fps > 0):
        raise ValueError(f"fps must be a positive number, not {fps!r}.")
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        raise ValueError(f"{path} must end in one of {', '.join(VIDEO_SUFFIXES)} to be written as a video.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.write_error(error, path) from None
    partial = files.partial_path(path)
    rate = Fraction(fps).limit_denominator(1001)  # 29.97… is 30000/1001 again
    try:
        with writing_errors(path), av.open(f"file:{partial}", "w", options=container_options(path)) as container:
            encode = _video_encoder(container, checked_frames(frames), rate, path, codec, crf, preset, lossless)
            add_audio = _audio_encoder(container, audio, path, lossless)
            for time in encode:
                add_audio(time)
            add_audio(math.inf)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _collect(frames: Iterator[np.ndarray], expected: int) -> np.ndarray | None:
    """Stack frames into ``(T, H, W, 3)`` without a second copy; None if there are none. `expected` is a hint."""
    clip, count = None, 0
    for frame in frames:
        if clip is None:
            clip = np.empty((max(expected, 1), *frame.shape), np.uint8)
        if count == len(clip):
            clip.resize((2 * count, *frame.shape), refcheck=False)
        clip[count] = frame
        count += 1
    if clip is not None:
        clip.resize((count, *clip.shape[1:]), refcheck=False)
    return clip


def _video_encoder(container, frames, rate, path, codec, crf, preset, lossless) -> Iterator[float]:
    """Add the stream at once, then encode one frame at each step and yield the time reached, in seconds."""
    few = list(islice(frames, FEW_FRAMES))
    stream, convert = add_video(
        container, path, few[0].shape[:2], rate,
        encoder=codec, crf=crf, preset=preset, lossless=lossless, count=len(few),
    )  # fmt: skip

    def encode() -> Iterator[float]:
        count = 0
        for array in chain(few, frames):
            frame = convert(array)
            frame.pts, frame.time_base = count, 1 / rate
            container.mux(stream.encode(frame))
            count += 1
            yield count / float(rate)
        container.mux(stream.encode(None))

    return encode()


def _audio_encoder(container, audio: Audio | None, path: Path, lossless: bool) -> Callable[[float], None]:
    """Add the sound's stream; return a function that encodes it up to a time in seconds (infinity for all)."""
    if audio is None:
        return lambda time: None
    samples = np.ascontiguousarray(audio.samples, np.float32)
    if samples.ndim != 2:
        raise ValueError(f"audio.samples must have shape (channels, N), not {samples.shape}.")
    codec = "flac" if lossless and path.suffix.lower() == ".mkv" else "aac"
    stream = container.add_stream(codec, rate=audio.rate, layout=audio.layout)
    if codec == "aac":
        stream.bit_rate = 96_000 * len(samples)
    position = 0

    def encode(time: float) -> None:
        nonlocal position
        last = math.isinf(time)
        end = samples.shape[1] if last else min(samples.shape[1], round(time * audio.rate))
        if end > position:
            block = np.ascontiguousarray(samples[:, position:end])
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=audio.layout)
            frame.rate, frame.pts, frame.time_base = audio.rate, position, Fraction(1, audio.rate)
            container.mux(stream.encode(frame))
            position = end
        if last:
            container.mux(stream.encode(None))

    return encode
