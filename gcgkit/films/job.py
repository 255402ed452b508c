"""Colour a film as a job: after a stop at any moment, the same command continues.

``prepare.prepare`` makes or opens a ``Job``. ``Job.work`` colours the shots that no other process is colouring, and
``Job.join`` writes the film once all are done. Any number of processes may run at once. Between two runs a person may
edit the list of shots and paint over keyframes; finished frames are kept as long as their inputs are unchanged.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path

from filelock import Timeout

from ..utils.commands import read_size
from ..utils.files import file_sha256, known_sha256
from ..video import film
from .folder import (
    FORMAT,
    SETTINGS,
    JobFolder,
    JobRecord,
    ShotRecord,
    numbered_files,
    parse_job,
    read_finished,
    read_shot_record,
    write_json,
)
from .preview import write_sheets
from .shots import ShotPlan

_MARK = "Coloured by gcgkit: "  # begins the line in a film's comment that says how the film was made


@dataclass(frozen=True)
class Options:
    """Options for colouring a film; None keeps the job's value, or the default (``prepare``).

    prompt .. chunk: as for ``settings.Settings`` and ``GCGPipeline.stream``; chunk is the length of a segment, which
    has num_keyframes keyframes of its own. size: the model's working size "WxH", "" for its own. dtype: of the weights.
    deflicker: even out each shot's brightness (``video.flicker``) before it is coloured; the film is written so.
    tinted: take the lightness of a shot that is one colour in all its shades by that tint, not by luma.
    references: (frame number or None, picture file).
    shots: a list of shots as CSV, instead of the cuts found. cut_threshold: as for ``shots.find``. profile: a bundled
    name, a folder, a hub id.
    preview: colour this many keyframes a segment, and stop. only_shots: numbers of shots, from 1. job: the folder.
    lossless, codec, crf, pixels, sound: of the written film, as for ``video.film.write``. force: overwrite an existing
    file. restart: discard the content of the folder. clean: remove the folder once the film is written.
    """

    prompt: str | None = None
    negative_prompt: str | None = None
    num_keyframes: int | None = None
    num_inference_steps: int | None = None
    size: str | None = None
    guidance_scale: float | None = None
    seed: int | None = None
    chunk: int | None = None
    deflicker: bool | None = None
    tinted: bool | None = None
    dtype: str | None = None
    references: tuple[tuple[int | None, Path], ...] = ()
    shots: Path | None = None
    cut_threshold: float | None = None
    profile: str | None = None
    preview: int | None = None
    only_shots: frozenset[int] | None = None
    job: Path | None = None
    lossless: bool = False
    codec: str | None = None
    crf: int | None = None
    pixels: str | None = None
    sound: str = "auto"
    force: bool = False
    restart: bool = False
    clean: bool = False

    def __post_init__(self):
        if self.preview is not None:
            if self.num_keyframes not in (None, self.preview):
                raise ValueError(f"--preview {self.preview} and --keyframes {self.num_keyframes} differ: give one.")
            object.__setattr__(self, "num_keyframes", self.preview)

    @property
    def encoding(self) -> dict:
        """Return the options of ``video.film.write`` that differ from its defaults."""
        defaults = {"lossless": False, "codec": None, "crf": None, "pixels": None, "sound": "auto"}
        return {name: getattr(self, name) for name, usual in defaults.items() if getattr(self, name) != usual}


@dataclass
class Job:
    """A film's job with its current list of shots; ``selected`` are the shots that this run may colour."""

    source: Path
    output: Path
    options: Options
    folder: JobFolder
    record: JobRecord
    shots: list
    notes: list[str] = field(default_factory=list)
    carried: bool = False  # the film is written, and its folder removed

    @property
    def selected(self) -> list[int]:
        """Indices of the shots that the options select."""
        only = self.options.only_shots
        return [i for i in range(len(self.shots)) if only is None or i + 1 in only]

    def finished(self) -> bool:
        """Return True if the film is written from the current shots."""
        if self.carried:
            return True
        written = read_written(self.folder)
        return written is not None and is_written(written, self.output) and self._written_as_now(written)

    def _written_as_now(self, written: dict) -> bool:
        """Return True for the record of a film with the present encoding, from the present shots."""
        return written["encoding"] == self.options.encoding and written["inputs"] == self._inputs()

    def check_earlier(self) -> None:
        """Raise ValueError if the output is a folder with the frames of an earlier run, which are never replaced."""
        filled = self.output.is_dir() and any(self.output.iterdir())
        if filled and (written := read_written(self.folder)) and not self._written_as_now(written):
            raise ValueError(f"{self.output} holds an earlier result: move it away, or name a new folder.")

    def missing(self) -> int:
        """Count the unfinished frames of the selected shots; existing files count as finished."""
        done = self.folder.done()
        return sum(n not in done for i in self.selected for n in range(self.shots[i].first, self.shots[i].last + 1))

    def work(
        self,
        ladder: Callable,
        say: Callable[[str], None] = print,
        show: Callable[[str], None] | None = None,
        start: int = 0,
    ) -> Iterator[int]:
        """Colour the shots that are neither done nor locked by another process; yield the number of new frames.

        ladder(profile, dtype) returns the ``MemoryLadder`` with the pipeline; it is called only if there is work.
        With ``Options.preview`` only keyframes are coloured. start: the shot to begin with, for parallel runs.
        """
        start %= max(1, len(self.selected))
        order = self.selected[start:] + self.selected[:start]
        preview, pictures = self.options.preview is not None, None
        for index in order:
            shot = self.shots[index]
            lock = self.folder.shot_lock(shot.first)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            try:
                pictures = pictures or Pictures(self.folder, self.shots)
                if self._is_done(self._plan(index, pictures), preview):
                    continue
                plan, pictures = self._plan(index, Pictures(self.folder, self.shots)), None  # as they are just now
                self._set_aside_if_changed(index, plan, say)
                if self._is_done(plan, preview):
                    continue
                ready = ladder(self.record.profile, self.record.settings["dtype"])
                from .shot import ShotRun  # with torch

                run = ShotRun(ready, self.source, plan, self.folder, show)
                if preview:
                    for numbers in run.color_keyframes():
                        yield len(numbers)
                else:
                    for _ in run.color_frames():
                        yield 1
            finally:
                lock.release()

    def preview(self) -> list[Path]:
        """Write contact sheets of all keyframes, one row a shot; return their paths."""
        rows = []
        for index in self.selected:
            shot = self.shots[index]
            files = {n: p for n, p in numbered_files(self.folder.keyframes).items() if shot.first <= n <= shot.last}
            rows.append((f"shot {index + 1}, frames {shot.first} to {shot.last}: {shot.prompt}", files))
        return write_sheets(rows, self.folder.path)

    def join(self) -> bool:
        """Write the film if all its shots are done; return False if some are not, or another process writes it."""
        lock = self.folder.join_lock()
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        try:
            if self.finished():
                return False
            pictures = Pictures(self.folder, self.shots)
            if not all(self._is_done(self._plan(i, pictures)) for i in range(len(self.shots))):
                return False
            self.check_earlier()
            filled, before = self.output.is_dir() and any(self.output.iterdir()), read_written(self.folder)
            facts = {"path": str(self.output.absolute()), "encoding": self.options.encoding, "inputs": self._inputs()}
            # a folder of images with its final name is complete: the last run ended before recording it
            if not (filled and before and is_begun(before, self.output)):
                write_json(self.folder.written_file, {**facts, "size": None, "changed": None})
                info = film.probe(self.source)
                size = info.height, info.width
                frames = (read_finished(self.folder.frame_file(n), size) for n in range(self.record.num_frames))
                comment = describe(self.record, self.options.encoding, self.folder.given_file)
                film.write(self.output, frames, self.source, **self.options.encoding, comment=comment)
            stat = self.output.stat()
            write_json(self.folder.written_file, {**facts, "size": stat.st_size, "changed": stat.st_mtime_ns})
            self.folder.log("written", path=str(self.output))
            return True
        finally:
            lock.release()

    def _inputs(self) -> str:
        """Return a digest of the inputs of all shots."""
        pictures = Pictures(self.folder, self.shots)
        return _digest([self._plan(i, pictures).inputs for i in range(len(self.shots))])

    def _plan(self, index: int, pictures: Pictures) -> ShotPlan:
        """Return the inputs of a shot's colours, with the present pictures."""
        shot, settings = self.shots[index], self.record.settings
        exemplars, painted, outside = pictures.exemplars[index], pictures.painted[index], pictures.of_scene(index)
        inputs = _digest(
            [shot.first, shot.last, shot.prompt, shot.negative_prompt, shot.keyframes]
            + [sorted((n, digest) for n, (_, digest) in part.items()) for part in (exemplars, painted)]
            + [[digest for _, digest in outside]]
        )
        options = {name: settings[name] for name in ("num_keyframes", "num_inference_steps", "guidance_scale")}
        options["working_size"] = read_size(settings["size"])
        if shot.keyframes is not None:
            options["num_keyframes"] = shot.keyframes
        return ShotPlan(
            shot.first,
            shot.last,
            inputs,
            {**options, "prompt": shot.prompt, "negative_prompt": shot.negative_prompt},
            settings["seed"],
            settings["chunk"],
            {n: path for n, (path, _) in exemplars.items()},
            tuple(path for path, _ in outside),
            frozenset(painted),
            settings["deflicker"],
            settings["tinted"],
        )

    def _set_aside_if_changed(self, index: int, plan, say: Callable) -> None:
        """Move a shot's frames away if they were made from other inputs than the present ones."""
        record = self.folder.read_shot(plan.first)
        if record is None:
            stale = any(self.folder.frame_file(n).exists() for n in plan.frames)
        else:
            stale = record.inputs != plan.inputs
            stale = stale or not all(self.folder.keyframe_file(n).exists() for n in record.keyframes)
        if stale:
            moved = self.folder.set_aside(plan.first, plan.last, record)
            kept = f"its {moved} finished frame(s) are moved to {self.folder.replaced}" if moved else "nothing is lost"
            say(f"Shot {index + 1} has changed and is coloured again; {kept}.")
            self.folder.log("set aside", shot=index + 1, frames=moved)

    def _is_done(self, plan, preview: bool = False) -> bool:
        """Return True if all frames of a shot are there, made from the plan's inputs; with `preview`, all keyframes."""
        record = self.folder.read_shot(plan.first)
        if record is None or record.inputs != plan.inputs:
            return False
        if not all(self.folder.keyframe_file(n).exists() for n in record.keyframes):
            return False
        if preview:
            return all(any(n in part for n in record.keyframes) for part in plan.segments)
        return all(self.folder.frame_file(n).exists() for n in plan.frames)


