"""Shared parts of reading and writing video: opening files safely, colour conversion, encoders.

Films may come from untrusted places. A file is therefore opened only as a local file, never as a playlist that leads
elsewhere, and never with more than MAX_PIXELS a frame. FFmpeg's errors become one sentence.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from ..utils import files as disk
from ..utils.checks import check_frame, check_frames

MAX_PIXELS = 1 << 25  # 8K: a larger claim is an error, or meant to fill the memory
FEW_FRAMES = 8  # with fewer, x265 stores some out of order without a decoding time
ENCODERS = {"h264": "libx264", "hevc": "libx265", "vp9": "libvpx-vp9", "av1": "libsvtav1"}
_REFERRING_FORMATS = {"concat", "dash", "hls", "image2", "imf", "lavfi", "rtsp", "sdp", "tty"}  # lead elsewhere
# PyAV before 19 fails by default at a tag that is not UTF-8; from 19 on it keeps the tag's bytes.
_TAGS = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
_DEEP_GRAY = ("gray10le", "gray12le", "gray16le")
_BT709, _UNSPECIFIED, _RGB = 1, 2, 0  # as H.273 numbers colour primaries, transfers and matrices
_YUV = re.compile(r"yuv4(20|22|44)p(10le|12le)?")
_FULL_CHROMA = Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
_SCALING = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | _FULL_CHROMA


def existing_path(path) -> Path:
    """Return the path if it can be read; raise FileNotFoundError or PermissionError otherwise."""
    path = Path(path)
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{path} does not exist; give a video file or a folder of images.") from None
    except ValueError:
        raise ValueError(f"{str(path)!r} is not a file name; give a video file or a folder of images.") from None
    except OSError as error:
        raise type(error)(f"{path} cannot be read ({error.strerror}).") from None
    if not (path.is_file() or path.is_dir()):  # a pipe, say, which would wait for ever
        raise ValueError(f"{path} is neither a file nor a folder; give a video file or a folder of images.")
    if not os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0)):
        raise PermissionError(f"{path} may not be read; change its permissions, or copy it elsewhere.")
    return path


@contextmanager
def ffmpeg_errors(message: str):
    """Turn FFmpeg's errors into one ValueError; `message` has a place {} for FFmpeg's own words."""
    try:
        yield
    except av.FFmpegError as error:
        raise ValueError(message.format(error.strerror or type(error).__name__)) from None


@contextmanager
def writing_errors(out: Path) -> Iterator[None]:
    """Turn FFmpeg's errors on an output into one sentence: OSError if the system refuses, otherwise ValueError."""
    try:
        yield
    except av.FFmpegError as error:
        if isinstance(error, OSError):
            raise disk.write_error(error, out) from None
        advice = "try another codec" if out.suffix.lower() == ".mkv" else "try .mkv, or another codec"
        raise ValueError(f"{out} cannot be written as a film ({error.strerror}); {advice}.") from None


@contextmanager
def open_container(path: Path) -> Iterator[av.container.InputContainer]:
    """Open a local media file for reading; raise ValueError for any other file."""
    with ffmpeg_errors(f"{path} cannot be read as a video ({{}})."):
        options = {"protocol_whitelist": "file"}
        with av.open(f"file:{path}", container_options=options, **_TAGS) as container:
            formats = set(container.format.name.split(","))
            if formats & _REFERRING_FORMATS or container.format.name.endswith("_pipe"):
                raise ValueError(f"{path} ({container.format.name}) refers to other files; give a video file.")
            yield container


@contextmanager
def open_video(path: Path):
    """Open a media file as (container, first video stream); raise ValueError if it has no video of a sane size."""
    with open_container(path) as container:
        streams = [s for s in container.streams.video if not is_cover(s)]
        if not streams:
            raise ValueError(f"{path} holds no video stream.")
        stream = streams[0]
        if stream.codec_context is None:
            raise ValueError(f"{path} holds video of a kind that this FFmpeg cannot decode; convert it to H.264 first.")
        width, height = stream.codec_context.width, stream.codec_context.height
        if width * height > MAX_PIXELS:
            raise ValueError(f"{path} claims a size of {width}x{height}; at most {MAX_PIXELS} pixels are read.")
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        stream.thread_type = "AUTO"
        yield container, stream


def is_cover(stream) -> bool:
    """Return True for a stream that is a still picture of the film, not the film."""
    return stream.type == "video" and bool(stream.disposition & av.stream.Disposition.attached_pic)


