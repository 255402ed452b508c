"""Sphinx's settings for the book. `make.py` gathers the pages and calls Sphinx with this file."""

import hashlib
import json
import re
import tomllib
from base64 import b64decode
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ADDRESS = PROJECT.get("urls", {}).get("Repository", "").rstrip("/")

project, author, release = PROJECT["name"], PROJECT["authors"][0]["name"], PROJECT["version"]
copyright = author
html_title = f"{project} {release}"
extensions = ["myst_nb"]

# The notebooks are shown as they were stored. Nothing runs.
nb_execution_mode = "off"
nb_render_markdown_format = "gfm"  # for tables in outputs
nb_code_prompt_show, nb_code_prompt_hide = "Show {type}", "Hide {type}"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
html_math_renderer = "mathml"

# Names in docstrings stand between single backticks.
default_role = "py:obj"
add_module_names = False
python_maximum_signature_line_length = 100

html_theme = "furo"
html_theme_options = {"navigation_with_keys": True}
if ADDRESS:
    html_theme_options["footer_icons"] = [{"name": "Source", "url": ADDRESS, "html": "Source", "class": ""}]
html_static_path, html_css_files = ["static"], ["book.css"]
html_show_sourcelink = html_copy_source = False


def mathml(tex: str, display: str) -> str:
    """Return a formula as MathML, which browsers show without a script and without a network."""
    number = re.search(r"\\tag\{(\w+)\}", tex)
    formula = convert(tex.replace(number[0], "") if number else tex, display=display)
    return formula if display == "inline" else f'<div class="math">{formula}{_label(number)}</div>\n'


def _label(number: re.Match | None) -> str:
    return f'<span class="eqno">({number[1]})</span>' if number else ""


def visit_inline(self, node) -> None:
    self.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def visit_block(self, node) -> None:
    self.body.append(mathml(node.astext(), "block"))
    raise nodes.SkipNode


_told: dict[str, str] = {}  # alternative texts of the notebooks' pictures, by the SHA-256 of the picture


def read_alternatives(app, page: str, source: list[str]) -> None:
    """Note the alternative text that a notebook keeps beside each picture. MyST-NB drops it."""
    if page.startswith("notebooks/"):
        for cell in json.loads(source[0])["cells"]:
            for output in cell.get("outputs", []):
                for kind, about in output.get("metadata", {}).items():
                    if kind.startswith("image/") and "alt" in about:
                        data = b64decode("".join(output["data"][kind]))
                        _told[hashlib.sha256(data).hexdigest()] = about["alt"]


def tell_alternatives(app, document) -> None:
    """Give pictures their alternative text: MyST-NB names each file by its SHA-256."""
    for picture in document.findall(nodes.image):
        if text := _told.get(Path(picture["uri"]).stem):
            picture["alt"] = text


def setup(app) -> None:
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    app.connect("source-read", read_alternatives)
    app.connect("doctree-read", tell_alternatives)
