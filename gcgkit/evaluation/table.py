"""Table 1 (§4.4): the paper's numbers and ours, one row per method, in Markdown, LaTeX or HTML.

    print(render(read_results("results")))                 # Markdown; Table(...) shows itself in a notebook
    python -m gcgkit.evaluation.table results --format latex --out table1.tex

The paper's digits are those printed (``table1.json``). A row with another setting than the paper's, be it the data,
the number of frames or the weights, has a dagger at its name and at every number, so that no part of it can be taken
for a number at the paper's scale. In each group the best is bold; the truth and plain gray are scales, not
competitors. Each of our numbers is a mean over seeds and clips, with its bootstrap interval over clips; FID and
FD-EfficientNet are one number for all frames, without an interval. The last rows pair Ours with each ablation, with
Student's t interval of the differences, since a bootstrap over few clips is too narrow.
"""

import argparse
import html as escaping
import json
import re
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
from .columns import METRICS, Metric, set_distance
from .footnotes import Notes, footnotes
from .rows import RowKey, clip_values, group_rows, paired_differences, row_differences, row_label, side_by_side
from .run import NO_COLOR, TRUTH, bootstrap_interval, read_results, t_interval

DAGGER = "†"
FORMATS = ("markdown", "latex", "html")
PRINTED_PSNR = "psnr"  # the paper does not define its PSNR, so it has its own column
SCALES = (TRUTH, "gray")
_SETS = {"davis": "DAVIS", "davis-test-dev": "DAVIS", "ldv3": "LDV3", "ldv-test": "LDV3", "ldv": "LDV3"}
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

    def text(self, form: str = "markdown") -> str:
        """Return GitHub's Markdown, LaTeX (a ``tabular`` for each section, with booktabs), or HTML without scripts.

        Raises ValueError for a form that is none of `FORMATS`.
        """
        if form not in FORMATS:
            raise ValueError(f"form must be one of {', '.join(FORMATS)}, not {form!r}.")
        return _write(self, _FORMS[form])

    def html(self) -> str:
        """Return HTML tables, for a notebook."""
        return self.text("html")

    _repr_html_ = html


@lru_cache(maxsize=1)
def paper() -> dict:
    """Return Table 1 as printed: "methods", "metrics", and for each of "datasets" the "values" as strings of digits."""
    return json.loads(resources.files(__package__).joinpath("table1.json").read_text(encoding="utf-8"))


def build(results: Iterable[dict], *, metrics: Sequence[str] | None = None) -> Table:
    """Build the table from records of `run.read_results`, beside the paper's two halves.

    metrics: names of the columns to show; all by default.
    """
    records = list(results)
    shown = [name for name in METRICS if any(name in r["metrics"] or name in r["not_measured"] for r in records)]
    columns = [column for column in _columns(shown) if metrics is None or column[0] in metrics]
    notes = Notes()
    groups: dict[str, list[Group]] = {key: [_paper_group(key, columns)] for key in paper()["datasets"]}
    groups[""] = []
    together = side_by_side(records)
    names = [ours[0]["set"]["name"] for ours in together]
    for name, ours in zip(names, together, strict=True):
        half = _SETS.get(name.lower(), next((h for s, h in _SETS.items() if name.lower().startswith(s)), ""))
        groups[half] += _our_groups(ours, columns, notes, name_first=names.count(name) > 1)
    titles = {key: about["label"] for key, about in paper()["datasets"].items()}
    sections = [(titles.get(key, "Other clips"), found) for key, found in groups.items() if found]
    marked = any(row.marked for _, found in sections for group in found for row in group.rows)
    return Table(columns, sections, [*_explain(records, marked), *notes.texts])


def render(results: Iterable[dict], form: str = "markdown") -> str:
    """Return the table as text in one of `FORMATS`. Raises ValueError for another."""
    return build(results).text(form)


def below_paper_scale(records: Sequence[dict]) -> list[str]:
    """Return the reasons why one method's records on one set are not at the paper's scale; empty if they are."""
    return [*_set_reasons(records), *_weight_reasons(records)]


