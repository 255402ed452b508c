"""Whole films: frames, times, sound and subtitles survive in every container; faults give one sentence."""

import os
import resource
import subprocess
import sys
from fractions import Fraction
from itertools import pairwise

import av
import cv2
import numpy as np
import pytest
import small_films as films
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage.color import rgb2lab

from gcgkit import color
from gcgkit.video import film

UNEVEN = [0, 1001, 1500, 4004, 4100, 9009, 9010, 20020]  # ticks of 1/24000 s
MILLISECOND = Fraction(1, 1000)

MATRIX = [
    # suffix, encoder, pixels, sound, subtitles
    (".mp4", "libx264", "yuv420p", ("aac", "aac"), "mov_text"),
    (".mp4", "libx265", "yuv420p10le", ("aac", "alac"), None),
    (".mp4", "mpeg2video", "yuv420p", ("libmp3lame",), None),
    (".mov", "libx264", "yuv420p10le", ("aac", "pcm_s16le"), "mov_text"),
    (".mov", "mjpeg", "yuvj420p", ("pcm_s16le",), None),
    (".mkv", "libx264", "yuv420p", ("aac", "flac"), "subrip"),
    (".mkv", "libx265", "yuv420p", ("pcm_s16le", "libmp3lame"), "subrip"),
    (".mkv", "ffv1", "yuv444p10le", ("flac",), None),
    (".mkv", "mpeg2video", "yuv420p", (), None),
    (".mkv", "libvpx-vp9", "yuv420p", ("libopus", "aac"), "subrip"),
    (".webm", "libvpx-vp9", "yuv420p", ("libopus", "libopus"), "webvtt"),
    (".avi", "mjpeg", "yuvj420p", ("pcm_s16le", "libmp3lame"), None),
    (".avi", "mpeg4", "yuv420p", ("libmp3lame",), None),
    (".avi", "ffv1", "yuv420p", (), None),
    (".avi", "libx264", "yuv420p", ("pcm_s16le",), None),
]


def name_of(case):
    return f"{case[0][1:]}-{case[1]}-{case[2]}"


def grid(count, rate=films.NTSC):
    return [k / rate for k in range(count)]


def apart(first, second):
    return max((abs(a - b) for a, b in zip(first, second, strict=True)), default=0)


def assert_same_packets(source, out, kind):
    before, after = films.packets(source, kind), films.packets(out, kind)
    assert len(before) == len(after)
    for old, new in zip(before, after, strict=True):
        assert old and [data for _, data in old] == [data for _, data in new]
        assert apart([t for t, _ in old], [t for t, _ in new]) <= MILLISECOND


def assert_sentence(error, *parts):
    text = str(error.value if hasattr(error, "value") else error)
    assert "\n" not in text and text.endswith(".") and 20 < len(text) < 400, text
    for part in parts:
        assert str(part) in text


# --- reading and writing, the matrix ---


@pytest.mark.parametrize("case", MATRIX, ids=name_of)
def test_frames_times_sound_and_subtitles_survive(tmp_path, case):
    suffix, encoder, pixels, sound, subtitles = case
    source = tmp_path / f"in{suffix}"
    clip = films.make(source, encoder, pixels, sound=sound, subtitles=subtitles)
    information = film.probe(source)
    assert (information.height, information.width, information.rotation) == (48, 64, 0)
    assert information.num_frames in ((None, 8) if encoder == "mpeg4" else (8,))
    assert information.bit_depth == (10 if "10" in pixels else 8) and not information.variable_rate
    assert abs(float(information.rate / films.NTSC) - 1) < 1e-3
    assert (information.audio_streams, information.subtitle_streams) == (len(sound), 1 if subtitles else 0)
    assert apart(film.times(source), grid(8)) <= MILLISECOND

    taken = np.stack(list(film.frames(source)))
    assert np.abs(taken.astype(int) - clip).mean() < 6  # lossy codecs
    codec = {"codec": "vp9"} if suffix == ".webm" else {}
    for options in ({"lossless": True}, codec):
        out = tmp_path / f"out{suffix}"
        assert film.write(out, iter(taken), source, **options) == out
        again = np.stack(list(film.frames(out)))
        assert again.shape == taken.shape
        assert apart(film.times(out), film.times(source)) <= MILLISECOND
        assert_same_packets(source, out, "audio")
        assert_same_packets(source, out, "subtitles")
        if options.get("lossless"):
            np.testing.assert_array_equal(again, taken)
        else:
            assert np.abs(again.astype(int) - taken).mean() < 6
    assert sorted(os.listdir(tmp_path)) == [f"in{suffix}", f"out{suffix}"]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".webm"])
def test_variable_frame_times_are_kept(tmp_path, suffix):
    source, out = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
    vp9 = suffix == ".webm"
    films.make(source, "libvpx-vp9" if vp9 else "libx264", ticks=UNEVEN, base=Fraction(1, 24000))
    truth = [Fraction(tick, 24000) for tick in UNEVEN]
    tolerance = 0 if suffix in (".mp4", ".mov") else MILLISECOND
    assert film.probe(source).variable_rate
    assert apart(film.times(source), truth) <= tolerance
    film.write(out, film.frames(source), source, codec="vp9" if vp9 else "h264")
    assert apart(film.times(out), truth) <= tolerance
    assert all(a < b for path in (source, out) for a, b in pairwise(film.times(path)))  # two lie in one millisecond
    with av.open(str(out)) as container:  # and to an independent reader of decoded frames
        assert apart([frame.pts * frame.time_base for frame in container.decode(video=0)], truth) <= tolerance


