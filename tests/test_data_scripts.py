"""The scripts of data_scripts/ against a local server that behaves and misbehaves, at small size."""

import hashlib
import importlib.util
import io
import json
import random
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from files_server import serving

from gcgkit.data import captions, catalog
from gcgkit.data import prepare as preparation
from gcgkit.metrics.weights import torch_hub_folder
from gcgkit.utils import download
from gcgkit.utils import hub as hosts

ROOT = Path(__file__).resolve().parents[1]
HUGE = 10**18


@pytest.fixture(scope="module")
def running():
    with serving() as server:
        yield server


@pytest.fixture
def server(running, monkeypatch):
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    running.forget()
    return running


def script(name: str):
    """The main function of a script."""
    if str(ROOT / "data_scripts") not in sys.path:
        sys.path.insert(0, str(ROOT / "data_scripts"))
    spec = importlib.util.spec_from_file_location(f"data_scripts_{name}", ROOT / "data_scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def run(name: str, *arguments) -> int:
    return script(name)([str(a) for a in arguments])


def image(seed: int, suffix: str, size=(24, 40)) -> bytes:
    rng = np.random.default_rng(seed)
    picture = cv2.resize(rng.integers(0, 256, (3, 5, 3), np.uint8), size[::-1], interpolation=cv2.INTER_CUBIC)
    return cv2.imencode(suffix, picture)[1].tobytes()


def video_bytes(seed: int = 0, frames: int = 3) -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        for i in range(frames):
            plane = np.full((24, 16), 40 + 10 * i + seed % 100, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(plane, format="yuv420p")))
        container.mux(stream.encode(None))
    return out.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name, data in files.items():
            file.writestr(name, data)
    return out.getvalue()


