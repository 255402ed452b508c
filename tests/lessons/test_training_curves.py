"""The stored curves: how they are made, and that those in the package are of the run that the model card tells of."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gcgkit.lessons import training_curves

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "data_scripts"))
import training_curves as script  # noqa: E402

CARD = Path(training_curves.__file__).parents[1] / "weights/mini/README.md"


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=150), st.integers(1, 60))
def test_summary_keeps_means_of_equal_groups(values, points):
    lines = [{"step": 20 * (i + 1), "seconds": 1.0 * i, "loss": value} for i, value in enumerate(values)]
    found = script.summarize(lines, points)
    size = -(-len(values) // points)
    assert list(found) == ["step", "loss"] and len(found["step"]) <= points
    assert found["step"][-1] == 20 * len(values)
    wanted = [np.mean(values[i : i + size]) for i in range(0, len(values), size)]
    np.testing.assert_allclose(found["loss"], wanted, rtol=2e-3, atol=1e-9)


def test_entries_that_some_lines_lack_are_averaged_over_the_others():
    lines = [
        {"step": 1, "loss": 1.0, "a": 2.0},
        {"step": 2, "loss": 3.0},
        {"step": 3, "loss": 5.0},
        {"step": 4, "loss": 7.0},
    ]
    found = script.summarize(lines, points=2)
    assert found == {"step": [2, 4], "loss": [2.0, 6.0], "a": [2.0, None]}
    stage = {"points": found}
    assert training_curves.curve(stage) == ([2, 4], [2.0, 6.0])
    assert training_curves.curve(stage, "a") == ([2], [2.0])
    assert training_curves.curve({"points": {"step": [2], "hint_grid": [1.0], "hint_single": [3.0]}}) == ([2], [3.0])
    with pytest.raises(ValueError, match="no entry 'b'"):
        training_curves.curve(stage, "b")
    with pytest.raises(ValueError, match="log is empty"):
        script.summarize([])


def test_the_clock_of_a_resumed_run_starts_anew():
    assert script.minutes([{"seconds": s} for s in (30.0, 60.0, 90.0)]) == 1.5
    assert script.minutes([{"seconds": s} for s in (60.0, 120.0, 30.0, 60.0)]) == 3.0


def test_a_runs_folder_becomes_the_file(tmp_path, capsys):
    for number, (folder, _, _) in enumerate(script.STAGES.values()):
        (tmp_path / "run" / folder).mkdir(parents=True)
        lines = [{"step": 20 * (i + 1), "seconds": 6.0 * (i + 1), "loss": number + i} for i in range(2)]
        (tmp_path / "run" / folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    script.main([str(tmp_path / "run"), "--out", str(tmp_path / "made.json")])
    made = training_curves.read(tmp_path / "made.json")
    assert list(made) == list(script.STAGES)
    with pytest.raises(FileNotFoundError):
        script.main([str(tmp_path / "run"), "--variants", "--out", str(tmp_path / "variants.json")])
    assert made["gate"]["steps"] == 40 and made["gate"]["minutes"] == 0.2
    assert made["gate"]["points"] == {"step": [20, 40], "loss": [2.0, 3.0]}  # the third of the stages


def test_logs_of_one_stage_follow_each_other(tmp_path):
    """By hand: steps count on where a log starts anew, and there are minutes only where each line has a clock."""
    logs = {
        "pyramid": [{"step": 5, "seconds": 30.0, "loss": 2.0, "gray": 3.0}, {"step": 9, "seconds": 90.0, "loss": 1.0}],
        "joint": [{"step": 10, "seconds": 9.0, "loss": 4.0, "chroma_mask": 0.5, "guess": 1.0}],
        "joint_from_1380": [{"step": 30, "loss": 3.0, "hint_grid": 0.25, "object": 0.1}],
        "gpu": [{"step": 40, "loss": 1.0, "learning_rate": 0.1}],
        "hint_1": [{"step": 20, "loss": 3.0}, {"step": 40, "loss": 2.0}],
        "hint_2": [{"step": 20, "loss": 1.5}],
        "hint_3": [{"step": 30, "loss": 1.0}],
    }
    (tmp_path / "logs.json").write_text(json.dumps(logs))
    earlier = {"about": "old", "stages": {"hint": {"points": {"step": [1], "loss": [0.5]}}, "gpu": {"points": {}}}}
    (tmp_path / "made.json").write_text(json.dumps(earlier))
    script.main(["--together", str(tmp_path / "logs.json"), "--out", str(tmp_path / "made.json")])
    made = training_curves.read(tmp_path / "made.json")
    assert list(made) == ["hint", "pyramid", "joint", "gpu", "fidelity"]
    assert made["hint"] == earlier["stages"]["hint"]  # of an earlier run
    assert {name: (s["steps"], s["minutes"]) for name, s in made.items() if "steps" in s} == {
        "pyramid": (9, 1.5), "joint": (30, None), "gpu": (40, None), "fidelity": (90, None)
    }  # fmt: skip
    assert made["pyramid"]["points"] == {"step": [5, 9], "loss": [2.0, 1.0], "gray": [3.0, None]}
    assert made["joint"]["points"] == {
        "step": [10, 30], "loss": [4.0, 3.0], "chroma_mask": [0.5, None], "hint_grid": [None, 0.25]
    }  # fmt: skip
    assert made["fidelity"]["points"] == {"step": [20, 40, 60, 90], "loss": [3.0, 2.0, 1.5, 1.0]}
    with pytest.raises(SystemExit):
        script.main(["--out", str(tmp_path / "made.json")])


def test_the_packages_curves_are_those_of_the_stored_logs():
    """Each stage's weighted mean loss, and its range of steps, from the full logs."""
    logs = json.loads((ROOT / "results/card/training.json").read_text(encoding="utf-8"))
    stages = training_curves.read()
    for name, keys in {"pyramid": ["pyramid"], "gpu": ["gpu"], "fidelity": ["hint_1", "hint_2", "hint_3"]}.items():
        wanted = [line["loss"] for key in keys for line in logs[key]]  # not more lines than points
        np.testing.assert_allclose(stages[name]["points"]["loss"], wanted, rtol=1e-3)
    joint = stages["joint"]["points"]
    lines = logs["joint"] + logs["joint_from_1380"]
    size = -(-len(lines) // script.POINTS)
    np.testing.assert_allclose(joint["chroma_mask"][5], np.mean([x["chroma_mask"] for x in lines[5 * size : 6 * size]]),
                               rtol=1e-3)  # fmt: skip
    assert joint["step"][-1] == 6300


def test_the_packages_curves_are_of_the_run_that_the_card_tells_of():
    stages, card = training_curves.read(), " ".join(CARD.read_text(encoding="utf-8").replace(",", "").split())
    assert list(stages) == [*script.STAGES, *script.TOGETHER]
    told = re.search(
        r"colour attention alone learned (\d+) steps.*? the copy on pairs (\d+) steps .*? and (\d+) of .*?"
        r"learned (\d+) more steps of 8 fresh scenes and a new gate (\d+) steps",
        card,
    )
    named = [stages[name]["steps"] for name in ("hint", "guidance", "fullsize", "matching", "gate")]
    assert named == [int(x) for x in told.groups()]
    assert stages["text2image"]["steps"] == int(re.search(r"text to image (\d+) steps", card)[1])
    for name, stage in stages.items():
        points = stage["points"]
        assert len({len(values) for values in points.values()}) == 1 and len(points["step"]) <= script.POINTS
        assert points["step"] == sorted(set(points["step"])) and points["step"][-1] == stage["steps"]
        assert all(np.isfinite(v) and v >= 0 for values in points.values() for v in values if v is not None)
        if name in ("hint", "text2image", "guidance"):  # these started from scratch
            loss = points["loss"]
            assert np.mean(loss[-5:]) < 0.7 * loss[0]
    assert training_curves.FILE.stat().st_size < 40_000


def test_the_variants_curves_are_of_equal_runs():
    """As many steps and views for each mode, on batches drawn in the same order: what is left to differ is the mode."""
    stages = training_curves.read(training_curves.VARIANTS_FILE)
    assert list(stages) == list(training_curves.VARIANTS)
    assert {stage["steps"] for stage in stages.values()} == {1600}
    assert len({stage["batch"] for stage in stages.values()}) == 1
    # the kinds of reference are drawn by step: the same points have values
    kinds = [name for name in stages["mini-concat"]["points"] if name.startswith("chroma_")]
    assert len(kinds) == 5
    for kind in kinds:
        assert len({tuple(v is None for v in stage["points"][kind]) for stage in stages.values()}) == 1
    # attention finds the colours of another view, concatenation only where it lies in the same place
    late = {name: np.nanmean(np.array(s["points"]["chroma_grid"][-10:], float)) for name, s in stages.items()}
    assert late["mini-attention"] < 0.2 * late["mini-concat"]
    for name in training_curves.VARIANTS:
        card = (CARD.parents[1] / name / "README.md").read_text(encoding="utf-8")
        assert "1,600 steps" in card or "as many steps" in card
