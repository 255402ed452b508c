"""Captions of frames, by BLIP as in the paper (§4.1) or from a frame's own colours, and caption files.

The mini profile's captions name the thing in the file's name and the colours that cover most of the picture, in the
middle and around it. Such captions teach colour words and little else; the model card says so.

A caption file (``captions.jsonl``) has one JSON object per line, ``{"clip": ..., "frame": ..., "caption": ...}``, with
"source", who wrote it from which frames. You may edit it: existing captions are never computed again. At test time a
clip's first caption is its prompt (§4.4); the captioner then sees gray frames, as true colours would give the answer
away. torch and transformers load when BLIP is first called.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from ..color import to_gray
from ..utils import hub
from ..utils.commands import best_device
from . import prepare
from .color_words import remove_color_words
from .footage import read_image
from .naming import caption, thing_of

BLIP = "Salesforce/blip-image-captioning-base"


# --- caption files ----------------------------------------------------------------------------------------------------


def sampled_frames(count: int, every: int = 30) -> list[int]:
    """Return the indices of the frames that get a caption: the first, and every ``every``-th after it."""
    if every < 1:
        raise ValueError(f"every must be at least 1, not {every}.")
    return list(range(0, count, every))


def read_captions(path: str | Path) -> dict[str, dict[int, str]]:
    """Read a file's captions by clip and frame; the later of two lines for one frame counts. No file, no captions.

    A last line that a killed run cut off is ignored. Raises ValueError, naming the line, for any other malformed line.
    """
    captions: dict[str, dict[int, str]] = {}
    for entry in _entries(Path(path)):
        captions.setdefault(entry["clip"], {})[entry["frame"]] = entry["caption"]
    return captions


def read_prompts(path: str | Path) -> tuple[dict[str, str], str]:
    """Read a prompt for each clip, its first caption, and return them with their source (§4.4).

    path: a caption file, a prepared folder with one, or a file with one JSON object ``{"clip": "prompt"}``.
    Raises FileNotFoundError, or ValueError for a file that holds no prompts or a malformed line.
    """
    path = Path(path)
    path = path / prepare.CAPTIONS if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: write it with python data_scripts/caption.py.")
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # more than one line
        written = None
    if isinstance(written, dict) and written and all(isinstance(text, str) for text in written.values()):
        return written, f"the file {path.name}"
    first: dict[str, dict] = {}
    for entry in _entries(path):
        clip = entry["clip"]
        if clip not in first or entry["frame"] <= first[clip]["frame"]:
            first[clip] = entry
    if not first:
        wanted = 'lines {"clip": "...", "frame": 0, "caption": "..."}, or one object {"clip": "prompt"}'
        raise ValueError(f"{path} holds no prompts: write {wanted}.")
    sources = sorted({entry.get("source") or f"{path.name}, which names no source" for entry in first.values()})
    return {clip: entry["caption"] for clip, entry in sorted(first.items())}, "; ".join(sources)


def _entries(path: Path) -> Iterator[dict]:
    """Yield the entries of a caption file, as `read_captions` describes."""
    lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            clip, frame, text = entry["clip"], entry["frame"], entry["caption"]
            if not (isinstance(clip, str) and isinstance(text, str) and isinstance(frame, int) and frame >= 0):
                raise ValueError
        except (ValueError, KeyError, TypeError):
            if number == len(lines):
                break
            wanted = '{"clip": "...", "frame": 0, "caption": "..."}'
            raise ValueError(f"{path}, line {number}, is not of the form {wanted}: correct or delete it.") from None
        yield entry


def nearest_caption(captions: dict[str, dict[int, str]], clip: str, frame: int) -> str:
    """Return the caption of the captioned frame nearest in time, the earlier in a tie; "" for a clip without any."""
    known = captions.get(clip)
    return known[min(known, key=lambda index: (abs(index - frame), index))] if known else ""


def caption_folder(
    folder: str | Path,
    captioner: Callable[[Sequence[np.ndarray], Sequence[str]], list[str]],
    *,
    every: int = 30,
    batch: int = 16,
    gray: bool = False,
    strip_colors: bool = False,
    path: str | Path | None = None,
) -> Path:
    """Caption the sampled frames of a prepared folder; return the caption file, by default its ``captions.jsonl``.

    captioner: takes RGB frames ``(H, W, 3)`` uint8 and their clips' names, and returns as many texts. It is called only
    for frames without a caption, ``batch`` at a time; each batch is written before the next starts. gray: give it gray
    frames, as at test time. strip_colors: remove colour words from its texts. Each line has its "source": the
    captioner's ``source``, the frames' colours. Raises ValueError for a folder or file that cannot be read (see
    `prepare`), and for `ColorCaptions` with gray frames.
    """
    if gray and isinstance(captioner, ColorCaptions):
        raise ValueError("gray frames show no colours that ColorCaptions could name: use BLIP, or the true colours.")
    folder = Path(folder)
    path = Path(path) if path else folder / prepare.CAPTIONS
    missing = missing_captions(folder, every=every, path=path)
    source = f"{getattr(captioner, 'source', 'a captioner')}, {'gray frames' if gray else 'true colours'}"
    source += ", colour words removed" if strip_colors else ""
    _end_line(path)
    with path.open("a", encoding="utf-8") as file, tqdm(total=len(missing), desc=path.name, disable=None) as bar:
        for start in range(0, len(missing), batch):
            part = missing[start : start + batch]
            frames = [read_image(image) for _, _, image in part]
            if gray:
                frames = [np.repeat(to_gray(frame)[..., None], 3, axis=-1) for frame in frames]
            for (clip, frame, _), text in zip(part, captioner(frames, [clip for clip, _, _ in part]), strict=True):
                text = remove_color_words(text) if strip_colors else text
                entry = {"clip": clip, "frame": frame, "caption": text, "source": source}
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")
            file.flush()
            bar.update(len(part))
    return path


def missing_captions(
    folder: str | Path, *, every: int = 30, path: str | Path | None = None
) -> list[tuple[str, int, Path]]:
    """Return the sampled frames of a prepared folder that have no caption yet: clip, index, image."""
    manifest = prepare.read_manifest(folder)
    known = read_captions(path or Path(folder) / prepare.CAPTIONS)
    missing = []
    for clip in manifest["clips"]:
        images = prepare.frame_paths(folder, clip, manifest["format"])
        done = known.get(clip["clip"], {})
        missing += [(clip["clip"], i, images[i]) for i in sampled_frames(len(images), every) if i not in done]
    return missing


def _end_line(path: Path) -> None:
    """Remove the part of a line that a killed run left, so that the next line starts correctly."""
    data = path.read_bytes() if path.is_file() else b""
    if data and not data.endswith(b"\n"):
        whole, last = data[: data.rfind(b"\n") + 1], data[data.rfind(b"\n") + 1 :]
        try:
            json.loads(last)
            path.write_bytes(data + b"\n")  # a complete line: an editor left out the last line break
        except ValueError:
            path.write_bytes(whole)


# --- captioners -------------------------------------------------------------------------------------------------------


class ColorCaptions:
    """Captioner with `caption`: the thing from the clip's name, colours from the frame. It needs no weights."""

    source = "the clip's name and the frame's main colours"

    def __init__(self, seed: int = 0):
        self.rng = np.random.default_rng(seed)

    def __call__(self, frames: Sequence[np.ndarray], clips: Sequence[str]) -> list[str]:
        return [caption(frame, thing_of(clip), self.rng) for frame, clip in zip(frames, clips, strict=True)]


