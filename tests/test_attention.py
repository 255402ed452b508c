"""Joint self-attention (Eq. 8) against Eq. 8 in plain NumPy and against diffusers' own processor."""

import numpy as np
import pytest
import tiny
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from gcgkit.attention import JointSelfAttention, joint_self_attention
from gcgkit.lessons.flops import flop_per_frame

WIDTH, HEADS = 12, 3


def attention(seed: int = 0, **options) -> Attention:
    torch.manual_seed(seed)
    return Attention(WIDTH, heads=HEADS, dim_head=WIDTH // HEADS, bias=True, **options).double().eval()


def states(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear(layer: torch.nn.Linear, x: np.ndarray) -> np.ndarray:
    return x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()


def equation_8(layer: Attention, x: np.ndarray, num_frames: int) -> np.ndarray:
    """Softmax(Q_i K^T / sqrt(d)) V with K and V of all frames of a group, frame by frame, head by head."""
    result = np.empty_like(x)
    for start in range(0, len(x), num_frames):
        group = x[start : start + num_frames]
        everything = np.concatenate(list(group))  # (m*L, D)
        keys, values = linear(layer.to_k, everything), linear(layer.to_v, everything)
        for offset, frame in enumerate(group):
            queries, heads = linear(layer.to_q, frame), []
            for part in np.split(np.arange(WIDTH), HEADS):
                logits = queries[:, part] @ keys[:, part].T / np.sqrt(len(part))
                weights = np.exp(logits - logits.max(axis=1, keepdims=True))
                heads.append(weights / weights.sum(axis=1, keepdims=True) @ values[:, part])
            result[start + offset] = linear(layer.to_out[0], np.concatenate(heads, axis=1))
    return result


@pytest.mark.parametrize(("groups", "num_frames"), [(1, 1), (1, 3), (2, 2), (3, 4)])
def test_equals_equation_8(groups, num_frames):
    layer, x = attention(), states(groups * num_frames, 5, WIDTH)
    with torch.no_grad():
        result = JointSelfAttention(num_frames)(layer, x)
    np.testing.assert_allclose(result.numpy(), equation_8(layer, x.numpy(), num_frames), atol=1e-12)


def test_other_frames_matter():
    layer, x = attention(), states(2, 5, WIDTH)
    changed = x.clone()
    changed[1] += 1
    with torch.no_grad():
        before, after = JointSelfAttention(2)(layer, x)[0], JointSelfAttention(2)(layer, changed)[0]
    assert (before - after).abs().max() > 1e-3


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"norm_num_groups": 4},
        {"residual_connection": True, "rescale_output_factor": 2.0},
        {"qk_norm": "layer_norm"},
    ],
)
@pytest.mark.parametrize("shape", [(3, 6, WIDTH), (3, WIDTH, 2, 3)])
def test_one_frame_is_the_plain_processor_exactly(options, shape):
    layer, x = attention(**options), states(*shape)
    with torch.no_grad():
        assert torch.equal(JointSelfAttention(1)(layer, x), AttnProcessor2_0()(layer, x))


def test_cross_attention_is_left_alone():
    layer, x, text = attention(cross_attention_dim=7), states(4, 6, WIDTH), states(4, 5, 7, seed=1)
    with torch.no_grad():
        assert torch.equal(JointSelfAttention(2)(layer, x, text), AttnProcessor2_0()(layer, x, text))


@settings(max_examples=25, deadline=None)
@given(data=st.data(), num_frames=st.integers(2, 5), groups=st.integers(1, 2))
def test_order_of_frames_only_permutes_the_result(data, num_frames, groups):
    order = data.draw(st.permutations(range(num_frames)))
    order = [group * num_frames + frame for group in range(groups) for frame in order]
    layer, x = attention(), states(groups * num_frames, 4, WIDTH, seed=num_frames)
    with torch.no_grad():
        result, permuted = JointSelfAttention(num_frames)(layer, x), JointSelfAttention(num_frames)(layer, x[order])
    torch.testing.assert_close(permuted, result[order])


