"""Footnotes of Table 1 from the records: the prompts of our rows, and the settings that they share or not (§4.4).

One footnote for each set of clips. It first lists the settings of most rows, then every row that differs, so that a
reader sees whether rows differ in more than their names say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from .run import setting

# Always listed, in this order; other settings are listed where rows differ in them.
_NAMED = ("num_inference_steps", "strength", "hint_weight", "noise_scale", "tau", "guidance_scale", "seed", "prompts")
_OLD, _AS_PROFILE = "all else", "as the profile has it"  # in older records, which hold only the given options


def footnotes(records: Iterable[dict]) -> list[str]:
    """Return a footnote for each set of clips on which our pipeline was measured, in order."""
    sets: dict[tuple, dict[tuple, list[dict]]] = {}
    for record in records:
        if record["identity"].get("kind") == "gcg":
            rows = sets.setdefault(setting(record), {})
            rows.setdefault((record["method"], record["key"]), []).append(record)
    return [_footnote(about[0], rows) for about, rows in sets.items()]


def row_settings(records: Sequence[dict]) -> dict:
    """Return all settings of a row, from its records: the pipeline's, "seed", "reference", and "prompts", in words."""
    identity, recorded = records[0]["identity"], records[0]["provenance"].get("settings")
    prompts = identity.get("prompts", {})
    bare = sum(not prompts.get(record["clip"]) for record in records)
    if bare == len(records):
        words = "none"
    else:
        words = identity.get("prompts_source", "of unknown source")
        words += f" (none for {bare} of {len(records)} clips)" if bare else ""
    found = {name: identity.get(name) for name in ("seed", "reference")}
    options = {**identity.get("options", {}), _OLD: _AS_PROFILE} if recorded is None else recorded
    return {**options, **found, "prompts": words}


def _footnote(name: str, rows: dict[tuple, list[dict]]) -> str:
    """Return the sentences on one set: what most rows share, and how others differ."""
    found = {key: row_settings(records) for key, records in rows.items()}
    options = [*_NAMED, *sorted({option for settings in found.values() for option in settings} - {*_NAMED})]
    shared: list[str] = []
    own: dict[tuple, list[str]] = {key: [] for key in rows}
    all_old = all(_OLD in settings for settings in found.values())
    for option in options:
        given = {key: str(settings[option]) for key, settings in found.items() if option in settings}
        values = {key: given.get(key, _AS_PROFILE) for key in found} if all_old and given else given
        text, count = Counter(values.values()).most_common(1)[0] if values else ("", 0)
        most = text if 2 * count > len(values) else None
        if most is not None and option in (*_NAMED, _OLD):
            shared.append(f"{option} {most}")
        for key, value in values.items():
            if value != most:
                own[key].append(f"{option} {value}")
    several = Counter(method for method, _ in rows)
    sentences = [f"Ours on {name}: {', '.join(shared) or 'no setting is shared by most rows'}."]
    for (method, key), different in own.items():
        if different:
            label = f"{method} [{key[:8]}]" if several[method] > 1 else method
            sentences.append(f"{label}: {', '.join(different)}.")
    return " ".join(sentences)
