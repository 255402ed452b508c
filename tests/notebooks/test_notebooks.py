"""The notebooks as files: one shape for all, outputs that belong to their sources, texts borne out by computed numbers.

That they run is nbmake's to show (`make test`); here no kernel starts.
"""

import ast
import base64
import copy
import io
import json
import re
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import nbformat
import pytest
from PIL import Image

from gcgkit.data import clips
from gcgkit.evaluation import methods
from gcgkit.lessons import diagram
from gcgkit.lessons import notebook as lesson

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "notebooks"))

import execute  # noqa: E402

FOLDER = ROOT / "notebooks"
FILES = sorted(FOLDER.glob("*.ipynb"))
NOTEBOOKS = {path.stem: nbformat.read(path, as_version=4) for path in FILES}
# Which notebook has which of the paper's numbered equations.
EQUATIONS = {"03": (1, 2), "04": (3, 4, 5), "05": (6, 7, 8), "06": (9, 10), "09": (11,)}
# The call that computes each, in the cell after the equation.
CALLS = {
    1: "guidance.cga.to_q(tokens), guidance.cga.to_k(ref_tokens)",
    2: "guidance(g, g_ref, z_ref, return_weights=True, semantics=s, ref_semantics=s_ref)",
    3: "cdga.to_q(tokens), cdga.to_k(ref_tokens), cdga.to_v(ref_tokens)",
    4: "cdga(tokens, ref_tokens)",
    5: "guidance(g, g_ref, z_ref, semantics=s",
    6: "keyframes.select_keyframes(distance, count",
    7: "gray[[i]], prompt, num_keyframes=1",
    8: "joint_self_attention(pipe.unet, count)",
    9: "srg.make_grid(",
    10: "srg.equation_10_weights(",
    11: "denoising_target(scheduler, batch.target, noise, t)",
}
# What can be moved or clicked, and in which notebook.
INTERACTIVE = {
    "00": "before_after",
    "01": "explore",
    "02": "explore",
    "03": "attention_picker",
    "04": "gate_explorer",
    "05": "explore",
    "06": "srg_timeline",
    "07": "srg_timeline",
}
LARGEST_PICTURES = 1_000_000  # bytes of all pictures of a notebook together
LONGEST_FUNCTION = 8  # lines
# Notebooks that build a part of the paper as a module, in the solution of an exercise.
BUILDING = ("03", "04")
# Figures are for code to print. A text may state names, and, in a sentence that says so, the paper's own.
STATED = ("57 dB", "Stable Diffusion 2.1", "SD 2.1", "LDV 2.0", "LDV 3.0", "CC BY 3.0", "Apache-2.0")
FIGURE = r"\d+\.\d+|(?<!\+ )\b\d+ ?(?:%|(?:dB|s|ms|MB|GB|seconds|minutes|steps|frames|times)\b)"
OF_THE_PAPER = r"\bpaper\b|Table 1|§"
each = pytest.mark.parametrize("name", NOTEBOOKS)


def cells(name, kind):
    return [cell for cell in NOTEBOOKS[name].cells if cell.cell_type == kind]


def trees(name):
    """Syntax trees of the code cells."""
    return [ast.parse(cell.source) for cell in cells(name, "code")]


def pictures(cell):
    """(bytes, alternative text) of each picture in a code cell's outputs."""
    for output in cell.get("outputs", []):
        for kind in ("image/png", "image/jpeg"):
            if kind in output.get("data", {}):
                alt = output.get("metadata", {}).get(kind, {}).get("alt", "")
                yield base64.b64decode(output["data"][kind]), alt


def minutes(name):
    """Minutes on two CPU cores that the first cell states."""
    return int(re.search(r"About (\d+) minutes? on two CPU cores", NOTEBOOKS[name].cells[0].source)[1])


def stated(source):
    """Figures in a Markdown text that code should print: all but those in sentences about the paper."""
    for allowed in STATED:
        source = source.replace(allowed, " ")
    sentences = re.split(r"(?<=[.!?|])\s+(?=[A-Z*|])|\n+", prose(source))
    return [found for each in sentences if not re.search(OF_THE_PAPER, each) for found in re.findall(FIGURE, each)]


