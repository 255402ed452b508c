"""Sound, subtitles and the rest come into every container whole or encoded, or are named before the first frame."""

import os
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
import small_films as films

from gcgkit.video import film

CONTAINERS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts")
USUAL = (
    "aac", "ac3", "alac", "flac", "libmp3lame", "libopencore_amrnb", "libopus", "mp2", "pcm_s16be", "pcm_s16le",
    "pcm_u8", "wavpack", "wmav2", "adpcm_ms",
)  # fmt: skip
PITCH = 440  # Hz


def add_pictures(container, video, count: int) -> None:
    """Encode so many pictures into a stream of a container, 25 a second."""
    for tick, picture in enumerate(films.pictures(count)):
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
        frame.pts, frame.time_base = tick, Fraction(1, 25)
        container.mux(video.encode(frame))
    container.mux(video.encode(None))


def sounding(folder, encoder):
    """A film with a tone of this codec, in the first container that can be written and read with it; None for none."""
    for suffix in (".mkv", ".mov", ".asf", ".avi", ".nut", ".ts"):
        for rate in (48000, 44100, 16000, 8000):
            path = folder / f"{encoder}{suffix}"
            try:
                write_tone(path, encoder, rate)
                film.probe(path)
                if abs(pitch(path) - PITCH) < 5:
                    return path
            except (ValueError, OSError, IndexError, av.FFmpegError):
                continue
    return None


def write_tone(path, encoder, rate, begin=0.0):
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=25)
        video.width, video.height, video.bit_rate = 64, 48, 1_000_000
        sound = container.add_stream(encoder, rate=rate, layout="mono")
        sound.bit_rate = 64_000
        add_pictures(container, video, 12)
        tone = 0.4 * np.sin(2 * np.pi * PITCH * np.arange(int(0.48 * rate)) / rate)[None].astype(np.float32)
        for first in range(0, tone.shape[1], 1024):
            frame = av.AudioFrame.from_ndarray(tone[:, first : first + 1024].copy(), format="fltp", layout="mono")
            frame.rate, frame.time_base, frame.pts = rate, Fraction(1, rate), first + int(begin * rate)
            container.mux(sound.encode(frame))
        container.mux(sound.encode(None))


def decoded(path):
    """The first sound of a film ``(N,)``, its rate, and its beginning after the first picture, in seconds."""
    with av.open(str(path)) as container:
        first = next(container.decode(video=0)).time
    with av.open(str(path)) as container:
        frames = list(container.decode(audio=0))
    parts = [part.to_ndarray() for f in frames for part in av.AudioResampler("fltp", "mono").resample(f)]
    return np.concatenate(parts, axis=1)[0], frames[0].rate, frames[0].time - first


def pitch(path):
    samples, rate, _ = decoded(path)
    return np.argmax(np.abs(np.fft.rfft(samples * np.hanning(len(samples))))) * rate / len(samples)


def check_table_row(tmp_path, encoder):
    source = sounding(tmp_path, encoder)
    if source is None:
        pytest.skip(f"this FFmpeg writes no film with {encoder} that it can read")
    for suffix in CONTAINERS:
        out = tmp_path / f"out{suffix}"
        notes = film.check_output(out, source)
        film.write(out, film.frames(source), source)
        samples, rate, begin = decoded(out)
        assert abs(pitch(out) - PITCH) < 5 and len(samples) > 0.3 * rate and abs(begin) < 0.15, (encoder, suffix)
        before, after = (b"".join(data for _, data in films.packets(path, "audio")[0]) for path in (source, out))
        if notes:
            assert len(notes) == 1 and "encoded" in notes[0] and "audio stream 1" in notes[0]
            with pytest.raises(ValueError, match="give --sound encode"):
                film.check_output(out, source, sound="copy")
            assert film.check_output(out, source, sound="encode") == notes
        elif encoder != "aac" or suffix != ".ts":  # which has a header before each packet there
            assert before == after
            assert film.check_output(out, source, sound="copy") == ()


