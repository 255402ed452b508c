"""Prepare the colouring of a film: check everything that can be checked, then make the job's folder.

An error is one sentence. It leaves existing files unchanged and no new ones behind.
"""

import hashlib
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from importlib import metadata
from pathlib import Path

from .. import __version__, profiles
from ..utils.files import file_sha256, free_space, size_text, write_error, write_text
from ..video import film
from ..video.images import IMAGE_SUFFIXES, read_image
from . import shots
from .folder import SETTINGS, JobFolder, JobRecord, identify
from .job import Job, Options, Pictures, is_begun, is_written, read_description, read_written
from .look import has_color, samples

DEFAULTS = {name: default for name, (_, _, default) in SETTINGS.items() if name != "references"}
RESTART = "--restart to start over"
_LONGEST_NAME = 255  # bytes, on most file systems
_PNG_SHARE = 0.5  # size of a PNG over that of its frame's bytes, roughly


def prepare(source, output, options: Options) -> Job:
    """Check film, places, pictures, prompts and weights, then make the job's folder or open it.

    A job that was started with other settings, other weights or another film raises ValueError, unless
    ``Options.restart`` discards it. Also raises FileNotFoundError and OSError, each in one sentence. After an error,
    existing files are unchanged and no new ones are left.
    """
    source, output = Path(source), Path(output)
    info = film.probe(source)
    _check_name(output)
    folder = JobFolder(options.job) if options.job else JobFolder.beside(output)
    _check_place(source, output, folder, options)
    record = folder.read() if folder.exists() and not options.restart else None
    references = _read_references(options.references)
    if record is None and (earlier := _made_before(source, output, options, references)):
        return Job(source, output, options, folder, earlier, [], carried=True)
    _check_written(output, folder, options)
    profile = _profile(options, record)
    weights = weights_of(profile)
    if record is not None:
        _check_same(record, source, profile, weights, options, references, folder)
    written, notes = read_written(folder) if record else None, []
    if written is None or (written["encoding"] != options.encoding and not output.is_dir()):
        notes += film.check_output(output, source, **options.encoding, comment="A trial." if options.clean else None)
    count = record.num_frames if record else len(film.times(source))
    for number, path in options.references:
        if number is not None and number >= count:
            raise ValueError(f"--reference {number}={path}: the last of the {count} frames is number {count - 1}.")
    size = info.height, info.width
    _check_sizes(options.references, size)
    if record is None:
        if has_color(samples(source, 0, count - 1, 8)):
            way = "by the tint of each shot that is in one colour" if options.tinted else "--tinted takes it by a tint"
            notes.append(f"{source} has colour; its lightness is used, {way}.")
        listed = _given_shots(options, count)
        _check_sizes(_exemplars(listed or [], options.shots), size)
        check_prompts(profile, [options.prompt, options.negative_prompt, *_prompts(listed or [])])
        record = _make_job(source, folder, options, profile, weights, references, listed, count)
    elif options.shots is not None and not _given_before(options, folder):
        listed = _given_shots(options, count)
        _check_sizes(_exemplars(listed, options.shots), size)
        check_prompts(profile, _prompts(listed))
        with folder.lock:
            _list_shots(_with_defaults(listed, record.settings), options, folder)
    folder.make()  # tools that copy a folder leave empty ones out
    if not folder.shots_file.is_file():
        raise ValueError(f"{folder.shots_file} is not there any more: put it back, or give {RESTART}.")
    listed = shots.read_csv(folder.shots_file)
    shots.check(listed, count, folder.path)
    check_prompts(profile, _prompts(listed))
    _check_only(options, listed)
    pictures = Pictures(folder, listed)
    parts = (*pictures.exemplars, *pictures.painted)
    notes += _check_sizes(((n, path) for part in parts for n, (path, _) in part.items()), size)
    notes += _check_sizes(((None, path) for path, _ in pictures.outside), size)
    notes += _check_room(folder, info, record)
    job = Job(source, output, options, folder, record, listed, notes)
    if options.preview is None:
        job.check_earlier()
    return job


def _made_before(source: Path, output: Path, options: Options, references: str) -> JobRecord | None:
    """Return the record that the output carries if the options would make it again; its own folder is gone."""
    found = None if options.restart or options.preview else read_description(output)
    if found is None or found[1] != options.encoding:
        return None
    if options.shots is not None and not (options.shots.is_file() and _digest(_text(options.shots)) == found[2]):
        return None
    profile = _profile(options, found[0])
    with suppress(ValueError):  # another film, other weights or other settings
        _check_same(found[0], source, profile, weights_of(profile), options, references, JobFolder(output))
        return found[0]
    return None


