"""Colour many films with many processes: list the films, share the shots, report the results.

Processes, on one machine or on several with a shared disk, need not know of each other. Each takes a shot that is
neither done nor locked. The process that finds all shots of a film complete writes the film. ``accelerate launch``
starts them.
"""

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..utils.commands import best_device, reason
from ..video import film
from ..video.images import is_image
from .job import Job, Options
from .prepare import prepare

# Suffixes by which films in a folder are found: those that can be written, and more.
READ_SUFFIXES = (*film.FILM_SUFFIXES, ".mpg", ".mpeg", ".mts", ".m2ts", ".vob", ".wmv", ".flv", ".ogv", ".3gp")
_KEPT_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv")  # others may not hold H.264 with any sound


@dataclass(frozen=True)
class Worker:
    """A process: its number, the number of processes, and its device, None for a GPU if there is one."""

    index: int = 0
    count: int = 1
    device: str | None = "cpu"


def worker(device: str | None = None) -> Worker:
    """Return this process's place among those of ``accelerate launch``, or as the only one; each has its own GPU.

    device: "cpu", "cuda" or one GPU as "cuda:1"; None for a GPU if there is one, which a single process finds out when
    it loads the model. Raises ValueError for a GPU that cannot be used.
    """
    if device and device.startswith("cuda"):
        import torch

        if int(device[5:] or 0) >= torch.cuda.device_count():
            raise ValueError(f"--device {device}: no such GPU can be used; see gcgkit doctor, or give --device cpu.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState

        state = PartialState(cpu=best_device(device) == "cpu")
        return Worker(state.process_index, state.num_processes, str(state.device))
    return Worker(0, 1, device)


def films(inputs: list[Path], output: Path) -> list[tuple[Path, Path]]:
    """Pair each film with its output: one film or folder of images with ``output``, several with files in that folder.

    A folder stands for the films in it. Films keep their names; the suffix becomes .mkv if the film's own cannot hold
    every kind of sound. Raises ValueError for a folder with both films and images, for a film that would be written
    into a folder that is read, where the next run would find it, and for equal names.
    """
    listed: list[Path] = []
    if Path("-") in (*inputs, output):
        raise ValueError("Films are read from files and written to files, not to '-': give names.")
    for path in inputs:
        entries = sorted(p for p in path.iterdir() if not p.name.startswith(".")) if path.is_dir() else []
        inside = [p for p in entries if p.is_file() and p.suffix.lower() in READ_SUFFIXES]
        if inside and any(map(is_image, entries)):
            raise ValueError(f"{path} holds films and images: name the films one by one.")
        listed += inside or [path]
    read = {path.resolve() for path in inputs if path.is_dir()}
    if len(inputs) == 1 and listed == inputs:
        _check_apart(output, read)
        return [(inputs[0], output)]
    if output.suffix.lower() in film.FILM_SUFFIXES or output.is_file():
        raise ValueError(f"{output} must be a folder for {len(listed)} film(s): give a name without a suffix.")
    pairs, taken = [], {}
    for path in listed:
        suffix = path.suffix.lower() if path.suffix.lower() in _KEPT_SUFFIXES else ".mkv"
        place = output / (path.name if path.is_dir() else path.stem + suffix)
        _check_apart(place, read)
        if place in taken:
            raise ValueError(f"{path} and {taken[place]} would both become {place}: rename one of them.")
        taken[place] = path
        pairs.append((path, place))
    return pairs


def _check_apart(place: Path, read: set[Path]) -> None:
    real = Path(os.path.realpath(place))  # also for a link to itself
    if real in read or (place.suffix and real.parent in read):
        raise ValueError(f"{place} would lie among what is read: write to another folder.")


def check_options(pairs: list[tuple[Path, Path]], options: Options, me: Worker) -> None:
    """Raise ValueError for options that do not work for several films, or for several processes."""
    single = {"--job": options.job, "--shots": options.shots, "--only-shots": options.only_shots}
    single["--reference N="] = any(number is not None for number, _ in options.references) or None
    for flag, value in single.items():
        if len(pairs) > 1 and value is not None:
            raise ValueError(f"{flag} is for one film, and there are {len(pairs)}: colour that one by itself.")
    if me.count > 1 and (options.restart or options.clean):
        flag = "--restart" if options.restart else "--clean"
        raise ValueError(f"{flag} is for one process: the {me.count} would remove what the others make.")


def colorize(
    pairs: list[tuple[Path, Path]], options: Options, ladder: Callable, me: Worker, say: Callable[[str], None] = print
) -> None:
    """Colour films in turn, shot by shot, and write each as soon as its last shot is done.

    ladder: as for ``Job.work``, for example a ``load.Loader``. With several films, an error in one is printed on stderr
    and the others go on; at the end ValueError gives the number of failures. With one film, its error is raised.
    """
    check_options(pairs, options, me)
    failed = 0
    for source, output in pairs:
        job = None
        try:
            job = prepare(source, output, options)
            _color_film(job, ladder, me, say)
        except Exception as error:
            if job is not None:
                with suppress(OSError):  # on a full disk
                    job.folder.log("failed", error=reason(error) or type(error).__name__)
            if len(pairs) == 1 or not isinstance(error, (ValueError, OSError)):
                raise
            failed += 1
            print("gcgkit:", f"{source}:", reason(error), file=sys.stderr)
    if failed:
        raise ValueError(f"{failed} of {len(pairs)} films failed, see above; the others are done or in progress.")


def _color_film(job: Job, ladder: Callable, me: Worker, say: Callable[[str], None]) -> None:
    """Colour the missing part of one film, or its preview; write the film if it is complete; print a summary."""
    from tqdm import tqdm

    for note in job.notes if me.index == 0 else ():
        say(note)
    if job.options.preview is None and job.finished():
        say(_clean_up(job) + f"Nothing is left to do: {job.output}")
        return
    job.folder.log("run", output=str(job.output.absolute()))
    started, count, loading = time.monotonic(), 0, 0.0
    preview = job.options.preview is not None
    missing = None if preview else job.missing()
    bar = tqdm(
        total=None if preview else job.record.num_frames,
        initial=0 if preview else job.record.num_frames - missing,
        desc=f"Keyframes of {job.source.name}" if preview else f"Colouring {job.source.name}",
        unit="keyframe" if preview else "frame",
        disable=None if me.index == 0 else True,
        smoothing=0.05,
    )
    with bar:
        report = lambda text: bar.write(text) if not bar.disable else say(text)  # noqa: E731
        if hasattr(ladder, "say"):
            ladder.say = report

        def loaded(profile: str, dtype: str):
            nonlocal loading
            begin = time.monotonic()
            bar.set_postfix_str("loading the model")
            model = ladder(profile, dtype)
            loading += time.monotonic() - begin
            if not bar.disable:
                bar.start_t += time.monotonic() - begin  # the bar's rate is that of colouring
            return model

        for done in job.work(loaded, report, bar.set_postfix_str, me.index * len(job.selected) // me.count):
            bar.update(done)
            count += done
    if preview:
        if me.index == 0:
            sheets = job.preview()
            say(
                f"Coloured {count} keyframe(s), all of them shown in {', '.join(map(str, sheets))}. Edit "
                f"{job.folder.shots_file} or paint over pictures in {job.folder.keyframes} if you like, then give the "
                "command without --preview."
            )
        return
    written = job.join()
    seconds = time.monotonic() - started - loading
    each = f" in {seconds:.1f} s, {seconds / count:.2f} s each" if count else ""
    if written:
        say(_clean_up(job) + f"Coloured {count} frame(s){each}: {job.output}")
    elif job.finished():
        say(f"Coloured {count} frame(s){each}; another process has written {job.output}")
    else:
        say(f"Coloured {count} frame(s){each}; {job.output} is written when the remaining shots are done.")


def _clean_up(job: Job) -> str:
    """Remove the job's folder if the options ask for it; otherwise return a sentence that says how."""
    if job.options.clean:
        job.folder.remove()
    if job.options.clean or job.carried:
        return ""
    return f"{job.folder.path} keeps all frames for changes; the command with --clean removes it.\n"
