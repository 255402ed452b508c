"""Sources of the metric networks' weights, and the places where their packages look for them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class WeightFile:
    """A weight file: its address, and its place under torch's hub folder, where its package looks for it."""

    title: str
    url: str
    place: str
    size: int
    sha256: str
    terms: str = field(default="see its repository")


_IQA = "https://huggingface.co/chaofengc/IQA-PyTorch-Weights/resolve/main/"
WEIGHT_FILES = {
    "lpips": WeightFile(
        "AlexNet, for LPIPS",
        "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        "checkpoints/alexnet-owt-7be5be79.pth",
        244_000_000,
        "7be5be79",
    ),
    "musiq": WeightFile(
        "MUSIQ, KonIQ-10k",
        _IQA + "musiq_koniq_ckpt-e95806b9.pth",
        "pyiqa/musiq_koniq_ckpt-e95806b9.pth",
        109_000_000,
        "e95806b9",
    ),
    "clip_iqa": WeightFile(
        "CLIP RN50, for CLIP-IQA",
        "https://openaipublic.azureedge.net/clip/models/"
        "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762/RN50.pt",
        "clip/RN50.pt",
        256_000_000,
        "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762",
    ),
    "fid": WeightFile(
        "Inception v3, for FID",
        _IQA + "pt_inception-2015-12-05-6726825d.pth",
        "pyiqa/pt_inception-2015-12-05-6726825d.pth",
        96_000_000,
        "6726825d",
    ),
}


def torch_hub_folder() -> Path:
    """Return torch's folder for weights by torch's own rule (TORCH_HOME, XDG_CACHE_HOME, home), without torch."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("TORCH_HOME", Path(cache) / "torch")).expanduser() / "hub"
