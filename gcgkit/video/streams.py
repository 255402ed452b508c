"""All that a film holds beside its pictures: sound, subtitles, cover art, timecode, chapters, fonts and data.

No table says here what a container holds. Each stream is tried: its first packets are written to a small file of the
output's kind and read back. A stream that comes back whole is copied. Other sound and text subtitles are encoded anew.
The rest is left out. `Choice.notes` says so before the first frame is coloured.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import lru_cache
from itertools import islice
from pathlib import Path

import av

from .codecs import ffmpeg_errors, is_cover, open_container

SOUND = ("auto", "copy", "encode", "none")
RESTARTING = (".avi", ".ts")  # the clocks of these containers begin with the first picture
_SOUND_ENCODERS = {".mkv": "flac", ".webm": "libopus", ".avi": "pcm_s16le"}  # else AAC
_TEXT_ENCODERS = {".mkv": "subrip", ".webm": "webvtt"}  # else mov_text
_TEXT_CODECS = {"ass", "subrip", "text", "webvtt", "mov_text", "microdvd", "sami"}
_COVERS = {"mjpeg": ("cover.jpg", "image/jpeg"), "png": ("cover.png", "image/png")}
_OWN_TAGS = ("major_brand", "minor_version", "compatible_brands", "encoder", "software", "duration", "timecode")
_TRIED = 6  # packets of a stream
_SLACK = Fraction(2, 1000)  # seconds: Matroska counts milliseconds
_DELAY = Fraction(1, 5)  # seconds: the first packets of some codecs give no sound, and encoders prepend some
_FAILED = (ValueError, av.FFmpegError)  # PyAV's and FFmpeg's refusals


@dataclass(frozen=True)
class Choice:
    """The treatment of each stream, ``{index: encoder}``, None to copy it; what else is kept; notes for the user."""

    streams: dict[int, str | None] = field(default_factory=dict)
    timecode: str | None = None
    chapters: tuple = ()
    notes: tuple[str, ...] = ()


def choose(source: Path, out: Path, sound: str, offset: Fraction) -> Choice:
    """Find out what `out` can hold of `source`, whose clock is set back by `offset` seconds.

    sound: "auto" copies it where the container can hold it and encodes it elsewhere, "copy" and "encode" do one of the
    two, "none" leaves it out. Raises ValueError for sound for which there is no way, and says what to do.
    """
    stat = source.stat()
    return _choose(source, (stat.st_mtime_ns, stat.st_size), out, sound, offset)


@lru_cache(maxsize=32)
def _choose(source: Path, state: tuple[int, int], out: Path, sound: str, offset: Fraction) -> Choice:
    suffix, chosen, encoded, lost = out.suffix.lower(), {}, [], []
    with open_container(source) as container:
        pictures = next((s.index for s in container.streams.video if not is_cover(s)), None)
        for stream in container.streams:
            kind = "cover picture" if is_cover(stream) else stream.type
            if stream.index == pictures or (kind == "audio" and sound == "none") or _is_repeated(source, stream):
                continue
            what = f"{kind} stream {stream.index} ({_codec(stream) or 'of unknown kind'})"
            ways = [] if kind == "video" or not suffix else _ways(stream, suffix, sound)
            trials = ((way, _comes_back(source, stream.index, way, suffix, offset)) for way in ways)
            way, tags = next((trial for trial in trials if trial[1] is not None), ("", {}))
            if way != "":
                chosen[stream.index] = way
                encoded += [f"{what} as {way}"] if way else []
                lost += _left_out(_shown_tags(stream), tags, f" of {what}")
            elif kind == "audio" and suffix:
                raise _no_way(source, out, what, sound)
            else:
                lost.append(what)
        wished = Choice({}, _timecode(container), tuple(container.chapters()))
        kept, *tags = _try_tags(source, container, wished, suffix) if suffix else (Choice(), {}, {})
        lost += _left_out(_film_tags(container), tags[0], " of the film")
        lost += _left_out(_shown_tags(container.streams[pictures]), tags[1], " of its pictures")
    lost += ["the timecode"] if wished.timecode and not kept.timecode else []
    lost += ["the chapters"] if wished.chapters and not kept.chapters else []
    notes = [f"{out} cannot hold these unchanged, so they are encoded: {', '.join(encoded)}."] if encoded else []
    notes += [f"{out} cannot hold these, so they are left out: {', '.join(lost)}."] if lost else []
    return replace(kept, streams=chosen, notes=tuple(notes))


def _no_way(source: Path, out: Path, what: str, sound: str) -> ValueError:
    if sound == "copy":
        return ValueError(f"{out} cannot hold {what} of {source} unchanged: give --sound encode.")
    return ValueError(f"{out} can hold {what} of {source} neither as it is nor encoded: give --sound none.")


def _ways(stream, suffix: str, sound: str) -> list[str | None]:
    """Return how a stream may come into a container, best first: None to copy it, or an encoder."""
    if stream.type == "audio":
        encoder = _SOUND_ENCODERS.get(suffix, "aac")
        return {"auto": [None, encoder], "copy": [None], "encode": [encoder]}[sound]
    if stream.type == "subtitle" and _codec(stream) in _TEXT_CODECS:
        return [None, _TEXT_ENCODERS.get(suffix, "mov_text")]
    return [None]


def add(container, source, path: Path | None, choice: Choice, suffix: str) -> dict[int, tuple]:
    """Add the chosen streams and tags to an output; return ``{index: (new stream, encoder or None)}``."""
    if source is not None:
        container.metadata.update(_film_tags(source))
        pictures = next(s for s in source.streams.video if not is_cover(s))
        container.streams.video[0].metadata.update(_shown_tags(pictures))
    if choice.chapters:
        container.set_chapters(list(choice.chapters))
    if choice.timecode:
        container.streams.video[0].metadata["timecode"] = choice.timecode
    pairs = {}
    for index, encoder in choice.streams.items():
        stream = source.streams[index]
        if is_cover(stream) and suffix == ".mkv":
            with open_container(path) as again:  # a stream that was read cannot be read again from here
                name, kind = _COVERS[stream.name]
                picture = bytes(next(again.demux(again.streams[index])))
                container.add_attachment(stream.metadata.get("filename", name), kind, picture)
            continue
        if encoder:
            new = _encoded(container, stream, encoder)
        else:
            new = container.add_stream_from_template(stream, opaque=True)
        new.metadata.update(dict(stream.metadata) if stream.type == "attachment" else _shown_tags(stream))
        new.disposition = stream.disposition
        pairs[index] = new, encoder
    return pairs


def copier(container, source, path, pairs: dict, offset: Fraction, suffix: str, most: int | None = None) -> Callable:
    """Return a function that muxes the streams up to a time in seconds, or all of them for None.

    most: the number of packets, for a trial. The function raises ValueError where the source breaks off.
    """
    streams = [source.streams[index] for index, (new, _) in pairs.items() if new.type != "attachment"]
    encoders = {index: _encoder(*pair, suffix) for index, pair in pairs.items() if pair[1]}
    packets = islice(_packets(path, source, streams), most)
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
            if waiting.stream_index in encoders:
                container.mux(encoders[waiting.stream_index](waiting))
            else:
                waiting.stream = pairs[waiting.stream_index][0]
                container.mux(waiting)
            waiting = next(packets, None)
        if second is None:
            for encode in encoders.values():
                container.mux(encode(None))

    return copy_until


def _packets(path: Path, source, streams: list) -> Iterator[av.Packet]:
    """Yield the streams' packets that have a time; raise ValueError where the source breaks off."""
    if not streams:
        return
    with ffmpeg_errors(f"{path} breaks off in its sound or subtitles ({{}}); repair it first."):
        for packet in source.demux(streams):
            if packet.size and is_cover(packet.stream):
                packet.pts = packet.dts = 0
            if packet.size and not (packet.pts is packet.dts is None) and not _is_pause(packet):
                yield packet


