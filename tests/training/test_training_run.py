"""Whole training runs at toy size: checkpoints, the pipeline that comes out, validation, log, and faults."""

import json
import math
import random
from pathlib import Path

import numpy as np
import prepared
import pytest
import tiny
import torch
from accelerate import Accelerator
from PIL import Image
from prepared import last_checkpoint as last
from prepared import run, same_files
from prepared import run_config as config
from safetensors.torch import load_file

from gcgkit import GCGPipeline, cli
from gcgkit.data.sampling import Positions
from gcgkit.lessons import plots
from gcgkit.training import checkpoints, recipes, validation
from gcgkit.training import config as configs
from gcgkit.training import log as training_log
from gcgkit.training import run as training_run
from gcgkit.training.log import read_log
from gcgkit.training.step import Learner

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="bit for bit is promised on the CPU only")


def info(checkpoint: Path) -> dict:
    return json.loads((checkpoint / "state.json").read_text())


def test_training_lowers_the_loss(place, tmp_path):
    """Four clips, one seed: a few dozen steps must fit them a good deal better than none."""
    run(place, tmp_path, run__max_steps=40, optimizer__learning_rate=3e-3, model__joint=True, data__cache_variants=1,
        data__cache_views=4, data__recolor=0.0, run__log_every=10, run__save_every=1000)  # fmt: skip
    losses = [line["loss"] for line in read_log(tmp_path)]
    assert losses[-1] < 0.85 * losses[0]


def test_checkpointing_and_passes_change_nothing_but_memory(place, tmp_path):
    whole = run(place, tmp_path / "whole", run__max_steps=3)
    cut = run(place, tmp_path / "cut", run__max_steps=3, run__micro_batch=1, run__gradient_checkpointing=True)
    one, other = (load_file(last(folder.parent) / "weights.safetensors") for folder in (whole, cut))
    moved = 0.0
    for name, weights in training_run.build_pipeline(config(place)).control.named_parameters():
        name = f"control.{name}"
        torch.testing.assert_close(one[name], other[name], atol=2e-5, rtol=1e-3)
        moved = max(moved, float((one[name] - weights.detach()).abs().max()))
    assert moved > 5e-4  # three steps of Adam at 3e-4
    for a, b in zip(read_log(tmp_path / "whole"), read_log(tmp_path / "cut"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5) and a["loss_grid"] == pytest.approx(b["loss_grid"])


def test_mixed_precision_keeps_master_weights(place, tmp_path):
    """bfloat16 with a frozen UNet in half precision: weights stay float32, and the loss is that of float32 nearly."""
    options = {"run__max_steps": 2, "run__log_every": 1, "data__cache_variants": 2, "data__cache_views": 3}
    plain = run(place, tmp_path / "plain", **options)
    mixed = run(place, tmp_path / "mixed", run__precision="bf16", **options)
    dtypes = {w.dtype for w in load_file(last(mixed.parent) / "weights.safetensors").values()}
    assert dtypes == {torch.float32}
    for a, b in zip(read_log(plain.parent), read_log(mixed.parent), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=0.02) and a["loss"] != b["loss"]


# --- checkpoints -----------------------------------------------------------------------------------------------------


def test_a_run_that_is_done_is_not_trained_again(place, tmp_path):
    folder, steps = run(place, tmp_path, run__max_steps=4), []
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file() and p.name != "config.toml"}
    assert run(place, tmp_path, steps.append, run__max_steps=4) == folder
    assert steps == [] and before == {p: p.stat().st_mtime_ns for p in before}
    (folder / "model_index.json").unlink()
    for path in sorted(folder.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    folder.rmdir()
    run(place, tmp_path, steps.append, run__max_steps=4)  # made again from the last checkpoint
    assert steps == [] and (folder / "model_index.json").is_file()


def test_a_run_can_be_made_longer_and_shared_otherwise(place, tmp_path):
    run(place, tmp_path / "whole", run__max_steps=6)
    run(place, tmp_path / "parts", run__max_steps=3, run__micro_batch=2)
    steps = []
    run(place, tmp_path / "parts", steps.append, run__max_steps=6)
    assert steps == [4, 5, 6]
    one, other = (load_file(last(tmp_path / name) / "weights.safetensors") for name in ("whole", "parts"))
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=5e-5, rtol=1e-3)


def test_another_configuration_or_other_data_is_refused(place, tmp_path):
    run(place, tmp_path / "run", run__max_steps=2)
    with pytest.raises(ValueError, match=r"holds a run with another optimizer.learning_rate, run.seed: give another"):
        run(place, tmp_path / "run", run__max_steps=4, run__seed=1, optimizer__learning_rate=1e-3)
    prepared.write_clips(tmp_path / "data", count=2)
    with pytest.raises(ValueError, match="was trained on other data than is there now"):
        training_run.train(config(place, run__max_steps=4), tmp_path / "data", tmp_path / "run", cpu=True)


