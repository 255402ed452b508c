"""What notebooks share, and the set-up cell in a Python that has no gcgkit."""

import copy
import os
import re
import subprocess
import sys
import tomllib
import types
import venv
import zipfile
from pathlib import Path

import nbformat
import numpy as np
import pytest

import gcgkit
from gcgkit.lessons import notebook as lesson

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "notebooks"))

import execute  # noqa: E402


def test_default_is_the_functions_own():
    assert lesson.default(gcgkit.keyframes.select_keyframes, "method") == "auto"
    assert lesson.default(gcgkit.GCGPipeline.__call__, "num_keyframes") == 4
    for name in ("count", "no_such_name"):
        with pytest.raises(ValueError, match="no default"):
            lesson.default(gcgkit.keyframes.select_keyframes, name)


def test_table_in_words_and_in_markdown():
    shown = lesson.table({"ours": {"dB": 25.456, "m": 4}, "truth": {"m": [0, 7]}}, head="clip")
    assert shown._repr_markdown_().splitlines() == [
        "| clip | dB | m |", "| --- | ---: | ---: |", "| ours | 25.46 | 4 |", "| truth | - | 0, 7 |",
    ]  # fmt: skip
    assert repr(shown).splitlines() == ["clip   dB     m", "ours   25.46  4", "truth  -      0, 7"]


def test_contents_and_paths_name_the_whole_series():
    for number, name in ((name[:2], name) for name in lesson.SERIES):
        assert f"[{number}]({name}.ipynb)" in lesson.contents()._repr_markdown_()
    assert all(reader in repr(lesson.paths()) for reader in lesson.PATHS)


def test_latents_and_image_are_each_others_way_back():
    pipe = gcgkit.GCGPipeline.from_pretrained("mini")
    frame = np.full((64, 96, 3), (180, 90, 60), np.uint8)
    code = lesson.latents(pipe.vae, frame)
    assert tuple(code.shape) == (1, 4, 8, 12)
    back = lesson.image(pipe.vae, code)
    assert back.shape == frame.shape and np.abs(back.astype(int) - frame).mean() < 12


def test_load_pipeline_says_what_it_loaded(capsys, monkeypatch):
    monkeypatch.setenv(lesson.STATIC, "1")
    pipe = lesson.load_pipeline("mini")
    told = capsys.readouterr().out
    count = sum(
        x.numel()
        for part in (
            pipe.vae,
            pipe.text_encoder,
            pipe.unet,
            pipe.control,
            pipe.image_encoder,
            pipe.semantic_encoder,
        )  # fmt: skip
        for x in part.parameters()
    )
    assert f"{count / 1e6:.1f} million" in told and str(pipe.config.guidance_scale) in told
    assert "scaled to 448x256 (the profile's own: 560x320)" in told
    assert pipe._progress_bar_config == {"disable": True}
    with pytest.raises(FileNotFoundError):
        lesson.load_pipeline("no/such/folder/here")


def wheel(folder: Path, name: str, version: str, files: dict[str, str], requires: tuple[str, ...] = ()) -> None:
    """A wheel written by hand."""
    info = f"{name}-{version}.dist-info"
    texts = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        + "".join(f"Requires-Dist: {line}\n" for line in requires),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in (*texts, f"{info}/RECORD"))
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in {**texts, f"{info}/RECORD": record}.items():
            archive.writestr(path, text)


def test_set_up_installs_missing_clips_as_their_own_commands_say_but_not_the_demos(monkeypatch):
    names = {
        name: types.SimpleNamespace(install_command=f"pip install {options} {name}==1.0", apart=name == "three")
        for name, options in (("one", "--no-deps"), ("two", '--no-deps --target "a b/clips"'), ("three", "--no-deps"))
    }
    monkeypatch.setattr(lesson.clips, "NAMES", names)
    monkeypatch.setattr(lesson.clips, "find", lambda name: (_ for _ in ()).throw(FileNotFoundError(name)))
    asked = []
    monkeypatch.setattr(lesson, "pip_install", lambda *arguments: asked.append(arguments))
    lesson.ready()
    assert sorted(asked) == [("--no-deps", "--target", "a b/clips", "two==1.0"), ("--no-deps", "one==1.0")]


