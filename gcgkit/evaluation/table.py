"""Table 1 (§4.4): the paper's numbers and ours, one row per method, in Markdown, LaTeX or HTML.

    print(render(read_results("results")))                 # Markdown; Table(...) shows itself in a notebook
    python -m gcgkit.evaluation.table results --format latex --out table1.tex

The paper's digits are those printed (``table1.json``). What differs from the paper's setting, be it the data, the
number of frames or the weights, marks a row with a dagger at its name and at every number, so that no part of it can be
taken for a number at the paper's scale. In each group the best is bold; the truth and plain gray are scales, not
competitors. Each of our numbers is a mean over clips with its bootstrap interval; distances between sets (FID,
FD-EfficientNet) are one number for all frames, without an interval.
"""

from __future__ import annotations

import argparse
import html as escaping
import json
import re
import string
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import lru_cache
from importlib import resources
from pathlib import Path

import numpy as np

from .. import profiles
from ..utils.commands import run_reporting_errors
from ..utils.files import write_text
from .columns import METRICS, set_distance
from .footnotes import footnotes
from .run import NO_COLOR, TRUTH, bootstrap_interval, read_results, setting

DAGGER = "†"
FORMATS = ("markdown", "latex", "html")
PRINTED_PSNR = "psnr"  # the paper does not define its PSNR, so it has its own column
SCALES = (TRUTH, "gray")
_ORDER = (TRUTH, "gray", "transfer", "flow")
_SETS = {"davis": "DAVIS", "davis-test-dev": "DAVIS", "ldv3": "LDV3", "ldv-test": "LDV3", "ldv": "LDV3"}
_PAPER_SIZE = [256, 448]
_PAPER_PARAMETERS = 800_000_000  # a UNet below that is not Stable Diffusion 2.1's


@dataclass(frozen=True)
class Cell:
    """An entry of the table: digits with an interval, or the letter of the note with the reason for none."""

    text: str = "–"
    interval: str = ""
    note: str = ""
    best: bool = False


@dataclass
class Row:
    """A method: its name, its cells in the order of the columns, and a flag for the paper's scale."""

    name: str
    cells: list[Cell]
    marked: bool = False
    contends: bool = True


@dataclass
class Group:
    """Rows of one origin: the paper's own, or ours on one set of clips."""

    title: str
    rows: list[Row]


@dataclass
class Table:
    """A rendered table waiting for its format; in a notebook it shows itself."""

    columns: list[tuple[str, str, str]]  # name, label, better
    sections: list[tuple[str, list[Group]]]
    notes: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        """Return GitHub's Markdown."""
        return _write(self, _FORMS["markdown"])

    def latex(self) -> str:
        """Return a ``tabular`` for each section, with booktabs rules."""
        return _write(self, _FORMS["latex"])

    def html(self) -> str:
        """Return HTML tables, without scripts."""
        return _write(self, _FORMS["html"])

    _repr_html_ = html


@lru_cache(maxsize=1)
def paper() -> dict:
    """Return Table 1 as printed: "methods", "metrics", and for each of "datasets" the "values" as strings of digits."""
    return json.loads(resources.files(__package__).joinpath("table1.json").read_text(encoding="utf-8"))


def build(results: Iterable[dict], *, level: float = 0.95) -> Table:
    """Build the table from records of `run.read_results`, beside the paper's two halves."""
    records = list(results)
    shown = [name for name in METRICS if any(name in r["metrics"] or name in r["not_measured"] for r in records)]
    columns = _columns(shown)
    notes = _Notes()
    groups: dict[str, list[Group]] = {key: [_paper_group(key, columns)] for key in paper()["datasets"]}
    groups[""] = []
    together = _side_by_side(records)
    names = [ours[0]["set"]["name"] for ours in together]
    for name, ours in zip(names, together, strict=True):
        half = _SETS.get(name.lower(), next((h for s, h in _SETS.items() if name.lower().startswith(s)), ""))
        groups[half].append(_our_group(ours, columns, notes, level, name_first=names.count(name) > 1))
    titles = {key: about["label"] for key, about in paper()["datasets"].items()}
    sections = [(titles.get(key, "Other clips"), found) for key, found in groups.items() if found]
    marked = any(row.marked for _, found in sections for group in found for row in group.rows)
    return Table(columns, sections, [*_explain(records, level, marked), *notes.texts])


def render(results: Iterable[dict], form: str = "markdown", *, level: float = 0.95) -> str:
    """Return the table as text in one of `FORMATS`. Raises ValueError for another."""
    if form not in FORMATS:
        raise ValueError(f"form must be one of {', '.join(FORMATS)}, not {form!r}.")
    return getattr(build(results, level=level), form)()


