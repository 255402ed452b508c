"""Pipelines from the hub and onto it: real clients in processes of their own, against a small hub of our own.

The clients share one cache, so each test has repositories of its own.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import hub_server
import numpy as np
import pytest
import tiny
import torch
from huggingface_hub import constants

from gcgkit.pipeline import GCGPipeline
from gcgkit.utils.hub import choose_files, require

ROOT = Path(__file__).parents[2]

# Do each task that is told and print a line of JSON for it: the error, or the digest of what was coloured.
_CHILD = """
import json, sys, hashlib
import numpy as np, torch
from gcgkit.pipeline import GCGPipeline
print("RESULT", json.dumps("ready"), flush=True)
for task in map(json.loads, sys.stdin):
    push = task.pop("push", None)
    try:
        pipe = GCGPipeline.from_pretrained(task.pop("name"), **task)
        result = {"named": pipe.config._name_or_path}
        if push:
            pipe.push_to_hub(**push)
        else:
            pipe.set_progress_bar_config(disable=True)
            frames = pipe(np.load(sys.argv[1]), prompt="red car", num_keyframes=2, num_inference_steps=2,
                          generator=torch.Generator().manual_seed(0)).frames
            result["frames"] = hashlib.sha256(frames.tobytes()).hexdigest()
    except Exception as error:
        result = {"error": type(error).__name__, "text": str(error)}
    print("RESULT", json.dumps(result), flush=True)
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A pipeline as ``save_pretrained`` writes it."""
    folder = tmp_path_factory.mktemp("saved")
    tiny.pipeline(folder / "source").save_pretrained(folder / "pipeline")
    return folder / "pipeline"


@pytest.fixture(scope="module")
def files(saved) -> dict[str, bytes]:
    return {p.relative_to(saved).as_posix(): p.read_bytes() for p in sorted(saved.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.npy"
    np.save(path, tiny.clip(3))
    return path


@pytest.fixture(scope="module")
def wanted(saved, clip) -> str:
    """Digest of the frames that the saved folder gives."""
    pipe = GCGPipeline.from_pretrained(saved)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    frames = pipe(np.load(clip), prompt="red car", num_keyframes=2, num_inference_steps=2, generator=generator).frames
    return hashlib.sha256(frames.tobytes()).hexdigest()


@pytest.fixture(scope="module")
def server():
    with hub_server.serving() as server:
        yield server


@pytest.fixture
def hub(server):
    """The hub, empty."""
    server.reset()
    return server


class Client:
    """A process that does tasks with the hub at ``address`` and the cache under ``home``."""

    def __init__(self, address: str, home: Path, clip: Path, **environment: str):
        kept = {key: os.environ[key] for key in ("PATH", "PYTHONPATH", "OMP_NUM_THREADS") if key in os.environ}
        own = {"HF_HOME": str(home), "HF_ENDPOINT": address, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        command = [sys.executable, "-c", _CHILD, str(clip)]
        self.process = subprocess.Popen(command, cwd=ROOT, env={**kept, **own, **environment}, text=True, **pipes)
        assert self.receive() == "ready"

    def send(self, task: dict) -> None:
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()

    def receive(self):
        for line in self.process.stdout:
            if line.startswith("RESULT "):
                return json.loads(line.removeprefix("RESULT "))
        raise AssertionError(f"the client ended with {self.process.wait()}")

    def do(self, *tasks: dict) -> list[dict]:
        results = []
        for task in tasks:
            self.send(task)
            results.append(self.receive())
        return results

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def client(server, home, clip):
    with Client(server.address, home, clip) as client:
        yield client


@pytest.fixture(scope="module")
def offline(server, home, clip):
    with Client(server.address, home, clip, HF_HUB_OFFLINE="1") as client:
        yield client


@pytest.mark.slow  # fresh processes import torch and diffusers
def test_loading_by_id_colours_as_the_folder_does(hub, files, client, offline, wanted, tmp_path):
    """From main, a tag and a commit; only the files that are needed come, once, and the cache does without the hub."""
    others = {"README.md": b"card", "unet/diffusion_pytorch_model.bin": b"pickle", "step_9/optimizer.bin": b"state"}
    others |= {"unet/diffusion_pytorch_model.fp16.safetensors": b"half", "unet/evil.py": b"raise SystemExit"}
    others |= {"extra/model.safetensors": b"more"}
    repository = hub.add("owner/name", {**files, **others})
    old = repository.refs["main"]
    repository.refs["v1"] = old
    repository.commit({"README.md": b"moved away"})
    name = {"name": "owner/name"}
    results = client.do(
        {**name, "revision": "v1"}, {**name, "revision": old, "local_files_only": True},
        {**name, "revision": "v1", "cache_dir": str(tmp_path / "other")}, name,
    )  # fmt: skip
    assert results[:3] == [{"named": "owner/name", "frames": wanted}] * 3
    assert results[3]["error"] == "ValueError" and "holds no model_index.json" in results[3]["text"]
    assert sorted(hub.sent) == sorted([("owner/name", file) for file in files] * 2)  # once for each cache
    hub.sent.clear()
    repository.refs["main"] = old
    again = [name, {**name, "force_download": True}, {**name, "local_files_only": True}]
    assert client.do(*again) == [{"named": "owner/name", "frames": wanted}] * 3
    assert sorted(hub.sent) == sorted(("owner/name", file) for file in files)  # for force_download
    hub.asked.clear()
    assert offline.do(name) == [{"named": "owner/name", "frames": wanted}] and not hub.asked


def test_every_refusal_is_one_sentence(hub, files, client, wanted):
    hub.add("owner/fine", files)
    hub.add("owner/gated", files, token="mine", gated=True)
    hub.add("owner/private", files, token="mine")
    other = json.dumps({"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]})
    hub.add("owner/other", {**files, "model_index.json": other.encode()})
    hub.add("owner/broken", {**files, "model_index.json": b"{"})
    hub.add("owner/model", {"config.json": b"{}", "model.safetensors": b"x"})
    cases = [
        ({"name": "owner/absent"}, "FileNotFoundError", "owner/absent is not on the hub, or is private: check"),
        ({"name": "owner/private"}, "FileNotFoundError", "is private: check the name, or log in with 'hf auth login'"),
        ({"name": "owner/private", "token": "yours"}, "FileNotFoundError", "owner/private is not on the hub"),
        ({"name": "owner/gated"}, "FileNotFoundError", "owner/gated asks for its terms to be accepted"),
        ({"name": "owner/gated", "token": "yours"}, "FileNotFoundError", "owner/gated asks for its terms"),
        ({"name": "owner/fine", "token": "wrong"}, "FileNotFoundError", "does not give owner/fine to this token (401)"),
        ({"name": "owner/fine", "revision": "v9"}, "FileNotFoundError", "owner/fine has no revision 'v9' on the hub"),
        ({"name": "owner/other"}, "ValueError", "owner/other on the hub holds a StableDiffusionPipeline, not a GCGPip"),
        ({"name": "owner/broken"}, "ValueError", "owner/broken on the hub holds a model_index.json that is no pipe"),
        ({"name": "owner/model"}, "ValueError", "owner/model on the hub holds no model_index.json"),
        ({"name": "owner/a--b"}, "ValueError", "'owner/a--b' is no id of a model"),
        ({"name": "owner/fine", "local_files_only": True}, "FileNotFoundError", "is not in the hub's cache on this"),
        ({"name": "owner/fine", "local_files_only": True, "force_download": True}, "ValueError", "give only one"),
    ]
    good = [{"name": name, "token": "mine"} for name in ("owner/private", "owner/gated")]
    results = client.do(*(task for task, _, _ in cases), *good)
    for (task, kind, words), result in zip(cases, results, strict=False):
        assert result.get("error") == kind and words in result["text"] and "\n" not in result["text"], (task, result)
    assert [result.get("frames") for result in results[-2:]] == [wanted] * 2
    assert {name for repo, name in hub.sent if repo == "owner/other"} == {"model_index.json"}  # no weights were fetched


@pytest.mark.slow
def test_no_network_is_told_in_one_sentence(hub, files, client, offline, home, clip, wanted):
    """A hub that is not there is told at once; one that breaks off is asked six times before the client gives up."""
    hub.add("owner/far", files)
    name = {"name": "owner/far"}
    with Client("http://127.0.0.1:9", home, clip) as lost:
        for here, words in (
            (lost, "owner/far cannot be fetched from the hub"),
            (offline, "owner/far cannot be fetched while HF_HUB_OFFLINE is set: unset it."),
        ):
            for result in here.do(name, {**name, "force_download": True}):
                assert result.get("error") == "FileNotFoundError", result
                assert words in result["text"] and "\n" not in result["text"]
    # the index came and the network went: the cache holds no whole pipeline
    hub.before = lambda path: setattr(hub, "broken", "/tree/" in path)
    for task, words in (
        (name, "owner/far cannot be fetched from the hub now (control/config.json is missing): check"),
        ({**name, "local_files_only": True},
         "owner/far lies in the hub's cache without its control: load it once without local_files_only."),
    ):  # fmt: skip
        (result,) = client.do(task)
        assert result["error"] == "FileNotFoundError" and words in result["text"] and "\n" not in result["text"]
    # with a whole pipeline in the cache, a hub that does not answer is no harm
    hub.before, hub.broken = lambda path: None, False
    fetched = client.do(name)
    hub.broken = True
    assert client.do(name) == fetched == [{"named": "owner/far", "frames": wanted}]


@pytest.mark.slow
def test_all_files_are_of_one_commit(hub, files, client, wanted):
    """Somebody pushes other weights while the pipeline is fetched."""
    repository = hub.add("owner/moving", files)
    moved = {n: b"newer" if n.endswith(".safetensors") else data for n, data in files.items()}

    def push(path: str) -> None:
        if "/tree/" in path and len(repository.commits) == 1:
            repository.commit(moved)

    hub.before = push
    assert client.do({"name": "owner/moving"}) == [{"named": "owner/moving", "frames": wanted}]
    assert len(repository.commits) == 2


@pytest.mark.slow
def test_two_processes_at_once_share_an_empty_cache(hub, files, client, home, clip, wanted):
    hub.add("owner/both", files)
    hub.delay = 0.5  # each waits for weights that the other is fetching
    with Client(hub.address, home, clip) as other:
        for here in (client, other):
            here.send({"name": "owner/both"})
        assert [here.receive() for here in (client, other)] == [{"named": "owner/both", "frames": wanted}] * 2
    assert not list(home.rglob("*.incomplete"))


@pytest.mark.slow
def test_pushing_and_loading_again(hub, saved, client, home, wanted):
    """As push_to_hub does it, plainly and as a variant, with the writer's token; no path of this machine goes along."""
    push = {"repo_id": "owner/mine", "token": "writer"}
    task = {"name": str(saved)}
    results = client.do(
        {**task, "push": push}, {**task, "push": push},
        {**task, "push": {**push, "repo_id": "owner/v", "variant": "x"}},
        {"name": "owner/mine"}, {"name": "owner/v", "variant": "x"},
        {"name": "owner/mine", "push": {**push, "repo_id": "owner/again"}}, {**task, "push": {"repo_id": "owner/no"}},
        {"name": "owner/again"},
    )  # fmt: skip
    assert [r.get("error") for r in results] == [None] * 6 + ["HfHubHTTPError", None], results
    assert [results[i]["frames"] for i in (3, 4, 7)] == [wanted] * 3
    for repo in ("owner/mine", "owner/again"):
        found = hub.repositories[repo]
        pushed = found.commits[found.refs["main"]]
        assert "README.md" in pushed and "control/diffusion_pytorch_model.safetensors" in pushed
        small = b"".join(data for name, data in pushed.items() if name.endswith(".json"))
        assert str(home).encode() not in small and str(saved).encode() not in small


