"""Configurations of a training run: small typed values with a name, in code or in a TOML or JSON file (§4.1).

    config = load("paper")                                     # or load("my.toml")
    config = replace(config, {"model.mode": "attention"})
    save(config, "attention.toml")

Nothing has a hidden default: a file has every value, or ``extends = "paper"`` and the differences. Each field's
annotation explains it, and ``save`` writes that beside the value. The named ones, and ``load``, are in ``recipes``.
"""

from __future__ import annotations

import difflib
import json
import re
import reprlib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from ..data.config import FORM, BelowOne, Count, CountOrZero, Counts, DataConfig, Names, Positive, Weight
from ..utils import files

# Of ModelConfig's fields, those that make a guidance; GatedColorGuidance has them by the same names.
GUIDANCE_OPTIONS = ("mode", "stem", "hidden_dim", "heads", "gate_bias", "null_token", "dilations")


@dataclass(frozen=True, config=FORM)
class ModelConfig:
    """The networks to train and their starting weights."""

    base: Annotated[str, "pipeline of this kit (bundled name, folder, hub id), or Stable Diffusion (folder, hub id)"]
    revision: Annotated[str, "of a hub id; empty for the newest"]
    image_encoder: Annotated[str, "CLIP image encoder, folder or hub id; empty where the base brings one"]
    image_encoder_revision: Annotated[str, "of a hub id; empty for the newest"]
    control: Annotated[Literal["new", "keep"], "a new UNet copy, or go on with the base's own"]
    mode: Annotated[Literal["gated", "attention", "concat"], "Table 1: ours, Ours**, Ours*"]
    stem: Annotated[Literal["conv", "none"], "of the guidance; none is Eq. 1 and 3 word for word"]
    hidden_dim: Annotated[Count, "width of the guidance's queries and keys"]
    dilations: Annotated[Counts, "of the stem's convolutions after its first"]
    heads: Annotated[Count, "of the guidance's attention"]
    gate_bias: Annotated[bool, "bias in the gate's value map, so that it starts almost closed"]
    null_token: Annotated[bool, "a learned token outside the reference for the gate"]
    condition_width: Annotated[Count, "hidden width of the convolution that takes concat(ColorHint, g) in"]
    image_condition: Annotated[Literal["patch", "pooled", "none"], "what the copy's cross-attention reads"]
    mask_latents: Annotated[Literal["zeros", "black"], "under the reference mask; black is an encoded black picture"]
    grid_tiles: Annotated[Literal["full", "shrunk"], "of the reference grid; shrunk to the size of one frame together"]
    joint: Annotated[bool, "train the UNet too (the paper keeps it frozen)"]


@dataclass(frozen=True, config=FORM)
class OptimizerConfig:
    """The optimizer and its learning rate."""

    name: Annotated[Literal["adam", "adamw", "adam8bit"], "adam8bit needs bitsandbytes"]
    learning_rate: Annotated[Positive, "peak"]
    beta1: Annotated[BelowOne, "of Adam"]
    beta2: Annotated[BelowOne, "of Adam"]
    epsilon: Annotated[Positive, "of Adam"]
    weight_decay: Annotated[Weight, "of adamw; 0 with the others"]
    schedule: Annotated[Literal["constant", "cosine"], "of the learning rate, after the warm-up"]
    warmup: Annotated[CountOrZero, "steps of linear warm-up"]
    max_grad_norm: Annotated[Weight, "gradients are scaled down to this norm; 0 for never"]
    ema_decay: Annotated[BelowOne, "of the averaged weights, which are what is exported; 0 for none"]


@dataclass(frozen=True, config=FORM)
class LossConfig:
    """Eq. 11, with the scheduler's prediction type as its target, and optional additions."""

    hint_weight: Annotated[Weight, "of the ColorHint's squared error; 0 in the paper"]
    snr_gamma: Annotated[Weight, "min-SNR weighting (Hang et al. 2023), 5 as a rule; 0 for none, as in the paper"]