def _profile(options: Options, record: JobRecord | None) -> str:
    """Return the name of the weights, with the whole path of a folder."""
    profile = options.profile or (record.profile if record else "mini")
    return str(Path(profile).absolute()) if profile not in profiles.BUNDLED and Path(profile).is_dir() else profile


def weights_of(profile: str) -> str:
    """Return the digest of a profile's weights. Errors as ``profiles.resolve``."""
    return profiles.weights_digest(profile)


def check_prompts(profile: str, prompts: Iterable[str | None]) -> None:
    """Raise ValueError for a prompt that the profile's text encoder would cut: cut words have no effect."""
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
            raise ValueError(f"The prompt '{start}' has {count} tokens, but only {most} are read: shorten it.")


def _check_name(output: Path) -> None:
    """Raise ValueError for a path that cannot be the name of a film or folder."""
    if not output.name:
        raise ValueError(f"'{output}' is no name for a film or a folder of images: give one, such as coloured.mp4.")
    if any(len(os.fsencode(name)) > _LONGEST_NAME for name in output.parts):
        raise ValueError(f"{output} has a name of more than {_LONGEST_NAME} bytes: give a shorter one.")


def _check_place(source: Path, output: Path, folder: JobFolder, options: Options) -> None:
    """Raise ValueError for places that cannot hold the film or the job."""
    parent = next(p for p in output.absolute().parents if p.exists())  # missing folders are made
    for wrong, reason in (
        (output.is_dir() and output.suffix.lower() in film.FILM_SUFFIXES, "is a folder; give the name of a film"),
        (output.exists() and output.samefile(source), "is the input itself; give another name"),
        (output.exists() and not (output.is_file() or output.is_dir()), "is neither a file nor a folder"),
        (not (parent.is_dir() and os.access(parent, os.W_OK)), f"cannot be written: {parent} is not writable"),
    ):
        if wrong:
            raise ValueError(f"{output} {reason}.")
    folder.check_ours()


def _check_written(output: Path, folder: JobFolder, options: Options) -> None:
    """Raise ValueError if the output exists and is not this job's own result."""
    filled = output.is_dir() and any(output.iterdir())
    if not output.exists() or (options.force and not output.is_dir()) or (output.is_dir() and not filled):
        return
    written = None if options.restart else read_written(folder)
    if written is None or not (is_written(written, output) or is_begun(written, output)):
        advice = "name a new folder" if filled else "give another name, or --force to replace it"
        raise ValueError(f"{output} exists already; {advice}.")


def _check_same(record, source: Path, profile: str, weights: str, options: Options, references: str, folder) -> None:
    """Raise ValueError for another film, other weights or other settings than the job's."""
    begun = f"{folder.path} was begun with"
    if identify(source, record.source).digest != record.source.digest:
        other = f"another film than {source}, or it has changed since"
        raise ValueError(f"{begun} {other}: give {RESTART}, or another --job folder.")
    if weights != record.weights:
        raise ValueError(f"{begun} other weights than '{profile}' has now: give {RESTART}, or another --job folder.")
    for name, (_, flag, _) in SETTINGS.items():
        given, before = references or None if name == "references" else getattr(options, name), record.settings[name]
        if given is None or given == before:
            continue
        if name == "references":
            raise ValueError(f"{begun} other {flag} pictures: edit {folder.shots_file}, or give {RESTART}.")
        if name in ("prompt", "negative_prompt"):
            raise ValueError(f"{begun} {flag} {before!r}, not {given!r}: edit {folder.shots_file}, or give {RESTART}.")
        if name == "num_keyframes" and options.preview is not None:
            raise ValueError(f"{begun} {before} keyframes a shot, not {given}: give --preview {before}, or {RESTART}.")
        none = before in ("", None) or before is False
        had = f"no {flag}" if none else flag if before is True else f"{flag} {before}"
        given = {True: "with it", False: "without it"}[given] if isinstance(given, bool) else given
        raise ValueError(f"{begun} {had}, not {given}: leave {flag} out, or give {RESTART}.")


def _check_only(options: Options, listed: list) -> None:
    wrong = sorted(n for n in options.only_shots or () if n > len(listed))
    if wrong:
        raise ValueError(f"--only-shots names shot {wrong[0]}, but there are {len(listed)}.")


def _check_sizes(pictures: Iterable[tuple[int | None, Path]], size: tuple[int, int]) -> list[str]:
    """Return notes on pictures of another size; raise ValueError if a frame's picture has another aspect ratio."""
    notes = []
    for number, path in pictures:
        try:
            picture = read_image(path)
        except (ValueError, OSError) as error:
            raise ValueError(f"{str(error).rstrip('.')}: replace it, or take it away.") from None
        if picture.shape[:2] != size:
            if number is not None:
                from ..references import fit_exemplar  # with torch

                fit_exemplar(picture, size, f"{path}, for frame {number},")
            have, want = (f"{s[1]}x{s[0]}" for s in (picture.shape, size))
            notes.append(f"{path} is {have} and the film {want}: it is scaled.")
    return notes


