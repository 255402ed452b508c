"""Table 1: the paper's numbers and, below them, ours if there are results, as Markdown, LaTeX and HTML."""

from __future__ import annotations

from pathlib import Path

from gcgkit.evaluation import run as evaluation
from gcgkit.evaluation import table
from gcgkit.utils.files import write_text

SUFFIXES = {"markdown": "md", "latex": "tex", "html": "html"}


def write(results: Path, out: Path) -> list[Path]:
    """Write the table in all formats into a folder; without results it has only the paper's numbers."""
    try:
        records = evaluation.read_results(results)
    except FileNotFoundError:
        records = []
        print(f"Table 1: {results} holds no results, so the paper's numbers stand alone; gcgkit evaluate makes some.")
    out.mkdir(parents=True, exist_ok=True)
    built, paths = table.build(records), []
    for form in table.FORMATS:
        paths.append(out / f"table1.{SUFFIXES[form]}")
        write_text(paths[-1], built.text(form))
    return paths
