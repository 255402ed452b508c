"""Reproduce the paper's Table 1 and figures, step by step, from the download to the table (REPRODUCING.md).

Each step is a list of commands that can also be given by hand. A killed run goes on where it stopped; a finished step
is not run again unless its commands change. --dry-run prints the plan: disk, hours, what is missing, the commands.

    python data_scripts/reproduce.py --profile mini               offline, installed clips, few steps: shows the way
    python data_scripts/reproduce.py --profile paper --dry-run
    python data_scripts/reproduce.py --profile paper --only train-ours --add train="--config paper-16gb"
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import _command

ROOT = Path(__file__).resolve().parents[1]
ETH, HUB, TORCH = (f"network:{host}" for host in ("data.vision.ee.ethz.ch", "huggingface.co", "download.pytorch.org"))
# Row of Table 1 and mode of its model; Ours*** is Ours without the grid, and needs no training of its own.
MODES = {"ours": "gated", "concat": "concat", "attention": "attention"}
SYSTEMS = ("deoldify", "tcvc", "vcgan", "deepremaster", "deepexemplar", "bistnet")
PYIQA = "wish:pyiqa:MUSIQ, CLIP-IQA and FID stay empty"
SEEDS = (0, 1, 2)
BUSY = "measured on one core that other programs shared"
NO_PROMPTS = "No captioner for gray frames comes with the mini profile, so the test clips have no prompts."


@dataclass(frozen=True)
class Step:
    """A step of the plan: its commands, what they need, and what they cost.

    disk: GB that it leaves behind. hours: with ``basis``, how they are known. needs: "gpu", "clips", "network:HOST",
    "package:NAME", "system:NAME", or "wish:NAME:CONSEQUENCE", which does not stop the step. optional: left out, and
    said so, where something is missing.
    """

    name: str
    about: str
    commands: tuple[tuple[str, ...], ...]
    disk: float
    hours: float
    basis: str
    needs: tuple[str, ...] = ()
    optional: bool = False

    @property
    def digest(self) -> str:
        """Return the digest of the commands, which tells a finished step from one with other commands."""
        return hashlib.sha256(json.dumps(self.commands).encode()).hexdigest()


def plan(profile: str, out: Path, data: Path, true_colors: bool = False, seeds: Sequence[int] = SEEDS) -> list[Step]:
    """Return the steps of a profile.

    true_colors: caption the test sets from true colours, which tells the answer. seeds: of the rows of Ours.
    """
    return (_paper if profile == "paper" else _mini)(out, data, true_colors, tuple(map(str, seeds)))


def _paper(out: Path, data: Path, true_colors: bool, seeds: tuple[str, ...]) -> list[Step]:
    sets = data / "prepared"
    training = [f"{sets}/{name}" for name in ("davis-train", "davis-val", "ldv-train")]
    testing = {"davis": f"{sets}/davis-test-dev", "ldv": f"{sets}/ldv-test"}
    seen = ("--no-gray", "--out", "captions-true.jsonl") if true_colors else ("--gray",)
    # 423 clips x 8 variants x 16 frames, each with 256 tokens of 1024 numbers and two latents, 2 bytes a number: 30 GB.
    rest = "17,000 steps at 5.8 a second, measured on an H200 with random weights"
    train = [
        Step(
            f"train-{row}", f"train the model with model.mode={mode} on a card of 24 GB (§4.1; "
            "--add train='--config paper-16gb' for one of 16 GB)",
            (("gcgkit", "train", "--config", "paper", "--set", f"model.mode={mode}", "--data", str(sets), "--out",
              f"{out}/{row}"),),
            53 if row == "ours" else 23, 1 if row == "ours" else 0.9,
            f"extrapolated: {rest}" + (", and 54,000 frames for the cache of latents" if row == "ours" else ""),
            ("gpu",),
        )
        for row, mode in MODES.items()
    ]  # fmt: skip
    many = f"{len(seeds)} seeds" if len(seeds) > 1 else "1 seed"
    measure = [
        Step(
            f"evaluate-{name}", f"colour and measure the rows of Ours on {Path(folder).name} (§4.4)",
            (("gcgkit", "evaluate", "--data", folder, "--prompts",
              f"{folder}/captions-true.jsonl" if true_colors else folder, *_weights(out), "--seed", *seeds,
              "--out", f"{out}/results"),),
            round(disk * (3 + 4 * len(seeds))), hours * len(seeds),  # three rows have no seed
            f"extrapolated: 4 rows and {many} of {frames} frames at 0.49 a second, measured on an H200, and metrics",
            ("gpu", "package:lpips", PYIQA),
        )
        for (name, folder), frames, disk, hours in zip(
            testing.items(), ("2,086", "about 9,000"), (0.71, 2.86), (6, 24), strict=True
        )
    ]  # fmt: skip
    systems = [
        Step(
            f"system-{name}", f"colour and measure {name}, which has to be set up before (REPRODUCING.md)",
            tuple(("gcgkit", "evaluate", "--data", folder, "--method", f"system:{name}", "--out", f"{out}/results")
                  for folder in testing.values()),
            4, 3, "a guess: it has never run with its authors' weights", ("gpu", f"system:{name}"), optional=True,
        )
        for name in SYSTEMS
    ]  # fmt: skip
    return [
        Step(
            "davis", "fetch and prepare DAVIS 2017 (§4.2)",
            (("python", "data_scripts/davis.py", "--out", str(data), "--prepare"),),
            4.5, 0.04, "extrapolated: 8,294 frames at 54 a second on one busy core; the download comes on top", (ETH,),
        ),
        Step(
            "ldv", "fetch and prepare LDV 3.0 (§4.2)",
            (("python", "data_scripts/ldv.py", "--out", str(data), "--prepare"),),
            28, 0.6, "extrapolated: 365 videos of about 300 frames at 54 a second; on top come the "
            "archive and the videos in it; the download shows their size", (ETH,),
        ),
        Step(
            "weights", "fetch Stable Diffusion 2.1, CLIP ViT-H, BLIP and the metrics' networks",
            (("python", "data_scripts/weights.py"),), 11, 0.3, "arithmetic: 11 GB at 100 Mbit/s", (HUB, TORCH),
        ),
        Step(
            "captions", "caption the training sets from true colours, the test sets from "
            + ("true colours, which tell the answer" if true_colors else "gray frames") + " (§4.1, §4.4)",
            (("python", "data_scripts/caption.py", *training),
             ("python", "data_scripts/caption.py", *testing.values(), *seen)),
            0.1, 0.2, "a guess: 4,500 frames at 6 a second", ("gpu",),
        ),
        *train,
        *measure,
        *systems,
        *_drawings(out, 0.1, "extrapolated: the frames of the figures at 0.49 a second", "32"),
    ]  # fmt: skip


def _mini(out: Path, data: Path, true_colors: bool, seeds: tuple[str, ...]) -> list[Step]:
    sets = data / "prepared"
    folder = str(sets / "installed")
    train = [
        Step(
            f"train-{row}", f"train for four steps with model.mode={mode}; says nothing of colours",
            (("gcgkit", "train", "--config", "tiny", "--set", f"model.mode={mode}", "--set", "data.sets=installed",
              "--set", "data.exclude=city,carphone", "--set", "data.captions=file", "--data", str(sets), "--out",
              f"{out}/{row}"),),
            0.1, 0.02, BUSY,
        )
        for row, mode in MODES.items()
    ]  # fmt: skip
    prompts = ("--prompts", folder) if true_colors else ()
    measure = [
        Step(
            f"evaluate-{clip}", f"colour and measure 8 frames of {clip}, which was not trained on",
            (("gcgkit", "evaluate", "--data", folder, "--clips", clip, "--name", clip, "--frames", "8", *prompts,
              *_weights(out), "--set", "num_inference_steps=4", "--seed", *seeds, "--out", f"{out}/results"),),
            0.02, 0.01 + 0.03 * len(seeds), BUSY, (PYIQA,),
        )
        for clip in ("city", "carphone")
    ]  # fmt: skip
    return [
        Step(
            "data", "prepare the installed clips: three to train, two to test",
            (("python", "data_scripts/prepare.py", "installed", "--clips", "installed", "--out", str(data)),),
            0.2, 0.01, BUSY, ("clips",),
        ),
        Step(
            "captions", "caption the clips from their true colours, to train. "
            + ("Table 1 takes these captions and says so." if true_colors else NO_PROMPTS),
            (("python", "data_scripts/caption.py", folder, "--by", "colors"),), 0.001, 0.01, BUSY,
        ),
        *train,
        *measure,
        *_drawings(out, 0.08, BUSY, "4"),
    ]  # fmt: skip


def _weights(out: Path) -> tuple[str, ...]:
    return ("--weights", *(f"{out}/{row}/pipeline" for row in MODES))


def _drawings(out: Path, hours: float, basis: str, steps: str) -> list[Step]:
    """Return the steps that draw: the table, and figures 1 to 6 on installed clips."""
    draw = ("python", "figures/make.py", "--profile", f"{out}/ours/pipeline", "--out", f"{out}/figures")
    variants = ("--variant", f"Ours*={out}/concat/pipeline", "--variant", f"Ours**={out}/attention/pipeline")
    figures = (*draw, "--steps", steps, *variants, "--only", *"123456")
    return [
        Step("table", "write Table 1 as Markdown, LaTeX and HTML",
             ((*draw, "--results", f"{out}/results", "--only", "table"),), 0.001, 0.01, BUSY),
        Step("figures", "draw figures 1 to 6 from installed clips", (figures,), 0.1, hours, basis, ("clips",)),
    ]  # fmt: skip


def lacks(need: str) -> str | None:
    """Return what is missing of a step's need, None if it is there."""
    kind, _, what = need.partition(":")
    if kind == "network":
        from gcgkit.utils.download import unreachable

        reason = unreachable(f"https://{what}")
        return f"a network that reaches {what} ({reason})" if reason else None
    elif kind == "gpu":
        import torch

        return None if torch.cuda.is_available() else "a GPU"
    elif kind == "clips":
        from gcgkit.data import clips

        try:
            [clips.find(name) for name in clips.NAMES]
        except FileNotFoundError as error:
            return str(error)
    elif kind == "system":
        from gcgkit.evaluation.systems import setup

        reason = setup.obstacle(what, ROOT / "systems")  # the commands run in the repository
        return reason.rstrip(".") if reason else None
    elif kind == "package" and importlib.util.find_spec(what) is None:
        return f"the package {what}"
    return None


