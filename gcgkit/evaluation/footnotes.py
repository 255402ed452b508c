"""Footnotes of Table 1 from the records: the prompts of our rows, and the settings that they share or not (§4.4).

One footnote for each set of clips. It first lists the settings of most rows, then every row that differs, so that a
reader sees if rows differ in more than their names say. A setting is listed if it is one of `_NAMED`, if rows
differ in it, or if it is not the default. A value that the profile filled in is listed only where rows differ.
"""

import string
from collections import Counter
from collections.abc import Iterable

from .rows import RowKey, defaults, group_rows, row_differences, row_label, row_settings, setting_in_words
from .run import setting

# Always listed, in this order.
_NAMED = (
    "num_inference_steps", "strength", "hint_weight", "noise_scale", "tau", "keyframe_weight", "working_size",
    "guidance_scale", "seed", "prompts",
)  # fmt: skip


class Notes:
    """Notes that cells refer to, each text once, lettered in order."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def letter(self, reason: str) -> str:
        """Return the letter of a reason, a new one at its first use."""
        if reason not in self.reasons:
            self.reasons.append(reason)
        index, letters = self.reasons.index(reason), string.ascii_lowercase
        return letters[index] if index < 26 else letters[index // 26 - 1] + letters[index % 26]

    @property
    def texts(self) -> list[str]:
        return [f"({self.letter(reason)}) {reason}" for reason in self.reasons]


def footnotes(records: Iterable[dict]) -> list[str]:
    """Return a footnote for each set of clips on which our pipeline was measured, in order."""
    sets: dict[tuple, list[dict]] = {}
    for record in records:
        if record["identity"].get("kind") == "gcg":
            sets.setdefault(setting(record), []).append(record)
    return [_footnote(about[0], group_rows(own)) for about, own in sets.items()]


def _footnote(name: str, rows: dict[RowKey, list[dict]]) -> str:
    """Return the sentences on one set: what most rows share, and how others differ."""
    found = {key: row_settings(records) for key, records in rows.items()}
    held = {option for settings in found.values() for option in settings}
    options = [*(option for option in _NAMED if option in held), *sorted(held - {*_NAMED})]
    given = {name for records in rows.values() for name in records[0]["identity"].get("options", {})}
    shared: list[str] = []
    own: dict[RowKey, list[str]] = {key: [] for key in rows}
    for option in options:
        values = {key: setting_in_words(settings, option) for key, settings in found.items()}
        text, count = Counter(values.values()).most_common(1)[0]
        most = text if 2 * count > len(values) else None
        usual = text == setting_in_words({}, option) or (defaults().get(option, "") is None and option not in given)
        if most is not None and (option in _NAMED or not usual):
            shared.append(f"{option} {most}")
        for key, value in values.items():
            if value != most:
                own[key].append(f"{option} {value}")
    sentences = [f"Ours on {name}: {', '.join(shared) or 'no setting is shared by most rows'}."]
    apart = row_differences(rows)
    for row, different in own.items():
        if unnamed := [text for text in different if text not in apart[row]]:
            sentences.append(f"{row_label(row, apart[row])}: {', '.join(unnamed)}.")
    return " ".join(sentences)
