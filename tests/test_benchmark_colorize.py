"""The colouring benchmark runs on small shapes, and its cases do what they are compared for."""

import json
import runpy
from pathlib import Path

import pytest
import tiny

BENCHMARK = Path(__file__).resolve().parents[1] / "benchmarks" / "colorize.py"


@pytest.fixture(scope="module")
def main():
    return runpy.run_path(str(BENCHMARK))["main"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("tiny")
    tiny.pipeline(folder, strength=0.5).save_pretrained(folder / "pipe")
    return str(folder / "pipe")


def figures(main, path: Path, *options: str) -> dict:
    main([*options, "--repeats", "1", "--steps", "2", "--frames", "3", "--json", str(path)])
    return json.loads(path.read_text(encoding="utf-8"))["figures"]


def test_shortcuts_are_compared_on_one_result(main, weights, tmp_path, capsys):
    found = figures(main, tmp_path / "x.json", "shortcuts", "--weights", weights)
    assert list(found)[0] == "all on" and list(found)[-1] == "all off" and len(found) == 7
    assert max(case["gray_levels"] for case in found.values()) <= 1
    assert found["all on"]["gain"] == 1
    assert capsys.readouterr().out.count("frames/s") == 7


def test_stages_add_up(main, weights, tmp_path):
    found = figures(main, tmp_path / "x.json", "stages", "--weights", weights)
    assert sum(found["parts"].values()) == pytest.approx(found["seconds"])
    assert {"UNet", "UNet copy", "guidance", "the rest"} < set(found["parts"]) and min(found["parts"].values()) > 0


def test_length_goes_up_to_four_times(main, weights, tmp_path):
    found = figures(main, tmp_path / "x.json", "length", "--weights", weights)
    assert list(found) == ["3", "6", "12"] and found["3"][0] < found["12"][0]


def test_controlnet_runs_both_at_both_batches(main, tmp_path, capsys):
    options = ["--shapes", "toy", "--height", "64", "--width", "64", "--batch", "2", "--precision", "no"]
    found = figures(main, tmp_path / "x.json", "controlnet", *options)
    assert list(found["ratio"]) == ["1", "2"] and min(found["ratio"].values()) > 0
    assert "ours over theirs" in capsys.readouterr().out
