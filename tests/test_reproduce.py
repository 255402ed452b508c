"""The reproduction: the page against the plan, steps that stop and go on, and the mini profile's way at toy size."""

import argparse
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny

from gcgkit.evaluation import run as evaluation
from gcgkit.training import recipes

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "data_scripts"))

import reproduce  # noqa: E402

PAGE = (ROOT / "REPRODUCING.md").read_text(encoding="utf-8")
PLAN = reproduce.plan("paper", Path("runs/reproduce-paper"), Path("data"))


def installed() -> bool:
    return reproduce.lacks("clips") is None


needs_clips = pytest.mark.skipif(not installed(), reason="the demo's clips are not installed: run make setup")


# --- the page --------------------------------------------------------------------------------------------------------


def test_the_page_has_the_commands_of_the_plan_in_order():
    blocks = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if not line.startswith(("make ", "source "))]
    assert lines and "source .venv/bin/activate" in blocks[1].splitlines()[0]
    assert [tuple(shlex.split(line)) for line in lines] == [c for step in PLAN for c in step.commands]


def test_the_page_has_disk_and_hours_of_the_plan():
    table = PAGE[PAGE.index("| step | for the rows") :].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    found = {re.match(r"`([\w-]+)`", row[0])[1]: tuple(row[2:]) for row in rows}
    wanted = {s.name: (f"{s.disk:g}", f"{s.hours:g}", s.basis) for s in PLAN}
    systems = {wanted.pop(f"system-{name}") for name in reproduce.SYSTEMS}
    assert {found.pop("system-deoldify")} == systems and found == wanted
    hours, disk = sum(s.hours for s in PLAN), sum(s.disk for s in PLAN)
    text = " ".join(PAGE.split())
    assert f"All steps together need {disk:.0f} GB and {hours:.0f} hours." in text
    assert f"The plan above is {hours:.0f} hours of one H200" in text and f"is {hours * 0.7:.0f} kWh" in text
    run, config = recipes.CONFIGS["paper"].run, recipes.CONFIGS["paper"].data
    steps = run.epochs * 423 * config.targets_per_clip / run.batch_size
    assert f"extrapolated: {round(steps, -3):,.0f} steps at" in text
    latents, tokens = 2 * 4 * 32 * 56, 256 * 1024  # colour and gray; CLIP's patches
    cache = 423 * config.cache_variants * config.cache_views * (latents + tokens) * 2 / 1e9
    assert f"The cache of latents is {cache:.0f} GB by arithmetic" in text
    single = reproduce.plan("paper", Path("o"), Path("d"), seeds=[0])
    disk, hours = sum(s.disk for s in single), sum(s.hours for s in single)
    assert f"`--seeds 0` runs one seed: all steps together then need {disk:.0f} GB and {hours:.0f} hours." in text


def test_the_plan_is_made_of_what_the_kit_has():
    """Files are there; sets, systems and the configuration have the names that the commands give them."""
    from gcgkit.data import catalog
    from gcgkit.evaluation.systems import setup

    assert set(reproduce.SYSTEMS) == set(setup.known())
    words = [word for step in PLAN for command in step.commands for word in command]
    scripts = {word for word in words if word.endswith(".py")}
    assert scripts and all((ROOT / script).is_file() for script in scripts)
    prepared = {Path(word).name for word in words if "prepared/" in word}
    trained = recipes.CONFIGS["paper"].data.sets
    assert prepared == {*trained, "davis-test-dev", "ldv-test"} <= set(catalog.SPLITS)


# --- steps -----------------------------------------------------------------------------------------------------------


def step(name, text, **more):
    """A step that runs a line of Python."""
    return reproduce.Step(name, f"do {name}", (("python", "-c", text),), 0.0, 0.1, "by hand", **more)


def attempt(monkeypatch, steps, out, *options):
    monkeypatch.setattr(reproduce, "plan", lambda *arguments: steps)
    return reproduce.main(["--out", str(out), *options])


