"""Networks of given sizes with random weights, because time and operations do not depend on the values."""

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
from ..utils.files import read_table

SHAPES = read_table(__package__, "random_networks.toml")


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
    pipe = GCGPipeline(**parts, control=control, height=height, width=width, guidance_scale=PAPER_GUIDANCE_SCALE)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device, dtype)
