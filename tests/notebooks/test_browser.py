"""A real browser: JupyterLab opens notebooks in Chromium, runs them, and a dragged slider changes the picture.

The Chromium is one that is installed, or QtWebEngine's, which PyPI has (``pip install PyQt6-WebEngine`` or
``PySide6_WebEngine``); neither needs a screen. Both are driven through their debugging port. The test is skipped, and
says why, where neither starts.
"""

import importlib.util
import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
# A notebook with each widget: up to it the notebook runs in seconds with these knobs in place of its own.
KNOBS = {
    "00_start_here": {"frames": 5, "steps": 1},
    "01_color_spaces_and_gray": {},
    "04_the_gate": {},
}
WIDGETS = ("before_after", "explore", "gate_explorer")
INSTALLED = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
BINDINGS = ("PyQt6", "PySide6")  # of Qt; either has QtWebEngine in a package of its own
# A window with one empty page; the environment says where its debugging port is.
QT_WINDOW = """
from {0}.QtCore import QUrl
from {0}.QtWebEngineCore import QWebEnginePage, QWebEngineProfile
from {0}.QtWebEngineWidgets import QWebEngineView
from {0}.QtWidgets import QApplication
application = QApplication(["test"])
view = QWebEngineView()
profile = QWebEngineProfile(view)  # off the record: no file outlives the test
view.setPage(QWebEnginePage(profile, view))
view.resize(1200, 900)
view.show()
view.load(QUrl("about:blank"))
application.exec()
"""
# A notebook with a canvas to paint on; its last cell tells what the kernel knows of the strokes.
BOARD = (
    "import numpy as np\nfrom gcgkit.lessons import canvas\n"
    "board = canvas.Board(np.full((64, 112), 128, np.uint8), radius=4)\nboard",
    'print(f"{len(board.strokes)} strokes, {np.ptp(board.painted, -1).any(0).sum()} columns painted")',
)
CANVAS = """(() => {
  const canvas = document.querySelector('.jp-OutputArea canvas');
  if (!canvas || !document.querySelector('.jp-OutputArea textarea')) return null;
  canvas.scrollIntoView({block: 'center'});
  const box = canvas.getBoundingClientRect();
  return [box.x, box.y, box.width, box.height];
})()"""
RUN_LAST = """(() => {
  const [notebook] = [...window.jupyterapp.shell.widgets('main')].filter(x => x.sessionContext);
  notebook.content.activeCellIndex = notebook.content.widgets.length - 1;
  window.jupyterapp.commands.execute('notebook:run-cell');
})()"""
# What the picture looks like, as text: its pixels at a small size.
PIXELS = """(() => {
  const picture = document.querySelector('img.widget-image');
  if (!picture || !picture.complete || !picture.naturalWidth) return '';
  const canvas = Object.assign(document.createElement('canvas'), {width: 96, height: 64});
  canvas.getContext('2d').drawImage(picture, 0, 0, 96, 64);
  return canvas.toDataURL();
})()"""
HANDLE = """(() => {
  const handle = document.querySelector('.noUi-handle');
  if (!handle) return null;
  handle.scrollIntoView({block: 'center'});
  const box = handle.getBoundingClientRect(), track = handle.closest('.noUi-target').getBoundingClientRect();
  return [box.x + box.width / 2, box.y + box.height / 2, track.x, track.width];
})()"""
# The notebook is the current one, and its kernel has started.
READY = """(() => {
  const shell = window.jupyterapp.shell, [notebook] = [...shell.widgets('main')].filter(x => x.sessionContext);
  if (notebook) shell.activateById(notebook.id);
  return Boolean(notebook) && notebook.sessionContext.session?.kernel?.status === 'idle';
})()"""
TEXTS = "[...document.querySelectorAll('.jp-OutputArea-output')].map(x => x.innerText).join(' ').slice(-2000)"

pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def stop(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(60)


def commands(port: int, folder: Path):
    """(name, command, environment) of each Chromium that may be here."""
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]  # asks nobody
    flags += ["--window-size=1200,900", f"--user-data-dir={folder}", f"--remote-debugging-port={port}", "about:blank"]
    for name in INSTALLED:
        if path := shutil.which(name):
            yield name, [path, *flags], os.environ
    qt = {"QT_QPA_PLATFORM": "offscreen", "QTWEBENGINE_CHROMIUM_FLAGS": "--disable-gpu"}
    qt |= {"QTWEBENGINE_DISABLE_SANDBOX": "1", "QTWEBENGINE_REMOTE_DEBUGGING": str(port)}  # no sandbox runs as root
    for binding in BINDINGS:
        if importlib.util.find_spec(binding) and importlib.util.find_spec(f"{binding}.QtWebEngineWidgets"):
            yield binding, [sys.executable, "-c", QT_WINDOW.format(binding)], os.environ | qt


def page_of(process: subprocess.Popen, port: int, seconds: float = 60) -> str | None:
    """Address of the debugging socket of a browser's page; None where the browser ends or does not answer."""
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=5) as answer:
                pages = [target for target in json.load(answer) if target["type"] == "page"]
            if pages:
                return pages[0]["webSocketDebuggerUrl"]
        except OSError:
            pass
        time.sleep(0.2)
    return None