def test_finished_steps_stay_and_a_failed_one_goes_on(monkeypatch, tmp_path, capfd):
    note = f"open({str(tmp_path / 'log')!r}, 'a').write"
    steps = [step("a", f"{note}('a')"), step("b", f"{note}('b'); open({str(tmp_path / 'gate')!r})")]
    steps.append(step("c", f"{note}('c')"))
    out = tmp_path / "out"
    assert attempt(monkeypatch, steps, out) == 1
    assert "step b stopped, for the reason above" in capfd.readouterr().err
    (tmp_path / "gate").touch()
    assert attempt(monkeypatch, steps, out) == 0 and (tmp_path / "log").read_text() == "abbc"
    assert attempt(monkeypatch, steps, out) == 0 and (tmp_path / "log").read_text() == "abbc"
    assert attempt(monkeypatch, [step("a", f"{note}('A')"), *steps[1:]], out) == 0
    assert (tmp_path / "log").read_text() == "abbcA"  # other commands, another step
    assert attempt(monkeypatch, steps, out, "--only", "d") == 1
    assert "no step called 'd'; there are a, b, c" in capfd.readouterr().err


def test_a_dry_run_prints_the_plan_and_does_nothing(monkeypatch, tmp_path, capsys):
    steps = [step("a", "open('never', 'w')", needs=("package:no_such_package", "wish:nothing_like_it:x stays empty"))]
    assert attempt(monkeypatch, steps, tmp_path / "out", "--dry-run", "--add", "a=--more 'of it'") == 0
    told = capsys.readouterr().out
    for text in (
        "1. a: do a", "0.1 h (by hand)", "missing: the package no_such_package", "--more 'of it'",
        "without the package nothing_like_it, x stays empty", "1 steps to do: 0.0 GB, 0.1 h.",
    ):  # fmt: skip
        assert text in told
    assert not (tmp_path / "out").exists() and not (ROOT / "never").exists()
    half = shutil.disk_usage(tmp_path).free / 1e9 * 0.6  # each step has room, both together have not
    steps = [reproduce.replace(step, disk=half) for step in 2 * steps]
    assert attempt(monkeypatch, steps, tmp_path / "out", "--dry-run") == 0
    told = capsys.readouterr().out
    assert "missing: disk" not in told and re.search(r"0\.2 h; only [\d.]+ GB of disk are free\.", told)
    assert attempt(monkeypatch, steps, tmp_path / "out", "--dry-run", "--add", "b=x") == 1


def test_a_step_that_lacks_something_stops_or_is_left_out(monkeypatch, tmp_path, capfd):
    lacking = {"needs": ("package:no_such_package",)}
    first, second = step("a", "pass", **lacking), step("b", "print('b ran')")
    assert attempt(monkeypatch, [first, second], tmp_path / "x") == 1
    told = capfd.readouterr()
    assert "step a lacks the package no_such_package." in told.err and "b ran" not in told.out.splitlines()
    assert attempt(monkeypatch, [first, second], tmp_path / "x", "--anyway") == 0
    capfd.readouterr()
    optional = step("a", "print('a ran')", optional=True, **lacking)
    assert attempt(monkeypatch, [optional, second], tmp_path / "y") == 0
    told = capfd.readouterr().out.splitlines()
    assert "   left out: it lacks the package no_such_package" in told and "a ran" not in told and "b ran" in told
    huge = reproduce.replace(second, disk=1e9)
    assert attempt(monkeypatch, [huge], tmp_path / "z") == 1 and "GB are free" in capfd.readouterr().err


@pytest.mark.parametrize("profile", ["mini", "paper"])
def test_ours_runs_with_three_seeds_or_with_those_that_are_given(profile):
    """`gcgkit evaluate` takes the seeds; other steps stay as they are, and fewer seeds cost fewer hours."""
    from gcgkit.cli.evaluate import add_options

    parser = argparse.ArgumentParser()
    add_options(parser)
    place = Path("o")
    usual, single = reproduce.plan(profile, place, place), reproduce.plan(profile, place, place, seeds=[7])
    for step, other in zip(usual, single, strict=True):
        if step.name.startswith("evaluate"):
            found = [parser.parse_args(command[2:]).seed for (command,) in (step.commands, other.commands)]
            assert found == [[0, 1, 2], [7]] and other.hours < step.hours
        else:
            assert step == other