def test_saving_with_push_to_hub_takes_a_path(hub, saved, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "unused")
    pipe = GCGPipeline.from_pretrained(saved)
    with pytest.raises(Exception, match="HF_HUB_OFFLINE|offline"):  # and no AttributeError of a Path
        pipe.save_pretrained(tmp_path / "pipe", push_to_hub=True, repo_id="owner/name")


def test_files_chosen_for_a_pipeline():
    shard = "b/diffusion_pytorch_model-00001-of-00002.bin"
    index = "b/diffusion_pytorch_model.bin.index.json"
    half = "d/model.fp16-00001-of-00001.safetensors"
    names = ["model_index.json", "a/config.json", "a/model.safetensors", "a/model.fp16.safetensors"]
    names += ["a/pytorch_model.bin", "a/pytorch_model.bin.index.json", "b/config.json", shard, index]
    names += ["c/vocab.json", "c/merges.txt", half, "e/config.json", "a/x/y.json"]
    parts, words = ["a", "b", "c", "d"], ["c/merges.txt", "c/vocab.json"]
    sharded = ["b/config.json", index, shard]
    assert choose_files(names, parts) == ["a/config.json", "a/model.safetensors", *sharded, *words]
    wanted = ["a/config.json", "a/model.fp16.safetensors", *sharded, *words, half]
    assert choose_files(names, parts, variant="fp16") == wanted
    assert choose_files(names, ["b"], pickle=False) == ["b/config.json"]


def test_a_model_that_cannot_be_had_is_refused_before_anything_loads(hub, tmp_path, monkeypatch):
    """The address, a folder, and the cache decide; a path is none of the hub's, whether it is there or not."""
    hub.add("owner/name", {"config.json": b"{}"})
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    require("owner/name", "unused")
    with pytest.raises(FileNotFoundError, match="owner/absent is not on the hub, or is private"):
        require("owner/absent", "unused")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(FileNotFoundError, match=r"owner/name .* cannot be reached \(connection refused\): do this"):
        require("owner/name", "do this")
    for other in ("mini", str(tmp_path), "./ours", "/ours", "runs/", "../ours", "a/b/c"):
        require(other, "unused")
    (tmp_path / "models--owner--name" / "snapshots").mkdir(parents=True)
    require("owner/name", "unused")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="HF_HUB_OFFLINE is set"):
        require("owner/other", "unused")
