"""The six systems that the paper compares with, each run by its authors' own code in its own environment (§4.4).

    python -m gcgkit.evaluation.systems                        # one table: licence, commit, tested parts, weights
    python -m gcgkit.evaluation.systems plan vcgan             # every command, without running it
    python -m gcgkit.evaluation.systems setup vcgan --accept   # repository at its commit, environment, linked weights
    python -m gcgkit.evaluation.systems run vcgan FRAMES OUT   # a folder 00000.png ... in, the same out

Nothing of theirs is in this package: ``systems.json`` says where each repository is and what it needs, and
`adapters` how its own script is run. That happens from a launcher (``runners/launch.py``), which lets old code work
on a present torch and on a CPU. Frames come back as PNG under the input's names and at the input's size, luminance as
the method left it. Where a method takes an exemplar, it gets the true first frame.
"""

import argparse
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import resources
from pathlib import Path

import numpy as np

from ... import video
from ...data.footage import stretch
from ...utils import download
from ...utils.commands import best_device, run_reporting_errors
from ...utils.files import known_sha256
from ...video.images import RANDOM_WEIGHTS, check_names, write_frames
from .adapters import RUNNERS, make_job


@dataclass(frozen=True)
class System:
    """A compared system: its address, licence, requirements, and the parts of it that have run here."""

    name: str
    label: str
    repository: str
    commit: str
    licence: str
    exemplar: bool
    python: str
    packages: list[str]
    files: list[str]
    weights: list[dict]
    command: str
    notes: str
    checked: str
    run: dict


@lru_cache(maxsize=1)
def known() -> dict[str, System]:
    """Return all systems by name."""
    text = resources.files(__package__).joinpath("systems.json").read_text(encoding="utf-8")
    return {name: System(name=name, **about) for name, about in json.loads(text).items()}


def get(name: str) -> System:
    """Return a system by name. Raises ValueError for an unknown one."""
    if name not in known():
        raise ValueError(f"there is no system called {name!r}; there are {', '.join(known())}.")
    return known()[name]


