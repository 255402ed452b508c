"""`gcgkit status`: what it tells of a job is what a test knows of it, without torch and on one screen."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny

from gcgkit import cli, video
from gcgkit.films import shot, shots
from gcgkit.films.folder import JobFolder, encode_png
from gcgkit.films.status import read_times

ROOT = Path(__file__).resolve().parents[2]
LENGTHS = (4, 3, 5)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("film") / "film.mkv"
    video.write(path, tiny.clip(sum(LENGTHS)), 24, lossless=True)
    first = [sum(LENGTHS[:i]) for i in range(3)]
    listed = [shots.Shot(begin, begin + n - 1) for begin, n in zip(first, LENGTHS, strict=True)]
    shots.write_csv(path.with_suffix(".csv"), listed)
    path.with_suffix(".png").write_bytes(encode_png(tiny.clip(1)[0]))
    return path


def run(source: Path, out: Path, model, *more) -> int:
    arguments = ["colorize", source, out, "--profile", model, "--steps", 1, "--keyframes", 2, "--lossless"]
    return cli.main([*map(str, [*arguments, "--shots", source.with_suffix(".csv"), *more])])


def told(capsys, path) -> str:
    capsys.readouterr()
    assert cli.main(["status", str(path)]) == 0
    text = capsys.readouterr().out
    assert text.count("\n") <= 24
    return text


def test_a_job_half_done_and_then_finished(source, model, tmp_path, capsys):
    out = tmp_path / "out.mkv"
    assert run(source, out, model, "--only-shots", "1,3", "--seed", 7, "--deflicker") == 0
    text = told(capsys, out)
    assert text.split("time")[0] == told(capsys, f"{out}.job").split("time")[0]  # by the film's name or the folder's
    for part in (
        "9 of 12 (75 %) frames done", f"{source}, 64x32, 12 frames", "2 of 3 done; 1 left, the first is shot 2\n",
        f"{out}, not written yet",
        f"profile   {model}", "--keyframes 2 --steps 1 --seed 7 --deflicker", "left; last sign",
    ):  # fmt: skip
        assert part in text, (part, text)
    assert "error" not in text and "--chunk" not in text
    keyframes = len(list(Path(f"{out}.job", "keyframes").glob("*.png")))
    assert keyframes >= 4 and f", {keyframes} keyframes coloured" in text
    assert run(source, out, model) == 0
    text = told(capsys, out)
    assert "12 of 12 (100 %) frames done" in text and "3 of 3 done\n" in text and f"{out}, written, " in text
    assert "about" not in text


def test_what_went_wrong_last_is_told_until_it_goes_on(source, model, tmp_path, capsys, monkeypatch):
    out, usual = tmp_path / "out.mkv", shot.color_frame

    def failing(*inputs):
        raise ValueError("The disk of /films is full:\n make room.")

    monkeypatch.setattr(shot, "color_frame", failing)
    assert run(source, out, model) == 1
    assert re.search(r"error .* ago: The disk of /films is full: make room\.", told(capsys, out))
    monkeypatch.setattr(shot, "color_frame", lambda *inputs: 1 / 0)  # and what nobody expects
    assert run(source, out, model) == 1
    assert "division by zero" in told(capsys, out)
    monkeypatch.setattr(shot, "color_frame", usual)
    assert run(source, out, model, "--only-shots", "1") == 0
    assert "error" not in told(capsys, out)


def test_films_of_a_folder(source, model, tmp_path, capsys):
    (tmp_path / "films").mkdir()
    for name in ("a.mkv", "b.mkv"):
        shutil.copy(source, tmp_path / "films" / name)
    (tmp_path / "films" / "c.mkv").write_text("no film")
    arguments = ["colorize", tmp_path / "films", tmp_path / "out", "--profile", model, "--steps", 1]
    assert cli.main([*map(str, arguments)]) == 1
    done = JobFolder(tmp_path / "out" / "b.mkv.job")
    for number in (3, 8, 9):
        done.frame_file(number).unlink()
    (tmp_path / "out" / "b.mkv").unlink()
    text = told(capsys, tmp_path / "out")
    assert "1 of 2 films written, 21 of 24 (87 %) frames done" in text
    assert "a.mkv: 12 of 12 (100 %) frames  written" in text and "b.mkv: 9 of 12 (75 %) frames\n" in text
    for number in range(40):
        shutil.copytree(done.path, tmp_path / "out" / f"more{number}.mkv.job")
    assert "and 27 more" in told(capsys, tmp_path / "out")


def test_a_film_and_pictures_that_are_gone(source, model, tmp_path, capsys):
    copy = Path(shutil.copy(source, tmp_path / "in.mkv"))
    shutil.copy(source.with_suffix(".csv"), copy.with_suffix(".csv"))
    assert run(copy, tmp_path / "out", model) == 0
    copy.unlink()
    assert "in.mkv (not there now), 64x32, 12 frames" in told(capsys, tmp_path / "out")
    for path in (tmp_path / "out.job").rglob("*.png"):
        path.unlink()
    text = told(capsys, tmp_path / "out")
    assert "of unknown size" in text and "0 of 12 (0 %)" in text and "3 left, the first is shot 1" in text


@pytest.mark.parametrize("name", [b"film\xff.mkv", b"two\nlines.mkv", b"'quoted' \"twice\".mkv", b"-dash.mkv"])
def test_a_name_that_is_no_text_stops_nothing(source, model, tmp_path, capsys, name):
    out = tmp_path / os.fsdecode(name)
    assert run(source, out, model, "--only-shots", "1") == 0
    assert "4 of 12" in told(capsys, out)
    assert run(source, out, model, "--clean") == 0
    assert "12 frames, written" in told(capsys, out)
    assert os.listdir(os.fsencode(tmp_path)) == [name]


@pytest.mark.parametrize("name", ["nothing.mp4", "file.mp4", "empty", "."])
def test_no_job_is_one_sentence(name, tmp_path, capsys):
    (tmp_path / "file.mp4").write_text("a film of another")
    (tmp_path / "empty").mkdir()
    assert cli.main(["status", str(tmp_path / name)]) == 1
    output = capsys.readouterr()
    assert "is no job of gcgkit colorize: give" in output.err and output.err.count("\n") == 1 and output.out == ""


def test_a_damaged_record_is_one_sentence(source, model, tmp_path, capsys):
    assert run(source, tmp_path / "out.mkv", model, "--only-shots", "1") == 0
    (tmp_path / "out.mkv.job" / "job.json").write_text("{")
    assert cli.main(["status", str(tmp_path / "out.mkv")]) == 1
    assert "job.json cannot be read" in capsys.readouterr().err
    assert "job.json cannot be read" in told(capsys, tmp_path)  # among others


def test_times_of_a_log_by_hand(tmp_path):
    """Two runs of 100 s in all with 10 frames, an hour apart, then two processes; broken lines are passed by."""
    lines = [("begun", 1, 0), ("run", 1, 0), *(("done", 1, 10 * n) for n in range(1, 6)), ("failed", 1, 50)]
    lines += [("run", 2, 3650), *(("keyframe kept", 2, 3650 + 10 * n) for n in range(1, 6))]

    def write():
        text = ""
        for event, process, second in lines:
            moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(1_700_000_000 + second))
            text += json.dumps({"time": moment, "process": process, "event": event, "error": "x", "output": "o"}) + "\n"
        (tmp_path / "log.jsonl").write_text("[]\n" + text + '{"time": "now"}\n{"ti')

    write()
    times = read_times(JobFolder(tmp_path), 6)
    assert (times.worked, times.left, times.last, times.error) == (100, 60, 1_700_003_700, None)
    lines += [("run", 2, 9000), ("run", 3, 9000)]
    lines += [("done", 2 + n % 2, 9000 + 5 * (n + 1)) for n in range(40)]  # each takes 10 s for a frame
    write()
    times = read_times(JobFolder(tmp_path), 60)
    assert times.left == pytest.approx(60 * 10 / 2, rel=0.05) and times.worked == pytest.approx(100 + 400, abs=10)
    lines += [("failed", 3, 9300)]
    write()
    assert read_times(JobFolder(tmp_path), 60).error == (1_700_009_300, "x")
    assert read_times(JobFolder(tmp_path / "none"), 60).left is None


def test_status_a_finished_film_and_refusals_load_neither_torch_nor_a_model(source, model, tmp_path):
    assert run(source, tmp_path / "out.mkv", model, "--only-shots", "1") == 0
    assert run(source, tmp_path / "done.mkv", model, "--reference", source.with_suffix(".png")) == 0
    again = ["colorize", source, tmp_path / "done.mkv", "--lossless"]
    commands = [["status", tmp_path / "out.mkv"], again, [*again, "--seed", 5], [*again[:2], tmp_path / "a.gif"]]
    code = (
        "import json, sys; from gcgkit import cli; print([cli.main(argv) for argv in json.loads(sys.argv[1])]);"
        "print(*{'torch', 'diffusers'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps([[*map(str, argv)] for argv in commands])],
        cwd=ROOT, capture_output=True, text=True, env=os.environ,
    )  # fmt: skip
    assert done.stdout.splitlines()[-2:] == ["[0, 0, 1, 1]", ""] and "4 of 12" in done.stdout, done
    assert "Nothing is left to do" in done.stdout and "--seed 0, not 5" in done.stderr