@pytest.mark.parametrize("encoder", USUAL)
def test_every_container_takes_the_usual_sound(tmp_path, encoder):
    check_table_row(tmp_path, encoder)


@pytest.mark.slow
def test_every_container_takes_the_sound_of_every_encoder(tmp_path):
    done = 0
    for name in sorted(av.codecs_available - set(USUAL)):
        try:
            is_sound = av.Codec(name, "w").type == "audio"
        except av.codec.codec.UnknownCodecError:
            continue
        if is_sound and (source := sounding(tmp_path, name)):
            source.unlink()
            check_table_row(tmp_path, name)
            done += 1
    assert done >= 30


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".ts"])
@pytest.mark.parametrize("encoder", ["wmav2", "pcm_s16le", "libmp3lame"])
def test_sound_that_begins_late_stays_in_step(tmp_path, encoder, suffix):
    source = tmp_path / ("in.asf" if encoder == "wmav2" else "in.mkv")
    write_tone(source, encoder, 44100, begin=0.2)
    film.write(tmp_path / f"out{suffix}", film.frames(source), source)
    for path in (source, tmp_path / f"out{suffix}"):
        samples, rate, begin = decoded(path)
        loud = np.flatnonzero(np.abs(samples) > 0.1)[0] / rate + begin
        assert abs(loud - 0.2) < 0.08, (path, loud)


def packets_of(layout, rate, begin):
    """Two seconds of a tone in MP2 as ``[(bytes, seconds)]``, the first at ``begin``."""
    encoder = av.CodecContext.create("mp2", "w")
    encoder.rate, encoder.layout, encoder.format = rate, layout, "s16"
    tone = 0.4 * np.sin(2 * np.pi * PITCH * np.arange(2 * rate) / rate)
    tone = np.repeat((tone * 32767).astype(np.int16), encoder.layout.nb_channels)[None]
    frame = av.AudioFrame.from_ndarray(tone, format="s16", layout=layout)
    frame.rate = rate
    found = [bytes(packet) for packet in (*encoder.encode(frame), *encoder.encode(None))]
    return [(data, begin + Fraction(1152 * k, rate)) for k, data in enumerate(found)]


@pytest.mark.parametrize("layout, rate", [("mono", 48000), ("stereo", 44100)])
def test_sound_that_changes_its_form_midway_is_encoded_in_step(tmp_path, layout, rate):
    """As broadcasts do; late enough that no trial of the first packets meets it."""
    source, out = tmp_path / "in.ts", tmp_path / "out.webm"
    first = [part for k in range(5) for part in packets_of("stereo", 48000, 2 * k)]
    first = [(data, Fraction(1152 * k, 48000)) for k, (data, _) in enumerate(first)]
    end = Fraction(1152 * len(first), 48000)
    with av.open(str(source), "w") as container:
        video = container.add_stream("mpeg2video", rate=25)
        video.width, video.height, video.bit_rate = 64, 48, 1_000_000
        video.codec_context.max_b_frames = 0
        sound = container.add_stream("mp2", rate=48000, layout="stereo")
        add_pictures(container, video, 12)
        for data, second in [*first, *packets_of(layout, rate, end)]:
            packet = av.Packet(data)
            packet.stream, packet.time_base = sound, Fraction(1, 90000)
            packet.pts = packet.dts = round(second * 90000)
            container.mux(packet)
    film.check_output(out, source)
    film.write(out, film.frames(source), source)
    samples, found, begin = decoded(out)
    assert abs(len(samples) / found + begin - float(end + 2)) < 0.2
    for second in (3.0, float(end) + 0.5):  # before the change, and after it
        part = samples[int(second * found) :][:found]
        top = np.argmax(np.abs(np.fft.rfft(part * np.hanning(len(part))))) * found / len(part)
        assert abs(top - PITCH) < 5 and np.abs(part).max() > 0.1