def _is_pause(packet: av.Packet) -> bool:
    """Return True for the empty text with which MP4 ends a line of text; FFmpeg writes these itself."""
    return packet.stream.type == "subtitle" and bytes(packet) == b"\0\0"


def _encoded(container, stream, encoder: str):
    """Add a stream that `encoder` fills: sound at the nearest rate that it takes, with at most its channels."""
    if stream.type == "subtitle":
        new = container.add_stream(encoder)
        stream.codec_context.open()
        new.codec_context.subtitle_header = stream.codec_context.subtitle_header
        new.time_base = new.codec_context.time_base = Fraction(1, 1000)
        return new
    rates = av.Codec(encoder, "w").audio_rates or [stream.rate]
    rate = min(rates, key=lambda r: (r < stream.rate, abs(r - stream.rate)))
    for layout in (stream.layout.name, "stereo"):
        trial = av.CodecContext.create(encoder, "w")
        trial.rate, trial.layout, trial.format = rate, layout, av.Codec(encoder, "w").audio_formats[0]
        try:
            trial.open()
            break
        except _FAILED:
            continue
    new = container.add_stream(encoder, rate=rate, layout=layout)
    if encoder in ("aac", "libopus"):
        new.bit_rate = 96_000 * len(new.layout.channels)
    return new


