"""Colour a shot of a film into its job's folder, frame by frame, from where an earlier run ended (§3.3, §3.4).

A shot is coloured as ``GCGPipeline.stream`` colours a whole film, in segments. A segment's keyframes come first, with
the previous segment's keyframes as references; then its frames follow one by one. Every frame depends only on the seed,
its number, the keyframes and the finished frames before it. All of these are in the folder, so a run after a kill makes
the same frames.
"""

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch

from .. import keyframes
from ..color import to_gray
from ..references import (
    OUTSIDE,
    Reference,
    ReferencePool,
    check_exemplars,
    choose_keyframes,
    fit_exemplar,
    on_luminance,
)
from ..settings import Settings
from ..stages import Run, color_frame, color_jointly
from ..video import film, flicker
from ..video.images import read_image
from .folder import JobFolder, read_finished, write_png
from .look import Box, find_box, fit_tint, samples, shade
from .memory_ladder import MemoryLadder
from .shots import ShotPlan


class LaterReference:
    """A coloured frame that is encoded as a ``Reference`` when it first guides another: after a restart, few do soon.

    descriptor: as in ``Reference``. encode: returns the reference; work that ran out of memory calls it again.
    """

    def __init__(self, frame: int, descriptor: np.ndarray, encode: Callable[[], Reference]):
        self.frame, self.descriptor, self._encode = frame, descriptor, encode

    def __getattr__(self, name: str):
        if name not in Reference.__dataclass_fields__:
            raise AttributeError(name)
        vars(self).update(vars(self._encode()))
        del self._encode  # with its pictures
        return vars(self)[name]