def prose(source):
    """A Markdown text without its equations, code, links' targets, headings' numbers, and with § for sections."""
    for pattern in (r"\$\$.*?\$\$", r"\$[^$]*\$", r"`[^`]*`", r"\]\([^)]*\)", r"§[\d.]+", r"^#+ \d+ ·"):
        source = re.sub(pattern, " § " if pattern[0] == "§" else " ", source, flags=re.DOTALL | re.MULTILINE)
    return source


def test_the_series_is_what_lesson_says_it_is():
    assert list(NOTEBOOKS) == list(lesson.SERIES)
    assert {number for path in lesson.PATHS.values() for number in path} <= {name[:2] for name in NOTEBOOKS}
    assert all("00" in path for path in lesson.PATHS.values()) and len(lesson.PATHS) == 3


@each
def test_first_cell_says_what_for_and_what_is_needed(name):
    first = NOTEBOOKS[name].cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith(f"# {name[:2]} · ")
    assert first.source.count("**Afterwards you can**") == first.source.count("**It needs**") == 1
    assert "GPU" in first.source and minutes(name) <= 3


@each
def test_second_cell_is_the_set_up_and_third_the_knobs(name):
    _, second, third = NOTEBOOKS[name].cells[:3]
    assert second.cell_type == third.cell_type == "code"
    assert second.source == execute.setup_cell()
    knobs = ast.parse(third.source).body
    assert all(isinstance(line, ast.Assign) for line in knobs)
    assert third.source.startswith('profile = "mini"')
    for line in knobs:  # values, nothing computed
        ast.literal_eval(line.value)


@each
def test_only_the_knobs_name_a_profile(name):
    later = "\n".join(cell.source for cell in cells(name, "code")[2:])
    assert not re.search(r"""["'](mini|paper)["']""", later)


def exercises(name):
    """(question, attempt, check, solution) of each exercise."""
    notebook = NOTEBOOKS[name].cells
    asked = [i for i, cell in enumerate(notebook) if cell.source.startswith("### Exercise ")]
    return [notebook[i : i + 4] for i in asked]


@each
def test_a_page_of_readable_length(name):
    assert 10 <= len(NOTEBOOKS[name].cells) - 4 * len(exercises(name)) <= 25
    nbformat.validate(NOTEBOOKS[name])


@each
def test_every_cell_was_run_once_in_order_without_an_error(name):
    code = cells(name, "code")
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    kinds = [output.output_type for cell in code for output in cell.outputs]
    assert "error" not in kinds
    warned = [o.text for cell in code for o in cell.outputs if o.output_type == "stream" and o.name == "stderr"]
    assert warned == []


@each
def test_outputs_are_of_these_sources_these_weights_and_one_run(name):
    record = NOTEBOOKS[name].metadata.gcgkit
    again = "run python notebooks/execute.py notebooks/*.ipynb"
    assert record.sources == execute.sources_digest(NOTEBOOKS[name]), again
    assert record.weights == methods.weights_digest("mini"), again


def test_the_digest_notices_a_changed_line():
    notebook = next(iter(NOTEBOOKS.values()))
    changed = copy.deepcopy(notebook)
    changed.cells[2].source += "\n\n# a comment"
    assert execute.sources_digest(changed) == execute.sources_digest(notebook)
    changed.cells[2].source = "if a:\n    print(f'{a + b} {{c}}')  # d"
    once = execute.sources_digest(changed)
    changed.cells[2].source = "if a:\n\n    print( f'{a + b} {{c}}' )"  # tokens that Python 3.12 tells otherwise
    assert execute.sources_digest(changed) == once
    changed.cells[2].source = "if a: pass\nprint(f'{a + b} {{c}}')"
    assert execute.sources_digest(changed) != once
    changed.cells[2].source = notebook.cells[2].source.replace("mini", "other")
    assert execute.sources_digest(changed) != execute.sources_digest(notebook)


@each
def test_the_stated_minutes_were_enough(name):
    record = NOTEBOOKS[name].metadata.gcgkit
    # The clock also counts what else the machine does, and CPU seconds count each core; "about" is a fifth at most.
    assert min(record.seconds, record.cpu_seconds) <= min(72 * minutes(name), 180)