@pytest.mark.slow
def test_set_up_cell_in_a_fresh_python_installs_gcgkit_and_keeps_torch(tmp_path):
    shelf, place = tmp_path / "shelf", tmp_path / "content"
    shelf.mkdir(), place.mkdir()
    for version in ("2.7.0", "9.0.0"):
        wheel(shelf, "torch", version, {"torch.py": f"__version__ = '{version}'\n"})
    # The newest torchvision would pull the newest torch in its wake.
    wheel(shelf, "torchvision", "0.22.0", {"torchvision.py": ""}, ("torch==2.7.0",))
    wheel(shelf, "torchvision", "1.0.0", {"torchvision.py": ""}, ("torch==9.0.0",))
    for name, version in (("ipywidgets", "8.1.5"), ("matplotlib", "3.10.0")):
        wheel(shelf, name, version, {f"{name}.py": ""})
    own = ("gcgkit/__init__.py", "gcgkit/lessons/__init__.py", "gcgkit/lessons/hosted.py")
    said = "def ready():\n    import torch, torchvision\n    print('ready with torch', torch.__version__)\n"
    wheel(
        shelf,
        "gcgkit",
        "0.1.0",
        {name: (ROOT / name).read_text() for name in own} | {"gcgkit/lessons/notebook.py": said},
        # Neither JupyterLab nor pytest is on the shelf: whoever asked for them would fail.
        ("torch>=2.6", "torchvision>=0.21")
        + tuple(f'{name}; extra == "notebooks"' for name in ("ipywidgets>=8.1", "jupyterlab>=4.2", "matplotlib>=3.9"))
        + ('pytest>=8; extra == "dev"',),
    )
    venv.create(tmp_path / "python", with_pip=True)
    python = tmp_path / "python" / ("Scripts" if os.name == "nt" else "bin") / "python"
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PIP_", "VIRTUAL_ENV", "GCGKIT"))}
    environment = {**keep, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(shelf), "PIP_CONFIG_FILE": os.devnull}

    def run(*arguments, **more):
        return subprocess.run(
            [python, *arguments], cwd=place, env={**environment, **more}, capture_output=True, text=True
        )

    assert run("-m", "pip", "install", "torch==2.7.0").returncode == 0
    alone = run("-c", execute.setup_cell(source=""))
    assert alone.returncode != 0 and "set GCGKIT_SOURCE" in alone.stderr and "Traceback" not in alone.stderr
    source = str(shelf / "gcgkit-0.1.0-py3-none-any.whl")
    done = run("-c", execute.setup_cell(source=source))
    assert done.stdout.splitlines()[-1:] == ["ready with torch 2.7.0"], done
    # A second time nothing is installed, so that an empty shelf does not matter.
    again = run("-c", execute.setup_cell(source=source), PIP_FIND_LINKS=str(place))
    assert again.stdout == "ready with torch 2.7.0\n", again.stderr


def small_notebook(source: str):
    cells = [
        nbformat.v4.new_markdown_cell("# t"),
        nbformat.v4.new_code_cell(execute.setup_cell()),
        nbformat.v4.new_code_cell(source),
    ]
    return nbformat.v4.new_notebook(cells=cells)


