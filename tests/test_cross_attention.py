"""Cross-attention over keys and values made before, against softmax(QK^T / sqrt(d)) V in NumPy and diffusers' own."""

import numpy as np
import pytest
import tiny
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from test_pipeline import color

from gcgkit import attention
from gcgkit.attention import (
    JointSelfAttention,
    ProjectedCrossAttention,
    ReadingProjected,
    joint_self_attention,
    keys_and_values,
)
from gcgkit.settings import Settings
from gcgkit.stages import Run

WIDTH, HEADS, TOKENS = 12, 3, 10


class Network(torch.nn.Module):
    """As much of a UNet as its cross-attention: layers in a row, and one of self-attention between."""

    def __init__(self, *options: dict):
        super().__init__()
        torch.manual_seed(0)
        made = [Attention(WIDTH, TOKENS, heads=HEADS, dim_head=WIDTH // HEADS, bias=True, **o) for o in options]
        self.layers = torch.nn.ModuleList([made[0], Attention(WIDTH, heads=HEADS, dim_head=4), *made[1:]])
        self.double().eval()

    @property
    def attn_processors(self) -> dict:
        return {f"layers.{i}.processor": layer.processor for i, layer in enumerate(self.layers)}

    def set_attn_processor(self, chosen: dict) -> None:
        for i, layer in enumerate(self.layers):
            layer.set_processor(chosen[f"layers.{i}.processor"])


def states(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(layer: Attention, x: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Softmax(QK^T / sqrt(d)) V, sample by sample and head by head."""

    def linear(part, x):
        return x @ part.weight.detach().numpy().T + part.bias.detach().numpy()

    result = []
    for one, given in zip(x, tokens, strict=True):
        query, key, value = linear(layer.to_q, one), linear(layer.to_k, given), linear(layer.to_v, given)
        heads = []
        for part in np.split(np.arange(WIDTH), HEADS):
            weights = np.exp(query[:, part] @ key[:, part].T / np.sqrt(len(part)))
            heads.append(weights / weights.sum(1, keepdims=True) @ value[:, part])
        result.append(linear(layer.to_out[0], np.concatenate(heads, 1)))
    return np.stack(result)


def test_each_layer_reads_its_own_keys_and_values():
    network, x, tokens = Network({}, {}, {}), states(2, 5, WIDTH), states(2, 7, TOKENS, seed=1)
    with torch.no_grad():
        made = keys_and_values(network, tokens)
        assert made.shape == (2, 7, 3 * 2 * WIDTH)
        with ReadingProjected(network):
            for number in (0, 2, 3):
                result = network.layers[number](x, encoder_hidden_states=made)
                wanted = by_hand(network.layers[number], x.numpy(), tokens.numpy())
                np.testing.assert_allclose(result.numpy(), wanted, atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {"norm_num_groups": 4},
        {"residual_connection": True, "rescale_output_factor": 2.0},
        {"qk_norm": "layer_norm"},
        {"cross_attention_norm": "layer_norm"},
        {"cross_attention_norm": "group_norm", "cross_attention_norm_num_groups": 5},
    ],
)
@pytest.mark.parametrize("shape", [(3, 6, WIDTH), (3, WIDTH, 2, 3)])
def test_options_of_a_layer_are_as_diffusers_has_them(options, shape):
    network, x, tokens = Network({}, options), states(*shape), states(3, 4, TOKENS, seed=1)
    layer = network.layers[2]
    with torch.no_grad():
        wanted = AttnProcessor2_0()(layer, x, tokens)
        result = ProjectedCrossAttention(2 * WIDTH)(layer, x, keys_and_values(network, tokens))
    torch.testing.assert_close(result, wanted, rtol=0, atol=1e-12)


def test_a_mask_is_refused():
    network = Network({})
    with pytest.raises(ValueError, match="no attention mask"):
        ProjectedCrossAttention(0)(network.layers[0], states(1, 2, WIDTH), states(1, 2, 2 * WIDTH), torch.ones(1, 2))


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return tiny.pipeline(tmp_path_factory.mktemp("tiny"), strength=0.5)


def test_processors_come_back_and_joint_attention_stays(pipe):
    before, copied = dict(pipe.unet.attn_processors), dict(pipe.control.unet_copy.attn_processors)
    with pytest.raises(KeyError), joint_self_attention(pipe.unet, 2):
        with ReadingProjected(pipe.unet, pipe.control.unet_copy):
            kinds = {name: type(p) for name, p in pipe.unet.attn_processors.items()}
            assert {kinds[name] for name in kinds if "attn1" in name} == {JointSelfAttention}
            assert {kinds[name] for name in kinds if "attn2" in name} == {ProjectedCrossAttention}
            kinds = {name: type(p) for name, p in pipe.control.unet_copy.attn_processors.items()}
            assert {kinds[name] for name in kinds if "attn1" in name} == {AttnProcessor2_0}
            raise KeyError
    assert pipe.unet.attn_processors == before and pipe.control.unet_copy.attn_processors == copied


def test_networks_say_the_same_of_keys_and_values_as_of_tokens(pipe):
    """Copy and UNet on image tokens and text as they are, and on what was made of both before."""
    run = Run(pipe, (32, 64), Settings(prompt="red"), None)
    generator = torch.Generator().manual_seed(0)
    some = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    sample, gray, reference = some(2, 4, 4, 8), some(2, 4, 4, 8), some(2, 4, 4, 8)
    text, tokens = some(4, 8, tiny.WIDTH), some(2, 16, tiny.WIDTH)
    with torch.no_grad():
        hint = pipe.control.hint(gray, reference, reference)
        wanted = run.denoiser.predict(sample, torch.tensor(500), text, gray, hint, tokens)
        words, read = keys_and_values(pipe.unet, text), pipe.control.keys_and_values(tokens)
        with ReadingProjected(pipe.unet, pipe.control.unet_copy):
            result = run.denoiser.predict(sample, torch.tensor(500), words, gray, hint, read, projected=True)
    torch.testing.assert_close(result, wanted, rtol=0, atol=1e-5)
    assert wanted.std() > 0.1


def test_an_interrupt_on_the_way_in_leaves_no_network_changed(pipe, monkeypatch):
    before, calls, usually = dict(pipe.unet.attn_processors), [], Attention.set_processor

    def interrupted(layer, processor):
        calls.append(layer)
        if len(calls) == 2:
            raise KeyboardInterrupt
        usually(layer, processor)

    monkeypatch.setattr(Attention, "set_processor", interrupted)
    with pytest.raises(KeyboardInterrupt), ReadingProjected(pipe.unet):
        pass
    assert pipe.unet.attn_processors == before and len(calls) > 2


def test_between_steps_networks_are_as_their_owner_knows_them(pipe):
    """A callback may ask the UNet about text of its own."""
    clip, options = tiny.clip(3), {"prompt": "red", "num_keyframes": 2, "num_inference_steps": 2}
    usual, said = color(pipe, clip, **options).frames, []

    def callback(given, step, timestep, state):
        latents = state["latents"]
        said.append(given.unet(latents, timestep, torch.zeros(len(latents), 8, tiny.WIDTH)).sample)

    assert np.array_equal(color(pipe, clip, **options, callback_on_step_end=callback).frames, usual)
    assert len(said) == 2 + 1  # two steps of the keyframes, and half as many of the frame that has references


@pytest.mark.parametrize("changed", ["encoder_hid_proj", "add_embedding", "_diffusers_hook"])
def test_networks_that_want_the_tokens_get_them(pipe, monkeypatch, changed):
    assert attention.usable(pipe.unet)
    monkeypatch.setattr(pipe.unet, changed, torch.nn.Identity(), raising=False)
    assert not attention.usable(pipe.unet)


class Watching(AttnProcessor2_0):
    """A user's own processor, which wants the tokens."""

    def __init__(self):
        self.widths = set()

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, *given, **named):
        if encoder_hidden_states is not None:
            self.widths.add(encoder_hidden_states.shape[-1])
        return super().__call__(attn, hidden_states, encoder_hidden_states, *given, **named)


@pytest.mark.parametrize("of", ["unet", "copy"])
def test_a_processor_of_the_users_own_gets_the_tokens(pipe, of):
    clip, options = tiny.clip(3), {"prompt": "red", "num_keyframes": 2, "num_inference_steps": 2}
    usual = color(pipe, clip, **options).frames
    network = pipe.unet if of == "unet" else pipe.control.unet_copy
    watching, before = Watching(), dict(network.attn_processors)
    network.set_attn_processor(watching)
    try:
        assert not attention.usable(network)
        assert np.abs(color(pipe, clip, **options).frames.astype(int) - usual).max() <= 1
    finally:
        network.set_attn_processor(before)
    assert watching.widths == {network.config.cross_attention_dim}