@each
def test_pictures_are_there_small_and_told_in_words(name):
    shown = [picture for cell in cells(name, "code") for picture in pictures(cell)]
    assert shown
    assert sum(len(data) for data, _ in shown) < LARGEST_PICTURES
    for data, alt in shown:
        width, _ = Image.open(io.BytesIO(data)).size
        assert width >= 380
        assert len(alt) > 15 and alt.endswith(".")


@each
def test_a_reader_without_a_kernel_sees_all_there_is(name):
    kinds = {kind for cell in cells(name, "code") for output in cell.outputs for kind in output.get("data", {})}
    assert "application/vnd.jupyter.widget-view+json" not in kinds
    assert "widgets" not in NOTEBOOKS[name].metadata


@pytest.mark.parametrize(("number", "widget"), INTERACTIVE.items())
def test_interactive_cells_are_kept_as_pictures(number, widget):
    (name,) = (name for name in NOTEBOOKS if name.startswith(number))
    found = [cell for cell in cells(name, "code") if f"widgets.{widget}(" in cell.source]
    assert found and all(len(list(pictures(cell))) == 1 for cell in found)


def test_the_diagram_is_whole_in_the_first_notebook_and_highlighted_at_the_start_of_those_about_the_model():
    calls = {}
    for name in NOTEBOOKS:
        for i, cell in enumerate(NOTEBOOKS[name].cells):
            if call := re.search(r"diagram\.draw_model\((\(.*?\))?", cell.source):
                calls[name[:2]] = i, ast.literal_eval(call[1] or "()")
    assert list(calls) == ["00", "02", "03", "04", "05", "06", "07"]
    assert calls.pop("00")[1] == ()
    assert all(i <= 4 and set(parts) <= set(diagram.PARTS) for i, parts in calls.values())
    assert len({parts for _, parts in calls.values()}) == len(calls)


def test_no_clip_is_in_more_than_five_notebooks():
    codes = {name: "\n".join(cell.source for cell in cells(name, "code")) for name in NOTEBOOKS}
    used = {clip: [name for name, code in codes.items() if f'"{clip}"' in code] for clip in clips.NAMES}
    assert all(len(names) <= 5 for names in used.values()), used


@each
def test_outputs_tell_no_path_of_a_machine(name):
    assert execute.machine_paths(NOTEBOOKS[name]) == []


@pytest.mark.parametrize("text", ["/home/ann/x.py:3", "see /tmp/abc", r"C:\Users\ann", "lib/site-packages/torch/x.py"])
def test_a_path_of_a_machine_is_noticed(text):
    output = nbformat.v4.new_output("stream", text=f"warning: {text}\n")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(outputs=[output])])
    assert execute.machine_paths(notebook)


def test_a_movie_in_the_page_is_no_path_and_is_searched_at_once():
    movie = f'<video src="data:video/mp4;base64,{"A" * 300_000}/tmp/abc="></video>'
    output = nbformat.v4.new_output("display_data", data={"text/html": movie})
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(outputs=[output])])
    started = time.monotonic()
    assert execute.machine_paths(notebook) == []
    assert time.monotonic() - started < 5  # a search through every letter takes minutes
    output.data["text/html"] += "/tmp/abc"
    assert execute.machine_paths(notebook)


@each
def test_notebooks_import_and_define_next_to_nothing(name):
    for cell in cells(name, "code"):
        building = name[:2] in BUILDING and "solution" in cell.metadata.get("tags", [])
        for node in ast.walk(ast.parse(cell.source)):
            assert building or not isinstance(node, (ast.ClassDef, ast.AsyncFunctionDef))
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < LONGEST_FUNCTION, f"{node.name} belongs into gcgkit"


@each
def test_no_install_but_in_the_set_up(name):
    for cell in cells(name, "code")[1:]:
        assert not re.search(r"\bpip\b|^\s*[!%]", cell.source, re.MULTILINE)


@each
def test_each_equation_stands_once_before_the_call_that_computes_it_and_a_picture(name):
    found = []
    for i, cell in enumerate(NOTEBOOKS[name].cells):
        if cell.cell_type == "markdown" and (tags := re.findall(r"\\tag\{(\d+)\}", cell.source)):
            assert len(tags) == 1, "one equation to a cell, so that its call follows it"
            following = NOTEBOOKS[name].cells[i + 1]
            assert following.cell_type == "code"
            upto = next(
                (j for j in range(i + 2, len(NOTEBOOKS[name].cells)) if "\\tag{" in NOTEBOOKS[name].cells[j].source),
                None,
            )
            assert CALLS[int(tags[0])] in following.source
            assert any(any(pictures(c)) for c in NOTEBOOKS[name].cells[i + 1 : upto] if c.cell_type == "code")
            found.append(int(tags[0]))
    assert tuple(found) == EQUATIONS.get(name[:2], ())


