"""The command: run as a user runs it, its result held against the library's own, its faults one sentence each."""

import gc
import os
import platform
import re
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import av
import cv2
import numpy as np
import prepared
import pytest
import tiny
from skimage.color import rgb2lab

import gcgkit
from gcgkit import cli, profiles, video
from gcgkit.color import to_gray
from gcgkit.data import clips
from gcgkit.films import load
from gcgkit.utils.commands import reason

ROOT = Path(__file__).resolve().parents[2]
FPS, FRAMES = 24, 6


def command(*arguments, **environment) -> subprocess.CompletedProcess:
    """Run the command in a process of its own, from the repository."""
    return subprocess.run(
        [sys.executable, "-m", "gcgkit.cli", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environment},
    )  # fmt: skip


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    return tiny.clip(FRAMES)


@pytest.fixture(scope="module")
def tone() -> video.Audio:
    wave = 0.5 * np.sin(2 * np.pi * 440 * np.arange(FRAMES * 16000 // FPS) / 16000)
    return video.Audio(np.stack([wave, -wave]).astype(np.float32), 16000, "stereo")


def images(folder: Path, frames) -> Path:
    folder.mkdir()
    for i, frame in enumerate(frames):
        cv2.imwrite(str(folder / f"{i}.png"), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    return folder


def lightness_error(frames: np.ndarray, clip: np.ndarray) -> np.ndarray:
    """Difference of L*, of 100, between a result and the gray clip, where the result was not clipped to the gamut."""
    inside = ((frames > 0) & (frames < 255)).all(-1)
    assert inside.mean() > 0.2
    wanted = rgb2lab(np.repeat(to_gray(clip)[..., None], 3, axis=-1))[..., 0]
    return np.abs(rgb2lab(frames)[..., 0] - wanted)[inside]


# --- colorize --------------------------------------------------------------------------------------------------------


@pytest.mark.slow  # a fresh process imports torch and diffusers
def test_every_option_reaches_the_pipeline_and_the_sound_is_kept(tmp_path, model, clip, tone):
    """Lossless in and out, in a process of its own: bit for bit what the library gives when called with the same."""
    video.write(tmp_path / "in.mkv", clip, FPS, tone, lossless=True)
    images(tmp_path / "exemplars", [clip[1][..., ::-1], clip[4]])
    before = sorted(tmp_path.iterdir())
    done = command(
        "colorize", tmp_path / "in.mkv", tmp_path / "new" / "out.mkv", "--lossless", "--profile", model,
        "--prompt", "red car", "--negative-prompt", "green", "--guidance-scale", 3, "--seed", 5,
        "--reference", f"1={tmp_path}/exemplars/0.png", "--reference", f"4={tmp_path}/exemplars/1.png",
        "--keyframes", 3, "--steps", 2, "--chunk", 4, "--size", "96x48", "--device", "cpu",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "6 frame(s)" in done.stdout and done.stdout.rstrip().endswith(str(tmp_path / "new" / "out.mkv"))
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "new"])
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == ["out.mkv", "out.mkv.job"]

    result = video.read(tmp_path / "new" / "out.mkv")
    pipe = gcgkit.GCGPipeline.from_pretrained(model)
    options = {"num_inference_steps": 2, "num_keyframes": 3, "guidance_scale": 3.0, "chunk_size": 4}
    options["working_size"] = (48, 96)
    texts = {"prompt": "red car", "negative_prompt": "green"}
    exemplars = {1: clip[1][..., ::-1], 4: clip[4]}
    seeded = tiny.torch.Generator().manual_seed(5)
    wanted = list(pipe.stream(clip, reference=exemplars, generator=seeded, **texts, **options))
    np.testing.assert_array_equal(result.frames, wanted)
    assert result.frames.shape == clip.shape and result.fps == FPS
    assert lightness_error(result.frames, clip).max() < 1
    assert result.audio.rate == 16000 and result.audio.layout == "stereo"
    np.testing.assert_allclose(result.audio.samples, tone.samples, atol=1e-3)


def test_default_file_has_all_frames_their_lightness_and_the_sound(tmp_path, model, clip, tone, capsys):
    video.write(tmp_path / "in.mp4", clip, 30000 / 1001, tone)
    picture = images(tmp_path / "pictures", [np.full((20, 20, 3), (200, 40, 40), np.uint8)]) / "0.png"
    arguments = ["colorize", tmp_path / "in.mp4", tmp_path / "out.mp4", "--profile", model, "--steps", 2]
    assert cli.main([*map(str, arguments), "--reference", str(picture)]) == 0
    assert str(tmp_path / "out.mp4") in capsys.readouterr().out
    result = video.read(tmp_path / "out.mp4")
    assert result.frames.shape == clip.shape and result.fps == pytest.approx(30000 / 1001)
    assert np.median(lightness_error(result.frames, clip)) < 1.5  # what H.264 at the default quality leaves
    count = min(result.audio.samples.shape[1], tone.samples.shape[1])
    assert count > 0.75 * tone.samples.shape[1]  # six frames at 29.97 per second end before the tone
    assert np.corrcoef(result.audio.samples[0, :count], tone.samples[0, :count])[0, 1] > 0.95


def test_options_of_the_written_film_and_what_it_cannot_hold(tmp_path, model, clip, tone, capsys):
    video.write(tmp_path / "in.mkv", clip, FPS, tone, lossless=True)  # with FLAC
    run = ["colorize", *map(str, (tmp_path / "in.mkv", tmp_path / "out.webm", "--profile", model, "--steps", 1))]
    assert cli.main([*run, "--codec", "av1", "--crf", "20", "--pix-fmt", "yuv420p10le"]) == 0
    assert "encoded: audio stream 1 (flac) as libopus" in capsys.readouterr().out
    with av.open(str(tmp_path / "out.webm")) as container:
        (picture,), (sound,) = container.streams.video, container.streams.audio
        assert picture.codec_context.codec.canonical_name == "av1" and picture.format.name == "yuv420p10le"
        assert sound.codec_context.codec.canonical_name == "opus"
    assert cli.main([*run, "--sound", "none"]) == 0  # another film of the same frames
    assert "Coloured 0 frame(s)" in capsys.readouterr().out
    with av.open(str(tmp_path / "out.webm")) as container:
        assert not container.streams.audio and container.streams.video[0].codec_context.codec.canonical_name == "vp9"


@pytest.mark.parametrize("name", ["l" * 249 + ".ts", "ö" * 124 + ".mkv", "p" * 251])
def test_a_name_as_long_as_the_system_takes_is_taken(tmp_path, model, clip, name):
    video.write(tmp_path / "in.mkv", clip, FPS, lossless=True)
    run = ["colorize", tmp_path / "in.mkv", tmp_path / name, "--profile", model, "--steps", 1]
    assert cli.main([*map(str, run)]) == 0 == cli.main([*map(str, run)])
    assert (tmp_path / name).exists() and len(list(tmp_path.iterdir())) == 3
    assert cli.main([*map(str, run), "--clean"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["in.mkv", name])


def test_loading_is_not_counted_as_colouring(tmp_path, model, clip, capsys, monkeypatch):
    def slowly(self, profile, dtype="float32"):
        time.sleep(3)
        return quick(self, profile, dtype)

    quick = load.Loader.__call__
    monkeypatch.setattr(load.Loader, "__call__", slowly)
    video.write(tmp_path / "in.mkv", clip, FPS, lossless=True)
    started = time.monotonic()
    run = ["colorize", tmp_path / "in.mkv", tmp_path / "out.mkv", "--profile", model, "--steps", 1]
    assert cli.main([*map(str, run)]) == 0
    told = float(re.search(r"frame\(s\) in ([0-9.]+) s", capsys.readouterr().out)[1])
    assert told < time.monotonic() - started - 3
    assert gc.isenabled()  # it was off while libraries were loading


def test_existing_file_is_replaced_only_when_forced_and_only_by_a_whole_one(tmp_path, model, clip, capsys):
    broken = images(tmp_path / "broken", [*clip[:3], clip[3][:16]])
    target = tmp_path / "out.mkv"
    target.write_bytes(b"precious")
    run = ["colorize", str(broken), str(target), "--profile", str(model), "--steps", "1", "--chunk", "2", "--lossless"]
    assert cli.main([*run, "--force"]) == 1
    output = capsys.readouterr()
    assert "3.png is 64x16 and" in output.err and output.err.count("\n") == 1 and output.out == ""
    assert target.read_bytes() == b"precious" and sorted(tmp_path.iterdir()) == [broken, target]
    (broken / "3.png").unlink()
    assert cli.main(run) == 1
    assert "exists already" in capsys.readouterr().err and target.read_bytes() == b"precious"
    assert cli.main([*run, "--force"]) == 0
    assert video.read(target).frames.shape == clip[:3].shape


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere.mp4", "out.mp4"], "nowhere.mp4 does not exist"),
        (["text.mp4", "out.mp4"], "cannot be read as a video"),
        (["in.mkv", "out.gif"], "out.gif must end in one of .mp4"),
        (["in.mkv", "folder.mp4"], "is a folder"),
        (["in.mkv", os.devnull, "--force"], "is neither a file nor a folder"),
        ([os.devnull, "out.mp4"], "is neither a file nor a folder"),
        (["in.mkv", "."], "'.' is no name for a film"),
        (["in.mkv", f"new/{'n' * 252}.mp4"], "has a name of more than 255 bytes"),
        (["in.mkv", "-"], "not to '-': give names"),
        (["-", "out.mp4"], "not to '-': give names"),
        (["in.mkv", "pictures", "--force"], "name a new folder"),
        (["pictures", "pictures/out.mp4"], "pictures/out.mp4 would lie among what is read"),
        (["in.mkv", "out.mkv", "--crf", "3", "--lossless"], "leave out lossless, or codec"),
        (["in.mkv", "out.mkv", "--pix-fmt", "yuv12"], "takes the pixel formats yuv420p, "),
        (["in.mkv", "out.webm", "--codec", "hevc"], "cannot hold libx265: choose another codec"),
        (["in.mkv", "text.mp4/out.mp4"], "cannot be written"),
        (["in.mkv", "in.mkv", "--force"], "is the input itself"),
        (["in.mkv", "out.mp4", "--profile", "maxi"], "'maxi' is neither a profile"),
        (["in.mkv", "out.mp4", "--reference", "none.png"], "none.png does not exist"),
        (["in.mkv", "out.mp4", "--reference", "9=red.png"], "the last of the 6 frames is number 5"),
        (["in.mkv", "out.mp4", "--reference", "red.png", "--reference", "1=red.png"], "takes one IMAGE, or"),
        (["in.mkv", "out.mp4", "--reference", "1=red.png", "--reference", "1=red.png"], "once for each frame"),
        (["in.mkv", "out.mp4", "--reference", "1=red.png"], "crop it to the clip's aspect"),
    ],
)
def test_error_is_one_sentence_and_leaves_nothing(arguments, sentence, tmp_path, model, clip, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    video.write("in.mkv", clip, FPS, lossless=True)
    Path("text.mp4").write_text("no video")
    Path("folder.mp4").mkdir()
    Path("pictures").mkdir()
    Path("pictures/0.png").write_bytes(b"another's")
    cv2.imwrite("red.png", np.zeros((20, 20, 3), np.uint8))
    before = sorted(Path().rglob("*"))
    assert cli.main(["colorize", *arguments, *([] if "--profile" in arguments else ["--profile", str(model)])]) == 1
    output = capsys.readouterr()
    assert output.err.startswith("gcgkit: ") and sentence in output.err
    assert output.err.count("\n") == 1 and output.err.endswith(".\n") and output.out == ""
    assert sorted(Path().rglob("*")) == before


@pytest.mark.skipif(tiny.torch.cuda.is_available(), reason="a GPU is here")
def test_cuda_is_refused_where_there_is_none(tmp_path, model, clip, capsys):
    video.write(tmp_path / "in.mp4", clip, FPS)
    for device in ("cuda", "cuda:0"):
        run = ["colorize", tmp_path / "in.mp4", tmp_path / "out.mp4", "--device", device, "--profile", model]
        assert cli.main([*map(str, run)]) == 1
        assert f"--device {device}: no such GPU can be used" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["in.mp4"]


def test_exit_code_and_sentence_of_a_process_and_traceback_with_debug(tmp_path):
    failed = command("colorize", "nowhere.mp4", tmp_path / "out.mp4")
    assert failed.returncode == 1 and failed.stderr.count("\n") == 1 and "nowhere.mp4" in failed.stderr
    failed = command("colorize", "nowhere.mp4", tmp_path / "out.mp4", "--debug")
    assert failed.returncode == 1
    assert failed.stderr.startswith("Traceback") and "FileNotFoundError: nowhere.mp4" in failed.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        ["colourise"],
        ["colorize", "in.mp4"],
        *(["colorize", "in.mp4", "out.mp4", *option.split()] for option in (
            "--steps 0", "--keyframes x", "--chunk 1.5", "--seed -1", "--guidance-scale nan", "--device tpu", "--for",
            "--size 448", "--size 448x7", "--size 448*256",
            "--preview 0", "--only-shots 2,x", "--only-shots 0", "--only-shots 3-2", "--card 10gb")),
    ],
)  # fmt: skip
def test_wrong_usage_has_code_2(wrong, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(wrong)
    assert stop.value.code == 2
    assert "usage: gcgkit" in capsys.readouterr().err


# --- without a network -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["train"], ["evaluate", "--method", "gcg:owner/name"]], ids=["train", "evaluate"])
def test_without_a_network_it_stops_before_torch_loads(tmp_path, words):
    for name in ("davis-train", "davis-val", "ldv-train"):
        prepared.write_set(tmp_path / "data", name, {"bear": tiny.clip(1, 32, 64)})
    data = ["--data", str(tmp_path / "data")] if words == ["train"] else []
    words = [*words, *data, "--out", str(tmp_path / "out")]
    code = f"import sys; from gcgkit.cli.__main__ import main; print(main({words}), 'torch' in sys.modules)"
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["1", "False"], done.stderr
    assert "the hub cannot be reached (connection refused): " in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


# --- doctor and help -------------------------------------------------------------------------------------------------


def advice(text: str) -> list[str]:
    return [line[4:] for line in text.splitlines() if line.startswith("  - ")]


def test_doctor_says_what_is_here(capsys):
    assert cli.main(["doctor"]) == 0
    told, errors = capsys.readouterr()
    assert errors == ""
    rows = dict(line.split(maxsplit=1) for line in told.split("\n\n")[0].splitlines()[1:])
    assert rows["Python"] == platform.python_version() and rows["gcgkit"] == gcgkit.__version__
    for name in ("torch", "diffusers", "transformers"):
        assert rows[name] == version(name)
    assert f"{len(os.sched_getaffinity(0))} CPU cores" in rows["Computer"] and "GB of memory" in rows["Computer"]
    assert rows["H.264"] == "video   can be written"
    for codec in ("h264", "hevc", "vp9", "mpeg2video", "mjpeg", "ffv1"):
        assert (codec in rows["Reads"].split(", ")) == (codec in av.codecs_available)
    assert "h264" in rows["Writes"] and "free where you are" in rows["Disk"]
    assert [rows["Weights"]] == [", ".join(profiles.available()) or "none found"]
    gpu = tiny.torch.cuda.get_device_name() if tiny.torch.cuda.is_available() else "colouring runs on the CPU"
    assert gpu in rows["GPU"]
    missing = any("mini weights are missing" in sentence for sentence in advice(told))
    assert missing == ("mini" not in rows["Weights"].split(", "))


def test_doctor_advises_on_each_missing_thing(tmp_path, monkeypatch, capsys):
    """No weights, a clip whose package is not installed, and a torch that cannot be imported."""
    monkeypatch.setattr(profiles, "WEIGHTS", tmp_path)
    absent = clips.Clip("no-such-package-anywhere", "1.0", "x.mp4", "nothing", "none")
    monkeypatch.setitem(clips.NAMES, "absent", absent)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "Weights       none found" in text and "GPU           does not work" in text
    told = advice(text)
    assert any("mini weights are missing" in sentence for sentence in told)
    assert any(absent.install_command in sentence for sentence in told)
    assert any("GPU" in sentence and "torch" in sentence and "install gcgkit again" in sentence for sentence in told)


@pytest.mark.parametrize("arguments", [(), ("colorize",), ("doctor",)])
def test_help_fits_one_screen(arguments):
    done = command(*arguments, "--help", COLUMNS="200")
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and 5 < len(lines) <= 24 and max(map(len, lines)) < 80


def test_all_options_are_told_when_asked_for(capsys):
    told = {}
    for flag in ("--help", "--help-all"):
        with pytest.raises(SystemExit) as stop:
            cli.main(["colorize", flag])
        assert stop.value.code == 0
        told[flag] = capsys.readouterr().out
    for option in ("--prompt", "--only-shots", "--restart", "--clean", "--job", "--seed", "--debug"):
        assert option in told["--help-all"]
    assert "--help-all" in told["--help"] and "--only-shots" not in told["--help"]


def test_help_is_quick():
    seconds = []
    for _ in range(3):  # the quickest: other programs may hold the machine up
        started = time.perf_counter()
        assert command("--help").returncode == 0
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 1.5


def test_the_systems_own_error_names_the_path_and_what_to_do():
    text = reason(PermissionError(13, "Permission denied", "closed/film.mkv"))
    assert text.startswith("closed/film.mkv: permission denied; check the path") and "Errno" not in text
    assert reason(OSError("The disk is full:\nmake room.")) == "The disk is full: make room."
