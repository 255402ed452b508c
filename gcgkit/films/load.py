"""Load a profile's pipeline for the command line: once, checked against its files, and on the device if it fits."""

from collections.abc import Callable
from pathlib import Path

import torch

from .. import profiles
from ..pipeline import GCGPipeline
from ..utils import compilation
from ..utils.commands import best_device
from .memory_ladder import CARDS, MemoryLadder


class Loader:
    """``loader(profile, dtype)`` returns the pipeline's ``MemoryLadder``; it loads again only for other arguments.

    device: "cpu", "cuda" or "cuda:1", None for a GPU if there is one. card: a name in ``memory_ladder.CARDS``. say:
    gets a sentence for each step that saves memory. compiled: compile the networks, see ``utils.compilation``.
    """

    def __init__(
        self,
        device: str | None = "cpu",
        card: str | None = None,
        say: Callable[[str], None] = print,
        compiled: bool = False,
    ):
        self.device, self.card, self.say, self.compiled = best_device(device), card, say, compiled
        self._loaded: tuple[tuple[str, str], MemoryLadder] | None = None

    def __call__(self, profile: str, dtype: str = "float32") -> MemoryLadder:
        """Return the ladder; raise a one-sentence FileNotFoundError or ValueError for missing or wrong weights."""
        if self._loaded is None or self._loaded[0] != (profile, dtype):
            self._loaded = None  # two models at once may not fit
            pipe = load(profile, dtype)
            pipe.set_progress_bar_config(disable=True)
            ladder = MemoryLadder(pipe, self.device, CARDS[self.card] if self.card else None, self.say)
            if self.compiled:
                compilation.compile_networks(pipe)
            self._loaded = (profile, dtype), ladder
        return self._loaded[1]


def load(profile: str, dtype: str = "float32") -> GCGPipeline:
    """Load a pipeline from safetensors files only and check that no weight is missing. Errors as ``Loader``."""
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
    """Raise ValueError if a network has more weights than its files: loading left the others random."""
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
            "belong together, or are cut off; fetch them again."
        )
