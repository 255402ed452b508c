"""The methods to measure: our pipeline with a configuration, classical baselines, other systems, or given frames.

A method turns the gray frames of a clip into a folder of PNG frames ``00000.png, 00001.png, ...`` of the input's size.
Where it takes an exemplar, that is the true first frame (section 4.4). `parse` reads the short form of the command
line: ``gray``, ``Ours=gcg:mini,use_srg=false``, ``DExemplar=folder:/path/to/frames``, ``system:vcgan``.
"""

import dataclasses
import json
import os
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .. import baselines, profiles
from ..color import to_gray
from ..data.captions import read_prompts
from ..profiles import weights_digest
from ..utils.commands import best_device, read_options
from ..video.images import RANDOM_WEIGHTS, check_names, write_frames
from .clips import Frames
from .systems import setup as systems

# The rows of Table 1 that are ours: name, profile, and what the name says.
TABLE1_OURS = (
    ("Ours", "mini", {}),
    ("Ours*", "mini-concat", {}),
    ("Ours**", "mini-attention", {}),
    ("Ours***", "mini", {"use_srg": False}),
)
# The paper's settings. These rows share them, so that they differ only in what their names say.
TABLE1_SETTINGS = {
    "num_inference_steps": 32, "tau": 4.0, "strength": 1.0, "hint_weight": 0.0, "guess_strength": 1.0,
    "noise_scale": 1.0, "keyframe_weight": 1.0, "working_size": [256, 448],
}  # fmt: skip
OWN_SETTINGS = "Ours, the profile's own settings"
# Options that say nothing of how a clip is coloured, or stand elsewhere in a record.
_UNRECORDED = {"prompt", "callback_on_step_end", "network", "shortcuts"}


@dataclass(frozen=True)
class Request:
    """One clip to colour: its name, its true frames (a method sees only the gray and the first), and the device."""

    clip: str
    truth: Frames
    device: str | None = None

    def gray(self) -> np.ndarray:
        """Return the gray frames ``(T, H, W)``."""
        return np.stack([to_gray(frame) for frame in self.truth])

    def first(self) -> np.ndarray:
        """Return the exemplar: the true first frame, RGB ``(H, W, 3)``."""
        return next(iter(self.truth))


@dataclass
class Method(ABC):
    """A row of the table, as `run.evaluate` uses it; each kind below fills in its own."""

    name: str

    @abstractmethod
    def identity(self) -> dict:
        """Return everything that determines the result, to tell old results from new ones."""

    def missing(self) -> str | None:
        """Return the reason why the method cannot run here, or None."""
        return None

    @abstractmethod
    def run(self, request: Request, folder: Path) -> Path:
        """Colour a clip into a folder that does not exist yet, and return the folder of the frames."""

    def facts(self) -> dict:
        """Return facts to record with the frames that were just made."""
        return {}

    def close(self) -> None:  # noqa: B027  most methods have nothing to free
        """Free the loaded model."""


@dataclass
class Baseline(Method):
    """A classical method (`baselines`), or "gray", which returns the input."""

    kind: str

    def identity(self) -> dict:
        return {"kind": "baseline", "function": self.kind}

    def run(self, request: Request, folder: Path) -> Path:
        return write_frames(_BASELINES[self.kind](request), folder)


@dataclass
class Pipeline(Method):
    """`GCGPipeline` with a profile and options; reference "first" gives it the true first frame, "none" nothing.

    options: those of the pipeline, and chunk, the number of frames in memory (None for all). prompts: a prompt for each
    clip, by its name; prompts_source: who wrote them. The digest of the files identifies the weights, or the name of a
    hub id.
    """

    profile: str = "mini"
    options: dict = field(default_factory=dict)
    reference: str = "first"
    prompts: dict[str, str] = field(default_factory=dict)
    seed: int = 0
    prompts_source: str = ""
    _pipe: object = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.reference not in ("first", "none"):
            raise ValueError(f"reference must be 'first' or 'none', not {self.reference!r}.")

    def identity(self) -> dict:
        own = {name: getattr(self, name) for name in ("options", "reference", "prompts", "seed")}
        if self.prompts:
            own["prompts_source"] = self.prompts_source
        return {"kind": "gcg", "profile": Path(self.profile).name, "weights": weights_digest(self.profile), **own}

    def missing(self) -> str | None:
        try:
            profiles.resolve(self.profile)
        except FileNotFoundError as error:
            return str(error)
        return None

    def run(self, request: Request, folder: Path) -> Path:
        import torch

        if self._pipe is None:
            self._pipe = load_pipeline(self.profile, request.device)
        gray = request.gray()
        options = {"prompt": self.prompts.get(request.clip, ""), **self.options}
        chunk = options.pop("chunk", None) or len(gray)
        options["generator"] = torch.Generator().manual_seed(self.seed)  # on the CPU: the same noise on every device
        options["reference"] = {0: request.first()} if self.reference == "first" else None
        return write_frames(self._pipe.stream(gray, chunk, **options), folder)

    def facts(self) -> dict:
        """Return the number of the UNet's parameters, which marks a small model, and all settings of the run."""
        if self._pipe is None:
            return {}
        from ..settings import Settings

        options = {name: value for name, value in self.options.items() if name != "chunk"}
        settings = dataclasses.asdict(Settings.of(**options).completed(self._pipe))
        settings = {name: value for name, value in settings.items() if name not in _UNRECORDED}
        parameters = sum(p.numel() for p in self._pipe.unet.parameters())
        return {"unet_parameters": parameters, "settings": settings}

    def close(self) -> None:
        self._pipe = None


