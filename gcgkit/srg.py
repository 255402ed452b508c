"""Sliding Reference Grid (section 3.4.1): which frames guide a frame at a step (Eq. 10), and their grid (Eq. 9)."""

import math

import numpy as np
import torch
import torch.nn.functional as F

from .utils.checks import is_whole, to_numpy


def select_references(key_distance, past_distance, t: float, count: int = 4) -> tuple[list[int], list[int]]:
    """Choose c1 keyframes and c2 earlier frames, c1 + c2 = `count`, that minimise Eq. 10 exactly.

    key_distance ``(K,)`` and past_distance ``(P,)``: D between the frame to colour and each candidate. `t` >= 0: the
    rescaled timestep (`rescale_timestep`), infinity included. Returns two lists of indices, nearest first; fewer than
    `count` together only if K + P < count. For a given c1 the c1 nearest keyframes and the c2 nearest earlier frames
    are best, so trying each split is exact. Ties go to the split with more keyframes and to the lower index.
    Raises ValueError for distances that are not finite vectors, a negative or undefined t, or a count below 1.
    """
    key, past = _distances(key_distance, "key_distance"), _distances(past_distance, "past_distance")
    if not is_whole(count) or count < 1:
        raise ValueError(f"count must be a whole number of at least 1, not {count!r}.")
    key_weight, past_weight = equation_10_weights(t)
    total = min(int(count), len(key) + len(past))
    key_order, past_order = np.argsort(key, kind="stable"), np.argsort(past, kind="stable")
    key_sum = np.concatenate([[0.0], np.cumsum(key[key_order])])  # (K + 1,): the sum of the c1 smallest
    past_sum = np.concatenate([[0.0], np.cumsum(past[past_order])])  # (P + 1,)
    # Most keyframes first, so that they win ties.
    c1 = np.arange(min(total, len(key)), max(0, total - len(past)) - 1, -1)
    cost = key_weight * key_sum[c1] + past_weight * past_sum[total - c1]  # Eq. 10
    best = int(c1[np.argmin(cost)])
    return key_order[:best].tolist(), past_order[: total - best].tolist()


def equation_10_weights(t: float) -> tuple[float, float]:
    """The factors of the two sums in Eq. 10, 1/sqrt(t^4 + 1) for keyframes and 1/sqrt(1 + 1/t^4) for neighbours.

    Computed from t^2, so that t = 0 (weight 0 for neighbours) does not divide by zero, and a huge t (weight 0 for
    keyframes) does not overflow. Raises ValueError for a negative or undefined t.
    """
    t = float(t)
    if math.isnan(t) or t < 0:
        raise ValueError(f"t must be zero or positive, not {t}.")
    square = t * t
    if math.isinf(square):
        return 0.0, 1.0
    return 1.0 / math.hypot(square, 1.0), square / math.hypot(square, 1.0)


def rescale_timestep(timestep: float, num_train_timesteps: int, tau: float = 4.0) -> float:
    """Map a scheduler's timestep, 0..num_train_timesteps, to the t of Eq. 10, 0..tau.

    The paper leaves the unit of t open; tau = num_train_timesteps is its literal text. Raises ValueError outside these.
    """
    if num_train_timesteps < 1:
        raise ValueError(f"num_train_timesteps must be at least 1, not {num_train_timesteps}.")
    if not tau > 0 or math.isinf(tau):
        raise ValueError(f"tau must be a positive number, not {tau}.")
    if not 0 <= float(timestep) <= num_train_timesteps:
        raise ValueError(f"timestep must lie in 0..{num_train_timesteps}, not {timestep}.")
    return float(tau) * float(timestep) / num_train_timesteps


def make_grid(tiles, columns: int = 2, *, rows: int | None = None, shrink: bool = False):
    """Join tiles ``(N, C, h, w)``, tensor or array, row by row into one image ``(C, rows*h, columns*w)`` (Eq. 9).

    The first tile counts as the best one and fills the places that are left. By default there are as few `rows` as
    hold all tiles. shrink=True averages each tile by area so that the grid has the size ``(C, h, w)`` of one tile.
    Raises ValueError for a wrong shape, no tiles, more tiles than places, or tiles too small to shrink.
    """
    if not isinstance(tiles, torch.Tensor):
        array = np.asarray(tiles)
        if array.dtype == object:
            raise ValueError("tiles must be one array (N, C, h, w); tiles of different sizes cannot be joined.")
        return make_grid(torch.from_numpy(np.ascontiguousarray(array)), columns, rows=rows, shrink=shrink).numpy()
    if tiles.ndim != 4 or tiles.shape[0] == 0:
        raise ValueError(f"tiles must have shape (N, C, h, w) with N >= 1, not {tuple(tiles.shape)}.")
    if not is_whole(columns) or columns < 1 or (rows is not None and (not is_whole(rows) or rows < 1)):
        raise ValueError(f"columns and rows must be whole numbers of at least 1, not {columns!r} and {rows!r}.")
    if shrink and not tiles.is_floating_point():
        return make_grid(tiles.float(), columns, rows=rows, shrink=True).round().to(tiles.dtype)
    count = len(tiles)
    rows = math.ceil(count / columns) if rows is None else rows
    if count > rows * columns:
        raise ValueError(f"{count} tiles do not fit a grid of {rows} x {columns}; raise rows or columns.")
    parts = [tiles[i if i < count else 0] for i in range(rows * columns)]  # (C, h, w) each
    if shrink:
        parts = _shrunk(parts, rows, columns)
    strips = [torch.cat(parts[i : i + columns], dim=-1) for i in range(0, len(parts), columns)]
    return torch.cat(strips, dim=-2)


def _shrunk(tiles: list[torch.Tensor], rows: int, columns: int) -> list[torch.Tensor]:
    """Average tiles ``(C, h, w)`` by area to 1/rows by 1/columns; where that is no whole size, they differ by one."""
    height, width = tiles[0].shape[-2:]
    if rows > height or columns > width:
        raise ValueError(f"tiles of {height} x {width} are too small for a shrunk grid of {rows} x {columns}.")
    heights, widths = np.diff(height * np.arange(rows + 1) // rows), np.diff(width * np.arange(columns + 1) // columns)
    sizes = [(int(h), int(w)) for h in heights for w in widths]
    return [F.adaptive_avg_pool2d(tile, size) for tile, size in zip(tiles, sizes, strict=True)]


def _distances(values, name: str) -> np.ndarray:
    """Return a float64 vector of a list, an array or a torch tensor."""
    vector = to_numpy(values)
    if vector.ndim != 1:
        raise ValueError(f"{name} must be a vector of distances, not an array of shape {vector.shape}.")
    if not np.isfinite(vector).all():
        raise ValueError(f"{name} holds values that are not finite; each must be a number.")
    return vector