@each
def test_calls_say_which_equation_they_compute(name):
    code = "\n".join(cell.source for cell in cells(name, "code"))
    text = "\n".join(cell.source for cell in NOTEBOOKS[name].cells)
    for number in EQUATIONS.get(name[:2], ()):
        assert re.search(rf"Eq\. {number}\b", code) or re.search(rf"\(Eq\. {number}\)", text)


@each
def test_texts_state_no_figure_that_code_should_print(name):
    for cell in NOTEBOOKS[name].cells[1:]:
        if cell.cell_type == "markdown":
            assert stated(cell.source) == []


@pytest.mark.parametrize("text", ["it reaches 25.4 dB.", "in 8 steps", "12 % better", "takes 40 seconds"])
def test_a_stated_figure_is_noticed(text):
    assert stated(text) and not stated(f"In the paper: {text}")


@each
def test_two_to_four_exercises_each_with_an_attempt_a_check_and_a_solution(name):
    assert 2 <= len(exercises(name)) <= 4
    for number, (question, attempt, check, solution) in enumerate(exercises(name), 1):
        assert question.source.startswith(f"### Exercise {number}\n") and f"`answer_{number}`" in question.source
        assert attempt.source == f"# Exercise {number}: your attempt\nanswer_{number} = ..."
        assert check.source.endswith(f"\ncheck_{number}(answer_{number})")
        assert solution.source.startswith(f"# Solution {number}\n")
        assert re.search(rf"^ *answer_{number}\b[^=]* = ", solution.source, re.MULTILINE)
        for cell, tag in ((attempt, "attempt"), (check, "check"), (solution, "solution")):
            assert cell.metadata.tags == [tag]
        assert check.metadata.jupyter.source_hidden
        assert solution.metadata.jupyter.source_hidden and solution.metadata.jupyter.outputs_hidden
        assert solution.outputs, "a solution shows what it finds"
        assert question.source.count("<details>") == question.source.count("</details>") >= 1


@each
def test_each_check_waits_refuses_wrong_answers_and_accepts_the_solution(name):
    record = NOTEBOOKS[name].metadata.gcgkit.exercises
    assert list(record) == [str(number) for number, _ in enumerate(exercises(name), 1)]
    for verdicts, (_, attempt, check, _) in zip(record.values(), exercises(name), strict=True):
        assert check.outputs[-1].data["text/plain"].startswith("Nothing to check yet")
        assert len(verdicts.wrong) == len(execute.wrong_answers(attempt)) >= 1
        assert all(text.startswith("Not yet. ") for text in verdicts.wrong)
        assert verdicts.solution == "Right."


def check_of(condition):
    return f'from gcgkit.lessons import exercises\ncheck_1 = exercises.Check({{"Look.": lambda x: {condition}}})'


def toy_notebook(check, wrong="answer_1 = 1"):
    """A notebook with one exercise whose answer is 2."""
    new, metadata = nbformat.v4.new_code_cell, {"gcgkit": {"wrong": [wrong]}}
    cells = [
        nbformat.v4.new_markdown_cell("# A toy"),
        new(execute.setup_cell()),
        new('profile = "mini"'),
        new("answer_1 = ...", metadata=metadata),
        new(f"{check}\ncheck_1(answer_1)", metadata={"tags": ["check"]}),
        new("answer_1 = 2\nprint(answer_1)", metadata={"tags": ["solution"]}),
    ]
    return nbformat.v4.new_notebook(cells=cells)


class InProcess:
    """In the place of nbclient's client: runs cells in the test's own process, and so without torch's import."""

    def __init__(self, notebook, **options):
        self.nb, self.names = notebook, {}

    def setup_kernel(self):
        return nullcontext()

    def execute_cell(self, cell, index, **options):
        if cell.cell_type == "code" and not execute.is_setup(cell):
            *lines, last = ast.parse(cell.source).body
            shown = isinstance(last, ast.Expr)
            exec(compile(ast.Module(lines if shown else [*lines, last], []), "cell", "exec"), self.names)
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), self.names) if shown else None
            data = {"text/plain": repr(value)}
            cell.outputs = [nbformat.v4.new_output("execute_result", data, execution_count=1)] if shown else []


