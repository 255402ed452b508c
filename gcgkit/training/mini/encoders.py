"""The mini model's parts that are trained before it colours: autoencoder, tokenizer, text and image encoder.

The first two stages of ``recipe``.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers import ModelMixin
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from ... import encoders
from ...data import augment, footage, naming
from ...utils.commands import best_device
from ...vae import LumaChromaAutoencoder
from ..loop import fit
from ..recipes import MINI

WIDTH = 96  # of text and image tokens
# In the rounding that the bundled autoencoder was trained with.
_TO_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
_TENSOR_WHITE = (0.950456, 1.0, 1.088754)  # D65


def save(model: ModelMixin, folder: Path) -> None:
    """Save a trained model, contiguous because safetensors takes no channels-last weights."""
    model.requires_grad_(True).to(memory_format=torch.contiguous_format).save_pretrained(folder)


# --- stage 1: the autoencoder ---------------------------------------------------------------------------------------


def load_frames(data: Path, per_clip: int = 40) -> np.ndarray:
    """Load every training photograph and ``per_clip`` frames of every training clip: ``(N, 256, 448, 3)`` uint8."""
    rng = np.random.default_rng(0)
    frames = [footage.cover(footage.read_image(p), at=rng.random()) for p in footage.photo_paths(data)]
    for _, clip in footage.training_clips(data):
        frames.extend(clip[np.linspace(0, len(clip) - 1, min(per_clip, len(clip))).astype(int)])
    return np.stack(frames)


def random_crops(frames: np.ndarray, size: tuple[int, int], batch: int, generator: torch.Generator) -> torch.Tensor:
    """Cut random crops, half of them mirrored: ``(B, 3, h, w)`` in [-1, 1]."""
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
    """Convert uint8 ``(N, H, W, 3)`` to float ``(N, 3, H, W)`` in [-1, 1]."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1


