"""Configurations of a training run: small typed values with a name, in code or in a TOML or JSON file (§4.1).

    config = load("paper")                                     # or load("my.toml")
    config = replace(config, {"model.mode": "attention"})
    save(config, "attention.toml")

Nothing has a hidden default: a file has every value, or ``extends = "paper"`` and the differences. Each field's
annotation explains it, and ``save`` writes that beside the value. The named ones, and ``load``, are in ``recipes``.
"""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from ..data.config import DataConfig
from ..utils import files


@dataclass(frozen=True)
class ModelConfig:
    """The networks to train and their starting weights."""

    base: Annotated[str, "pipeline of this kit (bundled name, folder, hub id), or Stable Diffusion (folder, hub id)"]
    revision: Annotated[str, "of a hub id; empty for the newest"]
    image_encoder: Annotated[str, "CLIP image encoder, folder or hub id; empty where the base brings one"]
    image_encoder_revision: Annotated[str, "of a hub id; empty for the newest"]
    control: Annotated[Literal["new", "keep"], "a new UNet copy, or go on with the base's own"]
    mode: Annotated[Literal["gated", "attention", "concat"], "Table 1: ours, Ours**, Ours*"]
    stem: Annotated[Literal["conv", "none"], "of the guidance; none is Eq. 1 and 3 word for word"]
    hidden_dim: Annotated[int, "width of the guidance's queries and keys"]
    dilations: Annotated[tuple[int, ...], "of the stem's convolutions after its first"]
    heads: Annotated[int, "of the guidance's attention"]
    gate_bias: Annotated[bool, "bias in the gate's value map, so that it starts almost closed"]
    null_token: Annotated[bool, "a learned token outside the reference for the gate"]
    condition_width: Annotated[int, "hidden width of the convolution that takes concat(ColorHint, g) in"]
    image_condition: Annotated[Literal["patch", "pooled", "none"], "what the copy's cross-attention reads"]
    joint: Annotated[bool, "train the UNet too (the paper keeps it frozen)"]


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its learning rate."""

    name: Annotated[Literal["adam", "adamw", "adam8bit"], "adam8bit needs bitsandbytes"]
    learning_rate: Annotated[float, "peak"]
    beta1: Annotated[float, "of Adam"]
    beta2: Annotated[float, "of Adam"]
    epsilon: Annotated[float, "of Adam"]
    weight_decay: Annotated[float, "of adamw; 0 with the others"]
    schedule: Annotated[Literal["constant", "cosine"], "of the learning rate, after the warm-up"]
    warmup: Annotated[int, "steps of linear warm-up"]
    max_grad_norm: Annotated[float, "gradients are scaled down to this norm; 0 for never"]
    ema_decay: Annotated[float, "of the averaged weights, which are what is exported; 0 for none"]


@dataclass(frozen=True)
class LossConfig:
    """Eq. 11, with the scheduler's prediction type as its target, and optional additions."""

    hint_weight: Annotated[float, "of the ColorHint's squared error; 0 in the paper"]
    snr_gamma: Annotated[float, "min-SNR weighting (Hang et al. 2023), 5 as a rule; 0 for none, as in the paper"]


@dataclass(frozen=True)
class RunConfig:
    """Length of the run, batches, precision and saving."""

    seed: Annotated[int, "of data, noise and fresh weights"]
    epochs: Annotated[float, "passes through the data"]
    max_steps: Annotated[int, "steps after which to stop even so; 0 for no such bound"]
    batch_size: Annotated[int, "samples per step, over all processes and passes"]
    micro_batch: Annotated[int, "samples per process and pass; the rest is gathered over passes"]
    precision: Annotated[Literal["auto", "no", "bf16", "fp16"], "mixed precision; auto is the best safe one"]
    frozen_dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], "of what is not trained; auto follows the precision"
    ]
    gradient_checkpointing: Annotated[bool, "less memory for about a third more time"]
    compile: Annotated[bool, "compile the networks at the first steps: minutes once, faster steps from then on"]
    workers: Annotated[int, "processes that read data; 0 reads in the training process"]
    log_every: Annotated[int, "steps between log lines"]
    save_every: Annotated[int, "steps between checkpoints"]
    keep: Annotated[int, "checkpoints kept, the newest"]
    export_dtype: Annotated[Literal["float32", "float16", "bfloat16"], "of the pipeline that comes out"]


@dataclass(frozen=True)
class ValidationConfig:
    """Clips to colour during training, never trained on."""

    set: Annotated[str, "prepared set; empty for no validation"]
    clips: Annotated[tuple[str, ...], "of that set"]
    frames: Annotated[int, "from each clip's start"]
    every: Annotated[int, "training steps between validations; one more comes at the end"]
    steps: Annotated[int, "denoising steps"]