def below_paper_scale(records: Sequence[dict]) -> list[str]:
    """Return the reasons why one method's records on one set are not at the paper's scale; empty if they are."""
    first, reasons = records[0], []
    about = first["set"]
    half = _SETS.get(about["name"].lower())
    frames = sum(r.get("frames", 0) for r in records)
    if half is None:
        reasons.append(f"{about['name']} is not one of the paper's test sets")
    else:
        wanted = paper()["datasets"][half]
        if about["chosen"] or len(records) != wanted["clips"]:
            reasons.append(f"{len(records)} clips instead of {wanted['clips']}")
        if about["limit"] is not None or ("frames" in wanted and frames != wanted["frames"]):
            reasons.append(f"{frames} frames instead of all")
    if about["size"] != _PAPER_SIZE:
        reasons.append("another size than 448x256")
    if first["identity"].get("kind") == "gcg":
        parameters = min(r["provenance"].get("unet_parameters", 0) for r in records)
        if first["identity"]["profile"] in profiles.BUNDLED:
            reasons.append("the mini model's weights")
        elif parameters < _PAPER_PARAMETERS:
            reasons.append(f"a UNet of {parameters / 1e6:.1f} million parameters instead of Stable Diffusion's 866")
    return reasons


def _side_by_side(records: Sequence[dict]) -> list[list[dict]]:
    """Group records that may be compared, see `setting`; absent methods are in every group of their set."""
    there = [r for r in records if not r.get("absent")]
    groups = {setting(r): [] for r in [*there, *records]}
    for record in records:
        own = setting(record)
        fitting = [key for key in groups if key[:3] == own[:3] and key[3] is not None] if record.get("absent") else []
        for key in fitting or [own]:
            groups[key].append(record)
    return [group for group in groups.values() if group]


class _Notes:
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


def _columns(shown: list[str]) -> list[tuple[str, str, str]]:
    """Return the paper's metrics in its order, with ours where they are the same, then those that only we have."""
    printed = paper()["metrics"]
    columns = []
    for name, about in printed.items():
        label = "PSNR as printed" if name == PRINTED_PSNR else METRICS[name].label
        columns.append((name, label, about["better"]))
        if name == PRINTED_PSNR:
            columns += [(n, METRICS[n].label, METRICS[n].better) for n in ("psnr_rgb", "psnr_luma") if n in shown]
    known = {name for name, _, _ in columns}
    return [*columns, *((n, METRICS[n].label, METRICS[n].better) for n in shown if n not in known)]


def _paper_group(half: str, columns: list[tuple[str, str, str]]) -> Group:
    values = paper()["datasets"][half]["values"]
    rows = [
        Row(method, [Cell(values[name][method]) if name in values else Cell() for name, _, _ in columns])
        for method in paper()["methods"]
    ]
    _mark_best(rows, columns)
    return Group("The paper, as printed", rows)


def _our_group(records: list[dict], columns, notes: _Notes, level: float, name_first: bool) -> Group:
    """Return our rows on one set, each method with the configuration of its measurement.

    name_first: True if the title names the first measured frame, to distinguish groups of one set.
    """
    about = records[0]["set"]
    by_method: dict[tuple[str, str], list[dict]] = {}
    for record in records:
        by_method.setdefault((record["method"], record["key"]), []).append(record)
    truth = {r["clip"]: r for r in records if r["method"] == TRUTH}
    clips = truth or {r["clip"]: r for r in records if not r.get("absent")}
    measured = {name for name, key in by_method if key}
    several = {name for name in measured if sum(n == name for n, key in by_method if key) > 1}
    order = [*_ORDER, *paper()["methods"]]
    rank = lambda item: (order.index(item[0]) if item[0] in order else len(order), item)  # noqa: E731
    shown = [column for column, _, _ in columns]
    rows = []
    for name, key in sorted(by_method, key=rank):
        own = by_method[name, key]
        if own[0].get("absent"):
            if name not in measured:
                note = notes.letter(own[0]["absent"])
                rows.append(Row(f"{name} {DAGGER}", [Cell("not measured", note=note) for _ in columns], True, False))
            continue
        reasons = below_paper_scale(own)
        cells = [_our_cell(column, own, truth, notes, level, bool(reasons)) for column in shown]
        title = f"{name} [{key[:8]}]" if name in several else name
        title += f" ({len(own)} of {len(clips)} clips)" if len(own) < len(clips) else ""
        gray = name not in SCALES and all(NO_COLOR in r["notes"] for r in own)
        if gray and "colorfulness" in shown:
            place, letter = shown.index("colorfulness"), notes.letter(f"{NO_COLOR}: no competitor, as gray is none")
            cells[place] = replace(cells[place], note=letter)
        contends = name not in SCALES and not gray and len(own) == len(clips)
        rows.append(Row(f"{title} {DAGGER}" if reasons else title, cells, bool(reasons), contends))
    _mark_best(rows, columns)
    reasons = list(dict.fromkeys(r for own in by_method.values() if own[0]["key"] for r in below_paper_scale(own)))
    frames = sum(r["frames"] for r in clips.values())
    size = f"{about['size'][1]}x{about['size'][0]}" if about["size"] else "own size"
    title = f"Measured here on {about['name']}: {len(clips)} clips, {frames} frames, {size}"
    if name_first:
        title += f", from frame {', '.join(sorted({str(r['first']) for r in clips.values()}))} on"
    return Group(title + (f". {DAGGER} not at the paper's scale: {'; '.join(reasons)}" if reasons else ""), rows)