class Blip:
    """Captioner with BLIP from transformers (§4.1), greedy, at most ``length`` tokens.

    model: hub id or folder. device: by default CUDA if there is one. Weights are float16 on CUDA and float32 elsewhere,
    and load at the first call. Raises FileNotFoundError, with the command that fetches them, if they are missing.
    """

    def __init__(self, model: str | Path = BLIP, revision: str | None = None, device=None, length: int = 30):
        self.name, self.revision, self.device, self.length = str(model), revision, device, length
        self.source = f"BLIP ({Path(self.name).name})"
        self.model = self.processor = None

    def __call__(self, frames: Sequence[np.ndarray], clips: Sequence[str] = ()) -> list[str]:
        if self.model is None:
            hub.require(self.name, "run python data_scripts/weights.py blip where there is a network")
            self._load()
        import torch

        with torch.inference_mode():
            pixels = self.processor(images=list(frames), return_tensors="pt").pixel_values  # (B, 3, 384, 384)
            tokens = self.model.generate(
                pixel_values=pixels.to(self.model.device, self.model.dtype),
                max_new_tokens=self.length,
                num_beams=1,
                do_sample=False,
            )
        return [" ".join(text.split()) for text in self.processor.batch_decode(tokens, skip_special_tokens=True)]

    def _load(self) -> None:
        import torch
        from transformers import BlipForConditionalGeneration, BlipProcessor

        device = torch.device(best_device(self.device))
        dtype = torch.float16 if device.type == "cuda" else torch.float32
        try:
            self.processor = BlipProcessor.from_pretrained(self.name, revision=self.revision)
            model = BlipForConditionalGeneration.from_pretrained(self.name, revision=self.revision)
        except OSError:
            raise FileNotFoundError(
                f"BLIP cannot be loaded from '{self.name}': run python data_scripts/weights.py blip, or give a folder."
            ) from None
        self.model = model.to(device, dtype).eval()
