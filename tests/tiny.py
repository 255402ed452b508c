"""A pipeline of the real classes at toy size with random weights, for tests: a step takes milliseconds."""

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from gcgkit.control import GuidedControlNet
from gcgkit.pipeline import GCGPipeline
from gcgkit.semantics import CHANNELS, SemanticEncoder

WORKING_SIZE = (32, 64)  # height, width: latents of 4x8
WORDS = ("red", "green", "blue", "car", "sky", "grass")
WIDTH = 16  # of text and image tokens


def tokenizer(folder: Path) -> CLIPTokenizer:
    """A real CLIP tokenizer that knows single letters and six words."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    vocabulary, merges = [*letters, *(f"{c}</w>" for c in letters)], []
    for word in WORDS:
        built, *rest = [*word[:-1], f"{word[-1]}</w>"]
        for part in rest:
            merges.append(f"{built} {part}")
            built += part
            vocabulary.append(built)
    vocabulary = list(dict.fromkeys([*vocabulary, "<|startoftext|>", "<|endoftext|>"]))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *dict.fromkeys(merges)]), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 8}), encoding="utf-8"
    )
    return CLIPTokenizer.from_pretrained(folder)


def unet(seed: int = 0) -> UNet2DConditionModel:
    """Two levels, the first with cross-attention, as in Stable Diffusion's blocks."""
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=8,
        norm_num_groups=8,
    ).eval()


def vae(seed: int = 0) -> AutoencoderKL:
    """Factor 8 and four channels, as Stable Diffusion's."""
    torch.manual_seed(seed)
    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        scaling_factor=0.5,
    ).eval()


def image_encoder(seed: int = 0) -> CLIPVisionModelWithProjection:
    """One layer, 16 patches."""
    torch.manual_seed(seed)
    config = CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=16,
        projection_dim=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=4,
    )
    return CLIPVisionModelWithProjection(config).eval()


def text_encoder(words: CLIPTokenizer, seed: int = 0) -> CLIPTextModel:
    """One layer."""
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    return CLIPTextModel(config).eval()


def semantic_encoder(seed: int = 0) -> SemanticEncoder:
    """The real trunk on very small pictures, with weights of a size that lets each picture's features differ."""
    torch.manual_seed(seed)
    encoder = SemanticEncoder(side=32).eval()
    for module in encoder.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    return encoder


def trained(control: GuidedControlNet, seed: int = 0, scale: float = 0.2) -> GuidedControlNet:
    """Move all weights, the zero convolutions among them, so that references and gate matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weights in control.parameters():
            weights.add_(scale * torch.randn(weights.shape, generator=generator))
    return control


def pipeline(folder: Path, zero_control: bool = False, semantics: bool = False, **config) -> GCGPipeline:
    """The whole pipeline; ``zero_control`` leaves the copy as ``from_unet`` makes it.

    With ``semantics`` it has a semantic encoder, and its copy reads 8 channels of a feature pyramid.
    """
    words, net = tokenizer(folder / "tokenizer-source"), unet()
    torch.manual_seed(1)
    seeing = {"semantic_channels": CHANNELS, "semantic_width": 8} if semantics else {}
    control = GuidedControlNet.from_unet(net, image_tokens_dim=WIDTH, condition_width=8, hidden_dim=8, **seeing).eval()
    pipe = GCGPipeline(
        vae=vae(),
        text_encoder=text_encoder(words),
        tokenizer=words,
        unet=net,
        control=control if zero_control else trained(control),
        image_encoder=image_encoder(),
        feature_extractor=CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        semantic_encoder=semantic_encoder() if semantics else None,
        **{"guidance_scale": 2.0, "height": WORKING_SIZE[0], "width": WORKING_SIZE[1], **config},
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def clip(frames: int = 5, height: int = 32, width: int = 64, seed: int = 0) -> np.ndarray:
    """A colour clip ``(T, H, W, 3)``: blocks drift over a ramp, so that near frames are more alike than far ones."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(40, 216, (4, 3))
    y, x = np.mgrid[:height, :width]
    result = np.empty((frames, height, width, 3), np.uint8)
    for t in range(frames):
        result[t] = (60 + 120 * (x + 2 * t) / (width + 2 * frames)).astype(np.uint8)[..., None]
        for k, color in enumerate(blocks):
            top, left = (k * height // 5 + t) % height, (k * width // 4 + (k + 1) * t) % width
            inside = (y >= top) & (y < top + height // 3) & (x >= left) & (x < left + width // 4)
            result[t][inside] = color
    return result


def paper_parts(pipe: GCGPipeline, folder: Path) -> None:
    """Save the pipeline's parts as the hub has the paper's: ``base``, with another scheduler, and ``clip``."""
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    scheduler = PNDMScheduler(
        prediction_type="v_prediction", beta_schedule="scaled_linear", steps_offset=1, skip_prk_steps=True
    )
    StableDiffusionPipeline(
        vae=pipe.vae,
        text_encoder=pipe.text_encoder,
        tokenizer=pipe.tokenizer,
        unet=pipe.unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder / "base")
    pipe.image_encoder.save_pretrained(folder / "clip")
    pipe.feature_extractor.save_pretrained(folder / "clip")


def blip(folder: Path) -> Path:
    """Save a BLIP with random weights and 12 words, as the hub's are; return its folder."""
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

    folder.mkdir(parents=True, exist_ok=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[DEC]", "a", "red", "car", "dog", "on", "grass", "the"]
    (folder / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizer.from_pretrained(folder, bos_token="[DEC]")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    text = {
        **sizes,
        "vocab_size": 12,
        "encoder_hidden_size": 16,
        "bos_token_id": 4,
        "sep_token_id": 3,
        "eos_token_id": 3,
        "pad_token_id": 0,
        "max_position_embeddings": 64,
    }
    vision = {**sizes, "image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    model = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision, projection_dim=16))
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, 0, 0.7)  # large, or every picture would get the same words
        if name.endswith("predictions.bias"):
            weight.data[:5] = -1000  # words only
    model.save_pretrained(folder)
    BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return folder
