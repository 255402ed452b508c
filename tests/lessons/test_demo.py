"""The demo's own function on a toy model: its files, and its numbers computed again."""

import json

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


def missing_clips() -> list[str]:
    """Commands that install those of the demo's clips that are not there."""
    wanted = []
    for scene in demo.SCENES:
        try:
            clips.find(scene.clip)
        except FileNotFoundError:
            wanted.append(clips.NAMES[scene.clip].install_command)
    return wanted


pytestmark = pytest.mark.skipif(bool(missing_clips()), reason=f"the demo's clips are not installed: {missing_clips()}")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    tiny.pipeline(folder / "source").save_pretrained(folder / "toy")
    return folder / "toy"


@pytest.fixture(scope="module")
def done(weights, tmp_path_factory):
    """The folder that the demo's command wrote, what the demo returned, and what it printed."""
    out, results, run = tmp_path_factory.mktemp("demo") / "not yet there", [], demo.run
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr("builtins.print", lambda *words, **_: printed.append(" ".join(map(str, words))))
        patch.setattr(demo, "run", lambda *given: results.append(run(*given)) or results[0])
        options = {"--out": out, "--weights": weights, "--steps": STEPS, "--frames": FRAMES}
        patch.setattr("sys.argv", ["demo", *(str(text) for option in options.items() for text in option)])
        demo.main()
    return out, results[0], printed


def psnr(pred: np.ndarray, truth: np.ndarray) -> float:
    """Mean over frames of 10 log10(255^2 / MSE)."""
    errors = [np.mean((p.astype(float) - t) ** 2) for p, t in zip(pred, truth, strict=True)]
    return float(np.mean([10 * np.log10(255**2 / e) for e in errors]))


def truth_frames(scene) -> np.ndarray:
    """Every second frame of the scene through OpenCV, scaled to cover 448x256, the middle cut out."""
    capture, frames = cv2.VideoCapture(str(clips.find(scene.clip))), []
    while len(frames) < scene.first + 2 * FRAMES:
        more, frame = capture.read()
        assert more
        frames.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
    scaled = []
    for frame in frames[scene.first :: 2]:
        height, width = frame.shape[:2]
        scale = max(448 / width, 256 / height)
        wide, high = round(width * scale), round(height * scale)
        left, top = round((wide - 448) / 2), round((high - 256) / 2)
        frame = cv2.resize(frame, (wide, high), interpolation=cv2.INTER_AREA)
        scaled.append(frame[top : top + 256, left : left + 448])
    return np.stack(scaled)


def loaded(scene) -> np.ndarray:
    return clips.load_clip(scene.clip, scene.first, FRAMES, demo.STRIDE)


@pytest.mark.parametrize("scene", demo.SCENES, ids=lambda scene: scene.clip)
def test_the_scenes_are_read(scene):
    frames = loaded(scene)
    assert frames.shape == (FRAMES, 256, 448, 3) and frames.dtype == np.uint8
    assert np.abs(frames.astype(int) - truth_frames(scene)).mean() < 3  # decoders round differently, by a level or two


def test_files_are_there(done):
    out, _, _ = done
    assert sorted(p.name for p in out.iterdir()) == ["demo.mp4", "numbers.json", "sheet.jpg"]
    assert (out / "sheet.jpg").read_bytes().startswith(b"\xff\xd8\xff")
    assert (out / "sheet.jpg").stat().st_size < 400_000
    height, width = cv2.imread(str(out / "sheet.jpg")).shape[:2]
    assert 800 < width < 2500 and 600 < height < 2500


def test_video_shows_all_ways_side_by_side(done):
    out, _, _ = done
    shown = video.read(out / "demo.mp4")
    assert shown.frames.shape == (len(demo.SCENES) * FRAMES, 2 * 256, 3 * 448, 3) and float(shown.fps) == 12.5
    for number, scene in enumerate(demo.SCENES):  # one after the other
        part = shown.frames[number * FRAMES : (number + 1) * FRAMES]
        truth = loaded(scene)
        assert psnr(part[:, 40:256, 448 : 2 * 448], truth[:, 40:]) > 25  # the second tile; labels are above row 40
        first = part[:, 40:256, :448].astype(int)
        assert np.abs(first - first.mean(-1, keepdims=True)).mean() < 3  # the first one is gray


def test_numbers_computed_again(done, weights):
    out, result, _ = done
    stored = json.loads((out / "numbers.json").read_text(encoding="utf-8"))
    assert stored == result
    assert list(stored["numbers"]) == [scene.clip for scene in demo.SCENES] and stored["frames"] == FRAMES
    pipe = GCGPipeline.from_pretrained(weights)
    pipe.set_progress_bar_config(disable=True)
    for scene in demo.SCENES:
        truth, numbers = loaded(scene), stored["numbers"][scene.clip]
        gray = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in truth])
        ways = {"gray input": np.repeat(gray[..., None], 3, -1)}
        options = {"exemplar": {"reference": {0: truth[0]}}, "from nothing": {}}
        options |= {label: {"prompt": prompt} for label, prompt in zip(demo.WORDS, scene.prompts, strict=False)}
        for label, option in options.items():
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
    assert len(result["seconds"]) == 2 + len(demo.SCENES)
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


def test_command_line_prints_where_things_are(done):
    out, _, lines = done
    printed = "\n".join(lines)
    for name in ("sheet.jpg", "demo.mp4", "numbers.json"):
        assert str(out / name) in printed and (out / name).is_file()
    assert "flow propagation" in printed and "PSNR dB" in printed
