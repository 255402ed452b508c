"""Joint training of the mini profile's parts: scenes with all kinds of references, and Eq. 11's loss (§3.4.2, §4.1).

``color`` runs it.
"""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from ... import encoders
from ...attention import joint_self_attention
from ...control import GuidedControlNet
from ...data.augment import join_references
from ...guidance import GuidanceOutput
from ...semantics import CHANNELS, SemanticEncoder
from ...utils.commands import best_device
from ...vae import LUMA, LumaChromaAutoencoder
from .device_scenes import Scenes
from .encoders import WIDTH
from .guidance import fetched_error, guidance_options
from .recipe import error_weight, make_scheduler
from .scenes import other_views
from .semantics import SEMANTIC_WIDTH, chroma_error

VIEWS = 5  # of a scene with references: a target and a grid of four
KINDS = {"mask": 0.34, "together": 0.18, "single": 0.20, "grid": 0.23, "unrelated": 0.05}
OWN_STEPS = {"masked": 0.35, "guided": 0.4}  # share of batches whose z_t comes of a step by the model itself
OWN_COLORS = 0.15  # share of batches with references whose colours are the model's own
GATE_PRICE = 0.1  # on an open gate under the reference mask, where the hint is the gray frame anyway
LUMA_SHARE = 0.1  # of the loss: gray gives the luma latents away
HUBER = 0.1  # in latents: where the loss with references turns from squares to absolute values
THUMBNAIL = 64
# Sizes (height, width) of latents' frames in pixels, and their shares; batches of larger ones are smaller.
SIZES = {
    "small": (((128, 224), 0.56), ((128, 192), 0.12), ((128, 128), 0.08), ((192, 128), 0.05), ((256, 448), 0.19)),
    "two": (((128, 224), 0.5), ((256, 448), 0.5)),  # for a GPU, which prepares its kernels anew for every shape
}
RENDER = 192  # pixels: the least short side of a drawn view, at which the semantic encoder sees it


