"""From frames to the networks' inputs, and back: canvas, latents, image tokens, text embeddings (§3.2, §3.4.2).

Frames of any size are scaled with their aspect kept, padded to a size that the networks take, and cropped at the end.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from .color import resize

IMAGE_CONDITIONS = ("patch", "pooled", "none")


@dataclass(frozen=True)
class Canvas:
    """Place of a frame on the model's canvas: scaled to ``inner``, padded right and below to ``outer``.

    All sizes are (height, width) in pixels.
    """

    frame: tuple[int, int]
    inner: tuple[int, int]
    outer: tuple[int, int]

    def place(self, image: np.ndarray, padded: bool = True) -> np.ndarray:
        """Frame on the canvas: uint8 ``(H, W)`` or ``(H, W, 3)`` -> the same of size ``outer`` (``inner`` unpadded)."""
        height, width = self.inner
        image = resize(image, height, width)
        below, right = self.outer[0] - height, self.outer[1] - width
        if not padded or (below == 0 and right == 0):
            return image
        # Mirroring continues the picture's own texture, but only as far as the picture is wide or high.
        mirror = below < height and right < width
        border = cv2.BORDER_REFLECT_101 if mirror else cv2.BORDER_REPLICATE
        return cv2.copyMakeBorder(image, 0, below, 0, right, border)

    def crop(self, image: np.ndarray) -> np.ndarray:
        """The frame's part of a canvas: ``(outer..., 3)`` -> ``(inner..., 3)``."""
        return image[: self.inner[0], : self.inner[1]]


def fit_canvas(frame_size: tuple[int, int], working_size: tuple[int, int], multiple: int) -> Canvas:
    """Canvas of a frame: scaled, aspect kept, to fit ``working_size``, then padded to multiples of ``multiple``.

    Sizes are (height, width) in pixels.
    """
    height, width = frame_size
    scale = min(working_size[0] / height, working_size[1] / width)
    inner = (max(1, round(height * scale)), max(1, round(width * scale)))
    outer = (math.ceil(inner[0] / multiple) * multiple, math.ceil(inner[1] / multiple) * multiple)
    return Canvas((height, width), inner, outer)


def canvas_multiple(vae, unet) -> int:
    """Pixels that a canvas side must be a multiple of: the autoencoder's factor times the UNet's."""
    return _factor(vae) * 2 ** (len(unet.config.block_out_channels) - 1)


def latent_size(vae, size: tuple[int, int]) -> tuple[int, int]:
    """Latents' (h, w) for a canvas of a size (height, width) in pixels."""
    return size[0] // _factor(vae), size[1] // _factor(vae)


def _factor(vae) -> int:
    return getattr(vae, "spatial_compression_ratio", None) or 2 ** (len(vae.config.block_out_channels) - 1)


@torch.no_grad()
def encode(vae, images: np.ndarray | list[np.ndarray], device: torch.device | str | None = None) -> torch.Tensor:
    """Latents of a canvas, or of a list of n (the posterior's mode, scaled): uint8 -> ``(1, C, h, w)`` or ``(n, ...)``.

    Gray canvases ``(H, W)`` become RGB with equal channels and give g of §3.2; colour ones ``(H, W, 3)`` give z.
    """
    listed = images if isinstance(images, list) else [images]
    pixels = torch.from_numpy(np.stack(listed)).to(device or vae.device)
    pixels = pixels[..., None].expand(*pixels.shape, 3) if pixels.ndim == 3 else pixels  # (n, H, W, 3)
    return encode_pixels(vae, pixels.permute(0, 3, 1, 2))  # (n, H, W, 3) -> (n, 3, H, W)


def encode_pixels(vae, pixels: torch.Tensor) -> torch.Tensor:
    """Latents of a batch of canvases on the autoencoder's device: uint8 ``(B, 3, H, W)`` -> ``(B, C, h, w)``."""
    latents = vae.encode((pixels.float() / 127.5 - 1).to(vae.dtype)).latent_dist.mode()
    return (latents - (getattr(vae.config, "shift_factor", None) or 0.0)) * vae.config.scaling_factor


