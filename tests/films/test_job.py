"""Jobs: killed, shared, edited and starved, they end with the frames of a run that was left in peace."""

import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import small_films as films
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import gcgkit
from gcgkit import cli, video
from gcgkit.color import merge_luminance, rgb_to_lab, to_gray
from gcgkit.films import batch, shots
from gcgkit.films import folder as job_folder
from gcgkit.films import shot as film_shot
from gcgkit.films.folder import JobFolder
from gcgkit.films.job import Options
from gcgkit.films.prepare import DEFAULTS
from gcgkit.stages import Run
from gcgkit.video import film

ROOT = Path(__file__).resolve().parents[2]
LENGTHS = (6, 4, 5)
FIRST = (0, 6, 10)
STEPS = 2
PROCESSES = multiprocessing.get_context("forkserver")
LOADED = ("cli.__main__", "films.batch", "films.load", "films.shot")  # before the processes start, and so only once
PROCESSES.set_forkserver_preload([f"gcgkit.{module}" for module in LOADED])

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="bit for bit is promised on the CPU only")


def three_shots(lengths=LENGTHS) -> np.ndarray:
    """A film with two cuts, from dark to light, to a mirrored scene, so that they are found."""
    parts = [tiny.clip(n, seed=i) // 4 + level for i, (n, level) in enumerate(zip(lengths, (0, 190, 90), strict=True))]
    parts[1] = parts[1][:, :, ::-1]
    return np.concatenate(parts)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("film") / "film.mkv"
    video.write(path, three_shots(), 24, lossless=True)
    return path


def arguments(source, out, model, *more) -> list[str]:
    base = ["colorize", source, out, "--profile", model, "--steps", STEPS, "--keyframes", 2, "--chunk", 4, "--lossless"]
    return [*map(str, [*base, *more])]


def colour(source, out, model, *more) -> np.ndarray:
    """Run the command in this process and read the film it wrote."""
    assert cli.main(arguments(source, out, model, *more)) == 0
    return np.stack(list(film.frames(out)))


@pytest.fixture(scope="module")
def whole(clip, model, tmp_path_factory) -> tuple[np.ndarray, JobFolder]:
    """The film from a run that nothing disturbed, and its job."""
    out = tmp_path_factory.mktemp("whole") / "out.mkv"
    return colour(clip, out, model), JobFolder(f"{out}.job")


@pytest.fixture
def job(whole, tmp_path) -> Path:
    """A copy of the undisturbed job, as one for ``tmp_path / "out.mkv"`` that has not written its film."""
    shutil.copytree(whole[1].path, tmp_path / "out.mkv.job")
    (tmp_path / "out.mkv.job" / "written.json").unlink()
    return tmp_path / "out.mkv.job"


def log(folder) -> list[dict]:
    return [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]


def events(folder, *names) -> list[int]:
    return [line["frame"] for line in log(folder) if line["event"] in names]


def picture(path: Path, frame: np.ndarray) -> Path:
    cv2.imwrite(str(path), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    return path


def tinted(gray: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """A gray frame with one colour over it."""
    return merge_luminance(gray, np.full((*gray.shape, 3), color, np.uint8))


# --- one run ---------------------------------------------------------------------------------------------------------


def test_each_shot_is_coloured_as_a_film_of_its_own(whole, clip, model):
    """Bit for bit what the library's stream gives for each shot alone: keyframes of its own, nothing from outside."""
    frames, folder = whole
    listed = shots.read_csv(folder.shots_file)
    assert [(s.first, len(s)) for s in listed] == list(zip(FIRST, LENGTHS, strict=True))
    pipe = gcgkit.GCGPipeline.from_pretrained(model)
    source = list(film.frames(clip))
    for shot in listed:
        own = source[shot.first : shot.last + 1]
        seeded = torch.Generator().manual_seed(0)
        wanted = list(pipe.stream(own, 4, generator=seeded, num_keyframes=2, num_inference_steps=STEPS))
        np.testing.assert_array_equal(frames[shot.first : shot.last + 1], wanted)
        assert any(n in range(shot.first, shot.last + 1) for n in job_folder.numbered_files(folder.keyframes))
    done = events(folder.path, "done", "keyframe kept")
    assert sorted(done) == list(range(sum(LENGTHS)))


def test_a_shots_exemplar_changes_no_other_shot(whole, clip, model, tmp_path):
    frames, _ = whole
    red = picture(tmp_path / "red.png", tinted(to_gray(list(film.frames(clip))[7]), (200, 30, 30)))
    other = colour(clip, tmp_path / "out.mkv", model, "--reference", f"7={red}")
    second = slice(FIRST[1], FIRST[2])
    np.testing.assert_array_equal(other[: FIRST[1]], frames[: FIRST[1]])
    np.testing.assert_array_equal(other[FIRST[2] :], frames[FIRST[2] :])
    assert (other[second] != frames[second]).any(axis=(1, 2, 3)).all()


def test_shots_of_a_scene_share_exemplars(whole, clip, model, tmp_path):
    frames, folder = whole
    listed = shots.read_csv(folder.shots_file)
    listed[0].scene = listed[2].scene = "garden"
    picture(tmp_path / "red.png", tinted(to_gray(list(film.frames(clip))[2]), (200, 30, 30)))
    listed[0].exemplars = {2: "red.png"}
    shots.write_csv(tmp_path / "list.csv", listed)
    other = colour(clip, tmp_path / "out.mkv", model, "--shots", tmp_path / "list.csv")
    changed = (other != frames).any(axis=(1, 2, 3))
    assert changed[: FIRST[1]].all() and not changed[FIRST[1] : FIRST[2]].any() and changed[FIRST[2] :].all()
    # and for the other shot it is as a reference from outside
    pipe = gcgkit.GCGPipeline.from_pretrained(model)
    own, seeded = list(film.frames(clip))[FIRST[2] :], torch.Generator().manual_seed(0)
    red = video.read(tmp_path / "red.png").frames[0]
    options = {"num_keyframes": 2, "num_inference_steps": STEPS}
    np.testing.assert_array_equal(other[FIRST[2] :], list(pipe.stream(own, 4, red, seeded, **options)))


@pytest.mark.slow
def test_no_colour_leaks_over_cuts_measured(tmp_path):
    """The bundled weights, an exemplar of another colour in each shot: each shot's mean AB is its own exemplar's."""
    if not gcgkit.profiles.available():
        pytest.skip("the mini weights are not here")
    colors = ((190, 60, 60), (60, 170, 60), (70, 80, 200))
    source = three_shots((3, 3, 3))
    video.write(tmp_path / "in.mkv", source, 24, lossless=True)
    given = []
    for i, color in enumerate(colors):
        path = picture(tmp_path / f"{i}.png", tinted(to_gray(source[3 * i]), color))
        given += ["--reference", f"{3 * i}={path}"]
    out = tmp_path / "out.mkv"
    run = ["colorize", tmp_path / "in.mkv", out, "--steps", 8, "--keyframes", 1, "--lossless", *given]
    assert cli.main([*map(str, run)]) == 0
    frames = np.stack(list(film.frames(out)))
    ab = rgb_to_lab(frames)[..., 1:].mean(axis=(1, 2))  # (9, 2)
    own = np.stack([rgb_to_lab(frames[3 * i])[..., 1:].mean(axis=(0, 1)) for i in range(3)])  # (3, 2)
    distance = np.linalg.norm(ab[:, None] - own[None], axis=-1)  # (9, 3)
    print(np.round(distance, 1))
    for t in range(9):
        others = np.delete(distance[t], t // 3)
        assert distance[t, t // 3] < 0.35 * others.min()


# --- killed ----------------------------------------------------------------------------------------------------------


def child(argv: list[str]) -> None:
    """The command in a process of its own."""
    torch.set_num_threads(1)
    with open(os.devnull, "w") as nowhere:
        sys.stdout = sys.stderr = nowhere
        sys.exit(cli.main(argv))


def kill_at_random(argv, folder: Path, kills: int, frames: int, rng: random.Random) -> int:
    """Start the command ``kills`` times and end it with SIGKILL at a random moment each."""
    killed = 0
    for i in range(kills):
        lines = len((folder / "log.jsonl").read_text().splitlines()) if (folder / "log.jsonl").exists() else 0
        left = max(1, 2 * frames + 12 - lines) // (kills - i + 1)
        goal = lines + rng.randint(0, left)  # a share of what is left, or a fast machine is done before the last kill
        process = PROCESSES.Process(target=child, args=(argv,))
        process.start()
        deadline = time.monotonic() + 120
        while process.is_alive() and time.monotonic() < deadline:
            if (folder / "log.jsonl").exists() and len((folder / "log.jsonl").read_bytes().splitlines()) >= goal:
                break
            time.sleep(0.001)
        time.sleep(rng.random() * 0.05)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            killed += process.exitcode == -signal.SIGKILL
        else:
            process.join()
            assert process.exitcode == 0
    return killed


def check_kills(whole, clip, model, tmp_path, kills: int) -> None:
    argv, folder = arguments(clip, tmp_path / "out.mkv", model), tmp_path / "out.mkv.job"
    killed = kill_at_random(argv, folder, kills, sum(LENGTHS), random.Random(5))
    frames = colour(clip, tmp_path / "out.mkv", model)
    np.testing.assert_array_equal(frames, whole[0])
    begun = [n for line in log(folder) if line["event"] == "colour keyframes" for n in line["frames"]]
    once = [line["frames"] for line in log(folder) if line["event"] == "colour keyframes"]
    again = events(folder, "colour")
    print(f"{killed} kills, {len(again) - len(set(again))} frames and {len(once) - len(set(map(tuple, once)))} twice")
    twice = len(again) - len(set(again)) + len(once) - len(set(map(tuple, once)))
    assert twice <= killed and killed >= kills - 1
    done: set = set()
    for line in log(folder):  # what was finished is never begun again
        if line["event"] == "colour":
            assert line["frame"] not in done
        elif line["event"] == "done":
            done.add(line["frame"])
        elif line["event"] == "colour keyframes":
            assert not done & set(line["frames"])
    assert not set(begun) & done


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_killed_three_times(whole, clip, model, tmp_path):
    check_kills(whole, clip, model, tmp_path, 3)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_killed_twenty_times(whole, clip, model, tmp_path, request):
    if "slow" not in request.config.getoption("-m"):
        pytest.skip("takes minutes: run it with -m slow")
    check_kills(whole, clip, model, tmp_path, 20)


@pytest.mark.parametrize("name", ["out.mkv", "out"])
def test_killed_right_after_the_film_had_its_name(name, clip, model, tmp_path, capsys):
    """The film is there and nothing says that it is complete: the same command takes it for what it is."""
    out, run = tmp_path / name, arguments(clip, tmp_path / name, model, "--steps", 1)
    assert cli.main(run) == 0
    folder = JobFolder(f"{out}.job")
    facts = json.loads(folder.written_file.read_bytes())
    folder.written_file.unlink()
    assert "exists already" in refused(capsys, run)
    job_folder.write_json(folder.written_file, {**facts, "size": None, "changed": None})
    assert cli.main(run) == 0 and json.loads(folder.written_file.read_bytes())["size"] == out.stat().st_size
    assert len(list(film.frames(out))) == sum(LENGTHS)


def test_any_gap_is_filled_with_the_same_frames(whole, clip, model, tmp_path, job):
    frames, folder = whole
    keys = set(job_folder.numbered_files(folder.keyframes))
    lost = [n for n in (1, 3, 5, 8, 12, 14) if n not in keys]
    for n in lost:
        JobFolder(job).frame_file(n).unlink()
    before = len(log(job))
    np.testing.assert_array_equal(colour(clip, tmp_path / "out.mkv", model), frames)
    assert [line["frame"] for line in log(job)[before:] if line["event"] == "colour"] == lost


def test_a_restart_encodes_only_the_references_that_guide(model, tmp_path, monkeypatch):
    """Few of the earlier frames guide the next one, and encoding all would take longer than that frame itself."""
    video.write(tmp_path / "film.mkv", tiny.clip(9), 24, lossless=True)
    run = tmp_path / "film.mkv", tmp_path / "out.mkv", model, "--chunk", 9
    frames, folder = colour(*run), JobFolder.beside(tmp_path / "out.mkv")
    lost = max(set(range(9)) - set(job_folder.numbered_files(folder.keyframes)))
    for path in (folder.frame_file(lost), folder.written_file, tmp_path / "out.mkv"):
        path.unlink()
    encoded, guided, held, reference, color_frame = [], set(), set(), Run.reference, film_shot.color_frame

    def spy(run, gray, frame, pool):
        held.update(r.frame for r in (*pool.keys, *pool.past))
        result = color_frame(run, gray, frame, pool)
        guided.update(n for part in result[2] for n in (*part.keyframes, *part.past))
        return result

    monkeypatch.setattr(film_shot, "color_frame", spy)
    monkeypatch.setattr(Run, "reference", lambda run, n, *pictures: encoded.append(n) or reference(run, n, *pictures))
    np.testing.assert_array_equal(colour(*run), frames)
    assert sorted(encoded) == sorted(guided) and guided < held


def test_keyframes_killed_before_they_had_their_names_count(whole, clip, model, tmp_path, job):
    """The record is what makes keyframes count; a run that ended right after it left them under other names."""
    frames, folder = whole
    number = min(job_folder.numbered_files(folder.keyframes))
    path = JobFolder(job).keyframe_file(number)
    path.rename(path.with_name(f".{path.name}.tmp"))
    JobFolder(job).frame_file(1).unlink()
    JobFolder(job).frame_file(number).unlink()
    before = len(log(job))
    np.testing.assert_array_equal(colour(clip, tmp_path / "out.mkv", model), frames)
    assert path.exists() and "colour keyframes" not in [line["event"] for line in log(job)[before:]]


# --- several processes, several films --------------------------------------------------------------------------------


def share(pairs, options, index: int, count: int, threads: int, together, errors: Path) -> None:
    """What each of several processes does, once all are there. With other numbers of threads, sums may differ."""
    from gcgkit.films.load import Loader

    torch.set_num_threads(threads)
    together.wait(240)
    sys.stdout = sys.stderr = errors.open("w")  # open to the end of the process, which may write an error to it
    batch.colorize(pairs, options, Loader(), batch.Worker(index, count))


def test_two_processes_on_two_films_equal_one(whole, clip, model, tmp_path):
    (tmp_path / "films").mkdir()
    shutil.copy(clip, tmp_path / "films" / "a.mkv")
    video.write(tmp_path / "films" / "b.mkv", three_shots()[::-1], 24, lossless=True)
    pairs = batch.films([tmp_path / "films"], tmp_path / "out")
    assert [out.name for _, out in pairs] == ["a.mkv", "b.mkv"]
    options = Options(profile=str(model), num_inference_steps=STEPS, num_keyframes=2, chunk=4, lossless=True)
    together = PROCESSES.Barrier(2)
    errors = [tmp_path / f"errors-{i}" for i in range(2)]
    shared = pairs, options
    threads = torch.get_num_threads()
    both = [PROCESSES.Process(target=share, args=(*shared, i, 2, threads, together, errors[i])) for i in range(2)]
    for process in both:
        process.start()
    for process, said in zip(both, errors, strict=True):
        process.join(240)
        assert process.exitcode == 0, said.read_text()
    alone = colour(tmp_path / "films" / "b.mkv", tmp_path / "alone.mkv", model)
    for (_, out), wanted in zip(pairs, (whole[0], alone), strict=True):
        np.testing.assert_array_equal(np.stack(list(film.frames(out))), wanted)
    workers = {}
    for _, out in pairs:
        folder = f"{out}.job"
        counted = events(folder, "done", "keyframe kept")
        assert sorted(counted) == list(range(sum(LENGTHS)))  # each frame once, whoever did it
        for line in log(folder):
            if line["event"] in ("done", "keyframe kept"):
                workers.setdefault(line["process"], 0)
                workers[line["process"]] += 1
        assert len([line for line in log(folder) if line["event"] == "written"]) == 1
    assert len(workers) == 2, workers


@pytest.mark.slow
def test_accelerate_starts_the_processes(whole, clip, model, tmp_path):
    run = arguments(clip, tmp_path / "out.mkv", model, "--device", "cpu")
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
         "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
         "-m", "gcgkit.cli", *run],
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": str(ROOT),
             "CUDA_VISIBLE_DEVICES": ""},
        cwd=ROOT, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    np.testing.assert_array_equal(np.stack(list(film.frames(tmp_path / "out.mkv"))), whole[0])


def hold(path: str, held) -> None:
    lock = JobFolder(path).shot_lock(FIRST[1])
    lock.acquire()
    held.set()
    time.sleep(600)


def test_a_shot_that_another_works_on_is_left_to_it_until_that_one_dies(whole, clip, model, tmp_path, job, capsys):
    for n in range(FIRST[1], FIRST[2]):
        JobFolder(job).frame_file(n).unlink()
    held = PROCESSES.Event()
    process = PROCESSES.Process(target=hold, args=(str(job), held))
    process.start()
    assert held.wait(60)
    run = arguments(clip, tmp_path / "out.mkv", model)
    assert cli.main(run) == 0
    assert not (tmp_path / "out.mkv").exists() and "when the remaining shots are done" in capsys.readouterr().out
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    np.testing.assert_array_equal(colour(clip, tmp_path / "out.mkv", model), whole[0])


def test_one_bad_film_does_not_keep_the_others(clip, model, tmp_path, capsys):
    (tmp_path / "films").mkdir()
    shutil.copy(clip, tmp_path / "films" / "b.mkv")
    (tmp_path / "films" / "a.mp4").write_text("no film")
    run = arguments(tmp_path / "films", tmp_path / "out", model, "--steps", 1)
    assert cli.main(run) == 1
    output = capsys.readouterr()
    assert "a.mp4" in output.err.splitlines()[0] and "1 of 2 films failed" in output.err.splitlines()[-1]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["b.mkv", "b.mkv.job"]


def test_films_of_one_name_and_films_among_those_that_are_read_are_refused(tmp_path):
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "a.mpg").touch()
    with pytest.raises(ValueError, match="films/a.mkv would lie among what is read"):
        batch.films([tmp_path / "films"], tmp_path / "films")
    assert len(batch.films([tmp_path / "films"], tmp_path / "films" / "coloured")) == 1
    (tmp_path / "films" / "a.avi").touch()
    with pytest.raises(ValueError, match="would both become"):
        batch.films([tmp_path / "films"], tmp_path / "out")
    (tmp_path / "films" / "1.png").touch()
    with pytest.raises(ValueError, match="films and images"):
        batch.films([tmp_path / "films"], tmp_path / "out")


# --- a person in between ---------------------------------------------------------------------------------------------


def test_preview_then_a_changed_prompt_and_a_painted_keyframe(whole, clip, model, tmp_path, capsys):
    out, folder = tmp_path / "out.mkv", JobFolder(tmp_path / "out.mkv.job")
    assert cli.main([*arguments(clip, out, model), "--preview", "2"]) == 0
    told = capsys.readouterr().out
    keys = job_folder.numbered_files(folder.keyframes)
    assert not out.exists() and folder.done() == set() and f"Coloured {len(keys)} keyframe(s)" in told
    sheet = video.read(folder.path / "preview-01.jpg").frames[0]
    assert "preview-01.jpg" in told and sheet.shape[1] > 1000
    assert keys.keys() == job_folder.numbered_files(whole[1].keyframes).keys()
    listed = shots.read_csv(folder.shots_file)
    before = {n: path.read_bytes() for n, path in keys.items()}

    listed[1].prompt = "red car"
    shots.write_csv(folder.shots_file, listed)
    chosen = max(n for n in keys if n >= FIRST[2])
    source = list(film.frames(clip))
    painted = cv2.resize(tinted(to_gray(source[chosen]), (220, 40, 40)), (128, 64))  # twice the film's size
    picture(keys[chosen], painted)

    frames = colour(clip, out, model)
    np.testing.assert_array_equal(frames[: FIRST[1]], whole[0][: FIRST[1]])
    pipe, options = gcgkit.GCGPipeline.from_pretrained(model), {"num_keyframes": 2, "num_inference_steps": STEPS}
    second = list(pipe.stream(source[6:10], 4, None, torch.Generator().manual_seed(0), prompt="red car", **options))
    np.testing.assert_array_equal(frames[6:10], second)
    third = pipe.stream(source[10:], 4, {chosen - 10: painted}, torch.Generator().manual_seed(0), **options)
    np.testing.assert_array_equal(frames[10:], list(third))
    ab = rgb_to_lab(frames[chosen])[..., 1:].mean(axis=(0, 1))
    assert ab[0] > 20  # red is there
    for n, data in before.items():  # the first shot's keyframes are the very ones that were looked at
        if n < FIRST[1]:
            assert folder.keyframe_file(n).read_bytes() == data
    np.testing.assert_array_equal(video.read(keys[chosen]).frames[0], painted)  # what a person made stays as it is
    assert colour(clip, out, model).shape == frames.shape  # and nothing is done twice
    assert "Nothing is left to do" in capsys.readouterr().out


def test_a_finished_films_shot_can_be_changed_and_its_frames_are_kept_aside(whole, clip, model, tmp_path, job, capsys):
    first = colour(clip, tmp_path / "out.mkv", model)
    listed = shots.read_csv(job / "shots.csv")
    listed[1].prompt = "green grass"
    shots.write_csv(job / "shots.csv", listed)
    second = colour(clip, tmp_path / "out.mkv", model)
    changed = (first != second).any(axis=(1, 2, 3))
    assert changed[6:10].all() and not changed[:6].any() and not changed[10:].any()
    assert "Shot 2 has changed" in capsys.readouterr().out
    kept = {int(p.stem): p for p in (job / "replaced").rglob("frames/*.png")}
    assert sorted(kept) == [6, 7, 8, 9]
    np.testing.assert_array_equal(video.read(kept[7]).frames[0], first[7])


def test_an_earlier_folder_of_pictures_is_refused_before_anything_is_coloured_again(clip, tmp_path, model, capsys):
    out = tmp_path / "pictures"
    options = ["colorize", clip, out, "--profile", model, "--steps", STEPS, "--keyframes", 2, "--chunk", 4]
    assert cli.main([*map(str, options)]) == 0
    job = tmp_path / "pictures.job"
    before = {path: path.read_bytes() for path in (*(job / "frames").iterdir(), *out.iterdir())}
    number = min(int(path.stem) for path in (job / "keyframes").glob("*.png"))
    picture(job / f"keyframes/{number:06d}.png", np.full((*tiny.clip(1).shape[1:3], 3), (200, 80, 80), np.uint8))
    written = json.loads((job / "written.json").read_bytes())
    for state in (written, {**written, "size": None, "changed": None}):  # complete, and killed right before that
        (job / "written.json").write_text(json.dumps(state))
        assert cli.main([*map(str, options)]) == 1
        assert "move it away" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before and not (job / "replaced").exists()
    out.rename(tmp_path / "earlier")
    assert cli.main([*map(str, options)]) == 0
    assert len(list(out.iterdir())) == sum(LENGTHS) and (job / "replaced").exists()


def test_a_restart_takes_no_frames_from_a_process_at_work(clip, tmp_path, model, job, capsys):
    out = tmp_path / "out.mkv"
    before = {path: path.read_bytes() for path in (job / "frames").iterdir()}
    with JobFolder(job).shot_lock(FIRST[1]):  # as of a process that colours this shot
        assert cli.main(arguments(clip, out, model, "--restart")) == 1
        assert "Another process is at work" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before
    assert cli.main(arguments(clip, out, model, "--restart")) == 0


def test_other_borders_colour_only_what_they_touch(whole, clip, model, tmp_path, job):
    listed = shots.read_csv(job / "shots.csv")
    listed[1:] = [shots.Shot(FIRST[1], sum(LENGTHS) - 1)]
    shots.write_csv(job / "shots.csv", listed)
    before = len(log(job))
    frames = colour(clip, tmp_path / "out.mkv", model)
    np.testing.assert_array_equal(frames[: FIRST[1]], whole[0][: FIRST[1]])
    assert all(n >= FIRST[1] for n in (line.get("frame", 99) for line in log(job)[before:]))
    own, seeded = list(film.frames(clip))[FIRST[1] :], torch.Generator().manual_seed(0)
    options = {"num_keyframes": 2, "num_inference_steps": STEPS}
    pipe = gcgkit.GCGPipeline.from_pretrained(model)
    np.testing.assert_array_equal(frames[FIRST[1] :], list(pipe.stream(own, 4, None, seeded, **options)))


def test_a_keyframe_painted_while_another_shot_is_coloured_counts(whole, clip, model, tmp_path, job, monkeypatch):
    """The first shot is done, the second is not: a person paints in the third during that."""
    folder, usual = JobFolder(job), film_shot.color_frame
    frame = next(n for n in range(FIRST[1], FIRST[2]) if n not in job_folder.numbered_files(folder.keyframes))
    folder.frame_file(frame).unlink()
    chosen = max(job_folder.numbered_files(folder.keyframes))

    def painting(*inputs):
        monkeypatch.setattr(film_shot, "color_frame", usual)
        picture(folder.keyframe_file(chosen), tinted(to_gray(whole[0][chosen]), (220, 40, 40)))
        return usual(*inputs)

    monkeypatch.setattr(film_shot, "color_frame", painting)
    changed = (colour(clip, tmp_path / "out.mkv", model) != whole[0]).any(axis=(1, 2, 3))
    assert not changed[: FIRST[2]].any() and changed[chosen]


def test_only_some_shots(whole, clip, model, tmp_path):
    out = tmp_path / "out.mkv"
    assert cli.main(arguments(clip, out, model, "--only-shots", "2")) == 0
    assert not out.exists() and JobFolder(f"{out}.job").done() == set(range(6, 10))
    np.testing.assert_array_equal(colour(clip, out, model, "--only-shots", "1,3"), whole[0])


def test_clean_removes_the_job_and_only_once_the_film_is_there(whole, clip, model, tmp_path, job):
    np.testing.assert_array_equal(colour(clip, tmp_path / "out.mkv", model, "--clean"), whole[0])
    assert [p.name for p in tmp_path.iterdir()] == ["out.mkv"]


def test_a_folder_behind_a_link_is_emptied_and_stays(tmp_path):
    (tmp_path / "roomy").mkdir()
    (tmp_path / "out.mkv.job").symlink_to(tmp_path / "roomy")
    folder = JobFolder.beside(tmp_path / "out.mkv")
    folder.make()
    for file in (folder.path / "job.json", folder.frame_file(0)):
        file.write_bytes(b"{}")
    (tmp_path / "roomier").mkdir()
    (tmp_path / "roomier" / "kept.png").write_bytes(b"x")
    (folder.path / ".scratch").symlink_to(tmp_path / "roomier")
    folder.remove()
    assert (tmp_path / "roomier" / "kept.png").exists()
    assert folder.path.is_symlink() and not list((tmp_path / "roomy").iterdir()) and not folder.exists()


@pytest.mark.parametrize("name", ["out.mkv", "out.avi", "pictures"])
def test_a_finished_film_is_known_without_its_job(clip, model, tmp_path, capsys, name):
    """The film tells by itself; any other film, setting, encoding or list of shots is refused, as ever."""
    out, listed, other = tmp_path / name, tmp_path / "shots.csv", tmp_path / "other.mkv"
    shots.write_csv(listed, [shots.Shot(0, 8), shots.Shot(9, 14, "red")])
    video.write(other, three_shots()[:, ::-1], 24, lossless=True)
    run = [*arguments(clip, out, model, "--steps", 1, "--seed", 3), "--shots", str(listed)]
    assert cli.main([*run, "--clean"]) == 0 and not JobFolder.beside(out).path.exists()
    before = state(tmp_path)
    assert str(tmp_path.parent) not in "".join(film.comments(out))  # nor the folder of the weights
    shorter = ["colorize", str(clip), str(out), "--lossless", "--profile", str(model)]
    for again in (run, [*run, "--clean", "--force"], shorter):
        capsys.readouterr()
        assert cli.main(again) == 0 and capsys.readouterr().out == f"Nothing is left to do: {out}\n"
    for more in (["--seed", 4], ["--profile", "mini"], ["--codec", "h264"], ["--preview", 2], ["--restart"]):
        assert "exists already" in refused(
            capsys, [part for part in [*run, *more] if more[0] != "--codec" or part != "--lossless"]
        )
    assert "exists already" in refused(capsys, [str(other) if part == str(clip) else part for part in run])
    listed.write_text(listed.read_text().replace("red", "blue"))
    assert "exists already" in refused(capsys, run)
    listed.write_text(listed.read_text().replace("blue", "red"))
    assert cli.main(["status", str(out)]) == 0
    text = capsys.readouterr().out
    assert "15 frames, written" in text and clip.name in text and "--seed 3" in text and str(clip.parent) not in text
    assert cli.main(["status", str(tmp_path)]) == (1 if name == "pictures" else 0)
    assert name == "pictures" or "1 of 1 films written, 15 of 15" in capsys.readouterr().out
    assert {path: moment for path, moment in state(tmp_path).items() if path != Path("shots.csv")} == {
        path: moment for path, moment in before.items() if path != Path("shots.csv")
    }


# --- faults ----------------------------------------------------------------------------------------------------------


def refused(capsys, run) -> str:
    """The one sentence that a command ends with."""
    assert cli.main([*map(str, run)]) == 1
    text = capsys.readouterr().err
    assert text.startswith("gcgkit: ") and text.count("\n") == 1 and len(text) < 700, text
    return text


def state(folder: Path) -> dict:
    return {p.relative_to(folder): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and p.suffix}


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--steps", 3], "was begun with --steps 2, not 3.*--restart"),
        (["--seed", 3], "--seed 0, not 3"),
        (["--size", "96x48"], "with no --size, not 96x48: leave --size out"),
        (["--preview", 3], "2 keyframes a shot, not 3"),
        (["--prompt", "red"], "--prompt '', not 'red'.*shots.csv.*--restart"),
        (["--profile", "other"], "other weights than"),
        (["--reference", "0=PICTURE"], "other --reference pictures"),
        (["--only-shots", "4"], "names shot 4, but there are 3"),
    ],
)
def test_a_job_with_other_settings_is_refused(more, sentence, clip, model, tmp_path, job, capsys):
    if "other" in more:
        shutil.copytree(model, tmp_path / "other")
        config = json.loads((tmp_path / "other/scheduler/scheduler_config.json").read_text())
        (tmp_path / "other/scheduler/scheduler_config.json").write_text(json.dumps({**config, "steps_offset": 0}))
    own = picture(tmp_path / "p.png", np.zeros((32, 64, 3), np.uint8))
    more = [str(tmp_path / a) if a == "other" else str(a).replace("PICTURE", str(own)) for a in more]
    before = state(job)
    run = ["colorize", clip, tmp_path / "out.mkv", "--profile", model, "--lossless"]
    text = refused(capsys, [*run, *more])
    assert re.search(sentence, text) and state(job) == before and not (tmp_path / "out.mkv").exists()