class LargestResult(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that any operation returns."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return result


def test_never_builds_the_full_matrix():
    num_frames, tokens = 4, 256
    layer, x = attention().float(), states(num_frames, tokens, WIDTH).float()
    with torch.no_grad(), LargestResult() as noted:
        JointSelfAttention(num_frames)(layer, x)
    assert num_frames * tokens * WIDTH <= noted.largest < (num_frames * tokens) ** 2 / 16


@pytest.mark.parametrize("num_frames", [0, -1, 1.5, True, "2"])
def test_bad_num_frames(num_frames):
    with pytest.raises(ValueError, match="num_frames"):
        JointSelfAttention(num_frames)


def test_bad_batch_and_mask():
    layer = attention()
    with pytest.raises(ValueError, match="batch of 3 is no multiple of num_frames=2"):
        JointSelfAttention(2)(layer, states(3, 4, WIDTH))
    with pytest.raises(ValueError, match="mask"):
        JointSelfAttention(2)(layer, states(2, 4, WIDTH), attention_mask=torch.zeros(2, 1, 4))


def test_context_sets_self_attention_only_and_puts_it_back():
    unet = tiny.unet()
    before = dict(unet.attn_processors)
    with joint_self_attention(unet, 2):
        within = dict(unet.attn_processors)
    replaced = {name for name in within if within[name] is not before[name]}
    assert replaced == {name for name in before if ".attn1." in name} != set()
    assert all(isinstance(within[name], JointSelfAttention) for name in replaced)
    assert unet.attn_processors == before
    with pytest.raises(RuntimeError, match="boom"), joint_self_attention(unet, 2):
        raise RuntimeError("boom")
    assert unet.attn_processors == before


def test_joint_unet_links_frames_and_of_equal_frames_changes_nothing():
    unet, text = tiny.unet(), torch.randn(1, 3, tiny.WIDTH, generator=torch.Generator().manual_seed(0))
    x = torch.randn(1, 4, 4, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        alone = unet(x, 10, text).sample
        with joint_self_attention(unet, 3):
            equal = unet(x.expand(3, -1, -1, -1), 10, text.expand(3, -1, -1)).sample
            mixed = unet(torch.cat([x, -x, x]), 10, text.expand(3, -1, -1)).sample
    torch.testing.assert_close(equal, alone.expand(3, -1, -1, -1), atol=1e-5, rtol=1e-4)
    assert (mixed[0] - alone[0]).abs().max() > 1e-3


def counted_by_hand(unet, latents, words) -> dict[str, float]:
    """FLOP of a pass over one frame, from the sizes that layers see: all matrices, and both kinds of attention."""
    total = {"products": 0.0, "self": 0.0, "cross": 0.0}

    def convolution(layer, inputs, output):
        reads = layer.in_channels // layer.groups * layer.kernel_size[0] * layer.kernel_size[1]
        total["products"] += 2 * reads * output.numel()

    def matrix(layer, inputs, output):
        total["products"] += 2 * layer.in_features * output.numel()

    def look(layer, inputs, options, output):
        queries, keys = inputs[0].shape[1], inputs[0].shape[1] if not layer.is_cross_attention else words.shape[1]
        kind = "cross" if layer.is_cross_attention else "self"
        total[kind] += 4 * queries * keys * layer.inner_dim  # QK^T, and the weights times V

    hooks = []
    for layer in unet.modules():
        if isinstance(layer, torch.nn.Conv2d):
            hooks.append(layer.register_forward_hook(convolution))
        elif isinstance(layer, torch.nn.Linear):
            hooks.append(layer.register_forward_hook(matrix))
        elif isinstance(layer, Attention):
            hooks.append(layer.register_forward_hook(look, with_kwargs=True))
    with torch.no_grad():
        unet(latents[:1], 0, words)
    for hook in hooks:
        hook.remove()
    return total


@pytest.mark.parametrize("count", [1, 2, 3])
def test_flop_per_frame_is_what_layer_sizes_say(count):
    unet, words = tiny.unet(), torch.randn(1, 3, tiny.WIDTH)
    latents = torch.randn(count, 4, 4, 8)
    parts = counted_by_hand(unet, latents, words)
    assert parts["self"] > 0
    assert flop_per_frame(unet, latents, words, joint=False) == pytest.approx(sum(parts.values()))
    grown = sum(parts.values()) + (count - 1) * parts["self"]  # each frame reads the keys of all
    assert flop_per_frame(unet, latents, words, joint=True) == pytest.approx(grown)
