"""What a run holds on a card: the figures that the recipe states, and the networks' real sizes."""

import re
import runpy
from pathlib import Path

import pytest
import torch

from gcgkit.lessons import memory_budget
from gcgkit.training import config as configs
from gcgkit.training import recipes

ROOT = Path(__file__).resolve().parents[2]
STATED = re.findall(
    r"^ {4}(\S.*?)\s{3,}(\d+\.\d\d)(?:\s+\((?:8-bit Adam: )?(\d+\.\d\d)\))?", recipes.__doc__, re.MULTILINE
)


@pytest.mark.parametrize("optimizer", ["adam", "adam8bit"])
def test_the_small_card_holds_what_the_recipe_states(optimizer):
    config = configs.replace(recipes.load("paper-16gb"), {"optimizer.name": optimizer})
    resident = memory_budget.resident_memory(config)
    stated = [float(eight or plain if optimizer == "adam8bit" else plain) for _, plain, eight in STATED]
    assert len(stated) == 8  # seven parts and their sum
    for found, wanted in zip(resident.values(), stated[:-1], strict=True):
        assert found == pytest.approx(wanted, abs=0.011)
    assert sum(resident.values()) == pytest.approx(stated[-1], abs=0.006)


def test_what_is_not_there_is_not_counted():
    config = recipes.load("paper-16gb")
    plain = memory_budget.resident_memory(configs.replace(config, {"run.precision": "no", "optimizer.ema_decay": 0.0}))
    assert not {"averaged weights", "half-precision copies in a pass"} & set(plain)
    assert plain["frozen UNet"] == pytest.approx(4 * 0.866)
    joint = memory_budget.resident_memory(configs.replace(config, {"model.joint": True}))
    assert "frozen UNet" not in joint
    assert joint["their gradients"] == pytest.approx(4 * (0.866 + 0.363))
    with pytest.raises(ValueError, match="depends on the card"):
        memory_budget.resident_memory(configs.replace(config, {"run.precision": "auto"}))


@pytest.mark.slow
def test_the_numbers_of_parameters_are_those_of_the_networks():
    shapes = runpy.run_path(str(ROOT / "benchmarks/train_step.py"))["SHAPES"]["sd21"]
    from diffusers import UNet2DConditionModel

    from gcgkit.control import GuidedControlNet

    model = recipes.load("paper").model
    with torch.device("meta"):
        unet = UNet2DConditionModel(**shapes["unet"])
        copy = GuidedControlNet.from_unet(
            unet, image_tokens_dim=1024, condition_width=model.condition_width, hidden_dim=model.hidden_dim
        )
    count = lambda network: sum(weights.numel() for weights in network.parameters())  # noqa: E731
    assert count(unet) == pytest.approx(memory_budget.UNET, rel=0.001)
    assert count(copy) == pytest.approx(memory_budget.COPY, rel=0.01)
