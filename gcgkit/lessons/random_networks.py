"""Networks of given sizes with random weights, because time and operations do not depend on the values."""

from __future__ import annotations

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

from .. import profiles
from ..control import GuidedControlNet
from ..paper import PAPER_GUIDANCE_SCALE
from ..pipeline import GCGPipeline

# Configurations of the networks: Stable Diffusion 2.1 with CLIP ViT-H, and something that a CPU runs at once.
SHAPES = {
    "sd21": {
        "unet": dict(
            sample_size=64, block_out_channels=(320, 640, 1280, 1280), layers_per_block=2,
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            attention_head_dim=(5, 10, 20, 20), cross_attention_dim=1024, use_linear_projection=True,
        ),
        "vae": dict(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, sample_size=512,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            scaling_factor=0.18215,
        ),
        "text": dict(
            vocab_size=49408, hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16,
            max_position_embeddings=77,
        ),
        "vision": dict(
            hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=16, image_size=224,
            patch_size=14, projection_dim=1024,
        ),
        "guidance": {},
    },
    "toy": {
        "unet": dict(
            sample_size=8, block_out_channels=(16, 32), layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            attention_head_dim=8, cross_attention_dim=16, norm_num_groups=8,
        ),
        "vae": dict(
            block_out_channels=(8,) * 4, layers_per_block=1, latent_channels=4, norm_num_groups=8,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        ),
        "text": dict(
            vocab_size=2000, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=77,
        ),
        "vision": dict(
            hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16,
            patch_size=4, projection_dim=16,
        ),
        "guidance": {"hidden_dim": 8, "condition_width": 8},
    },
}  # fmt: skip


def random_parts(shapes: dict, device: torch.device) -> dict:
    """Make the parts of a pipeline with random weights, in float32, on the device."""
    torch.manual_seed(0)
    with device:
        parts = {
            "unet": UNet2DConditionModel(**shapes["unet"]),
            "vae": AutoencoderKL(**shapes["vae"]),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**shapes["text"], eos_token_id=1, bos_token_id=0)),
            "image_encoder": CLIPVisionModelWithProjection(CLIPVisionConfig(**shapes["vision"])),
        }
    for part in parts.values():
        part.requires_grad_(False).eval()
    side = shapes["vision"]["image_size"]
    parts["feature_extractor"] = CLIPImageProcessor(
        size={"height": side, "width": side}, crop_size={"height": side, "width": side}, do_center_crop=False
    )
    parts["tokenizer"] = CLIPTokenizer.from_pretrained(profiles.WEIGHTS / "mini/tokenizer", model_max_length=77)
    parts["scheduler"] = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    return parts


def random_pipeline(
    shapes: str, dtype: torch.dtype, height: int, width: int, device: torch.device | str
) -> GCGPipeline:
    """Make a pipeline of a size of ``SHAPES`` with random weights and the paper's guidance scale.

    device: "meta" makes networks that have sizes and no weights, whose operations can be counted (`flops`).
    """
    device = torch.device(device)
    parts = random_parts(SHAPES[shapes], device)
    options = {"image_tokens_dim": parts["image_encoder"].config.projection_dim, **SHAPES[shapes]["guidance"]}
    with device:
        control = GuidedControlNet.from_unet(parts["unet"], load_weights_from_unet=False, **options)
    pipe = GCGPipeline(
        **parts, control=control, height=height, width=width, guidance_scale=PAPER_GUIDANCE_SCALE
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device, dtype)