def test_variable_frame_times_go_into_mkv_but_are_refused_by_avi(tmp_path):
    source = tmp_path / "in.mp4"
    films.make(source, ticks=UNEVEN, base=Fraction(1, 24000))
    film.write(tmp_path / "out.mkv", film.frames(source), source)
    assert apart(film.times(tmp_path / "out.mkv"), film.times(source)) <= MILLISECOND
    with pytest.raises(ValueError, match="cannot keep the frame times") as error:
        film.write(tmp_path / "out.avi", film.frames(source), source)
    assert_sentence(error, "out.avi", ".mkv")
    with pytest.raises(ValueError, match="cannot keep the frame times"):
        film.check_output(tmp_path / "out.avi", source)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_late_beginning_and_sound_before_it_stay_in_step(tmp_path, suffix):
    source, out = tmp_path / "in.mp4", tmp_path / f"out{suffix}"
    ticks = [7508 + 3754 * k for k in range(8)]
    films.make(source, ticks=ticks, base=Fraction(1, 90000), sound=("aac",))
    film.write(out, film.frames(source), source)
    exact = 0 if suffix == ".mp4" else MILLISECOND
    assert apart(film.times(out), film.times(source)) <= exact
    assert abs(film.times(source)[0] - Fraction(7508, 90000)) <= MILLISECOND  # the test's own muxer rounds it
    assert_same_packets(source, out, "audio")


@pytest.mark.parametrize("suffix", [".avi", ".ts"])
def test_containers_whose_clock_begins_with_the_first_picture_take_a_film_that_begins_late(tmp_path, suffix):
    source, out = tmp_path / "in.mp4", tmp_path / f"out{suffix}"
    films.make(source, ticks=[5 + k for k in range(8)], sound=("aac",))
    for options in ({}, {"sound": "none"}):
        film.check_output(out, source, **options)
        film.write(out, film.frames(source), source, **options)
        assert apart([t - film.times(out)[0] for t in film.times(out)], grid(8)) <= MILLISECOND


@pytest.mark.parametrize("suffix", [".ts", ".mpg"])
def test_mpeg_streams_begin_at_zero_with_sound_in_step(tmp_path, suffix):
    source, out = tmp_path / f"in{suffix}", tmp_path / "out.mkv"
    films.make(source, "mpeg2video", sound=("mp2",))
    stamps = film.times(source)
    assert 0 <= stamps[0] < Fraction(1, 8)
    assert apart([t - stamps[0] for t in stamps], grid(8)) <= MILLISECOND
    film.write(out, film.frames(source), source)
    old, new = films.packets(source, "audio")[0], films.packets(out, "audio")[0]
    with av.open(str(source)) as container:
        first_picture = next(container.decode(video=0))
    lead = first_picture.pts * first_picture.time_base - old[0][0]  # sound's head start in the source
    assert abs((film.times(out)[0] - new[0][0]) - lead) <= 2 * MILLISECOND
    assert [data for _, data in old] == [data for _, data in new]
    film.write(tmp_path / "out.mp4", film.frames(source), source)
    assert film.times(tmp_path / "out.mp4") == stamps  # to the tick, though they begin at an odd time


@pytest.mark.parametrize("size", [(47, 64), (48, 63), (47, 63)])
@pytest.mark.parametrize(("out", "lossless"), [("out.mp4", False), ("out.mp4", True), ("out.mkv", True)])
def test_odd_sizes_are_kept_exactly(tmp_path, size, out, lossless):
    source = tmp_path / "in.mkv"
    films.make(source, "ffv1", "yuv444p", films.pictures(3, size))
    taken = np.stack(list(film.frames(source)))
    assert taken.shape[1:3] == size
    film.write(tmp_path / out, taken, source, lossless=lossless)
    again = np.stack(list(film.frames(tmp_path / out)))
    assert again.shape == taken.shape
    assert np.abs(again.astype(int) - taken).mean() < (1e-9 if lossless else 3)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".webm", ".mov"])
def test_a_film_of_one_frame(tmp_path, suffix):
    vp9 = suffix == ".webm"
    source, out = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
    films.make(source, "libvpx-vp9" if vp9 else "libx264", clip=films.pictures(1))
    assert film.probe(source).num_frames == 1 and film.times(source) == [0]
    film.write(out, film.frames(source), source, codec="vp9" if vp9 else "h264")
    assert film.times(out) == [0] and len(list(film.frames(out))) == 1


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_films_of_few_frames(tmp_path, codec, count):
    """x265 gives its first frames no decoding time where there are fewer than its delay: by chance, so many times."""
    source, out = tmp_path / "in.mkv", tmp_path / "out.mp4"
    films.make(source, "ffv1", clip=films.pictures(count))
    for _ in range(20 if codec == "hevc" else 1):
        film.write(out, film.frames(source), source, codec=codec, preset="ultrafast")
        assert apart(film.times(out), film.times(source)) <= MILLISECOND


def test_av1_prints_nothing(tmp_path, capfd):
    source, out = tmp_path / "in.mkv", tmp_path / "out.mp4"
    films.make(source, "ffv1", clip=films.pictures(2, (64, 64)))
    film.write(out, film.frames(source), source, codec="av1")
    assert film.probe(out).codec == "av1" and capfd.readouterr() == ("", "")


