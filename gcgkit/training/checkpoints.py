"""Checkpoints that are either complete or absent.

A checkpoint is a folder ``step-00000500``. It is filled under another name and renamed when all is on the disk, so a
machine that dies at any moment leaves the one before. In it: ``weights.safetensors`` and ``averaged.safetensors`` (of
what is trained), ``state.json`` (the step and the open log line), and what accelerate keeps: the optimizer's state, the
gradient scaler's, and every random state of each process.
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NAME = re.compile(r"step-(\d{8,})")


def list_checkpoints(folder: str | Path) -> list[tuple[int, Path]]:
    """Return steps and folders of the complete checkpoints, oldest first."""
    names = ((_NAME.fullmatch(path.name), path) for path in Path(folder).glob("step-*"))
    return sorted((int(match[1]), path) for match, path in names if match and path.is_dir())


def begin(partial: Path) -> None:
    """Make an empty temporary folder for a checkpoint, and remove unfinished ones of killed runs."""
    partial.parent.mkdir(parents=True, exist_ok=True)
    for stale in partial.parent.glob(".*.tmp"):
        shutil.rmtree(stale)
    partial.mkdir()


def finish(partial: Path, keep: int) -> Path:
    """Give a filled folder its final name, and remove all but the newest ``keep`` checkpoints."""
    for file in partial.iterdir():
        _to_disk(file)
    _to_disk(partial)
    final = partial.with_name(partial.name.removeprefix(".").removesuffix(".tmp"))
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


@contextmanager
def reading(checkpoint: Path) -> Iterator[None]:
    """Turn any error in the ``with`` block into a ValueError that names the checkpoint and says what to do."""
    try:
        yield
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{checkpoint} cannot be read ({reason}): delete this folder to go on from the one before it."
        ) from error


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
