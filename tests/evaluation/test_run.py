"""Evaluation against the metrics called by hand on the same arrays; faults planted, runs killed, numbers compared."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny

from gcgkit import baselines, cli, metrics, video
from gcgkit.color import to_gray
from gcgkit.evaluation import clips as evalset
from gcgkit.evaluation import columns, methods
from gcgkit.evaluation import run as evaluation
from gcgkit.video import images

ROOT = Path(__file__).resolve().parents[2]
CLASSICAL = ["psnr_rgb", "psnr_luma", "colorfulness", "cdc", "flow_warp_error"]
FRAMES = 8


def write_clip(folder, frames):
    return images.write_frames(frames, folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two clips as folders of PNG frames, as a set."""
    folder = tmp_path_factory.mktemp("data")
    for seed, name in enumerate(("ants", "bees")):
        write_clip(folder / name, tiny.clip(FRAMES, seed=seed))
    return folder


@pytest.fixture
def clips(data):
    return evalset.open_set(data, "small", size=None)


def run(clips, out, *specs, **options):
    options = {"metric_names": CLASSICAL, "device": "cpu", "progress": False, **options}
    records = evaluation.evaluate(clips, [methods.parse(spec) for spec in specs], out, **options)
    return {(r["method"], r["clip"]): r for r in records}


def numbers(records):
    return {key: r["metrics"] for key, r in records.items()}


def test_numbers_are_the_metrics_on_the_same_frames(clips, data, tmp_path):
    records = run(clips, tmp_path, "gray", "flow")
    assert set(records) == {(m, c) for m in ("truth", "gray", "flow") for c in ("ants", "bees")}
    for seed, clip in enumerate(("ants", "bees")):
        truth = tiny.clip(FRAMES, seed=seed)
        gray = to_gray(truth)
        flow = baselines.propagate_by_flow(gray, truth[0])
        found = records["flow", clip]["metrics"]
        # Frame 0 is the exemplar and is not measured.
        assert found["psnr_rgb"] == metrics.psnr_rgb(flow[1:], truth[1:])
        assert found["psnr_luma"] == metrics.psnr_luma(flow[1:], truth[1:])
        assert found["colorfulness"] == metrics.colorfulness(flow[1:])
        assert found["cdc"] == metrics.cdc([flow[1:]])
        assert found["flow_warp_error"] == metrics.flow_warp_error(flow[1:], gray[1:])
        assert records["truth", clip]["metrics"]["cdc"] == metrics.cdc([truth[1:]])
        assert "psnr_rgb" not in records["truth", clip]["metrics"]
        assert records["gray", clip]["metrics"]["colorfulness"] == 0
        assert records["gray", clip]["notes"] == ["the frames hold no colour"]
        assert records["flow", clip]["frames"] == FRAMES and records["flow", clip]["first"] == 1
    everything = run(clips, tmp_path / "all", "flow", first=0)["flow", "bees"]
    assert everything["metrics"]["psnr_rgb"] == metrics.psnr_rgb(flow, truth)


def test_ours_is_the_pipeline_called_by_hand_with_its_provenance(clips, tmp_path):
    import torch

    from gcgkit.pipeline import GCGPipeline

    tiny.pipeline(tmp_path / "source").save_pretrained(tmp_path / "model")
    spec = f"Ours=gcg:{tmp_path / 'model'},num_inference_steps=2,num_keyframes=2,use_srg=false"
    record = run(clips, tmp_path / "out", spec)["Ours", "ants"]
    truth = tiny.clip(FRAMES, seed=0)
    pipe = GCGPipeline.from_pretrained(tmp_path / "model")
    pipe.set_progress_bar_config(disable=True)
    by_hand = pipe(
        to_gray(truth), reference={0: truth[0]}, num_inference_steps=2, num_keyframes=2, use_srg=False,
        generator=torch.Generator().manual_seed(0),
    ).frames  # fmt: skip
    assert record["metrics"]["psnr_rgb"] == metrics.psnr_rgb(by_hand[1:], truth[1:])
    place = next((tmp_path / "out" / "frames" / "small").glob("Ours-*/ants"))
    np.testing.assert_array_equal(video.read(place).frames, by_hand)
    identity, provenance = record["identity"], record["provenance"]
    assert identity["options"] == {"num_inference_steps": 2, "num_keyframes": 2, "use_srg": False}
    assert identity["seed"] == 0 and identity["reference"] == "first"
    assert identity["weights"] == methods.weights_digest(tmp_path / "model") and len(identity["weights"]) == 64
    assert provenance["versions"]["torch"] == torch.__version__.split("+")[0]
    assert provenance["coloring_seconds"] > 0 and provenance["peak_mb"]["process"] > 50
    assert provenance["device"].startswith("cpu")
    assert provenance["unet_parameters"] == sum(p.numel() for p in pipe.unet.parameters())
    # Other weights under the same name are another result.
    weights = tmp_path / "model" / "scheduler" / "scheduler_config.json"
    weights.write_text(weights.read_text().replace("0.02", "0.021"))
    assert methods.weights_digest(tmp_path / "model") != identity["weights"]