def test_gray_films_of_8_and_16_bits_keep_their_values(tmp_path):
    ramp = np.linspace(0, 65535, 48 * 64).astype(np.uint16).reshape(48, 64)
    for pixels, values in (("gray", (ramp >> 8).astype(np.uint8)), ("gray16le", ramp)):
        path = tmp_path / f"{pixels}.mkv"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("ffv1", rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
            container.mux(stream.encode(av.VideoFrame.from_ndarray(values, format=pixels)))
            container.mux(stream.encode(None))
        assert film.probe(path).bit_depth == (16 if pixels == "gray16le" else 8)
        (picture,) = film.frames(path)
        wanted = values if pixels == "gray" else values / 257
        assert np.abs(picture - wanted[..., None]).max() < (1e-9 if pixels == "gray" else 0.51)


def test_frames_stored_out_of_order_in_avi_have_even_times(tmp_path):
    for encoder in ("mpeg4", "libx264"):
        films.make(tmp_path / "in.avi", encoder, clip=films.pictures(14), options={"bf": "2"})
        assert film.times(tmp_path / "in.avi") == grid(14)
        film.write(tmp_path / "out.avi", film.frames(tmp_path / "in.avi"), tmp_path / "in.avi")
        assert film.times(tmp_path / "out.avi") == grid(14)
        with av.open(str(tmp_path / "out.avi")) as container:  # nothing is stored out of order, which AVI cannot tell
            assert av.video.frame.PictureType.B not in [frame.pict_type for frame in container.decode(video=0)]


@pytest.mark.parametrize("degrees", [90, 180, -90])
def test_rotated_films_come_upright_as_opencv_shows_them(tmp_path, degrees):
    source, out = tmp_path / "in.mp4", tmp_path / "out.mp4"
    films.make(source, rotation=degrees, options={"crf": "4"})
    capture = cv2.VideoCapture(str(source))
    shown = cv2.cvtColor(capture.read()[1], cv2.COLOR_BGR2RGB)
    taken = np.stack(list(film.frames(source)))
    assert taken.shape[1:] == shown.shape
    assert np.abs(taken[0].astype(int) - shown).mean() < 6
    information = film.probe(source)
    assert (information.height, information.width) == shown.shape[:2]
    assert information.rotation == -degrees % 360  # FFmpeg counts the other way round
    film.write(out, taken, source)
    assert film.probe(out).rotation == 0 and (film.probe(out).height, film.probe(out).width) == shown.shape[:2]
    assert np.abs(next(film.frames(out)).astype(int) - taken[0]).mean() < 3


def test_pixels_that_are_not_square_stay_so(tmp_path):
    def squeeze(stream):
        stream.codec_context.sample_aspect_ratio = Fraction(16, 11)

    films.make(tmp_path / "in.mp4", prepare=squeeze)
    film.write(tmp_path / "out.mp4", film.frames(tmp_path / "in.mp4"), tmp_path / "in.mp4")
    assert film.probe(tmp_path / "out.mp4").pixel_aspect == Fraction(16, 11)
    films.make(tmp_path / "turned.mp4", prepare=squeeze, rotation=90)
    assert film.probe(tmp_path / "turned.mp4").pixel_aspect == Fraction(11, 16)


def test_pixels_that_become_square_are_named_before_the_work(tmp_path):
    def squeeze(stream):
        stream.codec_context.sample_aspect_ratio = Fraction(16, 11)

    source = tmp_path / "in.mp4"
    films.make(source, prepare=squeeze)
    chosen = ("a.mkv", {"lossless": True}), ("a.mkv", {}), ("a.webm", {}), ("a.mp4", {}), ("pictures", {})
    for name, options in chosen:
        notes = film.check_output(tmp_path / name, source, **options)
        film.write(tmp_path / name, film.frames(source), source, **options)
        kept = film.probe(tmp_path / name).pixel_aspect == Fraction(16, 11)
        assert kept != any("16/11" in note for note in notes), (name, options, notes)


def test_titles_languages_and_chapters_are_copied(tmp_path):
    source, out = tmp_path / "in.mkv", tmp_path / "out.mkv"
    films.make(source, sound=("flac", "flac"))
    tagged = tmp_path / "tagged.mkv"
    with av.open(str(source)) as old, av.open(str(tagged), "w") as new:
        new.metadata["title"] = "Grandmother's garden"
        pairs = {s.index: new.add_stream_from_template(s, opaque=True) for s in old.streams}
        for stream in old.streams.audio:
            pairs[stream.index].metadata["language"] = stream.metadata["language"]
        new.set_chapters([{"id": 1, "start": 0, "end": 200, "time_base": MILLISECOND, "metadata": {"title": "One"}}])
        for packet in old.demux():
            if packet.size:
                packet.stream = pairs[packet.stream_index]
                new.mux(packet)
    film.write(out, film.frames(tagged), tagged)
    with av.open(str(out)) as container:
        assert container.metadata["title"] == "Grandmother's garden"
        assert [stream.metadata["language"] for stream in container.streams.audio] == ["eng", "deu"]
        assert [chapter["metadata"]["title"] for chapter in container.chapters()] == ["One"]


@pytest.mark.parametrize("suffix", [*film.FILM_SUFFIXES, ""])
def test_a_comment_joins_the_films_own_or_is_named(tmp_path, suffix):
    source, out = tmp_path / "in.mkv", tmp_path / f"out{suffix}"
    films.make(tmp_path / "plain.mkv", "ffv1")
    with av.open(str(tmp_path / "plain.mkv")) as old, av.open(str(source), "w") as new:
        new.metadata["comment"] = "Filmed in 1931."
        stream = new.add_stream_from_template(old.streams.video[0], opaque=True)
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream = stream
                new.mux(packet)
    notes = film.check_output(out, source, comment="Made here.")
    film.write(out, film.frames(source), source, comment="Made here.")
    own = ["Filmed in 1931."] if suffix else []  # which a folder of pictures does not have
    assert film.comments(out) == ([] if suffix == ".ts" else [*own, "Made here."])
    assert any("cannot tell that it is finished" in note for note in notes) == (suffix == ".ts")
    if not suffix:
        pictures = sorted(out.iterdir())
        assert [Image.open(file).info.get("Comment") for file in pictures[:2]] == ["Made here.", None]
        Image.open(pictures[0]).verify()
        np.testing.assert_array_equal(np.stack(list(film.frames(out))), np.stack(list(film.frames(source))))
    assert (
        film.comments(tmp_path / "plain.mkv") == film.comments(tmp_path / "none.mkv") == film.comments(tmp_path) == []
    )


def test_a_title_that_is_not_utf8_stops_nothing(tmp_path):
    """Old cameras and converters wrote tags in the code page of their day."""
    plain, source, out = tmp_path / "plain.mkv", tmp_path / "in.mkv", tmp_path / "out.mkv"
    films.make(plain)
    with av.open(str(plain)) as old, av.open(str(source), "w") as new:
        new.metadata["title"] = "Cafe de Paris"
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream = stream
                new.mux(packet)
    source.write_bytes(source.read_bytes().replace(b"Cafe de", b"Caf\xe9 de"))  # é in Latin-1
    assert b"Caf\xe9 de Paris" in source.read_bytes()
    film.write(out, film.frames(source), source)
    assert len(list(film.frames(out))) == len(list(film.frames(plain)))
    written = out.read_bytes()
    assert any(form in written for form in (b"Caf\xe9 de Paris", "Caf\ufffd de Paris".encode()))


# --- frames ---


@pytest.mark.parametrize(
    ("name", "encoder", "options"),
    [
        ("a.mp4", "libx264", {"g": "5", "bf": "2"}),
        ("a.mkv", "libx265", {"x265-params": "keyint=5:min-keyint=5:open-gop=1:bframes=3:log-level=none"}),
        ("a.mkv", "mpeg2video", {"g": "5", "bf": "2"}),
        ("a.webm", "libvpx-vp9", {"g": "5"}),
        ("a.avi", "mpeg4", {"g": "5"}),
        ("a.ts", "libx264", {"g": "5"}),
    ],
)
def test_any_range_is_the_same_frames(tmp_path, name, encoder, options):
    path = tmp_path / name
    films.make(path, encoder, clip=films.pictures(18), options=options)
    everything = list(film.frames(path))
    assert len(everything) == 18
    for start, stop in ((0, 1), (1, 6), (4, 5), (5, 9), (7, None), (10, 18), (16, 40), (17, None)):
        part = list(film.frames(path, start, stop))
        assert len(part) == len(everything[start:stop])
        for got, wanted in zip(part, everything[start:stop], strict=True):
            np.testing.assert_array_equal(got, wanted)
    assert list(film.frames(path, 18)) == []


def test_a_late_start_does_not_decode_what_is_before(tmp_path):
    """The first packets are spoilt; frames after a later keyframe come all the same."""
    path = tmp_path / "a.mp4"
    films.make(path, clip=films.pictures(20), options={"g": "5", "bf": "0"})
    wanted = list(film.frames(path, 12))
    with av.open(str(path)) as container:
        places = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    for place, size in places[2:5]:
        data[place : place + size] = b"\xff" * size
    path.write_bytes(data)
    for got, expected in zip(film.frames(path, 12), wanted, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_wrong_ranges_are_refused_at_once(tmp_path):
    films.make(tmp_path / "a.mp4")
    for start, stop in ((-1, None), (3, 3), (4, 2)):
        with pytest.raises(ValueError, match="start and stop"):
            film.frames(tmp_path / "a.mp4", start, stop)


# --- colour ---


def expected_rgb(planes, bits, weights=(0.2126, 0.0722)):
    """RGB 0..255 from limited-range YCbCr planes ``(3, H, W)``, by BT.709's own equations."""
    red, blue = weights
    scale = 2.0 ** (bits - 8)
    y, cb, cr = planes[0] / scale - 16, planes[1] / scale - 128, planes[2] / scale - 128
    y, cb, cr = y / 219, cb / 224, cr / 224
    r, b = y + 2 * (1 - red) * cr, y + 2 * (1 - blue) * cb
    g = (y - red * r - blue * b) / (1 - red - blue)
    return 255 * np.stack([r, g, b], -1)


@pytest.mark.parametrize(("pixels", "bits"), [("yuv444p", 8), ("yuv444p10le", 10), ("yuv444p12le", 12)])
def test_decoded_colours_are_the_rounded_ones(tmp_path, pixels, bits):
    """FFV1's planes, read raw, converted in NumPy."""
    path = tmp_path / "a.mkv"
    films.make(path, "ffv1", pixels)
    with av.open(str(path)) as container:
        kind = np.uint8 if bits == 8 else np.uint16
        raw = [
            np.stack([np.frombuffer(p, kind).reshape(48, -1)[:, :64] for p in frame.planes])
            for frame in container.decode(video=0)
        ]
    for picture, planes in zip(film.frames(path), raw, strict=True):
        error = picture - expected_rgb(planes.astype(float), bits).clip(0, 255)
        assert np.abs(error).max() < 0.6 and abs(error.mean()) < 0.05


@pytest.mark.parametrize(("name", "encoder", "pixels"), [
    ("in.mp4", "libx264", "yuv420p"), ("in.mkv", "libx265", "yuv420p10le"), ("in.avi", "mjpeg", "yuvj420p"),
    ("in.webm", "libvpx-vp9", "yuv420p"), ("in.mov", "libx264", "yuv420p10le"), ("in.mkv", "ffv1", "yuv420p"),
])  # fmt: skip
@pytest.mark.parametrize("out", ["out.mkv", "out.mp4"])
def test_lightness_of_lossless_output_is_that_of_the_input(tmp_path, name, encoder, pixels, out):
    """Coloured over, as `color.merge_luminance` does; L* by scikit-image, in-gamut pixels."""
    source = tmp_path / name
    films.make(source, encoder, pixels)
    gray = color.to_gray(np.stack(list(film.frames(source))))
    paint = np.roll(films.pictures(8, seed=5), 3, axis=0)
    film.write(tmp_path / out, (color.merge_luminance(g[None], p[None])[0] for g, p in zip(gray, paint, strict=True)),
               source, lossless=True)  # fmt: skip
    done = np.stack(list(film.frames(tmp_path / out)))
    inside = ((done > 2) & (done < 253)).all(-1)
    assert inside.mean() > 0.5
    before = rgb2lab(np.repeat(gray[..., None], 3, -1))[..., 0]
    error = (rgb2lab(done)[..., 0] - before)[inside]
    assert 10 * np.log10(100**2 / np.mean(error**2)) >= 45


@pytest.mark.parametrize(
    ("out", "codec"), [("out.mp4", "h264"), ("out.mkv", "hevc"), ("out.webm", "vp9"), ("out.mkv", "av1")]
)
def test_colour_tags_are_bt709_limited_and_the_hue_is_right(tmp_path, out, codec):
    """Flat swatches: the file's tags, and its planes against BT.709's equations."""
    swatches = np.array([[200, 40, 40], [40, 180, 60], [50, 60, 210], [210, 200, 60], [60, 190, 190], [180, 70, 180]])
    clip = np.repeat(np.repeat(swatches.reshape(1, 2, 3, 3), 24, 1), 32, 2).astype(np.uint8)  # (1, 48, 96, 3)
    films.make(tmp_path / "in.mkv", "ffv1", clip=clip)
    film.write(tmp_path / out, clip, tmp_path / "in.mkv", codec=codec, crf=4)
    with av.open(str(tmp_path / out)) as container:
        context = container.streams.video[0].codec_context
        frame = next(container.decode(video=0))
        tags = (context.colorspace, context.color_primaries, context.color_trc, context.color_range)
    assert tags == (1, 1, 1, 1) and frame.format.name == "yuv420p"
    planes = frame.to_ndarray()
    luma = planes[:48][12::24, 16::32].astype(float)
    cb, cr = (plane[6::12, 8::16].astype(float) for plane in planes[48:].reshape(2, 24, 48))
    red, green, blue = (swatches.reshape(2, 3, 3) / 255).transpose(2, 0, 1)
    y = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    np.testing.assert_allclose(luma, 16 + 219 * y, atol=3)
    np.testing.assert_allclose(cb, 128 + 224 * (blue - y) / 1.8556, atol=3)
    np.testing.assert_allclose(cr, 128 + 224 * (red - y) / 1.5748, atol=3)


# --- folders of images ---


def test_images_in_film_out_and_film_in_images_out(tmp_path):
    clip = films.pictures(5)
    folder = tmp_path / "stills"
    folder.mkdir()
    for index, picture in enumerate(clip):
        cv2.imwrite(str(folder / f"still{index + 8}.png"), picture[..., ::-1])
    information = film.probe(folder)
    assert information.is_folder and information.num_frames == 5 and not information.variable_rate
    assert film.times(folder) == grid(5, Fraction(25))
    np.testing.assert_array_equal(np.stack(list(film.frames(folder, 1, 4))), clip[1:4])
    film.write(tmp_path / "a.mkv", film.frames(folder), folder, lossless=True, rate=films.NTSC)
    np.testing.assert_array_equal(np.stack(list(film.frames(tmp_path / "a.mkv"))), clip)
    assert apart(film.times(tmp_path / "a.mkv"), grid(5)) <= MILLISECOND
    film.write(tmp_path / "b.mp4", film.frames(folder), folder)
    assert film.times(tmp_path / "b.mp4") == grid(5, Fraction(25))

    target = tmp_path / "new" / "images"
    film.write(target, film.frames(tmp_path / "a.mkv"), tmp_path / "a.mkv")
    assert sorted(os.listdir(target)) == [f"{k:06d}.png" for k in range(5)]
    assert np.array_equal(cv2.imread(str(target / "000003.png"))[..., ::-1], clip[3])
    assert os.listdir(target.parent) == ["images"]
    film.write(tmp_path / "named", film.frames(folder), folder)
    assert sorted(os.listdir(tmp_path / "named")) == sorted(os.listdir(folder))
    assert np.array_equal(cv2.imread(str(tmp_path / "named/still10.png"))[..., ::-1], clip[2])
    (folder / "still11.png").rename(folder / "STILL10.jpg")  # the same name, where capitals do not count
    film.write(tmp_path / "numbered", film.frames(folder), folder)
    assert sorted(os.listdir(tmp_path / "numbered")) == [f"{k:06d}.png" for k in range(5)]

    before = sorted(target.iterdir())
    with pytest.raises(ValueError, match="not empty") as error:
        film.write(target, film.frames(folder), folder)
    assert_sentence(error, target)
    assert sorted(target.iterdir()) == before


def test_pictures_of_every_kind_are_frames_in_natural_order(tmp_path):
    """Written by Pillow; formats that lose something are held loosely."""
    kinds = (".png", ".webp", ".TIF", ".bmp", ".jp2", ".ppm", ".tga", ".gif", ".jpg", ".avif", ".pcx", ".tiff")
    clip, folder = films.pictures(len(kinds)), tmp_path / "stills"
    folder.mkdir()
    for number, (kind, picture) in enumerate(zip(kinds, clip, strict=True), 5):
        lossless = {"lossless": True} if kind == ".webp" else {}
        Image.fromarray(picture).save(folder / f"{'Still' if number % 2 else 'still'}{number}{kind}", **lossless)
    (folder / "notes.txt").write_text("about the stills")
    assert film.probe(folder).num_frames == len(kinds) and len(film.times(folder)) == len(kinds)
    for kind, taken, picture in zip(kinds, film.frames(folder), clip, strict=True):
        lossy = kind in (".gif", ".jpg", ".avif", ".jp2")
        assert np.abs(taken.astype(int) - picture).mean() < (8 if lossy else 1e-9), kind
    written = film.write(tmp_path / "out", film.frames(folder), folder)
    assert len(list(written.iterdir())) == len(kinds)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("s2.dpx", b"SDPX", "s2.dpx is a picture of a kind that is not read"),
        ("s2.heic", b"ftypheic", "s2.heic is a picture of a kind that is not read"),
        ("s2.svg", b"<svg/>", "s2.svg is a picture of a kind that is not read"),
        ("s2.webp", b"RIFF broken", "s2.webp cannot be read as an image"),
        ("s2.tif", "several", "s2.tif holds several pictures"),
        ("s2.tif", "F", "s2.tif is a picture of a kind that is not read"),
        ("s2.tif", "I", "s2.tif is a picture of a kind that is not read"),
        ("s2.png", (16, 24), "s2.png is 24x16 and the images before it 64x48"),
    ],
)
def test_a_picture_that_cannot_be_a_frame_is_refused_by_name_at_once(tmp_path, name, content, message):
    stills = [Image.fromarray(picture) for picture in films.pictures(3)]
    for number in (0, 1, 3):
        stills[0].save(tmp_path / f"s{number}.png")
    if content == "several":
        stills[0].save(tmp_path / name, save_all=True, append_images=stills[1:])
    elif content in ("F", "I"):  # 32 bits a value
        stills[0].convert(content).save(tmp_path / name)
    elif isinstance(content, tuple):
        stills[0].resize(content[::-1]).save(tmp_path / name)
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        film.probe(tmp_path)
    assert_sentence(error)


