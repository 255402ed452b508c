"""The semantic encoder against the package its weights come from, and what copy and pipeline make of its features."""

import bundled
import cv2
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from torch.nn import functional as F

from gcgkit import GCGPipeline, metrics
from gcgkit.color import to_gray
from gcgkit.control import GuidedControlNet
from gcgkit.metrics import networks
from gcgkit.profiles import WEIGHTS
from gcgkit.semantics import CHANNELS, TAPS, FeaturePyramid, SemanticEncoder
from gcgkit.settings import Settings
from gcgkit.srg import make_grid
from gcgkit.stages import Run


def packaged_network() -> torch.nn.Module:
    """EfficientNet-Lite0 by another author, with random weights and batch statistics."""
    package = pytest.importorskip("efficientnet_lite_pytorch")
    network = package.EfficientNet.from_name("efficientnet-lite0").eval()
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for name, low, high in (("weight", 0.5, 1.5), ("bias", -0.3, 0.3), ("running_mean", -0.3, 0.3),
                                    ("running_var", 0.5, 1.5)):  # fmt: skip
                values = torch.rand(module.running_mean.shape, generator=generator) * (high - low) + low
                getattr(module, name).data.copy_(values)
    return network


def folded_trunk(weights: dict[str, torch.Tensor]) -> SemanticEncoder:
    """Return the semantic encoder with the package's weights, the batch normalisation folded into the convolutions."""
    trunk = SemanticEncoder()
    fold(weights, trunk.stem, "_conv_stem", "_bn0")
    for index, block in enumerate(trunk.blocks):
        name = f"_blocks.{index}"
        if block.expand is not None:
            fold(weights, block.expand, f"{name}._expand_conv", f"{name}._bn0")
        fold(weights, block.depthwise, f"{name}._depthwise_conv", f"{name}._bn1")
        fold(weights, block.project, f"{name}._project_conv", f"{name}._bn2")
    return trunk.eval()


@torch.no_grad()
def fold(weights: dict[str, torch.Tensor], conv: torch.nn.Conv2d, name: str, norm: str) -> None:
    scale = weights[f"{norm}.weight"] / (weights[f"{norm}.running_var"] + 1e-3).sqrt()
    conv.weight.copy_(weights[f"{name}.weight"] * scale.view(-1, 1, 1, 1))
    conv.bias.copy_(weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale)


