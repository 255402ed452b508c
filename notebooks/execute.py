"""Making the notebooks: one set-up cell for all, and runs whose outputs are kept with a record of their sources.

``python notebooks/execute.py notebooks/*.ipynb`` puts badges and the set-up cell in place, runs each notebook from top
to bottom with static pictures, and writes it back only if every cell ran. The notebook's metadata records the sources
and weights of the run (`record`), so that a test can tell outputs of other sources, or of other weights. At each
exercise the check is also tried on wrong answers, which the attempt's cell keeps in its metadata, and on the solution
(`_try_exercise`).
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import re
import sys
import time
import tokenize
import tomllib
from pathlib import Path

from tqdm import tqdm

from gcgkit.evaluation import methods
from gcgkit.lessons import notebook as lesson

# The set-up cell. Its third line installs what gcgkit needs and lacks, and keeps the torch that is there.
_SETUP = """\
import importlib.util, os, subprocess, sys  # Set-up, the same in every notebook: installs gcgkit only where it is missing
if importlib.util.find_spec("gcgkit") is None: subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", ".." if os.path.exists("../gcgkit/lessons") else {source}], check=True)
import gcgkit; lesson = gcgkit.lessons.ready()"""  # noqa: E501
_MARK = "Set-up, the same in every notebook"
_NO_ADDRESS = "gcgkit is not installed here: set GCGKIT_SOURCE to its folder or to git+ and its address."
# Where a notebook can be opened and run: picture, and page for a notebook of a project on GitHub.
_BADGES = {
    "Open in Colab": (
        "https://colab.research.google.com/assets/colab-badge.svg",
        "https://colab.research.google.com/github/{project}/blob/main/notebooks/{name}.ipynb",
    ),
    "Open in Binder": (
        "https://mybinder.org/badge_logo.svg",
        "https://mybinder.org/v2/gh/{project}/main?labpath=notebooks%2F{name}.ipynb",
    ),
}
_KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
_WIDGET = "application/vnd.jupyter.widget-view+json"
_CLOCK = '__import__("time").process_time()'  # CPU seconds of the kernel
# Signs for blocks and lines of code in a digest.
_LAYOUT = {tokenize.INDENT: "\u2192", tokenize.DEDENT: "\u2190", tokenize.NEWLINE: "\u21b5"}
# A path of this machine in an output: a home, a temporary folder, an environment, or a drive letter.
_PATHS = re.compile(r"(?:/(?:home|root|Users|tmp|work|usr|opt|var|content)/|\b[A-Z]:\\)\S*|\S*site-packages\S*")
_BASE64 = re.compile(r"base64,[A-Za-z0-9+/=]+")  # a movie in the page, in which any letters may come by chance


def address() -> str:
    """Return the address that gcgkit is published under: Repository in [project.urls] of pyproject.toml, or ""."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project.get("urls", {}).get("Repository", "").rstrip("/")


def setup_cell(source: str | None = None) -> str:
    """Return the set-up cell, which installs gcgkit from ``source`` where it cannot be imported.

    source: what pip installs, by default git+ and `address`. If it is empty, the cell ends with a sentence that says
    what to set.
    """
    if source is None:
        source = f"git+{address()}" if address() else ""
    variable = 'os.environ.get("GCGKIT_SOURCE")'
    chosen = f'{variable} or "{source}"' if source else f'{variable} or sys.exit("{_NO_ADDRESS}")'
    return _SETUP.format(source=chosen)


def is_setup(cell) -> bool:
    """Return True for a set-up cell, of this or an earlier version."""
    return cell.cell_type == "code" and _MARK in cell.source.split("\n", 1)[0]


def badges(name: str, published: str) -> str:
    """Return the line of badges for a notebook: for a project on GitHub, which is what Colab and Binder open."""
    project = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?", published)
    if project is None:
        return ""
    links = (f"[![{text}]({picture})]({page})" for text, (picture, page) in _BADGES.items())
    return " ".join(links).format(project=project[1], name=name)


