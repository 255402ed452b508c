"""Training the mini model's guidance by itself, before the copy: first the colour attention, then its gate (§3.2).

Three stages of ``recipe``. No denoising is needed, so steps are cheap: the fetched colours are
compared with the frame's own, and the gate is judged by the colours that it passes.
"""

from dataclasses import replace
from pathlib import Path

import torch

from ...data import augment
from ...guidance import GatedColorGuidance
from ...utils.commands import best_device
from ...vae import LumaChromaAutoencoder
from ..config import GUIDANCE_OPTIONS
from ..loop import fit
from ..recipes import MINI
from .encoders import save
from .scenes import FreshScenes, encode_scenes, pair_views, scene_batches

TENSORS = ("target", "gray", "ref_gray", "ref_color")  # of a batch
# Gray has the target's luma latents already; they count a little, because a match in luma is often a match in colour.
SHARES = (0.3, 0.3, 1.0, 1.0)


def make_guidance() -> GatedColorGuidance:
    """Make a GCG whose stem sees 35 latents on a side, so that its tokens know their surroundings."""
    return GatedColorGuidance(hidden_dim=96, null_token=True, dilations=(1, 2, 4, 8, 1))


def guidance_options(guidance: GatedColorGuidance) -> dict:
    """Return a guidance's options, as ``GuidedControlNet.from_unet`` takes them for another like it."""
    return {name: guidance.config[name] for name in GUIDANCE_OPTIONS}


def attention_folder(out: Path) -> Path:
    """Return the newest guidance with a trained colour attention: from ``matching`` if that stage ran, else ``hint``.

    Raises FileNotFoundError, naming the stages, where neither ran.
    """
    for stage in ("matching", "hint"):
        if (out / stage / "guidance").is_dir():
            return out / stage / "guidance"
    raise FileNotFoundError(f"{out} holds no trained colour attention: run the stage hint there, or unpack, first.")


