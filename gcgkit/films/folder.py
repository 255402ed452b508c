"""The folder in which a film is coloured: the files of a job, their names, and their checks.

``job.json`` records the film, the settings and the weights. ``shots.csv`` lists the shots and may be edited.
``keyframes/<frame>.png`` may be painted over. ``frames/<frame>.png`` are finished frames. ``shots/<first>.json``
records the inputs of a shot's frames. ``log.jsonl`` logs events with their times. A file is written under a temporary
name, flushed to the disk and renamed, so that a file under its final name is complete. Files that a person may have
written are checked; an error in one is one ``ValueError``.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import cv2
import numpy as np
from filelock import FileLock, Timeout

from ..utils.commands import read_size
from ..utils.files import file_sha256, short_name, write_error
from ..video.images import image_files, read_image

FORMAT = 1
# The settings of a job, fixed at its start like film and weights: name, type, the command's option, and default.
SETTINGS = {
    "prompt": (str, "--prompt", ""),
    "negative_prompt": (str, "--negative-prompt", ""),
    "num_keyframes": (int, "--keyframes", 4),
    "num_inference_steps": (int, "--steps", 32),
    "size": (str, "--size", ""),
    "guidance_scale": (float, "--guidance-scale", None),
    "seed": (int, "--seed", 0),
    "chunk": (int, "--chunk", 64),
    "deflicker": (bool, "--deflicker", False),
    "tinted": (bool, "--tinted", False),
    "dtype": (str, "--card", "float32"),
    "references": (str, "--reference", ""),
}
_OURS = ("exemplars", "frames", "given.csv", "keyframes", "log.jsonl", "replaced", "shots", "shots.csv")
_NUMBER = re.compile(r"(\d{1,12})\.png")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Source:
    """The state of a film or folder of images: size in bytes, last change in ns, SHA-256 of the content."""

    path: str
    size: int
    changed: int
    digest: str


@dataclass(frozen=True)
class JobRecord:
    """``job.json``: the film, its number of frames, the settings, the weights' name and digest, and versions."""

    source: Source
    num_frames: int
    settings: dict
    profile: str
    weights: str
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ShotRecord:
    """``shots/<first>.json``: the digest of all inputs of a shot's colours, and its keyframes.

    keyframes: ``{frame number: (SHA-256 of its PNG file, True if a person painted it)}``.
    """

    inputs: str
    keyframes: dict[int, tuple[str, bool]]


