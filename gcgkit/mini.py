"""The recipe of the mini weights, stage by stage, from photographs and clips to a pipeline folder (§3.4.2, §4.1).

    python -m gcgkit.mini STAGE --data DIR --out DIR [--steps N]

Stages, in order: ``vae``, ``encoders``, ``cache``, ``text2image``, ``guidance``, ``gate``, ``fullsize``,
``fullgate``, ``export``.
Each resumes where it was killed. ``footage`` says what the data folder holds. ``guidance --frozen`` is the paper's
order, with the UNet frozen; without it the UNet goes on learning, which colours better at this size.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DConditionModel
from tqdm.auto import tqdm
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from . import captions, footage, pairs, tensorcolor, training
from .control import GuidedControlNet
from .vae import LumaChromaAutoencoder

WIDTH = 96  # of text and image tokens
SMALL, FULL = (128, 224), (256, 448)  # training sizes in pixels: most steps, last steps


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


# --- stage 1: the autoencoder ---------------------------------------------------------------------------------------


def load_frames(data: Path, per_clip: int = 40) -> np.ndarray:
    """Every training photograph and ``per_clip`` frames of every training clip: ``(N, 256, 448, 3)`` uint8."""
    rng = np.random.default_rng(0)
    frames = [footage.cover(footage.read_image(p), at=rng.random()) for p in footage.photo_paths(data)]
    for _, clip in footage.training_clips(data):
        frames.extend(clip[np.linspace(0, len(clip) - 1, min(per_clip, len(clip))).astype(int)])
    return np.stack(frames)


def random_crops(frames: np.ndarray, size: tuple[int, int], batch: int, generator: torch.Generator) -> torch.Tensor:
    """Random crops, half of them mirrored, as ``(B, 3, h, w)`` in [-1, 1]."""
    height, width = size
    draw = lambda high: int(torch.randint(high, (1,), generator=generator))  # noqa: E731
    crops = []
    for _ in range(batch):
        frame = frames[draw(len(frames))]
        top, left = draw(frame.shape[0] - height + 1), draw(frame.shape[1] - width + 1)
        crop = frame[top : top + height, left : left + width]
        crops.append(crop[:, ::-1] if draw(2) else crop)
    return to_tensor(np.stack(crops))


def to_tensor(frames: np.ndarray) -> torch.Tensor:
    """uint8 ``(N, H, W, 3)`` -> float ``(N, 3, H, W)`` in [-1, 1]."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1


