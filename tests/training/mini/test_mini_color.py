"""Training copy and UNet on fresh scenes: noise, references and grids against diffusers and by hand, and a run."""

import copy
import importlib
from types import SimpleNamespace

import bundled
import cv2
import numpy as np
import pytest
import reimport
import torch
from diffusers import DDIMScheduler
from safetensors.torch import save_file

from gcgkit import GCGPipeline
from gcgkit.control import GuidedControlNet
from gcgkit.guidance import GuidanceOutput
from gcgkit.semantics import CHANNELS, FeaturePyramid, SemanticEncoder
from gcgkit.training.mini import color, joint
from gcgkit.training.mini.joint import Trainer


def picture(height: int, width: int, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """The bundled parts, with a semantic encoder and a pyramid that have learned nothing."""
    folder = tmp_path_factory.mktemp("start")
    pipe = bundled.blind_pipeline()
    pipe.register_to_config(noise_scale=0.25)
    pipe.save_pretrained(folder)
    torch.manual_seed(0)
    SemanticEncoder(side=64).save_pretrained(folder / "semantic_encoder")
    save_file(FeaturePyramid(CHANNELS, joint.SEMANTIC_WIDTH).state_dict(), folder / "pyramid.safetensors")
    return folder


@pytest.fixture(scope="module")
def pack():
    photos = [
        {"image": picture(96, 144, i), "mask": np.full((12, 18), 255, np.uint8), "confidence": 1.0,
         "things": ["dog"], "split": "train"}
        for i in range(4)
    ]  # fmt: skip
    return {"photos": photos, "clips": []}


@pytest.fixture(scope="module")
def trainer(start, pack, tmp_path_factory):
    trainer = Trainer(pack, start, batch=6)
    trainer.sizes = (((64, 96), 1.0),)
    return trainer


def test_noise_is_diffusers_and_the_last_timestep_is_noise_alone(trainer):
    torch.manual_seed(3)
    target = torch.randn(64, 4, 4, 4)
    noisy, timestep, weight = trainer.noised(target, last=0.5)
    share = trainer.scheduler.alphas_cumprod[timestep].view(-1, 1, 1, 1)
    noise = (noisy - share.sqrt() * target) / (1 - share).sqrt()
    torch.testing.assert_close(trainer.scheduler.add_noise(target, noise, timestep), noisy, atol=1e-4, rtol=1e-4)
    assert abs(float(noise.std()) - 1) < 0.05
    last = timestep == 999
    assert 0.3 < float(last.float().mean()) < 0.75 and float(share[last].max()) < 1e-6
    assert float(weight.max()) <= 5 and torch.allclose(weight[last], torch.ones(1))


def test_views_of_a_group_share_their_timestep_and_half_the_groups_their_noise(trainer):
    torch.manual_seed(4)
    noisy, timestep, _ = trainer.noised(torch.zeros(120, 4, 4, 4), last=0.0, groups=4)
    steps = timestep.view(-1, 4)
    assert (steps == steps[:, :1]).all()
    groups = noisy.unflatten(0, (-1, 4))
    same = (groups == groups[:, :1]).flatten(1).all(1)
    assert 5 < int(same.sum()) < 25


@pytest.mark.parametrize("kind", ["single", "grid", "unrelated"])
def test_references_are_other_views_of_the_scene_or_of_another(trainer, kind):
    chosen = trainer.others(scenes=3, views=5, kind=kind)
    assert chosen.shape == (15, 4 if kind == "grid" else 1)
    own = torch.arange(15)
    if kind == "unrelated":
        assert (chosen // 5 != (own // 5)[:, None]).all()
    else:
        assert (chosen // 5 == (own // 5)[:, None]).all() and (chosen != own[:, None]).all()
    assert all(len(set(row.tolist())) == len(row) for row in chosen)


def test_training_needs_no_video_library():
    """A lent GPU machine may have PyTorch, diffusers and OpenCV, but neither PyAV nor a scene detector."""
    with reimport.fresh("av", "scenedetect", "lpips"):
        importlib.import_module("gcgkit.training.mini.color")


@pytest.mark.parametrize("kind", list(joint.KINDS))
def test_each_kind_of_reference_teaches_what_it_should(trainer, kind):
    modules = {"unet": trainer.unet, "copy": trainer.control.unet_copy}
    if kind in ("mask", "together"):  # with references the only scene may have been given other colours
        modules["pyramid"] = trainer.control.pyramid
    else:
        modules["guidance"] = trainer.control.guidance
    for module in (*modules.values(), trainer.text):
        module.zero_grad()
    parts = trainer.guided_loss(kind, np.random.default_rng(1))
    parts["loss"].backward()
    assert torch.isfinite(parts["loss"]) and f"chroma_{kind}" in parts
    for name, module in modules.items():
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters()), name
    assert all(p.grad is None for p in trainer.semantic.parameters())


def test_views_apart_have_timesteps_of_their_own(trainer):
    _, timestep, _ = trainer.noised(torch.zeros(40, 4, 4, 4), last=0.0, groups=4, apart=True)
    assert len(set(timestep.tolist())) > 30


def test_an_own_step_is_that_of_the_ddim_scheduler(trainer, monkeypatch):
    clean = torch.randn(2, 4, 3, 3)
    monkeypatch.setattr(trainer, "predict", lambda *given: clean)
    z_t, start = torch.randn(2, 4, 3, 3), torch.tensor([700, 700])
    found, timestep, weight = trainer.own_step(z_t, start, (), np.random.default_rng(0))
    scheduler = DDIMScheduler.from_config({**trainer.scheduler.config, "clip_sample": False})
    scheduler.num_inference_steps = 1000 // (700 - int(timestep[0]))  # so that its step is as long, within rounding
    end = 700 - 1000 // scheduler.num_inference_steps
    expected = scheduler.step(clean, 700, z_t).prev_sample
    shares = trainer.shares[[int(timestep[0]), end]]
    direct = [s.sqrt() * clean + (1 - s).sqrt() * (z_t - trainer.shares[700].sqrt() * clean) /
              (1 - trainer.shares[700]).sqrt() for s in shares]  # fmt: skip
    torch.testing.assert_close(direct[1], expected)
    torch.testing.assert_close(found, direct[0])
    assert float(weight[0]) == pytest.approx(1 / (1 - float(shares[0])))


def test_the_hint_is_judged_by_the_colours_and_under_the_mask_by_its_gate(trainer):
    target, color_map = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    gate = torch.full((2, 4, 3, 3), 0.5, requires_grad=True)
    hint = GuidanceOutput(hint=color_map * gate, color=color_map, gate=gate, features=color_map)
    found = {kind: float(trainer.hint_loss(hint, target, kind).detach()) for kind in ("mask", "unrelated", "single")}
    mixed = float((color_map * 0.5 - target).square().mean())
    shares = torch.tensor([0.3, 0.3, 1.0, 1.0]).view(1, 4, 1, 1)
    fetched = float(((color_map - target).square() * shares).mean())
    assert found == pytest.approx({"mask": 0.05, "unrelated": mixed, "single": mixed + fetched}, rel=1e-5)


def test_a_better_hint_counts_more(trainer):
    """Five over ten times the squared error of the chroma plus a hundredth, within its limits."""
    target = torch.zeros(3, 4, 2, 2)
    hint = target.clone()
    hint[:, :2] = 9.0  # luma does not count
    hint[1, 2:], hint[2, 2:] = 0.2, 3.0  # chroma errors of 0.04 and 9
    weights = trainer.trust(hint, target).flatten()
    torch.testing.assert_close(weights, torch.tensor([2.5 * 4.0, 2.5 * 0.05 / 0.05, 2.5 * 0.25]))


def test_the_loss_with_references_is_square_for_small_errors_and_straight_for_large_ones():
    errors = torch.tensor([1e-3, 1e-2, 3.0, 5.0], dtype=torch.float64)
    found = joint.huber(errors.square())
    torch.testing.assert_close(found[:2], errors[:2].square(), rtol=0.01, atol=0)
    assert float(found[3] - found[2]) == pytest.approx(2 * 0.1 * 2.0, rel=0.01)


def test_held_out_errors_are_those_of_one_step_and_leave_training_its_random_numbers(trainer, monkeypatch):
    draw = trainer.scenes.draw
    monkeypatch.setattr(trainer, "held", SimpleNamespace(draw=lambda count, *size, **more: draw(8, *size, **more)))
    monkeypatch.setattr(trainer, "predict", lambda z_t, *given: torch.ones_like(z_t))
    before = torch.get_rng_state()
    found = trainer.held_errors()
    assert torch.equal(before, torch.get_rng_state())
    assert found["held"] > 0 and found["held_gray"] > 0
    monkeypatch.setattr(trainer, "predict", lambda z_t, *given: torch.zeros_like(z_t))
    assert float(trainer.held_errors()["held"]) == pytest.approx(float(found["held_gray"]))


def test_new_inputs_are_read_as_nothing_at_first(trainer, start):
    old = GCGPipeline.from_pretrained(start).control
    new = joint.with_semantics(trainer.unet, old, start)
    gray, tokens = torch.randn(1, 4, 8, 8), torch.randn(1, 3, 96)
    reference = {"ref_gray": torch.randn(1, 4, 8, 8), "ref_color": torch.randn(1, 4, 8, 8)}
    with torch.no_grad():
        expected = old(gray, 9, tokens, gray, **reference, return_dict=False)
        found = new(gray, 9, tokens, gray, **reference, semantics=torch.randn(1, joint.SEMANTIC_WIDTH, 8, 8),
                    return_dict=False)  # fmt: skip
    for a, b in zip(expected[0], found[0], strict=True):
        torch.testing.assert_close(a, b)


def test_a_variant_starts_by_reading_the_references_colour_as_the_hint(trainer, start):
    new = joint.with_semantics(trainer.unet, trainer.control, start, "concat")
    gray, tokens, shown = torch.randn(1, 4, 8, 8), torch.randn(1, 3, 96), torch.randn(1, 4, 8, 8)
    semantics = torch.randn(1, joint.SEMANTIC_WIDTH, 8, 8)
    as_hint = GuidanceOutput(hint=shown, color=shown, gate=torch.ones_like(shown), features=shown)
    with torch.no_grad():
        expected = trainer.control(gray, 9, tokens, gray, hint=as_hint, semantics=semantics, return_dict=False)
        found = new(gray, 9, tokens, gray, torch.randn_like(gray), shown, semantics=semantics, return_dict=False)
    for a, b in zip(expected[0], found[0], strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.slow
def test_a_variant_learns_its_copy_alone(start, pack, tmp_path):
    trainer = Trainer(pack, start, batch=6)
    trainer.sizes = (((64, 96), 1.0),)
    before = {name: copy.deepcopy(part.state_dict()) for name, part in trainer.modules().items()}
    color.train(trainer, tmp_path, "attention", steps=2, learning_rate=1e-3, warmup=1)
    after = {name: part.state_dict() for name, part in trainer.modules().items()}
    for name in ("unet", "text", "pyramid"):
        assert all(torch.equal(weights, after[name][key]) for key, weights in before[name].items()), name
    assert any(not torch.equal(weights, after["copy"][key]) for key, weights in before["copy"].items())
    saved = GuidedControlNet.from_pretrained(tmp_path / "control")
    assert saved.guidance.config.mode == "attention" and saved.guidance.cdga is None
    assert torch.equal(saved.guidance.cga.to_q.weight, before["guidance"]["cga.to_q.weight"])
    color.export(start, tmp_path, tmp_path / "folder", "attention")
    variant = GCGPipeline.from_pretrained(tmp_path / "folder")
    for name, weights in saved.state_dict().items():
        torch.testing.assert_close(variant.control.state_dict()[name], weights.half().float())


@pytest.mark.slow
def test_a_run_is_exported_with_its_averaged_weights(trainer, start, tmp_path):
    color.train(trainer, tmp_path / "run", steps=2, learning_rate=1e-3, warmup=1)
    color.export(start, tmp_path / "run", tmp_path / "folder")
    pipe = GCGPipeline.from_pretrained(tmp_path / "folder")
    assert pipe.config.noise_scale == 0.25 and pipe.semantic_encoder.config.side == 64
    for name, module in (("unet", trainer.unet), ("text_encoder", trainer.text)):
        for ours, theirs in zip(getattr(pipe, name).parameters(), module.parameters(), strict=True):
            torch.testing.assert_close(ours.half(), theirs.half().contiguous())
    frames = np.random.default_rng(0).integers(0, 256, (1, 64, 96), dtype=np.uint8)
    result = pipe(frames, num_inference_steps=2, working_size=(64, 96), generator=torch.Generator().manual_seed(0))
    assert result.frames.shape == (1, 64, 96, 3)
