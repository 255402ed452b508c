"""The columns of an evaluation: each metric's name, direction and measurement on one clip (§4.3).

What cannot be measured is never replaced: it has a reason instead of a number. Numbers are kept by content, so that the
same frames are never measured twice with the same weights.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import metrics
from ..color import to_gray
from ..metrics import networks
from ..utils.files import write_text

_VERSION = 2  # of how numbers are made; a new one makes cached numbers void


@dataclass(frozen=True)
class Metric:
    """A metric: its name in tables, better direction, digits, factor, and the kind of data that it measures.

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

    def of(self, pred: Iterable, truth: Iterable | None, device=None) -> float:
        """Call the metric on one clip's frames and the true ones, which not every kind needs."""
        options = {"device": device} if self.network else {}
        if self.kind == "flow":
            return self.call(pred, (to_gray(frame) for frame in truth))
        return self.call(*((pred, truth) if self.kind in ("pair", "set") else (pred,)), **options)


def measure(
    metric: Metric, pred: Iterable, truth: Iterable | None, *, cache: Path, contents: tuple[str, ...], device=None
) -> float | str:
    """Measure a metric on one clip; for kind "set" return the name of a file of features in the cache.

    pred, truth: frames, to be gone through at will; truth may be None for a metric that needs none. cache: a folder;
    contents: digests of the measured frames, which determine the number's file. Raises ValueError and
    `metrics.networks.MetricUnavailable` if there is no number.
    """
    if metric.network and (reason := networks.missing(metric.network)):
        raise networks.MetricUnavailable(reason)
    identity = networks.identity(metric.network) if metric.network else {}
    key = json.dumps([_VERSION, metric.name, contents, identity], sort_keys=True)
    name = f"{metric.name}-{hashlib.sha256(key.encode()).hexdigest()[:32]}"
    cache.mkdir(parents=True, exist_ok=True)
    if metric.kind == "set":
        path = cache / f"{name}.npy"
        if not path.is_file():
            features = networks.features(metric.network, pred, device=device)
            aside = path.with_name(f".{path.name}.{os.getpid()}")
            with aside.open("wb") as file:
                np.save(file, features)
            aside.replace(path)
        return path.name
    path = cache / f"{name}.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))["value"]
    value = metric.of(pred, truth, device)
    write_text(path, json.dumps({"value": value, "metric": metric.name, "contents": list(contents), **identity}) + "\n")
    return value


def set_distance(folder: Path, ours: list[str], truth: list[str]) -> float:
    """Return the Fréchet distance of a method's frames to all true ones, from the files that ``measure`` named.

    folder: that of the results, whose ``distances.json`` has the distance already, or whose ``cache`` has the features.
    Raises OSError where neither is the case.
    """
    kept = _kept_distances(folder)
    key = _distance_key(ours, truth)
    if key in kept:
        return kept[key]
    sides = [np.concatenate([np.load(folder / "cache" / name) for name in names]) for names in (ours, truth)]
    return networks.frechet_distance(*sides)


def keep_distances(folder: Path, pairs: Iterable[tuple[list[str], list[str]]]) -> None:
    """Write ``distances.json``, so that a table can be made again without the large features."""
    kept = {}
    for ours, truth in pairs:
        with suppress(OSError):  # features of an earlier run that were cleared away
            kept[_distance_key(ours, truth)] = set_distance(folder, ours, truth)
    if kept != _kept_distances(folder):
        write_text(folder / "distances.json", json.dumps(kept, indent=1, sort_keys=True) + "\n")


def _kept_distances(folder: Path) -> dict[str, float]:
    path = folder / "distances.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _distance_key(ours: list[str], truth: list[str]) -> str:
    return hashlib.sha256(json.dumps([ours, truth]).encode()).hexdigest()[:32]


def scores(pred, truth, names: Iterable[str] | None = None) -> dict[str, float | None]:
    """Measure one clip against the true one, ``(T, H, W, 3)`` both, by every metric, in the tables' units.

    A metric that is not available is None (`reasons` explains it). names: only these. Nothing is cached.
    Raises ValueError for frames that a metric refuses.
    """
    found: dict[str, float | None] = {}
    for metric in choose(names):
        absent = metric.network and networks.missing(metric.network)
        found[metric.label] = None if absent else metric.of(pred, truth) * metric.factor
    return found


def reasons(names: Iterable[str] | None = None) -> dict[str, str]:
    """Return the metrics that this machine cannot measure, with the reason and the command that helps."""
    found = {m.label: networks.missing(m.network) for m in choose(names) if m.network}
    return {label: reason for label, reason in found.items() if reason}


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
    """Return metrics by name, all by default, in the order of the table. Raises ValueError for an unknown name."""
    if names is None:
        return list(METRICS.values())
    wanted = list(names)
    if unknown := [name for name in wanted if name not in METRICS]:
        raise ValueError(f"there is no metric called {unknown[0]!r}; there are {', '.join(METRICS)}.")
    return [metric for name, metric in METRICS.items() if name in wanted]
