"""The book: built from a fresh environment without a warning, and read in a browser as a student reads it."""

import functools
import http.server
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import zlib
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest

import gcgkit
from gcgkit.lessons import notebook as lesson

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "notebooks"))

from test_browser import browser  # noqa: E402, F401

STAMP = ".venv-book/.ready"
HOME = "https://github.com/ann/kit"
# Modules, and the names of them that users rely on.
PUBLIC = {
    "guidance": ["GatedColorGuidance", "GatedColorGuidance.forward", "GuidanceOutput"],
    "keyframes": ["pairwise_dissimilarity", "select_keyframes"],
    "attention": ["JointSelfAttention"],
    "srg": ["select_references", "make_grid"],
    "color": ["to_gray", "merge_luminance"],
    "metrics": "psnr_rgb psnr_luma colorfulness cdc lpips musiq clip_iqa fid flow_warp_error".split(),
    "baselines": ["propagate_by_flow", "global_transfer"],
    "video": ["read", "write", "Video"],
}
METHODS = ["from_pretrained", "__call__", "stream", "color_keyframes", "color_remaining"]
NAMES = [f"{module}.{name}" for module, names in PUBLIC.items() for name in names]
NAMES += ["GCGPipeline", "GCGOutput", "GuidedControlNet", "GuidedControlNet.from_unet", "GuidedControlNet.forward"]
NAMES += [f"GCGPipeline.{name}" for name in METHODS]
# Pictures that are there, that have loaded, and that are told in words.
PICTURES = """(() => {
  const all = [...document.querySelectorAll('article img')];
  const told = all.filter(x => x.alt.length > 15 && !x.alt.includes('_images'));
  return JSON.stringify([all.length, all.filter(x => x.complete && x.naturalWidth > 0).length, told.length]);
})()"""
FOLDED = """JSON.stringify(['solution', 'check'].map(tag => [...document.querySelectorAll(`.tag_${tag}`)].map(
  x => x.querySelector('details:not([open]) .cell_input pre')?.checkVisibility() === false)))"""

pytestmark = pytest.mark.slow