def to_rgb(frame: av.VideoFrame, reformatter: VideoReformatter) -> np.ndarray:
    """Convert a decoded frame to uint8 RGB ``(H, W, 3)``, rounded; without a colour tag, read it as players do."""
    if frame.format.name in _DEEP_GRAY:  # swscale is exact elsewhere, but off by more than one here
        top = (1 << frame.format.components[0].bits) - 1
        gray = (frame.to_ndarray().astype(np.uint32) * 255 + top // 2) // top  # (H, W)
        return np.repeat(gray.astype(np.uint8)[..., None], 3, axis=-1)
    matrix = None  # the frame's own
    if frame.colorspace == _UNSPECIFIED:
        matrix = Colorspace.ITU709 if frame.height > 576 or frame.width >= 1280 else Colorspace.ITU601
    return reformatter.reformat(
        frame, format="rgb24", src_colorspace=matrix, dst_color_range=ColorRange.JPEG, interpolation=_SCALING
    ).to_ndarray()


def checked_frames(frames) -> Iterator[np.ndarray]:
    """Yield the frames of an array or iterable as checked RGB ``(H, W, 3)``; gray is repeated over the channels."""
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


def container_options(path: Path) -> dict[str, str]:
    """Return container options that put the index of MP4 files first, so that browsers start at once."""
    return {"movflags": "+faststart"} if path.suffix.lower() in (".mp4", ".mov", ".m4v") else {}


def add_video(
    container,
    path: Path,
    size: tuple[int, int],
    rate: Fraction,
    *,
    encoder: str,
    crf: int,
    preset: str,
    lossless: bool,
    pixels: str | None = None,
    alpha: bool = False,
    count: int = FEW_FRAMES,
) -> tuple[av.VideoStream, Callable[[np.ndarray], av.VideoFrame]]:
    """Add a video stream of `size` (height, width) to an output; return it and a converter from RGB frames.

    Lossy: BT.709, limited range, in the format pixels: yuv420p, or yuv444p for an odd side, because the size is kept
    exactly. Lossless: RGB in FFV1 for .mkv and .avi (RGBA for `alpha`), in VP9 for .webm, in x264 elsewhere. count: the
    number of frames, if it is small. Raises ValueError for an encoder that is not here, or does not fit to container or
    pixels.
    """
    height, width = size
    odd = bool(height % 2 or width % 2)
    if lossless:
        encoder, pixels, options = _lossless_encoder(path.suffix.lower(), preset)
        pixels = "bgra" if alpha else pixels
    else:
        options = _lossy_options(encoder, crf, preset)
    if encoder not in av.codecs_available:
        raise ValueError(f"codec {encoder!r} is not part of this FFmpeg; use 'libx264' or lossless=True with .mkv.")
    if not lossless:
        known = [f.name for f in av.Codec(encoder, "w").video_formats or () if _YUV.fullmatch(f.name)]
        able = [name for name in known if "444" in name or not odd]
        pixels = pixels or ("yuv444p" if odd else "yuv420p")
        if not able:
            raise ValueError(f"{encoder} needs even sides, and {path} has {width}x{height}: choose another codec.")
        if pixels not in able:
            raise ValueError(f"{path} of {width}x{height} in {encoder} takes the pixel formats {', '.join(able)}.")
    try:
        stream = container.add_stream(encoder, rate=rate, options=options)
    except ValueError:
        raise ValueError(f"{path} cannot hold {encoder}: choose another codec, or .mkv.") from None
    stream.width, stream.height, stream.pix_fmt = width, height, pixels
    context = stream.codec_context
    context.thread_type = "AUTO"  # PyAV's own choice cuts frames into slices, which makes files larger
    context.colorspace = _RGB if lossless else _BT709
    context.color_range = ColorRange.JPEG if lossless else ColorRange.MPEG
    context.color_primaries = context.color_trc = _BT709
    if count < FEW_FRAMES:
        context.max_b_frames = 0
    reformatter = VideoReformatter()  # keeps its tables from frame to frame

    def convert(array: np.ndarray) -> av.VideoFrame:
        frame = av.VideoFrame.from_ndarray(array, format="rgba" if alpha else "rgb24")
        if lossless:
            return reformatter.reformat(frame, format=pixels)
        return reformatter.reformat(
            frame,
            format=pixels,
            dst_colorspace=Colorspace.ITU709,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
            interpolation=_SCALING,
        )

    return stream, convert


def _lossless_encoder(suffix: str, preset: str) -> tuple[str, str, dict[str, str]]:
    if suffix in (".mkv", ".avi"):
        return "ffv1", "bgr0", {}
    if suffix == ".webm":
        return "libvpx-vp9", "gbrp", {"lossless": "1", "row-mt": "1"}
    return "libx264rgb", "rgb24", {"qp": "0", "preset": preset}


def _lossy_options(encoder: str, crf: int, preset: str) -> dict[str, str]:
    """Return each encoder's options for a quality `crf`; the presets' names are those of x264 and x265."""
    if encoder == "libvpx-vp9":
        return {"crf": str(crf), "b": "0", "row-mt": "1"}
    if encoder == "libsvtav1":
        os.environ.setdefault("SVT_LOG", "1")  # it prints errors only
        return {"crf": str(crf)}
    quiet = {"x265-params": "log-level=error"} if encoder == "libx265" else {}
    return {"crf": str(crf), "preset": preset, **quiet}