def stamp(notebook, name: str, published: str | None = None) -> None:
    """Put the badges under the title and the set-up cell in its place, the second cell of the notebook.

    notebook: an ``nbformat`` notebook, changed in place; name: of its file, without suffix; published: the project's
    address (`address`). Raises ValueError where the second cell is another one.
    """
    published = address() if published is None else published
    cells = notebook.cells
    if len(cells) < 3 or not is_setup(cells[1]):
        raise ValueError("the second cell must be the set-up cell: copy it from another notebook.")
    cells[1].source = setup_cell(f"git+{published}" if published else "")
    title, *rest = [part for part in cells[0].source.split("\n\n") if not part.startswith("[![Open in ")]
    cells[0].source = "\n\n".join(part for part in (title, badges(name, published), *rest) if part)


def sources_digest(notebook) -> str:
    """SHA-256 over what the code cells say, in order; their layout and comments do not count, nor does the set-up cell.

    The set-up depends on the project's address and computes nothing. Wrong answers count, too. It is the same
    with every Python: from 3.12 on an f-string is many tokens, and ``{{`` in it is one brace.
    """
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and not is_setup(cell)]
    sources = [_said(cell.source) for cell in code]
    sources += [_said(wrong) for cell in notebook.cells for wrong in wrong_answers(cell)]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()


def _said(source: str) -> str:
    words = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in (tokenize.COMMENT, tokenize.NL):
            words.append(_LAYOUT.get(token.type, token.string))
    return re.sub(r"\s+|(?<={){|(?<=})}", "", "".join(words))


def wrong_answers(cell) -> list[str]:
    """Code of wrong answers that an attempt's cell keeps in its metadata for its check to refuse."""
    return list(cell.metadata.get("gcgkit", {}).get("wrong", []))


def record(notebook, seconds: float, cpu_seconds: float, verdicts: dict | None = None) -> dict:
    """Return the record of a run: digests of the code cells and of the mini weights, seconds, verdicts of checks."""
    return {
        "exercises": verdicts or {},
        "sources": sources_digest(notebook),
        "weights": methods.weights_digest("mini"),
        "seconds": round(seconds),
        "cpu_seconds": round(cpu_seconds),  # the time of the run on one core where nothing else runs
    }


def run(path: str | Path, timeout: int = 600) -> float:
    """Run a notebook with static pictures, write it back with its outputs, and return the seconds that it took.

    timeout: seconds for each cell. Raises RuntimeError, naming the cell, where one fails, ValueError for a notebook
    without a set-up cell and for an output that tells a path of this machine; the file is then as it was.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    path = Path(path)
    notebook = nbformat.read(path, as_version=4)
    stamp(notebook, path.stem)
    client = NotebookClient(
        notebook, timeout=timeout, startup_timeout=300, kernel_name="python3", record_timing=False,
        resources={"metadata": {"path": str(path.parent)}},
    )  # fmt: skip
    before, started, used = os.environ.get(lesson.STATIC), time.monotonic(), _cpu_seconds()
    os.environ[lesson.STATIC] = "1"
    verdicts: dict[str, dict] = {}
    count, tries = 0, 0.0
    try:
        with client.setup_kernel():
            for index, cell in enumerate(notebook.cells):
                count += cell.cell_type == "code"
                client.execute_cell(cell, index, execution_count=count)  # the tries of a check do not count
                if {"check", "solution"} & set(cell.metadata.get("tags", [])):
                    tries += _try_exercise(client, index, verdicts)
    except (CellExecutionError, CellTimeoutError) as error:
        raise RuntimeError(f"{path.name} did not run to its end:\n{error}") from error
    except (DeadKernelError, AssertionError) as error:  # an assertion fails while nbclient clears a dead kernel away
        raise RuntimeError(f"{path.name} did not run to its end: its kernel died, perhaps of memory.") from error
    finally:
        if before is None:
            del os.environ[lesson.STATIC]
        else:
            os.environ[lesson.STATIC] = before
    drop_bars(notebook)
    if told := machine_paths(notebook):
        raise ValueError(f"{path.name} tells a path of this machine in an output: {told[0]}")
    seconds = time.monotonic() - started
    made = record(notebook, seconds, _cpu_seconds() - used - tries, verdicts)
    notebook.metadata = nbformat.from_dict({"kernelspec": _KERNEL, "language_info": {"name": "python"}, "gcgkit": made})
    _write(notebook, path)
    return seconds


def write_stamped(path: str | Path) -> None:
    """Renew the badges and the set-up cell of a notebook's file, and leave its outputs as they are."""
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    stamp(notebook, Path(path).stem)
    _write(notebook, Path(path))


