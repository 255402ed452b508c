"""The first part of the mini weights' recipe: from photographs and clips to a pipeline folder (§3.4.2, §4.1).

    python -m gcgkit.training.mini.recipe STAGE --data DIR --out DIR [--steps N]

Stages, in order: ``vae``, ``encoders``, ``cache``, ``hint``, ``matching``, ``gate``, ``text2image``, ``guidance``,
``fullsize``, ``export``. Each can be killed and resumed; their default numbers of steps are those of the bundled
weights. ``footage`` describes the data folder. ``matching`` pays off only on a GPU and can be left out. The UNet learns
on beside the copy, which was the better start at this size (see the model card). From the folder that ``export``
writes, ``semantics`` and ``color`` go on; ``color --mode`` makes the ablation variants.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from tqdm.auto import tqdm
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from ... import encoders
from ...control import GuidedControlNet
from ...data import augment, footage
from ...guidance import GatedColorGuidance
from ...pipeline import GCGPipeline
from ...utils.commands import best_device
from ...vae import LumaChromaAutoencoder
from ..loop import fit
from ..recipes import MINI
from .encoders import WIDTH, save, to_tensor, train_encoders, train_vae
from .guidance import TENSORS, guidance_options, train_gate, train_hint, train_matching

STAGES = ("vae", "encoders", "cache", "hint", "matching", "gate", "text2image", "guidance", "fullsize", "export")
SMALL, FULL = (128, 224), (256, 448)  # training sizes in pixels: most steps, last steps


# --- stage 3: encode everything once --------------------------------------------------------------------------------


def cache_scenes(data: Path, out: Path, per_photo: float = 2, per_clip: int = 72, views: int = 6) -> None:
    """Encode scenes at both training sizes into ``scenes-small.pt`` and ``scenes-full.pt``.

    Gray latents are the colour ones without their chroma channels: the autoencoder's luma channels see only luma.
    """
    device = best_device()
    vae = LumaChromaAutoencoder.from_pretrained(out / "parts/vae").to(device)
    clips = dict(footage.training_clips(data))
    photos = footage.photo_paths(data)
    plans = (("small", SMALL, per_photo, per_clip), ("full", FULL, 0.2, per_clip // 6))
    for name, size, photo_share, clip_count in plans:
        if (out / f"scenes-{name}.pt").exists():
            continue
        rng = np.random.default_rng(7 if name == "small" else 8)
        chosen = rng.permutation(len(photos))[: int(len(photos) * min(1, photo_share))]
        plan = [photos[i] for i in chosen for _ in range(max(1, int(photo_share)))]
        plan += [clip for clip in clips for _ in range(clip_count)]
        latents, grays, thumbnails, texts, kept = [], [], [], [], []
        for source in tqdm(plan, desc=f"scenes, {name}", mininterval=5, disable=None):
            natural = bool(rng.random() < 0.6)
            scene = (
                augment.clip_scene(clips[source], views, size, rng)
                if isinstance(source, str)
                else augment.photo_scene(source, views, size, rng)
            )
            scene = augment.augment_hsv(scene, *augment.random_hsv(rng, natural))
            texts.append(augment.caption_scene(scene, source if isinstance(source, str) else source.stem, rng))
            small = np.stack([cv2.resize(v, (augment.THUMBNAIL,) * 2, interpolation=cv2.INTER_AREA) for v in scene])
            with torch.no_grad():
                z = vae.encode(to_tensor(scene).to(device)).latent_dist.mode().cpu().half()
            g = z.clone()
            g[:, vae.config.luma_channels :] = 0
            latents.append(z), grays.append(g), thumbnails.append(torch.from_numpy(small)), kept.append(natural)
        scenes = augment.Scenes(
            torch.stack(latents), torch.stack(grays), torch.stack(thumbnails), texts, torch.tensor(kept)
        )
        scenes.save(out / f"scenes-{name}.tmp")
        (out / f"scenes-{name}.tmp").rename(out / f"scenes-{name}.pt")


# --- stages 7 to 9: the text-to-image UNet, then the copy with the UNet, then both at full size ----------------------


def make_scheduler() -> DDIMScheduler:
    """Make a DDIM scheduler that predicts clean latents and ends in pure noise: the usual schedule leaks the mean.

    A small UNet has to copy its ColorHint; asked for the clean latents it copies equally well at every timestep.
    """
    return DDIMScheduler(
        num_train_timesteps=1000, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012,
        clip_sample=False, set_alpha_to_one=True, prediction_type="sample", rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )  # fmt: skip


def make_unet() -> UNet2DConditionModel:
    """Make Stable Diffusion's UNet at small widths, without the costly attention at the full latent resolution."""
    return UNet2DConditionModel(
        sample_size=32, in_channels=4, out_channels=4, block_out_channels=(64, 96, 96), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH, attention_head_dim=(2, 3, 3), norm_num_groups=16, use_linear_projection=True,
    )  # fmt: skip