def test_two_runs_give_the_same_numbers_and_a_second_one_does_nothing(clips, tmp_path):
    first = run(clips, tmp_path / "a", "flow", "transfer")
    assert numbers(run(clips, tmp_path / "b", "flow", "transfer")) == numbers(first)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*.*") if path.name != "results.jsonl"}
    assert run(clips, tmp_path / "a", "flow", "transfer") == first
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_run_into_a_published_folder_adds_to_its_results(clips, data, tmp_path):
    run(clips, tmp_path, "flow", "transfer", f"folder:{data / 'missing'}")
    published = [r for r in evaluation.read_results(tmp_path) if r["clip"]]
    for part in ("records", "frames", "cache"):  # what a clone of the repository does not have
        shutil.rmtree(tmp_path / part, ignore_errors=True)
    new = run(evalset.open_set(data, "others", size=None, clips=["ants"]), tmp_path, "flow")
    after = evaluation.read_results(tmp_path)
    assert [r for r in after if r["set"]["name"] == "small"] == published
    assert numbers({(r["method"], r["clip"]): r for r in after if r["set"]["name"] == "others"}) == numbers(new)


@pytest.mark.parametrize("planted", ["<<<<<<< ours", '{"schema": 1, "set"', '{"schema": 0}'])
def test_results_that_cannot_be_read_are_refused_and_kept(clips, tmp_path, planted, monkeypatch):
    run(clips, tmp_path, "gray")
    path = tmp_path / "results.jsonl"
    first, *rest = path.read_text().splitlines()
    damaged = "\n".join([first, planted, *rest, ""])
    path.write_text(damaged)
    with pytest.raises(ValueError, match="line 2, is"):
        evaluation.merge(tmp_path)
    monkeypatch.setattr(evaluation, "_evaluate_clip", lambda *arguments: pytest.fail("a clip was coloured"))
    with pytest.raises(ValueError, match="line 2, is"):
        run(clips, tmp_path, "flow")
    assert path.read_text() == damaged


def test_a_metric_asked_for_later_is_added_to_the_same_frames(clips, tmp_path):
    first = run(clips, tmp_path, "flow", metric_names=["psnr_rgb"])
    again = run(clips, tmp_path, "flow", metric_names=["psnr_rgb", "cdc"])
    for key in first:
        assert again[key]["metrics"].get("psnr_rgb") == first[key]["metrics"].get("psnr_rgb")
        assert "cdc" in again[key]["metrics"] and "cdc" not in first[key]["metrics"]
        assert again[key]["provenance"].get("coloured") == first[key]["provenance"].get("coloured")


def test_other_true_frames_under_the_same_name_are_measured_anew(tmp_path):
    write_clip(tmp_path / "data" / "ants", tiny.clip(FRAMES, seed=0))
    opened = lambda: evalset.open_set(tmp_path / "data", "small", size=None)  # noqa: E731
    first = run(opened(), tmp_path / "out", "flow")
    for path in (tmp_path / "data" / "ants").iterdir():
        path.unlink()
    (tmp_path / "data" / "ants").rmdir()
    write_clip(tmp_path / "data" / "ants", tiny.clip(FRAMES, seed=5))
    second = run(opened(), tmp_path / "out", "flow")
    assert numbers(second) == numbers(run(opened(), tmp_path / "fresh", "flow"))
    assert numbers(second) != numbers(first)


