"""The colouring benchmark runs on small shapes, and its cases do what they are compared for."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import reimport
import tiny
import torch
from torch.utils.flop_counter import FlopCounterMode

from gcgkit.lessons import random_networks
from gcgkit.utils import compilation

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import colorize  # noqa: E402
import plot  # noqa: E402
import solvers  # noqa: E402
from peers import ControlNetPeer, compile_both  # noqa: E402

TOY = ["--shapes", "toy", "--height", "64", "--width", "64", "--precision", "no"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("tiny")
    tiny.pipeline(folder, strength=0.5).save_pretrained(folder / "pipe")
    return str(folder / "pipe")


def figures(path: Path, *options: str) -> dict:
    colorize.main([*options, "--repeats", "1", "--steps", "2", "--frames", "3", "--json", str(path)])
    return json.loads(path.read_text(encoding="utf-8"))["figures"][options[0]]


def test_shortcuts_are_compared_on_one_result(weights, tmp_path, capsys):
    found = figures(tmp_path / "x.json", "shortcuts", "--weights", weights)
    assert list(found)[0] == "all on" and list(found)[-1] == "all off" and len(found) == 8
    assert max(case["gray_levels"] for case in found.values()) <= 1
    assert found["all on"]["gain"] == 1
    assert capsys.readouterr().out.count("frames/s") == 8


def test_stages_add_up(weights, tmp_path):
    found = figures(tmp_path / "x.json", "stages", "--weights", weights)
    assert sum(found["parts"].values()) == pytest.approx(found["seconds"])
    assert {"UNet", "UNet copy", "guidance", "the rest"} < set(found["parts"]) and min(found["parts"].values()) > 0
    networks = ("UNet", "guidance", "autoencoder")
    besides = sum(seconds for name, seconds in found["parts"].items() if not name.startswith(networks))
    assert found["besides"] == pytest.approx(besides / found["seconds"])


def test_a_short_clip_goes_to_and_fro():
    assert colorize.back_and_forth(4, 9).tolist() == [0, 1, 2, 3, 2, 1, 0, 1, 2]
    assert colorize.back_and_forth(4, 2).tolist() == [0, 1] and colorize.back_and_forth(1, 3).tolist() == [0, 0, 0]


def test_length_goes_up_to_four_times_and_all_at_once_only_while_frames_are_few(tmp_path):
    found = figures(tmp_path / "x.json", "length", *TOY, "--at-once", "6")
    assert list(found["ours"]) == ["3", "6", "12"] and list(found["all frames at once"]) == ["3", "6"]
    assert found["ours"]["3"][0] < found["ours"]["12"][0]


def test_attention_written_plainly_gives_the_same_keyframes(tmp_path, monkeypatch):
    """In double precision: random weights and a guidance of 9 make gray levels of what float32 rounds."""
    monkeypatch.setitem(colorize.OF_PRECISION, "no", torch.float64)
    found = figures(tmp_path / "x.json", "keyframes", *TOY, "--keyframes", "1", "3")
    assert list(found["ours"]) == list(found["written plainly"]) == ["1", "3"]
    assert all(figures["gray_levels"] <= 1 and figures["gain"] > 0 for figures in found["ours"].values())


def test_controlnet_runs_both_at_both_batches(tmp_path, capsys):
    found = figures(tmp_path / "x.json", "controlnet", *TOY, "--batches", "1", "2", "--fewer-steps", "2", "1")
    assert {"diffusers, batch 1", "diffusers, batch 2", "ours, side by side 1", "ours, side by side 2"} < set(
        found["seconds"]
    )
    assert capsys.readouterr().out.count("frames per second, ") == len(found["gains"]) == 5


def test_operations_are_those_of_both_pipelines(tmp_path):
    """Counted at the networks while diffusers' pipeline and ours colour one frame in two steps."""
    found = figures(tmp_path / "x.json", "operations", *TOY)
    pipe = random_networks.random_pipeline("toy", torch.float32, 64, 64, "cpu")
    peer, clip = ControlNetPeer(pipe, "toy"), np.zeros((1, 64, 64, 3), np.uint8)

    def counted(steps: int) -> int:
        with FlopCounterMode(display=False) as counter:
            peer.color(clip, "red", steps, batch=1)
        return counter.get_total_flops()

    assert found["a step"][1] == found["a step without keys"][1] == counted(3) - counted(2)
    assert found["a step"][0] < found["a step without keys"][0]