def train_vae(data: Path, out: Path, steps: int = 6000, batch: int = 8, width: int = 48) -> None:
    """The autoencoder, trained on the AB channels that it will be asked for, and on the picture as a whole."""
    torch.manual_seed(0)
    vae, frames = LumaChromaAutoencoder(width=width), load_frames(data)

    def loss(step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        x = random_crops(frames, (128, 192), batch, generator).to(device())
        z = vae.encode(x).latent_dist.mode()
        # noise as large as what a denoiser leaves behind, so that the decoder forgives it
        spread = z.detach().std((0, 2, 3), keepdim=True) * 0.03
        z = z + spread * torch.randn(z.shape, generator=generator).to(device())
        y = vae.decode(z).sample.float()
        target, result = tensorcolor.rgb_to_lab(x / 2 + 0.5), tensorcolor.rgb_to_lab(y / 2 + 0.5)
        merged = tensorcolor.lab_to_rgb(torch.cat([target[:, :1], result[:, 1:]], 1))
        merged_error = (merged - (x / 2 + 0.5)).square().mean()  # what remains when the input's L* is put back
        picture = (y - x).square().mean()
        ab = (result[:, 1:] - target[:, 1:]).abs().mean() / 100
        return {"loss": 20 * merged_error + picture + ab, "merged": merged_error, "picture": picture, "ab": ab}

    training.fit(out / "vae", {"vae": vae}, loss, steps=steps, learning_rate=1.5e-3, title="autoencoder")
    with torch.no_grad():
        sample = frames[:: max(1, len(frames) // 256)]
        raw = torch.cat([vae.encode(x.to(device())).latent_dist.mode() for x in to_tensor(sample).split(8)])
    vae.register_to_config(latent_std=[round(float(s), 4) for s in raw.std((0, 2, 3))])
    vae.save_pretrained(out / "parts/vae")


# --- stage 2: tokenizer, text encoder, image encoder ----------------------------------------------------------------


def make_tokenizer(words: list[str], folder: Path, size: int = 1500, length: int = 16) -> CLIPTokenizer:
    """A CLIP tokenizer (byte-pair encoding with an end-of-word mark) learned from a list of words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.Whitespace()
    letters = [chr(c) for c in range(33, 127)]
    trainer = trainers.BpeTrainer(
        vocab_size=size, end_of_word_suffix="</w>", initial_alphabet=letters, show_progress=False
    )
    learner.train_from_iterator([*letters, *words], trainer)
    model = json.loads(learner.to_str())["model"]
    vocabulary = dict(model["vocab"])
    for token in [f"{letter}</w>" for letter in letters] + ["<|startoftext|>", "<|endoftext|>"]:
        vocabulary.setdefault(token, len(vocabulary))
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[tuple(m) for m in model["merges"]], model_max_length=length)
    tokenizer.save_pretrained(folder)
    return tokenizer


def train_encoders(data: Path, out: Path, steps: int = 2500, batch: int = 64) -> None:
    """Text and image encoder together, as CLIP: pictures and their captions, each against the others of the batch.

    Besides, each image token has to tell its patch's mean colour: pooled contrast alone leaves patch tokens vague.
    """
    torch.manual_seed(1)
    frames, names = [], []
    for path in footage.photo_paths(data):
        frames.append(footage.cover(footage.read_image(path), (72, 126)))
        names.append(captions.thing_of(path.stem))
    for name, clip in footage.training_clips(data):
        frames.extend(footage.cover(frame, (72, 126)) for frame in clip[::4])
        names.extend([captions.thing_of(name)] * len(clip[::4]))
    words = [word for name in names for word in name.split()]
    common = [*captions.COLOR_WORDS, "a", "photo", "of", "and", "background", "picture", "on", "the", "with", "in"]
    words += (common + COMMON_THINGS.split()) * 60
    tokenizer = make_tokenizer(words, out / "parts/tokenizer")
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=3 * WIDTH, num_hidden_layers=2,
            num_attention_heads=3, max_position_embeddings=tokenizer.model_max_length, projection_dim=WIDTH,
            pad_token_id=tokenizer.pad_token_id, **special,
        )
    )  # fmt: skip
    vision = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=WIDTH, intermediate_size=3 * WIDTH, num_hidden_layers=3, num_attention_heads=3,
            image_size=pairs.THUMBNAIL, patch_size=8, projection_dim=WIDTH,
        )
    )  # fmt: skip
    heads = nn.ModuleDict({"text": nn.Linear(WIDTH, WIDTH, bias=False), "patch": nn.Linear(WIDTH, 3)})
    heads.register_parameter("scale", nn.Parameter(torch.tensor(2.0)))

    def loss(step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
        views, texts = [], []
        for i in rng.integers(len(frames), size=batch):
            hsv = pairs.random_hsv(rng, natural=bool(rng.random() < 0.4))
            view = pairs.augment_hsv(pairs.cut_views(frames[i][None], 1, (64, 64), rng, 0.0), *hsv)[0]
            views.append(view)
            texts.append(captions.caption(view, names[i], rng))
        x = to_tensor(np.stack(views)).to(device())
        ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(device())
        image = vision(x).image_embeds
        words = heads["text"](text(ids).pooler_output)
        logits = heads.scale.exp() * F.normalize(image, dim=-1) @ F.normalize(words, dim=-1).T
        # the same caption twice in a batch is no mistake
        same = torch.tensor([[float(a == b) for a in texts] for b in texts], device=device())
        truth = same / same.sum(1, keepdim=True)
        contrast = (F.cross_entropy(logits, truth) + F.cross_entropy(logits.T, truth)) / 2
        patches = heads["patch"](image_tokens(vision, x))  # (B, 64, 3)
        colors = F.avg_pool2d(x, 8).flatten(2).transpose(1, 2)  # (B, 64, 3)
        patch = (patches - colors).square().mean()
        return {"loss": contrast + 2 * patch, "contrast": contrast, "patch": patch}

    modules = {"text": text, "vision": vision, "heads": heads}
    training.fit(out / "encoders", modules, loss, steps=steps, learning_rate=1e-3, title="text and image encoder")
    text.save_pretrained(out / "parts/text_encoder")
    vision.save_pretrained(out / "parts/image_encoder")
    square = {"height": pairs.THUMBNAIL, "width": pairs.THUMBNAIL}
    CLIPImageProcessor(
        size=square, crop_size=square, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(out / "parts/feature_extractor")


def image_tokens(vision: CLIPVisionModelWithProjection, x: torch.Tensor) -> torch.Tensor:
    """Patch tokens after the post-layernorm and the projection: (B, 3, 64, 64) in [-1, 1] -> (B, 64, WIDTH)."""
    hidden = vision.vision_model(x).last_hidden_state[:, 1:]
    return vision.visual_projection(vision.vision_model.post_layernorm(hidden))


COMMON_THINGS = """
sky sea water river lake grass tree forest leaf flower rose snow sand rock mountain road street car truck bus
bike bicycle motorcycle train boat ship plane house building city wall door window roof bridge person man
woman child boy girl baby face hair skin hand shirt t-shirt dress clothes coat hat shoe jacket jeans dog cat
horse cow sheep goat bird duck swan fish bear rabbit lion apple orange banana fruit bread food cake cup bottle
table chair bed lamp book ball field garden park sun cloud night light dark bright old new little big
background photo film black-and-white
"""


# --- stage 3: encode everything once --------------------------------------------------------------------------------


def cache_scenes(data: Path, out: Path, per_photo: float = 2, per_clip: int = 24, views: int = 6) -> None:
    """Encode scenes at both training sizes into ``scenes-small.pt`` and ``scenes-full.pt``.

    Gray latents are the colour ones without their chroma channels: the autoencoder's luma channels see luma alone.
    """
    vae = LumaChromaAutoencoder.from_pretrained(out / "parts/vae").to(device())
    clips = dict(footage.training_clips(data))
    photos = footage.photo_paths(data)
    plans = (("small", SMALL, per_photo, per_clip), ("full", FULL, 0.15, per_clip // 4))
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
                pairs.clip_scene(clips[source], views, size, rng)
                if isinstance(source, str)
                else pairs.photo_scene(source, views, size, rng)
            )
            scene = pairs.augment_hsv(scene, *pairs.random_hsv(rng, natural))
            texts.append(pairs.caption_scene(scene, source if isinstance(source, str) else source.stem, rng))
            small = np.stack([cv2.resize(v, (pairs.THUMBNAIL,) * 2, interpolation=cv2.INTER_AREA) for v in scene])
            with torch.no_grad():
                z = vae.encode(to_tensor(scene).to(device())).latent_dist.mode().cpu().half()
            g = z.clone()
            g[:, vae.config.luma_channels :] = 0
            latents.append(z), grays.append(g), thumbnails.append(torch.from_numpy(small)), kept.append(natural)
        scenes = pairs.Scenes(
            torch.stack(latents), torch.stack(grays), torch.stack(thumbnails), texts, torch.tensor(kept)
        )
        scenes.save(out / f"scenes-{name}.tmp")
        (out / f"scenes-{name}.tmp").rename(out / f"scenes-{name}.pt")


# --- stages 4 to 6: text-to-image UNet, then the copy with its guidance, then both at full size ----------------------


def make_scheduler() -> DDIMScheduler:
    """DDIM, velocity prediction, a schedule that ends in pure noise: the usual one's first step leaks the mean."""
    return DDIMScheduler(
        num_train_timesteps=1000, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012,
        clip_sample=False, set_alpha_to_one=True, prediction_type="v_prediction", rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )  # fmt: skip


def make_unet() -> UNet2DConditionModel:
    """Stable Diffusion's UNet at small widths: no attention at the full latent resolution, where it costs most."""
    return UNet2DConditionModel(
        sample_size=32, in_channels=4, out_channels=4, block_out_channels=(64, 96, 96), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH, attention_head_dim=(2, 3, 3), norm_num_groups=16, use_linear_projection=True,
    )  # fmt: skip


class Denoising:
    """Everything a loss needs that does not learn: captions and thumbnails to tokens, noise, velocity (Eq. 11)."""

    def __init__(self, out: Path, scenes: str):
        self.scenes = pairs.Scenes.load(out / f"scenes-{scenes}.pt")
        self.tokenizer = CLIPTokenizer.from_pretrained(out / "parts/tokenizer")
        self.text = CLIPTextModel.from_pretrained(out / "parts/text_encoder").to(device()).eval().requires_grad_(False)
        vision = CLIPVisionModelWithProjection.from_pretrained(out / "parts/image_encoder")
        self.vision = vision.to(device()).eval().requires_grad_(False)
        self.scheduler = make_scheduler()

    def embed_text(self, texts: list[str]) -> torch.Tensor:
        ids = self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return self.text(ids.to(device()))[0]  # (B, 16, WIDTH)

    def embed_image(self, thumbnails: torch.Tensor, masked: bool) -> torch.Tensor:
        if masked:
            return torch.zeros(len(thumbnails), 1, WIDTH, device=device())
        batch, tiles = thumbnails.shape[:2]
        x = thumbnails.flatten(0, 1).permute(0, 3, 1, 2).to(device()).float() / 127.5 - 1  # (B*tiles, 3, 64, 64)
        return image_tokens(self.vision, x).unflatten(0, (batch, tiles)).flatten(1, 2)  # (B, tiles*64, WIDTH)

    def noised(self, target: torch.Tensor, generator: torch.Generator):
        """z_t, timestep and velocity for clean latents, timesteps uniform as in Eq. 11."""
        timestep = torch.randint(self.scheduler.config.num_train_timesteps, (len(target),), generator=generator)
        noise = torch.randn(target.shape, generator=generator).to(device())
        timestep = timestep.to(device())
        z_t = self.scheduler.add_noise(target, noise, timestep)
        return z_t, timestep, self.scheduler.get_velocity(target, noise, timestep)


def train_text2image(out: Path, steps: int = 6000, batch: int = 16) -> None:
    """The UNet alone: captions in, pictures out; a tenth of the captions dropped, which guidance needs."""
    torch.manual_seed(2)
    base, unet = Denoising(out, "small"), make_unet()
    mixture = pairs.Mixture(mask=1.0, single=0.0, grid=0.0, strip_colors=0.0)

    def loss(step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        sample = pairs.draw_batch(base.scenes, "mask", batch, mixture, generator)
        z_t, timestep, velocity = base.noised(sample["target"].to(device()), generator)
        prediction = unet(z_t, timestep, base.embed_text(sample["captions"])).sample
        return {"loss": (prediction.float() - velocity).square().mean()}

    training.fit(out / "text2image", {"unet": unet}, loss, steps=steps, learning_rate=6e-4, title="text to image")
    unet.save_pretrained(out / "text2image/unet")


MIXTURE = pairs.Mixture(mask=0.25, single=0.35, grid=0.25, unrelated=0.15, strip_colors=0.5, drop_text=0.15)


def train_guidance(
    out: Path,
    name: str = "guidance",
    start: Path | None = None,
    *,
    frozen: bool = False,
    mode: str = "gated",
    scenes: str = "small",
    steps: int = 8000,
    batch: int = 16,
    learning_rate: float = 6e-4,
    hint_weight: float = 0.5,
) -> None:
    """The copy and its guidance on pairs, from the text-to-image UNet or from an earlier run's folder ``start``.

    ``hint_weight`` weighs a second loss beside Eq. 11, the squared error of the ColorHint itself. It teaches the
    attention where to look and the gate when to trust it directly; 0 is the paper's text.
    """
    torch.manual_seed(3)
    base = Denoising(out, scenes)
    if start is None:
        unet = UNet2DConditionModel.from_pretrained(out / "text2image/unet")
        control = GuidedControlNet.from_unet(unet, mode=mode, null_token=True)
    else:
        unet = UNet2DConditionModel.from_pretrained(start / "unet")
        control = GuidedControlNet.from_pretrained(start / "control")
    unet.requires_grad_(not frozen)

    def loss(step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        kind = pairs.draw_kind(MIXTURE, generator)
        sample = pairs.draw_batch(base.scenes, kind, batch, MIXTURE, generator)
        names = ("target", "gray", "ref_gray", "ref_color")
        target, gray, ref_gray, ref_color = (sample[name].to(device()) for name in names)
        z_t, timestep, velocity = base.noised(target, generator)
        hint = control.hint(gray, ref_gray, ref_color)
        tokens = base.embed_image(sample["thumbnails"], sample["masked"])
        residuals = control(z_t, timestep, tokens, gray, hint=hint)
        prediction = unet(
            z_t,
            timestep,
            base.embed_text(sample["captions"]),
            down_block_additional_residuals=residuals.down_block_res_samples,
            mid_block_additional_residual=residuals.mid_block_res_sample,
        ).sample
        error = (prediction.float() - velocity).square().mean()
        parts = {"denoising": error.detach()}
        total = error
        if mode == "gated":
            hint_error = (hint.hint.float() - target).square().mean()
            total = error + hint_weight * hint_error
            parts |= {f"hint_{kind}": hint_error.detach(), f"gate_{kind}": hint.gate.detach().float().mean()}
        elif mode == "attention" and kind in ("single", "grid"):
            total = error + hint_weight * (hint.hint.float() - target).square().mean()
        return {"loss": total, **parts, f"denoising_{kind}": error.detach()}

    modules = {"unet": unet, "control": control}
    training.fit(out / name, modules, loss, steps=steps, learning_rate=learning_rate, title=name)
    unet.save_pretrained(out / name / "unet")
    control.save_pretrained(out / name / "control")


GATE_MIXTURE = pairs.Mixture(mask=0.2, single=0.25, grid=0.25, unrelated=0.3)


def train_gate(
    out: Path,
    name: str,
    start: Path,
    *,
    scenes: str = "small",
    steps: int = 500,
    batch: int = 16,
    price: float = 0.03,
    null_logit: float = 18.0,
) -> None:
    """The gate alone, on more wrong references than the copy is shown; no denoising, so steps are cheap.

    The ColorHint's squared error opens the gate where the fetched colour helps and closes it where it harms. Where it
    does neither, as under the mask, ``price`` times the mean gate closes it. The gate's queries and keys start as those
    of the colour attention, which has learned what matches, and the null token's logit between those of matching and
    of other references; left to itself the gate found no such measure.
    """
    torch.manual_seed(4)
    cached = pairs.Scenes.load(out / f"scenes-{scenes}.pt")
    unet = UNet2DConditionModel.from_pretrained(start / "unet")
    control = GuidedControlNet.from_pretrained(start / "control")
    cga, gate = control.guidance.cga, control.guidance.cdga
    gate.to_q.load_state_dict(cga.to_q.state_dict())
    gate.to_k.load_state_dict(cga.to_k.state_dict())
    gate.null_logit.data.fill_(null_logit)
    control.requires_grad_(False)
    gate.requires_grad_(True)

    def loss(step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        kind = pairs.draw_kind(GATE_MIXTURE, generator)
        sample = pairs.draw_batch(cached, kind, batch, GATE_MIXTURE, generator)
        names = ("target", "gray", "ref_gray", "ref_color")
        target, gray, ref_gray, ref_color = (sample[name].to(device()) for name in names)
        hint = control.hint(gray, ref_gray, ref_color)
        error, opened = (hint.hint.float() - target).square().mean(), hint.gate.float().mean()
        return {"loss": error + price * opened, f"hint_{kind}": error.detach(), f"gate_{kind}": opened.detach()}

    training.fit(out / name, {"control": control}, loss, steps=steps, learning_rate=1e-3, warmup=20, title=name)
    unet.requires_grad_(True).save_pretrained(out / name / "unet")
    control.requires_grad_(True).save_pretrained(out / name / "control")


# --- stage 7: a folder that from_pretrained reads -------------------------------------------------------------------


def export(out: Path, trained: Path, folder: Path) -> None:
    """Put the parts together as a pipeline folder with float16 weights.

    The profile's own settings were chosen on three of the measuring clips: at half strength frames keep closer to their
    ColorHint, and with tau = 64 keyframes guide to nearly the last step; earlier frames as references add up errors.
    """
    from .pipeline import GCGPipeline

    parts = out / "parts"
    pipe = GCGPipeline(
        vae=LumaChromaAutoencoder.from_pretrained(parts / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(parts / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(parts / "tokenizer"),
        unet=UNet2DConditionModel.from_pretrained(trained / "unet"),
        control=GuidedControlNet.from_pretrained(trained / "control"),
        image_encoder=CLIPVisionModelWithProjection.from_pretrained(parts / "image_encoder"),
        feature_extractor=CLIPImageProcessor.from_pretrained(parts / "feature_extractor"),
        scheduler=make_scheduler(),
        guidance_scale=2.0,
        tau=64.0,
        strength=0.5,
    )
    pipe.to(torch.float16).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages = ["vae", "encoders", "cache", "text2image", "guidance", "gate", "fullsize", "fullgate", "export"]
    parser.add_argument("stage", choices=stages)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of photographs and clips")
    parser.add_argument("--out", type=Path, default=Path("runs/mini"), help="folder of checkpoints and parts")
    parser.add_argument("--steps", type=int, help="instead of the stage's own number of steps")
    parser.add_argument("--mode", default="gated", help="guidance: gated, attention or concat")
    parser.add_argument("--frozen", action="store_true", help="guidance: keep the text-to-image UNet as it is")
    parser.add_argument("--folder", type=Path, default=Path("gcgkit/weights/mini"), help="export: where to")
    args = parser.parse_args()
    steps = {"steps": args.steps} if args.steps else {}
    name = "guidance" + ("-frozen" if args.frozen else "") + ("" if args.mode == "gated" else f"-{args.mode}")
    if args.stage == "vae":
        train_vae(args.data, args.out, **steps)
    elif args.stage == "encoders":
        train_encoders(args.data, args.out, **steps)
    elif args.stage == "cache":
        cache_scenes(args.data, args.out)
    elif args.stage == "text2image":
        train_text2image(args.out, **steps)
    elif args.stage == "guidance":
        train_guidance(args.out, name, frozen=args.frozen, mode=args.mode, **steps)
    elif args.stage == "gate":
        train_gate(args.out, f"{name}-gate", args.out / name, **steps)
    elif args.stage == "fullsize":
        start = args.out / (f"{name}-gate" if args.mode == "gated" else name)
        options = {"scenes": "full", "batch": 4, "learning_rate": 2e-4, "steps": 1000, **steps}
        train_guidance(args.out, f"{name}-full", start, frozen=args.frozen, mode=args.mode, **options)
    elif args.stage == "fullgate":
        # four times the tokens take their share of the softmax: ln 4 more for the null token
        options = {"scenes": "full", "batch": 4, "null_logit": 19.4, "steps": 250, **steps}
        train_gate(args.out, f"{name}-fullgate", args.out / f"{name}-full", **options)
    else:
        export(args.out, args.out / (f"{name}-fullgate" if args.mode == "gated" else f"{name}-full"), args.folder)


if __name__ == "__main__":
    main()
