"""What a training step computes, against equations written out: losses, weights, optimizer, averages, what moves."""

import copy
import dataclasses
import functools
import json
import math

import numpy as np
import pytest
import tiny
import torch
from accelerate import Accelerator
from diffusers import DDIMScheduler
from prepared import run_config as config

from gcgkit import encoders
from gcgkit.data.dataset import FrameDataset, References, collate
from gcgkit.pipeline import GCGPipeline
from gcgkit.settings import Settings
from gcgkit.training import config as configs
from gcgkit.training import loss as training_loss
from gcgkit.training import run as training_run
from gcgkit.training.loss import Denoiser, Objective, denoising_target, draw_noise, snr_weights
from gcgkit.training.recipes import TINY
from gcgkit.training.step import Learner, make_optimizer

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="bit for bit is promised on the CPU only")


def make_objective(place, **changes):
    settings = config(place, **changes)
    return Objective(settings, training_run.build_pipeline(settings), "cpu")


def make_learner(objective, steps=10):
    run = objective.config.run
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=run.batch_size // run.micro_batch)
    return Learner(objective.network, objective.config.optimizer, accelerator, steps)


def batch_of(place, objective, positions):
    dataset = FrameDataset(place / "data", objective.config.data, objective.config.run.seed)
    return collate([dataset[i] for i in positions])


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_targets_and_weights_follow_the_prediction_type(kind):
    """Against the definitions in plain NumPy: v = a eps - s x0; min-SNR from Hang et al., equation by equation."""
    scheduler = DDIMScheduler(prediction_type=kind)
    rng = np.random.default_rng(0)
    clean, noise = rng.normal(size=(2, 3, 4, 2, 2)).astype(np.float32)
    steps = np.array([3, 500, 990])
    betas = np.linspace(0.0001, 0.02, 1000)
    alphas = np.cumprod(1 - betas)[steps]
    a, s = np.sqrt(alphas)[:, None, None, None], np.sqrt(1 - alphas)[:, None, None, None]
    wanted = {"epsilon": noise, "v_prediction": a * noise - s * clean, "sample": clean}[kind]
    got = denoising_target(scheduler, torch.tensor(clean), torch.tensor(noise), torch.tensor(steps))
    np.testing.assert_allclose(got.numpy(), wanted, atol=1e-5)
    snr = alphas / (1 - alphas)
    capped = np.minimum(snr, 5)
    weights = {"epsilon": capped / snr, "v_prediction": capped / (snr + 1), "sample": capped}[kind]
    np.testing.assert_allclose(snr_weights(scheduler, torch.tensor(steps), 5.0).numpy(), weights, rtol=1e-4)


def test_pure_noise_has_a_finite_weight():
    for kind in ("epsilon", "v_prediction", "sample"):
        scheduler = DDIMScheduler(prediction_type=kind, rescale_betas_zero_snr=True)
        assert torch.isfinite(snr_weights(scheduler, torch.tensor([999]), 5.0)).all()


def test_an_unknown_prediction_type_is_refused():
    scheduler = DDIMScheduler()
    scheduler.register_to_config(prediction_type="flow")
    x = torch.zeros(1, 4, 2, 2)
    with pytest.raises(ValueError, match="prediction_type is 'flow'"):
        denoising_target(scheduler, x, x, torch.tensor([1]))


def test_noise_and_timesteps_are_each_samples_own():
    like = torch.zeros(3, 4, 8, 8)
    noise, steps = draw_noise([5, 6, 7], like, 1000)
    again, one_step = draw_noise([6], like[:1], 1000)
    assert torch.equal(noise[1], again[0]) and steps[1] == one_step[0]
    many, drawn = draw_noise(list(range(2000)), torch.zeros(2000, 1, 2, 2), 10)
    counts = torch.bincount(drawn, minlength=10)
    assert drawn.min() == 0 and drawn.max() == 9 and (counts - 200).abs().max() < 60  # uniform, Eq. 11
    assert abs(many.mean()) < 0.05 and abs(many.std() - 1) < 0.05