class Trainer:
    """The parts of the mini model, the scenes that they learn from, and a loss for each stage."""

    def __init__(self, pack: dict, start: Path, sizes: str = "small", batch: int = 16, kinds: dict = KINDS):
        self.batch, self.device, self.sizes, self.kinds = batch, best_device(), SIZES[sizes], kinds
        self.scenes, self.held = Scenes(pack, self.device), Scenes(pack, self.device, "held")
        frozen = lambda part: part.float().to(self.device).eval().requires_grad_(False)  # noqa: E731
        self.vae = frozen(LumaChromaAutoencoder.from_pretrained(start / "vae"))
        self.semantic = frozen(SemanticEncoder.from_pretrained(start / "semantic_encoder"))
        self.vision = frozen(CLIPVisionModelWithProjection.from_pretrained(start / "image_encoder"))
        self.tokenizer = CLIPTokenizer.from_pretrained(start / "tokenizer")
        self.text = CLIPTextModel.from_pretrained(start / "text_encoder").float().to(self.device)
        self.unet = UNet2DConditionModel.from_pretrained(start / "unet").float().to(self.device)
        self.control = with_semantics(self.unet, GuidedControlNet.from_pretrained(start / "control").float(), start)
        self.scheduler = make_scheduler()
        self.shares = self.scheduler.alphas_cumprod.to(self.device)
        for part in (self.vae, self.semantic, self.unet, self.control):
            part.to(memory_format=torch.channels_last)

    def draw_size(self, rng: np.random.Generator) -> tuple[int, int]:
        return self.sizes[rng.choice(len(self.sizes), p=[share for _, share in self.sizes])][0]

    def count(self, size: tuple[int, int]) -> int:
        """Return the number of views of a size that fill a batch of the most frequent size."""
        height, width = self.sizes[0][0]
        return max(1, round(self.batch * height * width / (size[0] * size[1])))

    def modules(self) -> dict[str, nn.Module]:
        return learning(self.unet, self.text, self.control)

    # --- encoded once per batch -----------------------------------------------------------------------------------

    @torch.no_grad()
    def latents(self, rgb: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return latents and gray latents of views ``(N, 3, H, W)``: the gray ones keep the luma and have no chroma."""
        z = self.vae.encode(rgb).latent_dist.mode().float()
        gray = z.clone()
        gray[:, self.vae.config.luma_channels :] = 0
        return z, gray

    def meaning(self, rgb: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Return semantic features of pictures ``(N, 3, H, W)`` at the latents' size: ``(N, S, h, w)``."""
        with torch.no_grad():
            features = self.semantic((rgb * rgb.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True))
        return self.control.semantics(features, size)

    def words(self, texts: list[str]) -> torch.Tensor:
        return encoders.text_embeddings(self.tokenizer, self.text, texts, self.device)

    @torch.no_grad()
    def image_tokens(self, rgb: torch.Tensor) -> torch.Tensor:
        """Return the image tokens ``(N, 64, D)`` of whole views."""
        small = F.interpolate(rgb, size=(THUMBNAIL, THUMBNAIL), mode="bilinear", antialias=True)
        return encoders.patch_tokens(self.vision, small)

    def noised(self, target: torch.Tensor, last: float, groups: int = 1, apart: bool = False):
        """Return z_t, timestep and weight for clean latents. A share ``last`` is pure noise; groups may share noise.

        apart: views of a group have timesteps of their own, so that the noisier ones learn to ask the others.
        """
        count, top, same = len(target), self.scheduler.config.num_train_timesteps, 1 if apart else groups
        timestep = torch.randint(top, (count // same,), device=self.device)
        pure_noise = torch.rand(count // same, device=self.device) < last
        timestep = torch.where(pure_noise, top - 1, timestep).repeat_interleave(same)
        noise = torch.randn_like(target)
        if groups > 1:
            shared = noise.unflatten(0, (-1, groups))
            same = (torch.rand(len(shared), 1, 1, 1, 1, device=self.device) < 0.5).float()
            noise = (same * shared[:, :1] + (1 - same) * shared).flatten(0, 1)
        share = self.shares[timestep].view(-1, 1, 1, 1)
        return share.sqrt() * target + (1 - share).sqrt() * noise, timestep, error_weight(share)

    # --- losses -------------------------------------------------------------------------------------------------------

    def joint_loss(self, step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Return Eq. 11's loss for a randomly drawn kind of reference."""
        rng = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
        return self.guided_loss(str(rng.choice(list(self.kinds), p=list(self.kinds.values()))), rng)

    def guided_loss(self, kind: str, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """Return Eq. 11's loss for one kind of reference; "together" masks it and attends jointly (Eq. 8)."""
        size, masked = self.draw_size(rng), kind in ("mask", "together")
        views = {"mask": 1, "together": 4}.get(kind, VIEWS)
        larger = max(1.0, RENDER / min(size))
        batch = self.scenes.draw(
            max(1, round(self.count(size) / views)), views, tuple(round(larger * side) for side in size), rng,
            clips=0.1 if kind == "mask" else 0.5, recolor={"mask": 0.0, "together": 0.45}.get(kind, 0.25),
            regrade=0.0 if masked else 0.3, tint={"mask": 0.45, "together": 0.25}.get(kind, 0.1),
            drop_text=0.4 if masked else 0.5, strip_colors=0.4 if masked else 0.7,
        )  # fmt: skip
        texts = [text for text in batch.captions for _ in range(views)]
        drawn = batch.rgb.flatten(0, 1).contiguous(memory_format=torch.channels_last)  # (S*V, 3, H, W)
        rgb = drawn if larger == 1 else F.interpolate(drawn, size=size, mode="bilinear", antialias=True)
        target, gray = self.latents(rgb)
        meaning = self.meaning(drawn, target.shape[-2:])  # (S*V, S, h, w)
        if masked:
            ref_gray = ref_color = torch.zeros_like(gray)
            tokens = gray.new_zeros(len(gray), 1, WIDTH)
        else:
            chosen = self.others(len(batch.natural), views, kind)  # (S*V, tiles)
            pictures = self.image_tokens(rgb)
            source = target
            if kind in ("single", "grid") and rng.random() < OWN_COLORS:
                source = self.own_colors(target, gray, meaning, pictures, texts, views)
            ref_gray, ref_color = join_references(gray[chosen]), join_references(source[chosen])
            tokens = pictures[chosen].flatten(1, 2)  # (S*V, tiles*64, D)
        of_references = None if masked else join_references(meaning[chosen])
        with torch.set_grad_enabled(not masked or rng.random() < 0.25):  # there only the gate has something to learn
            hint = self.control.hint(gray, ref_gray, ref_color, meaning, of_references)
        apart = kind == "together" and rng.random() < 0.65
        given = texts, tokens, gray, hint, meaning, views if kind == "together" else 1
        if rng.random() < OWN_STEPS["masked" if masked else "guided"]:
            z_t, timestep, weight = self.own_step(*self.noised(target, 0.4, views, apart)[:2], given, rng)
        else:
            z_t, timestep, weight = self.noised(target, 0.25 if masked else 0.3, views, apart)
        prediction = self.predict(z_t, timestep, *given)
        error = (prediction.float() - target).square()
        shares = error.new_tensor([LUMA_SHARE, LUMA_SHARE, 1.0, 1.0]).view(1, -1, 1, 1)
        if masked:  # rare vivid colours count a little more
            loss = (error * shares * weight * (1 + 0.5 * target.abs())).mean()
        else:
            loss = (huber(error) * shares * self.trust(hint.hint, target)).mean()
        guess = torch.zeros_like(loss)
        natural = batch.natural.repeat_interleave(views)
        if natural.any() and meaning.requires_grad:
            guess = chroma_error(meaning[natural, :2].float(), target[natural, 2:])
        object_loss = torch.zeros_like(loss)
        known = batch.known.repeat_interleave(views)
        if known.any() and meaning.requires_grad:
            wanted = F.interpolate(batch.mask.flatten(0, 1)[known], size=meaning.shape[-2:], mode="area")
            object_loss = F.binary_cross_entropy_with_logits(meaning[known, 2:3].float(), wanted)
        logged = {
            f"chroma_{kind}": error[:, 2:].mean(),
            f"hint_{kind}": (hint.hint.float() - target)[:, 2:].square().mean(),
            "guess": guess,
            "object": object_loss,
        }
        loss = loss + 0.3 * guess + 0.1 * object_loss + 0.5 * self.hint_loss(hint, target, kind)
        return {"loss": loss, **{name: value.detach() for name, value in logged.items()}}

    def trust(self, hint: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the loss's weight per view with references, at any timestep: the better its ColorHint, the more.

        Earlier frames guide later ones, so what is lost of a colour on the way through the UNet is lost again in each
        frame. Where the hint is nearly right, so must the prediction be, from pure noise on.
        """
        chroma = (hint.detach().float() - target)[:, self.vae.config.luma_channels :]
        error = chroma.square().mean((1, 2, 3), keepdim=True)
        return 2.5 * (0.05 / (0.01 + error)).clamp(0.25, 4.0)

    def hint_loss(self, hint: GuidanceOutput, target: torch.Tensor, kind: str) -> torch.Tensor:
        """Return the error of the ColorHint, of the colours that CGA fetched, and under the mask that of the gate."""
        if not hint.hint.requires_grad:
            return target.new_zeros(())
        if kind in ("mask", "together"):
            return GATE_PRICE * hint.gate.float().mean()
        error = (hint.hint.float() - target).square().mean()
        return error if kind == "unrelated" else error + fetched_error(hint.color, target, 2)[0]

    @torch.no_grad()
    def own_step(self, z_t, timestep, given: tuple, rng: np.random.Generator):
        """Return z, timestep and weight after one DDIM step by the model itself, of a randomly drawn length (Eq. 12 of
        Song et al. 2021, without noise).

        While sampling, z_t holds the model's own errors, which a z_t made of true latents never shows (Ning et al.
        2023). A copy that has seen them corrects them by hint and features, and does not carry them on.
        """
        clean = self.predict(z_t, timestep, *given).float()
        torch.clear_autocast_cache()  # as in own_colors
        before = self.shares[timestep].view(-1, 1, 1, 1)
        noise = (z_t - before.sqrt() * clean) / (1 - before).sqrt().clamp(min=0.05)
        timestep = (timestep * rng.uniform(0.3, 0.97)).long()
        after = self.shares[timestep].view(-1, 1, 1, 1)
        return after.sqrt() * clean + (1 - after).sqrt() * noise, timestep, error_weight(after)

    def predict(self, z_t, timestep, texts, tokens, gray, hint, meaning, together: int = 1) -> torch.Tensor:
        residuals = self.control(z_t, timestep, tokens, gray, hint=hint, semantics=meaning)
        with joint_self_attention(self.unet, together) if together > 1 else nullcontext():
            return self.unet(
                z_t,
                timestep,
                self.words(texts),
                down_block_additional_residuals=residuals.down_block_res_samples,
                mid_block_additional_residual=residuals.mid_block_res_sample,
            ).sample

    @torch.no_grad()
    def own_colors(self, target, gray, meaning, pictures, texts, views: int) -> torch.Tensor:
        """Return latents in the colours that the model gives the views from one other view, at any timestep.

        Earlier frames guide later ones, with whatever errors they have: so it learns not to add to them.
        """
        other = self.others(len(target) // views, views, "single")[:, 0]
        hint = self.control.hint(gray, gray[other], target[other], meaning, meaning[other])
        z_t, timestep, _ = self.noised(target, last=0.3, groups=views)
        colored = self.predict(z_t, timestep, texts, pictures[other], gray, hint, meaning).float()
        torch.clear_autocast_cache()  # it holds weights cast without gradients, which the next pass must not use
        luma = self.vae.config.luma_channels
        return torch.cat([target[:, :luma], colored[:, luma:]], 1)

    def others(self, scenes: int, views: int, kind: str) -> torch.Tensor:
        """Return indices ``(S*V, tiles)`` of each view's references: from its scene, or from another if "unrelated"."""
        chosen = other_views(scenes, views, 4 if kind == "grid" else 1, device=self.device)
        first = torch.arange(scenes, device=self.device) * views
        if kind == "unrelated" and scenes > 1:
            first = first.roll(1)
        return (chosen + first.view(-1, 1, 1)).flatten(0, 1)

    @torch.no_grad()
    def held_errors(self) -> dict[str, torch.Tensor]:
        """Return squared errors of the chroma latents of held-out photographs, coloured from noise by one step.

        ``held``: of the UNet. ``held_guess``: of the pyramid. ``held_gray``: of no colour.
        """
        devices = [] if self.device == "cpu" else [self.device]
        with torch.random.fork_rng(devices):  # training's own draws stay as they are
            torch.manual_seed(0)
            rng, size = np.random.default_rng(0), (128, 224)
            larger = RENDER / min(size)
            drawn = self.held.draw(64, 1, tuple(round(larger * side) for side in size), rng, drop_text=1.0).rgb[:, 0]
            rgb = F.interpolate(drawn, size=size, mode="bilinear", antialias=True)
            target, gray = self.latents(rgb)
            meaning = self.meaning(drawn, target.shape[-2:])
            blank = torch.zeros_like(gray)
            hint = self.control.hint(gray, blank, blank, meaning, None)
            z_t, timestep, _ = self.noised(target, 1.0)
            tokens = gray.new_zeros(len(gray), 1, WIDTH)
            clean = self.predict(z_t, timestep, [""] * len(gray), tokens, gray, hint, meaning)
        found = {"held": clean[:, 2:], "held_guess": meaning[:, :2], "held_gray": 0}
        return {name: (chroma - target[:, 2:]).square().mean() for name, chroma in found.items()}


def huber(squared: torch.Tensor) -> torch.Tensor:
    """Return the pseudo-Huber loss of squared errors: these themselves while small, 2 HUBER times the error beyond.

    The squared error asks for the mean of what may be, which is paler than any of it. From frame to frame a film would
    fade. The absolute error asks for the median: where the hint is mostly right, for the hint.
    """
    return 2 * HUBER * ((squared + HUBER**2).sqrt() - HUBER)


def learning(unet: nn.Module, text: nn.Module, control: GuidedControlNet) -> dict[str, nn.Module]:
    """Return the parts that learn, by name."""
    own = {"copy": control.unet_copy, "pyramid": control.pyramid, "guidance": control.guidance}
    return {"unet": unet, "text": text, **own}


def with_semantics(
    unet: UNet2DConditionModel, control: GuidedControlNet, start: Path, mode: str | None = None
) -> GuidedControlNet:
    """Return a copy with the given copy's weights that also reads semantic features, without effect at first.

    mode: of the new copy's guidance, if it differs.
    """
    options = guidance_options(control.guidance)
    options["mode"] = mode or options["mode"]
    fresh = GuidedControlNet.from_unet(
        unet, semantic_channels=CHANNELS, semantic_width=SEMANTIC_WIDTH, **options
    )  # fmt: skip
    given, own = control.state_dict(), fresh.state_dict()
    for name, weight in own.items():
        if name not in given:
            continue
        if given[name].shape == weight.shape:
            own[name] = given[name]
        elif weight.ndim == 4:  # the first convolution, where other channels go in
            shared = min(weight.shape[1], given[name].shape[1])
            # Semantic features come last and are new, or they are there and references before them change.
            kept = slice(shared) if control.pyramid is None else slice(-shared, None)
            own[name] = torch.zeros_like(weight)
            own[name][:, kept] = given[name][:, kept]
    fresh.load_state_dict(own)
    if control.pyramid is None:
        fresh.pyramid.load_state_dict(load_file(start / "pyramid.safetensors"))
    return fresh.to(unet.device)
