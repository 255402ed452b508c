"""The UNet copy that reads the ColorHint and steers the frozen UNet (§3.2, Fig. 2).

ControlNet's form: the copy is the UNet's encoder and middle block; its input is z_t plus concat(ColorHint, g) through a
zero-initialised convolution; its outputs enter the frozen UNet's decoder through zero convolutions, so that before
training the UNet's output is unchanged. Its cross-attention reads the reference's image-encoder tokens, not the text.
"""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers import ConfigMixin, ControlNetModel, ModelMixin, UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.controlnets.controlnet import ControlNetOutput

from . import attention
from .guidance import GatedColorGuidance, GuidanceOutput
from .semantics import FeaturePyramid


class GuidedControlNet(ModelMixin, ConfigMixin):
    """The UNet copy together with its ``GatedColorGuidance``; make one with ``from_unet``.

    Args:
        copy_config: configuration of the ``ControlNetModel`` that is the copy.
        guidance_config: configuration of the ``GatedColorGuidance``.
        image_tokens_dim: width of the image-encoder tokens; where it differs from the copy's cross-attention width, a
            linear map stands between.
        semantic_channels: channels of the semantic encoder's features, finest first; empty (the paper) for none.
        semantic_width: channels that a feature pyramid makes of them.
    """

    @register_to_config
    def __init__(
        self,
        copy_config: dict,
        guidance_config: dict,
        image_tokens_dim: int,
        semantic_channels: tuple[int, ...] = (),
        semantic_width: int = 0,
    ):
        super().__init__()
        self.pyramid = FeaturePyramid(tuple(semantic_channels), semantic_width) if semantic_channels else None
        self.guidance = GatedColorGuidance.from_config(dict(guidance_config))
        self.unet_copy = ControlNetModel.from_config(dict(copy_config))
        self.token_projection = _projection(image_tokens_dim, self.unet_copy.config.cross_attention_dim)

    @classmethod
    def from_unet(
        cls,
        unet: UNet2DConditionModel,
        image_tokens_dim: int | None = None,
        condition_width: int = 64,
        load_weights_from_unet: bool = True,
        semantic_channels: tuple[int, ...] = (),
        semantic_width: int = 64,
        **guidance,
    ) -> GuidedControlNet:
        """Copy a UNet's encoder and middle block, weights included.

        ``image_tokens_dim`` defaults to the UNet's cross-attention width; ``condition_width`` is the hidden width of
        the small convolution that takes concat(ColorHint, g) in; ``guidance`` goes to ``GatedColorGuidance``. With
        ``semantic_channels`` copy and guidance also read what a ``SemanticEncoder`` with such features sees.
        """
        semantic_width = semantic_width if semantic_channels else 0
        guidance = {"latent_channels": unet.config.in_channels, "semantic_width": semantic_width, **guidance}
        guide = GatedColorGuidance(**guidance)
        copy = ControlNetModel.from_unet(
            unet,
            conditioning_channels=unet.config.in_channels + guide.feature_channels + semantic_width,
            conditioning_embedding_out_channels=(condition_width,),  # one entry: latents are taken in at their own size
            load_weights_from_unet=load_weights_from_unet,
        )
        width = copy.config.cross_attention_dim
        with torch.device("meta"):  # nothing is made twice: Stable Diffusion's copy alone is gigabytes
            control = cls(  # by keyword: only then does the configuration keep them
                copy_config=_plain(copy.config),
                guidance_config=_plain(guide.config),
                image_tokens_dim=image_tokens_dim or width,
                semantic_channels=list(semantic_channels),
                semantic_width=semantic_width,
            )
        if semantic_channels:
            control.pyramid = FeaturePyramid(tuple(semantic_channels), semantic_width)
        control.unet_copy, control.guidance = copy, guide
        control.token_projection = _projection(control.config.image_tokens_dim, width)
        return control if control.dtype == unet.dtype else control.to(unet.dtype)

    def semantics(self, features: tuple[torch.Tensor, ...], size: tuple[int, int]) -> torch.Tensor:
        """One map (B, S, h, w) of a semantic encoder's features, at the latents' size; made once per frame, reused."""
        return F.interpolate(self.pyramid(features), size=size, mode="bilinear", align_corners=False)

    def train(self, mode: bool = True) -> GuidedControlNet:
        """Set the mode as usual, but leave a frozen pyramid without dropout: its features may have been cached."""
        super().train(mode)
        if self.pyramid is not None and not any(weights.requires_grad for weights in self.pyramid.parameters()):
            self.pyramid.eval()
        return self

    def guess(self, gray: torch.Tensor, semantics: torch.Tensor) -> torch.Tensor:
        """Gray latents (B, C, h, w) with the colours that the semantic features (B, S, h, w) suggest.

        The features' first two channels stand for the latents' last two, the chroma of a ``LumaChromaAutoencoder``.
        """
        return torch.cat([gray[:, :-2], semantics[:, :2].to(gray.dtype)], 1)

    def hint(
        self,
        gray: torch.Tensor,
        ref_gray: torch.Tensor,
        ref_color: torch.Tensor,
        semantics: torch.Tensor | None = None,
        ref_semantics: torch.Tensor | None = None,
        ref_weights: torch.Tensor | None = None,
    ) -> GuidanceOutput:
        """ColorHint of gray latents, to be made once and reused; shapes as for ``GatedColorGuidance.forward``."""
        given = {"semantics": semantics, "ref_semantics": ref_semantics, "ref_weights": ref_weights}
        hint = self.guidance(gray, ref_gray, ref_color, **given)
        if semantics is not None:
            hint["semantics"] = semantics  # as an item, or it would be no part of the output's items
        return hint

    def keys_and_values(self, tokens: torch.Tensor) -> torch.Tensor:
        """Keys and values of the copy's cross-attention: image tokens ``(B, N, image_tokens_dim)`` -> ``(B, N, W)``.

        Made once, they serve every step in the tokens' place: within ``attention.ReadingProjected(self.unet_copy)``,
        with ``projected``.
        """
        return attention.keys_and_values(self.unet_copy, self.token_projection(tokens))

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        encoder_hidden_states: torch.Tensor,
        gray: torch.Tensor,
        ref_gray: torch.Tensor | None = None,
        ref_color: torch.Tensor | None = None,
        *,
        hint: GuidanceOutput | None = None,
        semantics: torch.Tensor | None = None,
        ref_semantics: torch.Tensor | None = None,
        conditioning_scale: float = 1.0,
        projected: bool = False,
        return_dict: bool = True,
    ) -> ControlNetOutput | tuple:
        """Residuals for the frozen UNet's decoder.

        ``sample`` z_t (B, C, h, w), ``encoder_hidden_states`` the reference's image tokens (B, N, image_tokens_dim),
        zeros under the reference mask; ``gray`` (B, C, h, w); either ``ref_gray`` and ``ref_color`` (B, C, h', w') or a
        ``hint`` made from them before. ``semantics`` (B, S, h, w) and ``ref_semantics`` (B, S, h', w') for a copy that
        reads semantic features. With ``projected``, tokens as ``keys_and_values`` gives them. Raises ValueError when
        references and hint are both missing, or semantics that the copy reads.
        """
        if hint is None:
            if ref_gray is None or ref_color is None:
                raise ValueError("give ref_gray and ref_color (zeros for the reference mask), or a hint made from them")
            hint = self.hint(gray, ref_gray, ref_color, semantics, ref_semantics)
        condition = [hint.features, gray]  # (B, C or 2C, h, w), (B, C, h, w)
        if self.pyramid is not None:
            semantics = hint.semantics if semantics is None else semantics
            if semantics is None:
                raise ValueError("this copy reads semantic features: give semantics, made by semantics(features)")
            condition.append(semantics.to(gray.dtype))  # (B, S, h, w)
        return self.unet_copy(
            sample,
            timestep,
            encoder_hidden_states if projected else self.token_projection(encoder_hidden_states),
            controlnet_cond=torch.cat(condition, 1),
            conditioning_scale=conditioning_scale,
            return_dict=return_dict,
        )


def _projection(width: int, wanted: int) -> nn.Module:
    return nn.Identity() if width == wanted else nn.Linear(width, wanted)


def _plain(config) -> dict:
    """A configuration as plain JSON values, without diffusers' private entries."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dict(config).items() if not k.startswith("_")}