class Denoising:
    """The frozen side of a loss: captions and thumbnails to tokens, noise, weights (Eq. 11)."""

    def __init__(self, out: Path, scenes: str):
        self.device = best_device()
        self.scenes = augment.Scenes.load(out / f"scenes-{scenes}.pt")
        self.tokenizer = CLIPTokenizer.from_pretrained(out / "parts/tokenizer")
        text = CLIPTextModel.from_pretrained(out / "parts/text_encoder")
        self.text = text.to(self.device).eval().requires_grad_(False)
        vision = CLIPVisionModelWithProjection.from_pretrained(out / "parts/image_encoder")
        self.vision = vision.to(self.device).eval().requires_grad_(False)
        self.scheduler = make_scheduler()

    def embed_text(self, texts: list[str]) -> torch.Tensor:
        return encoders.text_embeddings(self.tokenizer, self.text, texts, self.device)  # (B, 16, WIDTH)

    def embed_image(self, thumbnails: torch.Tensor, masked: bool) -> torch.Tensor:
        if masked:
            return torch.zeros(len(thumbnails), 1, WIDTH, device=self.device)
        batch, tiles = thumbnails.shape[:2]
        x = thumbnails.flatten(0, 1).permute(0, 3, 1, 2).to(self.device).float() / 127.5 - 1  # (B*tiles, 3, 64, 64)
        tokens = encoders.patch_tokens(self.vision, x)  # (B*tiles, 64, WIDTH)
        return tokens.unflatten(0, (batch, tiles)).flatten(1, 2)  # (B, tiles*64, WIDTH)

    def noised(self, target: torch.Tensor, generator: torch.Generator):
        """Return z_t, timestep and each sample's weight for clean latents, with uniform timesteps as in Eq. 11."""
        timestep = torch.randint(self.scheduler.config.num_train_timesteps, (len(target),), generator=generator)
        noise = torch.randn(target.shape, generator=generator).to(self.device)
        weight = error_weight(self.scheduler.alphas_cumprod[timestep]).to(self.device)
        timestep = timestep.to(self.device)
        return self.scheduler.add_noise(target, noise, timestep), timestep, weight


def error_weight(share: torch.Tensor) -> torch.Tensor:
    """Return the weight of an error at a share of signal (alpha_bar): 1 / (1 - share), at most 5.

    It turns the error of the clean latents into that of the velocity. Without the bound it would go to infinity where
    hardly any noise is left.
    """
    return (1 / (1 - share)).clamp(max=5.0)