@pytest.fixture
def browser(tmp_path_factory):
    """A fresh browser for each notebook: a page with a changed notebook would ask before it lets itself be left."""
    pytest.importorskip("jupyterlab", reason="JupyterLab is not installed")
    folder, tried = tmp_path_factory.mktemp("browser"), []
    port = free_port()
    for name, command, environment in commands(port, folder / "profile"):
        with open(folder / "browser.log", "w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder)
        try:
            if address := page_of(process, port):
                page = Browser(address)
                yield page
                page.socket.close()
                return
            last = (folder / "browser.log").read_text(errors="replace").strip().splitlines()[-1:]
            tried.append(f"{name} does not start: {' '.join(last)}")
        finally:
            stop(process)
    pytest.skip("; ".join(tried) or "no browser here: install Chromium, or pip install PyQt6-WebEngine")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab over copies of the notebooks, each cut after its widget: gives its address."""
    place = tmp_path_factory.mktemp("lab")
    folder = place / "notebooks"
    folder.mkdir()
    for name, knobs in KNOBS.items():
        notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
        end = next(i for i, cell in enumerate(notebook.cells) if any(f"widgets.{w}(" in cell.source for w in WIDGETS))
        notebook.cells = notebook.cells[: end + 1]
        for cell in notebook.cells:
            cell.update({"outputs": [], "execution_count": None} if cell.cell_type == "code" else {})
        for knob, value in knobs.items():
            notebook.cells[2].source += f"\n{knob} = {value}"
        nbformat.write(notebook, folder / f"{name}.ipynb")
    cells = [nbformat.v4.new_code_cell(source) for source in BOARD]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=notebook.metadata), folder / "board.ipynb")
    settings = place / "settings" / "@jupyterlab" / "notebook-extension"
    settings.mkdir(parents=True)
    (settings / "tracker.jupyterlab-settings").write_text(json.dumps({"windowingMode": "none"}))
    port = free_port()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "GCGKIT"))}
    environment |= {"JUPYTERLAB_SETTINGS_DIR": str(place / "settings"), "JUPYTER_CONFIG_DIR": str(place / "none")}
    environment |= {"JUPYTERLAB_WORKSPACES_DIR": str(place / "spaces"), "PYTHONPATH": str(ROOT)}
    options = [
        "--no-browser",
        "--allow-root",
        "--expose-app-in-browser",
        f"--port={port}",
        "--ServerApp.port_retries=0",
    ]
    options += ["--IdentityProvider.token=", f"--ServerApp.root_dir={folder}"]
    options += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", "--LabApp.news_url="]
    with open(place / "lab.log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options], stdout=log, stderr=log, env=environment, cwd=folder
        )
    try:
        address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{address}/api", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline, (place / "lab.log").read_text()
                time.sleep(0.5)
        yield address
    finally:
        stop(server)
        shutil.rmtree(folder, ignore_errors=True)


class PageChangedError(Exception):
    """The page gave way to another one before it answered."""


class Browser:
    """A page that is looked at with JavaScript and moved with the mouse, through Chromium's debugging protocol."""

    def __init__(self, address: str):
        import websocket  # the package websocket-client, which JupyterLab's server needs, too

        # The port answers programs; a page of the web, which states its origin, is refused.
        self.socket = websocket.create_connection(address, timeout=60, suppress_origin=True)
        self.numbers = itertools.count(1)
        # A window that nobody looks at has no focus, and JupyterLab then knows no current notebook.
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)

    def call(self, method: str, **parameters) -> dict:
        """The answer to one command; what the page tells unasked meanwhile is left out."""
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while (answer := json.loads(self.socket.recv())).get("id") != number:
            pass
        message = answer.get("error", {}).get("message", "")
        if "navigated or closed" in message or "context was destroyed" in message:
            raise PageChangedError(message)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def open(self, address: str) -> None:
        self.call("Page.navigate", url=address)

    def run(self, script: str):
        """The value of a script in the page, None where the page is just changing."""
        try:
            return self.call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")
        except PageChangedError:
            return None

    def until(self, script: str, accept=bool, seconds: float = 300):
        """Wait for a value that is accepted."""
        deadline = time.monotonic() + seconds
        while not accept(value := self.run(script)):
            assert time.monotonic() < deadline, f"still {value!r}: {script}\n{self.run(TEXTS)}"
            time.sleep(0.2)
        return value

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Press the left button, move in ten steps, and let go."""
        self._mouse("mouseMoved", start, 0)
        self._mouse("mousePressed", start, 1)
        for i in range(1, 11):
            self._mouse("mouseMoved", [a + (b - a) * i / 10 for a, b in zip(start, end, strict=True)], 1)
        self._mouse("mouseReleased", end, 0)

    def _mouse(self, kind: str, place, buttons: int) -> None:
        x, y = place
        button = "none" if kind == "mouseMoved" and not buttons else "left"
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, buttons=buttons, clickCount=1)


def open_notebook(browser: Browser, lab: str, name: str) -> None:
    """Open a notebook in JupyterLab and run its cells."""
    # A workspace of its own, or JupyterLab opens the notebook before beside it, whose picture comes first.
    browser.open(f"{lab}/lab/workspaces/{name}/tree/{name}.ipynb")
    here = f"location.pathname.endsWith('{name}.ipynb')"
    browser.until(f"{here} && Boolean(window.jupyterapp && document.querySelector('.jp-Notebook .jp-CodeCell'))")
    browser.until(READY, seconds=120)
    browser.run("window.jupyterapp.commands.execute('notebook:run-all-cells'); true")


@pytest.mark.parametrize("name", KNOBS)
def test_a_dragged_slider_changes_the_picture(name, lab, browser):
    open_notebook(browser, lab, name)
    before = browser.until(PIXELS, seconds=900)  # other work may share the machine
    browser.until(HANDLE)
    again = 0.0

    def changed(now):
        nonlocal again
        if now in ("", None, before) and time.monotonic() > again:  # once more where the page moved under the mouse
            again = time.monotonic() + 30
            left, top, start, width = browser.run(HANDLE)
            browser.drag((left, top), (start + 0.9 * width if left < start + width / 2 else start + 0.1 * width, top))
        return now not in ("", None, before)

    browser.until(PIXELS, changed)


def test_what_is_painted_on_the_canvas_reaches_the_kernel(lab, browser):
    open_notebook(browser, lab, "board")
    browser.until(TEXTS, lambda text: "0 strokes, 0 columns" in (text or ""), seconds=300)
    browser.until(CANVAS)
    time.sleep(1)  # until the page has scrolled
    left, top, width, height = browser.run(CANVAS)
    middle = top + height / 2
    browser.drag((left + 0.25 * width, middle), (left + 0.75 * width, middle))

    def painted(text):
        browser.run(RUN_LAST)
        return any(int(x) >= 56 for x in re.findall(r"(\d+) columns painted", text or ""))

    browser.until(TEXTS, painted)  # half the width, and the brush's radius on both sides
