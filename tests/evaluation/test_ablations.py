"""Ablations on a toy model: each setting against the pipeline called by hand, files, and going on where it was."""

import json

import cv2
import numpy as np
import pytest
import tiny
import torch

from gcgkit import color
from gcgkit.evaluation import ablations

FRAMES = 7


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return tiny.pipeline(tmp_path_factory.mktemp("weights"), tau=8.0, strength=0.5)


@pytest.fixture(scope="module")
def truth():
    return tiny.clip(FRAMES)


def setting(group, value=None):
    (found,) = [s for s in ablations.SETTINGS if s.group == group and value in (None, s.value)]
    return found


def guided(pipe, truth):
    g, key = (torch.randn(1, 4, 4, 8, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    with torch.no_grad():
        return g, pipe.control.guidance(g, key, key * 2)


# --- the gate --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, 0.25, 1.0])
def test_a_held_gate_mixes_as_equation_5_says(pipe, truth, value):
    g, trained = guided(pipe, truth)
    with ablations.fixed_gate(pipe.control.guidance, value):
        _, held = guided(pipe, truth)
    assert torch.equal(held.gate, torch.full_like(g, value))
    assert torch.equal(held.color, trained.color)
    assert torch.allclose(held.hint, (1 - value) * g + value * trained.color, atol=1e-6)


def test_the_trained_gate_is_back_afterwards(pipe, truth):
    before = guided(pipe, truth)[1].gate
    weights = pipe.control.state_dict().keys()
    with pytest.raises(RuntimeError), ablations.fixed_gate(pipe.control.guidance, 0.0):
        raise RuntimeError
    assert torch.equal(guided(pipe, truth)[1].gate, before)
    assert pipe.control.state_dict().keys() == weights


def test_a_gate_that_cannot_be_held_is_refused(pipe):
    for value in (-0.1, 1.5):
        with pytest.raises(ValueError, match="from 0 to 1"), ablations.fixed_gate(pipe.control.guidance, value):
            pass
    without = type(pipe.control.guidance)(mode="attention", hidden_dim=8)
    with pytest.raises(ValueError, match="no gate"), ablations.fixed_gate(without, 0.0):
        pass


# --- settings --------------------------------------------------------------------------------------------------------


def test_each_setting_changes_what_it_names_and_nothing_else(pipe):
    own = ablations.resolved(pipe, setting("default"), num_inference_steps=2)
    assert (own["tau"], own["strength"], own["num_inference_steps"], own["gate"]) == (8.0, 0.5, 2, "learned")
    for each in ablations.plan(pipe, num_inference_steps=2)[1:]:
        values = ablations.resolved(pipe, each, num_inference_steps=2)
        changed = {name for name in values if values[name] != own.get(name)}
        assert changed and changed <= {*each.options, "gate"}, each
        assert ("gate" in changed) == (each.gate is not None)


def test_plan_leaves_out_what_is_the_profiles_own_or_cannot_be_set(pipe, tmp_path):
    groups = [(s.group, s.value) for s in ablations.plan(pipe)]
    assert len(set(groups)) == len(groups) and groups[0] == ("default", "the profile's own")
    assert ("strength", "0.5") not in groups and ("strength", "1.0") in groups  # 0.5 is this profile's own
    assert {s.group for s in ablations.plan(pipe, ["tau"])} == {"tau"}
    assert [s.value for s in ablations.plan(pipe, ["num_inference_steps"], num_inference_steps=8)] == ["4", "16", "64"]
    with pytest.raises(ValueError, match="no group of settings 'colour'"):
        ablations.plan(pipe, ["colour"])
    ungated = tiny.pipeline(tmp_path)
    ungated.control.guidance.cdga = None
    assert "gate" not in {s.group for s in ablations.plan(ungated)}


@pytest.mark.parametrize("group, value, options", [
    ("default", None, {}),
    ("tau", "1.0", {"tau": 1.0}),
    ("srg", "first keyframe alone", {"use_srg": False, "single_reference": "first"}),
    ("working_size", "560x320", {"working_size": (320, 560)}),
    ("exemplar", "masked by black", {"reference_mask": True, "mask_latents": "black"}),
    ("grid_tiles", "shrunk", {"grid_tiles": "shrunk"}),
])  # fmt: skip
def test_frames_are_those_of_the_pipeline_called_by_hand(pipe, truth, group, value, options):
    truth = truth[:2] if group == "working_size" else truth  # large canvases take long
    gray = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in truth])
    generator = torch.Generator().manual_seed(3)
    by_hand = pipe(gray, reference={0: truth[0]}, generator=generator, num_inference_steps=4, **options)
    ours = ablations.color_with(pipe, truth, setting(group, value), seed=3, num_inference_steps=4)
    assert np.array_equal(ours.frames, by_hand.frames)
    assert np.array_equal(color.to_gray(truth), gray)


