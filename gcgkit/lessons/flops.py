"""Lower bounds by arithmetic: floating-point operations by stage over this machine's peak, and cost.

Operations are PyTorch's own count over one forward pass of each network with tensors that have shapes but no values,
so they can be counted for any model on any machine. A multiplication with its addition is two.
"""

import copy
import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from .. import attention, encoders
from ..pipeline import GCGPipeline
from ..utils.commands import best_device
from .timing import clock

FPS = 24
KEYS_OF_TEXT, KEYS_OF_TOKENS = "keys and values of text", "keys and values of image tokens"
SEMANTICS = "semantic encoder"


@dataclass(frozen=True)
class Card:
    """A card's peak in dense tensor operations, TFLOP/s in 16 bits by its maker's data sheet, and dollars an hour.

    The price is an assumption, about the rent of such a card; give your own.
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


def passes(
    pipe: GCGPipeline, height: int, width: int, tiles: int = 4, where: str | torch.device = "meta"
) -> dict[str, Callable[[], object]]:
    """Return one pass of each part at a canvas size in pixels, for one frame and one half of guidance.

    The guidance reads the squarest grid of ``tiles`` references, the copy their image tokens; keys and values of these
    are made for one. On "meta" they run on copies without weights; elsewhere on the pipeline's own parts, which have
    to be there.
    """
    names = ("vae", "unet", "control", "image_encoder", "text_encoder")
    where = torch.device(where)
    of = (lambda part: copy.deepcopy(part).to("meta")) if where.type == "meta" else lambda part: part
    vae, unet, control, image_encoder, text_encoder = (of(getattr(pipe, name)) for name in names)
    h, w = encoders.latent_size(vae, (height, width))
    some = lambda *shape: torch.zeros(*shape, device=where, dtype=pipe.dtype)  # noqa: E731
    channels, vision, columns = unet.config.in_channels, image_encoder.config, math.ceil(math.sqrt(tiles))
    latents, grid = some(1, channels, h, w), some(1, channels, math.ceil(tiles / columns) * h, columns * w)
    frame, thumbnail = some(1, 3, height, width), some(1, 3, vision.image_size, vision.image_size)
    patches = (vision.image_size // vision.patch_size) ** 2
    tokens = some(1, tiles * patches, vision.projection_dim)
    words = torch.zeros(1, pipe.tokenizer.model_max_length, dtype=torch.long, device=where)
    text = some(1, words.shape[1], unet.config.cross_attention_dim)
    step = torch.zeros((), device=where)
    sees, seen = pipe.semantic_encoder is not None and control.pyramid is not None, (None, None)
    if sees:
        semantic_encoder, width_seen = of(pipe.semantic_encoder), control.config.semantic_width
        gray = some(1, 1, height, width)
        seen = some(1, width_seen, h, w), some(1, width_seen, *grid.shape[-2:])
    with torch.no_grad():
        hint = control.hint(latents, grid, grid, *seen)
        given = control(latents, step, tokens, latents, hint=hint)
    residuals = {
        "down_block_additional_residuals": given.down_block_res_samples,
        "mid_block_additional_residual": given.mid_block_res_sample,
    }
    return {
        "UNet": lambda: unet(latents, step, text, **residuals),
        "UNet copy": lambda: control(latents, step, tokens, latents, hint=hint),
        "guidance": lambda: control.hint(latents, grid, grid, *seen),
        "autoencoder, encoding": lambda: vae.encode(frame),
        "autoencoder, decoding": lambda: vae.decode(latents),
        KEYS_OF_TEXT: lambda: attention.keys_and_values(unet, text),
        KEYS_OF_TOKENS: lambda: control.keys_and_values(tokens[:, :patches]),
        "image encoder": lambda: encoders.patch_tokens(image_encoder, thumbnail),
        "text encoder": lambda: text_encoder(words),
        **({SEMANTICS: lambda: control.semantics(semantic_encoder(gray), (h, w))} if sees else {}),
    }


def operations(pipe: GCGPipeline, height: int, width: int, tiles: int = 4) -> dict[str, float]:
    """Count the operations of each of ``passes``."""
    found = {}
    for name, run in passes(pipe, height, width, tiles).items():
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            run()
        found[name] = float(counter.get_total_flops())
    return found


class _Traffic(TorchDispatchMode):
    """Counts the bytes of every operation's inputs and outputs; views cost nothing."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)]
            self.bytes += sum(x.numel() * x.element_size() for x in tensors)
        return out