def test_the_mini_profile_takes_less_than_half_an_hour():
    assert sum(step.hours for step in reproduce.plan("mini", Path("o"), Path("d"))) < 0.5


def test_true_colours_are_chosen_by_name_only():
    for profile in ("mini", "paper"):
        plain, told = (
            [c for s in reproduce.plan(profile, Path("o"), Path("d"), true) for c in s.commands]
            for true in (False, True)
        )  # fmt: skip
        assert plain != told
        evaluations = [c for c in told if c[:2] == ("gcgkit", "evaluate") and "--weights" in c]
        assert all("--prompts" in c for c in evaluations)
    assert any("--no-gray" in c for c in told) and not any("--gray" in c for c in told)


# --- the whole way ---------------------------------------------------------------------------------------------------

SMALL = "--set num_inference_steps=1 --set working_size=[32,64]"


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Arguments that put a toy model and the least work in place of the mini profile's."""
    place = tmp_path_factory.mktemp("toy")
    tiny.pipeline(place / "source", zero_control=True).save_pretrained(place / "model")
    small = f"--set model.base={place / 'model'} --set model.hidden_dim=8 --set model.condition_width=8 --cpu"
    least = f"--size 64x32 --metrics psnr_rgb colorfulness {SMALL} --device cpu"
    return [
        "data=--size 32 64 --format jpg",
        f"train={small} --set data.height=32 --set data.width=64",
        f"evaluate={least}",
        "figures=--steps 1 --only 5",  # the one that needs all three models
    ]


def go(additions, out, *options, until=None):
    """Run a profile, mini by default; kill it, and what it runs, once the file `until` is there."""
    command = [sys.executable, str(ROOT / "data_scripts/reproduce.py"), "--out", str(out), *options]
    command += [text for addition in additions for text in ("--add", addition)]
    with (out.parent / f"{out.name}.log").open("a") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, cwd=ROOT)
        while process.poll() is None:
            if until is not None and any(out.glob(until)):
                os.killpg(process.pid, signal.SIGKILL)
            time.sleep(0.05)
    return process.returncode


@needs_clips
@pytest.mark.slow
def test_the_mini_profile_killed_three_times_gives_the_same_numbers(toy, tmp_path):
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    for until in ("data/prepared/installed/frames/city*", "concat/checkpoints/step-*", "results/records/city/Ours-*/*"):
        assert go(toy, broken, "--seeds", "0", "1", until=until) == -signal.SIGKILL
    assert go(toy, broken, "--seeds", "0", "1") == 0, (tmp_path / "broken.log").read_text()[-2000:]
    assert {path.stem for path in (broken / "steps").iterdir()} == {
        s.name for s in reproduce.plan("mini", *[broken] * 2)
    }
    assert {"fig5.png", "table1.md"} <= {p.name for p in (broken / "figures").iterdir()}

    shutil.copytree(broken, whole)  # and once more without a kill, the steps that were killed
    for folder in ("data", "concat", "results"):
        shutil.rmtree(whole / folder)
    steps = ("data", "captions", "train-concat", "evaluate-city")
    assert go(toy, whole, "--seeds", "0", "1", "--only", *steps) == 0, (tmp_path / "whole.log").read_text()[-2000:]
    numbers = []
    for out in (whole, broken):
        found = [r for r in evaluation.read_results(out / "results") if r["set"]["name"] == "city"]
        numbers.append({(r["method"], r["identity"].get("seed")): (r["contents"], r["metrics"]) for r in found})
    assert numbers[0] == numbers[1]
    ours = sorted(key for key in numbers[0] if key[0].startswith("Ours"))
    assert ours == [(method, seed) for method in ("Ours", "Ours*", "Ours**", "Ours***") for seed in (0, 1)]
    table = (broken / "figures" / "table1.md").read_text()
    assert "Ours on city: num_inference_steps 1, strength 1.0, hint_weight 0.0" in table and "prompts none" in table