def test_numbers_are_kept_by_content(clips, tmp_path):
    record = run(clips, tmp_path / "out", "flow", metric_names=["psnr_rgb"])["flow", "ants"]
    kept = [p for p in (tmp_path / "out" / "cache").glob("psnr_rgb-*") if json.loads(p.read_text())["value"]
            == record["metrics"]["psnr_rgb"]]  # fmt: skip
    assert len(kept) == 1
    # The same frames under another name are not measured again: a number planted in the cache comes back.
    kept[0].write_text(kept[0].read_text().replace(str(record["metrics"]["psnr_rgb"]), "12.5"))
    place = next((tmp_path / "out" / "frames" / "small").glob("flow-*"))
    planted = run(clips, tmp_path / "out", f"theirs=folder:{place}", metric_names=["psnr_rgb"])
    assert planted["theirs", "ants"]["metrics"]["psnr_rgb"] == 12.5
    assert planted["theirs", "bees"]["metrics"]["psnr_rgb"] != 12.5


def test_numbers_asked_for_later_are_kept_under_the_same_name(clips, tmp_path):
    """A record read back must name the true frames and the others in the order of the first run."""
    run(clips, tmp_path / "a", "flow", metric_names=["psnr_rgb", "cdc"])
    run(clips, tmp_path / "b", "flow", metric_names=["psnr_rgb"])
    run(clips, tmp_path / "b", "flow", metric_names=["psnr_rgb", "cdc"])
    names = [sorted(path.name for path in (tmp_path / out / "cache").iterdir()) for out in ("a", "b")]
    assert names[0] == names[1] and len(names[0]) == 6


def test_distances_keep_to_the_frames_of_their_own_run(clips, data, tmp_path, monkeypatch):
    """The first 6 frames measured after all 8, into the same folder: each distance is to the true frames of its run."""
    from gcgkit.evaluation.columns import METRICS
    from gcgkit.evaluation.table import render
    from gcgkit.metrics import networks

    features = lambda name, frames, device=None: np.stack([f.mean(axis=(0, 1)) for f in frames])  # noqa: E731
    monkeypatch.setattr(networks, "features", features)
    monkeypatch.setattr(networks, "missing", lambda name: None)
    monkeypatch.setattr(networks, "identity", lambda name: {})
    run(clips, tmp_path, "flow", metric_names=["fd_efficientnet"])
    run(evalset.open_set(data, "small", size=None, limit=6), tmp_path, "flow", metric_names=["fd_efficientnet"])
    text = render(evaluation.read_results(tmp_path))
    for count, group in zip((FRAMES, 6), text.split("Measured here on small")[1:], strict=True):
        truths = [tiny.clip(FRAMES, seed=seed)[:count] for seed in (0, 1)]
        flows = [baselines.propagate_by_flow(to_gray(t), t[0]) for t in truths]
        sides = [np.concatenate([features("", c[1:]) for c in clips_]) for clips_ in (flows, truths)]
        expected = networks.frechet_distance(*sides)
        digits = METRICS["fd_efficientnet"].digits
        assert f": 2 clips, {2 * count} frames" in group and f" {expected:.{digits}f}†" in group


def test_a_clip_too_large_for_memory_gives_the_same_numbers(clips, tmp_path, monkeypatch):
    expected = numbers(run(clips, tmp_path / "a", "flow"))
    monkeypatch.setattr(evalset, "_HOLD", 10_000)  # less than two frames
    anew = evalset.open_set(clips.paths["ants"].parent, "small", size=None)
    assert numbers(run(anew, tmp_path / "b", "flow")) == expected


# --- killed ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_run_goes_on_without_repeating_and_with_the_same_numbers(tmp_path):
    count = 16
    for seed in range(count):
        write_clip(tmp_path / "data" / f"clip{seed:02d}", tiny.clip(12, 96, 160, seed=seed))
    command = [
        sys.executable, "-m", "gcgkit.cli", "evaluate", "--data", str(tmp_path / "data"), "--size", "keep", "--method",
        "flow", "--metrics", "psnr_rgb", "cdc", "flow_warp_error", "--out",
    ]  # fmt: skip
    options = {"cwd": ROOT, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    out = tmp_path / "out"
    process = subprocess.Popen([*command, str(out)], **options)
    try:
        while len(list(out.glob("records/data/flow-*/*.json"))) < 2:
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    finally:
        process.wait()
    done = {path: path.stat().st_mtime_ns for path in out.glob("records/data/flow-*/*.json")}
    assert 2 <= len(done) < count and not (out / "results.jsonl").exists()
    for path in done:
        json.loads(path.read_text())  # no half-written record
    assert subprocess.run([*command, str(out)], check=False, **options).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in done} == done
    subprocess.run([*command, str(tmp_path / "whole")], check=True, **options)
    told = [
        {(r["method"], r["clip"]): (r["metrics"], r["contents"]) for r in evaluation.read_results(folder)}
        for folder in (out, tmp_path / "whole")
    ]
    assert told[0] == told[1] and len(told[0]) == 2 * count
    assert (out / "table.md").read_text() == (tmp_path / "whole" / "table.md").read_text()
    assert not list(out.rglob("*.new")) and not list(out.rglob("*partial*"))