@dataclass
class Folder(Method):
    """Frames that were made elsewhere: ``<clip>/00000.png``, measured in place, where nothing is written."""

    path: Path

    def identity(self) -> dict:
        return {"kind": "folder"}  # the frames themselves are compared at measuring

    def missing(self) -> str | None:
        if not Path(self.path).is_dir():
            return f"{self.path} is no folder: give one that holds <clip>/00000.png for every clip."
        return _worthless(self.path) if (Path(self.path) / RANDOM_WEIGHTS).is_file() else None

    def run(self, request: Request, folder: Path) -> Path:
        place = Path(self.path) / request.clip
        if not place.is_dir():
            raise FileNotFoundError(f"{self.name}: {place} does not exist; put the frames of {request.clip} there.")
        if (place / RANDOM_WEIGHTS).is_file():
            raise ValueError(_worthless(place))
        check_names(place)
        return place


@dataclass
class System(Method):
    """One of the compared systems (`systems`), run by its authors' code in its own environment."""

    system: str
    root: Path

    def identity(self) -> dict:
        return {"kind": "system", **systems.identity(self.system, self.root)}

    def missing(self) -> str | None:
        return systems.obstacle(self.system, self.root)

    def run(self, request: Request, folder: Path) -> Path:
        aside = folder.with_name(f".{folder.name}.gray-{os.getpid()}")
        try:
            gray = (np.repeat(to_gray(frame)[..., None], 3, axis=-1) for frame in request.truth)
            write_frames(gray, aside)
            return systems.run(self.system, aside, request.first(), folder, root=self.root, device=request.device)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def parse(text: str, *, seed: int = 0, systems_root: str | Path = "systems") -> Method:
    """Parse a method: ``[NAME=]KIND[:ARGUMENT][,option=value...]``; kinds: gray, flow, transfer, gcg, folder, system.

    Values are read as JSON if possible (``false``, ``32``), else as text. Options of gcg are the pipeline's,
    ``reference=none``, and ``prompts=FILE``, as `data.captions.read_prompts` takes it. Raises ValueError with the form.
    """
    found = re.fullmatch(r"(?:([^=:,]+)=)?(\w+)(?::([^,]*))?((?:,\w+=[^,]*)*)", text)
    kinds = (*_BASELINES, "gcg", "folder", "system")
    if found is None or found[2] not in kinds:
        form = f"[NAME=]KIND[:ARGUMENT][,option=value...] with KIND one of {', '.join(kinds)}"
        raise ValueError(f"'{text}' is no method: write {form}.")
    name, kind, argument = found[1], found[2], found[3]
    options = read_options(found[4].split(",")[1:])
    if kind == "gcg":
        reference = options.pop("reference", "first")
        refuse_prompt(options)
        file, profile = options.pop("prompts", None), argument or "mini"
        prompts, source = ({}, "") if file is None else read_prompts(file)
        return Pipeline(name or Path(profile).name, profile, options, reference, prompts, seed, source)
    if options or (kind in _BASELINES) == bool(argument):
        wanted = "no argument" if kind in _BASELINES else "one argument"
        raise ValueError(f"'{text}' is no method: {kind} takes {wanted} and no options.")
    if kind == "folder":
        return Folder(name or Path(argument).name, Path(argument))
    if kind == "system":
        return System(name or systems.get(argument).label, argument, Path(systems_root))
    return Baseline(name or kind, kind)


def refuse_prompt(options: dict) -> None:
    """Raise ValueError for a prompt among the pipeline's options: one for all clips would stand in no record."""
    if "prompt" in options:
        raise ValueError(
            "prompt= would be one for all clips: write a prompt for each clip into a file and give --prompts FILE, or "
            "prompts=FILE for one method."
        )


def load_pipeline(profile: str, device: str | None = None):
    """Load a profile's pipeline without progress bars, on the best device by default. Errors as its own."""
    from ..pipeline import GCGPipeline

    pipe = GCGPipeline.from_pretrained(profile).to(best_device(device))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def table1_methods(*, weights: Sequence[str] | None = None, seed: int = 0, **options) -> list[Method]:
    """Return the rows of Table 1: gray, global transfer, flow propagation, ours with its three ablations.

    weights: profiles or folders of Ours, Ours* and Ours**, the bundled ones by default. options: of the pipeline, for
    all of ours, beside `TABLE1_SETTINGS`. Where the weights of Ours have other settings of their own, one row more has
    those. Raises FileNotFoundError for weights that are not there, ValueError for another number of them.
    """
    weights = tuple(weights or (profile for _, profile, _ in TABLE1_OURS[:3]))
    if len(weights) != 3:
        raise ValueError(f"weights must be those of Ours, Ours* and Ours**, not {len(weights)} of them.")
    rows = [
        Pipeline(name, profile, {**TABLE1_SETTINGS, **options, **own}, seed=seed)
        for (name, _, own), profile in zip(TABLE1_OURS, (*weights, weights[0]), strict=True)
    ]
    if any(_config(weights[0]).get(name, value) != value for name, value in TABLE1_SETTINGS.items()):
        rows.append(Pipeline(OWN_SETTINGS, weights[0], dict(options), seed=seed))
    return [*(Baseline(kind, kind) for kind in _BASELINES), *rows]


def _config(profile: str) -> dict:
    """Return the configuration of a profile's pipeline; nothing for a hub id."""
    places = profiles.folders(profile)
    return json.loads((places[0] / "model_index.json").read_text(encoding="utf-8")) if places else {}


def _worthless(folder: Path) -> str:
    return f"{folder} was made with random weights, which show that a system runs and nothing else."


_BASELINES: dict[str, Callable[[Request], np.ndarray]] = {
    "gray": lambda request: np.repeat(request.gray()[..., None], 3, axis=-1),
    "transfer": lambda request: baselines.global_transfer(request.gray(), request.first()),
    "flow": lambda request: baselines.propagate_by_flow(request.gray(), request.first()),
}
