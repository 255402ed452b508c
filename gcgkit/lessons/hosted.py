"""Hosted notebooks: install what gcgkit needs and the machine lacks, and fetch the stored results.

A hosted notebook, such as one in Colab, brings its own PyTorch. The set-up cell installs gcgkit alone; what else is
missing is installed here, beside the packages that must stay as they are. Only Python's own library is imported.
"""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

# Packages that belong to the machine: its GPU driver and its other packages fit them.
KEPT = ("torch", "torchvision", "numpy")
# Of the extra "notebooks": the application, which is what a hosted notebook runs in.
NOT_NEEDED = ("jupyterlab",)


def install_missing() -> None:
    """Install gcgkit's requirements that are not met here with pip, and keep the versions of `KEPT`.

    Does nothing, and asks no network, where all are met. Raises RuntimeError where a kept package is too old, and with
    pip's last line where pip fails.
    """
    wanted = unmet_requirements()
    if not wanted:
        return
    here = {name: found for name in KEPT if (found := _version(name))}
    for line in wanted:
        if (name := _name(line)) in here:
            raise RuntimeError(
                f"gcgkit needs {line}, and {name} {here[name]} is here: install a newer {name}, and restart the kernel."
            )
    print(f"Installing what gcgkit needs here: {', '.join(wanted)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "kept.txt"
        constraints.write_text("".join(f"{name}=={found}\n" for name, found in here.items()), encoding="utf-8")
        pip_install("--constraint", str(constraints), *wanted)
    importlib.invalidate_caches()


def unmet_requirements() -> list[str]:
    """Return those of gcgkit's requirements, such as ``av>=18.0``, that no installed package meets.

    They are its dependencies and its extra "notebooks" without JupyterLab. torchvision is left out beside a torch that
    is not PyPI's, such as 2.9.1+cpu: PyPI's torchvision does not load there, and only metric networks need it. The list
    is empty where gcgkit was not installed but is on the path.
    """
    try:
        lines = metadata.requires("gcgkit") or []
    except metadata.PackageNotFoundError:
        return []
    left_out = (*NOT_NEEDED, "torchvision") if "+" in (_version("torch") or "") else NOT_NEEDED
    wanted = []
    for line in lines:
        requirement, _, marker = (part.strip() for part in line.partition(";"))
        extra = re.search(r"""extra == ["']([\w-]+)["']""", marker)
        if (extra is None or extra[1] == "notebooks") and _name(requirement) not in left_out:
            wanted.append(requirement)
    return [requirement for requirement in wanted if not _met(requirement)]


def fetch_results(folder: Path = Path("..")) -> None:
    """In Colab, put ``results`` of gcgkit's repository into ``folder``, where the notebooks look for it.

    Colab opens a notebook alone, without the repository around it. The results are those of the commit that gcgkit was
    installed from. Where they cannot be fetched, a line says so; the notebooks that show them then say that they are
    missing.
    """
    place = folder / "results"
    source = _git_source()
    if "google.colab" not in sys.modules or place.exists() or source is None:
        return
    address, commit = source
    with tempfile.TemporaryDirectory() as clone:
        git = ["git", "-C", clone]
        commands = [
            [*git, "init", "--quiet"],
            [*git, "remote", "add", "origin", address],
            [*git, "fetch", "--quiet", "--depth", "1", "--filter", "blob:none", "origin", commit],
            [*git, "restore", "--source", "FETCH_HEAD", "--", "results"],
        ]
        try:
            for command in commands:
                subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            print(f"The stored results could not be fetched from {address}; notebooks 11 and 12 go without them.")
            return
        shutil.copytree(Path(clone) / "results", place)


def pip_install(*arguments: str) -> None:
    """Run this Python's own pip; RuntimeError with its last line if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", *arguments], capture_output=True, text=True
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"pip install {' '.join(arguments)} failed: {last}")


def _git_source() -> tuple[str, str] | None:
    """Return address and commit if gcgkit was installed from git, as pip noted it."""
    try:
        noted = json.loads(metadata.distribution("gcgkit").read_text("direct_url.json") or "{}")
    except metadata.PackageNotFoundError:
        return None
    commit = noted.get("vcs_info", {}).get("commit_id")
    return (noted["url"], commit) if commit else None


def _name(requirement: str) -> str:
    return re.match(r"[\w.-]+", requirement)[0]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _met(requirement: str) -> bool:
    found = _version(_name(requirement))
    if found is None:
        return False
    try:
        from packaging.requirements import Requirement
    except ImportError:  # every kernel of Jupyter brings packaging; without it, what is there is taken
        return True
    return Requirement(requirement).specifier.contains(found, prereleases=True)