def test_a_shut_gate_makes_the_references_colours_not_matter_to_the_hint(pipe, truth):
    shut = ablations.color_with(pipe, truth, setting("gate", "shut"), num_inference_steps=2, image_condition="none")
    other = truth.copy()
    other[0] = truth[0][..., ::-1]
    again = ablations.color_with(pipe, other, setting("gate", "shut"), num_inference_steps=2, image_condition="none")
    assert np.array_equal(shut.frames[-2], again.frames[-2])
    opened = ablations.color_with(pipe, truth, setting("gate", "open"), num_inference_steps=2, image_condition="none")
    assert not np.array_equal(shut.frames[-2], opened.frames[-2])


# --- numbers and files -----------------------------------------------------------------------------------------------


def test_measure_by_hand():
    truth = tiny.clip(8)
    pred = truth.copy()
    pred[1:, ..., 0] = truth[1:, ..., 0] - 12  # red alone, all frames but the given one
    pred[0] = 0
    numbers = ablations.measure(pred, truth)
    assert numbers["psnr_rgb"] == pytest.approx(10 * np.log10(255**2 / (12**2 / 3)))

    def vividness(frames):
        values = []
        for frame in frames.astype(float):
            rg, yb = frame[..., 0] - frame[..., 1], (frame[..., 0] + frame[..., 1]) / 2 - frame[..., 2]
            values.append(np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean()))
        return np.mean(values)

    assert numbers["colorfulness_ratio"] == pytest.approx(vividness(pred[1:]) / vividness(truth[1:]), rel=1e-6)
    assert numbers["cdc_ratio"] == pytest.approx(1)  # histograms are shifted, which changes none of their distances
    with pytest.raises(ValueError, match="6 frames"):
        ablations.measure(pred[:5], truth[:5])