def traffic(pipe: GCGPipeline, height: int, width: int, tiles: int = 4) -> dict[str, float]:
    """Count the bytes that the operations of each of ``passes`` read and write, each operation by itself.

    This is the traffic without fusion and without cache; a cache saves some of it.
    """
    found = {}
    for name, run in passes(pipe, height, width, tiles).items():
        with torch.no_grad(), _Traffic() as counter:
            run()
        found[name] = float(counter.bytes)
    return found


def per_frame(
    single: dict[str, float], steps: int, halves: int = 2, tiles: int = 4, keys: bool = True
) -> dict[str, float]:
    """Return the operations of a frame of stage two: two encodings, one decoding, one set of references, all steps.

    single: as ``operations`` gives them for as many ``tiles``. The steps go without the keys and values of text, made
    once a clip, and of image tokens, made once a frame, which becomes a reference; without ``keys``, they make both.
    """
    times = {"UNet": steps * halves, "UNet copy": steps, "autoencoder, encoding": 2, "text encoder": 0, KEYS_OF_TEXT: 0}
    times[SEMANTICS] = 2  # of the frame, and of the reference that it becomes
    if keys:
        unet, copied = single["UNet"] - single[KEYS_OF_TEXT], single["UNet copy"] - tiles * single[KEYS_OF_TOKENS]
        single = {**single, "UNet": unet, "UNet copy": copied}
    else:
        times[KEYS_OF_TOKENS] = 0
    return {name: count * times.get(name, 1) for name, count in single.items() if times.get(name, 1)}


def peaks(dtype: torch.dtype, repeats: int = 10) -> dict[str, float]:
    """Measure this device's operations per second in a large matrix product and in a convolution as of a UNet."""
    place = best_device()
    size = 8192 if place == "cuda" else 1536
    a, b = (torch.randn(size, size, device=place, dtype=dtype) for _ in range(2))
    channels, rows = (640, 64) if place == "cuda" else (96, 32)
    picture = torch.randn(4, channels, rows, rows, device=place, dtype=dtype).to(memory_format=torch.channels_last)
    filters = torch.nn.Conv2d(channels, channels, 3, padding=1, device=place, dtype=dtype).to(
        memory_format=torch.channels_last
    )
    with torch.no_grad():
        product, convolution = (_best(work, repeats) for work in (lambda: a @ b, lambda: filters(picture)))
    return {"matrix product": 2 * size**3 / product, "convolution": 2 * 4 * rows**2 * channels**2 * 9 / convolution}


def bandwidth(repeats: int = 10) -> float:
    """Measure the bytes per second that this device's memory reads and writes, by the fastest of some copies."""
    source = torch.zeros(2**28 if best_device() == "cuda" else 2**25, device=best_device())  # 1 GiB, or 128 MiB
    target = torch.empty_like(source)
    return 2 * source.numel() * source.element_size() / _best(lambda: target.copy_(source), repeats)


def _best(work, repeats: int) -> float:
    """Return the seconds of the fastest of some runs after a warm-up, because a peak must be undisturbed."""
    return min(clock(work)[0] for _ in range(repeats + 1))


def sheet_peak(device_name: str) -> float | None:
    """Return a card's operations per second by its data sheet (``CARDS``), given its name in the driver."""
    for name, card in CARDS.items():
        model = name.removeprefix("RTX ").removesuffix(" SXM")
        if re.search(rf"\b{model}\b", device_name):
            return card.peak * 1e12
    return None


def cost(seconds_per_frame: float, peak: float, fps: float = FPS) -> dict[str, dict[str, float]]:
    """Extrapolate seconds and dollars per minute of film on each of ``CARDS`` from one measured speed.

    It supposes that each card reaches the same share of its data sheet's peak that the measured one reached of
    ``peak``, operations per second: its own data sheet's, if it has one (`sheet_peak`).
    """
    found = {}
    for name, card in CARDS.items():
        seconds = seconds_per_frame * peak / (card.peak * 1e12) * fps * 60
        found[name] = {"seconds": seconds, "dollars": seconds / 3600 * card.price}
    return found


def flop_per_frame(unet, latents: torch.Tensor, words: torch.Tensor, joint: bool) -> float:
    """Floating-point operations of one UNet pass over m frames, per frame: each for itself (Eq. 7) or joint (Eq. 8).

    latents: ``(m, C, h, w)``; words: text embeddings ``(1, N, D)``, the same for all. A multiplication and an addition
    count as two. Counted are products of matrices and convolutions, which are nearly all there is; attention's share
    of them grows with m where it is joint, and everything else stays as it is.
    """
    count = len(latents)
    with torch.no_grad(), attention.joint_self_attention(unet, count if joint else 1):
        with FlopCounterMode(display=False) as counter:
            unet(latents, 0, words.expand(count, -1, -1))
    return counter.get_total_flops() / count
