"""Checkpoints that are either complete or absent, with everything that a run needs to continue exactly.

A checkpoint is a folder ``step-00000500``. It is filled under another name and renamed when all is on the disk, so a
machine that dies at any moment leaves the one before. In it: ``*.safetensors`` (weights and averaged weights),
``optimizer.pt`` (the optimizer's state and the gradient scaler's), ``random-<process>.pt`` (every random state) and
``state.json`` (the step, from which the position in the data and the learning rate follow, and the open log line).
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

_NAME = re.compile(r"step-(\d{8,})")


def list_checkpoints(folder: str | Path) -> list[tuple[int, Path]]:
    """Return steps and folders of the complete checkpoints, oldest first."""
    names = ((_NAME.fullmatch(path.name), path) for path in Path(folder).glob("step-*"))
    return sorted((int(match[1]), path) for match, path in names if match and path.is_dir())


def partial_folder(folder: str | Path, step: int) -> Path:
    """Return the temporary folder in which a checkpoint is filled."""
    return Path(folder) / f".step-{step:08d}.tmp"


def begin(folder: str | Path, step: int) -> Path:
    """Make an empty temporary folder for a checkpoint, and remove unfinished ones of killed runs."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(".*.tmp"):
        shutil.rmtree(stale)
    partial = partial_folder(folder, step)
    partial.mkdir()
    return partial


def finish(partial: Path, keep: int) -> Path:
    """Give a filled folder its final name, and remove all but the newest ``keep`` checkpoints."""
    for file in partial.iterdir():
        _to_disk(file)
    _to_disk(partial)
    final = partial.with_name(partial.name.removeprefix(".").removesuffix(".tmp"))
    if final.exists():
        remove(final)
    os.replace(partial, final)
    _to_disk(final.parent)
    for _, old in list_checkpoints(final.parent)[:-keep]:
        remove(old)
    return final


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint. It is renamed first, so that a half-removed one is never taken for complete."""
    doomed = checkpoint.with_name(f".{checkpoint.name}.old.tmp")
    os.replace(checkpoint, doomed)
    shutil.rmtree(doomed)


def write_weights(partial: Path, name: str, weights: Mapping[str, torch.Tensor]) -> None:
    """Write ``<name>.safetensors`` into a folder that is being filled."""
    save_file({k: w.detach().contiguous().cpu() for k, w in weights.items()}, partial / f"{name}.safetensors")


def read_weights(checkpoint: Path, name: str) -> dict[str, torch.Tensor]:
    """Read weights by name; ValueError for a file that is missing or damaged."""
    path = checkpoint / f"{name}.safetensors"
    try:
        return load_file(path)
    except Exception as error:
        raise _unreadable(path, error) from error


def write_state(partial: Path, name: str, state: dict) -> None:
    """Write ``<name>.pt``. It may hold only tensors and plain values, because it is read without unpickling code."""
    torch.save(state, partial / f"{name}.pt")


def read_state(checkpoint: Path, name: str) -> dict:
    """Read state by name without running code from the file; ValueError if it cannot be read."""
    path = checkpoint / f"{name}.pt"
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise _unreadable(path, error) from error


def write_info(partial: Path, info: dict) -> None:
    """Write ``state.json``."""
    (partial / "state.json").write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")


def read_info(checkpoint: Path) -> dict:
    """Read ``state.json``; ValueError if it cannot be read."""
    path = checkpoint / "state.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def random_states() -> dict:
    """Return the state of every random generator of this process, as tensors and plain values."""
    version, numbers, gauss = random.getstate()
    kind, keys, place, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), int(place), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_states(states: dict) -> None:
    """Restore every random generator, except those of GPUs that this machine lacks."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, place, has_gauss, cached = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), place, has_gauss, cached))
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available():
        for card, state in enumerate(states["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(state, card)


@contextmanager
def preserved_random_states() -> Iterator[None]:
    """Restore every random generator at the end of the ``with`` block."""
    states = random_states()
    try:
        yield
    finally:
        set_random_states(states)


def _unreadable(path: Path, error: Exception) -> ValueError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ValueError(
        f"{path} cannot be read ({reason}): delete the folder {path.parent.name} to go on from the one before it."
    )


def _to_disk(path: Path) -> None:
    """Flush a file or folder to the disk."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # folders cannot be opened on Windows
        return
    try:
        os.fsync(handle)
    except OSError:
        pass  # some network drives refuse; the rename still comes last
    finally:
        os.close(handle)
