"""gcgkit.data.prepare: prepared folders against frames read by hand, and against damaged or changing sources."""

import hashlib
import json
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from gcgkit import color, video
from gcgkit.data import footage
from gcgkit.data import prepare as preparation
from gcgkit.data.prepare import Source, prepare


def noise(frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth coloured noise ``(T, H, W, 3)``, different in every frame."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (frames, 5, 7, 3), np.uint8)
    return np.stack([cv2.resize(c, (width, height), interpolation=cv2.INTER_CUBIC) for c in coarse])


def write_images(folder: Path, frames: np.ndarray, suffix: str = "png") -> None:
    folder.mkdir(parents=True)
    for i, frame in enumerate(frames):
        cv2.imwrite(str(folder / f"{i:05d}.{suffix}"), frame[..., ::-1])


def write_lossless(path: Path, frames: np.ndarray) -> np.ndarray:
    """A lossless yuv420p H.265 .mkv as LDV's, and what its pixels are worth in RGB by an independent conversion."""
    path.parent.mkdir(parents=True, exist_ok=True)
    planes = [cv2.cvtColor(frame, cv2.COLOR_RGB2YUV_I420) for frame in frames]
    codec = "libx265" if "libx265" in av.codecs_available else "ffv1"
    options = {"x265-params": "lossless=1:log-level=none", "preset": "ultrafast"} if codec == "libx265" else {}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for plane in planes:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(plane, format="yuv420p")))
        container.mux(stream.encode(None))
    return np.stack([cv2.cvtColor(plane, cv2.COLOR_YUV2RGB_I420) for plane in planes])


@pytest.fixture(scope="module")
def davis(tmp_path_factory):
    """A small DAVIS in its official layout: 854x480 JPEG frames, lists of the splits."""
    root = tmp_path_factory.mktemp("data")
    sizes = {"bear": 5, "swan": 3, "tractor": 4}
    for seed, (name, count) in enumerate(sizes.items()):
        write_images(root / "DAVIS/JPEGImages/480p" / name, noise(count, 480, 854, seed), "jpg")
    lists = root / "DAVIS/ImageSets/2017"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("tractor\nbear\n")
    (lists / "val.txt").write_text("swan")
    (lists / "test-dev.txt").write_text("missing\n")
    return root


def read(path: Path) -> np.ndarray:
    return cv2.imread(str(path), cv2.IMREAD_COLOR)[..., ::-1]


def test_davis_frames_are_what_footage_reads(davis, tmp_path):
    folder = tmp_path / "davis-train"
    manifest = prepare(preparation.davis_sources(davis, "train"), folder, about="DAVIS 2017, train")
    assert [(c["clip"], c["frames"], c["source_size"]) for c in manifest["clips"]] == [
        ("bear", 5, [480, 854]),
        ("tractor", 4, [480, 854]),
    ]
    expected = {k: manifest[k] for k in ("version", "name", "kind", "height", "width", "fit", "format", "complete")}
    assert expected == {
        "version": 1, "name": "davis-train", "kind": "clips", "height": 256, "width": 448, "fit": "stretch",
        "format": "png", "complete": True,
    }  # fmt: skip
    for clip in manifest["clips"]:
        frames = np.stack([read(p) for p in preparation.frame_paths(folder, clip, "png")])
        assert np.array_equal(frames, footage.davis_clip(davis / "DAVIS/JPEGImages/480p" / clip["clip"]))
        assert color.to_gray(frames).shape == (clip["frames"], 256, 448)
    assert json.loads((folder / "manifest.json").read_text()) == manifest == preparation.read_manifest(folder)
    assert {p.name for p in folder.iterdir()} == {"manifest.json", "frames"}
    assert sorted(p.name for p in (folder / "frames/bear").iterdir()) == [f"{i:05d}.png" for i in range(5)]


def test_checksums_are_of_the_files(davis, tmp_path):
    folder = tmp_path / "davis-val"
    (clip,) = prepare(preparation.davis_sources(davis, "val"), folder)["clips"]
    contents = [(folder / f"frames/swan/{i:05d}.png").read_bytes() for i in range(3)]
    digest = hashlib.sha256(b"".join(hashlib.sha256(data).digest() for data in contents)).hexdigest()
    assert (clip["bytes"], clip["sha256"]) == (sum(map(len, contents)), digest)
    preparation.verify(folder)
    (folder / "frames/swan/00001.png").write_bytes(contents[0])
    with pytest.raises(ValueError, match="swan in .* has changed"):
        preparation.verify(folder)
    (folder / "frames/swan/00001.png").unlink()
    with pytest.raises(ValueError, match=r"00001\.png is missing"):
        preparation.verify(folder)


