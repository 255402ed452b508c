"""The recipe of the mini weights, every stage of it, on generated footage and for two steps each."""

import inspect
import json

import cv2
import numpy as np
import pytest
import torch

from gcgkit import profiles
from gcgkit.data import augment
from gcgkit.guidance import GatedColorGuidance
from gcgkit.pipeline import GCGPipeline
from gcgkit.settings import OWN
from gcgkit.training import log as training_log
from gcgkit.training.mini import recipe as mini

SHORT = {"steps": 2, "batch": 4}
SETTINGS = ("height", "width", *OWN)
# The options that came after the bundled folder have the pipeline's defaults, in it and in what the recipe writes.
DEFAULTS = {name: value.default for name, value in inspect.signature(GCGPipeline.__init__).parameters.items()}
INDEX = json.loads((profiles.WEIGHTS / "mini/model_index.json").read_text())
BUNDLED = {name: INDEX.get(name, DEFAULTS[name]) for name in SETTINGS}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two photographs and one clip of coloured blobs that move."""
    root = tmp_path_factory.mktemp("data")
    blobs = np.random.default_rng(0).integers(0, 256, (3, 6, 10, 3), dtype=np.uint8)
    pictures = [cv2.resize(b, (460, 276), interpolation=cv2.INTER_CUBIC) for b in blobs]
    for name in ("n01_red_car", "0002"):
        path = root / "photos" / f"{name}.jpg"
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), pictures.pop())
    frames = root / "DAVIS/JPEGImages/480p/goat"
    frames.mkdir(parents=True)
    for i in range(8):
        cv2.imwrite(str(frames / f"{i:05d}.jpg"), np.roll(pictures[0], 4 * i, axis=1)[:256, :448])
    return root


@pytest.fixture(scope="module")
def out(data, tmp_path_factory):
    """The recipe, run up to the cache of latents."""
    folder = tmp_path_factory.mktemp("mini")
    mini.train_vae(data, folder, steps=2, batch=2, width=8)
    mini.train_encoders(data, folder, steps=2, batch=4)
    mini.cache_scenes(data, folder, per_photo=2, per_clip=6)
    return folder


def test_cached_scenes_are_whole(out):
    small, full = (augment.Scenes.load(out / f"scenes-{name}.pt") for name in ("small", "full"))
    assert small.latents.shape[1:] == (6, 4, 16, 28) and full.latents.shape[1:] == (6, 4, 32, 56)
    for scenes in (small, full):
        assert len(scenes) == len(scenes.captions) == len(scenes.natural) and torch.isfinite(scenes.latents).all()
        assert (scenes.gray[:, :, 2:] == 0).all() and torch.equal(scenes.gray[:, :, :2], scenes.latents[:, :, :2])
        # no two views of a scene are one picture, or matching them would be copying
        views = scenes.thumbnails.flatten(2).float()
        assert all((views[:, i] - views[:, j]).abs().mean(1).min() > 0 for i in range(6) for j in range(i))


@pytest.mark.slow
def test_every_stage_runs_and_the_folder_loads(data, out):
    mini.train_hint(out, **SHORT)
    mini.train_matching(data, out, steps=2, batch=1, workers=1)
    mini.train_gate(out, **SHORT)
    hint, matching, gate = (
        GatedColorGuidance.from_pretrained(out / name / "guidance") for name in ("hint", "matching", "gate")
    )
    assert not torch.equal(hint.cga.to_q.weight, matching.cga.to_q.weight)
    assert torch.equal(matching.cga.to_q.weight, gate.cga.to_q.weight)  # the gate learns alone
    assert not torch.equal(matching.cdga.to_v.weight, gate.cdga.to_v.weight)
    mini.train_text2image(out, **SHORT)
    mini.train_guidance(out, **SHORT)
    mini.train_fullsize(out, **SHORT)
    mini.export(out)
    pipe = GCGPipeline.from_pretrained(out / "pipeline")
    assert pipe.scheduler.config.prediction_type == "sample"
    assert torch.allclose(pipe.control.guidance.cdga.to_v.weight, gate.cdga.to_v.weight, atol=1e-3)  # half precision
    assert {name: pipe.config[name] for name in SETTINGS} == BUNDLED
    names = {key for line in training_log.read_log(out / "guidance") for key in line}
    assert {"loss", "step", "seconds"} < names


def test_weights_turn_the_error_of_latents_into_that_of_the_velocity():
    """With v = sqrt(a) noise - sqrt(1 - a) z0, a velocity's squared error is the latents' over 1 - a."""
    scheduler, generator = mini.make_scheduler(), torch.Generator().manual_seed(0)
    target, guess, noise = (torch.randn(1, 4, 8, 8, dtype=torch.float64, generator=generator) for _ in range(3))
    for timestep in (400, 700, 999):
        a = scheduler.alphas_cumprod[timestep].double()
        z_t = a.sqrt() * target + (1 - a).sqrt() * noise
        velocity = lambda z0: (a.sqrt() * z_t - z0) / (1 - a).sqrt()  # noqa: B023, E731
        true = scheduler.get_velocity(target, noise, torch.tensor([timestep]))
        assert torch.allclose(velocity(target), true, atol=1e-5)
        by_hand = (velocity(guess) - true).square().mean()
        ours = mini.squared_error(guess.float(), target.float(), mini.error_weight(a)[None].float())
        assert abs(ours / by_hand - 1) < 1e-3