def test_a_job_begun_before_sizes_were_kept_goes_on(whole, clip, model, tmp_path, job, capsys):
    record = json.loads((job / "job.json").read_text())
    assert record["settings"].pop("size") == ""
    (job / "job.json").write_text(json.dumps(record))
    np.testing.assert_array_equal(colour(clip, tmp_path / "out.mkv", model), whole[0])


@pytest.mark.parametrize("size", ["4x4", "560", "wide"])
def test_a_job_with_a_size_that_is_none_is_refused(size, clip, model, tmp_path, job, capsys):
    record = json.loads((job / "job.json").read_text())
    record["settings"]["size"] = size
    (job / "job.json").write_text(json.dumps(record))
    text = refused(capsys, ["colorize", clip, tmp_path / "out.mkv", "--profile", model, "--lossless"])
    assert "job.json is not a job's record (settings, size)" in text and "--restart" in text


def test_another_film_is_refused_until_restart(clip, model, tmp_path, job, capsys):
    source = tmp_path / "film.mkv"
    video.write(source, three_shots()[:, ::-1], 24, lossless=True)
    before, run = state(job), arguments(source, tmp_path / "out.mkv", model, "--steps", 1)
    assert "another film than" in refused(capsys, run) and state(job) == before
    assert colour(source, tmp_path / "out.mkv", model, "--steps", 1, "--restart").shape[0] == sum(LENGTHS)
    copy = shutil.copy(source, tmp_path / "copy.mkv")  # the same film elsewhere, and later, is the same
    assert cli.main(arguments(copy, tmp_path / "out.mkv", model, "--steps", 1)) == 0


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda m: shutil.rmtree(m / "unet"), "does not load|cannot be loaded"),
        (lambda m: (m / "unet/diffusion_pytorch_model.safetensors").unlink(), "does not load|cannot be loaded"),
        (lambda m: pickled(m / "unet/diffusion_pytorch_model.safetensors"), "does not load|cannot be loaded"),
        (lambda m: cut(m / "vae/diffusion_pytorch_model.safetensors"), "does not load|cannot be loaded"),
        (lambda m: change(m / "unet/config.json", block_out_channels=[16, 64]), "does not load|hold .* weights"),
        (lambda m: change(m / "vae/config.json", layers_per_block=2), "hold .* weights of the"),
        (lambda m: change(m / "model_index.json", _class_name="StableDiffusionPipeline"), "holds a StableDiffusion"),
        (lambda m: (m / "unet/config.json").write_text("{"), "does not load|cannot be loaded"),
    ],
)
def test_wrong_weights_are_one_sentence(damage, sentence, clip, model, tmp_path, capsys):
    wrong = Path(shutil.copytree(model, tmp_path / "wrong"))
    damage(wrong)
    text = refused(capsys, ["colorize", clip, tmp_path / "out.mkv", "--profile", wrong, "--steps", 1])
    assert re.search(sentence, text) and not (tmp_path / "out.mkv").exists()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def pickled(path: Path) -> None:
    """The same weights as a pickle, which could run anything when it is read."""
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()


