"""What a hosted notebook lacks, and the results that it fetches."""

import json
import subprocess
import sys
from importlib import metadata

import pytest

from gcgkit.lessons import hosted


class Installed:
    """Stands for ``importlib.metadata`` on a machine with these packages."""

    PackageNotFoundError = metadata.PackageNotFoundError

    def __init__(self, versions: dict[str, str], requires: list[str], source: dict | None = None):
        self.versions, self.lines, self.source = versions, requires, source

    def version(self, name: str) -> str:
        if name not in self.versions:
            raise metadata.PackageNotFoundError(name)
        return self.versions[name]

    def requires(self, name: str) -> list[str]:
        return self.lines if self.version(name) else []

    def distribution(self, name: str) -> "Installed":
        return self

    def read_text(self, name: str) -> str | None:
        return json.dumps(self.source) if self.source else None


REQUIRES = [
    "av>=18.0",
    "numpy>=1.26",
    "torch>=2.6",
    "torchvision>=0.21",
    'matplotlib>=3.9; extra == "notebooks"',
    "jupyterlab>=4.2; extra == 'notebooks'",
    'pytest>=8.2; extra == "dev"',
]


@pytest.mark.parametrize(
    ("versions", "unmet"),
    [
        ({"av": "18.1", "numpy": "2.4.0", "torch": "2.9.1+cpu", "matplotlib": "3.10"}, []),
        ({"av": "16.0", "numpy": "2.4.0", "torch": "2.10.0"}, ["av>=18.0", "torchvision>=0.21", "matplotlib>=3.9"]),
        ({}, ["av>=18.0", "numpy>=1.26", "torch>=2.6", "torchvision>=0.21", "matplotlib>=3.9"]),
    ],
)
def test_unmet_requirements(versions, unmet, monkeypatch):
    monkeypatch.setattr(hosted, "metadata", Installed({"gcgkit": "0.1.0", **versions}, REQUIRES))
    assert hosted.unmet_requirements() == unmet


def test_where_gcgkit_is_on_the_path_by_hand_nothing_is_wanted(monkeypatch):
    monkeypatch.setattr(hosted, "metadata", Installed({}, REQUIRES))
    assert hosted.unmet_requirements() == []


def test_only_what_lacks_is_installed_and_what_is_kept_stands_in_the_constraints(monkeypatch):
    asked = []

    def install(flag, constraints, *wanted):
        asked.append((flag, open(constraints).read().split(), wanted))

    monkeypatch.setattr(hosted, "pip_install", install)
    versions = {"gcgkit": "0.1.0", "torch": "2.9.1+cpu", "numpy": "2.0.2", "matplotlib": "3.10"}
    monkeypatch.setattr(hosted, "metadata", Installed(versions, REQUIRES))
    hosted.install_missing()
    assert asked == [("--constraint", ["torch==2.9.1+cpu", "numpy==2.0.2"], ("av>=18.0",))]
    monkeypatch.setattr(hosted, "metadata", Installed({**versions, "av": "18.0"}, REQUIRES))
    hosted.install_missing()
    assert len(asked) == 1


def test_a_torch_that_is_too_old_is_not_replaced_but_told(monkeypatch):
    monkeypatch.setattr(hosted, "metadata", Installed({"gcgkit": "0.1.0", "torch": "2.5.1", "numpy": "2.0"}, REQUIRES))
    with pytest.raises(RuntimeError, match=r"needs torch>=2.6, and torch 2.5.1 is here"):
        hosted.install_missing()


@pytest.fixture
def origin(tmp_path):
    """A repository with results, its address, and a commit that is no longer the newest."""
    folder = tmp_path / "origin"
    (folder / "results" / "mini").mkdir(parents=True)

    def git(*command):
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", "-C", folder, *identity, *command], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "--quiet")
    for text in ("old", "new"):
        (folder / "results" / "mini" / "results.jsonl").write_text(text)
        git("add", "."), git("commit", "--quiet", "-m", text)
    return folder.as_uri(), git("rev-parse", "HEAD~1")


def test_colab_gets_the_results_of_the_installed_commit(origin, tmp_path, monkeypatch, capsys):
    address, commit = origin
    noted = {"url": address, "vcs_info": {"vcs": "git", "commit_id": commit}}
    monkeypatch.setattr(hosted, "metadata", Installed({"gcgkit": "0.1.0"}, REQUIRES, noted))
    hosted.fetch_results(tmp_path)
    assert not (tmp_path / "results").exists()  # not in Colab
    monkeypatch.setitem(sys.modules, "google.colab", object())
    hosted.fetch_results(tmp_path)
    assert (tmp_path / "results" / "mini" / "results.jsonl").read_text() == "old"
    (tmp_path / "results" / "mini" / "results.jsonl").write_text("mine")
    hosted.fetch_results(tmp_path)
    assert (tmp_path / "results" / "mini" / "results.jsonl").read_text() == "mine"
    assert capsys.readouterr().out == ""


def test_results_that_cannot_be_fetched_are_told(tmp_path, monkeypatch, capsys):
    noted = {"url": (tmp_path / "nowhere").as_uri(), "vcs_info": {"commit_id": "0" * 40}}
    monkeypatch.setattr(hosted, "metadata", Installed({"gcgkit": "0.1.0"}, REQUIRES, noted))
    monkeypatch.setitem(sys.modules, "google.colab", object())
    hosted.fetch_results(tmp_path)
    assert "could not be fetched" in capsys.readouterr().out and not (tmp_path / "results").exists()
