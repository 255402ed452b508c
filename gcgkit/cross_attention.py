"""Cross-attention over keys and values that were made before (§3.2), as a diffusers attention processor.

The UNet's cross-attention reads the text, the copy's the references' image tokens. Neither changes from one denoising
step to the next, so neither do the keys and values that each layer makes of them: here they are made once, for all
layers of a network side by side, and each layer reads its own part.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttnProcessor2_0

from .attention import enter, leave


class ProjectedCrossAttention:
    """Attention processor whose ``encoder_hidden_states`` are what ``keys_and_values`` made, ``(B, N, W)``.

    start: where in W this layer's keys begin; its values follow. Otherwise as ``AttnProcessor2_0``, which it equals.
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
        states, keys = enter(attn, hidden_states, temb), self.start + width

        def split(x: torch.Tensor) -> torch.Tensor:  # (B, L, heads*d) -> (B, heads, L, d)
            return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        query = split(attn.to_q(states))
        key, value = (split(encoder_hidden_states[..., i : i + width]) for i in (self.start, keys))
        if attn.norm_q is not None:
            query = attn.norm_q(query)
        if attn.norm_k is not None:
            key = attn.norm_k(key)
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)  # (B, L, heads*d)
        return leave(attn, attended.to(query.dtype), hidden_states)


def layers(network) -> dict[str, Attention]:
    """Cross-attention layers by their processors' names, in the order in which ``keys_and_values`` has them."""
    found = {name: network.get_submodule(name.removesuffix(".processor")) for name in network.attn_processors}
    return {name: layer for name, layer in found.items() if layer.is_cross_attention}


def usable(network) -> bool:
    """Whether nothing but diffusers' own cross-attention reads a network's tokens, and its layers are all at hand.

    Another processor may want the tokens themselves, as may a network that transforms them first; diffusers' hooks
    bring weights over for a whole block, not for one of its maps.
    """
    plain = all(type(layer.processor) is AttnProcessor2_0 for layer in layers(network).values())
    transformed = getattr(network, "encoder_hid_proj", None) or getattr(network, "add_embedding", None)
    return plain and transformed is None and not any(hasattr(m, "_diffusers_hook") for m in network.modules())


def keys_and_values(network, tokens: torch.Tensor) -> torch.Tensor:
    """All cross-attention layers' keys and values of tokens: ``(B, N, D)`` -> ``(B, N, W)``, layer by layer."""
    parts = []
    for layer in layers(network).values():
        given = layer.norm_encoder_hidden_states(tokens) if layer.norm_cross else tokens
        parts += [layer.to_k(given), layer.to_v(given)]
    return torch.cat(parts, dim=-1)


class ReadingProjected:
    """A context in which networks' cross-attention wants what ``keys_and_values`` made in the place of tokens.

    It is entered for each pass, so that between passes a network is what its owner knows; not within itself. The
    processors that were set before come back afterwards, also after an error.
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
        # layer by layer: a network's set_attn_processor looks through all its modules, which takes a while
        self._before = [layer.processor for layer, _ in self._chosen]
        try:
            for layer, processor in self._chosen:
                layer.set_processor(processor)
        except BaseException:  # an interrupt among them: nothing else would bring the processors back
            self.__exit__()
            raise

    def __exit__(self, *_) -> None:
        for (layer, _), processor in zip(self._chosen, self._before, strict=True):
            layer.set_processor(processor)