def _write(notebook, path: Path) -> None:
    import nbformat

    partial = path.with_suffix(".partial")
    nbformat.write(notebook, partial)
    os.replace(partial, path)


def _try_exercise(client, index: int, verdicts: dict[str, dict]) -> float:
    """After a check's cell, try it on the wrong answers; after a solution's, on the solution.

    The cells of exercise k are its attempt, its check and its solution, one after the other. Adds the sentences of the
    check to ``verdicts`` and returns the CPU seconds that this took, which a reader does not spend. Raises RuntimeError
    where a wrong answer passes or the solution does not.
    """
    cells, before = client.nb.cells, float(_verdict(client, index, _CLOCK))
    if "check" in cells[index].metadata.tags:
        attempt, check, number = cells[index - 1], cells[index], str(len(verdicts) + 1)
        said = [_verdict(client, index, f"{wrong}\n{check.source}") for wrong in wrong_answers(attempt)]
        verdicts[number] = {"wrong": said}
        if passed := [text for text in said if not text.startswith("Not yet")]:
            raise RuntimeError(f"the check of exercise {number} does not refuse a wrong answer, but says: {passed[0]}")
        _verdict(client, index, attempt.source)
    else:
        number = str(len(verdicts))
        verdicts[number]["solution"] = _verdict(client, index, cells[index - 1].source)
        if not verdicts[number]["solution"].startswith("Right"):
            text = verdicts[number]["solution"]
            raise RuntimeError(f"the check of exercise {number} does not accept the solution, but says: {text}")
    return float(_verdict(client, index, _CLOCK)) - before


def _verdict(client, index: int, source: str) -> str:
    """Run code between the cells of a notebook, without a trace in it, and return what it evaluates to, as text."""
    from nbformat.v4 import new_code_cell

    kept, probe = client.nb.cells[index], new_code_cell(source)
    try:
        client.execute_cell(probe, index, store_history=False)
    finally:
        client.nb.cells[index] = kept
    return "".join(o.data["text/plain"] for o in probe.outputs if o.output_type == "execute_result")


def drop_bars(notebook) -> None:
    """Take progress bars out of a notebook's outputs: with static pictures they are the only widgets that are left."""
    for cell in notebook.cells:
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if _WIDGET not in output.get("data", {})]


def machine_paths(notebook) -> list[str]:
    """Paths of a machine that the texts in a notebook's outputs tell."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            texts = [output.get("text", ""), *output.get("traceback", [])]
            texts += [value for kind, value in output.get("data", {}).items() if not kind.startswith("image/")]
            found += [match for text in texts for match in _PATHS.findall(_BASE64.sub("", str(text)))]
    return found


def _cpu_seconds() -> float:
    """CPU seconds of the processes that this one started and that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Run notebooks and keep their outputs.")
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("--stamp", action="store_true", help="renew badges and set-up cells alone, run nothing")
    parser.add_argument("--timeout", type=int, default=600, help="seconds for each cell")
    args = parser.parse_args(argv)
    for path in tqdm(args.notebooks, desc="Notebooks", disable=None):
        try:
            if args.stamp:
                write_stamped(path)
            else:
                print(f"{path}: {run(path, args.timeout):.0f} s", flush=True)
        except (RuntimeError, ValueError, FileNotFoundError) as error:
            print(f"execute: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
