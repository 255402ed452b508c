"""Shots of a film: find its cuts, and read and write the shot list, a CSV file that a person may edit.

Frames count from 0 and `last` is inclusive. Give shots of the same scene the same name in `scene`: they share their
exemplars, so the scene gets the same colours each time.
"""

import csv
import io
import re
import unicodedata
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice, pairwise
from pathlib import Path, PurePosixPath, PureWindowsPath

import cv2
import numpy as np
from tqdm.auto import tqdm

from .. import color
from ..utils import files
from ..video import film

COLUMNS = ("first", "last", "prompt", "negative_prompt", "keyframes", "exemplars", "scene")
THRESHOLD, SIMILARITY, FLASH = 15.0, 0.65, 4  # see `find`
LONGEST_TEXT = 2000  # characters of a prompt, scene or path; the text encoder reads at most 77 tokens
MOST_SHOTS = 100_000
MOST_KEYFRAMES = 1000
_LARGEST_FILE = 64 << 20  # bytes
_NUMBER = re.compile(r"[0-9]{1,9}")
_UNWRITABLE = {"Cc", "Cs", "Zl", "Zp"}  # control characters, surrogates, line and paragraph separators
_WIDTH = 64  # pixels of the frames that are compared
_BLANK = 1.0  # standard deviation in gray levels below which a frame shows nothing
_STILL = 0.5  # of the standard deviation: a smaller change is none, which matters in the dark of a fade


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


@dataclass(frozen=True)
class ShotPlan:
    """All inputs of a shot's colours.

    first, last: its frame numbers, both included. inputs: a digest of the plan. settings: options of
    ``settings.Settings``. exemplars: picture files of coloured frames of the shot. outside: files of other pictures.
    painted: numbers of keyframes painted by a person. deflicker, tinted: as in ``job.Options``.
    """

    first: int
    last: int
    inputs: str
    settings: dict
    seed: int = 0
    chunk: int = 64
    exemplars: dict[int, Path] = field(default_factory=dict)
    outside: tuple[Path, ...] = ()
    painted: frozenset[int] = frozenset()
    deflicker: bool = False
    tinted: bool = False

    @property
    def frames(self) -> range:
        """All frame numbers."""
        return range(self.first, self.last + 1)

    @property
    def segments(self) -> list[range]:
        """Frame numbers of each segment, at most ``chunk``."""
        return [range(i, min(i + self.chunk, self.last + 1)) for i in range(self.first, self.last + 1, self.chunk)]


def find(
    path, threshold: float = THRESHOLD, *, similarity: float = SIMILARITY, flash: int = FLASH, min_length: int = 1
) -> list[Shot]:
    """Find the shots of a film or image folder by its hard cuts, from brightness only, as colour must not matter.

    A frame begins a shot if it is unlike the frame before: its mean change of brightness is above `threshold` (of 255),
    and its best correlation with the frame before, moved a little, is below `similarity`. Correlation sees no change in
    strobes and fades. If a frame like the ones before comes back within `flash` frames, those between were a flash.
    Between two shots that fade out and in, the cut is in the middle of the blank frames. A dissolve seldom cuts: its
    frames belong to both shots. min_length: shorter shots, in frames, join the shot before. The shots cover the film
    without gaps.
    Raises ValueError for a bad threshold, similarity or length, else as `film.frames`.
    """
    if not 0 < threshold <= 255 or not 0 < similarity <= 1:
        raise ValueError(f"threshold must be above 0 to 255, similarity to 1, not {threshold!r} and {similarity!r}.")
    for name, value, lowest in (("flash", flash, 0), ("min_length", min_length, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
            raise ValueError(f"{name} must be a whole number of frames from {lowest} on, not {value!r}.")
    count = 0

    def numbered() -> Iterator[tuple[int, np.ndarray]]:
        nonlocal count
        for frame in film.frames(path):
            yield count, _small_gray(frame)
            count += 1

    total = film.probe(path).num_frames
    frames = tqdm(numbered(), total=total, desc="looking through the film", unit="frame", disable=None)
    cuts = list(_cuts(frames, threshold, similarity, flash))
    kept = [cut for cut, following in pairwise([*cuts, count]) if following - cut >= min_length]
    return [Shot(first, following - 1) for first, following in pairwise([0, *kept, count])]


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
        writer.writerow((shot.first, shot.last, shot.prompt, shot.negative_prompt, keyframes, exemplars, shot.scene))
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


def _cuts(frames: Iterable[tuple[int, np.ndarray]], threshold: float, similarity: float, flash: int) -> Iterator[int]:
    """Yield the numbers of the frames that begin a new shot, from numbered small frames ``(h, w)``."""
    frames = (item for item in frames if item[1].std() > _BLANK)
    alike = partial(_are_alike, threshold=threshold, similarity=similarity)
    shown = next(frames, None)
    coming, recent = deque(islice(frames, flash + 1)), deque(maxlen=flash + 1)
    while coming:
        recent.append(shown[1])
        number, frame = coming.popleft()
        coming.extend(islice(frames, 1))
        if not any(alike(old, frame) for old in reversed(recent)):
            back = next((i for i, (_, later) in enumerate(coming) if alike(shown[1], later)), flash)
            if back < flash:
                for _ in range(back + 1):  # the flash, and the first frame after it
                    recent.append(frame)
                    number, frame = coming.popleft()
                    coming.extend(islice(frames, 1))
            else:
                yield (shown[0] + 1 + number) // 2
                recent.clear()
        shown = number, frame


def _are_alike(first: np.ndarray, second: np.ndarray, threshold: float, similarity: float) -> bool:
    """Return True if two small frames ``(h, w)`` show the same, moved or in another light."""
    if np.abs(first - second).mean() <= min(threshold, _STILL * max(first.std(), second.std())):
        return True
    y, x = first.shape[0] // 6, first.shape[1] // 6
    middle = first[y : first.shape[0] - y, x : first.shape[1] - x]
    return bool(cv2.matchTemplate(second, middle, cv2.TM_CCOEFF_NORMED).max() >= similarity)


def _small_gray(frame: np.ndarray) -> np.ndarray:
    """Return a frame ``(H, W, 3)`` in gray, `_WIDTH` pixels wide, float32 ``(h, _WIDTH)``."""
    height, width = frame.shape[:2]
    size = (_WIDTH, max(1, round(height * _WIDTH / width)))
    return cv2.resize(color.to_gray(frame), size, interpolation=cv2.INTER_AREA).astype(np.float32)


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