def _encoder(new, encoder: str, suffix: str) -> Callable[[av.Packet | None], Iterable[av.Packet]]:
    """Return a function from a source's packet, None at the end, to the packets of an encoded stream."""
    if new.type == "subtitle":
        return lambda packet: [] if packet is None else _encode_text(new, packet)
    graph = form = None
    reached = shift = 0  # the sample after the last encoded one; correction of a later graph's times

    def pulled() -> Iterator[av.Packet]:
        nonlocal reached, shift
        while True:
            try:
                frame = graph.pull()
            except (av.BlockingIOError, av.EOFError):
                return
            if frame.pts is not None:
                shift = reached - frame.pts if shift is None else shift  # a sample at most, by rounding
                frame.pts += shift
                reached = frame.pts + frame.samples
            yield from new.encode(frame)

    def encode(packet: av.Packet | None) -> Iterator[av.Packet]:
        nonlocal graph, form, shift
        try:
            decoded = packet.decode() if packet is not None else [None] if graph else []
        except av.FFmpegError:  # a damaged packet becomes a gap, and the graph fills gaps with silence
            decoded = []
        for frame in decoded:
            own = frame and (frame.sample_rate, frame.format.name, frame.layout.name)
            if frame and own != form:  # a broadcast turns from stereo to mono, say
                begin = 0 if suffix in RESTARTING else None
                if graph:
                    graph.push(None)
                    yield from pulled()
                    begin, shift = reached, None
                graph, form = _sound_graph(frame, new, begin), own
            graph.push(frame)
            yield from pulled()
        if packet is None and graph:
            yield from new.encode(None)

    return encode


def _sound_graph(frame, new, begin: int | None):
    """Return a filter that brings frames like this one to the encoder's form, with silence in gaps.

    begin: the sample of `new` that comes out first, by silence or a cut; None for that of the frame.
    """
    graph, context = av.filter.Graph(), new.codec_context
    # aresample counts these samples at the rate that goes in
    first = "" if begin is None else f":first_pts={round(Fraction(begin * frame.sample_rate, new.rate))}"
    nodes = [
        graph.add_abuffer(
            sample_rate=frame.sample_rate, format=frame.format.name, layout=frame.layout.name, time_base=frame.time_base
        ),
        graph.add("aresample", f"{new.rate}:async=1{first}"),
        graph.add("aformat", f"sample_fmts={context.format.name}:channel_layouts={new.layout.name}"),
        graph.add("abuffersink"),
    ]
    graph.link_nodes(*nodes).configure()
    return graph


def _encode_text(new, packet: av.Packet) -> list[av.Packet]:
    lines = packet.stream.codec_context.decode2(packet)
    if lines is None:
        return []
    text = new.codec_context.encode_subtitle(lines)
    text.pts = text.dts = packet.pts
    text.duration, text.time_base, text.stream = packet.duration, packet.time_base, new
    return [text]


# --- trials ----------------------------------------------------------------------------------------------------------


def _comes_back(path: Path, index: int, encoder: str | None, suffix: str, offset: Fraction) -> dict | None:
    """Return a stream's tags in a file of this kind; None unless its first packets are there, at their times."""
    try:
        with open_container(path) as source:
            stream = source.streams[index]
            kind, name = (stream.type, is_cover(stream)), _codec(stream)
            if encoder and stream.codec_context is None:
                return None
            old = [(p.pts, p.time_base, bytes(p)) for p in islice(_packets(path, source, [stream]), _TRIED)]
        streams, found = _trial(path, Choice({index: encoder}), suffix, offset)
    except _FAILED:
        return None
    (begin, *_), *_ = found[0]
    new = [(found[number], stream[3]) for number, stream in streams.items() if number and stream[:2] == kind]
    if len(new) != 1 or (encoder is None and name not in {stream[2] for stream in streams.values()}):
        return None
    ((new, tags),) = new
    return tags if _are_alike(old, new, begin, offset, kind[1], encoder, suffix) else None


def _are_alike(old: list, new: list, begin: Fraction, offset: Fraction, cover: bool, encoder, suffix: str) -> bool:
    """Return True if a trial's packets are a stream's first ones; those of an encoder only need to begin in time."""
    if cover:
        return [data for *_, data in old] == [data for *_, data in new]
    before = [(pts * base - offset, data) for pts, base, data in old if pts is not None]
    after = [(pts - begin, data) for pts, data in new if pts is not None]
    if encoder or not before:
        begin = 0 if not before or suffix in RESTARTING else before[0][0]
        return not before or (bool(after) and abs(after[0][0] - begin) < _DELAY)
    apart = [abs(a - b) for (a, _), (b, _) in zip(before, after, strict=False)]
    if b"".join(data for _, data in before) == b"".join(data for _, data in after):
        return max(apart if len(before) == len(after) else apart[:1]) <= _SLACK  # raw sound may come in other portions
    framed = [a.endswith(b) or b.endswith(a) for (_, a), (_, b) in zip(before, after, strict=False)]  # AAC's own header
    return len(before) == len(after) and all(framed) and max(apart) <= _SLACK