def test_a_picture_that_a_camera_turned_is_upright(tmp_path):
    turned = Image.fromarray(films.pictures(1)[0])
    tags = turned.getexif()
    tags[274] = 6  # Exif: turn by 90 degrees clockwise
    for name in ("a.jpg", "b.jpg"):
        turned.save(tmp_path / name, exif=tags)
    information = film.probe(tmp_path)
    assert (information.height, information.width) == (64, 48) == next(film.frames(tmp_path)).shape[:2]


# --- faults of writing ---


def test_too_few_or_too_many_frames_or_another_size_leave_the_older_file(tmp_path):
    source, out = tmp_path / "in.mp4", tmp_path / "out.mp4"
    clip = films.make(source)
    out.write_bytes(b"the older file")
    for wrong, message in (
        (clip[:7], "has 8 frames, but only 7"),
        (np.concatenate([clip, clip[:1]]), "has 8 frames, and more were given"),
        (clip[:, :40], "has size"),
        (iter(()), "no frames"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            film.write(out, wrong, source)
        assert_sentence(error)
        assert out.read_bytes() == b"the older file" and sorted(os.listdir(tmp_path)) == ["in.mp4", "out.mp4"]

    def breaking():
        yield clip[0]
        raise RuntimeError("the model stopped")

    for target in (out, tmp_path / "images"):
        with pytest.raises(RuntimeError, match="the model stopped"):
            film.write(target, breaking(), source)
    assert out.read_bytes() == b"the older file" and sorted(os.listdir(tmp_path)) == ["in.mp4", "out.mp4"]


def test_the_source_is_not_overwritten(tmp_path):
    films.make(tmp_path / "in.mp4")
    before = (tmp_path / "in.mp4").read_bytes()
    (tmp_path / "link.mp4").symlink_to(tmp_path / "in.mp4")
    for out in ("in.mp4", "link.mp4"):
        with pytest.raises(ValueError, match="is the source itself") as error:
            film.write(tmp_path / out, never(), tmp_path / "in.mp4")
        assert_sentence(error)
    assert (tmp_path / "in.mp4").read_bytes() == before


def test_what_killed_runs_left_is_removed_and_what_others_write_is_not(tmp_path):
    films.make(tmp_path / "in.mp4")
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    left = tmp_path / f".out.partial-{child.pid}.mp4"
    fresh = tmp_path / f".out.partial-{child.pid}.mkv"
    living = tmp_path / f".out.partial-{os.getppid()}.mp4"
    for path in (left, fresh, living):
        path.write_bytes(b"half a film")
    for path in (left, living):
        os.utime(path, (0, 0))
    film.write(tmp_path / "out.mp4", film.frames(tmp_path / "in.mp4"), tmp_path / "in.mp4")
    assert not left.exists() and fresh.exists() and living.exists()


def never():
    raise AssertionError("a frame was asked for")
    yield


def test_check_output_leaves_nothing_and_accepts_what_write_accepts(tmp_path):
    films.make(tmp_path / "in.mp4", sound=("aac",))
    for out in ("out.mp4", "out.mkv", "out.mov", "out.avi", "out.ts", "out.webm", "folder"):
        film.check_output(tmp_path / out, tmp_path / "in.mp4")
    assert os.listdir(tmp_path) == ["in.mp4"]


def test_check_output_leaves_no_folder_that_it_made(tmp_path):
    films.make(tmp_path / "in.mkv")
    film.check_output(tmp_path / "new" / "deep" / "out.mkv", tmp_path / "in.mkv")
    assert os.listdir(tmp_path) == ["in.mkv"]
    (tmp_path / "own").mkdir()
    film.check_output(tmp_path / "own" / "out.mkv", tmp_path / "in.mkv")
    assert (tmp_path / "own").is_dir()


@pytest.mark.parametrize("name", ["out.mkv", "folder"])
@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_kept_and_its_target_written(name, there, tmp_path):
    films.make(tmp_path / "in.mkv")
    target = tmp_path / "disk" / name
    target.parent.mkdir()
    (tmp_path / name).symlink_to(target)
    if there:
        target.touch() if target.suffix else target.mkdir()
    assert film.write(tmp_path / name, film.frames(tmp_path / "in.mkv"), tmp_path / "in.mkv") == tmp_path / name
    assert (tmp_path / name).is_symlink() and os.listdir(target.parent) == [name]
    assert film.times(target) == film.times(tmp_path / "in.mkv") or not target.suffix


def test_a_rehearsal_shares_no_new_folder_with_another_process(tmp_path, monkeypatch):
    """Of two processes, the one that ends its rehearsal removes what it made while the other begins its own."""
    films.make(tmp_path / "in.mkv")
    real, out = av.open, tmp_path / "new" / "out.mkv"

    def after_the_other(*args, **kwargs):
        if out.parent.exists():
            out.parent.rmdir()
        return real(*args, **kwargs)

    monkeypatch.setattr(av, "open", after_the_other)
    film.check_output(out, tmp_path / "in.mkv")
    assert os.listdir(tmp_path) == ["in.mkv"]


def test_a_folder_or_a_dead_link_named_like_a_picture_is_refused_by_name(tmp_path):
    cv2.imwrite(str(tmp_path / "0.png"), np.zeros((48, 64, 3), np.uint8))
    (tmp_path / "1.png").mkdir()
    with pytest.raises(OSError, match=r"1\.png cannot be read as an image"):
        film.probe(tmp_path)
    (tmp_path / "1.png").rmdir()
    (tmp_path / "2.png").symlink_to("gone.png")
    with pytest.raises(OSError, match=r"2\.png cannot be read as an image"):
        film.probe(tmp_path)


@pytest.mark.parametrize(
    ("out", "options", "message"),
    [
        ("out.gif", {}, "must end in one of"),
        ("out.mp4", {"codec": "x265"}, "codec must be one of"),
        ("out.webm", {"codec": "h264"}, "out.webm cannot hold libx264: choose another codec"),
        ("out.mp4", {"crf": 99}, "crf must be"),
        ("out.mp4", {"pixels": "rgb24"}, "takes the pixel formats yuv420p, "),
        ("out.mkv", {"lossless": True, "crf": 3}, "leave out lossless, or codec"),
        ("out.mp4", {"preset": "no-such-preset"}, "cannot be written|cannot hold"),
    ],
)
def test_wrong_choices_are_told_in_one_sentence(tmp_path, out, options, message):
    films.make(tmp_path / "in.mp4")
    with pytest.raises(ValueError, match=message) as error:
        film.check_output(tmp_path / out, tmp_path / "in.mp4", **options)
    assert_sentence(error)
    assert os.listdir(tmp_path) == ["in.mp4"]


def test_a_codec_of_even_sizes_is_refused_for_an_odd_one_and_its_advice_works(tmp_path):
    films.make(tmp_path / "in.mkv", "ffv1", "bgr0", films.pictures(2, (65, 67)))
    with pytest.raises(ValueError, match="67x65: choose another codec") as error:
        film.check_output(tmp_path / "out.mkv", tmp_path / "in.mkv", codec="av1")
    assert_sentence(error)
    film.check_output(tmp_path / "out.mkv", tmp_path / "in.mkv", codec="h264")


@pytest.mark.parametrize("out", ["out.mp4", "out.mkv", "images"])
def test_a_file_that_outgrows_the_disk_is_told_and_removed(tmp_path, out):
    """The limit on file sizes stands for the full disk: both reach FFmpeg as a failed write."""
    source = tmp_path / "in.mkv"
    clip = np.random.default_rng(0).integers(0, 256, (8, 48, 64, 3), dtype=np.uint8)
    films.make(source, "ffv1", "yuv444p", clip)
    taken = list(film.frames(source))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))
    try:
        with pytest.raises(OSError) as error:
            film.write(tmp_path / out, taken, source, lossless=out != "images")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_sentence(error, "is full")
    assert os.listdir(tmp_path) == ["in.mkv"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KB, where this machine lets us mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        refused = subprocess.run(command, capture_output=True, check=False).returncode
    except OSError:
        refused = True
    if refused:
        pytest.skip("mounting a small file system is not permitted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("out", ["out.mp4", "out.mkv", "images"])
def test_a_full_disk_is_told_and_left_as_it_was(tmp_path, small_disk, out):
    source = tmp_path / "in.mkv"
    clip = np.random.default_rng(0).integers(0, 256, (12, 48, 64, 3), dtype=np.uint8)
    films.make(source, "ffv1", "yuv444p", clip)
    (small_disk / "older").write_bytes(b"kept")
    with pytest.raises(OSError) as error:
        film.write(small_disk / out, film.frames(source), source, lossless=out != "images")
    assert_sentence(error, "is full")
    assert os.listdir(small_disk) == ["older"]


# --- faults of reading ---


def everything(path):
    film.probe(path)
    film.times(path)
    return sum(1 for _ in film.frames(path))


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "a.webm", "a.mov"])
@pytest.mark.parametrize("share", [0.03, 0.5, 0.75])
def test_a_truncated_file_is_told(tmp_path, name, share):
    path = tmp_path / name
    encoder = "libvpx-vp9" if name.endswith("webm") else "libx264"
    films.make(path, encoder, clip=films.pictures(12), rate=Fraction(12), options={"g": "4"})
    assert everything(path) == 12
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match="cut short|cannot be read|no frame") as error:
        everything(path)
    assert_sentence(error, path)


