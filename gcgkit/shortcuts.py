"""What colouring leaves out because it would come out the same, each with a switch that shows what it gains."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shortcuts:
    """Work that is done once instead of again and again; off, the result is the same to a gray level.

    hints: a ColorHint once per set of references, not per denoising step. references: a reference's latents and image
    tokens once, not whenever it guides. copy: the UNet copy once per step for both halves of guidance, as it sees no
    text. keys: the keys and values that cross-attention makes of the text and of image tokens, once per text and per
    reference, not per step; at Stable Diffusion's size a reference then holds 5.9 MB in 16 bits, not 0.5. halves: both
    halves of guidance through the UNet as one batch. values: values padded to the keys' width, which PyTorch's fused
    attention kernel wants.
    """

    hints: bool = True
    references: bool = True
    copy: bool = True
    keys: bool = True
    halves: bool = True
    values: bool = True


NONE = Shortcuts(hints=False, references=False, copy=False, keys=False, halves=False, values=False)