DYING = """
import os, signal, sys
from pathlib import Path
from gcgkit.evaluation import clips as evalset
from gcgkit.evaluation import methods
from gcgkit.evaluation import run as evaluation

class Dying(methods.Baseline):
    def run(self, request, folder):
        def frames(colored):
            for number, frame in enumerate(colored):
                if request.clip == "bees" and number == 3:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield frame
        return methods.write_frames(frames(methods._BASELINES["flow"](request)), folder)

clips = evalset.open_set(sys.argv[1], "small", size=None)
evaluation.evaluate(clips, [Dying("flow", "flow")], sys.argv[2], metric_names=["psnr_rgb", "cdc"], progress=False)
"""


def test_nothing_is_left_of_a_clip_whose_frames_were_being_written(clips, data, tmp_path):
    out = tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", DYING, str(data), str(out)], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert {path.parent.name for path in out.rglob("00000.png")} > {"ants"}  # ants whole, bees begun
    records = {path.name: path.stat().st_mtime_ns for path in out.glob("records/small/flow-*/*.json")}
    assert list(records) == ["ants.json"]
    again = run(clips, out, "flow", metric_names=["psnr_rgb", "cdc"])
    assert numbers(again) == numbers(run(clips, tmp_path / "whole", "flow", metric_names=["psnr_rgb", "cdc"]))
    assert next(out.glob("records/small/flow-*/ants.json")).stat().st_mtime_ns == records["ants.json"]
    left = lambda folder: sorted(path.name for path in (folder / "frames").rglob("*"))  # noqa: E731
    assert left(out) == left(tmp_path / "whole") and not any(name.startswith(".") for name in left(out))


@pytest.mark.slow
def test_processes_of_accelerate_share_the_clips(clips, tmp_path):
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "gcgkit.cli", "evaluate", "--data",
        str(clips.paths["ants"].parent), "--size", "keep", "--name", "small", "--method", "flow", "--metrics",
        *CLASSICAL, "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    alone = run(clips, tmp_path / "alone", "flow")
    shared = {(r["method"], r["clip"]): r for r in evaluation.read_results(tmp_path / "out")}
    assert numbers(shared) == numbers(alone)
    assert done.stdout.count("The table:") == 1


# --- planted faults --------------------------------------------------------------------------------------------------


def plant(data, folder, change, only="ants"):
    """The true frames as somebody's result, one clip of them changed."""
    for name in ("ants", "bees"):
        frames = video.read(data / name).frames
        write_clip(folder / name, change(frames) if name == only else frames)
    return folder


def drop(frames):
    return frames[:-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f[..., ::-1], "red and blue exchanged"),
        (lambda f: (f / 255).astype(np.uint8), "values of 0 and 1 alone"),
        (drop, f"holds {FRAMES - 1} frames, the true clip {FRAMES}"),
        (lambda f: np.stack([cv2.resize(x, (32, 16)) for x in f]), "32x16, the true ones are 64x32"),
    ],
    ids=["swapped", "unit-range", "one-less", "other-size"],
)
def test_a_fault_in_a_folder_is_told_in_one_sentence_and_stops_no_other_clip(data, clips, tmp_path, change, message):
    folder = plant(data, tmp_path / "theirs", change)
    with pytest.raises(ValueError, match=message) as caught:
        run(clips, tmp_path / "out", f"theirs=folder:{folder}")
    assert str(caught.value).startswith("theirs, ants:") and "\n" not in str(caught.value)
    done = {(r["method"], r["clip"]) for r in evaluation.read_results(tmp_path / "out")}
    assert done == {("truth", "ants"), ("truth", "bees"), ("theirs", "bees")}


