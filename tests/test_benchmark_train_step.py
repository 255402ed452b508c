"""The benchmark of the training step at toy size: it runs, and its numbers are those of the steps it timed."""

import json
import runpy
import statistics
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks/train_step.py"
TOY = ["--shapes", "toy", "--cpu", "--precision", "no", "--height", "32", "--width", "64"]


@pytest.fixture(scope="module")
def benchmark():
    return runpy.run_path(str(SCRIPT))


@pytest.mark.slow
def test_all_cases_run_and_are_compared(benchmark, tmp_path, capsys):
    shared = ["--batch", "4", "--micro", "2", "--steps", "2", "--warmup", "1", "--rounds", "2"]
    result = benchmark["main"]([*TOY, *shared, "--out", str(tmp_path / "out/result.json")])
    assert json.loads((tmp_path / "out/result.json").read_text()) == result
    assert list(result["cases"]) == ["example", "cached", "pixels"] and result["micro_batch"] == 2
    speed = {}
    for case, found in result["cases"].items():
        assert len(found["seconds"]) == 4  # two rounds of two
        speed[case] = 1 / statistics.median(found["seconds"])
        assert found["steps_per_second"] == pytest.approx(speed[case])
    assert result["cached_over_example"] == pytest.approx(speed["cached"] / speed["example"])
    assert result["cached_with_its_making_over_example"] < result["cached_over_example"]
    told = capsys.readouterr().out
    assert "toy shapes, paper, no, batch 4 in passes of 2, 64x32" in told and "cached over example" in told


def test_the_networks_are_stable_diffusions(benchmark):
    """Parameters of the real ones: SD 2.1's UNet and text encoder, its autoencoder, CLIP ViT-H's image tower."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

    shapes = benchmark["SHAPES"]["sd21"]
    with torch.device("meta"):
        counted = {
            "unet": UNet2DConditionModel(**shapes["unet"]),
            "vae": AutoencoderKL(**shapes["vae"]),
            "text": CLIPTextModel(CLIPTextConfig(**shapes["text"])),
            "vision": CLIPVisionModelWithProjection(CLIPVisionConfig(**shapes["vision"])),
        }
    counted = {name: sum(p.numel() for p in part.parameters()) for name, part in counted.items()}
    assert counted["unet"] == 865_910_724 and counted["vae"] == 83_653_863
    assert counted["text"] == 340_387_840 and counted["vision"] == 632_076_800


def test_the_examples_step_is_a_controlnets(benchmark):
    """One step moves the zero convolutions and nothing of the frozen UNet, and takes as many passes as asked for."""
    from accelerate import Accelerator

    from gcgkit.training import config as configs
    from gcgkit.training.recipes import PAPER

    config = configs.replace(
        PAPER, {"run.batch_size": 4, "run.micro_batch": 2, "data.height": 32, "data.width": 64, "run.precision": "no"}
    )
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    step = benchmark["example"](config, benchmark["SHAPES"]["toy"], accelerator, "no")
    (model,) = accelerator._models
    assert not model.controlnet_mid_block.weight.any()
    step()
    moved = model.controlnet_mid_block.weight.detach().abs().max().item()
    assert moved == pytest.approx(5e-6, rel=0.01)  # Adam's first step is as long as the learning rate
    accelerator.free_memory()


def test_a_cap_needs_a_gpu(benchmark):
    with pytest.raises(SystemExit, match="there is no GPU here"):
        benchmark["main"]([*TOY, "--cap-gb", "16"])