def test_sound_can_be_left_out_and_unknown_sound_is_told_so(tmp_path):
    films.make(tmp_path / "a.mkv", sound=("flac",))
    source = tmp_path / "in.mkv"
    source.write_bytes((tmp_path / "a.mkv").read_bytes().replace(b"A_FLAC", b"A_FLAX"))
    for suffix in CONTAINERS:
        out = tmp_path / f"out{suffix}"
        with pytest.raises(ValueError, match="give --sound none"):
            film.check_output(out, source)
        assert film.check_output(out, source, sound="none") == ()
        film.write(out, film.frames(source), source, sound="none")
        assert film.probe(out).audio_streams == 0
    with pytest.raises(ValueError, match="sound must be one of auto, copy, encode, none"):
        film.check_output(tmp_path / "out.mkv", source, sound="aac")


def test_sound_of_many_channels_and_odd_rates_is_encoded(tmp_path):
    source = tmp_path / "in.mkv"
    with av.open(str(source), "w") as container:
        video = container.add_stream("ffv1", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream("pcm_s16le", rate=96001, layout="7.1")
        add_pictures(container, video, 5)
        noise = np.random.default_rng(0).integers(-9000, 9000, (1, 8 * 19200), dtype=np.int16)
        frame = av.AudioFrame.from_ndarray(noise, format="s16", layout="7.1")
        frame.rate, frame.pts, frame.time_base = 96001, 0, Fraction(1, 96001)
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    for suffix in CONTAINERS:
        out = tmp_path / f"out{suffix}"
        film.write(out, film.frames(source), source, sound="encode")
        samples, rate, _ = decoded(out)
        assert 0.15 < len(samples) / rate < 0.3 and samples.std() > 0.01


@pytest.mark.parametrize("suffix", CONTAINERS)
@pytest.mark.parametrize(("name", "subtitles"), [("in.mkv", "subrip"), ("in.mp4", "mov_text")])
def test_text_subtitles_are_copied_encoded_or_named(tmp_path, name, subtitles, suffix):
    source, out = tmp_path / name, tmp_path / f"out{suffix}"
    films.make(source, subtitles=subtitles)
    notes = film.check_output(out, source)
    film.write(out, film.frames(source), source)
    told = " ".join(notes)
    if suffix in (".avi", ".ts"):
        assert "left out" in told and f"subtitle stream 1 ({subtitles})" in told
        return
    same = subtitles == ("mov_text" if suffix in (".mp4", ".m4v", ".mov") else "subrip" if suffix == ".mkv" else "")
    assert ("subtitle stream 1" in told) != same
    lines = films.packets(out, "subtitles")[0]
    for (moment, data), (begin, text) in zip(
        [line for line in lines if len(line[1]) > 2], ((0.04, "First line"), (0.16, "Zweite Zeile, äöü")), strict=True
    ):
        assert text.encode() in data and abs(float(moment) - begin) <= 0.002


def tagged(source, path, *, timecode=None, chapters=False, cover=False, font=False, second=False):
    """A copy of a film with more in it."""
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        pairs = {s.index: new.add_stream_from_template(s, opaque=True) for s in old.streams}
        if timecode:
            new.streams.video[0].metadata["timecode"] = timecode
        if chapters:
            part = {"start": 0, "end": 200, "time_base": Fraction(1, 1000), "metadata": {"title": "One"}}
            new.set_chapters([{"id": 1, **part}])
        picture = cv2.imencode(".png", films.pictures(1, (16, 16))[0])[1].tobytes()
        if cover and path.suffix == ".mkv":
            new.add_attachment("small_cover.png", "image/png", picture)
        elif cover:
            still = new.add_stream("png", rate=25)
            still.width = still.height = 16
            still.pix_fmt, still.disposition = "rgb24", av.stream.Disposition.attached_pic
        if font:
            new.add_attachment("a.ttf", "application/x-truetype-font", b"\0\1\0\0 a font")
        extra = new.add_stream_from_template(old.streams.video[0], opaque=True) if second else None
        for packet in old.demux():
            if packet.size:
                packet.stream = pairs[packet.stream_index]
                new.mux(packet)
                if extra is not None:
                    packet.stream = extra
                    new.mux(packet)
        if cover and path.suffix != ".mkv":
            packet = av.Packet(picture)
            packet.stream, packet.pts, packet.dts, packet.time_base = still, 0, 0, Fraction(1, 25)
            new.mux(packet)


@pytest.mark.parametrize("name", ["in.mp4", "in.mkv"])
@pytest.mark.parametrize("suffix", CONTAINERS)
def test_timecode_chapters_cover_and_fonts_are_kept_or_named(tmp_path, name, suffix):
    films.make(tmp_path / "plain.mkv", rate=Fraction(25))
    source, out = tmp_path / name, tmp_path / f"out{suffix}"
    tagged(tmp_path / "plain.mkv", source, timecode="10:11:12:13", chapters=True, cover=True, font=name == "in.mkv")
    told = " ".join(film.check_output(out, source)).replace(str(tmp_path), "")
    film.write(out, film.frames(source), source)
    assert len(list(film.frames(out))) == 8
    with av.open(str(out)) as container:
        tags = [container.metadata, *(stream.metadata for stream in container.streams)]
        found = {
            "timecode": "10:11:12:13" in [v for tag in tags for k, v in tag.items() if k.lower() == "timecode"],
            "chapters": len(container.chapters()) == 1,
            "cover": any(s.disposition & av.stream.Disposition.attached_pic for s in container.streams),
            "attachment": any(s.type == "attachment" for s in container.streams),
        }
        names = [stream.metadata.get("filename") for stream in container.streams]
        assert "small_cover.png" in names or not name == "in.mkv" or suffix != ".mkv"
    for what, kept in found.items():
        assert kept or what in told or (what == "attachment" and name == "in.mp4"), (what, told)
        assert not (kept and what in told), (what, told)
    assert found["chapters"] == (suffix not in (".avi", ".ts"))
    assert found["timecode"] or suffix not in (".mp4", ".mov", ".mkv")
    assert found["cover"] or suffix not in (".mp4", ".mkv")


@pytest.mark.parametrize("name", ["in.mkv", "in.mp4"])
@pytest.mark.parametrize("suffix", [*CONTAINERS, ""])
def test_languages_titles_and_tags_are_kept_or_named(tmp_path, name, suffix):
    films.make(tmp_path / "plain.mp4", sound=("aac", "aac"), subtitles="mov_text")
    source, out = tmp_path / name, tmp_path / f"out{suffix}"
    languages = ("fra", "eng", "deu", "spa")  # of pictures, two tracks and subtitles
    with av.open(str(tmp_path / "plain.mp4")) as old, av.open(str(source), "w") as new:
        new.metadata.update(title="Garden", artist="Ada", director="Bea")
        pairs = [new.add_stream_from_template(s, opaque=True) for s in old.streams if name == "in.mp4" or s.index < 3]
        for stream, language in zip(pairs, languages, strict=False):
            stream.metadata.update(title=f"Title {language}", language=language)
        for packet in old.demux():
            if packet.size and packet.stream_index < len(pairs):
                packet.stream = pairs[packet.stream_index]
                new.mux(packet)
    told = " ".join(film.check_output(out, source))
    if suffix:
        film.write(out, film.frames(source), source)
    with av.open(str(source)) as old, av.open(str(out if suffix else tmp_path / "plain.mp4")) as new:
        assert {"Garden", "Ada"} <= set(old.metadata.values())
        kept = [set(part.metadata.values()) for part in (new, *new.streams)] if suffix else [set()] * 5
        for text in {"Garden", "Ada", "Bea"} & set(old.metadata.values()):
            assert (text in kept[0]) != (f"'{text}' of the film" in told), (text, told)
        for stream, language in zip(old.streams, languages, strict=False):
            what = "its pictures" if stream.type == "video" else f"{stream.type} stream {stream.index}"
            if stream.type == "subtitle" and suffix in (".avi", ".ts", ""):
                continue  # named as a whole
            for text in (language, f"Title {language}"):
                whole = not suffix and f"{what} (" in told  # the stream itself is left out
                assert (text in kept[1 + stream.index]) != (whole or f"'{text}' of {what}" in told), (text, told)


def test_a_second_picture_track_and_transparency_are_named(tmp_path):
    films.make(tmp_path / "plain.mkv")
    tagged(tmp_path / "plain.mkv", tmp_path / "in.mkv", second=True)
    assert "left out: video stream 1 (h264)" in " ".join(film.check_output(tmp_path / "out.mkv", tmp_path / "in.mkv"))
    films.make(tmp_path / "plain.mov", "prores_ks", "yuva444p10le")
    depth, note = film.check_output(tmp_path / "out.mov", tmp_path / "plain.mov")
    assert "transparen" in note and "12 bits a colour channel" in depth


@pytest.mark.parametrize("out", ["out.mkv", "out.avi", "pictures"])
@pytest.mark.parametrize("kind", ["film", "folder"])
def test_transparency_is_kept_where_the_codec_can(tmp_path, kind, out):
    clip = films.pictures(4)
    opacity = np.roll(clip[..., 0], 9, axis=2)
    clear = np.concatenate([clip, opacity[..., None]], axis=-1)  # (T, H, W, 4)
    source = tmp_path / ("in.mkv" if kind == "film" else "in")
    if kind == "folder":
        source.mkdir()
        for number, picture in enumerate(clear):
            cv2.imwrite(str(source / f"{number}.png"), cv2.cvtColor(picture, cv2.COLOR_RGBA2BGRA))
    else:
        with av.open(str(source), "w") as container:
            stream = container.add_stream("ffv1", rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "bgra"
            for tick, picture in enumerate(clear):
                frame = av.VideoFrame.from_ndarray(picture, format="rgba").reformat(format="bgra")
                frame.pts, frame.time_base = tick, Fraction(1, 25)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    options = {"lossless": True} if "." in out else {}
    assert film.check_output(tmp_path / out, source, **options) == ()
    film.write(tmp_path / out, film.frames(source), source, **options)
    np.testing.assert_array_equal(np.stack(list(film.frames(tmp_path / out))), clip)
    if out == "pictures":
        files = sorted((tmp_path / out).iterdir())
        found = [cv2.imread(str(file), cv2.IMREAD_UNCHANGED)[..., 3] for file in files]
    else:
        with av.open(str(tmp_path / out)) as container:
            found = [frame.to_ndarray(format="rgba")[..., 3] for frame in container.decode(video=0)]
    np.testing.assert_array_equal(np.stack(found), opacity)


@pytest.mark.parametrize("out", ["out.mkv", "pictures"])
def test_transparency_of_webm_is_kept(tmp_path, out):
    clip = films.pictures(4)
    opacity = np.roll(clip[..., 0], 9, axis=2)
    source = tmp_path / "in.webm"
    with av.open(str(source), "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=25, options={"crf": "4", "b": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuva420p"
        for tick, picture in enumerate(np.concatenate([clip, opacity[..., None]], axis=-1)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgba").reformat(format="yuva420p")
            frame.pts, frame.time_base = tick, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert "transparen" in film.check_output(tmp_path / "out.mp4", source)[0]
    film.write(tmp_path / out, film.frames(source), source, lossless=out == "out.mkv")
    if out == "pictures":
        found = [cv2.imread(str(file), cv2.IMREAD_UNCHANGED)[..., 3] for file in sorted((tmp_path / out).iterdir())]
    else:
        with av.open(str(tmp_path / out)) as container:
            found = [frame.to_ndarray(format="rgba")[..., 3] for frame in container.decode(video=0)]
    assert np.abs(np.stack(found).astype(int) - opacity).mean() < 2  # VP9 is lossy


def test_a_folder_of_pictures_names_what_it_leaves_out(tmp_path):
    films.make(tmp_path / "in.mkv", sound=("flac",), subtitles="subrip")
    (note,) = film.check_output(tmp_path / "pictures", tmp_path / "in.mkv")
    assert "audio stream 1 (flac)" in note and "subtitle stream 2" in note
    assert os.listdir(tmp_path) == ["in.mkv"]