def squared_error(prediction: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the mean over samples of ``weight`` (B,) times the mean squared difference of (B, C, h, w)."""
    return (weight * (prediction.float() - target).square().mean((1, 2, 3))).mean()


def train_text2image(out: Path, steps: int = 2500, batch: int = 16) -> None:
    """Train only the UNet, from captions to pictures. A tenth of the captions is dropped, for guidance."""
    torch.manual_seed(2)
    base, unet = Denoising(out, "small"), make_unet().to(memory_format=torch.channels_last)
    mixture = augment.Mixture(mask=1.0, single=0.0, grid=0.0, strip_colors=0.0)

    def loss(step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        sample = augment.draw_batch(base.scenes, "mask", batch, mixture, generator)
        target = sample["target"].to(base.device)
        z_t, timestep, weight = base.noised(target, generator)
        prediction = unet(z_t, timestep, base.embed_text(sample["captions"])).sample
        return {"loss": squared_error(prediction, target, weight)}

    optimizer = replace(MINI.optimizer, learning_rate=6e-4)
    options = {"steps": steps, "precision": unet_precision(), "title": "text to image"}
    fit(out / "text2image", {"unet": unet}, loss, optimizer, **options)
    save(unet, out / "text2image/unet")


MIXTURE = augment.Mixture(mask=0.25, single=0.35, grid=0.3, unrelated=0.1, strip_colors=0.5, drop_text=0.15)


def train_guidance(out: Path, steps: int = 3000, batch: int = 16) -> None:
    """Train a fresh copy and the text-to-image UNet on pairs, beside the guidance that the stage gate left."""
    torch.manual_seed(5)
    unet = UNet2DConditionModel.from_pretrained(out / "text2image/unet")
    guidance = GatedColorGuidance.from_pretrained(out / "gate/guidance")
    control = GuidedControlNet.from_unet(unet, **guidance_options(guidance))
    control.guidance.load_state_dict(guidance.state_dict())
    train_copy(out / "guidance", unet, control, Denoising(out, "small"), steps, batch, learning_rate=6e-4)


def train_fullsize(out: Path, steps: int = 600, batch: int = 4) -> None:
    """Go on with the copy and UNet of the stage guidance, at full size."""
    torch.manual_seed(5)
    unet = UNet2DConditionModel.from_pretrained(out / "guidance/unet")
    control = GuidedControlNet.from_pretrained(out / "guidance/control")
    train_copy(out / "guidance-full", unet, control, Denoising(out, "full"), steps, batch, learning_rate=2e-4)


def train_copy(
    folder: Path,
    unet: UNet2DConditionModel,
    control: GuidedControlNet,
    base: Denoising,
    steps: int,
    batch: int,
    learning_rate: float,
) -> None:
    """Train copy and UNet together on pairs (Eq. 11); the copy's guidance stays as it is."""
    unet.to(memory_format=torch.channels_last).requires_grad_(True)
    control.to(memory_format=torch.channels_last).guidance.requires_grad_(False)

    def loss(step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        kind = augment.draw_kind(MIXTURE, generator)
        sample = augment.draw_batch(base.scenes, kind, batch, MIXTURE, generator)
        target, gray, ref_gray, ref_color = (sample[n].to(base.device) for n in TENSORS)
        z_t, timestep, weight = base.noised(target, generator)
        tokens = base.embed_image(sample["thumbnails"], sample["masked"])
        residuals = control(z_t, timestep, tokens, gray, ref_gray, ref_color)
        prediction = unet(
            z_t,
            timestep,
            base.embed_text(sample["captions"]),
            down_block_additional_residuals=residuals.down_block_res_samples,
            mid_block_additional_residual=residuals.mid_block_res_sample,
        ).sample
        error = squared_error(prediction, target, weight)
        return {"loss": error, f"denoising_{kind}": error.detach()}

    modules = {"unet": unet, "control": control}
    optimizer = replace(MINI.optimizer, learning_rate=learning_rate)
    fit(folder, modules, loss, optimizer, steps=steps, precision=unet_precision(), title=folder.name)
    save(unet, folder / "unet")
    save(control, folder / "control")


def unet_precision() -> str | None:
    """Return None for the device's best, but float32 on the CPU, even on one with bfloat16 instructions.

    Convolutions as small as these, in channels-last, run 1.3 times faster in float32 there.
    """
    return "no" if best_device() == "cpu" else None


# --- stage 10: a folder that from_pretrained reads -------------------------------------------------------------------


def export(out: Path) -> None:
    """Put the parts together as the folder ``pipeline``, with float16 weights and the profile's own settings.

    The settings were chosen on three of the measuring clips (blackswan, dog, soapbox): at an eighth of the strength
    frames keep closer to their ColorHint, with tau = 64 keyframes guide to nearly the last step, and a keyframe's
    tokens count eight times as much as those of earlier frames, which hand on their errors.
    """
    parts, trained = out / "parts", out / "guidance-full"
    pipe = GCGPipeline(
        vae=LumaChromaAutoencoder.from_pretrained(parts / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(parts / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(parts / "tokenizer"),
        unet=UNet2DConditionModel.from_pretrained(trained / "unet"),
        control=GuidedControlNet.from_pretrained(trained / "control"),
        image_encoder=CLIPVisionModelWithProjection.from_pretrained(parts / "image_encoder"),
        feature_extractor=CLIPImageProcessor.from_pretrained(parts / "feature_extractor"),
        scheduler=make_scheduler(),
        guidance_scale=1.2,
        height=320,
        width=560,
        tau=64.0,
        strength=0.125,
        hint_weight=1.0,
        keyframe_weight=8.0,
        guess_strength=0.25,
        noise_scale=0.5,
    )
    pipe.to(torch.float16).save_pretrained(out / "pipeline")


FROM_DATA = {"vae": train_vae, "encoders": train_encoders, "matching": train_matching}
FROM_CACHE = {
    "hint": train_hint, "gate": train_gate, "text2image": train_text2image, "guidance": train_guidance,
    "fullsize": train_fullsize,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of photographs and clips")
    parser.add_argument("--out", type=Path, default=Path("runs/mini"), help="folder of checkpoints and parts")
    parser.add_argument("--steps", type=int, help="instead of the stage's own number of steps")
    args = parser.parse_args()
    steps = {"steps": args.steps} if args.steps else {}
    if args.stage in FROM_DATA:
        FROM_DATA[args.stage](args.data, args.out, **steps)
    elif args.stage in FROM_CACHE:
        FROM_CACHE[args.stage](args.out, **steps)
    elif args.stage == "cache":
        cache_scenes(args.data, args.out)
    else:
        export(args.out)


if __name__ == "__main__":
    main()