def _our_cell(name: str, records: list[dict], truth: dict, notes: _Notes, level: float, marked: bool) -> Cell:
    """Return mean and interval of a metric over a method's clips, or the note with the reason for none."""
    if name == PRINTED_PSNR:
        return Cell()
    metric, is_truth = METRICS[name], records[0]["method"] == TRUTH
    if is_truth and (metric.kind == "pair" or (metric.kind == "set" and name in records[0]["metrics"])):
        return Cell()  # the truth against itself
    reason = next((r["not_measured"][name] for r in records if name in r["not_measured"]), None)
    having = [r for r in records if name in r["metrics"]]
    if len(having) < len(records) or not having:
        reason = reason or "it was not asked for"
        where = f" on {len(records) - len(having)} of {len(records)} clips" if having else ""
        return Cell("not measured", note=notes.letter(f"not measured{where}: {reason}"))
    interval = None
    if metric.kind == "set":
        try:
            files = [[r["metrics"][name] for r in side] for side in (having, [truth[r["clip"]] for r in having])]
            value = set_distance(Path(having[0]["folder"]), *files)
        except (KeyError, OSError, ValueError):
            return Cell("not measured", note=notes.letter(f"the features of {metric.label} are no longer in the cache"))
    else:
        values = [r["metrics"][name] * metric.factor for r in having]
        value, interval = float(np.mean(values)), bootstrap_interval(values, level=level)
    mark = DAGGER if marked else ""
    bounds = ", ".join(f"{bound:.{metric.digits}f}" for bound in interval) if interval else ""
    return Cell(f"{value:.{metric.digits}f}{mark}", f"[{bounds}]" if bounds else "")


def _mark_best(rows: list[Row], columns: list[tuple[str, str, str]]) -> None:
    """Mark the best digits of each column as shown, all equal ones."""
    for index, (_, _, better) in enumerate(columns):
        shown = {
            i: Decimal(row.cells[index].text.rstrip(DAGGER))
            for i, row in enumerate(rows)
            if row.contends and row.cells[index].text[0] in "0123456789-"
        }
        if len(shown) < 2 or better not in ("more", "less"):
            continue
        best = (max if better == "more" else min)(shown.values())
        for i, value in shown.items():
            if value == best:
                cell = rows[i].cells[index]
                rows[i].cells[index] = Cell(cell.text, cell.interval, cell.note, True)


def _explain(records: list[dict], level: float, marked: bool) -> list[str]:
    """Explain the table in sentences."""
    texts = [f"Paper: {paper()['source']}. " + "; ".join(f"{k}: {v}" for k, v in paper()["notes"].items()) + "."]
    if not records:
        return texts
    first = sorted({r["first"] for r in records if "first" in r})
    texts.append(
        f"Ours: means over clips of means over frames, with {level:.0%} bootstrap intervals over clips; measured from "
        f"frame {', '.join(map(str, first))} on (frame 0 is the exemplar). FID and FD-EfficientNet are one number for "
        "all frames. ST-LPIPS is not LPIPS, FD-EfficientNet is not FID. The truth and gray are scales, no "
        "competitors: gray or frozen output is steady for free. Bold: best of the group."
    )
    texts += footnotes(records)
    if marked:
        texts.append(f"{DAGGER} not at the paper's scale, and not to be compared with its numbers.")
    return texts


