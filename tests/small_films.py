"""Small films made with PyAV, stream by stream, for the tests of `gcgkit.video.film` and `gcgkit.films.shots`."""

from fractions import Fraction

import av
import numpy as np

NTSC = Fraction(24000, 1001)
SOUND_RATE = 48000


def pictures(count=8, size=(48, 64), seed=0):
    """Smooth pictures ``(T, H, W, 3)`` of middling colours that move, each unlike the others, without symmetry."""
    height, width = size
    rows, columns = np.mgrid[:height, :width]
    waves = np.random.default_rng(seed).uniform(0.5, 2.0, (3, 2))
    clip = np.empty((count, height, width, 3), np.uint8)
    for t in range(count):
        for c, (a, b) in enumerate(waves):
            phase = 2 * np.pi * (a * rows / height + b * columns / width + t / 11) + c
            clip[t, ..., c] = np.round(120 + 4 * t + 40 * np.sin(phase))
    clip[:, : height // 4, : width // 4] = (200, 90, 60)  # a corner that tells which way is up
    return clip


def make(
    path, encoder="libx264", pixels="yuv420p", clip=None, *, rate=NTSC, ticks=None, base=None, sound=(), subtitles=None,
    rotation=None, options=None, matrix=1, prepare=lambda stream: None,
):  # fmt: skip
    """Write a film of the frames `clip`; `ticks` are times in units of `base`, `sound` names an encoder per track."""
    clip = pictures() if clip is None else clip
    base = 1 / rate if base is None else base
    ticks = range(len(clip)) if ticks is None else ticks
    steady = {"avoid_negative_ts": "disabled"} if str(path).endswith(".avi") else {}  # MP3 begins before 0
    with av.open(str(path), "w", container_options=steady) as container:
        video = container.add_stream(encoder, rate=rate, options=options or {})
        video.height, video.width, video.pix_fmt = *clip.shape[1:3], pixels
        video.codec_context.time_base = base
        video.codec_context.colorspace, video.codec_context.color_range = matrix, 2 if "j" in pixels else 1
        if encoder in ("mpeg2video", "mpeg4", "mjpeg"):
            video.bit_rate = 4_000_000
        if rotation is not None:
            video.set_display_rotation(rotation)
        prepare(video)
        tracks = [container.add_stream(name, rate=SOUND_RATE, layout="mono") for name in sound]
        for number, track in enumerate(tracks):
            track.metadata["language"] = ("eng", "deu")[number]
        titles = None
        if subtitles:
            titles = container.add_mux_stream(subtitles)
            titles.time_base = Fraction(1, 1000)
        for tick, picture in zip(ticks, clip, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
                format=pixels, dst_colorspace=matrix, src_color_range=2, dst_color_range=2 if "j" in pixels else 1
            )
            frame.pts, frame.time_base = tick, base
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        for number, track in enumerate(tracks):
            _add_noise(container, track, len(clip) / float(rate), number)
        if titles is not None:
            for begin, text in ((40, b"First line"), (160, "Zweite Zeile, äöü".encode())):
                _add_title(container, titles, begin, text, subtitles)
    return clip


def packets(path, kind):
    """Per stream of a kind ("audio", "subtitles"): (time in seconds, bytes) of every packet, read with PyAV alone."""
    with av.open(str(path)) as container:
        streams = list(getattr(container.streams, kind))
        found = {stream.index: [] for stream in streams}
        for packet in container.demux(streams) if streams else ():
            if packet.size:
                found[packet.stream_index].append((packet.pts * packet.time_base, bytes(packet)))
    return list(found.values())


def _add_noise(container, track, seconds, seed):
    rng = np.random.default_rng(seed)
    kind = track.codec_context.format.name
    block = track.codec_context.frame_size or 1024
    for position in range(0, round(seconds * SOUND_RATE), block):
        samples = rng.normal(0, 0.1, (1, block)).clip(-1, 1)
        if "flt" in kind:
            samples = samples.astype(np.float32)
        else:
            samples = (samples * (2**31 - 1)).astype(np.int32) >> (0 if "s32" in kind else 16)
            samples = samples.astype(np.int32 if "s32" in kind else np.int16)
        frame = av.AudioFrame.from_ndarray(samples, format=kind, layout="mono")
        frame.rate, frame.pts, frame.time_base = SOUND_RATE, position, Fraction(1, SOUND_RATE)
        container.mux(track.encode(frame))
    container.mux(track.encode(None))


def _add_title(container, stream, begin, text, codec):
    packet = av.Packet(len(text).to_bytes(2, "big") + text if codec == "mov_text" else text)
    packet.pts = packet.dts = begin
    packet.duration, packet.time_base, packet.stream = 100, Fraction(1, 1000), stream
    container.mux(packet)
