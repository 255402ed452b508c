"""A profile's pipeline for the command line: loaded once, checked against its files, put where it fits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from .. import compilation, profiles
from ..pipeline import GCGPipeline
from .memory_ladder import CARDS, MemoryLadder


class Loader:
    """``loader(profile, dtype)`` gives the pipeline's ``MemoryLadder``, loaded anew only for another profile or dtype.

    device: "cpu", "cuda" or "cuda:1". card: a name of ``memory_ladder.CARDS``. say: gets a sentence for each step that
    scarce memory makes necessary. compiled: compile the networks, see ``compilation``.
    """

    def __init__(
        self,
        device: str = "cpu",
        card: str | None = None,
        say: Callable[[str], None] = print,
        compiled: bool = False,
    ):
        self.device, self.card, self.say, self.compiled = device, card, say, compiled
        self._held: tuple[tuple[str, str], MemoryLadder] | None = None

    def __call__(self, profile: str, dtype: str = "float32") -> MemoryLadder:
        """Raises FileNotFoundError or ValueError, one sentence each, for weights that are missing or do not fit."""
        if self._held is None or self._held[0] != (profile, dtype):
            self._held = None  # two models at a time may be too much
            pipe = load(profile, dtype)
            pipe.set_progress_bar_config(disable=True)
            ladder = MemoryLadder(pipe, self.device, CARDS[self.card] if self.card else None, self.say)
            if self.compiled:
                compilation.compile_networks(pipe)
            self._held = (profile, dtype), ladder
        return self._held[1]


def load(profile: str, dtype: str = "float32") -> GCGPipeline:
    """A pipeline from safetensors files alone, none of whose weights is missing; errors as ``Loader`` raises them."""
    try:
        pipe = GCGPipeline.from_pretrained(profile, dtype=getattr(torch, dtype), use_safetensors=True)
    except (FileNotFoundError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"'{profile}' does not load as a GCGPipeline: {reason.rstrip('.')}.") from error
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            _check_complete(part, name, profile)
    return pipe


def _check_complete(part: torch.nn.Module, name: str, profile: str) -> None:
    """ValueError where a network has more weights than its files: loading would have left the rest at random."""
    from safetensors import safe_open

    place = next((f / name for f in profiles.folders(profile) if (f / name).is_dir()), None)
    if place is None:
        return
    found = 0
    for file in Path(place).glob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            for key in weights.keys():
                shape = weights.get_slice(key).get_shape()
                found += torch.Size(shape).numel()
    wanted = sum(weights.numel() for weights in part.parameters())
    if found < wanted:
        raise ValueError(
            f"The files in {place} hold {found:,} weights of the {wanted:,} that its config.json asks for: they do not "
            "belong together, or are cut off; get them again."
        )