def _set_reasons(records: Iterable[dict]) -> list[str]:
    """Return what these records' clips lack of the paper's test set."""
    clips = {r["clip"]: r for r in records}
    about, frames = next(iter(clips.values()))["set"], sum(r.get("frames", 0) for r in clips.values())
    half = _SETS.get(about["name"].lower())
    wanted = {"clips": len(clips), "frames": frames, **paper()["datasets"].get(half, {})}
    count = f"{len(clips)} clip{'s' * (len(clips) != 1)}"
    found = {
        f"{about['name']} is not one of the paper's test sets": half is None,
        f"{count} instead of {wanted['clips']}": len(clips) != wanted["clips"],
        f"{count} chosen by name": half and about["chosen"] and len(clips) == wanted["clips"],
        f"{frames} frames instead of all": half and (about["limit"] is not None or frames != wanted["frames"]),
        "another size than 448x256": about["size"] != [256, 448],
    }
    return [reason for reason, holds in found.items() if holds]


def _weight_reasons(records: Sequence[dict]) -> list[str]:
    """Return what the weights of our pipeline's records lack; nothing for another method's."""
    identity = records[0]["identity"]
    if identity.get("kind") != "gcg":
        return []
    if identity["profile"] in profiles.BUNDLED:
        return ["the mini model's weights"]
    parameters = min(r["provenance"].get("unet_parameters", 0) for r in records)
    small = f"a UNet of {parameters / 1e6:.1f} million parameters instead of Stable Diffusion's 866"
    return [small] if parameters < _PAPER_PARAMETERS else []


def _columns(shown: list[str]) -> list[tuple[str, str, str]]:
    """Return the paper's metrics in its order, with ours where they are the same, then those that only we have."""
    columns = []
    for name, about in paper()["metrics"].items():
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


def _our_groups(records: list[dict], columns, notes: Notes, name_first: bool) -> list[Group]:
    """Return our rows on one set, each method with the configuration of its measurement, and the paired differences.

    name_first: True if the title names the first measured frame, to distinguish groups of one set.
    """
    about, there = records[0]["set"], [r for r in records if not r.get("absent")]
    by_row = group_rows(there)
    truth = {r["clip"]: r for r in records if r["method"] == TRUTH}
    clips = truth or {r["clip"]: r for r in there}
    labels = {row: row_label(row, apart) for row, apart in row_differences(by_row).items()}
    names = {name for name, _ in by_row}
    absent = {(r["method"], ""): r["absent"] for r in records if r.get("absent") and r["method"] not in names}
    order = [*SCALES, "transfer", "flow", *paper()["methods"]]
    rank = lambda row: (order.index(row[0]) if row[0] in order else len(order), row)  # noqa: E731
    weights = {row: _weight_reasons(own) for row, own in by_row.items() if own[0]["identity"].get("kind") == "gcg"}
    common = next(iter(weights.values()), []) if len(set(map(tuple, weights.values()))) == 1 else []
    shown = [column for column, _, _ in columns]
    rows = []
    for row in sorted({**by_row, **absent}, key=rank):
        if row in absent:
            cell = Cell("not measured", note=notes.letter(absent[row]))
            rows.append(Row(f"{row[0]} {DAGGER}", [cell] * len(columns), True, False))
            continue
        own, title = by_row[row], labels[row]
        count, seeds = len({r["clip"] for r in own}), len({r["key"] for r in own})
        marked = bool(below_paper_scale(own))
        cells = [_our_cell(column, own, truth, notes, marked) for column in shown]
        title += f" ({count} of {len(clips)} clips)" if count < len(clips) else ""
        title += f" ({len(own)} of {count * seeds} runs)" if len(own) < count * seeds else ""
        title += f" {DAGGER}" if marked else ""
        title += "".join(f" ({notes.letter(reason)})" for reason in weights.get(row, []) if reason not in common)
        gray = row[0] not in SCALES and all(NO_COLOR in r["notes"] for r in own)
        if gray and "colorfulness" in shown:
            place, letter = shown.index("colorfulness"), notes.letter(f"{NO_COLOR}: no competitor, as gray is none")
            cells[place] = replace(cells[place], note=letter)
        rows.append(Row(title, cells, marked, row[0] not in SCALES and not gray and count == len(clips)))
    _mark_best(rows, columns)
    reasons = [*(_set_reasons(clips.values()) if there else []), *common]
    size = f"{about['size'][1]}x{about['size'][0]}" if about["size"] else "own size"
    frames, first = ([r[k] for r in clips.values()] for k in ("frames", "first"))
    title = f"Measured here on {about['name']}: {len(clips)} clips, {sum(frames)} frames, {size}"
    title += f", from frame {', '.join(sorted({str(n) for n in first}))} on" if name_first else ""
    title += f". {DAGGER} not at the paper's scale: {'; '.join(reasons)}" if reasons else ""
    return [Group(title, rows), *_paired_groups(by_row, labels, shown)]


