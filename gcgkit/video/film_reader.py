"""Read whole films: their properties, their upright frames one at a time, and each frame's time (exported by `film`).

Timestamps are the file's own and exact. Files with a clock of their own (MPEG streams) start at 0. Packets give the
times without decoding in MP4, MOV, MKV, WebM and AVI with the usual codecs.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from .codecs import existing_path, ffmpeg_errors, open_video, to_rgb
from .images import IMAGE_FPS, check_images, image_files, iterate_images, read_alpha

_ONE_PACKET_ONE_FRAME = {  # frames of other codecs (packed MPEG-4 …) are counted by decoding
    "h264", "hevc", "vp8", "vp9", "av1", "mpeg1video", "mpeg2video", "mjpeg", "ffv1", "prores", "dnxhd", "png",
    "rawvideo", "huffyuv", "ffvhuff", "utvideo", "dvvideo",
}  # fmt: skip
_TIMED_CONTAINERS = {"mov", "matroska"}  # every packet has its presentation time
_INTERLACED = {2, 3, 4, 5}  # FFmpeg's field orders that are not progressive
_HDR = {16: "PQ", 18: "HLG"}  # transfers of H.273


@dataclass(frozen=True)
class FilmInfo:
    """Properties of a film. Width and height are after rotation; `rotation` is its frames' clockwise turn in degrees.

    num_frames and variable_rate are None if only decoding would show them; `times` always does. `rate` is the mean
    number of frames per second, `time_base` the unit of the file's timestamps in seconds.
    """

    path: Path
    width: int
    height: int
    num_frames: int | None
    rate: Fraction
    time_base: Fraction
    rotation: int
    bit_depth: int
    codec: str
    variable_rate: bool | None
    audio_streams: int
    subtitle_streams: int
    is_folder: bool
    pixel_aspect: Fraction = Fraction(1)
    has_alpha: bool = False


@dataclass(frozen=True)
class _Packets:
    """Presentation times of a stream's frames in ticks, in order; `keys` are the times where decoding can start."""

    ticks: tuple[int, ...]
    keys: tuple[int, ...]


def probe(path) -> FilmInfo:
    """Return the properties of a film or folder of images, from its packets and its first frame.

    Raises FileNotFoundError for a missing path, and OSError for one that may not be read. Raises ValueError for a file
    that is no film, is cut short, or must be converted first (interlaced, HDR); it names the FFmpeg filter to use.
    """
    path = existing_path(path)
    images = image_files(path)
    if images is not None:
        height, width, alpha = check_images(images)
        rate = Fraction(IMAGE_FPS)
        codec = images[0].suffix.lower().lstrip(".")
        return FilmInfo(
            path, width, height, len(images), rate, 1 / rate, 0, 8, codec, False, 0, 0, True, has_alpha=alpha
        )
    packets = _packets(path)
    with open_video(path) as (container, stream):
        rate, time_base = _rate(stream), Fraction(stream.time_base or 1 / _rate(stream))
        codec = stream.codec_context.codec.canonical_name
        sound = len(container.streams.audio)
        subtitles = len(container.streams.subtitles)
        aspect = Fraction(stream.sample_aspect_ratio or 1)
        frame = first_frame(path, container, stream)
        transposed, left_right, up_down = _orientation(frame)
        height, width = upright_size(frame)
        rotation = (270 if up_down else 90) if transposed else (180 if up_down and left_right else 0)
        if transposed and left_right == up_down:
            rotation = 90  # with a mirror
        bits = max(component.bits for component in frame.format.components)
        alpha = any(component.is_alpha for component in frame.format.components) or _alpha_decoder(stream) is not None
    count = variable = None
    if packets is not None:
        count, variable = len(packets.ticks), _is_variable(packets.ticks)
    return FilmInfo(
        path, width, height, count, rate, time_base, rotation, bits, codec, variable, sound, subtitles, False,
        1 / aspect if transposed else aspect, alpha,
    )  # fmt: skip


