"""Gated colour guidance against Eq. 1 to 5 written out in NumPy, and the properties that the paper states."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gcgkit.guidance import GatedColorGuidance, attend, attention_weights

C = 4


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def tokens(latents: torch.Tensor) -> np.ndarray:
    """(C, h, w) -> (h*w, C), pixel by pixel."""
    channels, height, width = latents.shape
    return np.array([latents[:, i, j].tolist() for i in range(height) for j in range(width)])


def weights_of(module) -> dict[str, np.ndarray]:
    return {name: value.detach().double().numpy() for name, value in module.state_dict().items()}


def parts(x: np.ndarray, heads: int) -> list[np.ndarray]:
    return np.split(x, heads, axis=1)


def literal(model: GatedColorGuidance, gray, ref_gray, ref_color):
    """Eq. 1 to 5 for one sample, head by head: colour, gate, hint, attention weights, as (h*w, C) or (heads, N, M)."""
    stem = model.token_stem or torch.nn.Identity()
    with torch.no_grad():
        x, y = tokens(stem(gray)[0]), tokens(stem(ref_gray)[0])
    g, z, heads = tokens(gray[0]), tokens(ref_color[0]), model.config.heads

    cga = weights_of(model.cga)
    queries, keys, values = x @ cga["to_q.weight"].T, y @ cga["to_k.weight"].T, z @ cga["to_v.weight"].T  # Eq. 1
    color, color_weights = [], []
    for q, k, v in zip(parts(queries, heads), parts(keys, heads), parts(values, heads), strict=True):
        color_weights.append(softmax(q @ k.T / np.sqrt(k.shape[1])))
        color.append(color_weights[-1] @ v)  # Eq. 2
    color = np.mean(color, 0)
    if model.cdga is None:
        return color, np.ones_like(color), color, np.stack(color_weights), None

    cdga = weights_of(model.cdga)
    queries, keys, values = x @ cdga["to_q.weight"].T, y @ cdga["to_k.weight"].T, y @ cdga["to_v.weight"].T  # Eq. 3
    values = values + cdga.get("to_v.bias", 0.0)
    null = "null_logit" in cdga
    if null:
        values = np.vstack([values, cdga["null_value"]])
    logits, gate_weights = [], []
    for q, k, v in zip(parts(queries, heads), parts(keys, heads), parts(values, heads), strict=True):
        scores = q @ k.T / np.sqrt(k.shape[1])
        if null:  # one more column, the same for every query
            scores = np.hstack([scores, np.full((len(scores), 1), cdga["null_logit"])])
        full = softmax(scores)
        gate_weights.append(full[:, : len(y)])
        logits.append(full @ v)
    gate = 1 / (1 + np.exp(-np.mean(logits, 0)))  # Eq. 4
    return color, gate, g * (1 - gate) + color * gate, np.stack(color_weights), np.stack(gate_weights)  # Eq. 5


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(seed: int = 0, spread: float = 0.4, **config) -> GatedColorGuidance:
    """A model in float64 with every weight moved, so that no special starting value hides a mistake."""
    torch.manual_seed(seed)
    model = GatedColorGuidance(**{"latent_channels": C, "hidden_dim": 24, **config}).double()
    with torch.no_grad():
        for i, weights in enumerate(model.parameters()):
            weights.add_(spread * random(*weights.shape, seed=100 + i))
    return model


# --- Eq. 1 to 5 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("null_token", [False, True])
@pytest.mark.parametrize("gate_bias", [False, True])
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("stem", ["none", "conv"])
def test_equations_1_to_5(stem, heads, gate_bias, null_token):
    model = make(stem=stem, heads=heads, gate_bias=gate_bias, null_token=null_token)
    gray, ref_gray, ref_color = random(2, C, 3, 5), random(2, C, 4, 2, seed=1), random(2, C, 4, 2, seed=2)
    with torch.no_grad():
        out = model(gray, ref_gray, ref_color, return_weights=True)
    assert torch.equal(out.hint, gray * (1 - out.gate) + out.color * out.gate)
    assert torch.equal(out.features, out.hint)
    assert ((out.gate > 0) & (out.gate < 1)).all()
    for i in range(2):
        wanted = literal(model, gray[i : i + 1], ref_gray[i : i + 1], ref_color[i : i + 1])
        for map_, truth in zip((out.color, out.gate, out.hint), wanted[:3], strict=True):
            np.testing.assert_allclose(tokens(map_[i]), truth, atol=1e-10)
        np.testing.assert_allclose(out.color_weights[i].numpy(), wanted[3], atol=1e-10)
        np.testing.assert_allclose(out.gate_weights[i].numpy(), wanted[4], atol=1e-10)


@given(
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    reference=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    seed=st.integers(0, 1000),
)
def test_literal_form_takes_the_reference_as_a_set(size, reference, seed):
    torch.manual_seed(seed)
    model = GatedColorGuidance(latent_channels=C, hidden_dim=16, stem="none")
    gray = random(1, C, *size, seed=seed).float()
    ref_gray, ref_color = random(2, 1, C, *reference, seed=seed + 1).float()
    order = torch.randperm(reference[0] * reference[1], generator=torch.Generator().manual_seed(seed))
    # shuffled, and laid out as a single row: neither order nor form may count
    shuffled = [x.flatten(2)[..., order].unsqueeze(2) for x in (ref_gray, ref_color)]
    with torch.no_grad():
        plain, other = model(gray, ref_gray, ref_color), model(gray, *shuffled)
    assert plain.hint.shape == plain.color.shape == plain.gate.shape == gray.shape
    for name in ("hint", "color", "gate"):
        torch.testing.assert_close(getattr(plain, name), getattr(other, name), atol=1e-5, rtol=0)


def test_colors_belong_to_their_gray_tokens():
    """Shuffling the colours alone, or the gray tokens alone, does change the hint."""
    model, gray = make(stem="none"), random(1, C, 3, 4)
    ref_gray, ref_color = random(2, 1, C, 4, 5, seed=1)
    one, two = model(gray, ref_gray, ref_color.flip(2, 3)), model(gray, ref_gray.flip(2, 3), ref_color)
    plain = model(gray, ref_gray, ref_color)
    assert (one.hint - plain.hint).abs().max() > 1e-3 and (two.hint - plain.hint).abs().max() > 1e-3


@pytest.mark.parametrize("reference", [(1, 1), (3, 5), (6, 10), (2, 9)])
@pytest.mark.parametrize("mode", ["gated", "attention", "concat"])
def test_any_reference_size(mode, reference):
    model, gray = make(mode=mode), random(2, C, 3, 5)
    out = model(gray, *random(2, 2, C, *reference, seed=1))
    assert out.hint.shape == out.color.shape == out.gate.shape == (2, C, 3, 5)
    assert out.features.shape == (2, model.feature_channels, 3, 5)
    assert torch.isfinite(out.features).all()


# --- the reference mask ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("null_token", [False, True])
@pytest.mark.parametrize("stem", ["none", "conv"])
def test_zero_reference_starts_with_a_closed_gate(stem, null_token):
    torch.manual_seed(0)
    model = GatedColorGuidance(stem=stem, null_token=null_token)
    gray, zero = random(2, C, 4, 6).float(), torch.zeros(2, C, 4, 6)
    out = model(gray, zero, zero)
    assert (out.color == 0).all()
    assert (out.gate < 0.1).all()
    torch.testing.assert_close(out.hint, gray, atol=0.1 * gray.abs().max().item(), rtol=0)  # "about g"


def test_zero_reference_leaves_the_literal_gate_half_open():
    model = GatedColorGuidance(stem="none", gate_bias=False, null_token=False)
    gray, zero = random(2, C, 4, 6).float(), torch.zeros(2, C, 8, 12)
    out = model(gray, zero, zero)
    assert (out.color == 0).all() and (out.gate == 0.5).all()
    assert torch.equal(out.hint, gray / 2)


def test_zero_reference_has_no_color_after_training_either():
    zero = torch.zeros(1, C, 2, 2, dtype=torch.float64)
    assert (make()(random(1, C, 3, 3), zero, zero).color == 0).all()


# --- attention weights -----------------------------------------------------------------------------------------------


def test_weights_sum_to_one_and_give_the_color():
    model = make(heads=2, null_token=True)
    gray, ref_gray, ref_color = random(1, C, 3, 4), random(1, C, 2, 5, seed=1), random(1, C, 2, 5, seed=2)
    out = model(gray, ref_gray, ref_color, return_weights=True)
    assert out.color_weights.shape == out.gate_weights.shape == (1, 2, 12, 10)
    torch.testing.assert_close(out.color_weights.sum(-1), torch.ones(1, 2, 12, dtype=torch.float64))
    share = out.gate_weights.sum(-1)  # the null token has the rest
    assert ((share > 0) & (share < 1)).all()
    values = ref_color.flatten(2).transpose(1, 2) @ model.cga.to_v.weight.T  # (1, 10, 2*C)
    per_head = torch.stack([out.color_weights[:, i] @ values[..., i * C : (i + 1) * C] for i in range(2)])
    torch.testing.assert_close(per_head.mean(0).transpose(1, 2).view_as(out.color), out.color)


@pytest.mark.parametrize("heads", [1, 2])
def test_a_weight_counts_as_so_many_tokens(heads):
    """Repeating a token says the same as its weight, and tokens of weight 1 change nothing."""
    model = make(heads=heads, stem="none", mode="attention")
    gray, ref_gray, ref_color = random(2, 4, 3, 5), random(2, 4, 2, 4, seed=1), random(2, 4, 2, 4, seed=2)
    weights = torch.tensor([1, 1, 3, 1, 2, 1, 1, 5]).double().view(1, 1, 2, 4).expand(2, -1, -1, -1)

    def repeated(tokens):  # (2, 4, 2, 4) -> (2, 4, 1, 15)
        return tokens.flatten(2).repeat_interleave(weights[0].flatten().long(), dim=2)[:, :, None]

    found = model(gray, ref_gray, ref_color, True, ref_weights=weights)
    wanted = model(gray, repeated(ref_gray), repeated(ref_color))
    torch.testing.assert_close(found.hint, wanted.hint)
    torch.testing.assert_close(found.color_weights.sum(-1), torch.ones(2, heads, 15).double())
    plain = model(gray, ref_gray, ref_color)
    assert not torch.allclose(found.hint, plain.hint, atol=1e-2)
    same = model(gray, ref_gray, ref_color, ref_weights=torch.ones_like(weights))
    torch.testing.assert_close(same.hint, plain.hint)


def test_weights_come_on_request_only():
    model, gray = make(mode="attention"), random(1, C, 2, 2)
    out = model(gray, gray, gray)
    assert out.color_weights is None and out.gate_weights is None
    out = model(gray, gray, gray, return_weights=True)
    assert out.color_weights is not None and out.gate_weights is None


@pytest.mark.parametrize(("stem", "low"), [("none", True), ("conv", False)])
def test_rank_of_the_logits(stem, low):
    """Logits of single latents have rank C at most; what softmax takes away, a constant per row, is centred out."""
    model = make(stem=stem, hidden_dim=24, spread=0.1)
    gray, ref = random(1, C, 4, 6), random(1, C, 5, 5, seed=1)
    with torch.no_grad():
        logits = model(gray, ref, ref, return_weights=True).color_weights[0, 0].log().numpy()  # (24, 25)
    rank = np.linalg.matrix_rank(logits - logits.mean(1, keepdims=True), tol=1e-8)
    assert (rank <= C) if low else (rank > C)


@given(n=st.integers(1, 6), m=st.integers(1, 6), d=st.integers(1, 9), c=st.integers(1, 9), seed=st.integers(0, 99))
def test_padded_values_through_the_fused_kernel(n, m, d, c, seed):
    width = min(c, d)
    q, k = random(2, 3, n, d, seed=seed), random(2, 3, m, d, seed=seed + 1)
    v = random(2, 3, m, width, seed=seed + 2)
    plain = softmax(q.numpy() @ k.numpy().swapaxes(-1, -2) / np.sqrt(d))
    np.testing.assert_allclose(attention_weights(q, k).numpy(), plain, atol=1e-12)
    result = attend(q, k, v)
    assert result.shape == (2, 3, n, width)
    np.testing.assert_allclose(result.numpy(), plain @ v.numpy(), atol=1e-12)


def test_a_fresh_model_finds_equal_tokens():
    """Queries and keys start as one map: a shuffled copy of the frame gives each token the colour of its like."""
    torch.manual_seed(0)
    model = GatedColorGuidance(stem="conv", hidden_dim=64)
    gray, color = random(1, C, 6, 6).float(), random(1, C, 6, 6, seed=1).float()
    own = model(gray, gray, color, return_weights=True).color_weights[0, 0].diagonal()
    other = model(gray, random(1, C, 6, 6, seed=2).float(), color, return_weights=True).color_weights[0, 0].diagonal()
    assert own.mean() > 10 / 36 > other.mean()


# --- modes -----------------------------------------------------------------------------------------------------------


def test_attention_mode_is_cga_alone():
    model = make(mode="attention")
    gray, ref_gray, ref_color = random(1, C, 3, 5), random(1, C, 4, 2, seed=1), random(1, C, 4, 2, seed=2)
    out = model(gray, ref_gray, ref_color)
    assert torch.equal(out.hint, out.color) and (out.gate == 1).all()
    assert model.cdga is None and model.feature_channels == C
    np.testing.assert_allclose(tokens(out.color[0].detach()), literal(model, gray, ref_gray, ref_color)[0], atol=1e-10)


def test_concat_mode_is_the_reference_itself():
    model = make(mode="concat")
    gray, ref_gray, ref_color = random(1, C, 3, 5), random(1, C, 3, 5, seed=1), random(1, C, 3, 5, seed=2)
    out = model(gray, ref_gray, ref_color)
    assert list(model.parameters()) == [] and model.feature_channels == 2 * C
    assert torch.equal(out.features, torch.cat([ref_gray, ref_color], 1))
    assert torch.equal(out.hint, ref_color) and torch.equal(out.color, ref_color)


def test_concat_mode_shrinks_a_grid_by_means():
    model, gray, grid = make(mode="concat"), random(1, C, 3, 5), random(1, C, 6, 10, seed=1)
    means = grid.numpy().reshape(1, C, 3, 2, 5, 2).mean((3, 5))
    np.testing.assert_allclose(model(gray, grid, grid).color.numpy(), means, atol=1e-12)


# --- errors, saving, gradients ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"mode": "half"}, "mode"),
        ({"stem": "linear"}, "stem"),
        ({"hidden_dim": 10, "heads": 3}, "hidden_dim"),
        ({"hidden_dim": 8, "heads": 4}, "latent_channels"),
    ],
)
def test_bad_configurations(config, words):
    with pytest.raises(ValueError, match=words):
        GatedColorGuidance(**config)


@pytest.mark.parametrize(
    ("gray", "ref_gray", "ref_color", "words"),
    [
        ((1, 3, 4, 4), (1, C, 4, 4), (1, C, 4, 4), "gray must be latents"),
        ((C, 4, 4), (1, C, 4, 4), (1, C, 4, 4), "gray must be latents"),
        ((1, C, 4, 4), (1, C, 4, 4), (1, 8, 4, 4), "ref_color must be latents"),
        ((2, C, 4, 4), (1, C, 4, 4), (1, C, 4, 4), "batch"),
        ((1, C, 4, 4), (1, C, 4, 6), (1, C, 6, 4), "same frame"),
    ],
)
@pytest.mark.parametrize("mode", ["gated", "concat"])
def test_bad_shapes(mode, gray, ref_gray, ref_color, words):
    with pytest.raises(ValueError, match=words):
        make(mode=mode)(random(*gray), random(*ref_gray), random(*ref_color))


@pytest.mark.parametrize("config", [{}, {"stem": "none", "gate_bias": False}, {"null_token": True, "heads": 2}])
def test_save_and_load(tmp_path, config):
    torch.manual_seed(0)
    model = GatedColorGuidance(hidden_dim=16, dilations=(1, 3), **config)
    model.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]
    loaded = GatedColorGuidance.from_pretrained(tmp_path)
    assert {k: v for k, v in loaded.config.items() if k[0] != "_"}.items() >= config.items()
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    latents = random(1, C, 3, 4).float()
    torch.testing.assert_close(loaded(latents, latents, latents).hint, model(latents, latents, latents).hint)


@pytest.mark.parametrize("null_token", [False, True])
@pytest.mark.parametrize("stem", ["none", "conv"])
def test_gradients_reach_every_parameter(stem, null_token):
    torch.manual_seed(0)
    model = GatedColorGuidance(hidden_dim=16, stem=stem, null_token=null_token)
    out = model(random(1, C, 3, 4).float(), *random(2, 1, C, 3, 4, seed=1).float())
    out.hint.square().sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert without == []