def change(path: Path, **values) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_ten_thousand_words_are_refused(clip, model, tmp_path, capsys):
    run = ["colorize", clip, tmp_path / "out.mkv", "--profile", model, "--prompt", "red " * 10_000]
    text = refused(capsys, run)
    assert "has 10002 tokens, but only 8 are read" in text and list(tmp_path.iterdir()) == []


def test_a_picture_of_another_size_is_scaled_and_said_so(clip, model, tmp_path, capsys):
    large = picture(tmp_path / "large.png", np.full((64, 128, 3), (180, 60, 60), np.uint8))
    colour(clip, tmp_path / "out.mkv", model, "--steps", 1, "--reference", f"0={large}")
    assert "000000.png is 128x64 and the film 64x32: it is scaled." in capsys.readouterr().out


def interlace(stream):
    stream.codec_context.flags |= 1 << 29 | 1 << 18


@pytest.mark.parametrize(
    ("second", "sentence"),
    [
        ({"clip": films.pictures(4, (32, 64))}, "changes its size"),
        ({"prepare": interlace, "options": {"bf": "0", "field_order": "tt"}}, "is interlaced"),
        (None, "3.png cannot be read"),
    ],
)
def test_a_film_that_changes_midway_is_refused_before_the_work_also_with_a_list_of_shots(
    second, sentence, model, tmp_path, capsys
):
    source = tmp_path / ("in.m2v" if second else "in")
    if second:
        for name, more in (("a", {}), ("b", second)):
            films.make(
                tmp_path / f"{name}.m2v", "mpeg2video", **{"options": {"bf": "0"}, "clip": films.pictures(4), **more}
            )
        source.write_bytes((tmp_path / "a.m2v").read_bytes() + (tmp_path / "b.m2v").read_bytes())
    else:
        source.mkdir()
        for number, frame in enumerate(films.pictures(8)):
            picture(source / f"{number}.png", frame)
        cut(source / "3.png")
    shots.write_csv(tmp_path / "shots.csv", [shots.Shot(0, 2), shots.Shot(3, 7)])
    before = sorted(tmp_path.rglob("*"))
    assert sentence in refused(
        capsys, arguments(source, tmp_path / "out.mkv", model, "--shots", tmp_path / "shots.csv")
    )
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"format": 2}'])
def test_a_damaged_record_is_one_sentence(content, clip, model, tmp_path, job, capsys):
    (job / "job.json").write_bytes(content)
    assert "--restart" in refused(capsys, arguments(clip, tmp_path / "out.mkv", model))