def _try_tags(path: Path, source, wished: Choice, suffix: str) -> tuple[Choice, dict, dict]:
    """Return the timecode and chapters that a file of this kind holds, and its tags and those of its pictures."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with open_container(_write_trial(Path(folder), path, source, wished, suffix, Fraction(0))) as back:
                timecode = wished.timecode if _timecode(back) == wished.timecode else None
                kept = replace(wished, timecode=timecode, chapters=wished.chapters if back.chapters() else ())
                return kept, dict(back.metadata), dict(back.streams.video[0].metadata)
        except _FAILED:
            return Choice(), {}, {}


def _film_tags(container) -> dict[str, str]:
    return {name: text for name, text in container.metadata.items() if name.lower() not in _OWN_TAGS}


def _shown_tags(stream) -> dict[str, str]:
    """Return a stream's language and title, by which players offer it."""
    tags = stream.metadata
    found = {"language": tags.get("language"), "title": tags.get("title") or tags.get("name")}  # as MP4 has it
    return {name: text for name, text in found.items() if text and text != "und"}


def _left_out(tags: dict[str, str], found: dict[str, str], of: str) -> list[str]:
    """Name the tags whose texts are not among those found; containers give them names of their own."""
    return [f"the {name.lower()} '{text[:40]}'{of}" for name, text in tags.items() if text not in found.values()]


def _trial(path: Path, choice: Choice, suffix: str, offset: Fraction) -> tuple[dict, dict]:
    """Write a trial and read it: ``{index: (type, is a cover, codec, tags)}`` and ``{index: [(seconds, bytes)]}``."""
    with tempfile.TemporaryDirectory() as folder:
        with open_container(path) as source:
            written = _write_trial(Path(folder), path, source, choice, suffix, offset)
        with av.open(str(written)) as back:
            streams = {s.index: (s.type, is_cover(s), _codec(s), dict(s.metadata)) for s in back.streams}
            found: dict[int, list] = {index: [] for index in streams}
            for packet in back.demux():
                if packet.size and not _is_pause(packet):
                    seconds = None if packet.pts is None else packet.pts * Fraction(packet.time_base)
                    found[packet.stream_index].append((seconds, bytes(packet)))
        return streams, found


def _write_trial(folder: Path, path: Path, source, choice: Choice, suffix: str, offset: Fraction) -> Path:
    """Write two small pictures, and the first packets of the chosen streams."""
    out = folder / f"trial{suffix}"
    with av.open(str(out), "w", container_options={"avoid_negative_ts": "disabled"}) as container:
        video = container.add_stream("libvpx-vp9" if suffix == ".webm" else "mpeg4", rate=25)
        video.width = video.height = 64
        pairs = add(container, source, path, choice, suffix)
        for moment in range(2):
            frame = av.VideoFrame(64, 64, "yuv420p")
            frame.pts, frame.time_base = moment, Fraction(1, 25)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        most = 50 * _TRIED if any(choice.streams.values()) else _TRIED  # sound before the pictures may be cut off
        copier(container, source, path, pairs, offset, suffix, most)(None)
    return out


def _timecode(container) -> str | None:
    """Return the timecode of a film's first frame, which containers keep in different places."""
    tags = [container.metadata, *(stream.metadata for stream in container.streams)]
    return next((value for tag in tags for key, value in tag.items() if key.lower() == "timecode"), None)


def _codec(stream) -> str | None:
    context = getattr(stream, "codec_context", None)
    return context.codec.canonical_name if context else getattr(stream, "name", None)


def _is_repeated(path: Path, stream) -> bool:
    """Return True for a stream that only shows the timecode or MP4's chapters, which are read elsewhere."""
    chapters = [chapter["metadata"].get("title", "").encode() for chapter in stream.container.chapters()]
    if stream.type == "subtitle" and chapters and "mov" in stream.container.format.name:
        with open_container(path) as again:
            lines = [bytes(packet) for packet in again.demux(again.streams[stream.index]) if packet.size]
        return [line[2 : 2 + int.from_bytes(line[:2], "big")] for line in lines] == chapters
    return stream.type == "data" and "timecode" in stream.metadata