def _check_room(folder: JobFolder, info, record: JobRecord) -> list[str]:
    """Return a note if the missing frames may not fit on the disk."""
    missing = record.num_frames - len(folder.done())
    wanted, free = missing * info.width * info.height * 3 * _PNG_SHARE, free_space(folder.path)
    if wanted <= free:
        return []
    return [f"{folder.path} may need {size_text(wanted)} and its disk has {size_text(free)}: choose another --job."]


def _read_references(references) -> str:
    """Return the pictures' digests as one text that identifies them; raise for wrong files and repeated frames."""
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
    """Return the list of shots given in the options, checked with its pictures; None without one."""
    if options.shots is None:
        return None
    listed = shots.read_csv(options.shots)
    shots.check(listed, count, options.shots.absolute().parent)
    return listed


def _found(source: Path, options: Options) -> list:
    return shots.find(source, options.cut_threshold or shots.THRESHOLD)


def _given_before(options: Options, folder: JobFolder) -> bool:
    """Return True if the job was started with this list; its copy in the folder may have been edited since."""
    if not (folder.given_file.exists() and options.shots.is_file()):
        return False
    return folder.given_file.read_text(encoding="utf-8") == _text(options.shots)


def _list_shots(listed: list, options: Options, folder: JobFolder) -> None:
    """Write the job's list of shots, and copy all its pictures into the folder."""
    if options.shots is not None:
        listed = _copy_exemplars(listed, options.shots.absolute().parent, folder)
    shots.write_csv(folder.shots_file, _with_references(listed, options.references, folder))
    if options.shots is not None:
        write_text(folder.given_file, _text(options.shots))


def _copy_exemplars(listed: list, place: Path, folder: JobFolder) -> list:
    """Copy the pictures of a list of shots from ``place`` into the job's folder; return the list with the copies."""
    if place.resolve() == folder.path.resolve():
        return listed
    copied = []
    for shot in listed:
        pictures = {n: _copy_exemplar(place / name, f"{n:06d}", folder) for n, name in shot.exemplars.items()}
        copied.append(replace(shot, exemplars=pictures))
    return copied


def _copy_exemplar(path: Path, name: str, folder: JobFolder) -> str:
    """Copy a picture to the job's exemplars; return the copy's path relative to the folder."""
    folder.exemplars.mkdir(exist_ok=True)
    for old in folder.exemplars.glob(f"{name}.*"):
        old.unlink()
    copy = folder.exemplars / f"{name}{path.suffix.lower()}"
    try:
        shutil.copyfile(path, copy)
    except OSError as error:
        raise write_error(error, copy) from None
    return copy.relative_to(folder.path).as_posix()


def _make_job(source, folder: JobFolder, options: Options, profile, weights, references, listed, count) -> JobRecord:
    """Make the folder and its record; if another process has made them, check and return that record."""
    found = None
    if options.restart:
        folder.check_idle()
        found = _found(source, options)  # may fail, so it comes before the folder is removed
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
            found = found or _found(source, options)  # also with a list: it finds a film that changes or breaks off
            listed = _with_defaults(listed or found, settings)
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


def _with_defaults(listed: list, settings: dict) -> list:
    """Give the job's prompts to shots without their own."""
    return [
        replace(
            shot,
            prompt=shot.prompt or settings["prompt"],
            negative_prompt=shot.negative_prompt or settings["negative_prompt"],
        )
        for shot in listed
    ]


def _with_references(listed: list, references, folder: JobFolder) -> list:
    """Copy the pictures given with --reference; return the list with those of frames as exemplars."""
    listed = list(listed)
    for number, path in references:
        name = _copy_exemplar(path, "outside" if number is None else f"{number:06d}", folder)
        for i, shot in enumerate(listed):
            if number is not None and shot.first <= number <= shot.last:
                listed[i] = replace(shot, exemplars={**shot.exemplars, number: name})
    return listed


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8-sig", errors="replace")


def _exemplars(listed: list, place: Path | None) -> list[tuple[int, Path]]:
    """Return the frame numbers and files of all exemplars of the list in the file ``place``."""
    return [(n, place.absolute().parent / name) for shot in listed for n, name in shot.exemplars.items()]


def _prompts(listed: list) -> list[str]:
    return [text for shot in listed for text in (shot.prompt, shot.negative_prompt)]