def test_a_second_run_does_nothing_and_a_changed_list_goes_on(davis, tmp_path):
    folder = tmp_path / "set"
    sources = preparation.davis_sources(davis, "train")
    prepare(sources[:1], folder)
    times = {p: p.stat().st_mtime_ns for p in folder.rglob("*.png")}
    first = prepare(sources[:1], folder)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*.png")} == times
    more = prepare(sources, folder)
    assert len(more["clips"]) == 2 and first["clips"][0] in more["clips"]
    assert all(p.stat().st_mtime_ns == t for p, t in times.items())


def test_a_run_that_broke_goes_on(davis, tmp_path):
    """The clip under way leaves no folder of its name; the manifest says that it is incomplete."""
    good, bad = preparation.davis_sources(davis, "train")
    broken = tmp_path / "broken"
    write_images(broken, noise(3, 64, 96))
    (broken / "00002.png").write_bytes(b"no image")
    folder = tmp_path / "set"
    with pytest.raises(ValueError, match=r"00002\.png cannot be read"):
        prepare([good, Source("tractor2", broken)], folder, workers=1)
    assert [p.name for p in (folder / "frames").iterdir() if not p.name.startswith(".")] == [good.clip]
    with pytest.raises(ValueError, match="is not complete: run the command that prepared it again"):
        preparation.read_manifest(folder)
    assert not preparation.read_manifest(folder, incomplete=True)["complete"]
    write_images(tmp_path / "mended", noise(3, 64, 96))
    again = prepare([good, Source("tractor2", tmp_path / "mended")], folder)
    assert again["complete"] and again == prepare([good, Source("tractor2", tmp_path / "mended")], tmp_path / "set")
    # a clip that was finished when the manifest was not
    (folder / "manifest.json").unlink()
    assert prepare([good, Source("tractor2", tmp_path / "mended")], folder) == again


def test_other_settings_are_refused(davis, tmp_path):
    folder = tmp_path / "set"
    sources = preparation.davis_sources(davis, "val")
    prepare(sources, folder)
    with pytest.raises(ValueError, match="was prepared with format png, not jpg"):
        prepare(sources, folder, image_format="jpg")
    with pytest.raises(ValueError, match="was prepared with height 256, not 64"):
        prepare(sources, folder, size=(64, 112))
    for options, words in (
        ({"kind": "films"}, "kind must be"),
        ({"image_format": "gif"}, "image_format must be"),
        ({"size": (4, 448)}, "at least 8 pixels"),
    ):
        with pytest.raises(ValueError, match=words):
            prepare(sources, tmp_path / "other", **options)
    with pytest.raises(ValueError, match="have the same name"):
        prepare(sources * 2, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_jpeg_keeps_colours(davis, tmp_path):
    """Half the colour resolution, JPEG's default, would cost 10 levels at a red-blue edge; this costs next to none."""
    edge = np.zeros((2, 64, 96, 3), np.uint8)
    edge[:, :, :47] = (255, 0, 0)
    edge[:, :, 47:] = (0, 0, 255)
    write_images(tmp_path / "edge", edge)
    prepare([Source("edge", tmp_path / "edge")], tmp_path / "set", size=(64, 96), image_format="jpg")
    found = read(tmp_path / "set/frames/edge/00001.jpg").astype(int)
    assert np.abs(found - edge[0]).max() <= 12 and np.abs(found - edge[0]).mean() < 2


def test_lossless_video_is_decoded_frame_for_frame(tmp_path):
    """An independent conversion of the same planes differs by rounding and chroma placement only."""
    expected = write_lossless(tmp_path / "LDV/001.mkv", noise(33, 64, 112))
    sources = preparation.ldv_sources(tmp_path, ["001"])
    (clip,) = prepare(sources, tmp_path / "ldv-train", size=(64, 112))["clips"]
    assert clip["frames"] == 33 and clip["source_size"] == [64, 112]
    frames = np.stack([read(p) for p in sorted((tmp_path / "ldv-train/frames/001").iterdir())])
    assert np.array_equal(frames, video.read(sources[0].path).frames)
    assert np.abs(frames.astype(int) - expected).mean() < 5  # another matrix would make it 10 and more
    order = [np.abs(frames[i].astype(int) - expected).mean((1, 2, 3)).argmin() for i in range(33)]
    assert order == list(range(33))


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_video_cut_off_is_refused(tmp_path, share):
    write_lossless(tmp_path / "LDV/001.mkv", noise(60, 64, 112))
    whole = (tmp_path / "LDV/001.mkv").read_bytes()
    (tmp_path / "LDV/001.mkv").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ValueError, match=r"001\.mkv (is cut short or damaged|cannot be read)"):
        prepare(preparation.ldv_sources(tmp_path, ["001"]), tmp_path / "ldv-train", size=(64, 112))
    assert not (tmp_path / "ldv-train/frames/001").exists()