def test_a_folder_of_something_else_is_never_touched(clip, model, tmp_path, capsys):
    place = tmp_path / "precious"
    place.mkdir()
    (place / "letter.txt").write_text("dear")
    for more in ([], ["--restart"]):
        text = refused(capsys, [*arguments(clip, tmp_path / "out.mkv", model), "--job", place, *more])
        assert "letter.txt, which belongs to no job" in text
    assert [p.name for p in place.iterdir()] == ["letter.txt"]


def test_a_job_that_another_process_begins_just_now_is_no_foreign_folder(tmp_path, monkeypatch):
    place, real = tmp_path / "new.job", Path.iterdir
    place.mkdir()

    def iterdir(path):
        (place / "job.json").write_text("{}")  # the other process ends its preparation
        return real(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    JobFolder(place).check_ours()
    assert (place / "job.json").exists()


def test_a_damaged_frame_is_named(whole, clip, model, tmp_path, job, capsys):
    JobFolder(job).frame_file(4).write_bytes(b"no picture")
    assert "000004.png is damaged: delete it" in refused(capsys, arguments(clip, tmp_path / "out.mkv", model))
    JobFolder(job).frame_file(4).unlink()
    np.testing.assert_array_equal(colour(clip, tmp_path / "out.mkv", model), whole[0])


def test_a_full_disk_keeps_what_is_done(whole, clip, model, tmp_path, capsys):
    """A file system of 100 kB: the job stops in one sentence, and goes on when there is room."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system is not allowed here")
    try:
        run = [*arguments(clip, tmp_path / "out.mkv", model), "--job", small / "job"]
        assert "full" in refused(capsys, run) and not (tmp_path / "out.mkv").exists()
        done = JobFolder(small / "job").done()
        assert 0 < len(done) < sum(LENGTHS)
        for n in done:
            frame = video.read(JobFolder(small / "job").frame_file(n)).frames[0]
            np.testing.assert_array_equal(frame, whole[0][n])
        subprocess.run(["mount", "-o", "remount,size=4m", str(small)], check=True)
        np.testing.assert_array_equal(colour(clip, tmp_path / "out.mkv", model, "--job", small / "job"), whole[0])
        again = events(small / "job", "colour")
        assert len(again) - len(set(again)) <= 1
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


# --- records and memory ----------------------------------------------------------------------------------------------

VALID = {
    "format": 1, "num_frames": 3, "profile": "mini", "weights": "0", "versions": {},
    "source": {"path": "x", "size": 1, "changed": 1, "digest": "0"}, "settings": {**DEFAULTS, "references": ""},
}  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("0" * 64),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def changed_records(draw):
    """A record with one value at a random depth replaced, added or taken away."""
    record = json.loads(json.dumps(VALID))
    place = draw(st.sampled_from([record, record["source"], record["settings"]]))
    key = draw(st.sampled_from([*place, "more"]))
    if draw(st.booleans()):
        place[key] = draw(VALUES)
    else:
        place.pop(key, None)
    return json.dumps(record).encode()


def fuzz_job(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    try:
        record = job_folder.read_job(path)
    except ValueError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert record.num_frames >= 1 and isinstance(record.settings["seed"], int)
        assert record.settings["size"] == "" or min(map(int, record.settings["size"].split("x"))) >= 8


def fuzz_shot(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    try:
        record = job_folder.read_shot_record(path)
    except ValueError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert all(isinstance(n, int) for n in record.keyframes)


BYTES = st.binary(max_size=60) | VALUES.map(lambda v: json.dumps(v).encode()) | changed_records()
DIGEST = st.text("0123456789abcdef", min_size=63, max_size=65)
SHOT_RECORDS = st.fixed_dictionaries(
    {
        "inputs": DIGEST | VALUES,
        "keyframes": st.dictionaries(st.from_regex(r"[-0-9٣]{1,3}"), st.tuples(DIGEST | VALUES, VALUES)) | VALUES,
    }
).map(lambda v: json.dumps(v).encode())


def test_a_valid_record_is_read(tmp_path):
    (tmp_path / "job.json").write_text(json.dumps(VALID))
    assert job_folder.read_job(tmp_path / "job.json").settings == {**DEFAULTS, "references": ""}


@settings(max_examples=150)
@given(data=BYTES)
def test_fuzzed_job_records_raise_only_value_errors(tmp_path_factory, data):
    fuzz_job(tmp_path_factory.getbasetemp() / "job.json", data)


@settings(max_examples=150)
@given(data=BYTES | SHOT_RECORDS)
def test_fuzzed_shot_records_raise_only_value_errors(tmp_path_factory, data):
    fuzz_shot(tmp_path_factory.getbasetemp() / "shot.json", data)


@pytest.mark.slow
@settings(max_examples=2000)
@given(data=BYTES | SHOT_RECORDS)
def test_two_thousand_fuzzed_records(tmp_path_factory, data):
    fuzz_job(tmp_path_factory.getbasetemp() / "job.json", data)
    fuzz_shot(tmp_path_factory.getbasetemp() / "shot.json", data)


def long_film(path: Path, frames: int) -> Path:
    def each():
        base = tiny.clip(1)[0]
        for t in range(frames):
            yield np.roll(base, t, axis=1)

    video.write(path, each(), 24, lossless=True)
    return path


def measure(argv: list[str], peak) -> None:
    """Colour a film in a process of its own and tell its greatest memory, in bytes."""
    import resource  # not on Windows

    torch.set_num_threads(1)
    with open(os.devnull, "w") as nowhere:
        sys.stdout = nowhere
        assert cli.main(argv) == 0
    peak.value = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def memory(tmp_path, model, frames: int) -> int:
    source = long_film(tmp_path / f"{frames}.mkv", frames)
    peak = PROCESSES.Value("q", 0)
    run = ["colorize", source, tmp_path / f"out{frames}.mkv", "--profile", model, "--steps", 1, "--keyframes", 1]
    run += ["--chunk", 16, "--clean"]
    process = PROCESSES.Process(target=measure, args=([*map(str, run)], peak))
    process.start()
    process.join()
    assert process.exitcode == 0
    return peak.value


@pytest.mark.slow
def test_memory_does_not_grow_with_the_film(tmp_path, model):
    few, more = memory(tmp_path, model, 24), memory(tmp_path, model, 96)
    print(f"{few / 1e6:.0f} MB for 24 frames, {more / 1e6:.0f} MB for 96")
    assert more < 1.1 * few


@pytest.mark.slow
def test_ten_thousand_frames_take_the_memory_of_five_hundred(tmp_path, model, request):
    if "slow" not in request.config.getoption("-m"):
        pytest.skip("takes half an hour: run it with -m slow")
    few, more = memory(tmp_path, model, 500), memory(tmp_path, model, 10_000)
    print(f"{few / 1e6:.0f} MB for 500 frames, {more / 1e6:.0f} MB for 10,000")
    assert more < 1.2 * few


# --- what an owner's tools do to a job's folder -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["frames", "keyframes"])
def test_an_empty_folder_that_a_copy_left_out_is_made_again(name, whole, clip, model, tmp_path):
    run = arguments(clip, tmp_path / "out.mkv", model)
    assert cli.main([*run, "--preview", "2"]) == 0
    shutil.rmtree(tmp_path / "out.mkv.job" / name)
    np.testing.assert_array_equal(colour(clip, tmp_path / "out.mkv", model), whole[0])


def test_faults_in_a_jobs_folder_are_one_sentence_with_the_file(whole, clip, model, tmp_path, job, capsys):
    run = arguments(clip, tmp_path / "out.mkv", model)
    frame = JobFolder(job).frame_file(3)
    content = frame.read_bytes()
    picture(frame, np.zeros((50, 60, 3), np.uint8))
    assert "000003.png is 60x50 and the film 64x32: delete it" in refused(capsys, run)
    frame.write_bytes(content)
    (job / "shots.csv").unlink()
    assert "shots.csv is not there any more: put it back, or give --restart" in refused(capsys, run)
    shutil.rmtree(job)
    job.symlink_to(tmp_path / "unplugged" / "job")
    assert "unplugged/job, which is not there: mount its disk" in refused(capsys, run)


def test_a_link_to_itself_is_replaced_by_the_film(whole, clip, model, tmp_path):
    (tmp_path / "out.mkv").symlink_to("out.mkv")
    np.testing.assert_array_equal(colour(clip, tmp_path / "out.mkv", model), whole[0])