def test_files_one_a_run_and_a_second_run_makes_nothing_again(pipe, truth, tmp_path):
    made = []
    keep = {"label": "toy", "weights": "a" * 64, "groups": ["default", "gate"], "num_inference_steps": 2}
    callback = lambda p, step, t, kwargs: made.append(step) or {}  # noqa: E731
    paths = ablations.run(pipe, {"blocks": truth}, tmp_path, **keep, callback_on_step_end=callback)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in paths) and len(paths) == 3 and made
    record = json.loads((tmp_path / "toy-blocks-gate_shut.json").read_text(encoding="utf-8"))
    frames = ablations.color_with(pipe, truth, setting("gate", "shut"), num_inference_steps=2).frames
    for name, value in ablations.measure(frames, truth).items():
        assert record[name] == pytest.approx(value, abs=5.1e-5)
    assert record["settings"]["gate"] == "shut" and record["weights"] == "a" * 64 and record["seed"] == 0
    assert record["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert record["seconds"] >= 0 and record["frames"] == FRAMES

    before, made[:] = {p: p.read_bytes() for p in paths}, []
    ablations.run(pipe, {"blocks": truth}, tmp_path, **keep, callback_on_step_end=callback)
    assert not made and before == {p: p.read_bytes() for p in paths}

    for path in paths:  # records from before these options, which had no other value
        older = json.loads(path.read_text(encoding="utf-8"))
        assert (older["settings"].pop("mask_latents"), older["settings"].pop("grid_tiles")) == ("zeros", "full")
        assert older["settings"]["image_condition"] in ("patch", "none")
        path.write_text(json.dumps(older), encoding="utf-8")
    ablations.run(pipe, {"blocks": truth}, tmp_path, **keep, callback_on_step_end=callback)
    assert not made

    paths[1].write_text(paths[1].read_text(encoding="utf-8")[:40], encoding="utf-8")  # cut off
    ablations.run(pipe, {"blocks": truth}, tmp_path, **keep, callback_on_step_end=callback)
    assert made and json.loads(paths[1].read_text(encoding="utf-8"))["psnr_rgb"]

    made.clear()
    ablations.run(pipe, {"blocks": truth}, tmp_path, **{**keep, "weights": "b" * 64}, callback_on_step_end=callback)
    assert made and json.loads(paths[0].read_text(encoding="utf-8"))["weights"] == "b" * 64


def stored(folder, label, group, value, psnr, **settings):
    own = {"tau": 8.0, "strength": 0.5, "gate": "learned", **settings}
    record = {
        "schema": 1, "label": label, "clip": "blocks", "group": group, "value": value, "settings": own,
        "psnr_rgb": psnr, "colorfulness_ratio": 1.0, "cdc_ratio": 1.0, "cpu_seconds": 2.0,
    }  # fmt: skip
    (folder / f"{label}-{group}-{value}.json").write_text(json.dumps(record), encoding="utf-8")


def test_read_and_series_put_the_own_value_among_the_others(tmp_path):
    stored(tmp_path, "toy", "tau", "1000.0", 20.0, tau=1000.0)
    stored(tmp_path, "toy", "tau", "2.0", 21.0, tau=2.0)
    stored(tmp_path, "toy", "default", "the profile's own", 22.0)
    stored(tmp_path, "toy", "gate", "open", 23.0, gate="open")
    stored(tmp_path, "other", "default", "the profile's own", 24.0)
    records = ablations.read(tmp_path, "toy")
    assert [r["psnr_rgb"] for r in records] == [22.0, 21.0, 20.0, 23.0]
    assert [(v, r["psnr_rgb"]) for v, r in ablations.series(records, "tau")] == [(2.0, 21.0), (8.0, 22.0), (1000.0, 20)]
    assert [v for v, _ in ablations.series(records, "gate")] == ["learned", "open"]
    assert ablations.rows(records)["gate: open"]["PSNR, dB"] == 23.0
    assert len(ablations.read(tmp_path)) == 5 and ablations.read(tmp_path, clip="none") == []
    assert ablations.read(tmp_path / "nothing here") == []
    (tmp_path / "odd.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(ValueError, match="odd.json"):
        ablations.read(tmp_path)


def test_measuring_clips_and_the_command_line(pipe, truth, tmp_path, capsys):
    folder = tmp_path / "data/DAVIS/JPEGImages/480p/dog"
    folder.mkdir(parents=True)
    for i, frame in enumerate(truth):
        assert cv2.imwrite(str(folder / f"{i:05d}.jpg"), frame[..., ::-1])
    found = ablations.load_clips(data=tmp_path / "data", frames=6)
    assert list(found) == ["dog"] and found["dog"].shape == (6, 256, 448, 3)
    with pytest.raises(ValueError, match="no measuring clip 'cat'"):
        ablations.load_clips(["cat"], data=tmp_path / "data")
    with pytest.raises(ValueError, match="none of the measuring clips"):
        ablations.load_clips(data=tmp_path)
    weights = tmp_path / "toy"
    pipe.save_pretrained(weights)
    command = ["--weights", str(weights), "--data", str(tmp_path / "data"), "--frames", "6", "--steps", "1",
               "--group", "default", "gate", "--out", str(tmp_path / "out")]  # fmt: skip
    assert ablations.main(command) == 0
    assert "gate: open" in capsys.readouterr().out
    assert [r["label"] for r in ablations.read(tmp_path / "out", clip="dog")] == ["toy"] * 3
    assert ablations.main([*command, "--frames", "5"]) == 1
    assert "raise --frames" in capsys.readouterr().err
    assert ablations.main(["--weights", str(weights), "--clip", "no such clip"]) == 1
    assert "no clip called" in capsys.readouterr().err