def test_an_mp4_with_its_index_first_that_is_cut_short_is_told(tmp_path):
    films.make(tmp_path / "in.mp4", clip=films.pictures(12))
    path = tmp_path / "web.mp4"
    film.write(path, film.frames(tmp_path / "in.mp4"), tmp_path / "in.mp4")
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(str(path)) as container:
        last = max(packet.pos for packet in container.demux(video=0) if packet.size)
    for kept in (int(0.8 * len(data)), last, len(data) - 3):  # within a frame, before the last, within the last
        path.write_bytes(data[:kept])
        with pytest.raises(ValueError, match="cut short") as error:
            everything(path)
        assert_sentence(error, path)


@pytest.mark.parametrize("name", ["a.mp4", "a.avi"])
def test_a_header_that_promises_more_frames_is_told(tmp_path, name):
    """The file ends at a frame's end, so that no packet is broken."""
    films.make(tmp_path / "in.mkv", "ffv1", clip=films.pictures(12))
    path = tmp_path / name
    film.write(path, film.frames(tmp_path / "in.mkv"), tmp_path / "in.mkv")
    with av.open(str(path)) as container:
        places = sorted(packet.pos for packet in container.demux(video=0) if packet.size)
    path.write_bytes(path.read_bytes()[: places[5]])
    with pytest.raises(ValueError, match="5 of 12 frames") as error:
        film.times(path)
    assert_sentence(error, path)


