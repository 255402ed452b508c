"""Video files: what is written comes back, in its hue, size and order, with its sound; faults give one sentence."""

import colorsys
import resource

import av
import cv2
import numpy as np
import pytest
import small_films as films

from gcgkit import video

PATCH = 16
SWATCHES = np.array(
    [
        [220, 30, 30], [30, 200, 40], [40, 50, 220], [230, 220, 40],
        [40, 210, 210], [200, 60, 200], [240, 140, 30], [120, 70, 40],
        [128, 128, 128], [255, 255, 255], [0, 0, 0], [255, 170, 190],
    ],
    np.uint8,
)  # fmt: skip


def swatch_clip(frames=6):
    """Twelve flat patches of 16 x 16, in 3 rows of 4, that change places from frame to frame."""
    clip = np.zeros((frames, 3 * PATCH, 4 * PATCH, 3), np.uint8)
    for t in range(frames):
        board = np.roll(SWATCHES, t, axis=0).reshape(3, 4, 3)
        clip[t] = board.repeat(PATCH, axis=0).repeat(PATCH, axis=1)
    return clip


def centres(clip):
    return clip[:, PATCH // 2 :: PATCH, PATCH // 2 :: PATCH].astype(int)


def tone(seconds, rate=22050):
    time = np.arange(round(seconds * rate)) / rate
    sound = np.stack([np.sin(2 * np.pi * 330 * time), np.sin(2 * np.pi * (200 + 400 * time) * time)])
    return video.Audio((0.5 * sound).astype(np.float32), rate, "stereo")


def test_default_file_keeps_colours_order_size_and_rate(tmp_path):
    clip = swatch_clip()
    video.write(tmp_path / "clip.mp4", clip, 30000 / 1001)
    back = video.read(tmp_path / "clip.mp4")
    assert back.frames.dtype == np.uint8 and back.frames.shape == clip.shape
    assert back.fps == pytest.approx(30000 / 1001, rel=1e-9) and back.audio is None
    assert np.abs(centres(back.frames) - centres(clip)).max() <= 3
    for got, wanted in zip(centres(back.frames).reshape(-1, 3), centres(clip).reshape(-1, 3), strict=True):
        hue, saturation, _ = colorsys.rgb_to_hsv(*wanted / 255)
        if saturation > 0.2:
            turn = abs(colorsys.rgb_to_hsv(*got / 255)[0] - hue)
            assert min(turn, 1 - turn) * 360 < 2  # degrees; the BT.601 matrix instead of BT.709 turns some hues by more


def test_default_file_is_tagged_and_converted_as_bt709_limited_range(tmp_path):
    """The planes are decoded by hand with BT.709's own numbers."""
    clip = swatch_clip(1)
    video.write(tmp_path / "clip.mp4", clip, 24, crf=1)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        context = container.streams.video[0].codec_context
        tags = (context.colorspace, context.color_primaries, context.color_trc, context.color_range)
        assert context.pix_fmt == "yuv420p" and tags == (1, 1, 1, 1)
        frame = next(container.decode(video=0))
    planes = frame.to_ndarray()  # (H * 3 / 2, W): Y, then U and V at half size
    height, width = clip.shape[1:3]
    luma = planes[:height][PATCH // 2 :: PATCH, PATCH // 2 :: PATCH].astype(float)
    chroma = planes[height:].reshape(2, height // 2, width // 2)[:, PATCH // 4 :: PATCH // 2, PATCH // 4 :: PATCH // 2]
    red, green, blue = np.moveaxis(centres(clip)[0] / 255, -1, 0)
    y = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    np.testing.assert_allclose(luma, 16 + 219 * y, atol=2)
    np.testing.assert_allclose(chroma[0], 128 + 224 * (blue - y) / 1.8556, atol=2)
    np.testing.assert_allclose(chroma[1], 128 + 224 * (red - y) / 1.5748, atol=2)


@pytest.mark.parametrize("name", ["clip.mkv", "clip.mp4"])
def test_lossless_file_returns_every_value(tmp_path, name):
    clip = np.random.default_rng(0).integers(0, 256, (4, 31, 47, 3), dtype=np.uint8)
    video.write(tmp_path / name, clip, 25, lossless=True)
    np.testing.assert_array_equal(video.read(tmp_path / name).frames, clip)


def test_odd_sizes_are_kept(tmp_path):
    clip = swatch_clip(2)[:, :47, :63]
    video.write(tmp_path / "odd.mp4", clip, 24)
    back = video.read(tmp_path / "odd.mp4").frames
    assert back.shape == clip.shape
    assert np.abs(centres(back) - centres(clip)).max() <= 3


def test_untagged_files_are_read_as_bt601_when_small_and_bt709_when_large(tmp_path):
    for matrix, (height, width) in ((5, (64, 64)), (1, (64, 1280))):
        path = tmp_path / f"{width}.mkv"
        picture = np.zeros((height, width, 3), np.uint8) + np.array([40, 160, 60], np.uint8)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("ffv1", rate=25)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv444p"
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame = frame.reformat(format="yuv444p", dst_colorspace=matrix, src_color_range=2, dst_color_range=1)
            frame.colorspace = 2  # unspecified
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        with av.open(str(path)) as container:
            assert container.streams.video[0].codec_context.colorspace == 2
        assert np.abs(video.read(path).frames.astype(int) - picture).max() <= 2


def test_range_and_iteration_pick_the_same_frames(tmp_path):
    clip = swatch_clip(9)
    video.write(tmp_path / "clip.mkv", clip, 25, lossless=True)
    np.testing.assert_array_equal(video.read(tmp_path / "clip.mkv", 3, 7).frames, clip[3:7])
    np.testing.assert_array_equal(video.read(tmp_path / "clip.mkv", 6, 100).frames, clip[6:])
    np.testing.assert_array_equal(np.stack(list(video.iterate(tmp_path / "clip.mkv", 2))), clip[2:])
    assert list(video.iterate(tmp_path / "clip.mkv", 50)) == []
    with pytest.raises(ValueError, match="no frame in the range from 50"):
        video.read(tmp_path / "clip.mkv", 50)
    with pytest.raises(ValueError, match="start and stop"):
        video.iterate(tmp_path / "clip.mkv", 4, 4)


def test_more_frames_than_the_room_made_at_first(tmp_path):
    clip = np.arange(150, dtype=np.uint8)[:, None, None, None] + np.zeros((150, 16, 16, 3), np.uint8)
    video.write(tmp_path / "long.mkv", clip, 25, lossless=True)
    assert video.probe(tmp_path / "long.mkv").num_frames is None  # Matroska does not tell
    np.testing.assert_array_equal(video.read(tmp_path / "long.mkv").frames, clip)


def test_probe_tells_what_is_in_the_file(tmp_path):
    video.write(tmp_path / "clip.mp4", swatch_clip(5), 12.5, tone(0.4))
    assert video.probe(tmp_path / "clip.mp4") == video.VideoInfo(48, 64, 12.5, 5, True)


def test_a_generator_and_gray_frames_can_be_written(tmp_path):
    clip = swatch_clip(4)
    video.write(tmp_path / "stream.mkv", (frame for frame in clip), 25, lossless=True)
    np.testing.assert_array_equal(video.read(tmp_path / "stream.mkv").frames, clip)
    video.write(tmp_path / "gray.mkv", clip[..., 0], 25, lossless=True)
    np.testing.assert_array_equal(video.read(tmp_path / "gray.mkv").frames, np.repeat(clip[..., :1], 3, axis=-1))


def test_sound_survives_exactly_when_lossless(tmp_path):
    sound = tone(0.4)
    video.write(tmp_path / "clip.mkv", swatch_clip(10), 25, sound, lossless=True)
    back = video.read(tmp_path / "clip.mkv").audio
    assert (back.rate, back.layout) == (sound.rate, "stereo")
    np.testing.assert_allclose(back.samples, sound.samples, atol=1e-4)


def test_sound_stays_in_time_with_the_pictures(tmp_path):
    sound = tone(2.0)
    video.write(tmp_path / "clip.mp4", swatch_clip(50), 25, sound)
    part = video.read(tmp_path / "clip.mp4", 20, 40).audio.samples  # 0.8 s to 1.6 s
    assert part.shape == (2, round(0.8 * sound.rate))
    begin = round(0.8 * sound.rate)
    window = part[1, 2000:10000]
    shifts = range(-600, 601)
    errors = [np.abs(window - sound.samples[1, begin + 2000 + s : begin + 10000 + s]).mean() for s in shifts]
    assert abs(shifts[int(np.argmin(errors))]) <= sound.rate // 1000  # within a millisecond
    assert video.read(tmp_path / "clip.mp4", audio=False).audio is None


def test_images_of_a_folder_come_in_natural_order(tmp_path):
    clip = swatch_clip(12)
    for index, frame in enumerate(clip):
        cv2.imwrite(str(tmp_path / f"frame{index}.png"), frame[..., ::-1])
    (tmp_path / "notes.txt").write_text("not an image")
    back = video.read(tmp_path)
    np.testing.assert_array_equal(back.frames, clip)
    assert back.fps == video.IMAGE_FPS and back.audio is None
    assert video.probe(tmp_path) == video.VideoInfo(48, 64, video.IMAGE_FPS, 12, False)
    np.testing.assert_array_equal(video.read(tmp_path, 9, 11).frames, clip[9:11])
    np.testing.assert_array_equal(video.read(tmp_path / "frame3.png").frames, clip[3:4])


def test_faults_of_reading_are_told_in_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing.mp4 does not exist"):
        video.read(tmp_path / "missing.mp4")
    with pytest.raises(FileNotFoundError):
        video.iterate(tmp_path / "missing.mp4")  # at once, not at the first frame
    (tmp_path / "text.mp4").write_text("this is no video")
    with pytest.raises(ValueError, match="text.mp4 cannot be read as a video"):
        video.read(tmp_path / "text.mp4")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="folder without images"):
        video.read(tmp_path / "empty")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(ValueError, match="broken.png cannot be read as an image"):
        video.read(tmp_path / "broken.png")
    folder = tmp_path / "mixed"
    folder.mkdir()
    cv2.imwrite(str(folder / "1.png"), np.zeros((4, 4, 3), np.uint8))
    cv2.imwrite(str(folder / "2.png"), np.zeros((4, 6, 3), np.uint8))
    with pytest.raises(ValueError, match="2.png is 6x4 and"):
        video.read(folder)
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(ValueError, match="holds no video stream"):
        video.read(tmp_path / "sound.wav")


def failing_frames():
    yield swatch_clip(1)[0]
    raise RuntimeError("the model stopped")


@pytest.mark.parametrize(
    ("frames", "options", "message"),
    [
        (np.zeros((2, 8, 8, 3)), {}, "uint8"),
        (np.zeros((0, 8, 8, 3), np.uint8), {}, "no frames"),
        (iter([]), {}, "no frames"),
        (iter([np.zeros((16, 16, 3), np.uint8), np.zeros((16, 18, 3), np.uint8)]), {}, r"frames\[1\] has shape"),
        (np.zeros((16, 16, 3), np.uint8), {}, "looks like one RGB frame"),
        (5, {}, "must be an array or an iterable"),
        (swatch_clip(1), {"fps": 0}, "fps must be a positive number"),
        (swatch_clip(1), {"fps": float("nan")}, "fps must be a positive number"),
        (swatch_clip(1), {"codec": "no-such-codec"}, "no-such-codec"),
        (swatch_clip(1), {"audio": video.Audio(np.zeros(10, np.float32), 8000, "mono")}, "audio.samples"),
    ],
)
def test_faults_of_writing_are_told_in_one_sentence_and_leave_nothing(tmp_path, frames, options, message):
    with pytest.raises(ValueError, match=message):
        video.write(tmp_path / "out.mp4", frames, **{"fps": 25, **options})
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_keeps_the_older_file(tmp_path):
    path = tmp_path / "out.mp4"
    video.write(path, swatch_clip(2), 25)
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="the model stopped"):
        video.write(path, failing_frames(), 25)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_unknown_suffix_is_refused_before_anything_is_done(tmp_path):
    with pytest.raises(ValueError, match="must end in one of .mp4"):
        video.write(tmp_path / "folder" / "out.gif", swatch_clip(1), 25)
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize("degrees", [90, 180, -90])
def test_rotated_files_come_upright_as_opencv_shows_them(tmp_path, degrees):
    path = tmp_path / "phone.mp4"
    films.make(path, rotation=degrees, options={"crf": "4"})
    shown = cv2.cvtColor(cv2.VideoCapture(str(path)).read()[1], cv2.COLOR_BGR2RGB)
    frames, info = video.read(path).frames, video.probe(path)
    assert (info.height, info.width) == frames.shape[1:3] == shown.shape[:2]
    assert np.abs(frames[0].astype(int) - shown).mean() < 6


def test_interlaced_files_are_refused_with_the_filter_to_use(tmp_path):
    def interlace(stream):
        stream.codec_context.flags |= 1 << 29 | 1 << 18  # FFmpeg's flags for interlaced motion and transform

    films.make(tmp_path / "in.mkv", "mpeg2video", options={"field_order": "tt"}, prepare=interlace)
    for reading in (video.read, video.probe, lambda path: next(video.iterate(path))):
        with pytest.raises(ValueError, match="in.mkv is interlaced.*bwdif"):
            reading(tmp_path / "in.mkv")


def test_a_file_that_changes_its_size_is_told(tmp_path):
    for name, size in (("a", (48, 64)), ("b", (32, 64))):
        films.make(tmp_path / f"{name}.m2v", "mpeg2video", clip=films.pictures(3, size), options={"bf": "0"})
    joined = tmp_path / "film.m2v"
    joined.write_bytes((tmp_path / "a.m2v").read_bytes() + (tmp_path / "b.m2v").read_bytes())
    with pytest.raises(ValueError, match="changes its size at frame [23]"):
        video.read(joined)


def test_a_file_is_hardly_larger_than_from_one_thread(tmp_path):
    """x264 in slices, one for each thread, makes this file an eighth larger; real clips by 0 to 2 %."""
    board = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, (192, 320, 3), np.uint8), (0, 0), 5)
    clip = np.stack([np.roll(board, (i, 2 * i), (0, 1)) for i in range(96)])
    video.write(tmp_path / "many.mp4", clip, 24, crf=18)
    with av.open(str(tmp_path / "one.mp4"), "w") as container:
        stream = container.add_stream("libx264", 24, options={"crf": "18", "preset": "medium"})
        stream.width, stream.height, stream.codec_context.thread_count = 320, 192, 1
        for frame in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode(None))
    one, many = ((tmp_path / f"{name}.mp4").stat().st_size for name in ("one", "many"))
    assert many < 1.1 * one