def train_vae(data: Path, out: Path, steps: int = 2100, batch: int = 8, width: int = 48) -> None:
    """Train the autoencoder on the AB channels, which colouring takes from it, and on the whole picture."""
    torch.manual_seed(0)
    device, vae, frames = best_device(), LumaChromaAutoencoder(width=width), load_frames(data)

    def loss(step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        x = random_crops(frames, (128, 192), batch, generator).to(device)
        z = vae.encode(x).latent_dist.mode()
        # noise as strong as a denoiser leaves, so that the decoder tolerates it
        spread = z.detach().std((0, 2, 3), keepdim=True) * 0.03
        z = z + spread * torch.randn(z.shape, generator=generator).to(device)
        y = vae.decode(z).sample.float()
        target, result = tensor_rgb_to_lab(x / 2 + 0.5), tensor_rgb_to_lab(y / 2 + 0.5)
        merged = tensor_lab_to_rgb(torch.cat([target[:, :1], result[:, 1:]], 1))
        merged_error = (merged - (x / 2 + 0.5)).square().mean()  # the error after the input's L* is put back
        picture = (y - x).square().mean()
        ab = (result[:, 1:] - target[:, 1:]).abs().mean() / 100
        return {"loss": 20 * merged_error + picture + ab, "merged": merged_error, "picture": picture, "ab": ab}

    optimizer = replace(MINI.optimizer, learning_rate=1.5e-3)
    fit(out / "vae", {"vae": vae}, loss, optimizer, steps=steps, title="autoencoder")
    with torch.no_grad():
        sample = frames[:: max(1, len(frames) // 256)]
        raw = torch.cat([vae.encode(x.to(device)).latent_dist.mode() for x in to_tensor(sample).split(8)])
    vae.register_to_config(latent_std=[round(float(s), 4) for s in raw.std((0, 2, 3))])
    vae.save_pretrained(out / "parts/vae")


def tensor_rgb_to_lab(x: torch.Tensor) -> torch.Tensor:
    """LAB of sRGB frames: ``(B, 3, H, W)`` in [0, 1] -> ``(B, 3, H, W)``, L in 0..100, D65 white.

    Differentiable, for losses; arrays go through ``color.rgb_to_lab``.
    """
    x = x.float().clamp(1e-4, 1)
    linear = torch.where(x > 0.04045, ((x + 0.055) / 1.055) ** 2.4, x / 12.92)
    xyz = torch.einsum("ij,bjhw->bihw", x.new_tensor(_TO_XYZ), linear) / x.new_tensor(_TENSOR_WHITE).view(1, 3, 1, 1)
    f = torch.where(xyz > 0.008856, xyz.clamp(min=1e-6) ** (1 / 3), 7.787 * xyz + 16 / 116)
    fx, fy, fz = f.unbind(1)
    return torch.stack([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)], 1)


def tensor_lab_to_rgb(lab: torch.Tensor) -> torch.Tensor:
    """sRGB of LAB frames: ``(B, 3, H, W)`` -> ``(B, 3, H, W)``, not clipped to [0, 1]."""
    fy = (lab[:, :1] + 16) / 116
    f = torch.cat([fy + lab[:, 1:2] / 500, fy, fy - lab[:, 2:] / 200], 1)
    xyz = torch.where(f > 0.206893, f**3, (f - 16 / 116) / 7.787) * f.new_tensor(_TENSOR_WHITE).view(1, 3, 1, 1)
    linear = torch.einsum("ij,bjhw->bihw", torch.linalg.inv(f.new_tensor(_TO_XYZ)), xyz)
    return torch.where(linear > 0.0031308, 1.055 * linear.clamp(min=1e-6) ** (1 / 2.4) - 0.055, 12.92 * linear)


# --- stage 2: tokenizer, text encoder, image encoder ----------------------------------------------------------------


def make_tokenizer(words: list[str], folder: Path, size: int = 1500, length: int = 16) -> CLIPTokenizer:
    """Make a CLIP tokenizer (byte-pair encoding with an end-of-word mark) from a list of words."""
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


def train_encoders(data: Path, out: Path, steps: int = 800, batch: int = 64) -> None:
    """Train text and image encoder together, as CLIP: each picture and its caption against the rest of the batch.

    Each image token also predicts its patch's mean colour, because the pooled contrast leaves patch tokens vague.
    """
    torch.manual_seed(1)
    device, frames, names = best_device(), [], []
    for path in footage.photo_paths(data):
        frames.append(footage.cover(footage.read_image(path), (72, 126)))
        names.append(naming.thing_of(path.stem))
    for name, clip in footage.training_clips(data):
        frames.extend(footage.cover(frame, (72, 126)) for frame in clip[::4])
        names.extend([naming.thing_of(name)] * len(clip[::4]))
    words = [word for name in names for word in name.split()]
    common = [*naming.COLOR_WORDS, "a", "photo", "of", "and", "background", "picture", "on", "the", "with", "in"]
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
            image_size=augment.THUMBNAIL, patch_size=8, projection_dim=WIDTH,
        )
    )  # fmt: skip
    heads = nn.ModuleDict({"text": nn.Linear(WIDTH, WIDTH, bias=False), "patch": nn.Linear(WIDTH, 3)})
    heads.register_parameter("scale", nn.Parameter(torch.tensor(2.0)))

    def loss(step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
        views, texts = [], []
        for i in rng.integers(len(frames), size=batch):
            hsv = augment.random_hsv(rng, natural=bool(rng.random() < 0.4))
            view = augment.augment_hsv(augment.cut_views(frames[i][None], 1, (64, 64), rng, 0.0), *hsv)[0]
            views.append(view)
            texts.append(naming.caption(view, names[i], rng))
        x = to_tensor(np.stack(views)).to(device)
        ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(device)
        image = vision(x).image_embeds
        words = heads["text"](text(ids).pooler_output)
        logits = heads.scale.exp() * F.normalize(image, dim=-1) @ F.normalize(words, dim=-1).T
        # the same caption twice in a batch is no mistake
        same = torch.tensor([[float(a == b) for a in texts] for b in texts], device=device)
        truth = same / same.sum(1, keepdim=True)
        contrast = (F.cross_entropy(logits, truth) + F.cross_entropy(logits.T, truth)) / 2
        patches = heads["patch"](encoders.patch_tokens(vision, x))  # (B, 64, 3)
        colors = F.avg_pool2d(x, 8).flatten(2).transpose(1, 2)  # (B, 64, 3)
        patch = (patches - colors).square().mean()
        return {"loss": contrast + 2 * patch, "contrast": contrast, "patch": patch}

    modules = {"text": text, "vision": vision, "heads": heads}
    optimizer = replace(MINI.optimizer, learning_rate=1e-3)
    fit(out / "encoders", modules, loss, optimizer, steps=steps, title="text and image encoder")
    text.save_pretrained(out / "parts/text_encoder")
    vision.save_pretrained(out / "parts/image_encoder")
    square = {"height": augment.THUMBNAIL, "width": augment.THUMBNAIL}
    CLIPImageProcessor(
        size=square, crop_size=square, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(out / "parts/feature_extractor")


COMMON_THINGS = """
sky sea water river lake grass tree forest leaf flower rose snow sand rock mountain road street car truck bus
bike bicycle motorcycle train boat ship plane house building city wall door window roof bridge person man
woman child boy girl baby face hair skin hand shirt t-shirt dress clothes coat hat shoe jacket jeans dog cat
horse cow sheep goat bird duck swan fish bear rabbit lion apple orange banana fruit bread food cake cup bottle
table chair bed lamp book ball field garden park sun cloud night light dark bright old new little big
background photo film black-and-white
"""
