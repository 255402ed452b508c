"""Joint self-attention over a batch of frames (§3.3, Eq. 8), as a diffusers attention processor.

Eq. 7 lets each frame's queries read its own keys and values; Eq. 8 lets them read those of every frame in the group.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttnProcessor2_0

from .utils.checks import is_whole


def _to_tokens(attn, hidden_states: torch.Tensor, temb: torch.Tensor | None) -> torch.Tensor:
    """Normalise a layer's input for its projections: ``(B, L, D)`` or ``(B, D, h, w)`` -> ``(B, L, D)``."""
    if attn.spatial_norm is not None:
        hidden_states = attn.spatial_norm(hidden_states, temb)
    if hidden_states.ndim == 4:
        hidden_states = hidden_states.flatten(2).transpose(1, 2)  # (B, D, h, w) -> (B, h*w, D)
    if attn.group_norm is not None:
        hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
    return hidden_states


def _from_tokens(attn, attended: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """Project a layer's result: ``(B, L, heads*d)`` -> the shape of ``residual``, the layer's input."""
    result = attn.to_out[1](attn.to_out[0](attended))
    if residual.ndim == 4:
        result = result.transpose(1, 2).reshape(residual.shape)
    if attn.residual_connection:
        result = result + residual
    # Unlike diffusers, do not divide by 1: on small networks, launching kernels takes most of a GPU's time.
    return result if attn.rescale_output_factor == 1 else result / attn.rescale_output_factor


def _split(x: torch.Tensor, heads: int) -> torch.Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, L, heads*d) -> (B, heads, L, d)


def _attend(attn, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Softmax(QK^T / sqrt(d)) V with a layer's own norms: ``(B, heads, L, d)`` -> ``(B, L, heads*d)``."""
    query = query if attn.norm_q is None else attn.norm_q(query)
    key = key if attn.norm_k is None else attn.norm_k(key)
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2).to(query.dtype)


class JointSelfAttention:
    """Attention processor in which every frame's queries read the keys and values of all frames in its group (Eq. 8).

    The batch is ``(groups * num_frames)`` with a group's frames next to each other, as in the two halves of
    classifier-free guidance: hidden states are ``(groups * num_frames, L, D)`` or ``(groups * num_frames, D, h, w)``.
    Cross-attention stays that of ``AttnProcessor2_0``. Raises ValueError for ``num_frames`` below 1, for a batch
    that ``num_frames`` does not divide, and for an attention mask.
    """

    def __init__(self, num_frames: int):
        if not is_whole(num_frames) or num_frames < 1:
            raise ValueError(f"num_frames must be a whole number of at least 1, not {num_frames!r}.")
        self.num_frames = num_frames
        self._plain = AttnProcessor2_0()

    def __call__(
        self,
        attn,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        **kwargs,
    ) -> torch.Tensor:
        if encoder_hidden_states is not None:
            return self._plain(attn, hidden_states, encoder_hidden_states, attention_mask, temb, **kwargs)
        if attention_mask is not None:
            raise ValueError("JointSelfAttention takes no attention mask: every frame reads every frame of its group.")
        batch = hidden_states.shape[0]
        if batch % self.num_frames:
            raise ValueError(f"A batch of {batch} is no multiple of num_frames={self.num_frames}: give whole groups.")

        # A group's frames lie side by side, so joining their tokens into one sequence is a reshape; the fused kernel
        # then works through the (m*L)^2 logits in blocks and never holds them.
        states = _to_tokens(attn, hidden_states, temb)  # (B, L, D)
        projected = (projection(states) for projection in (attn.to_q, attn.to_k, attn.to_v))
        joined = (x.unflatten(0, (-1, self.num_frames)).flatten(1, 2) for x in projected)  # (groups, m*L, heads*d)
        joint = _attend(attn, *(_split(x, attn.heads) for x in joined))  # (groups, m*L, heads*d)
        return _from_tokens(attn, joint.reshape(batch, states.shape[1], -1), hidden_states)