@pytest.mark.parametrize("count", [1, 2, 7])
def test_few_frames_are_stored_in_order_and_at_their_times(tmp_path, count):
    """x265 gives some frames of a short film no decoding time when it stores them out of order, by chance."""
    path = tmp_path / "short.mp4"
    for _ in range(5):
        video.write(path, films.pictures(count), 25, codec="libx265", preset="ultrafast")
        with av.open(str(path)) as container:
            found = [(packet.dts, packet.pts) for packet in container.demux(video=0) if packet.size]
        assert [pts for _, pts in found] == sorted(pts for _, pts in found)
        assert all(dts == pts for dts, pts in found) and len(video.read(path).frames) == count


def test_a_name_that_looks_like_a_protocol_can_be_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    video.write("take:1.mp4", films.pictures(2), 25)
    assert len(video.read("take:1.mp4").frames) == 2


def test_a_place_that_takes_no_file_and_a_full_disk_are_told_as_such(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="out.mp4 cannot be written"):
        video.write(tmp_path / "file" / "out.mp4", films.pictures(2), 25)
    noise = np.random.default_rng(0).integers(0, 256, (8, 48, 64, 3), dtype=np.uint8)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))  # reaches FFmpeg as a full disk does
    try:
        with pytest.raises(OSError, match="is full: make room"):
            video.write(tmp_path / "out.mkv", noise, 25, lossless=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