@dataclass(frozen=True)
class TrainConfig:
    """A whole configuration; see ``load``, ``save`` and ``replace``."""

    name: str
    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig
    loss: LossConfig
    run: RunConfig
    validation: ValidationConfig

    def __post_init__(self):
        _check(self)


SECTIONS = tuple(f.name for f in dataclasses.fields(TrainConfig) if f.name != "name")
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


def replace(config: TrainConfig, changes: dict[str, Any]) -> TrainConfig:
    """Return the configuration with some values changed: ``{"run.batch_size": 8, "name": "mine"}``.

    Values may be text, as from a command line, where numbers, true and false, and comma-separated lists are meant.
    Raises ValueError for a key that does not exist or a value that does not fit.
    """
    values = to_dict(config)
    for key, value in changes.items():
        section, _, field = key.partition(".")
        if key == "name":
            values["name"] = value
        elif section not in SECTIONS or field not in values[section]:
            raise ValueError(f"there is no setting '{key}'{_closest(key)}.")
        else:
            values[section][field] = _from_text(value, _types(_section_type(section))[field])
    return from_dict(values, {})


def differences(first: TrainConfig, second: TrainConfig) -> list[str]:
    """Return the keys whose values differ, such as ``run.seed``."""
    one, two = to_dict(first), to_dict(second)
    keys = [f"{section}.{field}" for section in SECTIONS for field in one[section]]
    found = [k for k in keys if one[k.split(".")[0]][k.split(".")[1]] != two[k.split(".")[0]][k.split(".")[1]]]
    return (["name"] if first.name != second.name else []) + found


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """Return plain values: the name, and a dictionary per section, with lists for tuples."""
    plain = lambda v: list(v) if isinstance(v, tuple) else v  # noqa: E731
    values: dict[str, Any] = {"name": config.name}
    for section in SECTIONS:
        values[section] = {k: plain(v) for k, v in vars(getattr(config, section)).items()}
    return values


def from_dict(values: dict[str, Any], named: Mapping[str, TrainConfig]) -> TrainConfig:
    """Reverse ``to_dict``. With an entry ``extends``, missing values come from that configuration of ``named``.

    Raises ValueError for an unknown, missing or ill-typed value.
    """
    if not isinstance(values, dict):
        raise ValueError(f"a configuration is a table of sections, not {type(values).__name__}.")
    values = dict(values)
    base = values.pop("extends", None)
    if base is not None and not (isinstance(base, str) and base in named):
        raise ValueError(f"extends must be one of {', '.join(named)}, not {base!r}.")
    start = {} if base is None else to_dict(named[base])
    for key in values:
        if key not in ("name", *SECTIONS):
            raise ValueError(f"there is no setting '{key}'{_closest(key)}.")
    parts: dict[str, Any] = {"name": _typed("name", values.get("name", start.get("name")), str)}
    for section in SECTIONS:
        kind, given = _section_type(section), values.get(section, {})
        if not isinstance(given, dict):
            raise ValueError(f"{section} must be a section with settings, not {given!r}.")
        known = _types(kind)
        for field in given:
            if field not in known:
                raise ValueError(f"there is no setting '{section}.{field}'{_closest(f'{section}.{field}')}.")
        merged = {**start.get(section, {}), **given}
        for field in known:
            if field not in merged:
                raise ValueError(
                    f"the setting '{section}.{field}' is missing: add it, or let the file begin with "
                    f'extends = "{next(iter(named))}" to start from that configuration.'
                )
        parts[section] = kind(**{f: _typed(f"{section}.{f}", merged[f], known[f]) for f in known})
    return TrainConfig(**parts)


# --- checks ----------------------------------------------------------------------------------------------------------


def _section_type(section: str) -> type:
    return typing.get_type_hints(TrainConfig)[section]


def _types(kind: type) -> dict[str, Any]:
    """Return a section's fields and their types, without the notes."""
    return typing.get_type_hints(kind)


def _typed(key: str, value: Any, kind: Any) -> Any:
    """Return the value in its field's type; ValueError if it does not fit."""
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if value in choices and isinstance(value, str):
            return value
        raise ValueError(f"{key} must be one of {', '.join(choices)}, not {value!r}.")
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        if isinstance(value, (list, tuple)) and all(type(one) is item for one in value):
            return tuple(value)
        raise ValueError(f"{key} must be a list of {'names' if item is str else 'whole numbers'}, not {value!r}.")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        names = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
        raise ValueError(f"{key} must be {names[kind]}, not {value!r}.")
    return value


