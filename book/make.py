"""Make the book: a static site of the executed notebooks, the guides, and a reference from docstrings.

``make book`` installs Sphinx into an environment of its own and runs this file with it. No notebook runs and nothing is
downloaded: the pages are gathered in a temporary folder, and Sphinx writes the site to ``build/book``. A warning of
Sphinx is an error. gcgkit and PyTorch are not needed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

import conf
import nbformat
import reference
from sphinx.cmd.build import build_main

ROOT = conf.ROOT
GUIDES = {
    "Results and reproduction": [
        "REPRODUCING.md",
        "results/README.md",
        "results/mini/table.md",
        "benchmarks/README.md",
    ],
    "The weights": ["gcgkit/weights/mini/README.md"],
    "Work on it": ["CONTRIBUTING.md", "data_scripts/README.md", "book/README.md", "CHANGELOG.md"],
}
# Names of pages that do not stand where their files stand: the README is the first page of the site.
MOVED = {"README.md": "index.md"}
FOLDED = {"check": "the check's code", "solution": "the solution"}
_LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")


def notebook_pages() -> list[str]:
    return [f"notebooks/{path.name}" for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]


def gather_notebook(source: Path, page: str, pages: set[str]) -> None:
    """Write a notebook as it was executed; what it folds is folded in the book, too."""
    notebook = nbformat.read(ROOT / page, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = relink(source, cell.source, page, pages)
        hidden = cell.metadata.get("jupyter", {})
        folded = (hidden.get("source_hidden", False), hidden.get("outputs_hidden", False))
        tag = {(True, True): "hide-cell", (True, False): "hide-input", (False, True): "hide-output"}.get(folded)
        if tag:
            tags = cell.metadata.get("tags", [])
            what = next((FOLDED[name] for name in tags if name in FOLDED), "the code")
            cell.metadata["tags"] = [*tags, tag]
            cell.metadata["mystnb"] = {f"code_prompt_{way}": f"{way.capitalize()} {what}" for way in ("show", "hide")}
    _write(source / page, nbformat.writes(notebook))


def gather_guide(source: Path, page: str, pages: set[str], more: str = "") -> None:
    """Write a Markdown file of the repository as a page; a file that starts below the first level gets a title."""
    text = relink(source, (ROOT / page).read_text(encoding="utf-8"), page, pages)
    if not text.startswith("# "):
        text = "# Table 1\n\n" + re.sub(r"^#+ ", "## ", text, flags=re.MULTILINE)
    _write(source / MOVED.get(page, page), text + more)


def relink(source: Path, text: str, page: str, pages: set[str]) -> str:
    """Point a page's links at pages of the book. Other files are copied; folders are found at the project's address.

    While the project has no address, a link to a folder becomes plain text. Badges become their words, as the book
    loads no picture from another host. Raises FileNotFoundError for a link that leads nowhere.
    """
    folder = (ROOT / page).parent

    def replace(match: re.Match) -> str:
        target = match["target"]
        if re.match(r"[a-z]+:", target):
            return match[0]
        path = Path(os.path.normpath(folder / target))
        if not path.exists():
            raise FileNotFoundError(f"{page} links to {target}, which is not there: mend the link.")
        name = path.relative_to(ROOT).as_posix()
        if path.is_dir():
            address = f"{conf.ADDRESS}/tree/main/{name}"
            return f"[{match['text']}]({address})" if conf.ADDRESS else match["text"]
        if name not in pages:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, source / name)
        elif name in MOVED:
            target = os.path.relpath(MOVED[name], os.path.dirname(page))
        return f"{match['image']}[{match['text']}]({target}{match['anchor'] or ''})"

    return _LINK.sub(replace, re.sub(r"!\[([^\]]*)\]\(https?:[^)]*\)", r"\1", text))


def contents(caption: str, pages: list[str]) -> str:
    lines = "\n".join(page.rsplit(".", 1)[0] for page in pages)
    return f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{lines}\n```\n"


def gather(source: Path) -> None:
    """Write all pages to the folder that Sphinx reads."""
    notebooks, described = notebook_pages(), reference.pages(ROOT)
    guides = [page for part in GUIDES.values() for page in part]
    pages = {*notebooks, *guides, *MOVED}
    for page in notebooks:
        gather_notebook(source, page, pages)
    for page in guides:
        gather_guide(source, page, pages)
    for page, text in described.items():
        _write(source / page, text)
    parts = {"Notebooks": notebooks, "Reference": list(described), **GUIDES}
    gather_guide(source, "README.md", pages, "".join(contents(*part) for part in parts.items()))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def build(site: Path) -> int:
    """Make the site anew in a folder that is empty, new, or holds an earlier one; return Sphinx's exit status."""
    if site.exists() and any(site.iterdir()) and not (site / "searchindex.js").is_file():
        raise ValueError(f"{site} holds other files than a book: name another folder.")
    with tempfile.TemporaryDirectory() as folder:
        source, cache = Path(folder) / "source", Path(folder) / "cache"
        gather(source)
        shutil.rmtree(site, ignore_errors=True)
        options = ["-b", "html", "-c", str(Path(__file__).parent), "-d", str(cache), "-q", "-W", "--keep-going"]
        status = build_main([*options, str(source), str(site)])
    (site / ".nojekyll").touch()  # GitHub Pages would leave out folders whose names begin with an underscore
    return status


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Make the book from the stored notebooks, the guides and gcgkit's source."
    )
    parser.add_argument("--out", type=Path, default=Path("build/book"), help="folder of the site")
    site, started = parser.parse_args(argv).out, time.monotonic()
    try:
        status = build(site)
    except (ValueError, FileNotFoundError) as error:
        print(f"book: {error}", file=sys.stderr)
        return 1
    if not status:
        size = sum(path.stat().st_size for path in site.rglob("*") if path.is_file()) / 1e6
        print(f"Book: {site / 'index.html'}, {size:.0f} MB, in {time.monotonic() - started:.0f} s")
    return status


if __name__ == "__main__":
    sys.exit(main())