@pytest.mark.slow
def test_run_keeps_outputs_with_their_record_or_leaves_the_file_alone(tmp_path, monkeypatch):
    package = tmp_path / "light" / "gcgkit"  # what the set-up cell imports in the kernel, without torch: the run counts
    (package / "lessons").mkdir(parents=True)
    (package / "__init__.py").write_text("from . import lessons\n")
    (package / "lessons" / "__init__.py").write_text("def ready():\n    pass\n")
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    monkeypatch.delenv(lesson.STATIC, raising=False)
    path = tmp_path / "pages" / "one.ipynb"
    path.parent.mkdir()
    nbformat.write(small_notebook(f"print(os.environ[{lesson.STATIC!r}], 6 * 7)"), path)
    seconds = execute.run(path)
    done = nbformat.read(path, as_version=4)
    assert done.cells[2].outputs[0].text == "1 42\n"
    assert done.metadata.gcgkit.sources == execute.sources_digest(done)
    assert done.metadata.gcgkit.seconds == round(seconds)
    assert lesson.STATIC not in os.environ

    for source, error in (("raise ValueError('no')", RuntimeError), ("print('/tmp/abc')", ValueError)):
        nbformat.write(small_notebook(source), path)
        before = path.read_bytes()
        with pytest.raises(error, match="one.ipynb"):
            execute.run(path)
        assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["one.ipynb"]


def test_progress_bars_are_no_part_of_a_page():
    shown = nbformat.v4.new_output("display_data", {"text/plain": "12"})
    bar = nbformat.v4.new_output(
        "display_data", {"text/plain": "0%|", "application/vnd.jupyter.widget-view+json": {"model_id": "1"}}
    )
    cells = [nbformat.v4.new_code_cell(outputs=[bar, shown, bar]), nbformat.v4.new_markdown_cell("x")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    execute.drop_bars(notebook)
    assert notebook.cells[0].outputs == [shown]


def test_stamp_wants_a_set_up_cell_in_its_place():
    notebook = small_notebook("x = 1")
    notebook.cells[1].source = notebook.cells[1].source.replace("ready()", "ready() # old")
    execute.stamp(notebook, "one")
    assert notebook.cells[1].source == execute.setup_cell()
    notebook.cells[1].source = "print()"
    with pytest.raises(ValueError, match="set-up cell"):
        execute.stamp(notebook, "one")


def test_an_address_set_once_reaches_badges_and_set_up_and_leaves_again():
    notebook = small_notebook("x = 1")
    notebook.cells[0].source = "# t\n\n**Afterwards** you know."
    before, digest = notebook.cells[0].source, execute.sources_digest(notebook)
    for _ in range(2):  # the second time changes nothing
        execute.stamp(notebook, "03_name", "https://github.com/ann/kit")
        title, line, rest = notebook.cells[0].source.split("\n\n")
        assert (title, rest) == ("# t", "**Afterwards** you know.")
        assert re.findall(r"\]\((https://[^)]+)\)", line)[1::2] == [
            "https://colab.research.google.com/github/ann/kit/blob/main/notebooks/03_name.ipynb",
            "https://mybinder.org/v2/gh/ann/kit/main?labpath=notebooks%2F03_name.ipynb",
        ]
        assert '"git+https://github.com/ann/kit"' in notebook.cells[1].source
        assert len(notebook.cells[1].source.splitlines()) == 3
    assert execute.sources_digest(notebook) == digest  # no notebook runs again for a new address
    execute.stamp(notebook, "03_name", "")
    assert notebook.cells[0].source == before and "git+https" not in notebook.cells[1].source


def test_notebooks_and_pyproject_have_one_address():
    published = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"].get("urls", {}).get("Repository", "")
    assert execute.address() == published.rstrip("/")
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        stamped = copy.deepcopy(notebook)
        execute.stamp(stamped, path.stem)
        assert stamped == notebook, "run python notebooks/execute.py --stamp notebooks/*.ipynb"


def test_command_line_tells_in_one_line_what_failed(tmp_path, capsys):
    path = tmp_path / "bad.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# t")]), path)
    assert execute.main([str(path)]) == 1
    told = capsys.readouterr().err
    assert "Traceback" not in told and "set-up cell" in told.strip().splitlines()[-1]
