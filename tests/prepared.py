"""Small prepared folders for tests, written by hand as the layout's description says."""

import json
from pathlib import Path

import cv2
import numpy as np
import tiny

from gcgkit.training import config as configs
from gcgkit.training import recipes
from gcgkit.training import run as training_run

SIZE = (32, 64)


def write_set(root: Path, name: str, clips: dict[str, np.ndarray], captions: dict | None = None, **manifest) -> Path:
    """A set of clips ``{name: (T, H, W, 3)}`` with captions ``{(clip, frame): text}``."""
    folder, entries = root / name, []
    for clip, frames in sorted(clips.items()):
        (folder / "frames" / clip).mkdir(parents=True)
        for i, frame in enumerate(frames):
            cv2.imwrite(str(folder / "frames" / clip / f"{i:05d}.png"), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        size = sum(file.stat().st_size for file in (folder / "frames" / clip).iterdir())
        entry = {"clip": clip, "frames": len(frames), "source_size": list(frames.shape[1:3]), "bytes": size}
        entries.append({**entry, "sha256": f"{len(entries):064x}"})
    height, width = next(iter(clips.values())).shape[1:3]
    content = {
        "version": 1, "name": name, "kind": "clips", "complete": True, "height": height, "width": width,
        "fit": "stretch", "format": "png", "source": "made by a test", "clips": entries, **manifest,
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(content), encoding="utf-8")
    if captions is not None:
        lines = [{"clip": clip, "frame": frame, "caption": text} for (clip, frame), text in captions.items()]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "captions.jsonl").write_text(text, encoding="utf-8")
    return folder


def write_clips(root: Path, name: str = "davis-train", count: int = 3, frames: int = 6) -> Path:
    """A set of ``count`` moving clips a, b, c, ... with a caption each."""
    names = [chr(ord("a") + i) for i in range(count)]
    clips = {clip: tiny.clip(frames, *SIZE, seed=i) for i, clip in enumerate(names)}
    return write_set(root, name, clips, {(clip, 0): "a red car on green grass" for clip in names})


def config(model: Path, **changes) -> configs.TrainConfig:
    """The tiny configuration on a model of a test's own; ``run__seed=1`` changes ``run.seed``."""
    base = {
        "model.base": str(model), "model.hidden_dim": 8, "model.dilations": [1, 2, 4], "model.condition_width": 8,
        "model.null_token": False, "model.joint": False, "data.height": SIZE[0], "data.width": SIZE[1],
        "optimizer.name": "adam", "optimizer.weight_decay": 0.0, "optimizer.schedule": "constant",
        "loss.hint_weight": 0.0,
    }  # fmt: skip
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    return configs.replace(recipes.TINY, {**base, **changes})


def workplace(folder: Path, semantics: bool = False) -> Path:
    """A folder with prepared clips to train and validate on, ``data``, and a pipeline to start from, ``model``.

    semantics: give the pipeline a semantic encoder.
    """
    write_clips(folder / "data", count=4, frames=5)
    write_clips(folder / "data", "davis-val", count=2, frames=6)
    tiny.pipeline(folder / "source", zero_control=True, semantics=semantics).save_pretrained(folder / "model")
    return folder


def run_config(place: Path, **changes) -> configs.TrainConfig:
    """``config`` for a ``workplace``, many epochs long."""
    return config(place / "model", **{"run__epochs": 100.0, "run__log_every": 2, **changes})


def run(place: Path, out: Path, on_step=None, **changes) -> Path:
    """Train as ``run_config`` says, on the CPU."""
    return training_run.train(run_config(place, **changes), place / "data", out, cpu=True, on_step=on_step)


def same_files(one: Path, other: Path, names=("weights", "averaged")) -> bool:
    """Whether two checkpoints hold the same weights, byte for byte."""
    return all((one / f"{n}.safetensors").read_bytes() == (other / f"{n}.safetensors").read_bytes() for n in names)


def last_checkpoint(out: Path) -> Path:
    """The newest checkpoint of a run."""
    return sorted((Path(out) / "checkpoints").glob("step-*"))[-1]


def options(settings: configs.TrainConfig, place: Path, out: Path) -> list[str]:
    """Options of the command for a run in a ``workplace``; the configuration is written beside ``out``."""
    path = Path(out).with_suffix(".toml")
    configs.save(settings, path)
    return ["--config", str(path), "--data", str(place / "data"), "--out", str(out), "--cpu"]
