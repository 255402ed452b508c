"""Reading footage from small folders: what is for measuring stays out of training, and pictures keep their aspect."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gcgkit import video
from gcgkit.data.footage import (
    MEASURING_CLIPS,
    SIZE,
    cover,
    davis_clip,
    measuring_clips,
    photo_paths,
    read_image,
    training_clips,
    video_clip,
)


def write(path, rgb=(0, 0, 0), size=(27, 48)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((*size, 3), rgb[::-1], np.uint8))


@pytest.fixture
def data(tmp_path):
    davis = tmp_path / "DAVIS/JPEGImages/480p"
    for name in ("goat", "cows-and-dogs", *MEASURING_CLIPS):
        for i in range(3):
            write(davis / name / f"{i:05d}.jpg", (60 * i, 100, 40))
    (davis / "notes.txt").write_text("no clip")
    clip = np.stack([np.full((36, 64, 3), 20 * i, np.uint8) for i in range(10)])
    (tmp_path / "clips").mkdir()
    for name in ("surfer", "blackswan"):  # the second is a measuring clip in another guise
        video.write(tmp_path / "clips" / f"{name}.mp4", clip, 25)
    return tmp_path


def test_measuring_clips_never_come_out_of_training(data):
    found = dict(training_clips(data))
    assert set(found) == {"goat", "cows-and-dogs", "surfer"}
    assert found["goat"].shape == (3, 256, 448, 3) and found["surfer"].shape == (10, 256, 448, 3)


def test_measuring_clips(data):
    found = list(measuring_clips(data, limit=2))
    assert [name for name, _ in found] == list(MEASURING_CLIPS)
    assert all(frames.shape == (2, 256, 448, 3) for _, frames in found)
    assert [round(float(frames[1, ..., 0].mean()), -1) for _, frames in found] == [60] * 6
    assert set(MEASURING_CLIPS) == {"blackswan", "cows", "dog", "drift-straight", "horsejump-high", "soapbox"}


def test_empty_folders_hold_nothing(tmp_path):
    assert list(training_clips(tmp_path)) == [] == photo_paths(tmp_path)
    with pytest.raises(ValueError, match="none of the measuring clips: put DAVIS"):
        list(measuring_clips(tmp_path))


def test_photographs_for_measuring_are_one_in_twenty(tmp_path):
    for i in range(43):
        write(tmp_path / "photos" / ("a" if i % 2 else "b/c") / f"{i:03d}.jpg", size=(2, 2))
    write(tmp_path / "photos/picture.png")
    training, held_out = photo_paths(tmp_path), photo_paths(tmp_path, held_out=True)
    assert not set(training) & set(held_out)
    assert len(held_out) == 3 and len(training) == 40  # of 43: the first, the 21st, the 41st
    assert sorted([*training, *held_out]) == sorted((tmp_path / "photos").rglob("*.jpg"))
    assert photo_paths(tmp_path) == training


def test_read_image_gives_rgb(tmp_path):
    write(tmp_path / "red.png", (250, 10, 20))
    assert (read_image(tmp_path / "red.png") == (250, 10, 20)).all()


@given(
    size=st.tuples(st.integers(30, 200), st.integers(30, 200)),
    target=st.tuples(st.integers(8, 64), st.integers(8, 64)),
    at=st.floats(0, 1),
)
def test_cover_keeps_the_aspect(size, target, at):
    rows, columns = np.mgrid[: size[0], : size[1]].astype(np.float32)
    picture = np.stack([rows, columns, np.full(size, 7, np.float32)], -1)  # each pixel holds its own place
    out = cover(picture, target, at)
    assert out.shape == (*target, 3)
    scale = max(target[0] / size[0], target[1] / size[1])
    inner = out[target[0] // 4 : -(target[0] // 4), target[1] // 4 : -(target[1] // 4)]
    # The step from pixel to pixel is the same on both sides; scaled sides are rounded to whole pixels.
    for k, axis in ((0, 0), (1, 1)):
        if inner.shape[axis] > 1:
            step = np.diff(inner[..., k], axis=axis).mean()
            assert step == pytest.approx(1 / scale, rel=0.5 / target[k] + 0.03, abs=0.02)
    np.testing.assert_allclose(out[..., 2], 7, atol=1e-3)
    # One side is used whole, so its middle stays the middle.
    whole = 0 if target[0] / size[0] >= target[1] / size[1] else 1
    assert out[..., whole].mean() == pytest.approx((size[whole] - 1) / 2, abs=0.02 * size[whole])


def test_cover_cuts_where_it_is_told():
    picture = np.zeros((10, 40, 3), np.uint8)
    picture[:, :10], picture[:, -10:] = 100, 200
    assert (cover(picture, (10, 10), 0.0) == 100).all()
    assert (cover(picture, (10, 10), 1.0) == 200).all()
    assert (cover(picture.swapaxes(0, 1), (10, 10), 1.0) == 200).all()
    assert (cover(picture, (10, 10)) == 0).all()
    assert np.array_equal(cover(picture, (10, 40)), picture)
    assert cover(picture).shape == (*SIZE, 3) == (256, 448, 3)


def test_davis_clips_are_scaled_whole(tmp_path):
    picture = np.zeros((48, 84, 3), np.uint8)
    picture[:, :42] = 255
    for i in range(3):
        cv2.imwrite(str(tmp_path / f"{2 - i:05d}.jpg"), picture if i else 255 - picture)
    frames = davis_clip(tmp_path)
    assert frames.shape == (3, 256, 448, 3)
    assert frames[0, :, :200].min() > 240 and frames[0, :, 248:].max() < 15  # both halves are there, in their place
    assert frames[2, :, :200].max() < 15  # the file named last
    assert len(davis_clip(tmp_path, limit=2)) == 2


def test_video_clips_are_spread_evenly(tmp_path):
    clip = np.stack([np.full((36, 64, 3), 10 * i, np.uint8) for i in range(21)])
    video.write(tmp_path / "ramp.mp4", clip, 25)
    frames = video_clip(tmp_path / "ramp.mp4", limit=5)
    assert frames.shape == (5, 256, 448, 3)
    np.testing.assert_allclose(frames.mean((1, 2, 3)), [0, 50, 100, 150, 200], atol=4)
    assert len(video_clip(tmp_path / "ramp.mp4")) == 21


def test_errors_name_the_file(tmp_path):
    (tmp_path / "torn.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="torn.jpg"):
        read_image(tmp_path / "torn.jpg")
    with pytest.raises(ValueError, match="missing.jpg"):
        read_image(tmp_path / "missing.jpg")
    (tmp_path / "torn.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match="torn.mp4"):
        video_clip(tmp_path / "torn.mp4")
    (tmp_path / "hollow").mkdir()
    with pytest.raises(ValueError, match="hollow"):
        davis_clip(tmp_path / "hollow")
