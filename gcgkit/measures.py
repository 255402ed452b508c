"""The columns of an evaluation: each metric's name, direction and way of being measured on one clip (section 4.3).

What cannot be measured is never replaced: it has a reason instead of a number. Numbers are kept by content, so that the
same frames are never measured twice with the same weights.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import metric_networks, metrics
from .color import to_gray
from .disk import write_text

_VERSION = 1  # of how numbers are made; a new one makes cached numbers void


@dataclass(frozen=True)
class Metric:
    """A metric: what tables call it, which way is better, digits shown, factor shown, and what it is measured on.

    kind: "pair" (result and truth), "single" (result), "flow" (result along the true clip's motion), "set" (features of
    all clips together). of_truth: whether the true clip itself has a value.
    """

    name: str
    label: str
    better: str  # "more", "less", or "" where neither is
    digits: int
    kind: str
    call: Callable
    factor: float = 1.0
    network: str | None = None

    @property
    def of_truth(self) -> bool:
        return self.kind != "pair"


def measure(
    metric: Metric, pred: Iterable, truth: Iterable | None, *, cache: Path, contents: tuple[str, ...], device=None
) -> float | str:
    """A metric's number for one clip; for kind "set" the name of a file of features in the cache.

    pred, truth: frames, to be gone through at will; truth may be None for a metric that needs none. cache: a folder;
    contents: digests of what is measured, which decide where the number is kept. Raises ValueError and
    `metric_networks.NotAtHand` where there is none to be had.
    """
    if metric.network and (reason := metric_networks.missing(metric.network)):
        raise metric_networks.NotAtHand(reason)
    identity = metric_networks.identity(metric.network) if metric.network else {}
    key = json.dumps([_VERSION, metric.name, contents, identity], sort_keys=True)
    name = f"{metric.name}-{hashlib.sha256(key.encode()).hexdigest()[:32]}"
    cache.mkdir(parents=True, exist_ok=True)
    if metric.kind == "set":
        path = cache / f"{name}.npy"
        if not path.is_file():
            features = metric_networks.features(metric.network, pred, device=device)
            aside = path.with_name(f".{path.name}.{os.getpid()}")
            with aside.open("wb") as file:
                np.save(file, features)
            aside.replace(path)
        return path.name
    path = cache / f"{name}.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))["value"]
    options = {"device": device} if metric.network else {}
    if metric.kind == "pair":
        value = metric.call(pred, truth, **options)
    elif metric.kind == "flow":
        value = metric.call(pred, (to_gray(frame) for frame in truth))
    else:
        value = metric.call(pred, **options)
    write_text(path, json.dumps({"value": value, "metric": metric.name, "contents": list(contents), **identity}) + "\n")
    return value


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("lpips", "LPIPS", "less", 4, "pair", metrics.lpips, network="lpips"),
        Metric("psnr_rgb", "PSNR (RGB)", "more", 2, "pair", metrics.psnr_rgb),
        Metric("psnr_luma", "PSNR (L*)", "more", 2, "pair", metrics.psnr_luma),
        Metric("musiq", "MUSIQ", "more", 2, "single", metrics.musiq, network="musiq"),
        Metric("clip_iqa", "CLIP-IQA", "more", 4, "single", metrics.clip_iqa, network="clip_iqa"),
        Metric("colorfulness", "Colourfulness", "more", 2, "single", metrics.colorfulness),
        Metric(
            "colorfulness_abs", "Colourfulness (abs)", "more", 2, "single",
            lambda frames: metrics.colorfulness(frames, "abs"),
        ),
        Metric("cdc", "CDC (×10⁻²)", "less", 4, "single", lambda frames: metrics.cdc([frames]), 100.0),
        Metric("fid", "FID", "less", 2, "set", metrics.fid, network="fid"),
        Metric("flow_warp_error", "Warping error (×10⁻³)", "less", 3, "flow", metrics.flow_warp_error, 1000.0),
        Metric("st_lpips", "ST-LPIPS", "less", 4, "pair", metrics.st_lpips, network="st_lpips"),
        Metric(
            "fd_efficientnet", "FD-EfficientNet", "less", 2, "set", metrics.fd_efficientnet, network="fd_efficientnet",
        ),
    )
}  # fmt: skip


def choose(names: Iterable[str] | None) -> list[Metric]:
    """Metrics by name, all by default, in the order of the table. Raises ValueError for an unknown name."""
    if names is None:
        return list(METRICS.values())
    wanted = list(names)
    if unknown := [name for name in wanted if name not in METRICS]:
        raise ValueError(f"there is no metric called {unknown[0]!r}; there are {', '.join(METRICS)}.")
    return [metric for name, metric in METRICS.items() if name in wanted]