@pytest.mark.parametrize(
    ("condition", "error"),
    [("x == 2", None), ("x > 0", "does not refuse a wrong answer"), ("x == 3", "does not accept the solution")],
)
def test_checks_are_tried_on_wrong_answers_and_on_solutions(condition, error, tmp_path, monkeypatch):
    monkeypatch.setattr("nbclient.NotebookClient", InProcess)
    nbformat.write(toy_notebook(check_of(condition)), tmp_path / "toy.ipynb")
    before = (tmp_path / "toy.ipynb").read_bytes()
    if error is None:
        execute.run(tmp_path / "toy.ipynb")
        return
    with pytest.raises(RuntimeError, match=error):
        execute.run(tmp_path / "toy.ipynb")
    assert (tmp_path / "toy.ipynb").read_bytes() == before


@pytest.mark.slow
def test_a_run_in_a_kernel_records_what_checks_said(tmp_path):
    nbformat.write(toy_notebook(check_of("x == 2")), tmp_path / "toy.ipynb")
    execute.run(tmp_path / "toy.ipynb")
    done = nbformat.read(tmp_path / "toy.ipynb", as_version=4)
    assert done.metadata.gcgkit.exercises == {"1": {"wrong": ["Not yet. Look."], "solution": "Right."}}
    code = [cell for cell in done.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [1, 2, 3, 4, 5]
    assert code[3].outputs[0].data["text/plain"].startswith("Nothing to check yet")
    changed = copy.deepcopy(done)
    changed.cells[3].metadata.gcgkit.wrong = ["answer_1 = 7"]
    assert execute.sources_digest(changed) != execute.sources_digest(done)


@each
def test_the_last_cell_has_what_to_take_away_and_where_to_read_on(name):
    take_away, read_on = NOTEBOOKS[name].cells[-1].source.split("**Read on**")
    assert take_away.startswith("## Take away\n") and len(re.findall(r"^- ", take_away, re.MULTILINE)) == 3
    links = re.findall(r"^- .*\]\((https://[^)]+)\)", read_on, re.MULTILINE)
    assert len(links) in (2, 3)
    for link in links:
        assert re.fullmatch(r"https://arxiv\.org/abs/\d{4}\.\d{5}|https://doi\.org/10\.\S+", link)


@each
def test_links_lead_somewhere_and_the_last_cell_to_the_next_notebook(name):
    linked = {}
    for i, cell in enumerate(NOTEBOOKS[name].cells):
        texts = [cell.source] if cell.cell_type == "markdown" else []
        texts += [o.data["text/markdown"] for o in cell.get("outputs", []) if "text/markdown" in o.get("data", {})]
        linked[i] = [target for text in texts for target in re.findall(r"\]\(([^)#]+)\)", text)]
        assert all("://" in target or (FOLDER / target).is_file() for target in linked[i]), linked[i]
    names = list(NOTEBOOKS)
    following = names[(names.index(name) + 1) % len(names)]
    assert f"{following}.ipynb" in linked[len(NOTEBOOKS[name].cells) - 1]


@each
def test_the_file_is_as_the_runner_writes_it(name):
    text = (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    metadata = json.loads(text)["metadata"]
    assert set(metadata) == {"kernelspec", "language_info", "gcgkit"}
    assert metadata["kernelspec"]["name"] == "python3"
    assert len(text) < 2_000_000


def test_the_map_in_the_first_notebook_is_the_present_one():
    outputs = [output.get("data", {}) for cell in cells("00_start_here", "code") for output in cell.outputs]
    shown = [data["text/markdown"] for data in outputs if "text/markdown" in data]
    for text in (lesson.paths(), lesson.contents()):
        assert text._repr_markdown_() in shown, "run python notebooks/execute.py notebooks/00_start_here.ipynb"


def test_each_equation_of_the_paper_has_its_notebook():
    assert sorted(number for numbers in EQUATIONS.values() for number in numbers) == list(range(1, 12))
    assert {name[:2] for name in NOTEBOOKS} >= set(EQUATIONS)
