"""Tell the state of a job from its folder: how far it is, what is left, and what went wrong. It loads no model."""

import json
import time
from calendar import timegm
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..utils.files import size_text
from ..video import film
from ..video.images import read_image
from . import shots
from .folder import SETTINGS, JobFolder, JobRecord, numbered_files
from .job import is_written, read_description, read_written

_LISTED = 15  # films of a batch, so that all fits on a screen
_SILENT = 10  # times a frame takes, after which a process without an event works no more


@dataclass(frozen=True)
class Times:
    """Times, output and error of a job, from its log.

    worked: seconds, of all processes together. left: seconds, None if nothing tells. last: the moment of the last
    event, in seconds since 1970. output: the film. error: its moment and sentence.
    """

    worked: float
    left: float | None
    last: float
    output: str | None
    error: tuple[float, str] | None


def report(path: str | Path) -> str:
    """Return the state of a job as text of at most 24 lines.

    path: its film, finished or not, its folder, or a folder with several jobs. A finished film tells it by itself.
    Raises FileNotFoundError for no job, and ValueError for a damaged record, in one sentence.
    """
    path = Path(path)
    for folder in (JobFolder(path), JobFolder.beside(path)):
        if folder.exists():
            return "\n".join(_job_lines(folder))
    if found := read_description(path):
        return "\n".join(_finished_lines(path, found[0]))
    inside = sorted(p for p in path.glob("*.job") if JobFolder(p).exists()) if path.is_dir() else []
    finished = _finished_films(path) if path.is_dir() else {}
    if not inside and not finished:
        raise FileNotFoundError(f"{path} is no job of gcgkit colorize: give the film that it writes, or its folder.")
    return "\n".join(_batch_lines(path, inside, finished))


def _finished_films(path: Path) -> dict[Path, JobRecord]:
    """Return the films of a folder that tell that they are finished, and whose jobs are gone."""
    films = (p for p in sorted(path.iterdir()) if p.suffix.lower() in film.FILM_SUFFIXES)
    return {p: found[0] for p in films if not JobFolder.beside(p).exists() and (found := read_description(p))}


def _finished_lines(path: Path, record: JobRecord) -> Iterator[str]:
    yield f"{path}: {record.num_frames:,} frames, written{_bytes(path)}; its job's folder is removed"
    yield f"  film      {record.source.path}"
    yield f"  profile   {record.profile}"
    yield f"  settings  {_settings(record)}"


def _job_lines(folder: JobFolder) -> Iterator[str]:
    record, listed, done = folder.read(), shots.read_csv(folder.shots_file), folder.done()
    left = [number for number, shot in enumerate(listed, 1) if not done.issuperset(range(shot.first, shot.last + 1))]
    times = read_times(folder, record.num_frames - len(done))
    keyframes = len(numbered_files(folder.keyframes))
    yield f"{folder.path}: {_share(len(done), record.num_frames)} frames done, {keyframes:,} keyframes coloured"
    gone = "" if Path(record.source.path).exists() else " (not there now)"
    yield f"  film      {record.source.path}{gone}, {_size(folder, record)}, {record.num_frames:,} frames"
    first = f"; {len(left):,} left, the first is shot {left[0]:,}" if left else ""
    yield f"  shots     {len(listed) - len(left):,} of {len(listed):,} done{first}"
    yield f"  output    {_output(folder, times)}"
    if times.last:
        rest = f", about {_span(times.left)} left" if left and times.left is not None else ""
        yield f"  time      {_span(times.worked)} of work so far{rest}; last sign {_span(time.time() - times.last)} ago"
    yield f"  profile   {record.profile}"
    yield f"  settings  {_settings(record)}"
    if times.error:
        yield f"  error     {_span(time.time() - times.error[0])} ago: {times.error[1]}"