def test_a_missing_frame_or_folder_is_named(data, clips, tmp_path):
    folder = plant(data, tmp_path / "theirs", lambda f: f)
    (folder / "ants" / "00003.png").unlink()
    with pytest.raises(ValueError, match="ants lacks the frame 00003.png"):
        run(clips, tmp_path / "out", f"theirs=folder:{folder}")
    (folder / "ants").rename(folder / "wasps")
    with pytest.raises(ValueError, match="ants does not exist; put the frames of ants there"):
        run(clips, tmp_path / "out2", f"theirs=folder:{folder}", metric_names=["cdc"])


def test_frames_of_two_sizes_are_refused(data, clips, tmp_path):
    folder = plant(data, tmp_path / "theirs", lambda f: f)
    frame = cv2.imread(str(folder / "ants" / "00002.png"))
    cv2.imwrite(str(folder / "ants" / "00002.png"), cv2.resize(frame, (32, 16)))
    with pytest.raises(ValueError, match=r"00002\.png is 32x16 and"):
        run(clips, tmp_path / "out", f"theirs=folder:{folder}")


def test_a_short_clip_has_no_cdc_and_says_why(tmp_path):
    write_clip(tmp_path / "data" / "short", tiny.clip(3))
    record = run(evalset.open_set(tmp_path / "data", size=None), tmp_path / "out", "flow")["flow", "short"]
    assert "psnr_rgb" in record["metrics"] and "cdc" not in record["metrics"]
    assert "2 frame(s); CDC needs at least 5" in record["not_measured"]["cdc"]


def test_gray_frames_are_measured_and_noted(data, clips, tmp_path):
    folder = plant(data, tmp_path / "theirs", lambda f: np.repeat(to_gray(f)[..., None], 3, axis=-1))
    record = run(clips, tmp_path / "out", f"theirs=folder:{folder}")["theirs", "ants"]
    assert record["metrics"]["colorfulness"] == 0 and record["notes"] == ["the frames hold no colour"]


def test_a_method_that_is_not_here_is_recorded_with_its_reason(data, clips, tmp_path):
    plant(data, tmp_path / "random", lambda f: f)
    (tmp_path / "random" / images.RANDOM_WEIGHTS).write_text("x")
    specs = ("Ours=gcg:mini-none", f"x=folder:{tmp_path / 'nowhere'}", f"y=folder:{tmp_path / 'random'}")
    records = run(clips, tmp_path / "out", *specs)
    absent = {m: r["absent"] for (m, clip), r in records.items() if clip is None}
    assert "mini-none" in absent["Ours"] and "is no folder" in absent["x"] and "random weights" in absent["y"]
    plant(data, tmp_path / "nowhere", lambda f: f)
    records = run(clips, tmp_path / "out", specs[1])
    assert ("x", None) not in records and ("x", "ants") in records


def test_changed_frames_of_a_folder_are_measured_anew(data, clips, tmp_path):
    folder = plant(data, tmp_path / "theirs", lambda f: np.repeat(to_gray(f)[..., None], 3, axis=-1))
    first = run(clips, tmp_path / "out", f"theirs=folder:{folder}")
    for number, frame in enumerate(tiny.clip(FRAMES, seed=0)):
        cv2.imwrite(str(folder / "ants" / f"{number:05d}.png"), frame[..., ::-1])
    second = run(clips, tmp_path / "out", f"theirs=folder:{folder}")
    assert second["theirs", "ants"]["metrics"]["psnr_rgb"] == metrics.PSNR_CAP
    assert second["theirs", "bees"] == first["theirs", "bees"]


@pytest.mark.parametrize("swapped", [False, True])
def test_swapped_channels_are_seen_only_where_they_are(swapped):
    truth = tiny.clip(4)
    gray = to_gray(truth)
    kept = baselines.propagate_by_flow(gray, truth[0])  # keeps L*, not luma
    for frames in (truth, kept):
        assert metrics.swapped_channels(iter(frames[..., ::-1] if swapped else frames), iter(gray)) == swapped
    plain = np.repeat(gray[..., None], 3, axis=-1)
    assert not metrics.swapped_channels(plain, gray)
    for channel in range(3):  # a tint, or a method that repaints lightness, is no exchange
        tinted = plain.astype(int)
        tinted[..., channel] += 25
        assert not metrics.swapped_channels(np.clip(tinted, 0, 255).astype(np.uint8), gray)
    assert not metrics.swapped_channels(np.clip(truth.astype(int) + 30, 0, 255).astype(np.uint8), gray)
    with pytest.raises(ValueError, match="must have the same number"):
        metrics.swapped_channels(truth, gray[:-1])