def tarred(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as file:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return out.getvalue()


def davis_files(clips: dict[str, int], lists: dict[str, list[str]]) -> dict[str, bytes]:
    """A DAVIS archive's files in the official layout."""
    files = {}
    for seed, (clip, count) in enumerate(clips.items()):
        for i in range(count):
            files[f"DAVIS/JPEGImages/480p/{clip}/{i:05d}.jpg"] = image(100 * seed + i, ".jpg")
            files[f"DAVIS/Annotations/480p/{clip}/{i:05d}.png"] = image(0, ".png", (4, 4))
    for name, members in lists.items():
        files[f"DAVIS/ImageSets/2017/{name}.txt"] = "\n".join(members).encode() + b"\n"
    return files


TRAINVAL = davis_files({"bear": 4, "swan": 3, "cows": 2}, {"train": ["bear", "swan"], "val": ["cows"]})
TESTDEV = davis_files({"aerobatics": 3}, {"test-dev": ["aerobatics"]})
LDV = {"LDV2/001.mkv": video_bytes(1), "LDV2/002.mkv": video_bytes(2), "LDV2/readme.txt": b"hello"}
BSDS = {
    "BSR/BSDS500/data/images/train/100075.jpg": image(1, ".jpg"),
    "BSR/BSDS500/data/images/test/100007.jpg": image(2, ".jpg"),
    "BSR/BSDS500/data/images/val/101085.jpg": image(3, ".jpg"),
    "BSR/BSDS500/data/images/train/Thumbs.db": b"no picture",
    "BSR/BSDS500/data/groundTruth/train/100075.mat": b"no picture",
}
TOP = "imagenet-sample-images-master"
IMAGENET = {
    f"{TOP}/README.md": b"hello",
    f"{TOP}/n01440764_tench.JPEG": image(4, ".jpg", (500, 600)),
    f"{TOP}/n01443537_goldfish.JPEG": image(5, ".jpg", (100, 90)),
    f"{TOP}/n03804744_nail.JPEG": image(6, ".jpg"),  # gray, on the list of those left out
}
# Script, its own arguments, its archive, the files that come of it.
CASES = {
    "davis": ("davis", ["--parts", "trainval"], zipped(TRAINVAL), {n: d for n, d in TRAINVAL.items()}),
    "ldv": ("ldv", ["--source", "ldv2"], zipped(LDV), {n.replace("LDV2", "LDV"): LDV[n] for n in LDV if "mkv" in n}),
    "bsds": (
        "photos",
        ["--parts", "bsds"],
        tarred(BSDS),
        {f"photos/bsds/{Path(n).name}": d for n, d in BSDS.items() if n.endswith(".jpg") and "val" not in n},
    ),
    "imagenet": (
        "photos",
        ["--parts", "imagenet"],
        zipped(IMAGENET),
        {f"downloads/imagenet-samples/{Path(n).name}": d for n, d in IMAGENET.items() if n.endswith(".JPEG")},
    ),
}
cases = pytest.mark.parametrize("case", CASES)


def attempt(case: str, url: str, out: Path, *more) -> int:
    name, arguments, *_ = CASES[case]
    return run(name, *arguments, "--url", url, "--sha256", "none", "--out", out, *more)


def assert_right(case: str, out: Path) -> None:
    wanted = CASES[case][3]
    assert {name: (out / name).read_bytes() for name in wanted} == wanted
    assert not list(out.rglob("*.partial*"))


def assert_nothing(case: str, out: Path, captured, words: str) -> None:
    """One sentence that holds the words, and no file of the data set or of the archive, whole or in part."""
    error = captured.err.strip()
    assert words in error and error.count("\n") == 0 and error.endswith((".", ")")), error
    assert not [p for p in out.rglob("*") if p.is_file() and not p.name.endswith(".lock")]
    assert not (out.parent / "evil").exists()


# --- seven situations, each archive -----------------------------------------------------------------------------------


@cases
def test_normal_and_nothing_to_do_the_second_time(server, tmp_path, capsys, case):
    url = server.add("/archive", CASES[case][2])
    assert attempt(case, url, tmp_path) == 0
    assert_right(case, tmp_path)
    assert "Terms: " in capsys.readouterr().out
    server.asked.clear()
    assert attempt(case, url, tmp_path) == 0
    assert server.asked == [] and "already" in capsys.readouterr().out


@cases
def test_cut_at_37_percent(server, tmp_path, case):
    url = server.add("/archive", CASES[case][2], cuts=[0.37])
    assert attempt(case, url, tmp_path) == 0
    assert_right(case, tmp_path)
    assert server.sent["/archive"] == len(CASES[case][2])  # no byte twice


@cases
def test_cut_for_good_then_run_again(server, tmp_path, capsys, case):
    """The server goes away at 37 %; the next run fetches the rest only."""
    archive = CASES[case][2]
    url = server.add("/archive", archive, cuts=[0.37], statuses=[200] + [503] * 20)
    assert attempt(case, url, tmp_path) == 1
    assert "broke off at 37 %" in capsys.readouterr().err
    assert not (tmp_path / "downloads" / catalog.ARCHIVES[_archive(case)].file).exists()
    server.files["/archive"].statuses.clear()
    assert attempt(case, url, tmp_path) == 0
    assert_right(case, tmp_path)
    assert server.sent["/archive"] == len(archive)


def _archive(case: str) -> str:
    return {"davis": "davis-trainval", "ldv": "ldv2"}.get(case, case)


@cases
def test_server_without_range(server, tmp_path, case):
    archive = CASES[case][2]
    url = server.add("/archive", archive, cuts=[0.37], ranges=False)
    assert attempt(case, url, tmp_path) == 0
    assert_right(case, tmp_path)
    assert server.sent["/archive"] == int(0.37 * len(archive)) + len(archive)


@cases
def test_wrong_checksum(server, tmp_path, capsys, case):
    url = server.add("/archive", CASES[case][2])
    assert attempt(case, url, tmp_path / "out", "--sha256", "0" * 64) == 1
    assert_nothing(case, tmp_path / "out", capsys.readouterr(), "not the published 000000000000")


@cases
def test_truncated_archive(server, tmp_path, capsys, case):
    archive = CASES[case][2]
    url = server.add("/archive", archive[: len(archive) * 6 // 10])
    assert attempt(case, url, tmp_path / "out") == 1
    assert_nothing(case, tmp_path / "out", capsys.readouterr(), "not a complete zip or tar archive; it may be cut off")


@cases
def test_archive_with_a_way_out(server, tmp_path, capsys, case):
    good = {"davis": TRAINVAL, "ldv": LDV, "bsds": BSDS, "imagenet": IMAGENET}[case]
    evil = (tarred if case == "bsds" else zipped)({**good, "../../evil": b"evil", "../evil": b"evil"})
    assert attempt(case, server.add("/archive", evil), tmp_path / "out") == 1
    assert_nothing(case, tmp_path / "out", capsys.readouterr(), "leads out of the folder: nothing was unpacked")


@cases
def test_disk_too_small(server, tmp_path, capsys, case):
    url = server.add("/archive", CASES[case][2], announce=HUGE)
    assert attempt(case, url, tmp_path / "out") == 1
    assert_nothing(case, tmp_path / "out", capsys.readouterr(), "free: make room or choose another --out")


@cases
def test_dry_run_says_what_and_how_big(server, tmp_path, capsys, case):
    archive = CASES[case][2]
    url = server.add("/archive", archive)
    assert attempt(case, url, tmp_path / "out", "--dry-run", "--prepare") == 0
    told = capsys.readouterr().out
    assert f"would fetch {url} ({len(archive) / 1000:.1f} kB)" in told and "are free" in told
    assert server.sent["/archive"] == 0 and not (tmp_path / "out").exists()
    attempt(case, url, tmp_path / "out")
    capsys.readouterr()
    attempt(case, url, tmp_path / "out", "--dry-run")
    assert "nothing would be fetched" in capsys.readouterr().out


@cases
def test_local_archive_is_used_in_place(tmp_path, capsys, case):
    archive = tmp_path / "my archive"
    archive.write_bytes(CASES[case][2])
    assert attempt(case, str(archive), tmp_path / "out", "--remove-archives") == 0
    assert_right(case, tmp_path / "out")
    assert archive.exists() and not (tmp_path / "out/downloads" / catalog.ARCHIVES[_archive(case)].file).exists()
    assert attempt(case, str(archive), tmp_path / "out") == 0 and "already" in capsys.readouterr().out


@cases
def test_fetched_archive_is_removed_on_demand(server, tmp_path, case):
    url = server.add("/archive", CASES[case][2])
    assert attempt(case, url, tmp_path, "--remove-archives") == 0
    assert not (tmp_path / "downloads" / catalog.ARCHIVES[_archive(case)].file).exists()
    server.asked.clear()
    assert attempt(case, url, tmp_path) == 0 and server.asked == []


def test_mirror_has_to_hold_the_known_file(server, tmp_path, capsys):
    url = server.add("/archive", CASES["davis"][2])
    assert run("davis", "--parts", "trainval", "--url", url, "--out", tmp_path / "out") == 1
    assert f"holds {len(CASES['davis'][2])} bytes instead of 832766765" in capsys.readouterr().err
    assert run("davis", "--url", url, "--out", tmp_path / "out") == 1
    assert "--url needs as many values as there are parts (davis-trainval, davis-test-dev)" in capsys.readouterr().err


# --- from the archive to training-ready folders -----------------------------------------------------------------------


def test_davis_in_one_command(server, tmp_path, capsys):
    urls = [server.add("/trainval.zip", zipped(TRAINVAL)), server.add("/test-dev.zip", zipped(TESTDEV))]
    command = ["davis", "--url", *urls, "--sha256", "none", "none", "--out", tmp_path]
    command += ["--prepare", "--captions", "colors", "--every", "2", "--show", tmp_path / "batch.png"]
    assert run(*command) == 0, capsys.readouterr().err
    found = {}
    for name in ("davis-train", "davis-val", "davis-test-dev"):
        folder = tmp_path / "prepared" / name
        manifest = preparation.read_manifest(folder)
        found[name] = {clip["clip"]: clip["frames"] for clip in manifest["clips"]}
        texts = captions.read_captions(folder / "captions.jsonl")
        assert {clip: sorted(frames) for clip, frames in texts.items()} == {
            clip: list(range(0, count, 2)) for clip, count in found[name].items()
        }
        for clip in manifest["clips"]:
            paths = preparation.frame_paths(folder, clip, manifest["format"])
            assert all(cv2.imread(str(path)).shape == (256, 448, 3) for path in paths)
    assert found == {
        "davis-train": {"bear": 4, "swan": 3}, "davis-val": {"cows": 2}, "davis-test-dev": {"aerobatics": 3},
    }  # fmt: skip
    assert "a batch of 8:\n  target (8, 3, 256, 448)" in capsys.readouterr().out
    assert min(cv2.imread(str(tmp_path / "batch.png")).shape[:2]) > 300
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "prepared").rglob("*.png")}
    server.asked.clear()
    assert run(*command) == 0 and server.asked == []
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "prepared").rglob("*.png")} == before
    assert "0 captions were added" in capsys.readouterr().out