def _write(table: Table, form: Mapping) -> str:
    """Write the table in one of `_FORMS`."""
    escape, arrows, count = form["escape"], {"more": form["up"], "less": form["down"]}, len(table.columns)
    labels = [form["label"](label) + arrows.get(better, "") for _, label, better in table.columns]
    about = {"labels": form["heads"].join(labels), "each": form["each"] * count, "gaps": " |" * count}
    lines = [form["first"]]
    for title, groups in table.sections:
        lines.append(form["head"] % {**about, "title": escape(title)})
        for group in groups:
            lines.append(form["group"] % {**about, "title": escape(group.title), "width": count + 1})
            for row in group.rows:
                cells = form["join"].join(_write_cell(cell, form) for cell in row.cells)
                style = ' style="color:#666;font-style:italic"' if row.marked else ""
                lines.append(form["row"] % {"name": escape(row.name), "cells": cells, "style": style})
        lines.append(form["end"])
    notes = (form["note"] % escape(note) for note in table.notes)
    return "\n".join(line for line in [*lines, *notes, form["last"]] if line is not None) + "\n"


def _write_cell(cell: Cell, form: Mapping) -> str:
    text = form["escape"](cell.text)
    small = " ".join(filter(None, (form["escape"](cell.interval), f"({cell.note})" if cell.note else "")))
    return form["cell"] % ((form["bold"] % text if cell.best else text) + (form["small"] % small if small else ""))


_LATEX = {
    "×10⁻²": r"$\times10^{-2}$", "×10⁻³": r"$\times10^{-3}$", "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%",
    "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    DAGGER: r"$\dagger$", "–": "--", "é": r"\'e", "*": r"$^*$", "[": "{[}", "]": "{]}",
}  # fmt: skip


def _tex(text: str) -> str:
    return re.sub("|".join(map(re.escape, _LATEX)), lambda found: _LATEX[found[0]], text)


_FORMS = {
    "markdown": {
        "escape": lambda text: text.replace("|", "\\|").replace("*", "\\*"), "up": " ↑", "down": " ↓",
        "label": str, "heads": " | ", "join": " | ", "each": " ---: |", "first": None, "last": None,
        "head": "### %(title)s\n\n| | %(labels)s |\n| --- |%(each)s", "group": "| *%(title)s* |%(gaps)s",
        "row": "| %(name)s | %(cells)s |", "cell": "%s", "bold": "**%s**", "small": " %s", "end": "", "note": "- %s",
    },
    "latex": {
        "escape": _tex, "up": r" $\uparrow$", "down": r" $\downarrow$", "label": _tex, "heads": " & ", "join": " & ",
        "each": "r",
        "first": "% needs \\usepackage{booktabs}", "last": None,
        "head": "\\begin{tabular}{l%(each)s}\n\\toprule\n%(title)s & %(labels)s \\\\",
        "group": "\\midrule\n\\multicolumn{%(width)d}{l}{\\emph{%(title)s}} \\\\",
        "row": r"%(name)s & %(cells)s \\", "cell": "%s", "bold": r"\textbf{%s}", "small": " %s",
        "end": "\\bottomrule\n\\end{tabular}\n", "note": r"\par\footnotesize %s",
    },
    "html": {
        "escape": escaping.escape, "up": " ↑", "down": " ↓", "label": escaping.escape, "heads": "</th><th>",
        "join": "", "each": "",
        "first": '<div class="gcgkit-table">', "last": "</div>",
        "head": "<h4>%(title)s</h4><table><thead><tr><th></th><th>%(labels)s</th></tr></thead><tbody>",
        "group": '<tr><th colspan="%(width)d" style="text-align:left"><i>%(title)s</i></th></tr>',
        "row": "<tr%(style)s><th>%(name)s</th>%(cells)s</tr>", "cell": "<td>%s</td>", "bold": "<b>%s</b>",
        "small": "<br><small>%s</small>", "end": "</tbody></table>", "note": "<p>%s</p>",
    },
}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Render results from the command line and return an exit code."""
    about = "Table 1 from results, ours below the paper's."
    parser = argparse.ArgumentParser(prog="python -m gcgkit.evaluation.table", description=about)
    parser.add_argument("results", nargs="*", type=Path, help="folders of results, or results.jsonl files")
    parser.add_argument("--format", choices=FORMATS, default="markdown", help="markdown, latex or html (markdown)")
    parser.add_argument("--out", type=Path, help="file to write; the terminal by default")
    args = parser.parse_args(argv)
    return run_reporting_errors(lambda: _show(args))


def _show(args: argparse.Namespace) -> None:
    text = render([record for path in args.results for record in read_results(path)], args.format)
    if args.out is None:
        print(text, end="")
    else:
        write_text(args.out, text)
        print(f"The table: {args.out}")


if __name__ == "__main__":
    sys.exit(main())