# --- intervals -------------------------------------------------------------------------------------------------------


def test_bootstrap_interval_of_two_values_is_known():
    """Means of two draws of {0, 1} are 0, 1/2, 1 with chances 1/4, 1/2, 1/4."""
    assert evaluation.bootstrap_interval([0, 1]) == (0.0, 1.0)
    assert evaluation.bootstrap_interval([0, 1], level=0.4) == (0.5, 0.5)
    assert evaluation.bootstrap_interval([3.0]) is None
    assert evaluation.bootstrap_interval([2.0, 2.0, 2.0]) == (2.0, 2.0)
    with pytest.raises(ValueError, match="level"):
        evaluation.bootstrap_interval([1, 2], level=95)


def test_bootstrap_interval_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(3).gamma(2.0, 5.0, 30)
    expected = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=1).confidence_interval
    found = evaluation.bootstrap_interval(values)
    np.testing.assert_allclose(found, expected, atol=0.1)
    assert found == evaluation.bootstrap_interval(values)


# --- sets, methods and results ---------------------------------------------------------------------------------------


def test_sets_are_found_in_every_layout(tmp_path, data):
    davis = tmp_path / "DAVIS"
    for name in ("cow", "dog"):
        write_clip(davis / "JPEGImages/480p" / name, tiny.clip(6, 48, 96))
    (davis / "ImageSets/2017").mkdir(parents=True)
    (davis / "ImageSets/2017/val.txt").write_text("dog\n")
    assert evalset.open_set(tmp_path).clips == evalset.open_set(davis).clips == ["cow", "dog"]
    with pytest.raises(FileNotFoundError, match=r"train.txt does not exist: .*davis\.py .*there: val"):
        evalset.open_set(davis, split="train")
    half = evalset.open_set(tmp_path, split="val", limit=4)
    assert half.clips == ["dog"] and half.name == "DAVIS-val"
    frames = list(half.frames("dog"))
    assert len(frames) == 4 and frames[0].shape == (256, 448, 3)
    expected = cv2.resize(tiny.clip(6, 48, 96)[3], (448, 256), interpolation=cv2.INTER_CUBIC)
    np.testing.assert_array_equal(frames[3], expected)
    video.write(tmp_path / "films" / "one.mkv", tiny.clip(5), 25, lossless=True)
    films = evalset.open_set(tmp_path / "films", size=None)
    np.testing.assert_array_equal(np.stack(list(films.frames("one"))), tiny.clip(5))
    assert evalset.open_set(data, clips=["bees"]).describe() == {
        "name": data.name, "size": [256, 448], "limit": None, "clips": 1, "chosen": True,
    }  # fmt: skip


