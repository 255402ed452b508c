"""Alternatives to compare with: diffusers' ControlNet pipeline, and a plain implementation of cross-frame attention."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
from diffusers.models.attention_processor import AttnProcessor2_0
from torch.utils.flop_counter import FlopCounterMode

from gcgkit import GCGPipeline, attention
from gcgkit.paper import PAPER_GUIDANCE_SCALE
from gcgkit.utils import compilation


class ControlNetPeer:
    """diffusers' ``StableDiffusionControlNetPipeline`` over the same networks as ``ours``, a frame's gray as condition.

    Its ControlNet is a copy of the same UNet, and sees text in both halves of guidance.
    """

    def __init__(self, ours: GCGPipeline, shapes: str):
        widths = (16, 32, 96, 256) if shapes == "sd21" else (8, 8, 8, 8)
        copied = ours.device.type != "meta"  # on meta there are sizes and no weights
        with ours.device:
            controlnet = ControlNetModel.from_unet(
                ours.unet, conditioning_embedding_out_channels=widths, load_weights_from_unet=copied
            )
        shared = {name: getattr(ours, name) for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}
        self.pipe = StableDiffusionControlNetPipeline(
            **shared, controlnet=controlnet, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        ).to(ours.device, ours.dtype)
        self.pipe.set_progress_bar_config(disable=True)
        self._replayed = False

    def compile(self, backend: str) -> None:
        """Compile its ControlNet as ``compile_networks`` does the shared rest."""
        self._replayed = self.pipe.device.type == "cuda"
        if self._replayed:
            self.pipe.controlnet.to(memory_format=torch.channels_last)
        mode = {"mode": "reduce-overhead"} if self._replayed and backend == "inductor" else {}
        self.pipe.controlnet.compile(dynamic=False, backend=backend, **mode)

    def color(self, frames: np.ndarray, prompt: str, steps: int, batch: int) -> np.ndarray:
        """Colour frames ``(T, H, W, 3)`` uint8 one by one, ``batch`` at once: the same in [0, 1]."""
        pictures = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255  # (T, H, W, 3) -> (T, 3, H, W)
        done = []
        for part in pictures.split(batch):
            self._begin_step()
            done.append(
                self.pipe(
                    [prompt] * len(part), image=part, height=frames.shape[1], width=frames.shape[2],
                    guidance_scale=PAPER_GUIDANCE_SCALE, num_inference_steps=steps, output_type="np",
                    callback_on_step_end=self._step,
                ).images
            )  # fmt: skip
        return np.concatenate(done)

    def operations(self, height: int, width: int) -> float:
        """Count the operations of one step of a ``height`` by ``width`` frame: UNet and ControlNet, both halves."""
        where = {"device": "meta", "dtype": self.pipe.dtype}
        unet, controlnet = (copy.deepcopy(part).to("meta") for part in (self.pipe.unet, self.pipe.controlnet))
        factor, step = self.pipe.vae_scale_factor, torch.zeros((), **where)
        latents = torch.zeros(2, unet.config.in_channels, height // factor, width // factor, **where)
        text = torch.zeros(2, self.pipe.tokenizer.model_max_length, unet.config.cross_attention_dim, **where)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            down, mid = controlnet(latents, step, text, torch.zeros(2, 3, height, width, **where), return_dict=False)
            unet(latents, step, text, down_block_additional_residuals=down, mid_block_additional_residual=mid)
        return float(counter.get_total_flops())

    def _step(self, *_) -> dict:
        self._begin_step()
        return {}

    def _begin_step(self) -> None:
        if self._replayed:
            torch.compiler.cudagraph_mark_step_begin()


class PlainCrossFrameAttention:
    """Self-attention over all frames of a group exactly as in Eq. 8: every logit is built and stored.

    A diffusers attention processor with the arguments of ``attention.JointSelfAttention``, which gives the same.
    """

    def __init__(self, num_frames: int):
        self.num_frames, self._cross = num_frames, AttnProcessor2_0()

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None, **_):
        if encoder_hidden_states is not None:
            return self._cross(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        batch, tokens, _ = hidden_states.shape

        def heads(x: torch.Tensor) -> torch.Tensor:  # (groups*m, L, heads*d) -> (groups, heads, m*L, d)
            return x.reshape(batch // self.num_frames, self.num_frames * tokens, attn.heads, -1).transpose(1, 2)

        query, key, value = (heads(project(hidden_states)) for project in (attn.to_q, attn.to_k, attn.to_v))
        weights = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1)  # (groups, heads, m*L, m*L)
        joint = (weights @ value).transpose(1, 2).reshape(batch, tokens, -1)
        return attn.to_out[1](attn.to_out[0](joint))


@contextmanager
def with_plain_attention() -> Iterator[None]:
    """Make our first stage attend by ``PlainCrossFrameAttention`` within the context."""
    with patch.object(attention, "JointSelfAttention", PlainCrossFrameAttention):
        yield


def without_compilation(work: Callable[[], object]) -> Callable[[], object]:
    """Run the same work without the compiled networks."""

    def run() -> object:
        with torch.compiler.set_stance("force_eager"):
            return work()

    return run


def compile_both(ours: GCGPipeline, peer: ControlNetPeer, backend: str) -> None:
    """Compile the networks of both."""
    compilation.compile_networks(ours, backend=backend)
    peer.compile(backend)