class JobFolder:
    """The files of one job. ``lock`` guards the records and the keyframes, which several processes change."""

    @classmethod
    def beside(cls, output: Path) -> JobFolder:
        """Return the folder in which a film's job is kept if no other is named."""
        return cls(output.with_name(short_name(output.name, 240) + ".job"))

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.shots_file = self.path / "shots.csv"
        self.frames, self.keyframes, self.shots = (self.path / name for name in ("frames", "keyframes", "shots"))
        self.exemplars, self.replaced = self.path / "exemplars", self.path / "replaced"
        self.given_file = self.path / "given.csv"  # a copy of the list of shots given with --shots
        self.written_file = self.path / "written.json"
        self.lock = FileLock(self.path / ".lock")

    def make(self) -> None:
        """Make the folders that hold files."""
        for folder in (self.frames, self.keyframes, self.shots):
            folder.mkdir(parents=True, exist_ok=True)

    def exists(self) -> bool:
        """Return True if a job was started here."""
        return (self.path / "job.json").exists()

    def check_ours(self) -> None:
        """Raise ValueError for a folder that holds other things than a job, complete or interrupted at its start."""
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path} is not a folder: give another --job folder.")
        if self.path.is_symlink() and not self.path.exists():
            where = f"is a link to {os.readlink(self.path)}, which is not there"
            raise ValueError(f"{self.path} {where}: mount its disk, or give another --job folder.")
        if self.path.exists() and not self.exists():
            foreign = sorted(p.name for p in self.path.iterdir() if p.name not in _OURS and not p.name.startswith("."))
            if foreign and not self.exists():  # another process may have begun it just now
                raise ValueError(f"{self.path} holds {foreign[0]}, which belongs to no job: give another --job folder.")

    def check_idle(self) -> None:
        """Raise ValueError if a process is colouring a shot or writing the film."""
        for path in (*self.shots.glob("*.lock"), *self.path.glob(".join.lock")):
            try:
                with FileLock(path).acquire(timeout=0):
                    pass
            except Timeout:
                raise ValueError(f"Another process is at work in {self.path}: stop it first, or wait for it.") from None

    def remove(self) -> None:
        """Rename the folder, then remove it: a half-removed folder never looks like a job. One behind a link stays."""
        self.check_ours()
        if self.path.is_symlink():  # to a disk with more room
            (self.path / "job.json").unlink(missing_ok=True)
            for entry in self.path.iterdir():
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    entry.unlink()
        elif self.path.exists():
            doomed = self.path.with_name(f".{short_name(self.path.name)}.removed-{os.getpid()}")
            os.replace(self.path, doomed)
            shutil.rmtree(doomed, ignore_errors=True)

    def read(self) -> JobRecord:
        """Return the content of ``job.json``; raise ValueError for anything but a job's record."""
        return read_job(self.path / "job.json")

    def write(self, record: JobRecord) -> None:
        """Write ``job.json``; from then on the job exists."""
        write_json(self.path / "job.json", {"format": FORMAT, **asdict(record)})

    def shot_file(self, first: int) -> Path:
        """Return the path of the record of the shot that begins with this frame."""
        return self.shots / f"{first:06d}.json"

    def shot_lock(self, first: int) -> FileLock:
        """Return the lock of the process that colours the shot; the system releases it when that process ends."""
        return FileLock(self.shots / f"{first:06d}.lock")

    def join_lock(self) -> FileLock:
        """Return the lock of the process that writes the film."""
        return FileLock(self.path / ".join.lock")

    def frame_file(self, number: int) -> Path:
        """Return the path of a finished frame."""
        return self.frames / f"{number:06d}.png"

    def keyframe_file(self, number: int) -> Path:
        """Return the path of a coloured keyframe, ours or a person's."""
        return self.keyframes / f"{number:06d}.png"

    def done(self) -> set[int]:
        """Return the numbers of the finished frames."""
        return set(numbered_files(self.frames))

    def log(self, event: str, **facts) -> None:
        """Add a line to ``log.jsonl`` in a single write, which is safe with several processes."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
        line = json.dumps({"time": moment, "process": os.getpid(), "event": event, **facts}) + "\n"
        path = self.path / "log.jsonl"
        try:
            with path.open("ab", buffering=0) as file:
                file.write(line.encode())
        except OSError as error:
            raise write_error(error, path) from None

    def read_shot(self, first: int) -> ShotRecord | None:
        """Return a shot's record, None if there is none; first rename keyframes that a killed run left unnamed."""
        path = self.shot_file(first)
        if not path.exists():
            return None
        record = read_shot_record(path)
        if any(_temporary(self.keyframe_file(number)).exists() for number in record.keyframes):
            with self.lock:  # another process may be renaming it right now
                record = read_shot_record(path)
                for number, (digest, _) in record.keyframes.items():
                    waiting = _temporary(self.keyframe_file(number))
                    if waiting.exists() and file_sha256(waiting, progress=False) == digest:
                        os.replace(waiting, self.keyframe_file(number))
                    else:
                        waiting.unlink(missing_ok=True)
        return record

    def commit(self, first: int, inputs: str, colored: dict[int, np.ndarray], painted: Iterable[int]) -> None:
        """Save a shot's new keyframes together: once the record is written, all of them count; before, none."""
        with self.lock:
            known = self.read_shot(first)
            painted, digests = set(painted), dict(known.keyframes) if known else {}
            fresh = [number for number in colored if number not in painted]
            for number in fresh:
                waiting = _temporary(self.keyframe_file(number))
                digests[number] = (_write(waiting, encode_png(colored[number])), False)
            for number in painted:
                digests[number] = (file_sha256(self.keyframe_file(number), progress=False), True)
            write_json(self.shot_file(first), asdict(ShotRecord(inputs, dict(sorted(digests.items())))))
            for number in fresh:
                os.replace(_temporary(self.keyframe_file(number)), self.keyframe_file(number))

    def set_aside(self, first: int, last: int, record: ShotRecord | None) -> int:
        """Move a shot's frames and our own keyframes to ``replaced/``; return the number of frames. Paintings stay."""
        with self.lock:
            place = self.replaced / f"{first:06d}-{record.inputs[:12] if record else 'unknown'}"
            moved = 0
            for number, path in numbered_files(self.frames).items():
                if first <= number <= last:
                    (place / "frames").mkdir(parents=True, exist_ok=True)
                    os.replace(path, place / "frames" / path.name)
                    moved += 1
            for number, (digest, painted) in (record.keyframes if record else {}).items():
                path = self.keyframe_file(number)
                if not painted and path.exists() and file_sha256(path, progress=False) == digest:
                    (place / "keyframes").mkdir(parents=True, exist_ok=True)
                    os.replace(path, place / "keyframes" / path.name)
            self.shot_file(first).unlink(missing_ok=True)
            return moved


def identify(path: str | Path, known: Source | None = None) -> Source:
    """Return the present state of a film or folder of images; reuse the known digest if size and time are unchanged."""
    path = Path(path)
    files = sorted(image_files(path)) if path.is_dir() else [path]
    stats = [file.stat() for file in files]
    size, changed = sum(s.st_size for s in stats), max((s.st_mtime_ns for s in stats), default=0)
    if known and (known.size, known.changed) == (size, changed):
        digest = known.digest
    elif path.is_dir():
        lines = "".join(f"{file.name} {file_sha256(file, progress=False)}\n" for file in files)
        digest = hashlib.sha256(lines.encode()).hexdigest()
    else:
        digest = file_sha256(path)
    return Source(str(path.absolute()), size, changed, digest)


def read_job(path: Path) -> JobRecord:
    """Read a job's record from a file; raise a one-sentence ValueError for anything else."""
    return parse_job(_read_json(path, "--restart to start over"), path)


