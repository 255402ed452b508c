"""Checks of shapes, types and numbers, above all for functions that take frames.

A clip is a NumPy uint8 array: RGB ``(T, H, W, 3)`` or gray ``(T, H, W)``. Every public function turns a wrong array
into one ``ValueError`` that names the argument. The messages are written here, once.
"""

import difflib
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import zip_longest

import numpy as np


def check_frames(frames, name: str = "frames", *, color: bool | None = None) -> np.ndarray:
    """Return `frames` as a checked array of at least one frame.

    color: True for RGB ``(T, H, W, 3)``, False for gray ``(T, H, W)``, None for either; uint8, 0..255.
    A sequence of equally large frames is stacked. Raises ValueError for any other type, shape or size.
    """
    array = _as_array(frames, name)
    if array.shape == (0,):
        raise ValueError(f"{name} holds no frames.")
    is_color = array.ndim == 4
    if array.ndim not in (3, 4) or (is_color and array.shape[-1] != 3) or (array.ndim == 3 and color is True):
        raise ValueError(f"{name} must have shape {_wanted(color)}, not {array.shape}.{_hint(array, color)}")
    if is_color and color is False:
        raise ValueError(f"{name} must be gray, shape (T, H, W), not {array.shape}; color.to_gray makes it so.")
    if array.ndim == 3 and array.shape[-1] == 3:
        raise ValueError(f"{name} of shape {array.shape} looks like one RGB frame; pass a clip of one, {name}[None].")
    return _check_content(array, name)


def check_frame(frame, name: str = "frame", *, color: bool | None = None) -> np.ndarray:
    """Return one checked uint8 frame: RGB ``(H, W, 3)`` (color=True), gray ``(H, W)`` (False) or either (None).

    Raises ValueError for any other type, shape or size.
    """
    array = _as_array(frame, name)
    is_color = array.ndim == 3 and array.shape[-1] == 3
    is_gray = array.ndim == 2
    if not ((is_color and color is not False) or (is_gray and color is not True)):
        shapes = {True: "(H, W, 3)", False: "(H, W)", None: "(H, W) or (H, W, 3)"}
        raise ValueError(f"{name} must be one frame of shape {shapes[color]}, not {array.shape}.")
    return _check_content(array[None], name)[0]


def frame_pairs(
    first: Iterable, second: Iterable, names: tuple[str, str], *, gray: bool = False
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield checked pairs of RGB frames ``(H, W, 3)`` of two clips, arrays or streams of one length and size.

    gray: the second clip is gray, ``(H, W)``. Raises ValueError if lengths or sizes differ, or if there are no frames.
    """
    count = 0
    for a, b in zip_longest(each_frame(first, names[0]), each_frame(second, names[1], color=not gray)):
        if a is None or b is None:
            longer, shorter = (names[1], names[0]) if a is None else names
            raise ValueError(f"{longer} has more frames than {shorter} ({count}); both must have the same number.")
        if a.shape[:2] != b.shape[:2]:
            sizes = f"{a.shape[:2]} and {b.shape[:2]}"
            raise ValueError(f"{names[0]} and {names[1]} differ in size at frame {count}: {sizes}.")
        count += 1
        yield a, b


def each_frame(frames: Iterable, name: str = "frames", *, color: bool | None = True) -> Iterator[np.ndarray]:
    """Yield the frames of an array or of any iterable of frames, each checked: color as in `check_frame`.

    Raises ValueError for no iterable, for a frame of another type or shape, for frames of several sizes, and for none.
    """
    if isinstance(frames, np.ndarray):
        frames = check_frames(frames, name, color=color)
    elif not isinstance(frames, Iterable):
        kind = type(frames).__name__
        raise ValueError(f"{name} must be an array {_wanted(color)} or an iterable of frames, not {kind}.")
    size = None
    for index, frame in enumerate(frames):
        frame = check_frame(frame, f"{name}[{index}]", color=color)
        size = size or frame.shape[:2]
        if frame.shape[:2] != size:
            raise ValueError(f"{name}[{index}] has size {frame.shape[:2]}, those before it {size}; use one size.")
        yield frame
    if size is None:
        raise ValueError(f"{name} holds no frames.")


def check_choice(name: str, value, allowed: Iterable) -> None:
    """Raise ValueError unless a value is one of those allowed; None may be one of them."""
    if value not in allowed:
        choices = ("None or " if None in allowed else "") + f"one of {', '.join(filter(None, allowed))}"
        raise ValueError(f"{name} must be {choices}, not {value!r}.")


def check_options(given: Iterable[str], known: list[str]) -> None:
    """Raise TypeError, with the nearest known name, for the name of an option that does not exist."""
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            help_ = f"did you mean {near[0]!r}?" if near else f"the options are {', '.join(known)}."
            raise TypeError(f"there is no option {name!r}: {help_}")


def check_number(name: str, value, domain: str, holds: Callable[[float], bool]) -> None:
    """Raise ValueError unless a value is a finite number for which ``holds``; ``domain`` says in words which do."""
    is_number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if not is_number or not abs(value) <= sys.float_info.max or not holds(value):  # NaN is not, either
        raise ValueError(f"{name} must be a number {domain}, not {value!r}.")


def is_whole(value) -> bool:
    """Return True for an int, Python's or NumPy's, that is no bool."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def to_numpy(values) -> np.ndarray:
    """float64 array of a torch tensor on any device, or of anything NumPy takes."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)


def _as_array(frames, name: str) -> np.ndarray:
    """Return `frames` as a NumPy array; raise ValueError for ragged sequences and for anything else."""
    if not isinstance(frames, (np.ndarray, list, tuple)):
        raise ValueError(f"{name} must be a NumPy array of uint8, not {type(frames).__name__}.")
    try:
        return np.asarray(frames)
    except ValueError:
        raise ValueError(f"{name} holds frames of different sizes; all must have the same height and width.") from None


def _check_content(array: np.ndarray, name: str) -> np.ndarray:
    """Check the number of frames, the size and the type."""
    if array.shape[0] == 0:
        raise ValueError(f"{name} holds no frames.")
    if 0 in array.shape:
        raise ValueError(f"{name} has an empty side: shape {array.shape}.")
    if array.dtype != np.uint8:
        advice = "; scale it to 0..255 and round first" if np.issubdtype(array.dtype, np.floating) else ""
        raise ValueError(f"{name} must be uint8 with values 0..255, not {array.dtype}{advice}.")
    return array


def _wanted(color: bool | None) -> str:
    return {True: "(T, H, W, 3)", False: "(T, H, W)", None: "(T, H, W) or (T, H, W, 3)"}[color]


def _hint(array: np.ndarray, color: bool | None) -> str:
    """Return a second sentence for the commonest mistakes, or an empty text."""
    if array.ndim == 4 and array.shape[-1] == 4:
        return " Drop the alpha channel."
    if array.ndim == 4 and array.shape[1] == 3:
        return " The colour channel comes last."
    if array.ndim == 3 and array.shape[-1] == 3 and color is True:
        return " A single frame needs a leading axis: frame[None]."
    return ""