@contextmanager
def joint_self_attention(unet, num_frames: int) -> Iterator[None]:
    """Make a UNet's self-attention (``attn1``) joint over ``num_frames`` frames within a ``with`` block (Eq. 8).

    The earlier processors are restored afterwards, also after an error. Raises ValueError as ``JointSelfAttention``
    does.
    """
    before = dict(unet.attn_processors)
    joint = JointSelfAttention(num_frames)
    # set_attn_processor empties the dictionary that it is given, so it gets copies.
    unet.set_attn_processor({name: joint if name.endswith("attn1.processor") else p for name, p in before.items()})
    try:
        yield
    finally:
        unet.set_attn_processor(dict(before))


# --- cross-attention over keys and values made before (§3.2) ---------------------------------------------------------
# The UNet's cross-attention reads the text, and that of the copy reads the references' image tokens. Neither changes
# from step to step. So the keys and values of all layers are made once, side by side, and each layer reads its part.


class ProjectedCrossAttention:
    """Attention processor whose ``encoder_hidden_states`` are the result of ``keys_and_values``, ``(B, N, W)``.

    start: where in W this layer's keys begin; its values follow. The result equals that of ``AttnProcessor2_0``.
    Raises ValueError for an attention mask.
    """

    def __init__(self, start: int):
        self.start = start

    def __call__(
        self,
        attn,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if attention_mask is not None:
            raise ValueError("ProjectedCrossAttention takes no attention mask: every token counts.")
        width = attn.inner_kv_dim
        query = attn.to_q(_to_tokens(attn, hidden_states, temb))  # (B, L, heads*d)
        key, value = (encoder_hidden_states[..., i : i + width] for i in (self.start, self.start + width))
        attended = _attend(attn, *(_split(x, attn.heads) for x in (query, key, value)))
        return _from_tokens(attn, attended, hidden_states)


def layers(network) -> dict[str, Attention]:
    """Cross-attention layers by their processors' names, in the order in which ``keys_and_values`` has them."""
    found = {name: network.get_submodule(name.removesuffix(".processor")) for name in network.attn_processors}
    return {name: layer for name, layer in found.items() if layer.is_cross_attention}


def usable(network) -> bool:
    """Return True if only diffusers' own cross-attention reads a network's tokens, and no hook moves its weights.

    Other processors may need the tokens, and so may networks that transform them. Hooks move whole blocks at once.
    """
    plain = all(type(layer.processor) is AttnProcessor2_0 for layer in layers(network).values())
    transformed = getattr(network, "encoder_hid_proj", None) or getattr(network, "add_embedding", None)
    return plain and transformed is None and not any(hasattr(m, "_diffusers_hook") for m in network.modules())


def keys_and_values(network, tokens: torch.Tensor) -> torch.Tensor:
    """Make all cross-attention layers' keys and values of tokens: ``(B, N, D)`` -> ``(B, N, W)``, layer by layer."""
    parts = []
    for layer in layers(network).values():
        given = layer.norm_encoder_hidden_states(tokens) if layer.norm_cross else tokens
        parts += [layer.to_k(given), layer.to_v(given)]
    return torch.cat(parts, dim=-1)


class ReadingProjected:
    """A context in which the cross-attention of networks reads results of ``keys_and_values``, not tokens.

    Open it for each pass, so that a network is unchanged between passes. It does not nest. The earlier processors are
    restored afterwards, also after an error.
    """

    def __init__(self, *networks):
        self._chosen: list[tuple[Attention, ProjectedCrossAttention]] = []
        self._before: list[object] = []
        for network in networks:
            start = 0
            for layer in layers(network).values():
                self._chosen.append((layer, ProjectedCrossAttention(start)))
                start += 2 * layer.inner_kv_dim

    def __enter__(self) -> None:
        # Layer by layer, because a network's set_attn_processor searches all its modules, which is slow.
        self._before = [layer.processor for layer, _ in self._chosen]
        try:
            for layer, processor in self._chosen:
                layer.set_processor(processor)
        except BaseException:  # also for an interrupt: nothing else would restore the processors
            self.__exit__()
            raise

    def __exit__(self, *_) -> None:
        for (layer, _), processor in zip(self._chosen, self._before, strict=True):
            layer.set_processor(processor)
