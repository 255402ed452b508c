"""Video files and image folders in and out, with colours and sound kept.

H.264 files are written in BT.709, limited range, converted with that matrix and tagged so. Files without a tag are
read as players do: BT.709 above 576 lines or from 1280 pixels on, BT.601 below. Frame times are taken as even.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from .frames import check_frame, check_frames

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv")  # what `write` offers; reading knows all of FFmpeg's
IMAGE_FPS = 25.0  # images carry no frame rate
_GUESSED_FRAMES = 64  # room made at first for a file that does not tell its number of frames
_BT709, _UNSPECIFIED, _RGB = 1, 2, 0  # as H.273 numbers colour primaries, transfers and matrices
_FULL_CHROMA = Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
_SCALING = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | _FULL_CHROMA


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
    """What a file says of itself; num_frames is None where it does not tell."""

    height: int
    width: int
    fps: float
    num_frames: int | None
    has_audio: bool


def read(path, start: int = 0, stop: int | None = None, *, audio: bool = True) -> Video:
    """Read the frames start..stop-1 of a video file, or of a folder of images in natural order, with their sound.

    audio=False leaves the sound out. Raises FileNotFoundError for a missing path; ValueError for a file that is no
    video, an empty range or folder, or images of different sizes.
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
    path = _existing(path)
    if start < 0 or (stop is not None and stop <= start):
        raise ValueError(f"start and stop must satisfy 0 <= start < stop, not {start} and {stop}.")
    images = _image_files(path)
    if images is not None:
        return _iterate_images(images[start:stop])
    return _iterate_video(path, start, stop)


def probe(path) -> VideoInfo:
    """Size, frame rate and number of frames of a video or image folder, without decoding it; errors as `read`."""
    path = _existing(path)
    images = _image_files(path)
    if images is not None:
        height, width = _read_image(images[0]).shape[:2]
        return VideoInfo(height, width, IMAGE_FPS, len(images), False)
    with _open_video(path) as (container, stream):
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        return VideoInfo(stream.height, stream.width, float(rate), stream.frames or None, bool(container.streams.audio))


def read_audio(path, begin: float, end: float) -> Audio | None:
    """Read a file's sound between two times in seconds: samples ``(channels, N)``, silence where it has none.

    None if the file has no sound or none that can be decoded. Raises FileNotFoundError or ValueError as `read` does.
    """
    with _open_video(_existing(path)) as (container, _):
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
    time. Lossy by default: `codec` at quality `crf` (0 best..51), yuv420p, or yuv444p where a side is odd, since the
    size is kept. lossless=True keeps every RGB value: FFV1 in .mkv, x264's RGB mode elsewhere. `audio` becomes AAC
    (FLAC in a lossless .mkv). The file appears under its name only when complete.
    Raises ValueError for bad frames, fps, suffix or codec.
    """
    path = Path(path)
    if not (isinstance(fps, (int, float, Fraction)) and math.isfinite(fps) and fps > 0):
        raise ValueError(f"fps must be a positive number, not {fps!r}.")
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        raise ValueError(f"{path} must end in one of {', '.join(VIDEO_SUFFIXES)} to be written as a video.")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.partial-{os.getpid()}{path.suffix}")
    rate = Fraction(fps).limit_denominator(1001)  # 29.97… is 30000/1001 again
    try:
        with _one_sentence(f"{path} cannot be written as video ({{}}); use .mp4 or .mkv with the default codec."):
            with av.open(str(partial), "w", options=_container_options(path)) as container:
                add_video = _video_encoder(container, _written_frames(frames), rate, path, codec, crf, preset, lossless)
                add_audio = _audio_encoder(container, audio, path, lossless)
                for time in add_video:
                    add_audio(time)
                add_audio(math.inf)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _collect(frames: Iterator[np.ndarray], expected: int) -> np.ndarray | None:
    """Stack frames into ``(T, H, W, 3)`` without holding them twice; None if there are none. `expected` is a hint."""
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


def _existing(path) -> Path:
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give a video file or a folder of images.")
    return path


@contextmanager
def _one_sentence(message: str):
    """Turn FFmpeg's errors into one ValueError; `message` has a place {} for what FFmpeg says."""
    try:
        yield
    except av.FFmpegError as error:
        raise ValueError(message.format(error.strerror or type(error).__name__)) from None


@contextmanager
def _open_video(path: Path):
    with _one_sentence(f"{path} cannot be read as a video ({{}})."):
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"{path} holds no video stream.")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            yield container, stream


def _iterate_video(path: Path, start: int, stop: int | None) -> Iterator[np.ndarray]:
    reformatter = VideoReformatter()  # keeps its tables from frame to frame
    with _open_video(path) as (container, stream):
        for index, frame in enumerate(container.decode(stream)):
            if stop is not None and index >= stop:
                return
            if index >= start:
                yield _to_rgb(frame, reformatter)


