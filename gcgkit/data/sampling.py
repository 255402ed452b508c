"""Draw the samples of a training run before any frame is read: a seed and a position determine every draw (§4.1).

Position p of the endless stream of samples is sample p % len of epoch p // len; each epoch has its own order. A sample
depends only on the seed and on p. It does not depend on worker processes, on the number of cards that share a batch, or
on earlier draws. ``Positions`` distributes positions to processes and passes, from any step on.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from . import augment
from .config import DataConfig

GRID_TILES = 4  # §4.1: "a grid made up of four randomly selected images"


@dataclass(frozen=True)
class Draw:
    """One sample before any frame is read: its views and their augmentation.

    Attributes:
        clip, source: numbers of the target's clip and of the references' clip; they differ for ``kind`` "unrelated".
        target, references: numbers of views, which are frames of a clip, cached views, or crops of a photograph.
        kind: one of ``augment.KINDS``.
        recolored: true if turned to any hue; ``hsv`` are the parameters of ``augment.augment_hsv``.
        strip, drop: true if the caption loses its colour words, or all its words.
        seed: seed of noise, timestep and crops.
    """

    clip: int
    source: int
    target: int
    references: tuple[int, ...]
    kind: str
    recolored: bool
    hsv: tuple[float, float, float]
    strip: bool
    drop: bool
    seed: int


class SampleStream:
    """Draws for every position of the endless stream.

    ``views``: the number of views of each clip, None for any number. ``slots``: the number of targets of each clip in
    an epoch. ``len`` is the length of an epoch.
    """

    def __init__(self, views: Sequence[int | None], slots: Sequence[int], data: DataConfig, seed: int):
        if data.unrelated > 0 and len(views) < 2:
            raise ValueError("data.unrelated is above 0, but there is only one clip: prepare more, or set it to 0.")
        self.views, self.slots, self.data, self.seed = list(views), list(slots), data, seed
        self.mixture = augment.Mixture(mask=data.mask, single=data.single, grid=data.grid, unrelated=data.unrelated)
        self.ends = np.cumsum(self.slots)
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, int))

    def __len__(self) -> int:
        return int(self.ends[-1])

    def order(self, epoch: int) -> np.ndarray:
        """Return the order of an epoch's samples; the latest epoch's order is cached."""
        if self._order[0] != epoch:
            self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(len(self))
        return self._order[1]

    def draw(self, position: int) -> Draw:
        """Return the draw for the sample at a position."""
        epoch, turn = divmod(int(position), len(self))
        index = int(self.order(epoch)[turn])
        clip = int(np.searchsorted(self.ends, index, side="right"))
        slot = index - int(self.ends[clip] - self.slots[clip])
        rng, data = np.random.default_rng([self.seed, epoch, index, 1]), self.data
        seed = int(rng.integers(2**62))
        kind = augment.draw_kind(self.mixture, torch.Generator().manual_seed(seed))
        # Draw every number, used or not, so that one option does not change the numbers for others.
        within, turned, strip, drop, other = rng.random(5)
        source = clip
        if kind == "unrelated":
            source = (clip + 1 + int(other * (len(self.views) - 1))) % len(self.views)
        count = self.views[clip]
        # Targets of one epoch are spread over the clip: each slot has its own stretch.
        target = 0 if count is None else min(count - 1, int((slot + within) / self.slots[clip] * count))
        recolored = bool(turned < data.recolor) and (kind != "mask" or data.recolor_masked)
        return Draw(
            clip=clip,
            source=source,
            target=target,
            references=self._references(kind, target, clip, source, rng),
            kind=kind,
            recolored=recolored,
            hsv=tuple(float(x) for x in augment.random_hsv(rng, natural=not recolored)),
            strip=bool(kind == "mask" and strip < data.strip_colors)
            or (recolored and data.strip_recolored and data.captions == "file"),
            drop=bool(drop < data.drop_text),
            seed=seed,
        )

    def _references(self, kind: str, target: int, clip: int, source: int, rng) -> tuple[int, ...]:
        """Return view numbers of the references: not the target's, and all different if there are enough."""
        wanted = {"mask": 0, "grid": GRID_TILES}.get(kind, 1)
        count = self.views[source]
        if count is None:
            return tuple(range(1, wanted + 1))
        window = self.data.window if source == clip else 0
        views = np.arange(max(0, target - window), min(count, target + window + 1)) if window else np.arange(count)
        others = views[views != target] if source == clip and len(views) > 1 else views
        return tuple(int(v) for v in rng.choice(others, wanted, replace=len(others) < wanted))


class Positions(torch.utils.data.Sampler):
    """Batch sampler: the positions of each pass of one process, from step ``start`` to ``stop``.

    Step s has the positions s * batch to (s + 1) * batch - 1, for any number of processes. Pass m of process r of w
    takes ``micro`` of them, from s * batch + (m * w + r) * micro on. Raises ValueError for an indivisible batch.
    """

    def __init__(self, start: int, stop: int, batch: int, micro: int, rank: int = 0, world: int = 1):
        if batch % (micro * world):
            raise ValueError(
                f"a batch of {batch} cannot be shared by {world} process(es) in passes of {micro}: make run.batch_size "
                f"a multiple of {micro * world}, or change run.micro_batch."
            )
        self.start, self.stop, self.batch, self.micro, self.rank, self.world = start, stop, batch, micro, rank, world

    @property
    def passes(self) -> int:
        """Number of passes of each process per step."""
        return self.batch // (self.micro * self.world)

    def __len__(self) -> int:
        return (self.stop - self.start) * self.passes

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.stop):
            for i in range(self.passes):
                first = step * self.batch + (i * self.world + self.rank) * self.micro
                yield list(range(first, first + self.micro))
