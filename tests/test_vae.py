"""The luma-chroma autoencoder against block means in NumPy, and LAB on tensors against scikit-image."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage.color import lab2rgb, rgb2lab

from gcgkit.training.mini.encoders import tensor_lab_to_rgb, tensor_rgb_to_lab
from gcgkit.vae import LumaChromaAutoencoder, luma_chroma_to_rgb, rgb_to_luma_chroma

WEIGHTS = np.array([0.299, 0.587, 0.114])  # Rec. 601


def make(trained: bool = True, **config) -> LumaChromaAutoencoder:
    torch.manual_seed(0)
    vae = LumaChromaAutoencoder(**{"width": 8, "depth": 1, **config}).eval()
    if trained:  # move every weight, those that start at zero among them
        with torch.no_grad():
            for weights in vae.parameters():
                weights.add_(0.1 * torch.randn_like(weights))
    return vae


def frames(count: int = 2, height: int = 16, width: int = 24, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def gray_of(x: torch.Tensor) -> torch.Tensor:
    """Unrounded gray version with three equal channels."""
    luma = np.einsum("c,bchw->bhw", WEIGHTS, x.double().numpy())
    return torch.from_numpy(luma).float()[:, None].repeat(1, 3, 1, 1)


@torch.no_grad()
def latents(vae, x: torch.Tensor) -> torch.Tensor:
    return vae.encode(x).latent_dist.mode()


def test_gray_frames_have_no_chroma_latents():
    vae = make()
    grays = torch.rand(2, 1, 16, 24, generator=torch.Generator().manual_seed(1)).mul(255).round().div(127.5).sub(1)
    z = latents(vae, grays.repeat(1, 3, 1, 1))
    assert z.shape == (2, 4, 2, 3)
    assert (z[:, 2:] == 0).all()
    assert z[:, :2].abs().min() > 0


def test_luma_latents_see_luma_alone():
    vae, x = make(), frames()
    z, g = latents(vae, x), latents(vae, gray_of(x))
    torch.testing.assert_close(z[:, :2], g[:, :2], atol=1e-4, rtol=1e-4)
    assert z[:, 2:].abs().max() > 0.01


def test_fresh_chroma_code_is_block_means():
    x = frames()
    rgb = x.double().numpy()
    luma = np.einsum("c,bchw->bhw", WEIGHTS, rgb)
    difference = np.stack([rgb[:, 0] - luma, rgb[:, 2] - luma], 1)  # (B, 2, H, W)
    means = difference.reshape(2, 2, 2, 8, 3, 8).mean((3, 5))
    np.testing.assert_allclose(latents(make(trained=False), x)[:, 2:].numpy(), means, atol=1e-6)
    assert np.abs(latents(make(), x)[:, 2:].numpy() - means).max() > 0.01  # what is learned comes on top


@torch.no_grad()
def test_fresh_autoencoder_keeps_constant_chroma():
    vae = make(trained=False)
    color = torch.tensor([0.6, -0.2, 0.1]).view(1, 3, 1, 1).expand(1, 3, 16, 16)
    result = vae(color).sample
    assert result.shape == color.shape
    got, wanted = rgb_to_luma_chroma(result)[1], rgb_to_luma_chroma(color)[1]
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)


@torch.no_grad()
def test_latent_std_scales_the_latents_and_is_undone():
    std = (2.0, 0.5, 4.0, 0.25)
    plain, scaled, x = make(), make(latent_std=std), frames()
    z = latents(plain, x)
    np.testing.assert_allclose(latents(scaled, x).numpy(), z.numpy() / np.reshape(std, (1, 4, 1, 1)), rtol=1e-6)
    decoded = scaled.decode(latents(scaled, x)).sample
    torch.testing.assert_close(decoded, plain.decode(z).sample, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_posterior_has_one_spread():
    vae, x = make(posterior_std=0.1), frames(1, 64, 64)
    posterior = vae.encode(x).latent_dist
    torch.testing.assert_close(posterior.std, torch.full_like(posterior.mean, 0.1))
    generator = torch.Generator().manual_seed(0)
    noise = posterior.sample(generator) - posterior.mode()
    assert 0.08 < noise.std() < 0.12
    one, other = (vae(x, sample_posterior=True, generator=generator.manual_seed(s)).sample for s in (1, 2))
    assert not torch.equal(one, other)
    assert torch.equal(vae(x).sample, vae.decode(posterior.mode()).sample)


@torch.no_grad()
@pytest.mark.parametrize("size", [(8, 8), (16, 40), (256, 448)])
def test_shapes(size):
    vae = make()
    z = latents(vae, frames(1, *size))
    assert z.shape == (1, 4, size[0] // 8, size[1] // 8)
    assert vae.decode(z).sample.shape == (1, 3, *size)
    assert torch.equal(vae.decode(z, return_dict=False)[0], vae.decode(z).sample)
    assert vae.spatial_compression_ratio == 8


@pytest.mark.parametrize("shape", [(1, 3, 12, 16), (1, 3, 16, 20), (1, 1, 16, 16), (3, 16, 16), (1, 4, 16, 16)])
def test_bad_frames(shape):
    with pytest.raises(ValueError, match="multiples of 8"):
        make().encode(torch.zeros(shape))


@torch.no_grad()
def test_save_and_load(tmp_path):
    vae, x = make(latent_std=(1.5, 1.0, 0.5, 0.25), scaling_factor=0.7), frames()
    vae.save_pretrained(tmp_path)
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json", ".safetensors"]
    loaded = LumaChromaAutoencoder.from_pretrained(tmp_path)
    assert loaded.config.scaling_factor == 0.7 and list(loaded.config.latent_std) == [1.5, 1.0, 0.5, 0.25]
    ours, theirs = vae.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    torch.testing.assert_close(loaded(x).sample, vae(x).sample)


def test_luma_and_chroma_by_hand():
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    y, c = rgb_to_luma_chroma(red)
    np.testing.assert_allclose(y.flatten(), [0.299], atol=1e-7)
    np.testing.assert_allclose(c.flatten(), [0.701, -0.299], atol=1e-7)


@given(st.integers(0, 10_000))
def test_luma_and_chroma_are_undone(seed):
    x = frames(1, 3, 5, seed=seed)
    y, c = rgb_to_luma_chroma(x)
    np.testing.assert_allclose(y[0, 0].numpy(), np.einsum("c,chw->hw", WEIGHTS, x[0].numpy()), atol=1e-6)
    torch.testing.assert_close(luma_chroma_to_rgb(y, c), x, atol=1e-5, rtol=0)


# --- LAB of tensors --------------------------------------------------------------------------------------------------


@given(st.integers(0, 10_000))
def test_lab_equals_scikit_image(seed):
    rgb = np.random.default_rng(seed).random((4, 6, 3))
    wanted = rgb2lab(rgb)
    got = tensor_rgb_to_lab(torch.from_numpy(rgb).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(got, wanted, atol=0.05)
    back = tensor_lab_to_rgb(torch.from_numpy(wanted).float().permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(back, lab2rgb(wanted), atol=1e-3)


def test_lab_at_the_corners():
    corners = np.array([[r, g, b] for r in (0, 1) for g in (0, 1) for b in (0, 1)], float)[None]  # (1, 8, 3)
    got = tensor_rgb_to_lab(torch.from_numpy(corners).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(got, rgb2lab(corners), atol=0.15)
    white = tensor_lab_to_rgb(torch.tensor([100.0, 0, 0]).view(1, 3, 1, 1)).flatten()
    np.testing.assert_allclose(white, [1, 1, 1], atol=1e-3)


def test_lab_has_gradients_everywhere():
    x = torch.cat([torch.zeros(1, 3, 1, 4), torch.ones(1, 3, 1, 4), frames(1, 1, 4) / 2 + 0.5], 2).requires_grad_()
    tensor_lab_to_rgb(tensor_rgb_to_lab(x)).sum().backward()
    assert torch.isfinite(x.grad).all() and x.grad[:, :, 2].abs().min() > 0