@needs_clips
@pytest.mark.slow
def test_the_papers_steps_run_from_archives_in_official_layout_and_a_stable_diffusion_folder(tmp_path):
    from test_data_scripts import davis_files, video_bytes, zipped

    from gcgkit.data import captions

    clips = {"bear": 4, "swan": 4, "blackswan": 3, "dog": 3, "cows": 3}
    lists = {"train": ["bear", "swan"], "val": ["blackswan", "dog", "cows"]}
    archives = {
        "trainval": davis_files(clips, lists), "test": davis_files({"aerobatics": 7}, {"test-dev": ["aerobatics"]}),
        "ldv": {f"LDV3/{i:03d}.mkv": video_bytes(i) for i in range(1, 366)},
    }  # fmt: skip
    for name, files in archives.items():
        (tmp_path / f"{name}.zip").write_bytes(zipped(files))
    tiny.paper_parts(tiny.pipeline(tmp_path / "source"), tmp_path)
    blip = tiny.blip(tmp_path / "blip")
    sets = {
        "model.base": tmp_path / "base", "model.image_encoder": tmp_path / "clip", "model.hidden_dim": 8,
        "model.condition_width": 8, "data.height": 32, "data.width": 64, "data.cache_variants": 1,
        "data.cache_views": 2, "run.max_steps": 1, "run.batch_size": 2, "run.micro_batch": 2, "run.precision": "no",
        "run.workers": 0, "validation.frames": 2, "validation.steps": 1,
    }  # fmt: skip
    additions = [
        f"davis=--url {tmp_path / 'trainval.zip'} {tmp_path / 'test.zip'} --sha256 none none --size 32 64",
        f"ldv=--url {tmp_path / 'ldv.zip'} --sha256 none --size 32 64",
        f"weights=lpips --url {tmp_path / 'ldv.zip'} --sha256 none --out {tmp_path / 'weights'}",
        f"captions=--model {blip} --device cpu",
        "train=--cpu " + " ".join(f"--set {key}={value}" for key, value in sets.items()),
        f"evaluate=--size 64x32 --metrics psnr_rgb {SMALL} --device cpu",
        "evaluate-ldv=--clips 336 365",
        "figures=--steps 1 --only 2",
    ]
    out, data = tmp_path / "out", tmp_path / "data"
    code = go(additions, out, "--profile", "paper", "--data", str(data), "--seeds", "0", "1", "--anyway")
    told = (tmp_path / "out.log").read_text()
    assert code == 0, told[-3000:]
    assert {p.stem for p in (out / "steps").iterdir()} == {s.name for s in PLAN if not s.optional}
    assert told.count("left out: it lacks") == len(reproduce.SYSTEMS)
    rows = {}
    for record in evaluation.read_results(out / "results"):
        rows.setdefault(record["set"]["name"], {})[record["method"]] = record
    for name in ("davis-test-dev", "ldv-test"):
        ours = [method for method in rows[name] if method.startswith("Ours")]
        assert ours == ["Ours", "Ours*", "Ours**", "Ours***"]  # the trained model's own settings are the paper's
        prompts, source = captions.read_prompts(data / "prepared" / name)
        assert source == "BLIP (blip), gray frames"
        identities = [rows[name][method]["identity"] for method in ours]
        assert all(i["prompts"] == prompts and i["prompts_source"] == source for i in identities)
        assert len({i["weights"] for i in identities}) == 3
    assert "guidance_scale 9.0, seed 0 1, prompts BLIP (blip), gray frames" in (out / "figures/table1.md").read_text()


def test_a_system_is_looked_for_in_the_repository_where_the_commands_run(monkeypatch, tmp_path):
    from gcgkit.evaluation.systems import setup

    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr(setup, "obstacle", lambda name, root: seen.append((name, Path(root))))
    assert reproduce.lacks("system:vcgan") is None
    assert seen == [("vcgan", ROOT / "systems")]