def test_test_sets_are_captioned_from_gray_frames(tmp_path, monkeypatch, capsys):
    """BLIP's place is taken by a captioner that tells whether the frames that it sees are gray."""

    class Seeing(captions.Blip):
        def __call__(self, frames, clips=()):
            return ["gray" if (frame == frame[..., :1]).all() else "a red car" for frame in frames]

    for name in ("davis-train", "davis-test-dev"):
        source = preparation.Source("bear", tmp_path / name / "bear")
        source.path.mkdir(parents=True)
        (source.path / "00000.jpg").write_bytes(image(7, ".jpg"))
        preparation.prepare([source], tmp_path / "prepared" / name, size=(16, 24), workers=1)
    monkeypatch.setattr(captions, "Blip", Seeing)
    train, test = (tmp_path / "prepared" / name for name in ("davis-train", "davis-test-dev"))
    assert run("caption", train, test) == 0
    blip = "BLIP (blip-image-captioning-base)"
    assert captions.read_prompts(train) == ({"bear": "a red car"}, f"{blip}, true colours")
    assert captions.read_prompts(test) == ({"bear": "gray"}, f"{blip}, gray frames")
    assert run("caption", test, "--no-gray", "--strip-colors", "--out", "true.jsonl") == 0
    stripped = ({"bear": "a car"}, f"{blip}, true colours, colour words removed")
    assert captions.read_prompts(test / "true.jsonl") == stripped
    assert run("caption", test, "--by", "colors", "--gray", "--out", "x.jsonl") == 1
    assert "gray frames show no colours" in capsys.readouterr().err