def test_all_random_states_come_back_after_a_validation():
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    random.gauss(0, 1), np.random.randn()
    draw = lambda: (random.random(), random.gauss(0, 1), np.random.randn(), np.random.rand(), float(torch.rand(1)))  # noqa: E731
    with validation.preserved_random_states():
        inside = draw()
    assert draw() == inside


def test_checkpoints_are_whole_or_not_there(place, tmp_path, monkeypatch):
    """The machine dies in the middle of a save: the checkpoint before stands, and nothing else is left at the end."""
    save_state = Accelerator.save_state

    class Died(Exception):
        pass

    def die(self, folder):
        save_state(self, folder)
        if "00000004" in folder:
            (Path(folder) / "optimizer.bin").write_bytes(b"torn")
            raise Died

    with monkeypatch.context() as patch, pytest.raises(Died):
        patch.setattr(Accelerator, "save_state", die)
        run(place, tmp_path, run__max_steps=6)
    folder = tmp_path / "checkpoints"
    assert [step for step, _ in checkpoints.list_checkpoints(folder)] == [2]
    run(place, tmp_path, run__max_steps=6)
    assert sorted(p.name for p in folder.iterdir()) == ["step-00000004", "step-00000006"]  # keep=2, no rest


@pytest.mark.parametrize("name", ["optimizer.bin", "random_states_0.pkl", "weights.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_named(finished, tmp_path, name):
    learner, folder = finished, tmp_path / "checkpoints"
    for learner.done in (2, 4):
        learner.save(folder, keep=2)
    file = folder / "step-00000004" / name
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(ValueError, match="step-00000004 cannot be read .*: delete this folder to go on"):
        learner.resume(folder)
    checkpoints.remove(folder / "step-00000004")
    assert learner.resume(folder) == 2


@pytest.fixture
def finished():
    """A learner with an optimizer's state."""
    network = torch.nn.Sequential(torch.nn.Linear(2, 2))
    learner = Learner(network, recipes.MINI.optimizer, Accelerator(cpu=True, gradient_accumulation_steps=1), steps=9)
    learner.step(lambda: {"loss": network(torch.ones(1, 2)).square().mean()})
    return learner


@pytest.mark.parametrize("name", ["optimizer.bin", "random_states_0.pkl"])
def test_a_checkpoint_runs_no_code(finished, tmp_path, name):
    """A pickle that would run something is refused, not run."""
    finished.save(tmp_path, keep=1)
    torch.save({"optimizer": Path("/")}, tmp_path / "step-00000001" / name)
    with pytest.raises(ValueError, match="cannot be read"):
        finished.resume(tmp_path)


def test_a_loss_that_is_no_number_stops_the_run_and_is_not_saved(place, tmp_path):
    with pytest.raises(ValueError, match="the loss was no number by step"):
        run(place, tmp_path, run__max_steps=60, optimizer__learning_rate=1e25, optimizer__max_grad_norm=0.0)
    for _, checkpoint in checkpoints.list_checkpoints(tmp_path / "checkpoints"):
        assert all(math.isfinite(total) for total, _ in info(checkpoint)["sums"].values())


# --- what comes out --------------------------------------------------------------------------------------------------


def test_what_comes_out_is_a_pipeline_with_the_averaged_weights(place, tmp_path):
    folder = run(place, tmp_path, run__max_steps=4, run__export_dtype="float16", model__joint=True)
    assert folder == tmp_path / "pipeline"
    pipe = GCGPipeline.from_pretrained(folder)
    averaged, weights = (load_file(last(tmp_path) / f"{n}.safetensors") for n in ("averaged", "weights"))
    for name, saved in pipe.control.state_dict().items():
        assert torch.equal(saved.half(), averaged[f"control.{name}"].half()), name
    for name, saved in pipe.unet.state_dict().items():
        assert torch.equal(saved.half(), averaged[f"unet.{name}"].half()), name
    assert any(not torch.equal(averaged[n], weights[n]) for n in averaged)
    stored = load_file(folder / "control/diffusion_pytorch_model.safetensors")
    assert {weights.dtype for weights in stored.values()} == {torch.float16}
    source = GCGPipeline.from_pretrained(place / "model")
    for name, saved in pipe.vae.state_dict().items():
        assert torch.equal(saved, source.vae.state_dict()[name].half().float())
    assert pipe.config.guidance_scale == source.config.guidance_scale
    frames = pipe(tiny.clip(2), num_inference_steps=2, generator=torch.Generator().manual_seed(0)).frames
    assert frames.shape == (2, 32, 64, 3)


def test_without_averaging_the_weights_themselves_come_out(place, tmp_path):
    folder = run(place, tmp_path, run__max_steps=2, optimizer__ema_decay=0.0)
    assert not (last(tmp_path) / "averaged.safetensors").exists()
    weights = load_file(last(tmp_path) / "weights.safetensors")
    for name, saved in GCGPipeline.from_pretrained(folder).control.state_dict().items():
        assert torch.equal(saved, weights[f"control.{name}"])


def test_validation_colours_held_out_clips_and_leaves_training_alone(place, tmp_path):
    options = {"run__max_steps": 4, "validation__frames": 5, "validation__every": 3}
    run(place, tmp_path / "without", **{**options, "data__exclude": "a,b"})
    run(place, tmp_path / "with", validation__set="davis-val", validation__clips="a,b", **options)
    assert same_files(last(tmp_path / "without"), last(tmp_path / "with"))
    lines = [line for line in read_log(tmp_path / "with") if "validation" in line]
    assert [line["step"] for line in lines] == [3, 4]
    numbers = lines[0]["validation"]["b"]
    assert set(numbers) == {"gray", "exemplar", "automatic", "true"}
    assert numbers["gray"]["colorfulness"] == 0 and numbers["true"]["colorfulness"] > 10
    assert set(numbers["exemplar"]) == {"psnr_rgb", "colorfulness", "cdc"} and "psnr_rgb" not in numbers["true"]
    # the numbers are those of the pipeline that comes out, which has the same weights
    pipe = GCGPipeline.from_pretrained(tmp_path / "with/pipeline")
    pipe.set_progress_bar_config(disable=True)
    truth = tiny.clip(6, *prepared.SIZE, seed=1)[:5]
    generator = torch.Generator().manual_seed(0)
    frames = pipe(truth, reference={0: truth[0]}, num_inference_steps=2, generator=generator).frames
    error = np.mean((frames[1:].astype(float) - truth[1:]) ** 2, axis=(1, 2, 3))
    psnr = float(np.mean(10 * np.log10(255**2 / error)))
    assert lines[1]["validation"]["b"]["exemplar"]["psnr_rgb"] == pytest.approx(psnr, abs=0.02)
    picture = np.asarray(Image.open(tmp_path / "with/validation/b/step-00000004.png"))
    assert picture.shape == (4 * 32, 4 * 64, 3)
    np.testing.assert_array_equal(picture[96:, :64], truth[0])  # the last row is the truth
    np.testing.assert_array_equal(picture[:32, :64, 0], picture[:32, :64, 1])  # the first is gray


@pytest.mark.parametrize(
    ("changes", "count", "left_out"),
    [
        ({}, 4, []),
        ({"validation__set": "davis-val", "validation__clips": "b"}, 3, ["b (validation)"]),
        (
            {"validation__set": "davis-val", "validation__clips": "b", "data__exclude": "d"},
            2,
            ["b (val", "d (data.excl"],
        ),
    ],
)
def test_clips_left_out_of_training_are_named_at_the_start(place, tmp_path, capsys, changes, count, left_out):
    """The data has clips a to d."""
    run(place, tmp_path, run__max_steps=1, validation__every=5, **changes)
    first = capsys.readouterr().out.splitlines()[0]
    assert f"{count} of the 4 clips" in first and all(text in first for text in left_out)
    assert sum(f"{name} (" in first for name in "abcd") == len(left_out)


def test_a_validation_clip_that_is_not_there_is_named(place, tmp_path):
    with pytest.raises(ValueError, match="validation.clips: davis-val has no clip 'z'"):
        run(place, tmp_path, validation__set="davis-val", validation__clips="a,z")


def test_the_log_and_its_plot(place, tmp_path):
    run(place, tmp_path, run__max_steps=5)
    lines = read_log(tmp_path)
    assert [line["step"] for line in lines] == [2, 4, 5]
    assert lines[0]["epoch"] == pytest.approx(2 * 4 / 16) and lines[0]["learning_rate"] == pytest.approx(3e-4)
    for line in lines:
        assert {"loss", "gradient_norm", "steps_per_second"} <= set(line)
    figure = plots.plot_losses(tmp_path, smooth=2)
    (axis,) = figure.axes
    points = {line.get_label(): line.get_xydata() for line in axis.lines if not line.get_label().startswith("_")}
    losses = [line["loss"] for line in lines]
    np.testing.assert_allclose(points["loss"][:, 1], [losses[0], np.mean(losses[:2]), np.mean(losses[1:])])
    assert points["loss"][:, 0].tolist() == [2, 4, 5] and "loss, grid" in points
    both = plots.plot_losses({"one": tmp_path, "two": tmp_path}, names=("gradient_norm",))
    assert [t.get_text() for t in both.axes[0].get_legend().get_texts()] == ["one gradient, norm", "two gradient, norm"]
    with pytest.raises(FileNotFoundError, match="holds no log.jsonl"):
        plots.plot_losses(tmp_path / "none")
    with pytest.raises(ValueError, match="the log has no entry named x"):
        plots.plot_losses(tmp_path, names=("x",))


def test_tensorboard_shows_the_same_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = training_log.TrainingLog(tmp_path)
    log.write({"step": 3, "loss": 0.5, "validation": {"a": {"exemplar": {"psnr_rgb": 20.0}}}})
    log.picture("validation/a", np.zeros((4, 6, 3), np.uint8), 3)
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(3, 0.5)]
    assert events.Scalars("validation/a/exemplar/psnr_rgb")[0].value == 20.0
    assert events.Images("validation/a")[0].width == 6


# --- starts ----------------------------------------------------------------------------------------------------------


def test_new_copies_follow_from_the_seed(place):
    one, two, other = (training_run.build_pipeline(config(place, run__seed=seed)).control for seed in (0, 0, 1))
    same = [torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True)]
    assert all(same)
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    concat = training_run.build_pipeline(config(place, model__mode="concat")).control
    assert concat.guidance.config.mode == "concat"


