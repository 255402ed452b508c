"""Sources of the metric networks' weights, and the places where their packages look for them."""

import os
from dataclasses import dataclass
from pathlib import Path

from ..utils.files import read_table


@dataclass(frozen=True)
class WeightFile:
    """A weight file: its address, and its place under torch's hub folder, where its package looks for it."""

    title: str
    url: str
    place: str
    size: int
    sha256: str
    terms: str = "see its repository"


WEIGHT_FILES = {name: WeightFile(**about) for name, about in read_table(__package__, "weights.toml").items()}


def torch_hub_folder() -> Path:
    """Return torch's folder for weights by torch's own rule (TORCH_HOME, XDG_CACHE_HOME, home), without torch."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("TORCH_HOME", Path(cache) / "torch")).expanduser() / "hub"
