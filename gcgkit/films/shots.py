"""Shots of a film: find cuts with PySceneDetect, and read and write the shot list, a CSV file that a person may edit.

Frames count from 0 and `last` is inclusive. Give shots of the same scene the same name in `scene`: they share their
exemplars, so the scene gets the same colours each time.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

import cv2
import numpy as np
from tqdm.auto import tqdm

from .. import color
from ..utils import files
from ..video import film

COLUMNS = ("first", "last", "prompt", "negative_prompt", "keyframes", "exemplars", "scene")
DETECTORS = {"content": 27.0, "adaptive": 3.0}  # and their thresholds
LONGEST_TEXT = 2000  # characters of a prompt, scene or path; the text encoder reads at most 77 tokens
MOST_SHOTS = 100_000
MOST_KEYFRAMES = 1000
_LARGEST_FILE = 64 << 20  # bytes
_NUMBER = re.compile(r"[0-9]{1,9}")
_UNWRITABLE = {"Cc", "Cs", "Zl", "Zp"}  # control characters, surrogates, line and paragraph separators
_DETECTION_WIDTH = 256  # pixels; small frames show cuts as well as large ones


@dataclass
class Shot:
    """Frames first..last of a film that belong together, and the options for colouring them.

    keyframes: their number (None: the pipeline's own). exemplars: the path of a picture for a frame number, relative to
    the shot list's folder. scene: shots with the same name share their exemplars.
    """

    first: int
    last: int
    prompt: str = ""
    negative_prompt: str = ""
    keyframes: int | None = None
    exemplars: dict[int, str] = field(default_factory=dict)
    scene: str = ""

    def __len__(self) -> int:
        return self.last - self.first + 1


def find(path, threshold: float | None = None, *, detector: str = "content", min_length: int = 1) -> list[Shot]:
    """Find the shots of a film or image folder by its hard cuts, from brightness only, as colour must not matter.

    detector: "content" (mean change of brightness, 0..255, above `threshold`, 27) or "adaptive" (a change `threshold`,
    3, times that of the frames around; for moving cameras). min_length: shorter shots, in frames, join the shot before;
    1 keeps every cut, so that no colour leaks across one. The shots cover the film without gaps.
    Raises ValueError for a bad detector, threshold or length, ImportError without PySceneDetect, else as `film.frames`.
    """
    if detector not in DETECTORS:
        raise ValueError(f"detector must be one of {', '.join(DETECTORS)}, not {detector!r}.")
    threshold = DETECTORS[detector] if threshold is None else threshold
    if not 0 < threshold <= 255:
        raise ValueError(f"threshold must be above 0 and at most 255, not {threshold!r}.")
    if isinstance(min_length, bool) or not isinstance(min_length, int) or min_length < 1:
        raise ValueError(f"min_length must be a whole number of frames from 1 on, not {min_length!r}.")
    information = film.probe(path)
    frames = tqdm(film.frames(path), total=information.num_frames, desc="finding cuts", unit="frame", disable=None)
    cuts, count = _cuts(frames, information.rate, _detector(detector, threshold, min_length))
    bounds = [0, *cuts, count]
    return [Shot(first, following - 1) for first, following in zip(bounds, bounds[1:], strict=False)]


def read_csv(path) -> list[Shot]:
    """Read a shot list. Only the columns first and last are required; an empty field takes its default.

    Raises FileNotFoundError, or ValueError naming a line that cannot be parsed. `check` finds other mistakes.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; give the CSV file of a shot list.")
    if path.stat().st_size > _LARGEST_FILE:
        raise ValueError(f"{path} is larger than {files.size_text(_LARGEST_FILE)}, too large for a shot list.")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text; save the shot list as CSV in UTF-8.") from None
    rows = _rows(path, text)
    names = next(rows, (0, []))[1]
    names = [name.strip().lower() for name in names]
    unknown = [name for name in names if name not in COLUMNS]
    if unknown or len(set(names)) != len(names) or not {"first", "last"} <= set(names):
        raise ValueError(f"{path}, line 1 must name columns out of {', '.join(COLUMNS)}, with first and last.")
    shots = []
    for line, row in rows:
        if not any(cell.strip() for cell in row):
            continue
        if len(row) > len(names):
            raise ValueError(f"{path}, line {line} has {len(row)} fields, not {len(names)}; quote text with commas.")
        if len(shots) == MOST_SHOTS:
            raise ValueError(f"{path} has more than {MOST_SHOTS} shots; cut the film into parts.")
        shots.append(_parse(dict(zip(names, row, strict=False)), f"{path}, line {line}"))
    if not shots:
        raise ValueError(f"{path} holds no shots.")
    return shots


def write_csv(path, shots: Iterable[Shot]) -> None:
    """Write a shot list that `read_csv` reads back unchanged; the file gets its name when it is complete.

    Raises ValueError for a shot whose text does not fit into a line, and OSError for a file that cannot be written.
    """
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(COLUMNS)
    for index, shot in enumerate(shots):
        _check_texts(shot, f"shot {index}")
        keyframes = "" if shot.keyframes is None else shot.keyframes
        exemplars = "; ".join(f"{frame}={name}" for frame, name in sorted(shot.exemplars.items()))
        writer.writerow(
            (shot.first, shot.last, shot.prompt, shot.negative_prompt, keyframes, exemplars, shot.scene)
        )
    try:
        files.write_text(path, lines.getvalue())
    except OSError as error:
        raise files.write_error(error, path) from None


def check(shots: list[Shot], num_frames: int, folder=None) -> None:
    """Raise ValueError, naming the line of the list, unless the shots cover frames 0..num_frames-1 one after the other.

    Also check numbers, lengths of texts, and that each exemplar belongs to its shot and its path stays below `folder`.
    If `folder` is given, the pictures must exist and no link may lead out of it.
    """
    if not shots:
        raise ValueError("The shot list holds no shots.")
    if len(shots) > MOST_SHOTS:
        raise ValueError(f"The shot list has {len(shots)} shots; at most {MOST_SHOTS} are allowed.")
    expected = 0
    for index, shot in enumerate(shots):
        where = f"Line {index + 2} of the shot list"
        _check_numbers(shot, where)
        if shot.first != expected:
            kind = "leaves a gap" if shot.first > expected else "overlaps the shot before"
            raise ValueError(f"{where} {kind}: it must begin with frame {expected}, not {shot.first}.")
        if shot.last >= num_frames:
            raise ValueError(f"{where} ends with frame {shot.last}, but the film ends with frame {num_frames - 1}.")
        _check_texts(shot, where)
        for frame, name in shot.exemplars.items():
            if not shot.first <= frame <= shot.last:
                raise ValueError(f"{where} has an exemplar for frame {frame}, outside {shot.first}..{shot.last}.")
            _check_inside(name, folder, where)
        expected = shot.last + 1
    if expected != num_frames:
        raise ValueError(f"The shot list ends with frame {expected - 1}, the film with frame {num_frames - 1}.")


def _cuts(frames: Iterable[np.ndarray], rate, detector) -> tuple[list[int], int]:
    """Return the numbers of the frames that begin a new shot, and the number of all frames."""
    from scenedetect.common import FrameTimecode

    cuts, count = set(), 0
    for frame in frames:
        small = _small_gray(frame)
        cuts.update(cut.frame_num for cut in detector.process_frame(FrameTimecode(count, rate), small))
        count += 1
    if count:
        cuts.update(cut.frame_num for cut in detector.post_process(FrameTimecode(count - 1, rate)))
    return sorted(cut for cut in cuts if 0 < cut < count), count


def _small_gray(frame: np.ndarray) -> np.ndarray:
    """Return a frame ``(H, W, 3)`` in gray, with three equal channels, at most `_DETECTION_WIDTH` wide."""
    height, width = frame.shape[:2]
    if width > _DETECTION_WIDTH:
        size = (_DETECTION_WIDTH, max(1, round(height * _DETECTION_WIDTH / width)))
        frame = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    return np.repeat(color.to_gray(frame[None])[0, ..., None], 3, axis=-1)


def _detector(name: str, threshold: float, min_length: int):
    try:
        from scenedetect import AdaptiveDetector, ContentDetector
    except ImportError as error:
        raise ImportError("Finding cuts needs PySceneDetect: pip install scenedetect-headless.") from error
    if name == "adaptive":
        return AdaptiveDetector(threshold, min_scene_len=min_length, luma_only=True)
    length = 0 if min_length == 1 else min_length  # 0 switches the detector's flash filter off
    return ContentDetector(threshold, min_scene_len=length, luma_only=True)


def _rows(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield line numbers and fields; semicolons separate fields if the first line has them and no commas."""
    head = text.split("\n", 1)[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=";" if ";" in head and "," not in head else ",")
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num} is not CSV ({error}).") from None
        yield reader.line_num, row


def _parse(fields: dict[str, str], where: str) -> Shot:
    shot = Shot(
        _number(fields.get("first", ""), "first", where),
        _number(fields.get("last", ""), "last", where),
        fields.get("prompt", ""),
        fields.get("negative_prompt", ""),
        None if not fields.get("keyframes", "").strip() else _number(fields["keyframes"], "keyframes", where),
        _exemplars(fields.get("exemplars", ""), where),
        fields.get("scene", ""),
    )
    _check_numbers(shot, where)
    _check_texts(shot, where)
    return shot


def _number(text: str, column: str, where: str) -> int:
    if not _NUMBER.fullmatch(text.strip()):
        raise ValueError(f"{where} has {text[:40]!r} as {column}, which must be a whole number from 0 on.")
    return int(text)


def _exemplars(text: str, where: str) -> dict[int, str]:
    """Parse ``12=painted/a.png; 40=b.png`` into {12: …, 40: …}."""
    found = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        number, equals, name = part.partition("=")
        if not equals or not name.strip():
            raise ValueError(f"{where} has {part[:40]!r} as exemplar, which must be FRAME=PICTURE; more, after a ';'.")
        frame = _number(number, "an exemplar's frame", where)
        if frame in found:
            raise ValueError(f"{where} has two exemplars for frame {frame}.")
        found[frame] = name.strip()
    return found


def _check_numbers(shot: Shot, where: str) -> None:
    for name, value in (("first", shot.first), ("last", shot.last)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"{where} has {value!r} as {name}, which must be a whole number from 0 on.")
    if shot.last < shot.first:
        raise ValueError(f"{where} ends (frame {shot.last}) before it begins (frame {shot.first}).")
    keyframes = shot.keyframes
    if keyframes is not None and (
        isinstance(keyframes, bool) or not isinstance(keyframes, int) or not 1 <= keyframes <= MOST_KEYFRAMES
    ):
        raise ValueError(f"{where} has {keyframes!r} keyframes; give none, or 1 to {MOST_KEYFRAMES}.")


def _check_texts(shot: Shot, where: str) -> None:
    """Raise ValueError for a text that does not fit into one line of the list or within LONGEST_TEXT."""
    texts = {"prompt": shot.prompt, "negative_prompt": shot.negative_prompt, "scene": shot.scene}
    for name, text in (*texts.items(), *(("exemplar", path) for path in shot.exemplars.values())):
        if len(text) > LONGEST_TEXT:
            raise ValueError(f"{where} has a {name} of {len(text)} characters; at most {LONGEST_TEXT} are allowed.")
        if any(unicodedata.category(char) in _UNWRITABLE for char in text):
            raise ValueError(f"{where} has a {name} with a line break or another control character.")
    for frame, name in shot.exemplars.items():
        if ";" in name or name != name.strip() or not name or isinstance(frame, bool) or not 0 <= frame < 10**9:
            raise ValueError(f"{where} has a bad exemplar {frame}={name!r}: no ';' and no space around the name.")


def _check_inside(name: str, folder, where: str) -> None:
    """Raise ValueError unless the picture's path stays below the folder, on any system."""
    kinds = PurePosixPath(name), PureWindowsPath(name)
    if any(kind.anchor or ".." in kind.parts for kind in kinds):
        raise ValueError(f"{where} has the exemplar {name!r}, which leaves the shot list's folder; copy it there.")
    if folder is None:
        return
    root = Path(folder).resolve()
    picture = (root / name).resolve()
    if not picture.is_relative_to(root):
        raise ValueError(f"{where} has the exemplar {name!r}, a link that leaves {root}; copy the picture there.")
    if not picture.is_file():
        raise ValueError(f"{where} has the exemplar {name!r}, which is not there; paths start at {root}.")