class Pictures:
    """The present exemplars and painted keyframes of all shots: by shot, ``{frame: (file, digest)}``."""

    def __init__(self, folder: JobFolder, listed: list):
        self.listed = listed
        with folder.lock:
            files = numbered_files(folder.keyframes)
            # our keyframes are in a record, perhaps of a shot with other borders; any other file is a person's
            known = {n: set() for n in files}
            for path in folder.shots.glob("*.json"):
                for number, (digest, by_hand) in _shot_record(path).keyframes.items():
                    if number in known and not by_hand:
                        known[number].add(digest)
            digests = {n: known_sha256(path) for n, path in files.items()}
        by_hand = {n: (files[n], digest) for n, digest in digests.items() if digest not in known[n]}
        self.painted = [{n: p for n, p in by_hand.items() if s.first <= n <= s.last} for s in listed]
        self.exemplars = [
            {
                n: (path, known_sha256(path))
                for n, path in ((n, folder.path / text) for n, text in shot.exemplars.items())
                if n not in painted
            }
            for shot, painted in zip(listed, self.painted, strict=True)
        ]
        shared = sorted(p for p in folder.exemplars.glob("outside.*"))
        self.outside = [(path, known_sha256(path)) for path in shared]

    def of_scene(self, index: int) -> list[tuple[Path, str]]:
        """Return the pictures that guide a shot from outside: the film's, and those of other shots of its scene."""
        scene, found = self.listed[index].scene, list(self.outside)
        for other, shot in enumerate(self.listed):
            if scene and shot.scene == scene and other != index:
                found += [*self.exemplars[other].values(), *self.painted[other].values()]
        return found


