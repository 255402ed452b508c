"""What happens before a film is coloured: everything that can be refused is checked, then the job's folder is made.

A fault is one sentence, leaves what is there as it is, and nothing new behind.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import replace
from importlib import metadata
from pathlib import Path

from .. import __version__, profiles
from ..utils.files import file_sha256, free_space, size_text, write_error, write_text
from ..video import film
from ..video.codecs import IMAGE_SUFFIXES, read_image
from . import shots
from .folder import SETTINGS, JobFolder, JobRecord, identify
from .job import Job, Options, Pictures, is_written, read_written

DEFAULTS = {
    "prompt": "",
    "negative_prompt": "",
    "num_keyframes": 4,
    "num_inference_steps": 32,
    "size": "",
    "guidance_scale": None,
    "seed": 0,
    "chunk": 64,
    "dtype": "float32",
}
ANEW = "--restart to colour anew"
_PNG_SHARE = 0.5  # of a frame's bytes, what its PNG takes, about


def prepare(source, output, options: Options) -> Job:
    """Check film, places, pictures, prompts and weights, then make the job's folder or open it.

    A job that was begun with other settings, other weights or another film is refused, ``Options.restart`` forgets it.
    Raises ValueError, FileNotFoundError and OSError, one sentence each; what is there stays, and nothing new is left.
    """
    source, output = Path(source), Path(output)
    info = film.probe(source)
    folder = JobFolder(options.job or output.with_name(output.name + ".job"))
    _check_place(source, output, folder, options)
    begun = folder.exists() and not options.restart
    record = folder.read() if begun else None
    _check_written(output, folder, options)
    profile = options.profile or (record.profile if record else "mini")
    if profile not in profiles.BUNDLED and Path(profile).is_dir():
        profile = str(Path(profile).absolute())
    weights = weights_of(profile)
    references = _read_references(options.references)
    if record is not None:
        _check_same(record, source, profile, weights, options, references, folder)
    if not (record and (read_written(folder) or folder.writing(output))):
        film.check_output(output, source, lossless=options.lossless)
    count = record.num_frames if record else len(film.times(source))
    for number, path in options.references:
        if number is not None and number >= count:
            raise ValueError(f"--reference {number}={path}: the last of the {count} frames is number {count - 1}.")
    size = info.height, info.width
    _check_sizes(options.references, size)
    if record is None:
        listed = _given_shots(options, count)
        _check_sizes(_exemplars(listed or [], options.shots), size)
        check_prompts(profile, [options.prompt, options.negative_prompt, *_texts(listed or [])])
        record = _begin(source, folder, options, profile, weights, references, listed, count)
    elif options.shots is not None and not _given_before(options, folder):
        listed = _given_shots(options, count)
        _check_sizes(_exemplars(listed, options.shots), size)
        check_prompts(profile, _texts(listed))
        with folder.lock:
            _list_shots(_filled(listed, record.settings), options, folder)
    listed = shots.read_csv(folder.shots_file)
    shots.check(listed, count, folder.path)
    check_prompts(profile, _texts(listed))
    _check_only(options, listed)
    pictures = Pictures(folder, listed)
    parts = (*pictures.exemplars, *pictures.painted)
    notes = _check_sizes(((n, path) for part in parts for n, (path, _) in part.items()), size)
    notes += _check_sizes(((None, path) for path, _ in pictures.outside), size)
    notes += _check_room(folder, info, record)
    return Job(source, output, options, folder, record, listed, notes)


def weights_of(profile: str) -> str:
    """Digest of a profile's weights; raises as ``profiles.resolve`` does."""
    return profiles.weights_digest(profile)


def check_prompts(profile: str, prompts: Iterable[str | None]) -> None:
    """ValueError for a prompt that the profile's text encoder would cut: words that change nothing mislead."""
    prompts = {prompt for prompt in prompts if prompt}
    if not prompts:
        return
    from transformers import CLIPTokenizer

    places = [folder / "tokenizer" for folder in profiles.folders(profile) if (folder / "tokenizer").is_dir()]
    try:
        if places:
            tokenizer = CLIPTokenizer.from_pretrained(places[0])
        else:
            tokenizer = CLIPTokenizer.from_pretrained(profile, subfolder="tokenizer")
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"The tokenizer of '{profile}' cannot be loaded ({reason}): give another --profile.") from None
    for prompt in prompts:
        count, most = len(tokenizer(prompt, verbose=False).input_ids), tokenizer.model_max_length
        if count > most:
            start = prompt if len(prompt) <= 40 else f"{prompt[:40]}..."
            raise ValueError(f"The prompt '{start}' has {count} tokens, of which {most} would be read: shorten it.")


