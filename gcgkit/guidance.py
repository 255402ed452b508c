"""Gated Color Guidance: colour propagated by attention, let through by a gate (§3.2, Eq. 1 to 5).

Two attentions read the same reference. ``ColorGuidanceAttention`` (CGA, Eq. 1, 2) fetches colour latents from the
reference's tokens that resemble each gray token, ``ColorDistributionGatedAttention`` (CDGA, Eq. 3, 4) a trust in
(0, 1). ``GatedColorGuidance`` mixes the gray latents and the fetched colour by that trust into the ``ColorHint``
(Eq. 5). The reference is a set of tokens: nothing depends on its size or on their order.
"""

from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput

from .utils.checks import check_choice

MODES = ("gated", "attention", "concat")
STEMS = ("conv", "none")
LOGIT_WIDTH = 8  # channels that carry given logits, one of them used; kernels like multiples of eight


@dataclass
class GuidanceOutput(BaseOutput):
    """Result of ``GatedColorGuidance``; every map is ``(B, C, h, w)``.

    Attributes:
        hint: the ColorHint, ``gray * (1 - gate) + color * gate`` (Eq. 5).
        color: the colour that CGA fetched (Eq. 2); in mode ``"concat"`` the reference's colour latents, resized.
        gate: the share of the colour that CDGA lets through, in (0, 1) (Eq. 4); ones in the modes without it.
        features: the UNet copy's input beside the gray latents: the hint, or in mode ``"concat"`` the resized gray
            and colour reference, ``(B, 2C, h, w)``.
        semantics: semantic features of the gray frames, ``(B, S, h, w)``, for a copy that reads them; see ``control``.
        color_weights, gate_weights: on request, attention weights ``(B, heads, h*w, h'*w')``; each row sums to 1
            (less what the gate's null token took).
    """

    hint: torch.Tensor
    color: torch.Tensor
    gate: torch.Tensor
    features: torch.Tensor
    semantics: torch.Tensor | None = None
    color_weights: torch.Tensor | None = None
    gate_weights: torch.Tensor | None = None


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None = None, padded: bool = True
) -> torch.Tensor:
    """Softmax(QK^T / sqrt(d)) V for values narrower than the keys, through PyTorch's fused kernel.

    ``query`` (B, heads, N, d), ``key`` (B, heads, M, d), ``value`` (B, heads, M, c) with c <= d -> (B, heads, N, c).
    The kernel that never builds the N x M matrix wants equal widths, so the values are padded and the pad cut off.
    ``scale`` stands in for 1 / sqrt(d); without ``padded`` the values stay as they are.
    """
    width = value.shape[-1]
    if padded:
        value = F.pad(value, (0, key.shape[-1] - width))  # (B, heads, M, d)
    return F.scaled_dot_product_attention(query, key, value, scale=scale)[..., :width]