def frames(path, start: int = 0, stop: int | None = None, *, whole: bool = True) -> Iterator[np.ndarray]:
    """Yield the frames start..stop-1, upright, uint8 RGB ``(H, W, 3)``, one at a time; nothing for an empty range.

    Where packets give the times, decoding starts at the last keyframe before `start`: late frames come fast and exact.
    whole: read all packets first, which finds a film that is cut short. Raises as `probe` does: at once for a path that
    cannot be opened, else at the frame where the film breaks off.
    """
    path = existing_path(path)
    if start < 0 or (stop is not None and stop <= start):
        raise ValueError(f"start and stop must satisfy 0 <= start < stop, not {start} and {stop}.")
    images = image_files(path)
    if images is not None:
        return iterate_images(images[start:stop])
    return _upright(path, start, stop, _packets(path) if whole else None)


def alphas(path) -> Iterator[np.ndarray]:
    """Yield the opacity of every frame, upright, uint8 ``(H, W)``. Errors as `frames`."""
    path = existing_path(path)
    if images := image_files(path):
        yield from map(read_alpha, images)
        return
    with open_video(path) as (container, stream):
        decoder = _alpha_decoder(stream)
        packets = container.demux(stream) if decoder else ()
        decoded = (frame for packet in packets for frame in decoder.decode(packet if packet.size else None))
        for frame in decoded if decoder else decode(path, container, stream):
            yield _turn(frame.to_ndarray(format="rgba")[..., 3:], _orientation(frame))[..., 0]


def times(path) -> list[Fraction]:
    """Return the presentation time of every frame in seconds, strictly rising; k/25 for images. Errors as `probe`."""
    path = existing_path(path)
    images = image_files(path)
    if images is not None:
        return [k / Fraction(IMAGE_FPS) for k in range(len(images))]
    stat = path.stat()
    return list(_cached_times(str(path), stat.st_mtime_ns, stat.st_size))


def decode(path: Path, container, stream) -> Iterator[av.VideoFrame]:
    """Yield decoded frames; raise ValueError if decoding fails or the frames must be converted first."""
    order = stream.codec_context.field_order
    count = 0
    with ffmpeg_errors(f"{path} breaks off ({{}}); repair it first, e.g. by ffmpeg -i IN -c:v libx264 -crf 12 OUT."):
        for frame in container.decode(stream):
            if order in _INTERLACED or frame.interlaced_frame:
                raise ValueError(
                    f"{path} is interlaced (at frame {count}); convert it first, e.g. with "
                    "ffmpeg -i IN -vf bwdif -c:v libx264 -crf 12 -c:a copy OUT."
                )
            if frame.color_trc in _HDR:
                raise ValueError(
                    f"{path} is HDR ({_HDR[frame.color_trc]}); convert it first, e.g. with ffmpeg -i IN -vf "
                    "zscale=t=linear:npl=100,tonemap=hable,zscale=p=709:t=709:m=709:r=tv,format=yuv420p OUT."
                )
            count += 1
            yield frame


def first_frame(path: Path, container, stream) -> av.VideoFrame:
    """Return the first decoded frame; raise ValueError as `decode` does, and if there is none."""
    frame = next(decode(path, container, stream), None)
    if frame is None:
        raise ValueError(f"{path} holds no frame that can be decoded.")
    return frame


def upright_size(frame: av.VideoFrame) -> tuple[int, int]:
    """Return the height and width that a decoded frame has when it is upright."""
    return (frame.width, frame.height) if _orientation(frame)[0] else (frame.height, frame.width)


class Upright:
    """Turn decoded frames of one film into upright uint8 RGB ``(H, W, 3)``; ValueError if the size changes."""

    def __init__(self, path: Path):
        self._path, self._shape = path, None
        self._reformatter = VideoReformatter()  # keeps its tables from frame to frame

    def __call__(self, frame: av.VideoFrame, index: int) -> np.ndarray:
        picture = _turn(to_rgb(frame, self._reformatter), _orientation(frame))
        if self._shape is not None and picture.shape != self._shape:
            raise ValueError(f"{self._path} changes its size at frame {index}; cut it into films of one size.")
        self._shape = picture.shape
        return picture