def joined(tiles: torch.Tensor) -> torch.Tensor:
    """One tile as it is, or four, row by row, side by side: (n, C, h, w) -> (1, C, h', w')."""
    if len(tiles) == 1:
        return tiles
    return torch.cat([torch.cat([tiles[0], tiles[1]], 2), torch.cat([tiles[2], tiles[3]], 2)], 1)[None]


def halved(grid: torch.Tensor) -> torch.Tensor:
    """Average blocks of 2x2 of a picture with even sides: (1, C, h, w) -> (1, C, h/2, w/2)."""
    return (grid[..., ::2, ::2] + grid[..., 1::2, ::2] + grid[..., ::2, 1::2] + grid[..., 1::2, 1::2]) / 4


@pytest.mark.parametrize(
    ("mode", "mask", "tiles_are"),
    [
        ("gated", "zeros", "full"), ("attention", "zeros", "full"), ("concat", "zeros", "full"),
        ("gated", "black", "shrunk"), ("concat", "black", "shrunk"),
    ],
)  # fmt: skip
def test_the_loss_is_equation_11_with_the_pipelines_own_parts(place, mode, mask, tiles_are):
    """Sample by sample through the pipeline's parts, references joined by hand, against the batch with all kinds."""
    model = {"model__mode": mode, "model__mask_latents": mask, "model__grid_tiles": tiles_are}
    objective = make_objective(place, **model, data__mask=0.4, data__single=0.3, data__grid=0.3)
    tiny.trained(objective.pipe.control)
    pixels = torch.full((1, 3, objective.config.data.height, objective.config.data.width), -1.0)
    with torch.no_grad():
        black = objective.pipe.vae.encode(pixels).latent_dist.mode() * objective.pipe.vae.config.scaling_factor
    raw = batch_of(place, objective, range(10))
    batch = objective.encode(raw)
    assert [group.kind for group in batch.references] == ["mask", "single", "grid"]
    found = objective(batch)
    pipe, errors = objective.pipe, {}
    for group, pixels in zip(batch.references, raw.references, strict=True):
        for at, row in enumerate(group.rows.tolist()):
            gray = batch.gray[row : row + 1]
            tiles = group.color.shape[1]
            if tiles == 0:
                ref_gray = ref_color = black if mask == "black" else torch.zeros_like(gray)
                tokens = torch.zeros(1, 1, tiny.WIDTH)
            else:
                ref_gray, ref_color = joined(group.gray[at]), joined(group.color[at])
                if tiles == 4 and tiles_are == "shrunk":
                    ref_gray, ref_color = halved(ref_gray), halved(ref_color)
                views = [v.permute(1, 2, 0).numpy() for v in pixels.color[at]]
                tokens = [encoders.image_tokens(pipe.image_encoder, pipe.feature_extractor, v) for v in views]
                tokens = torch.cat(tokens, 1)
            generator = torch.Generator().manual_seed(raw.seeds[row])
            t = torch.randint(1000, (1,), generator=generator)
            noise = torch.randn(gray.shape[1:], generator=generator)[None]
            alpha = pipe.scheduler.alphas_cumprod[t].view(1, 1, 1, 1)
            noisy = alpha.sqrt() * batch.target[row : row + 1] + (1 - alpha).sqrt() * noise
            with torch.no_grad():
                residuals = pipe.control(noisy, t, tokens, gray, ref_gray, ref_color)
                prediction = pipe.unet(
                    noisy, t, pipe.encode_prompt([raw.captions[row]]),
                    down_block_additional_residuals=residuals.down_block_res_samples,
                    mid_block_additional_residual=residuals.mid_block_res_sample,
                ).sample  # fmt: skip
            errors.setdefault(group.kind, []).append(float((prediction - noise).square().mean()))
    everything = [e for kind in errors.values() for e in kind]
    assert found["objective"].item() == pytest.approx(np.mean(everything), rel=1e-4)
    for kind, wanted in errors.items():
        assert found[f"loss_{kind}"].tolist() == pytest.approx(wanted, rel=1e-4)
        assert (f"gate_{kind}" in found) == (mode == "gated")