def _from_text(value: Any, kind: Any) -> Any:
    """Parse text into the field's type; return it unchanged if that fails."""
    if not isinstance(value, str) or kind is str or typing.get_origin(kind) is Literal:
        return value
    if typing.get_origin(kind) is tuple:
        items = [item.strip() for item in value.split(",") if item.strip()]
        return [_from_text(item, typing.get_args(kind)[0]) for item in items]
    if kind is bool:
        return {"true": True, "false": False}.get(value.lower(), value)
    try:
        return kind(value)
    except ValueError:
        return value


def _check(config: TrainConfig) -> None:
    """Refuse values that no run can use."""
    data, optimizer, run, validation = config.data, config.optimizer, config.run, config.validation
    shares = {name: getattr(data, name) for name in ("mask", "single", "grid", "unrelated")}
    at_least = {
        0: ("data.targets_per_clip", "data.window", "data.cache_variants", "data.cache_photo_variants",
            "data.cache_seed", "optimizer.weight_decay", "optimizer.warmup", "optimizer.max_grad_norm",
            "loss.hint_weight", "loss.snr_gamma", "run.seed", "run.max_steps", "run.workers"),
        1: ("data.targets_per_photo", "model.hidden_dim", "model.heads", "model.condition_width", "run.batch_size",
            "run.micro_batch", "run.log_every", "run.save_every", "run.keep", "validation.frames", "validation.every",
            "validation.steps"),
        2: ("data.cache_views",),
        8: ("data.height", "data.width"),
    }  # fmt: skip
    for least, keys in at_least.items():
        for key in keys:
            section, field = key.split(".")
            value = getattr(getattr(config, section), field)
            if not value >= least:
                raise ValueError(f"{key} must be at least {least}, not {value}.")
    for name in (*shares, "strip_colors", "drop_text", "recolor"):
        if not 0 <= getattr(data, name) <= 1:
            raise ValueError(f"data.{name} must be a share from 0 to 1, not {getattr(data, name)}.")
    for name in ("beta1", "beta2", "ema_decay"):
        if not 0 <= getattr(optimizer, name) < 1:
            raise ValueError(f"optimizer.{name} must be from 0 to below 1, not {getattr(optimizer, name)}.")
    for wrong, message in (
        (not config.name, "name must not be empty"),
        (abs(sum(shares.values()) - 1) > 1e-6, f"data.{', data.'.join(shares)} must add up to 1"),
        (min(config.model.dilations, default=1) < 1, "model.dilations must be whole numbers of at least 1"),
        (not data.sets, "data.sets must name at least one prepared set"),
        (not optimizer.learning_rate > 0, "optimizer.learning_rate must be above 0"),
        (not optimizer.epsilon > 0, "optimizer.epsilon must be above 0"),
        (
            optimizer.weight_decay > 0 and optimizer.name != "adamw",
            'optimizer.weight_decay goes with optimizer.name = "adamw" only',
        ),
        (not run.epochs > 0, "run.epochs must be above 0"),
        (
            run.batch_size % run.micro_batch > 0,
            f"run.batch_size={run.batch_size} must be a multiple of run.micro_batch={run.micro_batch}",
        ),
        (
            config.model.joint and run.frozen_dtype not in ("auto", "float32") and run.precision == "no",
            "model.joint trains the UNet in float32, which run.frozen_dtype does not fit without mixed precision",
        ),
        (
            bool(validation.set) != bool(validation.clips),
            "validation.set and validation.clips go together: give both, or neither",
        ),
    ):
        if wrong:
            raise ValueError(f"{message}.")


def _closest(key: str) -> str:
    """Return a suggestion for a misspelt key, or an empty string."""
    import difflib

    names = [f"{section}.{field}" for section in SECTIONS for field in _types(_section_type(section))]
    found = difflib.get_close_matches(key, ["name", *SECTIONS, *names], 1)
    found = found or [name for name in names if key.split(".")[-1] in name][:1]
    return f"; did you mean '{found[0]}'?" if found else ""


def _toml(config: TrainConfig) -> str:
    """Return the configuration as TOML, with one commented line per value."""
    lines = [f"name = {_toml_value(config.name)}"]
    for section in SECTIONS:
        part = getattr(config, section)
        lines += ["", f"[{section}]  # {type(part).__doc__}"]
        for field, hint in typing.get_type_hints(type(part), include_extras=True).items():
            choices = typing.get_args(hint.__origin__) if typing.get_origin(hint.__origin__) is Literal else ()
            note = hint.__metadata__[0] + (f" ({', '.join(choices)})" if choices else "")
            lines.append(f"{field} = {_toml_value(getattr(part, field))}  # {note}")
    return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml_value, value))}]"
    if isinstance(value, str):  # JSON's text is TOML's, but for one control character
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    return str(value).lower() if isinstance(value, bool) else repr(value)