def test_a_film_that_ends_within_its_last_frame_is_told(tmp_path):
    path = tmp_path / "a.avi"
    films.make(path, "mjpeg", "yuvj420p")
    with av.open(str(path)) as container:
        last = max(packet.pos for packet in container.demux(video=0) if packet.size)
    path.write_bytes(path.read_bytes()[: last + 100])
    with pytest.raises(ValueError, match="a packet is broken") as error:
        film.times(path)
    assert_sentence(error, path)


def test_what_is_no_film_is_told(tmp_path):
    cases = {
        "missing.mp4": (None, FileNotFoundError, "does not exist"),
        "zero.mp4": (b"", ValueError, "cannot be read as a video"),
        "text.mp4": (b"Dear film, this is a letter.\n" * 40, ValueError, "cannot be read as a video"),
        "notes.txt": (b"Dear film, this is a letter.\n" * 40, ValueError, "refers to other files"),
        "still.png": (b"\x89PNG broken", ValueError, "cannot be read as an image"),
    }
    for name, (content, kind, message) in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        for reading in (film.probe, film.times, lambda path: list(film.frames(path))):
            if name == "still.png" and reading is film.times:
                continue  # one image is one frame; its content is not looked at
            with pytest.raises(kind, match=message) as error:
                reading(tmp_path / name)
            assert_sentence(error, tmp_path / name)
    with pytest.raises(FileNotFoundError):
        film.frames(tmp_path / "missing.mp4")  # at once, not at the first frame
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        film.probe("film\0.mp4")
    assert_sentence(error)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="folder without images"):
        film.probe(tmp_path / "empty")