def _check_place(source: Path, output: Path, folder: JobFolder, options: Options) -> None:
    """Refuse places that cannot take the film or the job."""
    parent = next(p for p in output.absolute().parents if p.exists())  # missing folders are made
    for wrong, reason in (
        (output.is_dir() and output.suffix.lower() in film.FILM_SUFFIXES, "is a folder; give the name of a film"),
        (output.exists() and output.samefile(source), "is the input itself; give another name"),
        (not (parent.is_dir() and os.access(parent, os.W_OK)), f"cannot be written: {parent} is no place to write to"),
    ):
        if wrong:
            raise ValueError(f"{output} {reason}.")
    folder.check_ours()


def _check_written(output: Path, folder: JobFolder, options: Options) -> None:
    """Refuse to write over what is not this job's own result."""
    if not output.exists() or options.force or (output.is_dir() and not any(output.iterdir())):
        return
    if folder.writing(output) and not options.restart:
        return
    written = read_written(folder)
    if options.restart or written is None or not is_written(written, output):
        raise ValueError(f"{output} exists already; give another name, or --force to replace it.")


def _check_same(record, source: Path, profile: str, weights: str, options: Options, references: str, folder) -> None:
    """Refuse to go on with another film, other weights or other settings."""
    begun = f"{folder.path} was begun with"
    if identify(source, record.source).digest != record.source.digest:
        other = f"another film than {source}, or it has changed since"
        raise ValueError(f"{begun} {other}: give {ANEW}, or another --job folder.")
    if weights != record.weights:
        raise ValueError(f"{begun} other weights than '{profile}' has now: give {ANEW}, or another --job folder.")
    for name, (_, flag) in SETTINGS.items():
        given, before = references or None if name == "references" else getattr(options, name), record.settings[name]
        if given is None or given == before:
            continue
        if name == "references":
            raise ValueError(f"{begun} other {flag} pictures: edit {folder.shots_file}, or give {ANEW}.")
        if name in ("prompt", "negative_prompt"):
            raise ValueError(f"{begun} {flag} {before!r}, not {given!r}: edit {folder.shots_file}, or give {ANEW}.")
        if name == "num_keyframes" and options.preview is not None:
            raise ValueError(f"{begun} {before} keyframes a shot, not {given}: give --preview {before}, or {ANEW}.")
        had = f"{flag} {before}" if before != "" else f"no {flag}"
        raise ValueError(f"{begun} {had}, not {given}: leave {flag} out, or give {ANEW}.")


def _check_only(options: Options, listed: list) -> None:
    wrong = sorted(n for n in options.only_shots or () if n > len(listed))
    if wrong:
        raise ValueError(f"--only-shots names shot {wrong[0]}, but there are {len(listed)}.")


def _check_sizes(pictures: Iterable[tuple[int | None, Path]], size: tuple[int, int]) -> list[str]:
    """Notes on pictures of another size; ValueError for a frame's picture (with a number) of another aspect."""
    from ..references import fit_exemplar

    notes = []
    for number, path in pictures:
        picture = read_image(path)
        if number is not None:
            fit_exemplar(picture, size, f"{path}, for frame {number},")
        if picture.shape[:2] != size:
            have, want = (f"{s[1]}x{s[0]}" for s in (picture.shape, size))
            notes.append(f"{path} is {have} and the film {want}: it is scaled.")
    return notes


def _check_room(folder: JobFolder, info, record: JobRecord) -> list[str]:
    """A note where the frames to come will hardly fit on the disk."""
    missing = record.num_frames - len(folder.done())
    wanted, free = missing * info.width * info.height * 3 * _PNG_SHARE, free_space(folder.path)
    if wanted <= free:
        return []
    return [f"{folder.path} may need {size_text(wanted)} and its disk has {size_text(free)}: choose another --job."]


def _read_references(references) -> str:
    """The pictures' digests as one text, to tell them from others; errors for what is no picture, or given twice."""
    found: dict[int | None, str] = {}
    for number, path in references:
        if found and (None in (number, *found) or number in found):
            raise ValueError("--reference takes one IMAGE, or FRAME=IMAGE once for each frame.")
        if not path.exists():
            raise FileNotFoundError(f"--reference {path} does not exist; give an image file.")
        if not path.is_file() or path.suffix.lower() not in IMAGE_SUFFIXES:
            raise FileNotFoundError(f"--reference {path} is not an image file: {', '.join(IMAGE_SUFFIXES)}.")
        found[number] = file_sha256(path, progress=False)
    return " ".join(f"{'' if n is None else n}={found[n]}" for n in sorted(found, key=lambda n: -1 if n is None else n))