def parse_job(data, path: Path) -> JobRecord:
    """Return a job's record from JSON; settings that are not there have their defaults. ValueError as `read_job`."""
    wrong = f"{path} is not a job's record ({{}}): give --restart to start over."
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ValueError(wrong.format(f"its format is not {FORMAT}"))
    source, settings, versions = (data.get(name) for name in ("source", "settings", "versions"))
    if isinstance(settings, dict):
        settings = {**{name: usual for name, (*_, usual) in SETTINGS.items()}, **settings}
    others = {name: data.get(name) for name in ("profile", "weights", "num_frames")}
    for name, values, kinds in (
        ("source", source, {"path": str, "size": int, "changed": int, "digest": str}),
        ("settings", settings, {name: kind for name, (kind, *_) in SETTINGS.items()}),
        ("versions", versions, dict.fromkeys(versions, str) if isinstance(versions, dict) else {}),
        ("fields", others, {"profile": str, "weights": str, "num_frames": int}),
    ):
        if not isinstance(values, dict) or set(values) != set(kinds):
            raise ValueError(wrong.format(name))
        for key, kind in kinds.items():
            if not _has_type(values[key], kind) and not (key == "guidance_scale" and values[key] is None):
                raise ValueError(wrong.format(f"{name}, {key}"))
    if settings["size"] and read_size(settings["size"]) is None:
        raise ValueError(wrong.format("settings, size"))
    if others["num_frames"] < 1:
        raise ValueError(wrong.format("fields, num_frames"))
    return JobRecord(Source(**source), settings=settings, versions=versions, **others)


def read_shot_record(path: Path) -> ShotRecord:
    """Read a shot's record from a file; raise a one-sentence ValueError for anything else."""
    data = _read_json(path, "delete it to colour the shot again")
    wrong = ValueError(f"{path} is not a shot's record: delete it to colour the shot again.")
    if not isinstance(data, dict) or set(data) != {"inputs", "keyframes"} or not isinstance(data["keyframes"], dict):
        raise wrong
    if not isinstance(data["inputs"], str) or not _DIGEST.fullmatch(data["inputs"]):
        raise wrong
    keyframes = {}
    for number, pair in data["keyframes"].items():
        if not re.fullmatch(r"[0-9]{1,12}", number) or not isinstance(pair, list) or len(pair) != 2:
            raise wrong
        if not isinstance(pair[0], str) or not _DIGEST.fullmatch(pair[0]) or not isinstance(pair[1], bool):
            raise wrong
        keyframes[int(number)] = (pair[0], pair[1])
    return ShotRecord(data["inputs"], keyframes)


def read_finished(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Return a frame or keyframe of the job ``(H, W, 3)``; ValueError for a damaged one, or one of another size."""
    try:
        frame = read_image(path)
    except (ValueError, OSError):
        raise ValueError(f"{path} is damaged: delete it and run again.") from None
    if size is not None and frame.shape[:2] != size:
        found, wanted = (f"{s[1]}x{s[0]}" for s in (frame.shape, size))
        raise ValueError(f"{path} is {found} and the film {wanted}: delete it and run again.")
    return frame


def numbered_files(folder: Path) -> dict[int, Path]:
    """Return the files ``<number>.png`` of a folder by their numbers, in order."""
    found = ((_NUMBER.fullmatch(entry.name), entry.path) for entry in os.scandir(folder)) if folder.is_dir() else ()
    return dict(sorted((int(match[1]), Path(path)) for match, path in found if match))


def encode_png(frame: np.ndarray) -> bytes:
    """Encode a frame ``(H, W, 3)`` uint8 RGB as PNG, fast rather than small: the files are temporary."""
    bgr = cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2BGR)
    return cv2.imencode(".png", bgr, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()


def write_png(path: Path, frame: np.ndarray) -> None:
    """Write a frame, and give it its name once it is on the disk; raise a one-sentence OSError for a full disk."""
    aside = _temporary(path)
    _write(aside, encode_png(frame))
    os.replace(aside, path)


def write_json(path: Path, data: dict) -> None:
    """Write a small record under a temporary name, flush it to the disk and rename it."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    _write(aside, (json.dumps(data, indent=1) + "\n").encode())
    os.replace(aside, path)


def _read_json(path: Path, advice: str):
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} cannot be read ({reason}): {advice}.") from None


def _has_type(value, kind: type) -> bool:
    """Return True if a value from a JSON file has a type; numbers must be finite, and booleans are no numbers."""
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    if not isinstance(value, (int, float) if kind is float else kind):
        return False
    return kind is str or (abs(value) < 2**63 and math.isfinite(value))


def _temporary(path: Path) -> Path:
    """Return the temporary name of a PNG file; the next run overwrites that of a killed run."""
    return path.with_name(f".{path.name}.tmp")


def _write(path: Path, data: bytes) -> str:
    """Write bytes, flush them to the disk and return their SHA-256; remove a file that could not be completed."""
    try:
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        path.unlink(missing_ok=True)
        raise write_error(error, path) from None
    return hashlib.sha256(data).hexdigest()