def table() -> str:
    """Return a Markdown table, a row for each system: licence, commit, exemplar, parts that have run, and weights."""
    lines = [
        "| system | licence | commit | takes an exemplar | seen to run | weights |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for system in known().values():
        direct = all(weights["direct"] for weights in system.weights)
        kind = "direct link" if direct else "by hand, from a page: see plan"
        exemplar = "yes" if system.exemplar else "no"
        lines.append(
            f"| {system.label} (`{system.name}`) | {system.licence} | {system.commit[:12]} | {exemplar} | "
            f"{system.checked} | {kind} |"
        )
    return "\n".join(lines) + "\n"


def plan(name: str, root: str | Path = "systems") -> str:
    """Describe the steps of `setup` and `run`, the licence first, with the commands for doing them by hand."""
    system, place = get(name), _place(name, root)
    repository = place / "repository"
    lines = [
        f"{system.label}: licence {system.licence}",
        f"  {system.notes}",
        f"  Seen to run: {system.checked}",
        "",
        *(shlex.join(command) for command in _git_commands(system, system.repository, repository)),
        f"uv venv --python {system.python} {place / 'env'}",
        f"uv pip install --python {place / 'env'} {shlex.join(system.packages)}",
        "",
    ]
    for entry in system.weights:
        state = "is here" if (repository / entry["path"]).is_file() else "to be put there"
        lines.append(f"weights: {repository / entry['path']} ({state}), from {entry['from']}")
    return "\n".join([*lines, "", f"runs: {system.command}"]) + "\n"


def setup(
    name: str,
    root: str | Path = "systems",
    *,
    accept: bool = False,
    source: str | Path | None = None,
    interpreter: str | Path | None = None,
    weights: bool = True,
    say: Callable[[str], None] = print,
) -> Path:
    """Fetch a system's repository at its pinned commit, make its environment, fetch weights that have a direct link.

    accept: that you have read the licence, which is shown first. source: another place to clone from, such as a copy on
    this machine. interpreter: a Python that has the packages already, instead of an environment of its own. weights:
    fetch those with a direct link. Existing files are kept, and missing weights are listed with their places.
    Returns the repository's folder. Raises ValueError without `accept`, OSError if a step fails.
    """
    system, place = get(name), _place(name, root)
    say(f"{system.label}: licence {system.licence} ({system.repository})")
    if not accept:
        raise ValueError(f"read the licence of {system.label} first ({system.licence}); then set it up with accept.")
    repository = place / "repository"
    if not _has_commit(repository, system):
        shutil.rmtree(repository, ignore_errors=True)
        place.mkdir(parents=True, exist_ok=True)
        for command in _git_commands(system, str(source or system.repository), repository):
            _call(command, f"fetching {system.label}", strict=command[1] == "clone")
        if not _has_commit(repository, system):
            raise OSError(f"{repository} does not hold commit {system.commit[:12]}: clone it whole and try again.")
        say(f"  repository: {repository}")
    if interpreter is not None:
        (place / "interpreter.txt").write_text(str(interpreter), encoding="utf-8")
    elif not _interpreter(place).is_file():
        uv = _uv()
        _call([*uv, "venv", "--quiet", "--python", system.python, str(place / "env")], "making the environment")
        install = [*uv, "pip", "install", "--quiet", "--python", str(_interpreter(place)), *system.packages]
        _call(install, f"installing what {system.label} needs")
        say(f"  environment: {place / 'env'}")
    for entry in system.weights:
        path, origin = repository / entry["path"], entry["from"]
        if path.is_file():
            continue
        reason = "no direct link" if weights else "not asked for"
        if weights and entry["direct"] and "://" in origin and not origin.endswith(".zip"):
            try:
                download.fetch(origin, path, check=partial(_check_md5, md5=entry.get("md5")))
                say(f"  weights: {path}")
                continue
            except (OSError, ValueError) as error:
                reason = str(error)
        say(f"  weights to be put at {path}, from {origin} ({reason})")
    return repository


def obstacle(name: str, root: str | Path = "systems") -> str | None:
    """Return one sentence on why a system cannot run with its own weights and what to do; None if it can."""
    system, place = get(name), _place(name, root)
    if not _has_commit(place / "repository", system) or not _interpreter(place).is_file():
        return f"{system.label} is not set up: run python -m gcgkit.evaluation.systems setup {name} --root {root}"
    if lost := [w for w in system.weights if not (place / "repository" / w["path"]).is_file()]:
        return f"{system.label} lacks {place / 'repository' / lost[0]['path']}: get it from {lost[0]['from']}"
    return None


def identity(name: str, root: str | Path = "systems") -> dict:
    """Return everything that determines a system's result: its commit and the digests of its weights."""
    system, repository = get(name), _place(name, root) / "repository"
    files = {w["path"]: repository / w["path"] for w in system.weights}
    digests = {path: known_sha256(file) for path, file in files.items() if file.is_file()}
    return {"system": name, "commit": system.commit, "weights": digests}


def run(
    name: str,
    frames: str | Path,
    exemplar: np.ndarray | None,
    out: str | Path,
    *,
    root: str | Path = "systems",
    device: str | None = None,
    random_weights: bool = False,
) -> Path:
    """Colour the PNG frames of a folder with a system, into a folder that does not exist yet, and return it.

    exemplar: RGB ``(H, W, 3)``, the true first frame, for the systems that take one. device: "cpu", or a GPU if there
    is one. random_weights: do without the weights, which shows that the system runs and marks its frames as worthless.
    The script's own output goes to ``<out>.log``. Raises ValueError or OSError in one sentence.
    """
    system, place = get(name), _place(name, root)
    frames, out = Path(frames).resolve(), Path(out).absolute()
    reason = obstacle(name, root)
    if reason and not (random_weights and _has_commit(place / "repository", system) and _interpreter(place).is_file()):
        raise FileNotFoundError(reason)
    if out.exists():
        raise ValueError(f"{out} exists already; give another folder.")
    if system.exemplar and exemplar is None:
        raise ValueError(f"{system.label} needs an exemplar: give the first frame in colour.")
    count = check_names(frames)
    size = next(video.iterate(frames)).shape[:2]
    cpu = "cpu" in (device, best_device())
    out.parent.mkdir(parents=True, exist_ok=True)
    log = out.with_name(f"{out.name}.log")
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as work:
        job = make_job(system.run, place / "repository", frames, exemplar, Path(work), cpu)
        switches = [*(["--cpu"] if cpu else []), *(["--random-weights"] if random_weights else [])]
        launcher = [str(_interpreter(place)), str(RUNNERS / "launch.py"), *switches, *job.launcher]
        with log.open("w", encoding="utf-8") as output:
            done = subprocess.run(
                [*launcher, job.script, *job.arguments],
                cwd=job.folder, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, check=False,
                env={**os.environ, "PYTHONPATH": "", "MPLBACKEND": "Agg"},
            )  # fmt: skip
        if done.returncode < 0:
            raise OSError(f"{system.label} was ended by signal {-done.returncode}; its output is in {log}.")
        try:
            result = [stretch(frame, size) for frame in job.collect()]
        except (ValueError, OSError) as error:
            raise OSError(f"{system.label} left no frames ({_last_line(log)}); its output is in {log}.") from error
        if done.returncode != 0 or len(result) != count:
            reason = _last_line(log) if done.returncode else f"{len(result)} frames instead of {count}"
            raise OSError(f"{system.label} stopped: {reason}; its output is in {log}.")
        write_frames(result, out)
    if random_weights:
        text = f"Made by {system.label} with random weights: worthless but as a sign that it runs.\n"
        (out / RANDOM_WEIGHTS).write_text(text, encoding="utf-8")
    return out


# --- places and commands ---------------------------------------------------------------------------------------------


def _place(name: str, root: str | Path) -> Path:
    return Path(root).absolute() / get(name).name


def _interpreter(place: Path) -> Path:
    recorded = place / "interpreter.txt"
    if recorded.is_file():
        return Path(recorded.read_text(encoding="utf-8"))
    return place / "env" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _git_commands(system: System, source: str, repository: Path) -> list[list[str]]:
    """Return the commands that fetch `system.files` at the pinned commit, and no more than needed."""
    inside = ["git", "-C", str(repository)]
    return [
        ["git", "clone", "--quiet", "--no-checkout", "--filter=blob:none", source, str(repository)],
        [*inside, "sparse-checkout", "set", "--no-cone", *system.files],
        [*inside, "checkout", "--quiet", "--detach", system.commit],
    ]


def _has_commit(repository: Path, system: System) -> bool:
    """Return True if a folder is a clone at the pinned commit with files in it."""
    if not (repository / ".git").exists():
        return False
    head = subprocess.run(
        ["git", "-C", str(repository), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return head.stdout.strip() == system.commit and any(repository.rglob("*.py"))


def _call(command: list[str], what: str, strict: bool = True) -> None:
    """Run a command; raise OSError in one sentence if it fails and `strict` is true."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise FileNotFoundError(f"{what} needs the program {command[0]}: install it.") from None
    if done.returncode and strict:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise OSError(f"{what} failed: {reason} (command: {' '.join(command)})")


def _uv() -> list[str]:
    """Return uv as a command, from the path or as a module of this Python."""
    return [shutil.which("uv")] if shutil.which("uv") else [sys.executable, "-m", "uv"]


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it said nothing"


def _check_md5(path: Path, md5: str | None) -> None:
    """Compare a file with the digest that the authors publish."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if md5 not in (None, found):
        raise ValueError(f"{path.name} has MD5 {found}, not the authors' {md5}: it came damaged; try again.")


def main(argv: list[str] | None = None) -> int:
    """List the systems, show a plan, set one up or run one; return an exit code."""
    about = "The six compared systems."
    parser = argparse.ArgumentParser(prog="python -m gcgkit.evaluation.systems", description=about)
    parser.add_argument("--root", default="systems", help="folder for repositories and environments (systems)")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for word, about in (("plan", "what would be done"), ("setup", "fetch and install"), ("run", "colour a folder")):
        command = commands.add_parser(word, help=about, description=about)
        command.add_argument("name", metavar="SYSTEM", help=", ".join(known()))
        command.add_argument("--root", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        if word == "setup":
            command.add_argument("--accept", action="store_true", help="you have read the licence")
            command.add_argument("--source", help="another place to clone from")
            command.add_argument("--interpreter", type=Path, help="a Python that has the packages already")
            command.add_argument("--no-weights", action="store_true", help="fetch no weights")
        if word == "run":
            command.add_argument("frames", type=Path, help="folder 00000.png ... of gray frames")
            command.add_argument("out", type=Path, help="folder for the coloured frames")
            command.add_argument("--exemplar", type=Path, help="the first frame in colour")
            command.add_argument("--device", help="cpu, or a GPU if there is one")
            command.add_argument("--random-weights", action="store_true", help="only show that it runs")
    args = parser.parse_args(argv)
    return run_reporting_errors(lambda: _run_command(args))


def _run_command(args: argparse.Namespace) -> None:
    if args.command is None:
        print(table(), end="")
    elif args.command == "plan":
        print(plan(args.name, args.root), end="")
    elif args.command == "setup":
        options = {"source": args.source, "interpreter": args.interpreter, "weights": not args.no_weights}
        setup(args.name, args.root, accept=args.accept, **options)
    else:
        exemplar = None if args.exemplar is None else next(video.iterate(args.exemplar))
        options = {"root": args.root, "device": args.device, "random_weights": args.random_weights}
        print(run(args.name, args.frames, exemplar, args.out, **options))