class ShotRun:
    """Colours one shot; ``show(text)`` is called at each denoising step."""

    def __init__(
        self, ladder: MemoryLadder, source, plan: ShotPlan, folder: JobFolder, show: Callable[[str], None] | None = None
    ):
        self.ladder, self.source, self.plan, self.folder = ladder, source, plan, folder
        self.settings = Settings(**plan.settings, callback_on_step_end=show and _step_reporter(show))
        self.box: Box | None = None  # the picture within black bars, which stay as they are
        self.tint: np.ndarray | None = None  # of a shot in shades of one colour
        self.run: Run | None = None  # made when the frame size is known
        self.pool = ReferencePool(self.settings.dissimilarity, self.settings.past_window, self.settings.network)
        self.outside: list[Reference] = []
        self._reader, self._position = iter(()), -1
        self._gains: dict[int, float] = {}  # that remove flicker, by frame
        self._around: dict[int, np.ndarray] = {}  # whole gray frames ``(H, W)`` of the segment that was read last
        self._keys: set[int] | None = None
        self._references: dict[int, list[Reference]] = {}  # by segment, of the last two

    def color_keyframes(self) -> Iterator[list[int]]:
        """Colour the missing keyframes, and yield each segment's numbers."""
        for index, numbers in enumerate(self.plan.segments):
            if not self._recorded(index):
                yield self._stage_one(index, self._read(numbers))

    def color_frames(self) -> Iterator[int]:
        """Colour all missing frames, keyframes first in each segment; yield each frame's number."""
        for index, numbers in enumerate(self.plan.segments):
            todo = [number for number in numbers if not self.folder.frame_file(number).exists()]
            if not todo:
                continue
            gray = self._read(numbers)
            if not self._recorded(index):
                self._stage_one(index, gray)
            yield from self._stage_two(index, gray, set(todo))

    @torch.no_grad()
    def _stage_one(self, index: int, gray: dict[int, np.ndarray]) -> list[int]:
        """Colour the keyframes of a segment jointly (§3.3), save them together, and return their numbers."""
        plan, run = self.plan, self._run(gray)
        numbers = plan.segments[index]
        given = self._given(gray)
        others = [*self._previous_keyframes(index), *self.outside]
        clip, local = np.stack(list(gray.values())), {n - numbers[0]: frame for n, frame in given.items()}
        chosen = self.ladder.run(lambda _: choose_keyframes(local, clip, run.settings, run.encode, run.seed))
        todo = [n + numbers[0] for n in chosen if n not in local]
        self.folder.log("colour keyframes", frames=todo)

        def work(group: int | None) -> dict[int, np.ndarray]:
            references = [*others, *run.references(list(given), [gray[n] for n in given], list(given.values()))]
            colored, size = dict(given), group or max(1, len(todo))
            for part in (todo[i : i + size] for i in range(0, len(todo), size)):
                result, _ = color_jointly(run, np.stack([gray[n] for n in part]), tuple(part), references)
                colored.update(zip(part, result, strict=True))
                if part[-1] != todo[-1]:
                    references += run.references(part, [gray[n] for n in part], [colored[n] for n in part])
            return colored

        colored = self.ladder.run(work, len(todo))
        whole = {n: self.box.frame(self._around[n], frame) for n, frame in colored.items()}
        self.folder.commit(plan.first, plan.inputs, whole, plan.painted & set(numbers))
        self._keys = None
        self.folder.log("keyframes done", frames=sorted(colored))
        return sorted(colored)

    @torch.no_grad()
    def _stage_two(self, index: int, gray: dict[int, np.ndarray], todo: set[int]) -> Iterator[int]:
        """Colour a segment's frames in order (§3.4), and write each as soon as it is done."""
        run, keys = self._run(gray), self._keyframes(index, gray)
        self.pool.keys = [*self._previous_keyframes(index), *self._segment_references(index, gray), *self.outside]
        for number, image in gray.items():
            if number not in todo:
                continue
            if number in keys:
                write_png(self.folder.frame_file(number), self.box.frame(self._around[number], keys[number]))
                self.folder.log("keyframe kept", frame=number)
                yield number
                continue
            self._fill_pool(number, gray)
            started = time.monotonic()
            self.folder.log("colour", frame=number)
            colored, reference, _ = self.ladder.run(lambda _, n=number, g=image: color_frame(run, g, n, self.pool))
            write_png(self.folder.frame_file(number), self.box.frame(self._around[number], colored))
            if reference is not None:
                self.pool.past.append(reference)
            self.folder.log("done", frame=number, seconds=round(time.monotonic() - started, 3))
            yield number

    def _run(self, gray: dict[int, np.ndarray]) -> Run:
        if self.run is None:
            size = next(iter(gray.values())).shape
            # a generator on the CPU: the same noise on every device
            seeded = torch.Generator().manual_seed
            self.run = self.ladder.run(lambda _: Run(self.ladder.pipe, size, self.settings, seeded(self.plan.seed)))
            for path in self.plan.outside:
                picture = read_image(path)
                if picture.shape[:2] == next(iter(self._around.values())).shape:  # a frame of this film, with its bars
                    picture = self.box.cut(picture)
                picture = check_exemplars(picture, None, size)[OUTSIDE]
                self.outside.append(self._reference(OUTSIDE, to_gray(picture), picture))
        return self.run

    def _read(self, numbers: range) -> dict[int, np.ndarray]:
        """Return gray pictures ``(h, w)`` by number; consecutive segments are read in one pass over the film."""
        if self.box is None:
            shot = self.source, self.plan.first, self.plan.last
            self.box = find_box(samples(*shot))
            self.tint = fit_tint(map(self.box.cut, samples(*shot, 8))) if self.plan.tinted else None
        if self._position != numbers[0]:
            self._reader = film.frames(self.source, numbers[0], self.plan.last + 1)
        self._around = {}
        for number in numbers:
            frame = next(self._reader, None)
            if frame is None:
                raise ValueError(f"{self.source} ends before its frame {number}: it has changed, or is damaged there.")
            self._around[number] = shade(frame, self.tint)
        self._position = numbers[-1] + 1
        return self._pictures(self._around)

    def _pictures(self, whole: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
        """Return the pictures ``(h, w)`` in whole gray frames, without bars, and without flicker if wanted."""
        pictures = {n: self.box.cut(frame) for n, frame in whole.items()}
        if not self.plan.deflicker:
            return pictures
        if missing := [n for n in whole if n not in self._gains]:
            reach = 2 * flicker.RADIUS  # so that part of a shot gives the gains of the whole
            first, last = max(self.plan.first, missing[0] - reach), min(self.plan.last, missing[-1] + reach)
            around = film.frames(self.source, first, last + 1)
            found = flicker.changes(self.box.cut(shade(frame, self.tint)) for frame in around)
            self._gains |= {n: flicker.gain(found, n - first) for n in range(missing[0], missing[-1] + 1)}
        return {n: flicker.brighten(picture, self._gains[n]) for n, picture in pictures.items()}

    def _read_some(self, numbers: list[int], known: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
        """Return gray pictures by number, from ``known`` ones or from the film."""
        missing = {n for n in numbers if n not in known}
        found = {n: known[n] for n in numbers if n not in missing}
        if missing:
            first = min(missing)
            frames = enumerate(film.frames(self.source, first, max(missing) + 1), first)
            found |= self._pictures({number: shade(frame, self.tint) for number, frame in frames if number in missing})
        return {n: found[n] for n in numbers}

    def _given(self, gray: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
        """Return the exemplars and painted keyframes of a segment, with the film's own L*."""
        files = {n: path for n, path in self.plan.exemplars.items() if n in gray}
        files |= {n: self.folder.keyframe_file(n) for n in self.plan.painted & set(gray)}
        return {n: self._fitted(n, gray[n], read_image(path)) for n, path in sorted(files.items())}

    def _fitted(self, number: int, gray: np.ndarray, picture: np.ndarray) -> np.ndarray:
        size = next(iter(self._around.values())).shape
        return on_luminance(gray, self.box.cut(fit_exemplar(picture, size, f"the exemplar of frame {number}")))

    def _reference(self, number: int, gray: np.ndarray, colored: np.ndarray | None = None) -> LaterReference:
        """Return a coloured frame as a reference; a finished frame is read when it is encoded."""

        def encode() -> Reference:
            picture = self.box.cut(read_finished(self.folder.frame_file(number))) if colored is None else colored
            return self.run.reference(number, gray, picture)

        return LaterReference(number, keyframes.describe(gray[None], self.settings.dissimilarity)[0], encode)

    def _recorded(self, index: int) -> list[int]:
        if self._keys is None:  # no other process writes the record while this shot is locked
            record = self.folder.read_shot(self.plan.first)
            self._keys = set(record.keyframes if record else ())
        return [n for n in self.plan.segments[index] if n in self._keys]

    def _keyframes(self, index: int, gray: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
        """Read a segment's coloured keyframes ``(H, W, 3)`` from the folder."""
        frames = {n: read_finished(self.folder.keyframe_file(n)) for n in self._recorded(index)}
        painted = self.plan.painted
        return {n: self._fitted(n, gray[n], f) if n in painted else self.box.cut(f) for n, f in frames.items()}

    def _segment_references(self, index: int, known: dict[int, np.ndarray]) -> list[Reference]:
        """Return a segment's keyframes as references; ``known`` are gray frames that need not be read."""
        if index not in self._references:
            gray = self._read_some(self._recorded(index), known)
            self._run(gray)
            colored = self._keyframes(index, gray)
            self._references[index] = [self._reference(n, gray[n], frame) for n, frame in colored.items()]
            for old in [i for i in self._references if i < index - 1]:
                del self._references[old]
        return self._references[index]

    def _previous_keyframes(self, index: int) -> list[Reference]:
        return self._segment_references(index - 1, {}) if index else []

    def _fill_pool(self, number: int, known: dict[int, np.ndarray]) -> None:
        """Fill the pool with the latest finished frames before a number, also after a gap or a restart."""
        window, wanted = self.pool.past.maxlen, []
        for before in range(number - 1, self.plan.first - 1, -1):
            if len(wanted) == window:
                break
            if before not in self._keys:
                wanted.insert(0, before)
        if [reference.frame for reference in self.pool.past] == wanted:
            return
        references = {reference.frame: reference for reference in self.pool.past}
        gray = self._read_some([n for n in wanted if n not in references], known)
        references |= {n: self._reference(n, image) for n, image in gray.items()}
        self.pool.past.clear()
        self.pool.past.extend(references[n] for n in wanted)


def _step_reporter(show: Callable[[str], None]) -> Callable:
    """Return a callback for the pipeline that shows each step."""

    def report(pipe, step: int, timestep, state: dict) -> dict:
        show(f"{'keyframes, ' * (state['stage'] == 'keyframes')}step {step + 1}")
        return {}

    return report