@pytest.mark.parametrize("backend", ["inductor", "eager"])
def test_both_pipelines_are_compiled_alike(monkeypatch, backend):
    asked = {}
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **options: asked.update({module: options}))
    pipe = random_networks.random_pipeline("toy", torch.float32, 64, 64, "cpu")
    peer = ControlNetPeer(pipe, "toy")
    compile_both(pipe, peer, backend)
    assert set(asked) == {*compilation.networks(pipe).values(), peer.pipe.controlnet}
    assert list(asked.values()) == [{"dynamic": False, "backend": backend}] * len(asked)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU replays")
@pytest.mark.parametrize("part", ["keyframes", "compile", "controlnet", "floor"])
def test_replaying_is_refused_without_a_gpu(tmp_path, part):
    with pytest.raises(ValueError, match="needs a pipeline on a GPU"):
        figures(tmp_path / "x.json", part, *TOY, "--replay")


def test_gains_are_ratios_of_the_medians():
    middle = {
        "diffusers, batch 1": 12.0, "ours, side by side 1": 8.0, "diffusers, batch 4": 6.0, "ours, side by side 4": 4.0,
        "ours, dpm++, 16 steps": 2.0, "ours, dpm++, 8 steps": 1.5,
    }  # fmt: skip
    assert list(colorize.speedups(middle, [1, 4]).values()) == [1.5, 1.5, 3.0, 4.0, 2.0]


def test_floor_is_the_sum_of_its_stages_over_the_peak(tmp_path):
    found = figures(tmp_path / "x.json", "floor", *TOY, "--batches", "2")
    floor = sum(found["operations"].values()) / max(found["peaks"].values())
    assert found["share_of_peak"] == pytest.approx(floor / found["seconds_per_frame"])


def test_the_plot_is_written_whole(tmp_path):
    found = {
        "length": {"ours": {"4": [1.0, 1.2], "8": [2.0, 2.1]}, "all frames at once": {"4": [2.0], "8": [7.0]}},
        "keyframes": {"ours": {"1": {"seconds": [1.0]}}, "written plainly": {"1": {"seconds": [1.5]}}},
    }
    plot.draw(found, "a machine", tmp_path / "new" / "speed.png")
    assert (tmp_path / "new/speed.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["speed.png"]


def test_solvers_are_told_in_the_mean_and_go_on(weights, tmp_path, capsys):
    options = ["--weights", weights, "--frames", "3", "--steps", "1", "2", "--keyframes", "1"]
    options += ["--json", str(tmp_path / "x.json")]
    solvers.main(options)
    held = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))["clips"]
    (cases,) = held.values()
    assert set(cases) == {f"{solver} {steps}" for solver in solvers.SOLVERS for steps in (1, 2)}
    assert cases["ddim 2"]["apart"] == 100  # itself
    capsys.readouterr()
    solvers.main(options)  # nothing is coloured again
    told = capsys.readouterr().out
    assert " steps {" not in told and told.startswith("PSNR in dB, mean of")
    other = {case: {"psnr": figures["psnr"] + 2} for case, figures in cases.items()}
    row = solvers.table({"a": cases, "b": other}).splitlines()[-1].split()
    assert row[0] == "2" and float(row[1]) == pytest.approx(cases["ddim 2"]["psnr"] + 1, abs=0.006)


def test_random_networks_are_measured_without_a_video_library(capsys):
    """A rented GPU's image may have PyTorch and diffusers, but no PyAV."""
    with reimport.fresh("av", also=("colorize", "peers", "plot")):
        importlib.import_module("colorize").main(["operations", *TOY])
    assert "diffusers" in capsys.readouterr().out