def clock_offset(container, stream) -> Fraction:
    """Return a file's start time in seconds: 0, except for MPEG streams, whose clocks start anywhere."""
    if _formats(container) & {"mov", "matroska", "avi"} or not container.start_time:
        return Fraction(0)
    base = Fraction(stream.time_base)
    return round(Fraction(container.start_time, av.time_base) / base) * base


@lru_cache(maxsize=8)
def _cached_times(name: str, modified: int, size: int) -> tuple[Fraction, ...]:
    path = Path(name)
    packets = _packets(path)
    with open_video(path) as (container, stream):
        base, origin = Fraction(stream.time_base), clock_offset(container, stream)
        if packets is None:
            ticks = _decoded_ticks(path, container, stream)
            if "avi" in _formats(container):  # AVI's clock counts frames in stored order, not in shown order
                first = min(ticks, default=0)
                ticks = [tick - first for tick in ticks]
        else:
            ticks = packets.ticks
    if not ticks:
        raise ValueError(f"{path} holds no frame that can be decoded.")
    return tuple(tick * base - origin for tick in ticks)


def _formats(container) -> set[str]:
    return set(container.format.name.split(","))


def _rate(stream) -> Fraction:
    for rate in (stream.average_rate, stream.guessed_rate):
        if rate and 0 < rate < 100_000:
            return Fraction(rate)  # PyAV from 19 on returns its own type of 32 bits
    return Fraction(25)


def _packets(path: Path) -> _Packets | None:
    """Return times from packets only, or None if packets do not give them; cached until the file changes."""
    stat = path.stat()
    return _scan(str(path), stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=8)
def _scan(name: str, modified: int, size: int) -> _Packets | None:
    path = Path(name)
    with open_video(path) as (container, stream):
        formats, promised = _formats(container), stream.frames
        duration = container.duration
        shown, keys, count, reached, lead = [], [], 0, Fraction(0), None
        with ffmpeg_errors(_cut_short(path)):
            for packet in container.demux():
                if packet.size == 0:
                    continue
                moment = packet.dts if packet.pts is None else packet.pts
                if moment is not None:
                    reached = max(reached, (moment + (packet.duration or 0)) * Fraction(packet.time_base))
                if packet.stream_index != stream.index:
                    continue
                if packet.is_corrupt:
                    raise ValueError(_cut_short(path).format("a packet is broken"))
                count += 1
                if lead is None:
                    lead = packet.pts if packet.is_keyframe else math.inf
                if packet.is_discard:
                    continue
                shown.append(packet.dts if "avi" in formats else packet.pts)
                if packet.is_keyframe and packet.pts is not None:
                    keys.append(packet.pts)
        slots = max((tick for tick in shown if tick is not None), default=-1) + 1 if "avi" in formats else count
        _check_whole(path, formats, (slots, promised), (reached, duration), _rate(stream))
        codec = stream.codec_context.codec.canonical_name
    if not shown or codec not in _ONE_PACKET_ONE_FRAME or not formats & (_TIMED_CONTAINERS | {"avi"}):
        return None
    if None in shown or lead is None or (formats & _TIMED_CONTAINERS and min(shown) < lead):
        return None  # frames before the first keyframe may not be decodable
    ticks = _rising(shown)
    return _Packets(ticks, tuple(sorted({*ticks} & {*keys})) if formats & _TIMED_CONTAINERS else ())


def _cut_short(path: Path) -> str:
    return f"{path} is cut short or damaged ({{}}); repair it first, e.g. with ffmpeg -i IN -map 0 -c copy OUT."