def fetched_error(color: torch.Tensor, target: torch.Tensor, luma: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean squared error of fetched colours ``(B, C, h, w)``: weighted by ``SHARES``, and of chroma."""
    error = (color.float() - target).square()
    return (error * error.new_tensor(SHARES).view(1, -1, 1, 1)).mean(), error[:, luma:].detach().mean()


def train_hint(out: Path, steps: int = 2400, batch: int = 16) -> None:
    """Train the ColorGuidanceAttention by itself on the colours that it fetches.

    The last quarter of the steps runs at full size, where a latent sees half as much of the scene.
    """
    torch.manual_seed(3)
    device = best_device()
    small, full = (augment.Scenes.load(out / f"scenes-{name}.pt") for name in ("small", "full"))
    guidance, mixture = make_guidance(), augment.Mixture(mask=0.0, single=0.7, grid=0.3)
    guidance.cdga.requires_grad_(False)

    def loss(step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        kind = augment.draw_kind(mixture, generator)
        scenes, count = (small, batch) if step < 0.75 * steps else (full, batch // 4)
        sample = augment.draw_batch(scenes, kind, count, mixture, generator)
        target, gray, ref_gray, ref_color = (sample[n].to(device) for n in TENSORS)
        error, chroma = fetched_error(guidance(gray, ref_gray, ref_color).color, target, luma=2)
        return {"loss": error, f"hint_{kind}": chroma}

    optimizer = replace(MINI.optimizer, learning_rate=1e-3)
    fit(out / "hint", {"guidance": guidance}, loss, optimizer, steps=steps, title="ColorHint")
    save(guidance, out / "hint/guidance")


MATCHING_MIXTURE = augment.Mixture(mask=0.0, single=0.65, grid=0.35)


def train_matching(data: Path, out: Path, steps: int = 5306, batch: int = 8, workers: int | None = None) -> None:
    """Continue the colour attention at full size, on scenes that are seen once: ``batch`` scenes of six views.

    For a GPU, where 5,306 steps took six minutes with two larger attentions beside; on a CPU core one takes a minute.
    The stages after it do without, on what ``train_hint`` left.
    """
    torch.manual_seed(3)
    vae = LumaChromaAutoencoder.from_pretrained(out / "parts/vae").to(best_device()).eval().requires_grad_(False)
    guidance = GatedColorGuidance.from_pretrained(out / "hint/guidance")
    guidance.cdga.requires_grad_(False)
    scenes, batches = FreshScenes(data, steps * batch, seed=1), None

    def loss(step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        nonlocal batches
        batches = batches or scene_batches(scenes, batch, first=step, workers=workers)  # resumed runs start later
        latents = encode_scenes(vae, next(batches))
        kind = augment.draw_kind(MATCHING_MIXTURE, generator)
        target, gray, ref_gray, ref_color = pair_views(latents, kind, vae.config.luma_channels, generator).values()
        tokens = guidance.tokens(gray), guidance.tokens(ref_gray)  # without the gate, which does not learn here
        color = guidance.cga(*tokens, ref_color.flatten(2).transpose(1, 2)).transpose(1, 2)  # (B, C, h*w)
        error, chroma = fetched_error(color.unflatten(2, gray.shape[2:]), target, vae.config.luma_channels)
        return {"loss": error, f"hint_{kind}": chroma}

    optimizer = replace(MINI.optimizer, learning_rate=5e-4)
    fit(out / "matching", {"guidance": guidance}, loss, optimizer, steps=steps, seed=1, title="matching")
    save(guidance, out / "matching/guidance")


GATE_MIXTURE = augment.Mixture(mask=0.2, single=0.3, grid=0.25, unrelated=0.25)


def train_gate(out: Path, steps: int = 300, batch: int = 16, price: float = 0.1) -> None:
    """Train only the gate, with more wrong references than the copy sees, at both sizes in turn.

    The ColorHint's squared error opens the gate where the fetched colour helps and closes it where it harms. Under the
    mask it does neither, so there ``price`` times the mean gate closes it. The gate's queries and keys start as those
    of the colour attention, which has learned what matches, and the null token's logit half-way between what matching
    and other references add up to. Its values start open for chroma and closed for luma, which gray knows better. Left
    to itself the gate found no such measure: it opened for all.
    """
    torch.manual_seed(4)
    device = best_device()
    cached = [
        (augment.Scenes.load(out / f"scenes-{name}.pt"), n) for name, n in (("small", batch), ("full", batch // 4))
    ]
    guidance = GatedColorGuidance.from_pretrained(attention_folder(out))
    gate = guidance.cdga
    gate.to_q.load_state_dict(guidance.cga.to_q.state_dict())
    gate.to_k.load_state_dict(guidance.cga.to_k.state_dict())
    gate.null_logit.data.fill_(sum(median_logits(guidance, cached[1][0], kind) for kind in ("single", "unrelated")) / 2)
    gate.to_v.bias.data.copy_(torch.tensor([-6.0, -6.0, 6.0, 6.0]))  # sigma(6) = 0.998; the null token has -6
    guidance.requires_grad_(False)
    gate.requires_grad_(True)

    def loss(step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        kind = augment.draw_kind(GATE_MIXTURE, generator)
        scenes, count = cached[step % 2]
        sample = augment.draw_batch(scenes, kind, count, GATE_MIXTURE, generator)
        target, gray, ref_gray, ref_color = (sample[n].to(device) for n in TENSORS)
        hint = guidance(gray, ref_gray, ref_color)
        error, opened = (hint.hint.float() - target).square().mean(), hint.gate.float().mean()
        total = error + price * opened if kind == "mask" else error
        return {"loss": total, f"hint_{kind}": error.detach(), f"gate_{kind}": opened.detach()}

    optimizer = replace(MINI.optimizer, learning_rate=5e-4, warmup=20)
    fit(out / "gate", {"guidance": guidance}, loss, optimizer, steps=steps, title="gate")
    save(guidance, out / "gate/guidance")


@torch.no_grad()
def median_logits(guidance: GatedColorGuidance, scenes: augment.Scenes, kind: str, samples: int = 8) -> float:
    """Return the median over tokens of the logsumexp of a reference's logits in the gate's softmax."""
    sample = augment.draw_batch(scenes, kind, samples, GATE_MIXTURE, torch.Generator().manual_seed(0))
    tokens, ref_tokens = guidance.tokens(sample["gray"]), guidance.tokens(sample["ref_gray"])  # (B, N, f), (B, M, f)
    q, k = guidance.cdga.to_q(tokens), guidance.cdga.to_k(ref_tokens)  # one head: (B, N, d), (B, M, d)
    return float((q @ k.transpose(1, 2) * q.shape[-1] ** -0.5).logsumexp(-1).median())