def test_ldv_splits(tmp_path, capsys):
    """365 videos: the first 335 to train, the last 30 to test."""
    content = video_bytes()
    archive = tmp_path / "LDV3.zip"
    archive.write_bytes(zipped({f"any/folder/{i:03d}.mkv": content for i in range(1, 366)}))
    assert run("ldv", "--url", archive, "--sha256", "none", "--out", tmp_path, "--prepare", "--size", 16, 16) == 0
    names = {}
    for part in ("train", "test"):
        manifest = preparation.read_manifest(tmp_path / f"prepared/ldv-{part}")
        names[part] = [clip["clip"] for clip in manifest["clips"]]
        assert {clip["frames"] for clip in manifest["clips"]} == {3}
    assert names["train"] == [f"{i:03d}" for i in range(1, 336)]
    assert names["test"] == [f"{i:03d}" for i in range(336, 366)]
    (tmp_path / "LDV/200.mkv").unlink()
    assert run("prepare", "ldv-train", "--out", tmp_path, "--size", 16, 16) == 1
    assert "200.mkv cannot be found: run python data_scripts/ldv.py" in capsys.readouterr().err


def test_photographs_for_the_mini_model(server, tmp_path):
    from gcgkit.data import footage

    urls = [server.add("/bsds.tgz", tarred(BSDS)), server.add("/imagenet.zip", zipped(IMAGENET))]
    assert run("photos", "--url", *urls, "--sha256", "none", "none", "--out", tmp_path) == 0
    found = sorted(p.relative_to(tmp_path / "photos").as_posix() for p in tmp_path.glob("photos/**/*.jpg"))
    assert found == [
        "bsds/100007.jpg", "bsds/100075.jpg", "imagenet/n01440764_tench.jpg", "imagenet/n01443537_goldfish.jpg",
    ]  # fmt: skip
    shapes = [cv2.imread(str(tmp_path / "photos" / name)).shape[:2] for name in found]
    assert shapes[2:] == [(320, 384), (100, 90)]  # smaller, never larger
    assert len(footage.photo_paths(tmp_path)) + len(footage.photo_paths(tmp_path, held_out=True)) == 4


