"""How the table of `table` is written: its rows and cells, and Markdown, LaTeX and HTML made of them."""

from __future__ import annotations

import html as escaping
from dataclasses import dataclass, field

DAGGER = "†"


@dataclass(frozen=True)
class Cell:
    """What stands at a place of the table: digits with an interval, or the letter of the note that says why not."""

    text: str = "–"
    interval: str = ""
    note: str = ""
    best: bool = False


@dataclass
class Row:
    """A method: its name, its cells in the order of the columns, and whether it is at the paper's scale."""

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
        """GitHub's Markdown."""
        return _markdown(self)

    def latex(self) -> str:
        """A ``tabular`` for each section, with booktabs rules."""
        return _latex(self)

    def html(self) -> str:
        """HTML tables, without scripts."""
        return _html(self)

    _repr_html_ = html


def _markdown(table: Table) -> str:
    arrows = {"more": " ↑", "less": " ↓"}
    lines = []
    for title, groups in table.sections:
        lines += [f"### {title}", ""]
        lines.append("| | " + " | ".join(label + arrows.get(better, "") for _, label, better in table.columns) + " |")
        lines.append("| --- |" + " ---: |" * len(table.columns))
        for group in groups:
            lines.append(f"| *{_plain(group.title)}* |" + " |" * len(table.columns))
            for row in group.rows:
                lines.append(f"| {_plain(row.name)} | " + " | ".join(_markdown_cell(cell) for cell in row.cells) + " |")
        lines.append("")
    return "\n".join([*lines, *(f"- {_plain(note)}" for note in table.notes)]) + "\n"


def _plain(text: str) -> str:
    """Text that Markdown takes as it is."""
    return text.replace("|", "\\|").replace("*", "\\*")


def _markdown_cell(cell: Cell) -> str:
    text = f"**{cell.text}**" if cell.best else cell.text
    return " ".join(part for part in (text, cell.interval, f"({cell.note})" if cell.note else "") if part)


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", DAGGER: r"$\dagger$", "–": "--", "×10⁻²": r"$\times10^{-2}$",
    "×10⁻³": r"$\times10^{-3}$", "é": r"\'e", "*": r"$^*$", "[": "{[}", "]": "{]}",
}  # fmt: skip


def _tex(text: str) -> str:
    for whole in ("×10⁻²", "×10⁻³"):
        text = text.replace(whole, {"×10⁻²": "\0", "×10⁻³": "\1"}[whole])
    text = "".join(_LATEX.get(letter, letter) for letter in text)
    return text.replace("\0", _LATEX["×10⁻²"]).replace("\1", _LATEX["×10⁻³"])


def _latex(table: Table) -> str:
    arrows = {"more": r" $\uparrow$", "less": r" $\downarrow$"}
    width = len(table.columns) + 1
    lines = ["% needs \\usepackage{booktabs}"]
    for title, groups in table.sections:
        lines += [rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}", r"\toprule"]
        heads = (_tex(label) + arrows.get(better, "") for _, label, better in table.columns)
        lines.append(f"{_tex(title)} & " + " & ".join(heads) + r" \\")
        for group in groups:
            lines += [r"\midrule", rf"\multicolumn{{{width}}}{{l}}{{\emph{{{_tex(group.title)}}}}} \\"]
            for row in group.rows:
                cells = []
                for cell in row.cells:
                    text = rf"\textbf{{{_tex(cell.text)}}}" if cell.best else _tex(cell.text)
                    note = f"({cell.note})" if cell.note else ""
                    cells.append(" ".join(part for part in (text, _tex(cell.interval), note) if part))
                lines.append(f"{_tex(row.name)} & " + " & ".join(cells) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}", ""]
    return "\n".join([*lines, *(rf"\par\footnotesize {_tex(note)}" for note in table.notes)]) + "\n"


def _html(table: Table) -> str:
    arrows = {"more": " ↑", "less": " ↓"}
    parts = ['<div class="gcgkit-table">']
    for title, groups in table.sections:
        heads = "".join(
            f"<th>{escaping.escape(label)}{arrows.get(better, '')}</th>" for _, label, better in table.columns
        )
        parts.append(f"<h4>{escaping.escape(title)}</h4><table><thead><tr><th></th>{heads}</tr></thead><tbody>")
        for group in groups:
            about = escaping.escape(group.title)
            parts.append(f'<tr><th colspan="{len(table.columns) + 1}" style="text-align:left"><i>{about}</i></th></tr>')
            for row in group.rows:
                style = ' style="color:#666;font-style:italic"' if row.marked else ""
                cells = "".join(_html_cell(cell) for cell in row.cells)
                parts.append(f"<tr{style}><th>{escaping.escape(row.name)}</th>{cells}</tr>")
        parts.append("</tbody></table>")
    parts += [f"<p>{escaping.escape(note)}</p>" for note in table.notes]
    return "\n".join([*parts, "</div>"]) + "\n"


def _html_cell(cell: Cell) -> str:
    text = f"<b>{escaping.escape(cell.text)}</b>" if cell.best else escaping.escape(cell.text)
    small = " ".join(part for part in (escaping.escape(cell.interval), f"({cell.note})" if cell.note else "") if part)
    return f"<td>{text}{f'<br><small>{small}</small>' if small else ''}</td>"
