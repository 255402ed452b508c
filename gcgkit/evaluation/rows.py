"""Rows of Table 1 from records: which records form a row, its settings, and paired differences (§4.4, §4.5)."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from .columns import METRICS
from .run import setting, t_interval

RowKey = tuple[str, str]  # a method's name and the key of its lowest seed


def side_by_side(records: Sequence[dict]) -> list[list[dict]]:
    """Group records that may be compared, see `run.setting`; absent methods are in every group of their set."""
    there = [r for r in records if not r.get("absent")]
    groups = {setting(r): [] for r in [*there, *records]}
    for record in records:
        own = setting(record)
        fitting = [key for key in groups if key[:3] == own[:3] and key[3] is not None] if record.get("absent") else []
        for key in fitting or [own]:
            groups[key].append(record)
    return [group for group in groups.values() if group]


def group_rows(records: Iterable[dict]) -> dict[RowKey, list[dict]]:
    """Group comparable records into rows. Records of one method that differ only in their seed are one row."""
    found: dict[RowKey, list[dict]] = {}
    for record in records:
        identity = record["identity"]
        alike = json.dumps({**identity, "seed": ""}, sort_keys=True) if "seed" in identity else record["key"]
        found.setdefault((record["method"], alike), []).append(record)
    ordered = (sorted(own, key=lambda r: r["identity"].get("seed", 0)) for own in found.values())
    return {(own[0]["method"], own[0]["key"]): own for own in ordered}


def row_settings(records: Sequence[dict]) -> dict:
    """Return all settings of a row, from its records: the pipeline's, "seed", "reference", and "prompts", in words."""
    identity, completed = records[0]["identity"], records[0]["provenance"].get("settings", {})
    options = {**identity.get("options", {}), **completed}  # some options, such as chunk, are no settings
    prompts, clips = identity.get("prompts", {}), {record["clip"] for record in records}
    bare = sum(not prompts.get(clip) for clip in clips)
    if bare == len(clips):
        words = "none"
    else:
        words = identity.get("prompts_source", "of unknown source")
        words += f" (none for {bare} of {len(clips)} clips)" if bare else ""
    seeds = " ".join(dict.fromkeys(str(record["identity"].get("seed")) for record in records))
    return {**options, "seed": seeds, "reference": identity.get("reference"), "prompts": words}


@cache
def defaults() -> dict:
    """Return the default of every setting and of "reference"; loads torch, so only rows of ours ask for it."""
    from ..settings import Settings

    return {field.name: field.default for field in dataclasses.fields(Settings)} | {"reference": "first"}


def setting_in_words(settings: Mapping, option: str) -> str:
    """Return a setting of a row as text: the default if no record has it, "not set" for what is no setting."""
    value = settings[option] if option in settings else defaults().get(option, "not set")
    if value is None:
        return "all" if option in ("past_window", "chunk") else "as the profile has it"
    return str(value)


def row_differences(rows: Mapping[RowKey, list[dict]]) -> dict[RowKey, list[str]]:
    """Return how each row differs from others of its name: its settings, or its key where these do not tell them apart.

    The list is empty for a name that one row has.
    """
    settings = {row: row_settings(records) for row, records in rows.items()}
    found = {}
    for row, own in settings.items():
        others = [other for one, other in settings.items() if one[0] == row[0]]
        words = {k: setting_in_words(own, k) for k in dict.fromkeys(k for other in (own, *others) for k in other)}
        apart = [k for k, text in words.items() if any(setting_in_words(other, k) != text for other in others)]
        found[row] = [f"{k} {words[k]}" for k in apart]
    several, told = Counter(name for name, _ in rows), Counter((row[0], *texts) for row, texts in found.items())
    for row, texts in found.items():
        if several[row[0]] > 1 and (not texts or told[row[0], *texts] > 1):
            texts.append(row[1][:8])
    return found


def row_label(row: RowKey, differences: Sequence[str]) -> str:
    """Return a row's name: the method's, with what tells it apart in brackets."""
    return f"{row[0]} [{', '.join(differences)}]" if differences else row[0]


def clip_values(records: Iterable[dict], metric: str) -> dict[str, float]:
    """Return a metric's value for each clip, the mean over seeds; records without the metric are left out."""
    found: dict[str, list[float]] = {}
    for record in records:
        if metric in record["metrics"]:
            found.setdefault(record["clip"], []).append(record["metrics"][metric])
    return {clip: float(np.mean(values)) for clip, values in found.items()}


def paired_differences(first: Iterable[dict], second: Iterable[dict], metric: str) -> list[float]:
    """Return a metric's differences between two rows, first minus second, on each clip that both measured."""
    ours, theirs = clip_values(first, metric), clip_values(second, metric)
    return [value - theirs[clip] for clip, value in ours.items() if clip in theirs]


class Difference(NamedTuple):
    """The mean difference of two rows over clips, its 95 % t interval, and the verdict on the first.

    verdict: "yes", the first is better, where the whole interval lies on the better side, "no" where it lies on the
    worse one, "not decided" where it holds zero.
    """

    mean: float
    low: float
    high: float
    verdict: str


def difference(first: Iterable[dict], second: Iterable[dict], metric: str) -> Difference:
    """Compare two rows by a metric on the clips that both measured: first minus second, in the table's unit.

    Raises ValueError for fewer than two such clips.
    """
    about = METRICS[metric]
    values = [about.factor * value for value in paired_differences(first, second, metric)]
    if len(values) < 2:
        raise ValueError(f"The rows share {len(values)} clip(s) with {about.label}; an interval needs two or more.")
    low, high = t_interval(values)
    gains = (low, high) if about.better == "more" else (-high, -low)
    verdict = "yes" if gains[0] > 0 else "no" if gains[1] < 0 else "not decided"
    return Difference(float(np.mean(values)), low, high, verdict)