def test_own_clips_verified_and_captioned(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/wolf.mkv").write_bytes(video_bytes(frames=5))
    assert run("prepare", "set", "--clips", tmp_path / "mine", "--out", tmp_path, "--format", "jpg") == 0
    folder = tmp_path / "prepared/set"
    assert run("prepare", "set", "--out", tmp_path, "--verify") == 0
    assert run("caption", folder, "--by", "colors", "--dry-run") == 0
    assert "1 frames want a caption" in capsys.readouterr().out
    assert run("caption", folder, "--by", "colors", "--every", 2) == 0
    assert sorted(captions.read_captions(folder / "captions.jsonl")["wolf"]) == [0, 2, 4]
    (folder / "frames/wolf/00001.jpg").write_bytes(b"other")
    assert run("prepare", "set", "--out", tmp_path, "--verify") == 1
    assert run("prepare", "unknown", "--out", tmp_path) == 1
    assert "there is no set called 'unknown'" in capsys.readouterr().err


def test_command_line_in_a_process_of_its_own(tmp_path):
    """As a person runs it: another working folder, the exit code, one line on stderr."""
    command = [sys.executable, str(ROOT / "data_scripts/davis.py"), "--parts", "trainval", "--url", "absent.zip"]
    child = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert child.returncode == 1 and child.stdout == ""
    assert child.stderr == "absent.zip is neither an http(s) address nor a file that exists.\n"


@pytest.mark.parametrize("name", ["davis", "ldv", "photos", "prepare", "caption", "weights"])
def test_help_fits_a_screen(name, capsys):
    with pytest.raises(SystemExit) as end:
        run(name, "--help")
    text = capsys.readouterr().out
    assert end.value.code == 0 and text.count("\n") <= 40 and "--dry-run" in text and "--out" in text


# --- weights ----------------------------------------------------------------------------------------------------------

RANDOM = random.Random(1).randbytes(200_000)
MODEL = {
    "config.json": b"{}",
    "README.md": b"# model",
    "unet/config.json": b'{"a": 1}',
    "unet/diffusion_pytorch_model.safetensors": RANDOM,
    "unet/diffusion_pytorch_model.fp16.safetensors": b"half",
    "unet/diffusion_pytorch_model.bin": b"pickled",
    "vae/config.json": b'{"b": 2}',
    "vae/diffusion_pytorch_model.bin": b"pickled vae",
    "model_index.json": b"{}",
    "one-file.safetensors": b"everything again",
}
DIGESTS = {n: hashlib.sha256(d).hexdigest() for n, d in MODEL.items() if n.endswith((".safetensors", ".bin"))}
WANTED = {
    "config.json", "model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json", "vae/diffusion_pytorch_model.bin",
}  # fmt: skip
BIG = "/maker/model/resolve/{}/unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def hub(server, monkeypatch):
    """The server as a model hub that the client is allowed to reach."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return server


def weights(hub, *arguments) -> int:
    return run("weights", "sd", "--id", "maker/model", "--url", hub.address, *arguments)


def model_files(folder: Path) -> set[str]:
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} if folder.exists() else set()
    return {name for name in found if not name.startswith(".cache/")}


def test_weights_normal_and_nothing_the_second_time(hub, tmp_path, capsys):
    hub.add_model("maker/model", MODEL, DIGESTS)
    assert weights(hub, "--out", tmp_path) == 0, capsys.readouterr().err
    assert model_files(tmp_path / "sd") == WANTED
    assert all((tmp_path / "sd" / name).read_bytes() == MODEL[name] for name in WANTED)
    hub.sent.clear()
    assert weights(hub, "--out", tmp_path) == 0
    assert not any("resolve" in path for path in hub.sent)


@pytest.mark.parametrize("ranges", [True, False])
def test_weights_cut_at_37_percent(hub, tmp_path, ranges, capsys):
    name = "unet/diffusion_pytorch_model.safetensors"
    big = random.Random(3).randbytes(30_000_000)
    digests = {**DIGESTS, name: hashlib.sha256(big).hexdigest()}
    hub.add_model("maker/model", {**MODEL, name: big}, digests, cuts=[0.37], ranges=ranges)
    assert weights(hub, "--out", tmp_path) == 0, capsys.readouterr().err
    assert (tmp_path / "sd" / name).read_bytes() == big
    sent, cut = sum(hub.sent[BIG.format(revision)] for revision in ("main", "c" * 40)), int(0.37 * len(big))
    if ranges:  # the hub's client writes 10 MiB at a time, and loses less than that
        assert sent == len(big) + cut - 10 * 2**20
        assert [r for _, path, r in hub.asked if r and path.endswith(name)] == [f"bytes={10 * 2**20}-"]
    else:
        assert sent == len(big) + cut


def test_weights_wrong_checksum(hub, tmp_path, capsys):
    hub.add_model("maker/model", MODEL, {**DIGESTS, "unet/diffusion_pytorch_model.safetensors": "0" * 64})
    assert weights(hub, "--out", tmp_path) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]  # after the hub's own progress bar
    assert "not the hub's 000000000000…: it was removed" in error
    assert "unet/diffusion_pytorch_model.safetensors" not in model_files(tmp_path / "sd")


def test_weights_truncated_on_the_server(hub, tmp_path, capsys):
    """The listing tells of more bytes than the file that is given."""
    name = "unet/diffusion_pytorch_model.safetensors"
    hub.add_model("maker/model", MODEL, DIGESTS, sizes={name: len(RANDOM) + 500})
    assert weights(hub, "--out", tmp_path) == 1
    assert "did not arrive with its 200500 bytes: it was removed" in capsys.readouterr().err
    assert name not in model_files(tmp_path / "sd")


def test_weights_with_a_way_out(hub, tmp_path, capsys):
    hub.add_model("maker/model", {**MODEL, "../evil.json": b"evil"}, DIGESTS)
    assert weights(hub, "--out", tmp_path / "out") == 1
    assert "leads out of the folder: nothing was fetched" in capsys.readouterr().err
    assert model_files(tmp_path) == set()


def test_weights_disk_too_small(hub, tmp_path, capsys):
    hub.add_model("maker/model", MODEL, DIGESTS, sizes={"unet/diffusion_pytorch_model.safetensors": HUGE})
    assert weights(hub, "--out", tmp_path / "out") == 1
    assert "maker/model needs" in (error := capsys.readouterr().err) and "free: make room" in error
    assert model_files(tmp_path) == set()


def test_weights_dry_run_and_wrong_names(hub, tmp_path, capsys):
    hub.add_model("maker/model", MODEL, DIGESTS)
    assert weights(hub, "--out", tmp_path / "out", "--dry-run") == 0
    size = sum(len(MODEL[name]) for name in WANTED) / 1000
    assert f"would fetch 6 of 6 files of maker/model at main ({size:.1f} kB)" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    for arguments, words in (
        (["--revision", "nowhere"], "maker/model"),
        (["--url", tmp_path], "is a local folder: from_pretrained loads it as it is"),
        (["--id", "maker/absent"], "maker/absent is not on the hub"),
        (["--id", "no id at all"], "is no id of a model"),
        (["--url", "http://127.0.0.1:9"], "cannot be fetched from the hub"),
    ):
        assert weights(hub, "--out", tmp_path / "out", *arguments) == 1
        error = capsys.readouterr().err.strip()
        assert words in error and "\n" not in error
    hub.add_model("maker/empty", {"config.json": b"{}"}, {})
    assert weights(hub, "--out", tmp_path / "out", "--id", "maker/empty") == 1
    assert "holds no weights under the usual names" in capsys.readouterr().err
    assert model_files(tmp_path) == set()


def test_weights_in_the_cache_are_found_offline(server, tmp_path):
    """Fetched in one process into the hub's cache, found by id in another that may not use the network."""
    server.add_model("maker/model", MODEL, DIGESTS, cuts=[0.37])
    environment = {"PATH": "/usr/bin:/bin", "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, str(ROOT / "data_scripts/weights.py"), "sd", "--id", "maker/model", "--url"]
    child = subprocess.run([*command, server.address], env=environment, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    code = f"""
from huggingface_hub import hf_hub_download
for name in {sorted(WANTED)!r}:
    print(hf_hub_download("maker/model", name))  # as from_pretrained("maker/model") does
"""
    offline = {**environment, "HF_HUB_OFFLINE": "1"}
    child = subprocess.run([sys.executable, "-c", code], env=offline, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    assert [Path(line).read_bytes() for line in child.stdout.split()] == [MODEL[name] for name in sorted(WANTED)]


def test_metric_networks_go_where_their_packages_look(server, tmp_path, capsys, monkeypatch):
    torch = pytest.importorskip("torch")
    for setting in ({"TORCH_HOME": "x"}, {"XDG_CACHE_HOME": "y"}, {}):
        for name in ("TORCH_HOME", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
            if name in setting:
                monkeypatch.setenv(name, str(tmp_path / setting[name]))
        assert str(torch_hub_folder()) == torch.hub.get_dir()
    url = server.add("/alexnet.pth", RANDOM, cuts=[0.37])
    options = ["--url", url, "--out", tmp_path]
    assert run("weights", "lpips", *options, "--dry-run") == 0
    assert "200.0 kB" in capsys.readouterr().out
    assert run("weights", "lpips", *options) == 1  # the file's name holds the first digits of its digest
    assert "not the published 7be5be79" in capsys.readouterr().err
    assert model_files(tmp_path / "torch/hub/checkpoints") <= {".alexnet-owt-7be5be79.pth.lock"}
    assert run("weights", "lpips", *options, "--sha256", "none") == 0
    assert (tmp_path / "torch/hub/checkpoints/alexnet-owt-7be5be79.pth").read_bytes() == RANDOM
    local = tmp_path / "RN50.pt"
    local.write_bytes(RANDOM)
    assert run("weights", "clip_iqa", "--url", local, "--sha256", "none", "--out", tmp_path) == 0
    assert (tmp_path / "torch/hub/clip/RN50.pt").read_bytes() == RANDOM


# --- Google Drive -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("https://drive.google.com/file/d/1MT6oihhUuZDfaMSOZfH5SERxbUkHA4Je/view?usp=drive_link", False),
        ("https://drive.google.com/uc?id=1MT6oihhUuZDfaMSOZfH5SERxbUkHA4Je", False),
        ("https://drive.google.com/drive/folders/1MT6oihhUuZDfaMSOZfH5SERxbUkHA4Je?usp=sharing", True),
        ("https://example.org/file/d/1MT6oihhUuZDfaMSOZfH5SERxbUkHA4Je/view", None),
        ("LDV3.zip", None),
    ],
)
def test_drive_addresses(url, found):
    wanted = None if found is None else ("1MT6oihhUuZDfaMSOZfH5SERxbUkHA4Je", found)
    assert hosts.drive_id(url) == wanted


def test_drive_folder_in_place_of_an_archive(tmp_path, monkeypatch):
    """Google's part is played by files laid down; videos and archives of videos both count."""

    clip = video_bytes(6)

    def lay_down(url, folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "336.mkv").write_bytes(clip)
        (folder / "info.xlsx").write_bytes(b"sheet")
        (folder / "rest.zip").write_bytes(CASES["ldv"][2])
        return sorted(folder.iterdir())

    monkeypatch.setattr(hosts, "fetch_drive_folder", lay_down)
    url = "https://drive.google.com/drive/folders/" + "x" * 33
    for _ in range(2):
        assert run("ldv", "--url", url, "--out", tmp_path) == 0
    found = {p.name: p.read_bytes() for p in (tmp_path / "LDV").glob("*.*kv")}
    assert found == {"001.mkv": LDV["LDV2/001.mkv"], "002.mkv": LDV["LDV2/002.mkv"], "336.mkv": clip}


def test_without_gdown_the_command_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gdown", None)
    assert run("ldv", "--source", "drive", "--out", tmp_path / "out") == 1
    error = capsys.readouterr().err.strip()
    assert "run pip install 'gdown>=6.5'" in error and "--source server" in error and "\n" not in error
    assert run("ldv", "--source", "drive", "--out", tmp_path / "out", "--dry-run") == 0
    assert "a size that is known only after the start" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_gdown_itself(server, tmp_path, monkeypatch):
    """gdown takes other addresses too, so that the way through it can be tried without Google."""
    pytest.importorskip("gdown")
    archive = zipped({"001.mkv": random.Random(2).randbytes(3_000_000)})
    url = server.add("/LDV3.zip", archive, cuts=[0.37])
    path = hosts.fetch_drive(url, tmp_path / "LDV3.zip", check=lambda p: zipfile.ZipFile(p).close())
    assert path.read_bytes() == archive
    assert server.sent["/LDV3.zip"] < len(archive) + 2**19  # gdown writes half a megabyte at a time, and loses as much
    assert {p.name for p in tmp_path.iterdir()} == {"LDV3.zip", "SHA256SUMS"}
    server.asked.clear()
    assert hosts.fetch_drive(url, path) == path and server.asked == []
    with pytest.raises(ValueError, match="not the published 0000"):
        hosts.fetch_drive(url, tmp_path / "other.zip", sha256="0" * 64)
    with pytest.raises(ConnectionError, match="broke off"):
        hosts.fetch_drive(server.address + "/absent", tmp_path / "other.zip")
    with pytest.raises(OSError, match="needs .* free: make room"):
        hosts.fetch_drive(url, tmp_path / "third.zip", room=HUGE)
    assert not (tmp_path / "other.zip").exists() and not (tmp_path / "third.zip").exists()


def test_splits_in_the_repository():
    train, test = ((ROOT / f"data_scripts/splits/ldv-{part}.txt").read_text().split() for part in ("train", "test"))
    assert len(train) == 335 and len(test) == 30 and not set(train) & set(test)
    assert train + test == [f"{i:03d}" for i in range(1, 366)]
    left_out = (ROOT / "data_scripts/splits/imagenet-left-out.txt").read_text().split("\n")[:-1]
    assert len(left_out) == len(set(left_out)) == 50 and left_out == sorted(left_out)
    assert json.dumps(left_out).isascii()