def test_sound_alone_is_no_film(tmp_path):
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(ValueError, match="no video stream") as error:
        film.probe(tmp_path / "sound.wav")
    assert_sentence(error)


def test_a_playlist_leads_nowhere(tmp_path):
    """Text that FFmpeg would follow to other files is no film, whatever its name."""
    films.make(tmp_path / "secret.mp4")
    films.make(tmp_path / "secret.ts")
    texts = {
        "list.mp4": "ffconcat version 1.0\nfile secret.mp4\n",
        "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:0.3,\nsecret.ts\n#EXT-X-ENDLIST\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match="refers to other files|cannot be read") as error:
            film.probe(tmp_path / name)
        assert_sentence(error, name)


def test_a_name_that_looks_like_a_protocol_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    films.make(tmp_path / "film.mp4")
    os.rename("film.mp4", "concat:a%03d|b.mp4")
    assert film.probe("concat:a%03d|b.mp4").num_frames == 8
    film.write("pipe:1.mp4", film.frames("concat:a%03d|b.mp4"), "concat:a%03d|b.mp4")
    assert film.probe("pipe:1.mp4").num_frames == 8


@pytest.mark.parametrize("encoder", ["mpeg2video", "libx264"])
def test_interlaced_films_are_refused_with_the_filter_to_use(tmp_path, encoder):
    def interlace(stream):
        stream.codec_context.flags |= 1 << 29  # AV_CODEC_FLAG_INTERLACED_ME, and of the DCT:
        stream.codec_context.flags |= 1 << 18

    options = {"x264-params": "tff=1:log-level=none"} if encoder == "libx264" else {"field_order": "tt"}
    films.make(tmp_path / "in.mkv", encoder, options=options, prepare=interlace)
    for reading in (film.probe, lambda path: list(film.frames(path))):
        with pytest.raises(ValueError, match="interlaced") as error:
            reading(tmp_path / "in.mkv")
        assert_sentence(error, "bwdif", tmp_path / "in.mkv")


def test_a_film_that_turns_interlaced_is_refused_at_that_frame(tmp_path):
    def interlace(stream):
        stream.codec_context.flags |= 1 << 29 | 1 << 18

    films.make(tmp_path / "a.m2v", "mpeg2video", options={"bf": "0"})
    films.make(tmp_path / "b.m2v", "mpeg2video", options={"bf": "0", "field_order": "tt"}, prepare=interlace)
    joined = tmp_path / "film.m2v"
    joined.write_bytes((tmp_path / "a.m2v").read_bytes() + (tmp_path / "b.m2v").read_bytes())
    assert film.probe(joined).height == 48
    taken = film.frames(joined)
    assert len([next(taken) for _ in range(7)]) == 7
    with pytest.raises(ValueError, match="interlaced .at frame [78]") as error:
        list(taken)
    assert_sentence(error, "bwdif")


def test_hdr_is_refused_with_the_filter_to_use(tmp_path):
    def quantizer(stream):
        stream.codec_context.color_trc = 16

    films.make(tmp_path / "in.mkv", "libx265", "yuv420p10le", prepare=quantizer)
    with pytest.raises(ValueError, match=r"HDR \(PQ\)") as error:
        film.probe(tmp_path / "in.mkv")
    assert_sentence(error, "tonemap")


@pytest.mark.skipif(sys.platform == "win32", reason="rights of folders work otherwise there")
def test_a_folder_and_a_file_without_the_right_to_read_are_told(tmp_path):
    """As another user where the tests run as root, whom no right stops."""
    for name in ("folder", "film.mp4"):
        path = tmp_path / name
        if name == "folder":
            path.mkdir()
        else:
            films.make(path)
        path.chmod(0)
        try:
            said = as_nobody(lambda path=path: film.probe(path)) if os.geteuid() == 0 else caught(film.probe, path)
        finally:
            path.chmod(0o700)
        assert said.startswith("PermissionError: ") and name in said
        assert_sentence(said)


def caught(call, *args):
    try:
        call(*args)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def as_nobody(call):
    """What `call` raises in a forked process without any rights, as text."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        os.write(writing, caught(call).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(child, 0)
    return said


# --- fuzzing ---


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    made = []
    for name, encoder, sound in (
        ("a.mp4", "libx264", ("aac",)), ("a.mkv", "mpeg2video", ("flac",)), ("a.avi", "mjpeg", ("pcm_s16le",)),
        ("a.webm", "libvpx-vp9", ()), ("a.mov", "mpeg4", ()), ("b.mkv", "ffv1", ()),
    ):  # fmt: skip
        pixels = "yuvj420p" if encoder == "mjpeg" else "yuv420p"
        films.make(folder / name, encoder, pixels, films.pictures(3, (16, 16)), sound=sound)
        made.append((folder / name).read_bytes())
    return made


CHANGES = st.lists(
    st.tuples(st.sampled_from(["set", "cut", "insert", "head"]), st.floats(0, 1), st.binary(min_size=1, max_size=8)),
    min_size=1,
    max_size=12,
)


def mutate(data, changes):
    data = bytearray(data)
    for kind, share, content in changes:
        place = int(share * len(data)) if kind != "head" else int(share * min(len(data), 700))
        if kind == "cut":
            del data[place : place + len(content) ** 2]
        elif kind == "insert":
            data[place:place] = content
        else:
            data[place : place + len(content)] = content
    return bytes(data)


def check_fuzzed(originals, folder, which, changes):
    path = folder / f"{os.urandom(8).hex()}.mp4"
    path.write_bytes(mutate(originals[which], changes))
    try:
        everything(path)
    except (ValueError, OSError) as error:  # FileNotFoundError is an OSError
        assert not isinstance(error, av.FFmpegError), error
        assert_sentence(error)
    finally:
        path.unlink()


FUZZED = (st.integers(0, 5), CHANGES)
UNCHECKED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@settings(max_examples=300, suppress_health_check=UNCHECKED)
@given(*FUZZED)
def test_spoilt_films_raise_nothing_but_the_documented_errors(originals, tmp_path, which, changes):
    check_fuzzed(originals, tmp_path, which, changes)


@pytest.mark.slow
@settings(max_examples=2000, suppress_health_check=UNCHECKED)
@given(*FUZZED)
def test_two_thousand_spoilt_films(originals, tmp_path, which, changes):
    check_fuzzed(originals, tmp_path, which, changes)
