"""Which part of the library imports which: the contracts in pyproject.toml hold, and colouring loads nothing else."""

import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import reimport

ROOT = Path(__file__).resolve().parents[1]
LINT = "from importlinter.cli import lint_imports_command as lint; lint(['--no-cache', '--no-logo'])"


def lint(folder: Path) -> tuple[int, str]:
    """Exit code and words of import-linter on the library in a folder."""
    done = subprocess.run([sys.executable, "-c", LINT], cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, " ".join((done.stdout + done.stderr).split())


@pytest.fixture
def copied(tmp_path):
    """The library's code and contracts, to be broken."""
    shutil.copytree(ROOT / "gcgkit", tmp_path / "gcgkit", ignore=shutil.ignore_patterns("weights", "__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_layers_hold():
    code, said = lint(ROOT)
    assert code == 0, said


@pytest.mark.parametrize(
    ("module", "line", "told"),
    [
        ("color", "from .video import film", None),  # downwards: fine
        ("color", "from .metrics import psnr_rgb", "gcgkit.color -> gcgkit.metrics"),
        ("films/shots", "def f():\n    from ..training import log", "gcgkit.films.shots -> gcgkit.training.log"),
        ("data/toy", "from .. import metrics", "gcgkit.data.toy -> gcgkit.metrics"),
        ("settings", "def f():\n    from . import pipeline", "gcgkit.settings -> gcgkit.pipeline"),
        ("training/config", "def f():\n    from . import recipes", "at any depth BROKEN"),
        ("guidance", "def f():\n    from . import control", "at any depth BROKEN"),
    ],
)
def test_a_wrong_import_is_found_inside_a_function_too(copied, module, line, told):
    path = copied / "gcgkit" / f"{module}.py"
    path.write_text(f"{path.read_text(encoding='utf-8')}\n\n{line}\n", encoding="utf-8")
    code, said = lint(copied)
    assert (code == 0) == (told is None), said
    assert told is None or told in said


def test_colouring_a_film_loads_neither_training_nor_evaluation_nor_lessons(tmp_path):
    import tiny

    from gcgkit import video

    video.write(tmp_path / "in.mp4", tiny.clip(3, 64, 64), 25)
    options = ["--steps", "1", "--keyframes", "2", "--device", "cpu"]
    with reimport.fresh():
        command = importlib.import_module("gcgkit.cli")
        assert command.main(["colorize", str(tmp_path / "in.mp4"), str(tmp_path / "out.mp4"), *options]) == 0
        loaded = reimport.loaded()
    assert "gcgkit.films.shot" in loaded and "gcgkit.pipeline" in loaded
    assert (tmp_path / "out.mp4").exists()
    others = ("training", "evaluation", "lessons", "data", "metrics")
    assert [name for name in loaded if name.split(".")[1] in others] == []