@dataclass(frozen=True, config=FORM)
class RunConfig:
    """Length of the run, batches, precision and saving."""

    seed: Annotated[CountOrZero, "of data, noise and fresh weights"]
    epochs: Annotated[Positive, "passes through the data"]
    max_steps: Annotated[CountOrZero, "steps after which to stop even so; 0 for no such bound"]
    batch_size: Annotated[Count, "samples per step, over all processes and passes"]
    micro_batch: Annotated[Count, "samples per process and pass; the rest is gathered over passes"]
    precision: Annotated[Literal["auto", "no", "bf16", "fp16"], "mixed precision; auto is the best safe one"]
    frozen_dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], "of what is not trained; auto follows the precision"
    ]
    gradient_checkpointing: Annotated[bool, "less memory for about a third more time"]
    compile: Annotated[bool, "compile the networks at the first steps: minutes once, faster steps from then on"]
    workers: Annotated[CountOrZero, "processes that read data; 0 reads in the training process"]
    log_every: Annotated[Count, "steps between log lines"]
    save_every: Annotated[Count, "steps between checkpoints"]
    keep: Annotated[Count, "checkpoints kept, the newest"]
    export_dtype: Annotated[Literal["float32", "float16", "bfloat16"], "of the pipeline that comes out"]


@dataclass(frozen=True, config=FORM)
class ValidationConfig:
    """Clips to colour during training, never trained on."""

    set: Annotated[str, "prepared set; empty for no validation"]
    clips: Annotated[Names, "of that set; left out of training, so that the paper's 90 DAVIS clips are 88"]
    frames: Annotated[Count, "from each clip's start"]
    every: Annotated[Count, "training steps between validations; one more comes at the end"]
    steps: Annotated[Count, "denoising steps"]


@dataclass(frozen=True, config=FORM)
class TrainConfig:
    """A whole configuration; see ``load``, ``save`` and ``replace``."""

    name: Annotated[str, Field(min_length=1)]
    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig
    loss: LossConfig
    run: RunConfig
    validation: ValidationConfig

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        optimizer, run, validation = self.optimizer, self.run, self.validation
        if optimizer.weight_decay > 0 and optimizer.name != "adamw":
            raise ValueError('optimizer.weight_decay goes with optimizer.name = "adamw" only.')
        if run.batch_size % run.micro_batch:
            raise ValueError(
                f"run.batch_size={run.batch_size} must be a multiple of run.micro_batch={run.micro_batch}."
            )
        if self.model.joint and run.frozen_dtype not in ("auto", "float32") and run.precision == "no":
            raise ValueError(
                "model.joint trains the UNet in float32, which run.frozen_dtype does not fit without mixed precision."
            )
        if bool(validation.set) != bool(validation.clips):
            raise ValueError("validation.set and validation.clips go together: give both, or neither.")
        return self


_TYPES = {section: kind for section, kind in typing.get_type_hints(TrainConfig).items() if section != "name"}
SECTIONS = tuple(_TYPES)
KEYS = tuple(f"{section}.{field}" for section, kind in _TYPES.items() for field in typing.get_type_hints(kind))
_ADAPTER = TypeAdapter(TrainConfig)
# Settings that a resumed run may change: none of them affects the computation of a step, except for the end.
CHANGEABLE = (
    "name", "run.epochs", "run.max_steps", "run.micro_batch", "run.gradient_checkpointing", "run.workers",
    "run.log_every", "run.save_every", "run.keep", "run.export_dtype", "validation.frames",
    "validation.every", "validation.steps",
)  # fmt: skip


def save(config: TrainConfig, path: str | Path) -> None:
    """Write every value with its explanation to a ``.toml`` file, or the values alone to a ``.json`` file."""
    path = Path(path)
    if path.suffix not in (".toml", ".json"):
        raise ValueError(f"{path} must end in .toml or .json.")
    text = _toml(config) if path.suffix == ".toml" else json.dumps(to_dict(config), indent=1, ensure_ascii=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, text)


def replace(config: TrainConfig, changes: Mapping[str, Any]) -> TrainConfig:
    """Return the configuration with some values changed: ``{"run.batch_size": 8, "name": "mine"}``.

    Values may be text, as from a command line, where numbers, true and false, and comma-separated lists are meant.
    Raises ValueError for a key that does not exist or a value that does not fit.
    """
    values = to_dict(config)
    for key, value in changes.items():
        section, _, field = key.rpartition(".")
        if key not in ("name", *KEYS):
            raise ValueError(_unknown(key))
        (values[section] if section else values)[field] = value
    return _checked(lambda: _ADAPTER.validate_python(values))