def build(root: Path, folder: Path) -> None:
    """Build the book of the project in ``root``, where whatever asks the network gets no answer."""
    offline = os.environ | {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    command = [ROOT / ".venv-book" / "bin" / "python", "book/make.py", "--out", folder]
    done = subprocess.run(command, cwd=root, env=offline, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert done.stdout.startswith("Book: ")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The folder of a book that was built now."""
    # A make that runs this test leaves its own options in the environment.
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MAKE") and name != "MFLAGS"}
    tools = subprocess.run(["make", STAMP], cwd=ROOT, env=plain, capture_output=True, text=True)
    if tools.returncode and not os.environ.get("CI"):
        pytest.skip(f"the book's tools cannot be installed here: {(tools.stderr.splitlines() or ['no message'])[-1]}")
    assert tools.returncode == 0, tools.stderr
    folder = tmp_path_factory.mktemp("book")
    build(ROOT, folder)
    return folder


@pytest.fixture(scope="module")
def address(site):
    """Where the book is served."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def inventory(site) -> dict[str, str]:
    """Pages of the names that the book describes, as other projects' books find them."""
    data = (site / "objects.inv").read_bytes()
    lines = zlib.decompress(data.split(b"zlib.\n", 1)[1]).decode().splitlines()
    entries = (line.split(" ", 4) for line in lines)
    return {name: uri.replace("$", name) for name, role, _, uri, _ in entries if role.startswith("py:")}


class Signature(HTMLParser):
    """Names of the arguments in the signature whose anchor is ``name``."""

    def __init__(self, name: str):
        super().__init__()
        self.name, self.inside, self.in_argument, self.arguments = name, False, False, []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.inside |= attributes.get("id") == self.name
        if self.inside and tag == "em":
            self.in_argument = True

    def handle_data(self, data):
        if self.in_argument and re.fullmatch(r"\w+", data):
            self.arguments.append(data)
            self.in_argument = False

    def handle_endtag(self, tag):
        if tag == "dt":
            self.inside = False


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_has_each_public_name_with_its_arguments(name, site, inventory):
    page, anchor = inventory[f"gcgkit.{name}"].split("#")
    found = functools.reduce(getattr, name.split("."), gcgkit)
    own = inspect.unwrap(found.__init__ if inspect.isclass(found) else getattr(found, "__func__", found))
    wanted = [argument for argument in inspect.signature(own).parameters if argument not in ("self", "cls")]
    shown = Signature(anchor)
    shown.feed((site / page).read_text(encoding="utf-8"))
    assert shown.arguments == wanted


def test_the_book_has_every_notebook_and_asks_nobody(site):
    assert {path.stem for path in (site / "notebooks").glob("*.html")} == set(lesson.SERIES)
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert not re.findall(r"<(?:script|link|img|video|source|iframe)\b[^>]*(?:src|href)=[\"']?(?:https?:)?//", text)


def test_an_address_in_pyproject_reaches_the_book(site, tmp_path):
    ignored = shutil.ignore_patterns(".*", "build", "*.safetensors", "__pycache__", "tests", "runs", "data")
    shutil.copytree(ROOT, tree := tmp_path / "tree", ignore=ignored)
    project = tree / "pyproject.toml"
    text, count = re.subn(r"^(# )?Repository = .*$", f'Repository = "{HOME}"', project.read_text(), flags=re.MULTILINE)
    assert count == 1
    project.write_text(text)
    stamp = ["notebooks/execute.py", "--stamp", *map(str, sorted((tree / "notebooks").glob("*.ipynb")))]
    subprocess.run([sys.executable, *stamp], cwd=tree, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    build(tree, tmp_path / "site")
    page = (tmp_path / "site" / "notebooks" / "04_the_gate.html").read_text(encoding="utf-8")
    colab = (
        f"https://colab.research.google.com/github/{HOME.partition('.com/')[2]}/blob/main/notebooks/04_the_gate.ipynb"
    )
    assert re.search(rf'<a [^>]*href="{re.escape(colab)}">Open in Colab</a>', page)
    assert "https://mybinder.org/v2/gh/" in page and f'href="{HOME}"' in page
    assert "git+https://github.com" in page and "set GCGKIT_SOURCE" not in page
    test_the_book_has_every_notebook_and_asks_nobody(tmp_path / "site")


def test_a_reader_searches_follows_links_and_sees_pictures(address, browser):  # noqa: F811
    browser.open(f"{address}/search.html?q=dissimilarity")
    wanted = ("notebooks/05_keyframes.html", "api/keyframes.html")
    browser.until(  # the list grows link by link
        "[...document.querySelectorAll('#search-results li a')].map(x => x.href)",
        lambda found: all(any(page in link for link in found or ()) for page in wanted),
        seconds=120,
    )
    browser.run("document.querySelector('#search-results li a[href*=\"05_keyframes\"]').click()")
    browser.until("location.pathname.endsWith('05_keyframes.html') && document.readyState === 'complete'")
    formula = (
        "JSON.stringify([...document.querySelectorAll('div.math math')].map(x => x.getBoundingClientRect().height))"
    )
    assert len(heights := json.loads(browser.run(formula))) == 3 and min(heights) > 15
    browser.run("[...document.querySelectorAll('article a[href*=\"02_latent\"]')][0].click()")
    browser.until("location.pathname.endsWith('02_latent_diffusion.html') && document.readyState === 'complete'")
    assert browser.run("document.querySelector('h1').innerText").startswith("02 ")


@pytest.mark.parametrize("name", lesson.SERIES)
def test_pictures_load_and_answers_are_folded(name, address, browser):  # noqa: F811
    stored = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    tags = [tag for cell in stored.cells for tag in cell.metadata.get("tags", [])]
    outputs = [output.get("data", {}) for cell in stored.cells for output in cell.get("outputs", [])]
    # Where an output has HTML, too, such as a video, the page shows that.
    shown = [kind for data in outputs if "text/html" not in data for kind in data]
    browser.open(f"{address}/notebooks/{name}.html")
    browser.until(f"location.pathname.endsWith('{name}.html') && document.readyState === 'complete'")
    count, loaded, told = json.loads(browser.run(PICTURES))
    assert count == loaded == told >= sum(kind in ("image/png", "image/jpeg") for kind in shown) > 0
    assert browser.run("[...document.querySelectorAll('video')].every(x => x.error === null)")
    solutions, checks = json.loads(browser.run(FOLDED))
    assert solutions == [True] * tags.count("solution") and checks == [True] * tags.count("check")
    assert solutions and checks
