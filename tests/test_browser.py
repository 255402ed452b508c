"""A real browser: JupyterLab opens two notebooks in Chromium, runs them, and a dragged slider changes the picture.

The Chromium is QtWebEngine's, drawn off screen. It is large, so it is no dependency: without ``PyQt6-WebEngine``, or a
library of the system that it needs, the test is skipped and says so.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
# Up to its widget each notebook runs in seconds with these knobs in place of its own.
KNOBS = {"00_start_here": {"frames": 5, "steps": 1}, "04_the_gate": {}}
WIDGETS = ("before_after", "gate_explorer")
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
TEXTS = "[...document.querySelectorAll('.jp-OutputArea-output')].map(x => x.innerText).join(' ').slice(-2000)"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def application():
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    os.environ.setdefault("QTWEBENGINE_DISABLE_SANDBOX", "1")  # Chromium's own sandbox refuses to run as root
    os.environ.setdefault("QTWEBENGINE_CHROMIUM_FLAGS", "--disable-gpu")
    why = "no browser here: pip install PyQt6-WebEngine brings one"
    pytest.importorskip("PyQt6.QtWebEngineWidgets", reason=why, exc_type=ImportError)
    pytest.importorskip("jupyterlab", reason="JupyterLab is not installed")
    from PyQt6.QtWidgets import QApplication

    return QApplication.instance() or QApplication(["test"])


@pytest.fixture
def lab(tmp_path):
    """JupyterLab over copies of the notebooks, each cut after its widget: gives its address."""
    folder = tmp_path / "notebooks"
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
    settings = tmp_path / "settings" / "@jupyterlab" / "notebook-extension"
    settings.mkdir(parents=True)
    (settings / "tracker.jupyterlab-settings").write_text(json.dumps({"windowingMode": "none"}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "GCGKIT"))}
    environment |= {"JUPYTERLAB_SETTINGS_DIR": str(tmp_path / "settings"), "JUPYTER_CONFIG_DIR": str(tmp_path / "none")}
    environment |= {"JUPYTERLAB_WORKSPACES_DIR": str(tmp_path / "spaces"), "PYTHONPATH": str(ROOT)}
    options = [
        "--no-browser",
        "--allow-root",
        "--expose-app-in-browser",
        f"--port={port}",
        "--ServerApp.port_retries=0",
    ]
    options += ["--IdentityProvider.token=", f"--ServerApp.root_dir={folder}"]
    options += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", "--LabApp.news_url="]
    with open(tmp_path / "lab.log", "w") as log:
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
                assert server.poll() is None and time.monotonic() < deadline, (tmp_path / "lab.log").read_text()
                time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


class Browser:
    """A page that is looked at with JavaScript and moved with the mouse."""

    def __init__(self, address: str):
        from PyQt6.QtCore import QUrl
        from PyQt6.QtWebEngineCore import QWebEnginePage, QWebEngineProfile
        from PyQt6.QtWebEngineWidgets import QWebEngineView

        self.view = QWebEngineView()
        self.profile = QWebEngineProfile(self.view)  # off the record: no file outlives the test
        self.view.setPage(QWebEnginePage(self.profile, self.view))
        self.view.resize(1200, 900)
        self.view.show()
        self.view.load(QUrl(address))

    def run(self, script: str):
        """The value of a script in the page."""
        from PyQt6.QtTest import QTest

        found = []
        self.view.page().runJavaScript(script, found.append)
        while not found:
            QTest.qWait(10)
        return found[0]

    def until(self, script: str, accept=bool, seconds: float = 300):
        """Wait for a value that is accepted."""
        from PyQt6.QtTest import QTest

        deadline = time.monotonic() + seconds
        while not accept(value := self.run(script)):
            assert time.monotonic() < deadline, f"still {value!r}: {script}\n{self.run(TEXTS)}"
            QTest.qWait(200)
        return value

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Press the left button, move in ten steps, and let go."""
        from PyQt6.QtCore import QPoint, Qt
        from PyQt6.QtTest import QTest

        target = self.view.focusProxy()
        QTest.mousePress(target, Qt.MouseButton.LeftButton, pos=QPoint(*map(round, start)))
        for i in range(1, 11):
            point = [a + (b - a) * i / 10 for a, b in zip(start, end, strict=True)]
            QTest.mouseMove(target, QPoint(*map(round, point)), 30)
        QTest.mouseRelease(target, Qt.MouseButton.LeftButton, pos=QPoint(*map(round, end)), delay=30)

    def close(self) -> None:
        self.view.page().deleteLater()
        self.view.close()


@pytest.mark.parametrize("name", KNOBS)
def test_a_dragged_slider_changes_the_picture(name, lab, application):
    browser = Browser(f"{lab}/lab/tree/{name}.ipynb")
    try:
        browser.until("Boolean(window.jupyterapp && document.querySelector('.jp-Notebook .jp-CodeCell'))", seconds=120)
        ready = "window.jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
        browser.until(ready, seconds=120)
        browser.run("window.jupyterapp.commands.execute('notebook:run-all-cells'); true")
        before = browser.until(PIXELS)
        left, top, start, width = browser.until(HANDLE)
        left, top, start, width = browser.run(HANDLE)  # where it lies once the page has scrolled
        browser.drag((left, top), (start + 0.9 * width if left < start + width / 2 else start + 0.1 * width, top))
        browser.until(PIXELS, lambda now: now not in ("", before), seconds=60)
    finally:
        browser.close()