def differences(first: TrainConfig, second: TrainConfig) -> list[str]:
    """Return the keys whose values differ, such as ``run.seed``."""
    found = [] if first.name == second.name else ["name"]
    for section in SECTIONS:
        one, two = (vars(getattr(config, section)) for config in (first, second))
        found += [f"{section}.{field}" for field in one if one[field] != two[field]]
    return found


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """Return plain values: the name, and a dictionary per section, with lists for tuples."""
    return _ADAPTER.dump_python(config, mode="json")


def from_dict(values: dict[str, Any], named: Mapping[str, TrainConfig]) -> TrainConfig:
    """Reverse ``to_dict``. With an entry ``extends``, missing values come from that configuration of ``named``.

    Raises ValueError for an unknown, missing or ill-typed value.
    """
    if not isinstance(values, dict):
        raise ValueError(f"a configuration is a table of sections, not {type(values).__name__}.")
    base = values.get("extends")
    if "extends" in values and not (isinstance(base, str) and base in named):
        raise ValueError(f"extends must be one of {', '.join(named)}, not {base!r}.")
    merged = to_dict(named[base]) if base else {}
    for key, given in values.items():
        if key != "extends":
            both = key in SECTIONS and isinstance(given, dict)
            merged[key] = {**merged.get(key, {}), **given} if both else given
    # As JSON, where numbers and text differ and a list stands for a tuple.
    return _checked(lambda: _ADAPTER.validate_json(json.dumps(merged, default=str), strict=True), next(iter(named)))


def _checked(build: typing.Callable[[], TrainConfig], example: str = "") -> TrainConfig:
    """Return what ``build`` returns; tell pydantic's first error in one sentence, misspelt keys before missing ones."""
    try:
        return build()
    except ValidationError as error:
        first = min(error.errors(), key=lambda e: e["type"] != "unexpected_keyword_argument")
    key, kind = ".".join(part for part in first["loc"] if isinstance(part, str)), first["type"]
    if kind == "unexpected_keyword_argument":
        raise ValueError(_unknown(key))
    if kind == "missing":
        raise ValueError(
            f"the setting '{key}' is missing: add it, or let the file begin with extends = \"{example}\" to start from "
            "that configuration."
        )
    if kind == "value_error":
        raise ValueError(str(first["ctx"]["error"]))
    if kind == "json_invalid":
        raise ValueError(f"a value cannot be read: {first['msg']}.")
    # "Input should be a valid integer, unable to parse string as an integer" -> "must be a valid integer"
    rule = re.sub(r"(, unable|, got| after validation).*", "", re.sub(r"^\w+ should", "must", first["msg"]))
    rule = "must be a section with settings" if kind == "dataclass_type" else rule
    raise ValueError(f"{key} {rule}, not {reprlib.repr(first['input'])}.")


def _unknown(key: str) -> str:
    """Return the message for a key that does not exist, with the nearest one that does."""
    names = [name for name in ("name", *SECTIONS, *KEYS) if name != key]
    found = difflib.get_close_matches(key, names, 1) or [name for name in KEYS if key.split(".")[-1] in name]
    return f"there is no setting '{key}'; did you mean '{found[0]}'?" if found else f"there is no setting '{key}'."


def _toml(config: TrainConfig) -> str:
    """Return the configuration as TOML, with one commented line per value."""
    lines = [f"name = {_toml_value(config.name)}"]
    for section, kind in _TYPES.items():
        lines += ["", f"[{section}]  # {kind.__doc__}"]
        for field, hint in typing.get_type_hints(kind, include_extras=True).items():
            choices = typing.get_args(hint.__origin__) if typing.get_origin(hint.__origin__) is Literal else ()
            note = hint.__metadata__[-1] + (f" ({', '.join(choices)})" if choices else "")
            lines.append(f"{field} = {_toml_value(getattr(getattr(config, section), field))}  # {note}")
    return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml_value, value))}]"
    if isinstance(value, str):  # JSON's text is TOML's, but for one control character
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    return str(value).lower() if isinstance(value, bool) else repr(value)