def test_a_compiled_step_moves_the_weights_alike(place, monkeypatch):
    """Compiled up to the kernels, which are the compiler's own: traced, differentiated and run as one graph."""
    traced = functools.partial(training_loss.compile_for_training, backend="aot_eager")
    monkeypatch.setattr(training_loss, "compile_for_training", traced)
    moved = []
    for compiled in (False, True):
        objective = make_objective(place, run__compile=compiled)
        tiny.trained(objective.pipe.control)
        make_learner(objective).step(lambda: objective(batch_of(place, objective, range(4))))  # noqa: B023
        assert (objective.pipe.unet._compiled_call_impl is not None) == compiled
        moved.append({name: weights.detach().clone() for name, weights in objective.network.named_parameters()})
    torch.compiler.reset()
    for name, weights in moved[0].items():
        torch.testing.assert_close(moved[1][name], weights, atol=1e-6, rtol=1e-4, msg=name)


def test_repeated_image_tokens_are_what_they_stand_for(place):
    """A single reference beside a grid gets its tokens four times: the copy's output must not notice."""
    objective = make_objective(place)
    tiny.trained(objective.pipe.control)
    denoiser = Denoiser(objective.pipe.unet, objective.pipe.control)
    torch.manual_seed(0)
    latents = lambda *shape: torch.randn(*shape, 4, 4, 8)  # noqa: E731
    single = References("single", torch.tensor([1]), latents(1, 1), latents(1, 1), torch.randn(1, 1, 16, 16))
    grid = References("grid", torch.tensor([0]), latents(1, 4), latents(1, 4), torch.randn(1, 4, 16, 16))
    noisy, gray, text = latents(2), latents(2), torch.randn(2, 8, 16)
    t = torch.tensor([10, 700])
    with torch.no_grad():
        together = denoiser(noisy, t, text, gray, [single, grid])
        alone = dataclasses.replace(single, rows=torch.tensor([0]))
        apart = denoiser(noisy[1:], t[1:], text[1:], gray[1:], [alone])
    for a, b in zip(together, apart, strict=True):
        torch.testing.assert_close(a[1:], b, atol=1e-5, rtol=1e-5)


def test_min_snr_and_the_hints_error_enter_the_loss(place):
    plain = make_objective(place)
    tiny.trained(plain.pipe.control)
    batch = plain.encode(batch_of(place, plain, range(8)))
    base = plain(batch)
    plain.config = configs.replace(plain.config, {"loss.hint_weight": 0.5})
    with torch.no_grad():
        hint, _ = Denoiser(plain.pipe.unet, plain.pipe.control).guide(batch.gray, batch.references)
    hint_error = float((hint.hint - batch.target).square().mean())
    assert plain(batch)["objective"].item() == pytest.approx(base["objective"].item() + 0.5 * hint_error, rel=1e-4)
    plain.config = configs.replace(plain.config, {"loss.hint_weight": 0.0, "loss.snr_gamma": 5.0})
    weighted = plain(batch)
    assert weighted["objective"].item() < base["objective"].item()
    assert weighted["loss"].tolist() == pytest.approx(base["loss"].tolist())  # what is logged stays Eq. 11's


def test_only_what_should_learn_moves(place):
    frozen, joint = make_objective(place), make_objective(place, model__joint=True)
    moved = {}
    for objective in (frozen, joint):
        learner = make_learner(objective)
        before = {n: p.clone() for n, p in objective.network.named_parameters()}
        learner.step(lambda: objective(batch_of(place, objective, range(4))))  # noqa: B023
        moved[objective] = {n for n, p in objective.network.named_parameters() if not torch.equal(p, before[n])}
        assert moved[objective] and moved[objective] <= set(learner.names)
    assert all(name.startswith("control.") for name in moved[frozen])
    assert "control.unet_copy.controlnet_mid_block.weight" in moved[frozen]
    assert any(name.startswith("unet.up_blocks") for name in moved[joint])
    assert not frozen.pipe.unet.training and joint.pipe.unet.training