@torch.no_grad()
def semantics(pipe, images: np.ndarray | list[np.ndarray], device=None) -> torch.Tensor | None:
    """Semantic features of a gray canvas, for the copy, at its latents' size: uint8 ``(H, W)`` -> ``(1, S, h, w)``.

    n canvases give ``(n, S, h, w)``. None for a copy that reads no semantic features, as in the paper.
    """
    if pipe.semantic_encoder is None or pipe.control.pyramid is None:
        return None
    size = np.shape(images)[-2:]
    pixels = torch.from_numpy(np.reshape(images, (-1, 1, *size))).to(device or pipe.control.device)  # (n, 1, H, W)
    features = pipe.semantic_encoder((pixels.float() / 127.5 - 1).to(pipe.semantic_encoder.dtype))
    return pipe.control.semantics(features, latent_size(pipe.vae, size))


@torch.no_grad()
def decode(vae, latents: torch.Tensor) -> np.ndarray:
    """Canvas of latents: ``(1, C, h, w)`` -> uint8 RGB ``(H, W, 3)``."""
    return decode_all(vae, latents)[0]


def decode_all(vae, latents: torch.Tensor) -> np.ndarray:
    """Canvases of latents: ``(B, C, h, w)`` -> uint8 RGB ``(B, H, W, 3)``."""
    latents = latents.to(vae.dtype) / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0.0)
    pixels = vae.decode(latents).sample.float()  # (B, 3, H, W) in [-1, 1]
    pixels = ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).cpu().numpy()


def image_tokens(
    image_encoder, feature_extractor, image: np.ndarray | list | None, condition: str = "patch", device=None
) -> torch.Tensor:
    """Image tokens of a reference, the copy's global condition (§3.2): uint8 RGB ``(H, W, 3)`` -> ``(1, N, D)``.

    A list of n pictures gives ``(n, N, D)``. The whole picture is resized to the encoder's square, not centre-cropped,
    so that the sides count too. "patch" gives the patches' last hidden states after the post-layernorm and the visual
    projection, "pooled" the image embedding as one token, "none" one zero token; ``image=None`` (the reference mask)
    also gives a zero token: attention over equal tokens does not depend on their number.
    """
    device, dtype = device or image_encoder.device, image_encoder.dtype
    if image is None or condition == "none":
        count = len(image) if isinstance(image, list) else 1
        return torch.zeros(count, 1, image_encoder.config.projection_dim, device=device, dtype=dtype)
    side = image_encoder.config.image_size
    # Scale the pictures on the GPU, if the extractor can: on the CPU this takes longer than the encoder itself.
    takes_device = "device" in getattr(feature_extractor, "_valid_kwargs_names", ())
    there = {"device": device} if torch.device(device).type == "cuda" and takes_device else {}
    pixels = feature_extractor(
        images=image,
        do_center_crop=False,
        size={"height": side, "width": side},
        input_data_format="channels_last",  # else one or three rows would be taken for channels
        return_tensors="pt",
        **there,
    ).pixel_values
    pixels = pixels.to(device, dtype)
    if condition == "pooled":
        return image_encoder(pixels).image_embeds[:, None]  # (1, D) -> (1, 1, D)
    return patch_tokens(image_encoder, pixels)


def patch_tokens(image_encoder, pixels: torch.Tensor) -> torch.Tensor:
    """Projected patch tokens of normalised pixels: ``(B, 3, side, side)`` -> ``(B, N, D)``."""
    vision = image_encoder.vision_model
    hidden = vision(pixels).last_hidden_state[:, 1:]  # without the class token: (B, N, width)
    return image_encoder.visual_projection(vision.post_layernorm(hidden))


def text_embeddings(tokenizer, text_encoder, prompts: list[str], device=None) -> torch.Tensor:
    """The text encoder's last hidden states of prompts, cut or padded to its length: n prompts -> ``(n, N, D)``."""
    ids = tokenizer(
        prompts, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    ).input_ids
    return text_encoder(ids.to(device or text_encoder.device))[0]