def test_missing_data_names_the_command(davis, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train\.txt does not exist: run python data_scripts/davis\.py"):
        preparation.davis_sources(tmp_path, "train")
    with pytest.raises(FileNotFoundError, match=r"missing cannot be found: run python data_scripts/davis\.py"):
        preparation.davis_sources(davis, "test-dev")
    with pytest.raises(FileNotFoundError, match=r"001\.mkv and 2 more cannot be found: run .*ldv\.py"):
        preparation.ldv_sources(tmp_path, ["001", "002", "003"])
    with pytest.raises(FileNotFoundError, match=r"run python data_scripts/photos\.py"):
        preparation.photo_sources(tmp_path)
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        preparation.folder_sources(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"holds no manifest\.json"):
        preparation.read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot be read as a manifest"):
        preparation.read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text('{"version": 99}')
    with pytest.raises(ValueError, match="is of version 99, not 1"):
        preparation.read_manifest(tmp_path)


def test_photographs_are_covered_not_stretched(tmp_path):
    """Two tall stripes keep their widths in proportion; the held-out twentieth stays out."""
    photos = tmp_path / "data/photos/bsds"
    photos.mkdir(parents=True)
    picture = np.zeros((321, 481, 3), np.uint8)
    picture[:, 200:280] = 255
    for i in range(21):
        cv2.imwrite(str(photos / f"{i:03d}.jpg"), picture if i == 1 else picture[::-1])
    sources = preparation.photo_sources(tmp_path / "data")
    assert [s.clip for s in sources] == [f"{i:03d}" for i in range(1, 20)]
    manifest = prepare(sources[:2], tmp_path / "photos-train", kind="photos")
    assert (manifest["height"], manifest["width"], manifest["fit"]) == (341, 597, "cover")
    assert [(c["frames"], c["source_size"]) for c in manifest["clips"]] == [(1, [321, 481])] * 2
    found = read(tmp_path / "photos-train/frames/001/00000.png")
    assert found.shape == (341, 597, 3)
    stripe = (found[170, :, 0] > 128).sum()
    assert abs(stripe - 80 * 597 / 481) < 3  # 481 columns fill 597: scaled by 1.24, cut above and below


def test_own_footage(tmp_path):
    write_images(tmp_path / "mine/walk", noise(2, 64, 96))
    video.write(tmp_path / "mine/film.mp4", noise(4, 64, 96), 25)
    (tmp_path / "mine/notes.txt").write_text("no clip")
    (tmp_path / "mine/.hidden").mkdir()
    sources = preparation.folder_sources(tmp_path / "mine")
    assert [s.clip for s in sources] == ["film", "walk"]
    manifest = prepare(sources, tmp_path / "set", size=(32, 48))
    assert [(c["clip"], c["frames"]) for c in manifest["clips"]] == [("film", 4), ("walk", 2)]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds neither videos"):
        preparation.folder_sources(tmp_path / "empty")


def test_too_small_a_disk_is_told_before_it_starts(davis, tmp_path):
    sources = preparation.davis_sources(davis, "val")
    with pytest.raises(OSError, match="preparing set needs .* free: make room"):
        prepare(sources, tmp_path / "set", size=(10**8, 10**8))
    assert not (tmp_path / "set").exists()


def test_many_threads_give_the_same(davis, tmp_path):
    sources = preparation.davis_sources(davis, "train")
    one = prepare(sources, tmp_path / "one/set", workers=1)
    assert prepare(sources, tmp_path / "four/set", workers=4) == one