def describe(record: JobRecord, encoding: dict, given: Path) -> str:
    """Return a line that says how a film was made: the job's record, the encoding, and the digest of a given list.

    Folders are left out: viewers of the film need not know them, and digests tell the weights and the source.
    """
    facts = {"format": FORMAT, **asdict(record)}
    if Path(record.profile).is_absolute():
        facts["profile"] = Path(record.profile).name
    facts["source"]["path"] = Path(record.source.path).name
    facts["settings"] = {name: value for name, value in record.settings.items() if value != SETTINGS[name][2]}
    listed = file_sha256(given, progress=False) if given.exists() else ""
    return _MARK + json.dumps({**facts, "encoding": encoding, "shots": listed}, separators=(",", ":"))


def read_description(output: Path) -> tuple[JobRecord, dict, str] | None:
    """Return what `describe` took, from the comment of a film or folder of pictures; None for any other."""
    for line in film.comments(output):
        with suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
            data = json.loads(line.removeprefix(_MARK)) if line.startswith(_MARK) else None
            found = parse_job(data, output), data["encoding"], data["shots"]
            if len(film.times(output)) == found[0].num_frames:
                return found
    return None


def read_written(folder: JobFolder) -> dict | None:
    """Return the record of the written film, or None: path, size, time, encoding, and digest of its inputs.

    Size and time are None until the film is complete.
    """
    try:
        facts = json.loads(folder.written_file.read_bytes())
        if "lossless" in facts:  # as older jobs have it
            facts["encoding"] = {"lossless": True} if facts.pop("lossless") else {}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None
    wanted = {"path", "size", "changed", "encoding", "inputs"}
    return facts if isinstance(facts, dict) and set(facts) == wanted else None


def is_written(written: dict, output: Path) -> bool:
    """Return True if the output is there as it was written."""
    if is_begun(written, output) or not output.exists() or written["path"] != str(output.absolute()):
        return False
    stat = output.stat()
    return output.is_dir() or (written["size"], written["changed"]) == (stat.st_size, stat.st_mtime_ns)


def is_begun(written: dict, output: Path) -> bool:
    """Return True if a run began to write this output; it may have ended right after the final rename."""
    return written["size"] is None and written["path"] == str(output.absolute())


def _shot_record(path: Path) -> ShotRecord:
    """Return a shot's record; read it again only after the file has changed."""
    stat = path.stat()
    return _shot_record_of(path, (stat.st_ino, stat.st_size, stat.st_mtime_ns))


@lru_cache(maxsize=100_000)
def _shot_record_of(path: Path, state: tuple[int, int, int]) -> ShotRecord:
    return read_shot_record(path)


def _digest(value) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