def add_logits(
    query: torch.Tensor, key: torch.Tensor, logits: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add logits, which broadcast to (B, heads, M), to every query's, through one channel more that is 1 in each query.

    The fused kernel takes no mask. ``query`` (B, heads, N, d) and ``key`` (B, heads, M, d) come out d + 8 wide.
    """
    extra = (logits / scale).to(key.dtype)[..., None].expand(*key.shape[:-1], 1)  # (B, heads, M, 1)
    widen = lambda x, channel: torch.cat([x, F.pad(channel, (0, LOGIT_WIDTH - 1))], -1)  # noqa: E731
    return widen(query, torch.ones_like(query[..., :1])), widen(key, extra)


def attention_weights(query: torch.Tensor, key: torch.Tensor, scale: float | None = None) -> torch.Tensor:
    """Softmax(QK^T / sqrt(d)), built in full, for pictures: (B, heads, N, d), (B, heads, M, d) -> (B, heads, N, M)."""
    return (query @ key.transpose(-1, -2) * (scale or key.shape[-1] ** -0.5)).softmax(-1)


class _Attention(nn.Module):
    """Linear queries and keys in ``heads`` parts of ``hidden_dim / heads``; values in latent channels (Eq. 1, 3)."""

    def __init__(self, features: int, hidden_dim: int, heads: int):
        super().__init__()
        self.heads, self.padded_values = heads, True
        self.to_q = nn.Linear(features, hidden_dim, bias=False)
        self.to_k = nn.Linear(features, hidden_dim, bias=False)

    def split(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, N, heads*c) -> (B, heads, N, c)


class ColorGuidanceAttention(_Attention):
    """CGA: colour latents of the reference, gathered where its gray tokens resemble ours (Eq. 1, 2).

    ``forward(gray, ref_gray, ref_color)``: features (B, N, f) and (B, M, f), colour tokens (B, M, C) -> (B, N, C).
    ``ref_weights`` (B, M) says as how many tokens each reference token counts; None for one each (the paper). The value
    map has no bias and starts as the identity, so that at first a hint is a mean of true latents and a zero reference
    yields zero, always. Several heads are averaged.
    """

    def __init__(self, latent_channels: int, features: int, hidden_dim: int, heads: int = 1):
        super().__init__(features, hidden_dim, heads)
        self.to_v = nn.Linear(latent_channels, heads * latent_channels, bias=False)
        with torch.no_grad():
            self.to_v.weight.copy_(torch.eye(latent_channels).repeat(heads, 1))

    def _queries_keys(self, gray, ref_gray, ref_weights) -> tuple[torch.Tensor, torch.Tensor, float | None]:
        q, k = self.split(self.to_q(gray)), self.split(self.to_k(ref_gray))
        if ref_weights is None:
            return q, k, None
        scale = q.shape[-1] ** -0.5
        return *add_logits(q, k, ref_weights.log()[:, None], scale), scale  # w tokens as one: w exp(l) = exp(l + log w)

    def forward(
        self,
        gray: torch.Tensor,
        ref_gray: torch.Tensor,
        ref_color: torch.Tensor,
        ref_weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        q, k, scale = self._queries_keys(gray, ref_gray, ref_weights)
        v = self.split(self.to_v(ref_color))
        return attend(q, k, v, scale, self.padded_values).mean(1)  # (B, heads, N, C) -> (B, N, C)

    def weights(self, gray: torch.Tensor, ref_gray: torch.Tensor, ref_weights: torch.Tensor | None = None):
        """Attention weights (B, heads, N, M)."""
        return attention_weights(*self._queries_keys(gray, ref_gray, ref_weights))


class ColorDistributionGatedAttention(_Attention):
    """CDGA: a gate in (0, 1) per token and latent channel, gathered from the gray reference (Eq. 3, 4).

    ``forward(gray, ref_gray)``: token features (B, N, f), (B, M, f) -> gate (B, N, C).

    Args:
        bias: give the value map a bias, started so that the gate is almost closed. Without one (literal) a zero
            reference leaves the gate at sigma(0) = 0.5 instead of the paper's "about g".
        null_token: add one token outside the reference, with a learned logit, the same for every query, and a learned
            value. A softmax over reference tokens alone averages their values even where none matches; with this
            token, a query that matches nothing better than the learned logit can close the gate.
    """

    START = -3.0  # sigma(-3) = 0.047
    NULL_LOGIT = 12.0  # a little under a token's logit with its like at the start: (gain of W)^2 sqrt(hidden_dim) = 16

    def __init__(
        self,
        latent_channels: int,
        features: int,
        hidden_dim: int,
        heads: int = 1,
        bias: bool = True,
        null_token: bool = False,
    ):
        super().__init__(features, hidden_dim, heads)
        self.to_v = nn.Linear(features, heads * latent_channels, bias=bias)
        if bias:
            nn.init.normal_(self.to_v.weight, std=0.02)
            nn.init.constant_(self.to_v.bias, self.START)
        self.null_logit = self.null_value = None
        if null_token:
            self.null_logit = nn.Parameter(torch.tensor(self.NULL_LOGIT))
            self.null_value = nn.Parameter(torch.full((heads * latent_channels,), 2 * self.START))

    def _queries_keys(self, gray: torch.Tensor, ref_gray: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
        """Queries (B, heads, N, d), keys (B, heads, M, d) and the scale; with the null token M + 1 and d + 8."""
        q, k = self.split(self.to_q(gray)), self.split(self.to_k(ref_gray))
        scale = q.shape[-1] ** -0.5
        if self.null_logit is not None:
            logits = F.pad(self.null_logit[None], (k.shape[2], 0))  # (M + 1,), 0 for all but the null token
            q, k = add_logits(q, F.pad(k, (0, 0, 0, 1)), logits, scale)
        return q, k, scale

    def forward(self, gray: torch.Tensor, ref_gray: torch.Tensor) -> torch.Tensor:
        q, k, scale = self._queries_keys(gray, ref_gray)
        v = self.to_v(ref_gray)  # (B, M, heads*C)
        if self.null_value is not None:
            v = torch.cat([v, self.null_value.to(v.dtype).expand(v.shape[0], 1, -1)], 1)  # (B, M + 1, heads*C)
        gathered = attend(q, k, self.split(v), scale, self.padded_values)  # (B, heads, N, C)
        return torch.sigmoid(gathered.mean(1))  # (B, N, C)

    def weights(self, gray: torch.Tensor, ref_gray: torch.Tensor) -> torch.Tensor:
        """Attention weights on the reference (B, heads, N, M), without the null token's share."""
        return attention_weights(*self._queries_keys(gray, ref_gray))[..., : ref_gray.shape[1]]


class ConvStem(nn.Module):
    """Give each token its neighbourhood: ``(B, C, h, w)`` -> ``(B, hidden_dim, h, w)``, each of norm sqrt(hidden_dim).

    One 3x3 convolution and a residual one per dilation: 1, 2, 4 see 17 latents (136 pixels) on a side.
    """

    def __init__(
        self, latent_channels: int, hidden_dim: int, dilations: tuple[int, ...] = (1, 2, 4), semantic_width: int = 0
    ):
        super().__init__()
        self.first = nn.Conv2d(latent_channels, hidden_dim, 3, padding=1)
        self.rest = nn.ModuleList(nn.Conv2d(hidden_dim, hidden_dim, 3, padding=d, dilation=d) for d in dilations)
        self.meaning = nn.Conv2d(semantic_width, hidden_dim, 1, bias=False) if semantic_width else None
        if self.meaning is not None:
            nn.init.zeros_(self.meaning.weight)  # at first a token is its texture alone

    def forward(self, latents: torch.Tensor, semantics: torch.Tensor | None = None) -> torch.Tensor:
        x = self.first(latents)
        if self.meaning is not None and semantics is not None:
            x = x + self.meaning(semantics)
        for conv in self.rest:
            x = x + conv(F.silu(x))
        return F.layer_norm(x.movedim(1, -1), x.shape[1:2]).movedim(-1, 1)


class GatedColorGuidance(ModelMixin, ConfigMixin):
    """GCG: gray latents and a reference in, ColorHint out (§3.2, Eq. 1 to 5).

    Args:
        latent_channels: channels C of the latents.
        hidden_dim: width of queries and keys, all heads together; a multiple of ``heads``, and at least C per head.
        mode: ``"gated"`` (the paper), ``"attention"`` (no CDGA, Ours**: the hint is CGA's colour), ``"concat"``
            (neither, Ours*: the reference, resized, takes the hint's place).
        stem: ``"conv"`` lets tokens see their neighbourhood before the linear maps; ``"none"`` is Eq. 1 and 3 word for
            word, on single latents, whose logits have rank C at most.
        heads: attention heads.
        gate_bias: bias of the gate's value map, see ``ColorDistributionGatedAttention``.
        null_token: a learned token outside the reference for the gate, see there.
        dilations: of the stem's convolutions.
        semantic_width: channels of the semantic features that the stem reads beside the latents, see ``semantics``;
            0 (the paper) for none.
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 4,
        hidden_dim: int = 64,
        mode: str = "gated",
        stem: str = "conv",
        heads: int = 1,
        gate_bias: bool = True,
        null_token: bool = False,
        dilations: tuple[int, ...] = (1, 2, 4),
        semantic_width: int = 0,
    ):
        super().__init__()
        check_choice("mode", mode, MODES)
        check_choice("stem", stem, STEMS)
        if hidden_dim % heads or hidden_dim // heads < latent_channels:
            raise ValueError(f"{hidden_dim=} must be a multiple of {heads=}, {latent_channels=} times or more")
        self.token_stem = self.cga = self.cdga = None
        features = latent_channels
        if mode != "concat":
            if stem == "conv":
                self.token_stem = ConvStem(latent_channels, hidden_dim, tuple(dilations), semantic_width)
                features = hidden_dim
            self.cga = ColorGuidanceAttention(latent_channels, features, hidden_dim, heads)
        if mode == "gated":
            self.cdga = ColorDistributionGatedAttention(
                latent_channels, features, hidden_dim, heads, gate_bias, null_token
            )
        if self.token_stem is not None:
            # Queries and keys start as one map, so that a token first attends to its like.
            for attention in filter(None, (self.cga, self.cdga)):
                nn.init.orthogonal_(attention.to_q.weight, gain=2**0.5)
                attention.to_k.load_state_dict(attention.to_q.state_dict())

    @property
    def feature_channels(self) -> int:
        """Channels of ``GuidanceOutput.features``."""
        return self.config.latent_channels * (2 if self.config.mode == "concat" else 1)

    def tokens(self, latents: torch.Tensor, semantics: torch.Tensor | None = None) -> torch.Tensor:
        """Features for queries and keys, the stem's output or single latents: (B, C, h, w) -> (B, h*w, f).

        semantics: of the same frames, ``(B, semantic_width, h, w)``, for a stem that reads them.
        """
        features = latents if self.token_stem is None else self.token_stem(latents, semantics)
        return features.flatten(2).transpose(1, 2)  # (B, f, h, w) -> (B, h*w, f)

    def forward(
        self,
        gray: torch.Tensor,
        ref_gray: torch.Tensor,
        ref_color: torch.Tensor,
        return_weights: bool = False,
        *,
        semantics: torch.Tensor | None = None,
        ref_semantics: torch.Tensor | None = None,
        ref_weights: torch.Tensor | None = None,
    ) -> GuidanceOutput:
        """Make the ColorHint of gray latents under a reference.

        ``gray`` (B, C, h, w); ``ref_gray`` and ``ref_color`` (B, C, h', w') of any one size, zeros for the reference
        mask. ``return_weights`` adds the attention weights. ``semantics`` (B, S, h, w) and ``ref_semantics``
        (B, S, h', w') tell a stem that reads them what the frames show; None leaves that out. ``ref_weights``
        (B, 1, h', w') says as how many tokens each reference token counts in CGA; None for one each (the paper).
        Raises ValueError for shapes that do not fit.
        """
        _check(gray, ref_gray, ref_color, self.config.latent_channels)
        size = gray.shape[-2:]
        if self.config.mode == "concat":
            way = {"mode": "area"} if ref_gray.shape[-1] > size[1] else {"mode": "bilinear", "align_corners": False}
            features = torch.cat([ref_gray, ref_color], 1)  # (B, 2C, h', w')
            if features.shape[-2:] != size:
                features = F.interpolate(features, size=size, **way)  # (B, 2C, h, w)
            color = features[:, gray.shape[1] :]
            return GuidanceOutput(hint=color, color=color, gate=torch.ones_like(gray), features=features)

        tokens, ref_tokens = self.tokens(gray, semantics), self.tokens(ref_gray, ref_semantics)
        to_map = lambda x: x.transpose(1, 2).unflatten(2, size)  # noqa: E731  (B, h*w, C) -> (B, C, h, w)
        weights = None if ref_weights is None else ref_weights.flatten(1)  # (B, M)
        color = to_map(self.cga(tokens, ref_tokens, ref_color.flatten(2).transpose(1, 2), weights))  # Eq. 2
        gate = torch.ones_like(color) if self.cdga is None else to_map(self.cdga(tokens, ref_tokens))  # Eq. 4
        hint = gray * (1 - gate) + color * gate  # Eq. 5
        output = GuidanceOutput(hint=hint, color=color, gate=gate, features=hint)
        if return_weights:
            output.color_weights = self.cga.weights(tokens, ref_tokens, weights)
            output.gate_weights = None if self.cdga is None else self.cdga.weights(tokens, ref_tokens)
        return output


def toward_hint(
    scheduler, output: torch.Tensor, sample: torch.Tensor, timestep, hint: GuidanceOutput, weight: float
) -> torch.Tensor:
    """Change the UNet's output so that its clean latents x become ``x + weight * gate * (color - x)``.

    The paper has no such step: its weight is zero. As blended latent diffusion (Avrahami et al. 2023) keeps the known
    part of a picture under a mask, so the gate keeps the colour that it trusts, and the UNet need not copy it.
    ``output`` and ``sample`` (B, C, h, w), the UNet's input as ``scheduler.scale_model_input`` scales it, ``hint`` of
    the same frames; ``timestep`` is one of the scheduler's, which also says what the output stands for. Weight 0 leaves
    it as it is; at weight 1 an open gate leaves nothing of it. Raises ValueError for another prediction type.
    """
    share = scheduler.alphas_cumprod[round(float(timestep))]  # still a tensor: its value would have to come from a GPU
    signal, noise = share.sqrt(), (1 - share).sqrt()
    kind = scheduler.config.prediction_type
    if kind == "sample":
        clean, per_output = output, 1.0
    elif kind == "epsilon":  # sample = signal * x + noise * epsilon
        clean, per_output = (sample - noise * output) / signal, -signal / noise
    elif kind == "v_prediction":  # v = signal * epsilon - noise * x
        clean, per_output = signal * sample - noise * output, -1 / noise
    else:
        raise ValueError(f"the scheduler's prediction_type is {kind!r}; none of epsilon, v_prediction and sample.")
    return output + per_output * weight * hint.gate * (hint.color - clean)


def _check(gray: torch.Tensor, ref_gray: torch.Tensor, ref_color: torch.Tensor, channels: int) -> None:
    for name, latents in (("gray", gray), ("ref_gray", ref_gray), ("ref_color", ref_color)):
        if latents.ndim != 4 or latents.shape[1] != channels:
            raise ValueError(f"{name} must be latents (B, {channels}, h, w), not {tuple(latents.shape)}")
        if latents.shape[0] != gray.shape[0]:
            raise ValueError(f"{name} has a batch of {latents.shape[0]} where gray has {gray.shape[0]}")
    if ref_gray.shape != ref_color.shape:
        shapes = f"{tuple(ref_gray.shape)} and {tuple(ref_color.shape)}"
        raise ValueError(f"ref_gray and ref_color must show the same frame, but have the shapes {shapes}")