def _given_shots(options: Options, count: int) -> list | None:
    """The list of shots that was given, checked with its pictures."""
    if options.shots is None:
        return None
    listed = shots.read_csv(options.shots)
    shots.check(listed, count, options.shots.absolute().parent)
    return listed


def _given_before(options: Options, folder: JobFolder) -> bool:
    """Whether the list given is the one that the job was begun with, whose copy in the folder may have been edited."""
    if not (folder.given_file.exists() and options.shots.is_file()):
        return False
    return folder.given_file.read_text(encoding="utf-8") == _text(options.shots)


def _list_shots(listed: list, options: Options, folder: JobFolder) -> None:
    """Write the job's list of shots, with all pictures it names in the folder."""
    if options.shots is not None:
        listed = _adopt(listed, options.shots.absolute().parent, folder)
    shots.write_csv(folder.shots_file, _with_references(listed, options.references, folder))
    if options.shots is not None:
        write_text(folder.given_file, _text(options.shots))


def _adopt(listed: list, place: Path, folder: JobFolder) -> list:
    """Copy the pictures of a list of shots that lies elsewhere into the job's folder, and call them by their copies."""
    if place.resolve() == folder.path.resolve():
        return listed
    adopted = []
    for shot in listed:
        pictures = {n: _copied(place / name, f"{n:06d}", folder) for n, name in shot.exemplars.items()}
        adopted.append(replace(shot, exemplars=pictures))
    return adopted


def _copied(path: Path, name: str, folder: JobFolder) -> str:
    """Keep a copy of a picture among the job's exemplars; its path from the folder."""
    folder.exemplars.mkdir(exist_ok=True)
    for old in folder.exemplars.glob(f"{name}.*"):
        old.unlink()
    copy = folder.exemplars / f"{name}{path.suffix.lower()}"
    try:
        shutil.copyfile(path, copy)
    except OSError as error:
        raise write_error(error, copy) from None
    return copy.relative_to(folder.path).as_posix()


def _begin(source, folder: JobFolder, options: Options, profile, weights, references, listed, count) -> JobRecord:
    """Make the folder; a process that finds it made by another takes that one's."""
    if options.restart:
        listed = shots.find(source) if listed is None else listed  # whatever may fail comes before what is lost
        folder.remove()
    new = not folder.path.exists()
    made = [p for p in (folder.path, *folder.path.absolute().parents) if not p.exists()]
    folder.path.mkdir(parents=True, exist_ok=True)
    try:
        with folder.lock:
            folder.path.mkdir(parents=True, exist_ok=True)
            if folder.exists():
                record = folder.read()
                _check_same(record, source, profile, weights, options, references, folder)
                return record
            settings = {n: DEFAULTS[n] if getattr(options, n) is None else getattr(options, n) for n in DEFAULTS}
            settings["references"] = references
            listed = _filled(listed if listed is not None else shots.find(source), settings)
            shots.check(listed, count)
            folder.make()
            _list_shots(listed, options, folder)
            versions = {name: metadata.version(name) for name in ("torch", "diffusers", "transformers")}
            versions["gcgkit"] = __version__
            record = JobRecord(identify(source), count, settings, profile, weights, versions)
            folder.write(record)
            folder.log("begun", shots=len(listed), frames=count)
            return record
    except BaseException:
        if new and not folder.exists():
            shutil.rmtree(folder.path, ignore_errors=True)
            for empty in made[1:]:
                try:
                    empty.rmdir()
                except OSError:
                    break
        raise


def _filled(listed: list, settings: dict) -> list:
    """Shots without words of their own have the job's."""
    return [
        replace(
            shot,
            prompt=shot.prompt or settings["prompt"],
            negative_prompt=shot.negative_prompt or settings["negative_prompt"],
        )
        for shot in listed
    ]


def _with_references(listed: list, references, folder: JobFolder) -> list:
    """Keep copies of the pictures given with --reference; those of frames enter the list."""
    listed = list(listed)
    for number, path in references:
        name = _copied(path, "outside" if number is None else f"{number:06d}", folder)
        for i, shot in enumerate(listed):
            if number is not None and shot.first <= number <= shot.last:
                listed[i] = replace(shot, exemplars={**shot.exemplars, number: name})
    return listed


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8-sig", errors="replace")


def _exemplars(listed: list, place: Path | None) -> list[tuple[int, Path]]:
    """Numbers and files of all exemplars of a list that lies at a place."""
    return [(n, place.absolute().parent / name) for shot in listed for n, name in shot.exemplars.items()]


def _texts(listed: list) -> list[str]:
    return [text for shot in listed for text in (shot.prompt, shot.negative_prompt)]