def test_the_step_is_that_of_adam_by_hand(place):
    """Two steps of Adam, clipping, warm-up and averaging written out, on the gradients of the learner's own loss."""
    changes = {"optimizer__warmup": 4, "optimizer__max_grad_norm": 0.05, "optimizer__learning_rate": 0.01}
    objective, twin = make_objective(place, **changes), make_objective(place)
    learner = make_learner(objective)
    first = [p.detach().double().clone() for p in learner.parameters]
    m, v = ([torch.zeros_like(p) for p in first] for _ in range(2))
    weights, average = [p.clone() for p in first], [p.clone() for p in first]
    twins = [p for p in twin.network.parameters() if p.requires_grad]
    for step in range(2):
        batch = batch_of(place, objective, range(4 * step, 4 * step + 4))
        with torch.no_grad():
            for p, w in zip(twins, weights, strict=True):
                p.copy_(w)
        twin.network.zero_grad()
        twin(batch)["objective"].backward()
        grads = [p.grad.double() for p in twins]
        norm = math.sqrt(sum(float(g.square().sum()) for g in grads))
        grads = [g * min(1.0, 0.05 / (norm + 1e-6)) for g in grads]
        m = [0.9 * a + 0.1 * g for a, g in zip(m, grads, strict=True)]
        v = [0.999 * a + 0.001 * g * g for a, g in zip(v, grads, strict=True)]
        rate, k = 0.01 * (step + 1) / 4, step + 1
        weights = [
            w - rate * (a / (1 - 0.9**k)) / ((b / (1 - 0.999**k)).sqrt() + 1e-8)
            for w, a, b in zip(weights, m, v, strict=True)
        ]
        decay = min(0.999, 1 - (1 + step) ** -0.75) if step else 0.0
        average = [decay * a + (1 - decay) * w for a, w in zip(average, weights, strict=True)]
        learner.step(lambda: objective(batch))  # noqa: B023
    for name, got, wanted, start in zip(learner.names, learner.parameters, weights, first, strict=True):
        torch.testing.assert_close(got.detach().double() - start, wanted - start, atol=2e-5, rtol=2e-2, msg=name)
    for name, wanted in zip(learner.names, average, strict=True):
        torch.testing.assert_close(learner.averaged()[name].double(), wanted, atol=1e-4, rtol=1e-4)


def test_steps_of_a_run():
    steps = lambda samples, **options: training_run.total_steps(configs.replace(TINY, options), samples)  # noqa: E731
    plain = {"run.batch_size": "24", "run.micro_batch": "24", "run.max_steps": "0", "run.epochs": "15"}
    assert steps(27200, **plain) == 17000 and steps(10, **plain) == 6 and steps(1, **plain) == 1
    assert steps(27200, **{**plain, "run.max_steps": "100"}) == 100


def test_eight_bit_adam_says_what_it_needs(place):
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        with pytest.raises(ValueError, match="adam8bit needs bitsandbytes, which is not installed"):
            make_optimizer(config(place, optimizer__name="adam8bit").optimizer, [torch.zeros(3)])
    else:
        made = make_optimizer(config(place, optimizer__name="adam8bit").optimizer, [torch.nn.Parameter(torch.zeros(3))])
        assert "8bit" in type(made).__name__


def test_the_schedulers_of_training_and_validation_are_apart(place):
    objective = make_objective(place)
    before = copy.deepcopy(objective.scheduler.__dict__)
    objective.pipe.scheduler.set_timesteps(3)
    weights = dict(objective.network.named_parameters())
    objective.trained_pipeline(weights, torch.float32).scheduler.set_timesteps(5)
    assert len(objective.scheduler.timesteps) == len(before["timesteps"]) == 1000
    assert json.dumps(dict(objective.scheduler.config), default=str) == json.dumps(
        dict(before["_internal_dict"]), default=str
    )


@pytest.mark.parametrize("cached", [False, True])
def test_a_trained_pipeline_colours_under_the_mask_and_grid_that_it_was_trained_with(place, tmp_path, cached):
    """From pixels and from cached latents; the pipeline that training writes has the values for its own."""
    settings = config(
        place, model__mask_latents="black", model__grid_tiles="shrunk", model__image_condition="pooled",
        data__cache_variants=2 if cached else 0, data__cache_views=5, run__max_steps=1,
    )  # fmt: skip
    folder = training_run.train(settings, place / "data", tmp_path / "run", cache=tmp_path, cpu=True)
    trained = GCGPipeline.from_pretrained(folder)
    for own in (trained.config, Settings().completed(trained)):
        assert (own.mask_latents, own.grid_tiles, own.image_condition) == ("black", "shrunk", "pooled")