def test_features_are_those_of_the_package():
    network, gray = packaged_network(), torch.rand(2, 1, 192, 256, generator=torch.Generator().manual_seed(1)) * 2 - 1
    encoder = folded_trunk(network.state_dict())
    seen = []
    for index in TAPS:
        network._blocks[index].register_forward_hook(lambda module, given, result: seen.append(result))
    with torch.no_grad():
        network(((gray + 1) * 127.5 - 127).expand(-1, 3, -1, -1) / 128)
        found = encoder(gray)
    assert [tuple(f.shape) for f in found] == [(2, 40, 24, 32), (2, 112, 12, 16), (2, 320, 6, 8)]
    for ours, theirs in zip(found, seen, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


def test_the_bundled_encoder_is_the_trunk_of_the_packages_weights():
    (path,) = networks.weight_files("fd_efficientnet")
    bundled_trunk = SemanticEncoder.from_pretrained(WEIGHTS / "mini" / "semantic_encoder")
    wanted = folded_trunk(torch.load(path, map_location="cpu", weights_only=True)).state_dict()
    torch.testing.assert_close(dict(bundled_trunk.state_dict()), dict(wanted), rtol=1e-3, atol=1e-3)


def test_frames_are_seen_at_one_size():
    encoder = SemanticEncoder(side=64).eval()
    with torch.no_grad():
        wide, tall = encoder(torch.zeros(1, 1, 128, 224)), encoder(torch.zeros(1, 1, 96, 64))
    assert [f.shape[2:] for f in wide] == [(8, 14), (4, 7), (2, 4)]
    assert wide[0].shape[2:] == (8, 14) and tall[0].shape[2:] == (12, 8)


def test_pyramid_listens_to_every_scale():
    pyramid = FeaturePyramid((4, 6), 8, hidden=16).eval()
    fine, coarse = torch.randn(1, 4, 8, 12), torch.randn(1, 6, 4, 6)
    result = pyramid((fine, coarse))
    assert result.shape == (1, 8, 8, 12)
    for changed in ((fine + 1, coarse), (fine, coarse + 1)):
        assert not torch.allclose(pyramid(changed), result)


def tiny_unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, cross_attention_dim=16, norm_num_groups=8,
        attention_head_dim=8, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def control() -> GuidedControlNet:
    torch.manual_seed(1)
    control = GuidedControlNet.from_unet(tiny_unet(), hidden_dim=16, semantic_channels=(4, 6), semantic_width=8).eval()
    for weight in control.parameters():  # nothing stays at zero, or nothing would show
        weight.data += 0.05 * torch.randn_like(weight)
    return control


def given() -> dict:
    return {
        "sample": torch.ones(2, 4, 8, 8), "timestep": torch.tensor(5), "encoder_hidden_states": torch.ones(2, 3, 16),
        "gray": torch.ones(2, 4, 8, 8), "ref_gray": torch.ones(2, 4, 8, 8), "ref_color": torch.ones(2, 4, 8, 8),
    }  # fmt: skip


def test_copy_reads_hint_gray_and_semantics_in_this_order(control):
    semantics = torch.randn(2, 8, 8, 8)
    hint = control.hint(*(given()[name] for name in ("gray", "ref_gray", "ref_color")))
    with torch.no_grad():
        ours = control(**given(), semantics=semantics)
        theirs = control.unet_copy(
            given()["sample"], 5, given()["encoder_hidden_states"],
            controlnet_cond=torch.cat([hint.hint, given()["gray"], semantics], 1), return_dict=False,
        )  # fmt: skip
    for a, b in zip(ours.down_block_res_samples, theirs[0], strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(ours.mid_block_res_sample, theirs[1])


def test_semantics_that_the_copy_reads_are_asked_for(control):
    with pytest.raises(ValueError, match="semantic"):
        control(**given())


def test_map_has_the_latents_size(control):
    features = (torch.randn(1, 4, 6, 10), torch.randn(1, 6, 3, 5))
    expected = F.interpolate(control.pyramid(features), size=(8, 14), mode="bilinear", align_corners=False)
    torch.testing.assert_close(control.semantics(features, (8, 14)), expected)


def with_semantics(pipe: GCGPipeline, blind: bool) -> GCGPipeline:
    """The pipeline with a semantic encoder; a blind copy has all the old weights and reads nothing of what is new."""
    torch.manual_seed(2)
    options = dict(pipe.control.config.guidance_config)
    options.pop("latent_channels"), options.pop("semantic_width", None)
    control = GuidedControlNet.from_unet(pipe.unet, semantic_channels=CHANNELS, semantic_width=8, **options).eval()
    weights = control.state_dict()
    for name, old in pipe.control.state_dict().items():
        if weights[name].shape == old.shape:
            weights[name] = old
        else:
            weights[name] = weights[name] if not blind else torch.zeros_like(weights[name])
            weights[name][:, : old.shape[1]] = old
    control.load_state_dict(weights)
    parts = {**pipe.components, "control": control, "semantic_encoder": SemanticEncoder(side=64).eval()}
    names = ("guidance_scale", "height", "width", "tau", "strength", "hint_weight")
    new = GCGPipeline(**parts, **{name: pipe.config[name] for name in names})
    new.set_progress_bar_config(disable=True)
    return new


@pytest.fixture(scope="module")
def unseeing() -> GCGPipeline:
    """``mini`` without what is semantic."""
    return bundled.blind_pipeline()


FILM = np.add.outer(np.arange(3) * 9, np.add.outer(np.arange(48), np.arange(80))).astype(np.uint8)
OPTIONS = {"num_inference_steps": 2, "num_keyframes": 2, "working_size": (64, 96)}


def colored(pipe: GCGPipeline, **options) -> np.ndarray:
    return pipe(FILM, generator=torch.Generator().manual_seed(3), **OPTIONS, **options).frames


def test_what_a_blind_copy_sees_changes_nothing_and_what_another_sees_does(unseeing):
    expected = colored(unseeing)
    np.testing.assert_array_equal(colored(with_semantics(unseeing, blind=True)), expected)
    assert (colored(with_semantics(unseeing, blind=False)) != expected).any()


def test_a_copy_without_a_pyramid_has_no_guess_to_start_from(unseeing):
    parts = {**unseeing.components, "semantic_encoder": SemanticEncoder(side=64).eval()}
    options = ("guidance_scale", "height", "width", "tau", "strength", "hint_weight")
    pipe = GCGPipeline(**parts, **{name: unseeing.config[name] for name in options}, guess_strength=0.5)
    pipe.set_progress_bar_config(disable=True)
    np.testing.assert_array_equal(colored(pipe), colored(unseeing))


def test_pipeline_is_saved_with_its_semantic_encoder(unseeing, tmp_path):
    pipe = with_semantics(unseeing, blind=False)
    pipe.save_pretrained(tmp_path)
    again = GCGPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    np.testing.assert_array_equal(colored(again), colored(pipe))


def test_noise_scale_scales_the_starting_noise():
    pipe = GCGPipeline.from_pretrained("mini")
    pipe.set_progress_bar_config(disable=True)
    options = {**OPTIONS, "guess_strength": 1.0}  # from noise alone
    inputs = []
    pipe.unet.register_forward_pre_hook(lambda module, given: inputs.append(given[0].clone()))
    made, starts = {}, {}
    for scale in (1.0, 0.5, 0.0):
        inputs.clear()
        made[scale] = pipe(FILM[:1], generator=torch.Generator().manual_seed(3), noise_scale=scale, **options).frames
        starts[scale] = inputs[0]
    torch.testing.assert_close(starts[0.5], starts[1.0] / 2)
    assert not starts[0.0].any()
    other = pipe(FILM[:1], generator=torch.Generator().manual_seed(4), noise_scale=0.0, **options).frames
    np.testing.assert_array_equal(made[0.0], other)  # without noise no seed can matter
    assert (made[1.0] != made[0.0]).any()


@pytest.fixture(scope="module")
def semantic() -> GCGPipeline:
    pipe = GCGPipeline.from_pretrained("mini")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_frames_start_from_the_noised_guess_unless_words_say_more(semantic):
    inputs = []
    handle = semantic.unet.register_forward_pre_hook(lambda module, given: inputs.append(given[0].clone()))
    options = {"num_inference_steps": 4, "working_size": (64, 96), "num_keyframes": 1}
    run = Run(semantic, FILM.shape[1:], Settings(**options), torch.Generator().manual_seed(3))
    with torch.no_grad():
        gray, seen = run.encode(FILM[0]), run.recognise(FILM[0])
        guess = gray.clone()
        guess[:, 2:] = seen[:, :2]
    noise, scheduler = run.denoiser.noise((0,))[0] * semantic.config.noise_scale, semantic.scheduler
    scheduler.set_timesteps(4)
    make = lambda **more: semantic(FILM[:1], generator=torch.Generator().manual_seed(3), **options, **more)  # noqa: E731
    for more, calls, start in (
        ({}, 1, scheduler.add_noise(guess, noise, scheduler.timesteps[3:])),
        ({"guess_strength": 0.5}, 2, scheduler.add_noise(guess, noise, scheduler.timesteps[2:3])),
        ({"guess_strength": 1.0}, 4, noise),
        ({"prompt": "green", "guidance_scale": 1.0}, 4, noise),
    ):
        inputs.clear()
        make(**more)
        assert len(inputs) == calls
        torch.testing.assert_close(inputs[0], start, atol=1e-4, rtol=1e-4)
    handle.remove()


def test_references_match_by_meaning_tile_by_tile(unseeing):
    pipe = with_semantics(unseeing, blind=False)
    torch.nn.init.normal_(pipe.control.guidance.token_stem.meaning.weight, std=0.1)
    run = Run(pipe, FILM.shape[1:], Settings(working_size=(32, 64), num_inference_steps=1), None)
    film = np.stack([*FILM[:3], FILM[0][:, ::-1], FILM[1][::-1]])
    colored = [np.repeat(frame[..., None], 3, -1) // np.array([1, 2, 3], np.uint8) for frame in film[:4]]
    references = run.references(range(4), list(film[:4]), colored)
    with torch.no_grad():
        gray, semantics = run.encode(film[4]), run.recognise(film[4])
        found, _ = run.guide(gray, [(references, [])], semantics)

        def grid(tiles):  # by hand: two above two
            return torch.cat([torch.cat([tiles[0], tiles[1]], 3), torch.cat([tiles[2], tiles[3]], 3)], 2)

        g, z, s = ([make(image) for image in images] for make, images in (
            (run.encode, film[:4]), (run.encode, colored), (run.recognise, film[:4])))  # fmt: skip
        guidance = pipe.control.guidance
        expected = guidance(gray, grid(g), grid(z), semantics=semantics, ref_semantics=grid(s))
        blind = guidance(gray, grid(g), grid(z), semantics=semantics, ref_semantics=grid(s) * 0)
    torch.testing.assert_close(found.color, expected.color)
    assert not torch.allclose(found.color, blind.color, atol=1e-3)


def test_keyframes_count_more_than_earlier_frames(unseeing):
    """A weight of 3 says the same as each token of the keyframes thrice."""
    film = np.stack([*FILM[:3], FILM[0][:, ::-1], FILM[1][::-1]])
    colored = [np.repeat(frame[..., None], 3, -1) // np.array([1, 2, 3], np.uint8) for frame in film[:4]]
    found = {}
    for weight in (3.0, 1.0):
        settings = Settings(working_size=(32, 64), num_inference_steps=1, keyframe_weight=weight)
        run = Run(unseeing, FILM.shape[1:], settings, None)
        references = run.references(range(4), list(film[:4]), colored)
        with torch.no_grad():
            gray = run.encode(film[4])
            found[weight] = run.guide(gray, [(references[:3], references[3:])])[0].color
    with torch.no_grad():
        guidance, (h, w) = unseeing.control.guidance, gray.shape[2:]
        tiles = [torch.cat([getattr(r, name) for r in references]) for name in ("gray", "color")]  # (4, C, h, w) each
        ref_gray, ref_color = (make_grid(some)[None] for some in tiles)
        times = torch.full((2 * h, 2 * w), 3)
        times[h:, w:] = 1  # the last tile is the earlier frame
        repeat = lambda tokens: tokens.repeat_interleave(times.flatten(), 1)  # noqa: E731
        ref_tokens, ref_values = repeat(guidance.tokens(ref_gray)), repeat(ref_color.flatten(2).transpose(1, 2))
        expected = guidance.cga(guidance.tokens(gray), ref_tokens, ref_values)
    torch.testing.assert_close(found[3.0].flatten(2).transpose(1, 2), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found[3.0], found[1.0], atol=1e-3)


def test_bundled_profile_colours_photographs_better_than_gray(semantic):
    data = pytest.importorskip("skimage.data")
    gains = []
    for name in ("astronaut", "coffee", "chelsea"):  # these come with the package
        truth = getattr(data, name)()
        scale = 192 / min(truth.shape[:2])
        truth = cv2.resize(truth, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)[None]
        gray = to_gray(truth)
        ours = semantic(gray, num_inference_steps=8, generator=torch.Generator().manual_seed(0)).frames
        plain = np.repeat(gray[..., None], 3, -1)
        gains.append(metrics.psnr_rgb(ours, truth) - metrics.psnr_rgb(plain, truth))
    assert min(gains) > 0 and np.mean(gains) > 1.5, gains


@pytest.mark.parametrize("name", ["noise_scale", "guess_strength"])
@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), "much"])
def test_values_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=name):
        Settings(**{name: value})


@pytest.mark.parametrize("value", [0, -1, float("inf"), 1e300, 10**400, "8", True])
def test_weights_of_keyframes_out_of_range_are_refused(value):
    with pytest.raises(ValueError, match="keyframe_weight must be a number above 0"):
        Settings(keyframe_weight=value)