def _paired_groups(by_row: Mapping[RowKey, list[dict]], labels, shown: list[str]) -> list[Group]:
    """Return a group with the mean difference of Ours from each ablation on the same clips, or nothing without both."""
    ours, *ablations = [name for name in paper()["methods"] if name.startswith("Ours")]
    rows = []
    for mine, other in ((a, b) for a in by_row if a[0] == ours for b in by_row if b[0] in ablations):
        pair, marked = (by_row[mine], by_row[other]), any(below_paper_scale(by_row[row]) for row in (mine, other))
        values = {n: paired_differences(*pair, n) for n in shown if n in METRICS and METRICS[n].kind != "set"}
        cells = [_mean_cell(values[n], METRICS[n], marked, paired=True) if values.get(n) else Cell() for n in shown]
        rows.append(Row(f"{labels[mine]} − {labels[other]}{f' {DAGGER}' if marked else ''}", cells, marked, False))
    title = "Ours minus each ablation on the same clips: mean difference, 95% t interval over clips"
    return [Group(title, rows)] if rows else []


def _our_cell(name: str, records: list[dict], truth: dict, notes: Notes, marked: bool) -> Cell:
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
        lacking = {r["clip"] for r in records if name not in r["metrics"]}
        where = f" on {len(lacking)} of {len({r['clip'] for r in records})} clips" if having else ""
        return Cell("not measured", note=notes.letter(f"not measured{where}: {reason}"))
    if metric.kind != "set":
        return _mean_cell(list(clip_values(having, name).values()), metric, marked)
    distances = []
    try:
        for key in dict.fromkeys(r["key"] for r in having):  # a seed's own frames against the truth
            side = [r for r in having if r["key"] == key]
            files = [[r["metrics"][name] for r in part] for part in (side, [truth[r["clip"]] for r in side])]
            distances.append(set_distance(Path(side[0]["folder"]), *files))
    except (KeyError, OSError, ValueError):
        return Cell("not measured", note=notes.letter(f"the features of {metric.label} are no longer in the cache"))
    return Cell(f"{np.mean(distances):.{metric.digits}f}{DAGGER if marked else ''}")


def _mean_cell(values: list[float], metric: Metric, marked: bool, paired: bool = False) -> Cell:
    """Return the mean over clips with its bootstrap interval; of paired differences with signs and the t interval."""
    scaled, form = [value * metric.factor for value in values], f"{'+' if paired else ''}.{metric.digits}f"
    interval = (t_interval if paired else bootstrap_interval)(scaled)
    bounds = f"[{', '.join(f'{bound:{form}}' for bound in interval)}]" if interval else ""
    return Cell(f"{np.mean(scaled):{form}}{DAGGER if marked else ''}", bounds)


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
                rows[i].cells[index] = replace(rows[i].cells[index], best=True)


def _explain(records: list[dict], marked: bool) -> list[str]:
    """Explain the table in sentences."""
    source = f"Paper: {paper()['source']}. " + "; ".join(f"{k}: {v}" for k, v in paper()["notes"].items()) + "."
    if not records:
        return [source]
    first = sorted({r["first"] for r in records if "first" in r})
    ours = (
        "Ours: means over clips of means over seeds and frames, with 95% bootstrap intervals over clips, which are too "
        f"narrow for few clips; from frame {', '.join(map(str, first))} on (frame 0 is the exemplar). FID and "
        "FD-EfficientNet are one number for "
        "all frames. ST-LPIPS is not LPIPS, FD-EfficientNet is not FID. The truth and gray are scales, no "
        "competitors: gray or frozen output is often steadier than the truth. Bold: best of the group."
    )
    warning = [f"{DAGGER} not at the paper's scale, and not to be compared with its numbers."] if marked else []
    return [source, ours, *footnotes(records), *warning]


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
    DAGGER: r"$\dagger$", "–": "--", "−": "$-$", "é": r"\'e", "*": r"$^*$", "[": "{[}", "]": "{]}",
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