def _to_rgb(frame: av.VideoFrame, reformatter: VideoReformatter) -> np.ndarray:
    matrix = None  # the frame's own
    if frame.colorspace == _UNSPECIFIED:
        matrix = Colorspace.ITU709 if frame.height > 576 or frame.width >= 1280 else Colorspace.ITU601
    return reformatter.reformat(
        frame, format="rgb24", src_colorspace=matrix, dst_color_range=ColorRange.JPEG, interpolation=_SCALING
    ).to_ndarray()


def _image_files(path: Path) -> list[Path] | None:
    """The images of a folder in natural order, or one image file; None if the path is no image."""
    if path.is_file():
        return [path] if path.suffix.lower() in IMAGE_SUFFIXES else None
    files = [file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")]
    if not files:
        raise ValueError(f"{path} is a folder without images ({', '.join(IMAGE_SUFFIXES)}).")
    return sorted(files, key=_natural_order)


def _natural_order(file: Path) -> list[tuple[int, str]]:
    """Sorting key by which frame2 comes before frame10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", file.name)]


def _iterate_images(files: list[Path]) -> Iterator[np.ndarray]:
    shape = None
    for file in files:
        frame = _read_image(file)
        if shape is not None and frame.shape != shape:
            raise ValueError(f"{file} has size {frame.shape[:2]}, the images before it {shape[:2]}; all must agree.")
        shape = frame.shape
        yield frame


def _read_image(file: Path) -> np.ndarray:
    data = np.fromfile(file, np.uint8)  # cv2.imread fails on some non-ASCII paths
    image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if image is None:
        raise ValueError(f"{file} cannot be read as an image.")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _written_frames(frames) -> Iterator[np.ndarray]:
    """Checked RGB frames of an array or iterable, gray ones repeated over the channels."""
    if isinstance(frames, np.ndarray):
        frames = check_frames(frames)
    elif not isinstance(frames, Iterable):
        raise ValueError(f"frames must be an array or an iterable of frames, not {type(frames).__name__}.")
    shape = None
    for index, frame in enumerate(frames):
        frame = check_frame(frame, f"frames[{index}]")
        if shape is not None and frame.shape != shape:
            raise ValueError(f"frames[{index}] has shape {frame.shape}, those before it {shape}; all must agree.")
        shape = frame.shape
        yield np.ascontiguousarray(frame if frame.ndim == 3 else np.repeat(frame[..., None], 3, axis=-1))
    if shape is None:
        raise ValueError("frames holds no frames.")


def _container_options(path: Path) -> dict[str, str]:
    """Put the index of MP4 files first, so that browsers can start at once."""
    return {"movflags": "+faststart"} if path.suffix.lower() in (".mp4", ".mov", ".m4v") else {}


def _video_encoder(container, frames, rate, path, codec, crf, preset, lossless) -> Iterator[float]:
    """Add the stream at once, then encode a frame at each step; yields the time reached, in seconds."""
    first = next(frames)
    height, width = first.shape[:2]
    if lossless:
        in_matroska = path.suffix.lower() == ".mkv"
        codec, pixels = ("ffv1", "bgr0") if in_matroska else ("libx264rgb", "rgb24")
        options = {} if in_matroska else {"qp": "0", "preset": preset}
    else:
        pixels = "yuv444p" if height % 2 or width % 2 else "yuv420p"
        options = {"crf": str(crf), "preset": preset}
    if codec not in av.codecs_available:
        raise ValueError(f"codec {codec!r} is not part of this FFmpeg; use 'libx264' or lossless=True with .mkv.")
    stream = container.add_stream(codec, rate=rate, options=options)
    stream.width, stream.height, stream.pix_fmt = width, height, pixels
    context = stream.codec_context
    context.colorspace = _RGB if lossless else _BT709
    context.color_range = ColorRange.JPEG if lossless else ColorRange.MPEG
    context.color_primaries = context.color_trc = _BT709

    reformatter = VideoReformatter()

    def encode() -> Iterator[float]:
        count = 0
        for array in _chain(first, frames):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            if lossless:
                frame = reformatter.reformat(frame, format=pixels)
            else:
                frame = reformatter.reformat(
                    frame,
                    format=pixels,
                    dst_colorspace=Colorspace.ITU709,
                    src_color_range=ColorRange.JPEG,
                    dst_color_range=ColorRange.MPEG,
                    interpolation=_SCALING,
                )
            frame.pts, frame.time_base = count, 1 / rate
            container.mux(stream.encode(frame))
            count += 1
            yield count / float(rate)
        container.mux(stream.encode(None))

    return encode()


def _audio_encoder(container, audio: Audio | None, path: Path, lossless: bool) -> Callable[[float], None]:
    """Add the sound's stream at once; the function returned encodes up to a time in seconds, all of it at infinity."""
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


def _chain(first: np.ndarray, rest: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    yield first
    yield from rest