def test_a_prepared_folder_is_a_set(tmp_path, data):
    from gcgkit.data import prepare as preparation

    preparation.prepare(preparation.folder_sources(data), tmp_path / "davis-test-dev", size=(32, 64))
    opened = evalset.open_set(tmp_path / "davis-test-dev", size=None)
    assert opened.name == "davis-test-dev" and opened.clips == ["ants", "bees"]
    np.testing.assert_array_equal(np.stack(list(opened.frames("bees"))), tiny.clip(FRAMES, seed=1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: evalset.open_set(d, clips=["cats"]), "no clip called 'cats'; it has ants, bees"),
        (lambda d: evalset.open_set(d, split="val"), "ImageSets"),
        (lambda d: evalset.open_set(d, limit=0), "limit"),
        (lambda d: evalset.open_set(d / "nothing"), "is not a folder"),
        (lambda d: evalset.open_set(d, "a/b"), "name must be fit for a folder"),
        (lambda d: methods.parse("better"), "is no method: write"),
        (lambda d: methods.parse("gray:3"), "takes no argument"),
        (lambda d: methods.parse("folder"), "takes one argument"),
        (lambda d: methods.parse("gcg:mini,reference=last"), "reference must be"),
        (lambda d: methods.parse("system:photoshop"), "no system called 'photoshop'"),
        (lambda d: columns.choose(["ssim"]), "no metric called 'ssim'"),
        (lambda d: evaluation.read_results(d), "results.jsonl does not exist"),
        (lambda d: run(evalset.open_set(d), d / "x", "gray", "gray"), "names of their own"),
        (lambda d: run(evalset.open_set(d), d / "x", "truth=flow"), "none may be called 'truth'"),
        (lambda d: run(evalset.open_set(d), d / "x", "flow", first=-1), "first must be"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(data, call, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        call(data)


def test_methods_are_read_from_their_short_form(tmp_path):
    (tmp_path / "words.json").write_text('{"ants": "red ants"}')
    ours = methods.parse(f"Ours***=gcg:mini,use_srg=false,tau=4,noise=fresh,prompts={tmp_path / 'words.json'}", seed=7)
    assert (ours.name, ours.profile, ours.seed) == ("Ours***", "mini", 7)
    assert ours.options == {"use_srg": False, "tau": 4, "noise": "fresh"} and ours.prompts == {"ants": "red ants"}
    assert methods.parse("DExemplar=folder:/a/b") == methods.Folder("DExemplar", Path("/a/b"))
    assert methods.parse("flow") == methods.Baseline("flow", "flow")
    rows = methods.table1_methods(num_inference_steps=4)
    assert [m.name for m in rows[:-1]] == ["gray", "transfer", "flow", "Ours", "Ours*", "Ours**", "Ours***"]
    assert rows[-2].options == {**rows[3].options, "use_srg": False} and rows[3].options["num_inference_steps"] == 4
    assert rows[-1].name == methods.OWN_SETTINGS and rows[-1].options == {"num_inference_steps": 4}


def test_a_line_cut_off_at_the_end_is_left_out(clips, tmp_path):
    run(clips, tmp_path, "flow")
    path = tmp_path / "results.jsonl"
    whole = evaluation.read_results(tmp_path)
    path.write_text(path.read_text() + '{"schema": 1, "met')
    assert evaluation.read_results(tmp_path) == whole
    path.write_text('{"broken\n' + path.read_text())
    with pytest.raises(ValueError, match="line 1, is no result"):
        evaluation.read_results(tmp_path)


# --- the command -----------------------------------------------------------------------------------------------------


def command(*arguments):
    return cli.main(["evaluate", *map(str, arguments)])


def test_the_command_measures_and_writes_the_table(data, tmp_path, capsys):
    out = tmp_path / "out"
    shared = ("--data", data, "--name", "small", "--size", "64x32", "--metrics", "psnr_rgb", "cdc", "--out", out)
    assert command(*shared, "--method", "gray", "--method", "flow") == 0
    told = capsys.readouterr().out
    table = (out / "table.md").read_text()
    assert table in told and "flow †" in table and "Measured here on small: 2 clips, 16 frames, 64x32" in table
    # One more row later, in another format, from the same folder.
    assert command(*shared, "--method", "transfer", "--table", out / "table.tex") == 0
    text = (out / "table.tex").read_text()
    assert all(name in text for name in ("gray", "flow", "transfer")) and "\\toprule" in text
    assert command(*shared, "--method", "flow", "--size", "wide") == 1
    assert "--size takes WIDTHxHEIGHT" in capsys.readouterr().err
    assert command(*shared, "--table", "x.pdf") == 1
    assert command(*shared, "--set", "tau") == 1


def test_prompts_come_from_a_caption_file_and_are_kept_with_their_source(data, tmp_path, capsys):
    tiny.pipeline(tmp_path / "source").save_pretrained(tmp_path / "model")
    lines = [
        {"clip": clip, "frame": frame, "caption": f"a {thing}", "source": "BLIP, gray frames"}
        for clip, frame, thing in (("ants", 0, "car"), ("ants", 30, "sky"), ("bees", 0, "grass"))
    ]
    captions = tmp_path / "captions.jsonl"
    captions.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    spec = f"Ours=gcg:{tmp_path / 'model'},num_inference_steps=1"
    shared = ("--data", data, "--name", "small", "--size", "keep", "--metrics", "psnr_rgb", "--device", "cpu")
    for by, options in (("file", ("--prompts", captions)), ("folder", ("--prompts", tmp_path)), ("own", ())):
        own = f",prompts={captions}" if by == "own" else ""
        assert command(*shared, *options, "--method", spec + own, "--out", tmp_path / by) == 0
        records = [r for r in evaluation.read_results(tmp_path / by) if r["method"] == "Ours"]
        assert [r["identity"]["prompts"] for r in records] == [{"ants": "a car", "bees": "a grass"}] * 2
        assert {r["identity"]["prompts_source"] for r in records} == {"BLIP, gray frames"}
        assert "Ours on small: " in (told := capsys.readouterr().out) and "prompts BLIP, gray frames" in told
    numbers = [[r["metrics"] for r in evaluation.read_results(tmp_path / by)] for by in ("file", "own")]
    assert numbers[0] == numbers[1]
    captions.write_text('{"clip": "wasps", "frame": 0, "caption": "x"}\n', encoding="utf-8")
    assert command(*shared, "--prompts", captions, "--method", spec, "--out", tmp_path / "x") == 1
    assert "no clip of small: give the captions of this set" in capsys.readouterr().err
    assert command(*shared, "--method", spec, "--weights", "a", "b", "c", "--out", tmp_path / "x") == 1
    assert "--weights is for the usual rows" in capsys.readouterr().err


def test_several_seeds_are_run_for_our_rows_alone(data, tmp_path, capsys):
    tiny.pipeline(tmp_path / "source").save_pretrained(tmp_path / "model")
    shared = (
        "--data", data, "--name", "small", "--size", "keep", "--metrics", "psnr_rgb", "--device", "cpu",
        "--method", "gray", "--method", f"Ours=gcg:{tmp_path / 'model'},num_inference_steps=1",
    )  # fmt: skip
    assert command(*shared, "--seed", 3, 5, "--out", tmp_path / "both") == 0
    table = capsys.readouterr().out
    found = evaluation.read_results(tmp_path / "both")
    assert [r["identity"].get("seed") for r in found if r["method"] == "gray"] == [None, None]
    numbers = {(r["identity"]["seed"], r["clip"]): r["metrics"]["psnr_rgb"] for r in found if r["method"] == "Ours"}
    assert {seed for seed, _ in numbers} == {3, 5} and len(set(numbers.values())) == len(numbers) == 4
    assert f"{np.mean(list(numbers.values())):.2f}†" in table
    assert command(*shared, "--seed", 5, "--out", tmp_path / "one") == 0
    for r in evaluation.read_results(tmp_path / "one"):
        if r["method"] == "Ours":
            assert r["metrics"]["psnr_rgb"] == numbers[5, r["clip"]]


def test_a_method_that_was_asked_for_and_is_not_here_is_told(data, tmp_path, capsys):
    out = tmp_path / "out"
    shared = ("--data", data, "--size", "keep", "--metrics", "psnr_rgb", "--method", "gray", "--out", out)
    assert command(*shared, "--method", f"T=folder:{tmp_path / 'nowhere'}") == 1
    told = capsys.readouterr()
    assert told.err.count("\n") == 1 and f"no result for T: {tmp_path / 'nowhere'} is no folder" in told.err
    assert "gray †" in (out / "table.md").read_text() and "The table:" in told.out


def test_a_failed_clip_still_leaves_the_table(data, tmp_path, capsys):
    folder = plant(data, tmp_path / "theirs", drop)
    out = tmp_path / "out"
    code = command(
        "--data", data, "--size", "keep", "--metrics", "psnr_rgb", "--method", f"T=folder:{folder}", "--out", out
    )
    told = capsys.readouterr()
    assert code == 1 and "every frame is needed" in told.err
    assert "T (1 of 2 clips) †" in (out / "table.md").read_text()


@pytest.mark.parametrize(
    "words", [("--set", "tua=4"), ("--method", "gcg:mini", "--set", "tua=4"), ("--method", "gcg:mini,tua=4"),
              ("--method", "gray", "--set", "tua=4")],
)  # fmt: skip
def test_an_option_that_does_not_exist_is_refused_before_anything_is_made(data, tmp_path, capsys, words):
    assert command("--data", data, "--size", "keep", "--out", tmp_path / "out", "--set", "chunk=4", *words) == 1
    told = capsys.readouterr().err
    assert "did you mean 'tau'" in told and told.count("\n") == 1 and not (tmp_path / "out").exists()


def test_importing_for_the_command_needs_no_torch():
    modules = "gcgkit.cli.evaluate, gcgkit.evaluation.run, gcgkit.evaluation.table"
    program = f"import sys, {modules}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True,
                          env={**os.environ})  # fmt: skip
    assert done.stdout.strip() == "False"
