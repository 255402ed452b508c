"""The floor by arithmetic: floating-point operations by stage over what this machine does at its best, and cost.

Operations are PyTorch's own count over one forward pass of each network with tensors that have shapes but no values,
so they can be counted for any model on any machine. A multiplication with its addition is two.
"""

from __future__ import annotations

import copy
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from gcgkit import GCGPipeline, conditioning

sys.path.insert(0, str(Path(__file__).resolve().parent))
from timing import clock, device  # noqa: E402

FPS = 24


@dataclass(frozen=True)
class Card:
    """A card's peak in dense tensor operations, TFLOP/s in 16 bits by its maker's data sheet, and dollars an hour.

    The price is an assumption, about what such a card is let for; give your own.
    """

    peak: float
    price: float


# 16-bit peaks with 32-bit sums, without sparsity. The T4 has float16 only.
CARDS = {
    "H200": Card(989, 3.5),
    "H100 SXM": Card(989, 2.5),
    "A100": Card(312, 1.5),
    "L40S": Card(362, 1.0),
    "RTX 4090": Card(165, 0.5),
    "L4": Card(121, 0.6),
    "T4": Card(65, 0.35),
}


def operations(pipe: GCGPipeline, height: int, width: int, tiles: int = 4) -> dict[str, float]:
    """Operations of one pass of each part at a canvas size in pixels, one frame, one half of guidance.

    The guidance reads a grid of ``tiles`` references in two rows, the copy their image tokens.
    """
    parts = {name: copy.deepcopy(getattr(pipe, name)).to("meta") for name in ("vae", "unet", "control")}
    encoders = {name: copy.deepcopy(getattr(pipe, name)).to("meta") for name in ("image_encoder", "text_encoder")}
    vae, unet, control = parts.values()
    h, w = conditioning.latent_size(vae, conditioning.Canvas((height, width), (height, width), (height, width)))
    empty = lambda *shape: torch.empty(*shape, device="meta", dtype=pipe.dtype)  # noqa: E731
    channels = unet.config.in_channels
    latents, grid = empty(1, channels, h, w), empty(1, channels, 2 * h, math.ceil(tiles / 2) * w)
    side, vision = encoders["image_encoder"].config.image_size, encoders["image_encoder"].config
    tokens = empty(1, tiles * (side // vision.patch_size) ** 2, vision.projection_dim)
    words = torch.zeros(1, pipe.tokenizer.model_max_length, dtype=torch.long, device="meta")
    text = empty(1, words.shape[1], unet.config.cross_attention_dim)
    step = torch.zeros((), device="meta")
    hint = control.hint(latents, grid, grid)
    given = control(latents, step, tokens, latents, hint=hint)
    residuals = {
        "down_block_additional_residuals": given.down_block_res_samples,
        "mid_block_additional_residual": given.mid_block_res_sample,
    }
    work = {
        "UNet": lambda: unet(latents, step, text, **residuals),
        "UNet copy": lambda: control(latents, step, tokens, latents, hint=hint),
        "guidance": lambda: control.hint(latents, grid, grid),
        "autoencoder, encoding": lambda: vae.encode(empty(1, 3, height, width)),
        "autoencoder, decoding": lambda: vae.decode(latents),
        "image encoder": lambda: conditioning.patch_tokens(encoders["image_encoder"], empty(1, 3, side, side)),
        "text encoder": lambda: encoders["text_encoder"](words),
    }
    found = {}
    for name, run in work.items():
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            run()
        found[name] = float(counter.get_total_flops())
    return found


def per_frame(single: dict[str, float], steps: int, halves: int = 2) -> dict[str, float]:
    """Operations of one frame of the second stage: two encodings, one decoding, one set of references, all steps."""
    times = {"UNet": steps * halves, "UNet copy": steps, "autoencoder, encoding": 2, "text encoder": 0}
    return {name: count * times.get(name, 1) for name, count in single.items() if times.get(name, 1)}


def peaks(dtype: torch.dtype, repeats: int = 10) -> dict[str, float]:
    """Operations per second that this device reaches in a large matrix product and in a UNet's kind of convolution."""
    place = device()
    size = 8192 if place.type == "cuda" else 1536
    a, b = (torch.randn(size, size, device=place, dtype=dtype) for _ in range(2))
    channels, rows = (640, 64) if place.type == "cuda" else (96, 32)
    picture = torch.randn(4, channels, rows, rows, device=place, dtype=dtype).to(memory_format=torch.channels_last)
    filters = torch.nn.Conv2d(channels, channels, 3, padding=1, device=place, dtype=dtype).to(
        memory_format=torch.channels_last
    )
    with torch.no_grad():
        product, convolution = (_best(work, repeats) for work in (lambda: a @ b, lambda: filters(picture)))
    return {"matrix product": 2 * size**3 / product, "convolution": 2 * 4 * rows**2 * channels**2 * 9 / convolution}


def _best(work, repeats: int) -> float:
    """Seconds of the fastest of some runs, after one to warm up: a peak is what nothing disturbed."""
    return min(clock(work)[0] for _ in range(repeats + 1))


def cost(seconds_per_frame: float, peak: float, fps: float = FPS) -> dict[str, dict[str, float]]:
    """Seconds and dollars per minute of film on each of ``CARDS``: an extrapolation from one measured speed.

    It supposes that each card reaches the same share of its data sheet's peak that the measured one reached of
    ``peak``, operations per second.
    """
    found = {}
    for name, card in CARDS.items():
        seconds = seconds_per_frame * peak / (card.peak * 1e12) * fps * 60
        found[name] = {"seconds": seconds, "dollars": seconds / 3600 * card.price}
    return found