def _check_whole(path, formats, counts, seconds, rate) -> None:
    """Raise ValueError if a header promises clearly more than the file holds, as (found, promised) frames or time."""
    found, promised = counts
    spare = 0 if "mov" in formats else max(2, promised // 50)  # AVI does not store frames that repeat the last
    if promised - found > spare and formats & {"mov", "avi"}:
        raise ValueError(_cut_short(path).format(f"{found} of {promised} frames are there"))
    reached, duration = seconds
    if duration and "matroska" in formats:
        promised = Fraction(duration, av.time_base)
        if promised - reached > max(Fraction(5, 2) / rate, promised / 50):
            share = f"{float(reached):.2f} of {float(promised):.2f} seconds are there"
            raise ValueError(_cut_short(path).format(share))


def _is_variable(ticks: tuple[int, ...]) -> bool:
    """Return True if times differ from an even grid by more than a tick of rounding."""
    if len(ticks) < 3:
        return False
    step = Fraction(ticks[-1] - ticks[0], len(ticks) - 1)
    return any(abs(tick - ticks[0] - k * step) > 1 for k, tick in enumerate(ticks))


def _decoded_ticks(path: Path, container, stream) -> list[int]:
    """Return the frames' times in ticks by decoding; an even grid replaces them if some are missing."""
    step = max(1, round(1 / (_rate(stream) * Fraction(stream.time_base))))
    found = [frame.pts for frame in decode(path, container, stream)]
    known = {tick for tick in found if tick is not None}
    if found and None not in found and len(found) - len(known) <= len(found) // 10:
        return list(_rising(found))
    first = min(known, default=0)
    return [first + k * step for k in range(len(found))]


def _rising(ticks: Iterable[int]) -> tuple[int, ...]:
    """Sort ticks and make them distinct: of two frames that rounding put at one tick, move the later by one."""
    rising = []
    for tick in sorted(ticks):
        rising.append(tick if not rising else max(tick, rising[-1] + 1))
    return tuple(rising)


def _upright(path: Path, start: int, stop: int | None, packets: _Packets | None) -> Iterator[np.ndarray]:
    upright, count = Upright(path), None if packets is None else len(packets.ticks)
    if count is not None and start >= count:
        return
    with open_video(path) as (container, stream):
        index, decoded = _decode_from(path, container, stream, start, packets)
        for frame in decoded:
            if index >= start:
                yield upright(frame, index)
            index += 1
            if stop is not None and index >= stop:
                return
        if count is not None and index != count:
            raise ValueError(_cut_short(path).format(f"{index} of {count} frames can be decoded"))


def _decode_from(path: Path, container, stream, start: int, packets: _Packets | None):
    """Return the first frame's index and the frames, from the last keyframe at or before `start` if possible."""
    key = None
    if packets is not None and start:
        key = max((tick for tick in packets.keys if tick <= packets.ticks[start]), default=None)
    if key is not None and key > packets.ticks[0]:
        with ffmpeg_errors(_cut_short(path)):
            container.seek(key, stream=stream)
        decoded = decode(path, container, stream)
        for frame in decoded:
            if frame.pts == key:
                return packets.ticks.index(key), chain([frame], decoded)
            if frame.pts is None or frame.pts > key:
                break  # the seek went elsewhere: decode all
        with ffmpeg_errors(_cut_short(path)):
            container.seek(packets.ticks[0], stream=stream)
    return 0, decode(path, container, stream)


def _alpha_decoder(stream) -> av.CodecContext | None:
    """Return libvpx's decoder for WebM with transparency, which FFmpeg's own decoders leave out; else None."""
    name = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(stream.codec_context.codec.canonical_name)
    return av.CodecContext.create(name, "r") if name and stream.metadata.get("alpha_mode") == "1" else None


def _orientation(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """Return a frame's turn from its display matrix: swap axes, then mirror left to right, then up to down."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return False, False, False
    a, b, _, c, d = (int(v) for v in np.frombuffer(bytes(data), np.int32)[:5])  # x' = a x + c y, y' = b x + d y
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return False, a < 0, d < 0
    return True, c < 0, b < 0


def _turn(picture: np.ndarray, orientation: tuple[bool, bool, bool]) -> np.ndarray:
    """Turn a picture ``(H, W, 3)`` by the result of `_orientation`."""
    transposed, left_right, up_down = orientation
    if transposed:
        picture = picture.transpose(1, 0, 2)  # (W, H, 3)
    if left_right:
        picture = picture[:, ::-1]
    if up_down:
        picture = picture[::-1]
    return np.ascontiguousarray(picture)