def test_going_on_with_a_pipelines_own_copy(place, tmp_path):
    folder = run(place, tmp_path / "first", run__max_steps=2)
    kept = training_run.build_pipeline(prepared.config(folder, model__control="keep"))
    averaged = load_file(last(tmp_path / "first") / "averaged.safetensors")
    assert all(torch.equal(w, averaged[f"control.{n}"]) for n, w in kept.control.state_dict().items())
    with pytest.raises(ValueError, match="model.control=keep: the copy in .* has model.mode=gated; set that too"):
        training_run.build_pipeline(prepared.config(folder, model__control="keep", model__mode="attention"))


def test_stable_diffusions_parts_are_put_together(place, tmp_path):
    """A base in Stable Diffusion's layout and an image encoder, as the paper configuration names them."""
    parts = GCGPipeline.from_pretrained(place / "model")
    for name in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        getattr(parts, name).save_pretrained(tmp_path / "base" / name)
    parts.image_encoder.save_pretrained(tmp_path / "vision")
    parts.feature_extractor.save_pretrained(tmp_path / "vision")
    settings = prepared.config(
        tmp_path / "base", model__image_encoder=str(tmp_path / "vision"), run__max_steps=2, model__mode="attention"
    )
    folder = training_run.train(settings, place / "data", tmp_path / "run", cpu=True)
    pipe = GCGPipeline.from_pretrained(folder)
    assert pipe.control.guidance.config.mode == "attention" and pipe.config.height == 32
    with pytest.raises(ValueError, match="has no copy to keep"):
        training_run.build_pipeline(configs.replace(settings, {"model.control": "keep"}))


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"data__height": 40}, "data.height and data.width must be multiples of 16"),
        ({"run__precision": "fp16"}, "run.precision=fp16 needs a GPU"),
        ({"data__sets": "none"}, "none"),
        ({"model__base": "none"}, "neither a profile"),
    ],
)
def test_what_cannot_be_trained_is_told_before_it_begins(place, tmp_path, changes, wrong):
    with pytest.raises((ValueError, FileNotFoundError), match=wrong):
        run(place, tmp_path / "run", run__max_steps=2, **changes)
    assert not (tmp_path / "run").exists()


def test_the_command_trains_and_tells_faults_in_one_sentence(place, tmp_path, capsys):
    command = ["train", *prepared.options(config(place), place, tmp_path / "run")]
    assert cli.main([*command, "--set", "run.max_steps=2"]) == 0
    assert f"The trained pipeline: {tmp_path / 'run/pipeline'}" in capsys.readouterr().out
    assert recipes.load(tmp_path / "run/config.toml").run.max_steps == 2
    for extra, wrong in (
        (["--set", "run.max_steps"], "--set takes KEY=VALUE"),
        (["--set", "run.steps=2"], "there is no setting 'run.steps'"),
        (["--set", "run.seed=5"], "holds a run with another run.seed"),
        (["--config", "none"], "neither a configuration"),
    ):
        assert cli.main([*command, *extra]) == 1
        told = capsys.readouterr().err.strip().splitlines()[-1]
        assert told.startswith("gcgkit: ") and wrong in told


def test_positions_of_the_run_are_those_of_the_checkpoint(place, tmp_path):
    run(place, tmp_path, run__max_steps=3)
    assert info(last(tmp_path))["step"] == 3 and next(iter(Positions(3, 4, 4, 4)))[0] == 12