def _batch_lines(path: Path, folders: list[Path], others: dict[Path, JobRecord]) -> Iterator[str]:
    counts = {p.name: record.num_frames for p, record in others.items()}
    rows = [(2, f"  {name}: {_share(count, count)} frames  written") for name, count in counts.items()]
    total, finished = [sum(counts.values())] * 2, len(others)
    for folder in map(JobFolder, folders):
        try:
            count, done = folder.read().num_frames, len(folder.done())
        except ValueError as error:
            rows.append((0, f"  {error}"))
            continue
        written = _written(folder)
        finished += written is not None
        total = [total[0] + done, total[1] + count]
        state = "written" if written else f"error: {e[1]}" if (e := read_times(folder, 0).error) else ""
        rows.append((1 + bool(written), f"  {folder.path.stem}: {_share(done, count)} frames  {state}".rstrip()))
    yield f"{path}: {finished} of {len(folders) + len(others)} films written, {_share(*total)} frames done"
    yield from (text for _, text in sorted(rows)[:_LISTED])
    if len(rows) > _LISTED:
        yield f"  and {len(rows) - _LISTED} more"


def read_times(folder: JobFolder, missing: int) -> Times:
    """Read a job's log; `missing` frames are to be coloured, by as many processes as work at its end.

    The time between two runs does not count. An error counts until a frame is coloured after it. Bad lines are skipped.
    """
    runs: dict[int, float] = {}  # by process: the moment of its latest event
    worked, frames, last, output, error = 0.0, 0, 0.0, None, None
    try:
        lines = (folder.path / "log.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        try:
            event = json.loads(line)
            moment, kind = float(timegm(time.strptime(event["time"], "%Y-%m-%dT%H:%M:%S"))), event["event"]
            process = int(event["process"])
        except (ValueError, KeyError, TypeError, RecursionError):
            continue  # cut off by a full disk
        if kind in ("begun", "run") or process not in runs:
            runs[process] = moment
        worked += max(0.0, moment - runs[process])
        runs[process], last = moment, max(last, moment)
        if kind == "run":
            output = event.get("output")
        elif kind == "failed":
            error = moment, str(event.get("error"))
        elif kind in ("done", "keyframe kept"):
            frames, error = frames + 1, None
    each = worked / max(1, frames)
    working = sum(last - latest <= _SILENT * each for latest in runs.values())
    left = missing * each / working if frames else None
    return Times(worked, left, last, output, error)


def _written(folder: JobFolder) -> Path | None:
    """Return the written film if it is there as it was written."""
    written = read_written(folder)
    return Path(written["path"]) if written and is_written(written, Path(written["path"])) else None


def _output(folder: JobFolder, times: Times) -> str:
    if path := _written(folder):
        return f"{path}, written{_bytes(path)}"
    return f"{times.output or folder.path.absolute().with_suffix('')}, not written yet"


def _bytes(path: Path) -> str:
    return f", {size_text(path.stat().st_size)}" if path.is_file() else ""


def _size(folder: JobFolder, record: JobRecord) -> str:
    """Return the size of a finished frame, or else of the film's."""
    try:
        for picture in numbered_files(folder.frames).values():
            height, width = read_image(picture).shape[:2]
            return f"{width}x{height}"
        info = film.probe(record.source.path)
        return f"{info.width}x{info.height}"
    except (ValueError, OSError):
        return "of unknown size"


def _settings(record: JobRecord) -> str:
    """Return the settings as options of the command, without those that have their usual value."""
    found = []
    for name, (kind, flag, usual) in SETTINGS.items():
        value = record.settings[name]
        if name == "references":
            value = f"({len(value.split())} pictures)" if value else value
        if value != usual:
            found.append(flag if kind is bool else f"{flag} {value}")
    return " ".join(found) or "all as usual"


def _share(part: int, whole: int) -> str:
    return f"{part:,} of {whole:,} ({100 * part // max(1, whole)} %)"


def _span(seconds: float) -> str:
    """Return a time in its two largest units: ``2 h 10 min``."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    units = [(days, "d"), (hours, "h"), (minutes, "min"), (rest, "s")]
    first = next((i for i, (value, _) in enumerate(units) if value), 3)
    return " ".join(f"{value} {unit}" for value, unit in units[first : first + 2])