def missing(step: Step, out: Path) -> list[str]:
    """Return what a step lacks on this machine, disk too."""
    from gcgkit.utils.files import free_space

    found = [text for text in map(lacks, step.needs) if text]
    free = free_space(out) / 1e9
    return [*found, f"disk: {free:.1f} GB are free"] if free < step.disk else found


def wishes(step: Step) -> list[str]:
    """Return the packages that a step can do without, with the consequence, where they are not installed."""
    found = [need.split(":") for need in step.needs if need.startswith("wish:")]
    return [f"without the package {name}, {text}" for _, name, text in found if importlib.util.find_spec(name) is None]


def finished(step: Step, out: Path) -> dict | None:
    """Return the mark of a step that was finished with the same commands, or None."""
    try:
        mark = json.loads((out / "steps" / f"{step.name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return mark if mark.get("digest") == step.digest else None


def describe(step: Step, number: int, out: Path) -> str:
    """Return the plan's lines on one step."""
    mark, lines = finished(step, out), [f"{number}. {step.name}: {step.about}"]
    if mark is not None:
        lines.append(f"   done in {mark['seconds'] / 3600:.2f} h")
    else:
        lines.append(f"   {step.disk:g} GB of disk; {step.hours:g} h ({step.basis})")
        lines += [f"   missing: {text}" for text in missing(step, out)] + [f"   {text}" for text in wishes(step)]
    return "\n".join([*lines, *(f"   $ {shlex.join(command)}" for command in step.commands)])


def run(step: Step, out: Path) -> None:
    """Run a step's commands and mark it finished. Raises ValueError for a command that fails."""
    from gcgkit.utils.files import write_text

    began = time.monotonic()
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    programs = {"python": [sys.executable], "gcgkit": [sys.executable, "-m", "gcgkit.cli"]}
    for first, *others in step.commands:
        print(f"$ {shlex.join((first, *others))}", flush=True)
        done = subprocess.run([*programs[first], *others], cwd=ROOT, env={**os.environ, "PYTHONPATH": path})
        if done.returncode:
            raise ValueError(f"step {step.name} stopped, for the reason above; the same command goes on from here.")
    mark = {"digest": step.digest, "seconds": round(time.monotonic() - began, 1)}
    (out / "steps").mkdir(parents=True, exist_ok=True)
    write_text(out / "steps" / f"{step.name}.json", json.dumps(mark) + "\n")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", choices=("mini", "paper"), default="mini", help="mini or paper (mini)")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="only these steps (all)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where everything goes (runs/reproduce-PROFILE)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="data sets (data; OUT/data for mini)")
    parser.add_argument("--true-colors", action="store_true", help="caption test clips from their true colours")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, metavar="N", help="of the rows of Ours (0 1 2)")
    parser.add_argument(
        "--add", action="append", default=[], metavar="STEP=ARGS",
        help="more arguments for a step's commands, or for all steps whose names begin so; repeatable",
    )  # fmt: skip
    parser.add_argument("--anyway", action="store_true", help="run a step although something is missing")
    parser.add_argument("--dry-run", action="store_true", help="print the plan, do nothing")
    parser.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)
    return _command.run(_run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> None:
    from gcgkit.utils.files import free_space

    out = args.out or Path("runs") / f"reproduce-{args.profile}"
    data = args.data or (Path("data") if args.profile == "paper" else out / "data")
    if Path.cwd() != ROOT:  # the commands run in the repository
        out, data = ((ROOT if default is None else Path.cwd()) / path
                     for path, default in ((out, args.out), (data, args.data or args.out)))  # fmt: skip
    steps = _with_additions(plan(args.profile, out, data, args.true_colors, args.seeds), args.add)
    names = [step.name for step in steps]
    if unknown := [name for name in args.only or () if name not in names]:
        raise ValueError(f"there is no step called {unknown[0]!r}; there are {', '.join(names)}.")
    chosen = [(i, step) for i, step in enumerate(steps, 1) if args.only is None or step.name in args.only]
    if args.dry_run:
        for number, step in chosen:
            print(describe(step, number, out))
        due = [step for _, step in chosen if finished(step, out) is None]
        disk, free = sum(s.disk for s in due), free_space(out) / 1e9
        short = f"; only {free:.1f} GB of disk are free" if free < disk else ""
        print(f"{len(due)} steps to do: {disk:.1f} GB, {sum(s.hours for s in due):.1f} h{short}.")
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the command that runs, too
    for number, step in chosen:
        print(f"\n{describe(step, number, out)}", flush=True)
        if finished(step, out) is not None:
            continue
        lost = missing(step, out)
        if lost and step.optional and not (args.anyway and args.only):
            print(f"   left out: it lacks {'; '.join(lost)}", flush=True)
            continue
        if lost and not args.anyway:
            raise ValueError(f"step {step.name} lacks {'; '.join(lost)}. --anyway runs it even so.")
        run(step, out)
    print(f"\nTable 1 and the figures: {out / 'figures'}. Every number and its origin: {out / 'results'}.")


def _with_additions(steps: list[Step], additions: list[str]) -> list[Step]:
    """Return the steps with more arguments; ValueError for an addition to no step."""
    for text in additions:
        start, equals, more = text.partition("=")
        if not (equals and any(step.name.startswith(start) for step in steps)):
            raise ValueError(f"--add takes STEP=ARGS, such as train='--config paper-16gb', not {text!r}.")
        own = tuple(shlex.split(more))
        steps = [
            replace(s, commands=tuple((*c, *own) for c in s.commands)) if s.name.startswith(start) else s
            for s in steps
        ]  # fmt: skip
    return steps


if __name__ == "__main__":
    sys.exit(main())
