"""The trainer: Eq. 11 over prepared data, on a CPU, one GPU or many, resumable (§3.4.2, §4.1).

    pipeline = train(load("paper"), "data/prepared", "runs/paper")             # the same as the command
    gcgkit train --config paper --data data/prepared --out runs/paper
    accelerate launch -m gcgkit.cli.train --config paper --data data/prepared --out runs/paper

A run's folder holds ``config.toml``, ``checkpoints/``, ``log.jsonl``, ``tensorboard/``, ``validation/`` and, at the
end, ``pipeline/``, which ``GCGPipeline.from_pretrained`` reads. The same call resumes from the last checkpoint:
samples, noise and learning rate follow from the seed and the step, so that on a CPU the weights at the end are those of
a run that was never interrupted, bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from .. import encoders as conditioning
from ..control import GuidedControlNet
from ..data import latent_cache
from ..data.dataset import Clip, FrameDataset, loader, read_clips
from ..data.sampling import Positions
from ..paper import build_paper
from ..pipeline import GCGPipeline
from . import checkpoints, recipes, validation
from . import config as configs
from .config import TrainConfig
from .fit import best_precision
from .log import Sums, TrainingLog
from .step import DTYPES, Learner, divergence_message

__all__ = ["build_pipeline", "total_steps", "train"]


def train(
    config: TrainConfig,
    data: str | Path,
    out: str | Path,
    *,
    pipe: GCGPipeline | None = None,
    cache: str | Path | None = None,
    cpu: bool = False,
    on_step: Callable[[int], None] | None = None,
) -> Path:
    """Train as configured on the prepared sets in ``data`` and return the folder of the finished pipeline.

    out: the run's folder; a run of the same configuration in it is resumed. pipe: trained in place of the
    pipeline that the configuration names. cache: where latents are kept, ``data`` by default. cpu: do without the GPU.
    on_step(step) is called after each step. Raises ValueError, FileNotFoundError and OSError with one sentence.
    """
    data, out = Path(data), Path(out)
    _check_folder(config, out)
    cpu = cpu or not torch.cuda.is_available()
    precision = _precision(config, cpu)
    clips = read_clips(data, config.data.sets, [*config.data.exclude, *config.validation.clips])
    held_out = validation.load_clips(config, data)
    accelerator = Accelerator(mixed_precision="fp16" if precision == "fp16" else "no", cpu=cpu)
    shares = Positions(0, 0, config.run.batch_size, config.run.micro_batch, 0, accelerator.num_processes)
    accelerator.gradient_accumulation_steps = shares.passes
    pipe = pipe or build_pipeline(config)
    multiple = conditioning.canvas_multiple(pipe.vae, pipe.unet)
    if config.data.height % multiple or config.data.width % multiple:
        raise ValueError(f"data.height and data.width must be multiples of {multiple} for this model.")
    # The encoders get their dtype here, and the cache's content depends on it.
    learner = Learner(config, pipe, accelerator, steps=1, precision=precision, data=_identity(clips))
    if config.data.cache_variants:
        dataset = _cached(config, clips, learner, Path(cache or data))
    else:
        dataset = FrameDataset(data, config.data, config.run.seed, config.validation.clips)
        for part in (pipe.vae, pipe.image_encoder):
            part.to(accelerator.device)
    learner.steps = total_steps(config, len(dataset))
    first = learner.resume(out / "checkpoints")
    if accelerator.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        configs.save(config, out / "config.toml")
    if first < learner.steps:
        _loop(learner, dataset, held_out, out, on_step)
    final = out / "pipeline"
    if accelerator.is_main_process and (first < learner.steps or not final.is_dir()):
        _export(learner, final)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return final


def total_steps(config: TrainConfig, samples: int) -> int:
    """Return the steps of a run whose epoch has so many samples: only whole batches count, at least one."""
    steps = max(1, int(config.run.epochs * samples // config.run.batch_size))
    return min(steps, config.run.max_steps) if config.run.max_steps else steps


def build_pipeline(config: TrainConfig) -> GCGPipeline:
    """Build the pipeline to start from, in float32: the configuration's base with a new copy or with its own.

    Raises FileNotFoundError for parts that cannot be had, ValueError for a copy to be kept that is of another kind.
    """
    model = config.model
    options = {
        "mode": model.mode, "stem": model.stem, "hidden_dim": model.hidden_dim, "heads": model.heads,
        "gate_bias": model.gate_bias, "null_token": model.null_token, "dilations": model.dilations,
    }  # fmt: skip
    torch.manual_seed(config.run.seed)  # fresh weights follow from the seed
    if model.image_encoder:
        if model.control == "keep":
            raise ValueError(f"model.control=keep: {model.base} with another image encoder has no copy to keep.")
        return build_paper(
            model.base, model.image_encoder, revision=model.revision or None,
            image_encoder_revision=model.image_encoder_revision or None, height=config.data.height,
            width=config.data.width, condition_width=model.condition_width, **options,
        )  # fmt: skip
    source = {"revision": model.revision} if model.revision else {}
    pipe = GCGPipeline.from_pretrained(model.base, **source)
    if model.control == "new":
        width = pipe.image_encoder.config.projection_dim
        control = GuidedControlNet.from_unet(
            pipe.unet, image_tokens_dim=width, condition_width=model.condition_width, **options
        )
        pipe.register_modules(control=control)
        return pipe
    own = pipe.control.guidance.config
    plain = lambda value: list(value) if isinstance(value, tuple) else value  # noqa: E731  as JSON keeps them
    wrong = [f"model.{name}={own[name]}" for name, value in options.items() if plain(own[name]) != plain(value)]
    if wrong:
        raise ValueError(f"model.control=keep: the copy in {model.base} has {', '.join(wrong)}; set that too.")
    return pipe


def _loop(learner: Learner, dataset, held_out: list, out: Path, on_step: Callable[[int], None] | None) -> None:
    """Run the steps from the learner's present one to the last."""
    config, accelerator, run, first = learner.config, learner.accelerator, learner.config.run, learner.done
    rank, world, main = accelerator.process_index, accelerator.num_processes, accelerator.is_main_process
    positions = Positions(first, learner.steps, run.batch_size, run.micro_batch, rank, world)
    batches = iter(loader(dataset, positions, run.workers, pin=accelerator.device.type == "cuda"))
    log = TrainingLog(out, first) if main else None
    bar = tqdm(
        range(first, learner.steps), initial=first, total=learner.steps, desc="Training", unit="step", mininterval=1.0,
        disable=None if main else True,
    )  # fmt: skip
    since, at = first, time.monotonic()
    for _ in bar:
        learner.step(next(batches) for _ in range(positions.passes))
        step, last = learner.done, learner.done == learner.steps
        if step % run.log_every == 0 or last:
            means = Sums.means(learner.all_sums())
            if "loss" not in means:
                raise ValueError(divergence_message(step))
            learner.sums, now = Sums(), time.monotonic()
            bar.set_postfix(loss=f"{means['loss']:.4f}")
            if log is not None:
                line = {"step": step, "epoch": round(step * run.batch_size / len(dataset), 4), **means}
                line["learning_rate"] = learner.optimizer.param_groups[0]["lr"]
                line["steps_per_second"] = float(f"{(step - since) / max(1e-9, now - at):.4g}")
                log.write(line)
            since, at = step, now
        if held_out and (step % config.validation.every == 0 or last):
            if log is not None:
                with checkpoints.preserved_random_states():
                    pipe = learner.trained_pipeline(learner.frozen_dtype)
                    found = validation.validate(pipe, held_out, config.validation.steps, accelerator.device)
                validation.write(*found, step, out, log)
                del pipe
            accelerator.wait_for_everyone()
        if step % run.save_every == 0 or last:
            learner.save(out / "checkpoints")
        if on_step is not None:
            on_step(step)
    if log is not None:
        log.close()


def _cached(config: TrainConfig, clips: list[Clip], learner: Learner, root: Path) -> latent_cache.LatentDataset:
    """Return the dataset of latents, encoding missing ones first; processes share the clips among them."""
    accelerator, pipe, condition = learner.accelerator, learner.pipe, config.model.image_condition
    folder = latent_cache.cache_folder(root, clips, config.data, pipe, condition)
    encoders = (pipe.vae, pipe.image_encoder)
    missing = latent_cache.missing(folder, clips)
    if missing:
        for part in encoders:
            part.to(accelerator.device)
        rank, world = accelerator.process_index, accelerator.num_processes
        latent_cache.build_cache(folder, clips, config.data, pipe, condition, accelerator.device, rank, world)
        for part in encoders:
            part.to("cpu")  # from here on only validation needs them
    accelerator.wait_for_everyone()
    return latent_cache.LatentDataset(folder, clips, config.data, config.run.seed)


def _export(learner: Learner, final: Path) -> None:
    """Save the pipeline with the averaged weights."""
    partial = final.with_name(f".{final.name}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    dtype = DTYPES[learner.config.run.export_dtype]
    learner.trained_pipeline(dtype).to("cpu").to(dtype).save_pretrained(partial)
    if final.is_dir():
        shutil.rmtree(final)
    os.replace(partial, final)


def _precision(config: TrainConfig, cpu: bool) -> str:
    """Return the mixed precision to use; ValueError for one that the device lacks or only emulates slowly."""
    wanted = config.run.precision
    if wanted == "auto":
        return best_precision("cpu" if cpu else "cuda")
    if wanted == "fp16" and cpu:
        raise ValueError("run.precision=fp16 needs a GPU: set run.precision=auto.")
    if wanted == "bf16" and not cpu and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError("this GPU has no bfloat16: set run.precision=fp16, or take the configuration paper-16gb.")
    return wanted


def _check_folder(config: TrainConfig, out: Path) -> None:
    """Refuse to continue a run that was started with other settings."""
    path = out / "config.toml"
    if path.is_file() and checkpoints.list_checkpoints(out / "checkpoints"):
        before = recipes.load(path)
        changed = [key for key in configs.differences(before, config) if key not in configs.CHANGEABLE]
        if changed:
            raise ValueError(
                f"{out} holds a run with another {', '.join(changed)}: give another folder, or the settings in {path}."
            )


def _identity(clips: list[Clip]) -> str:
    """Return a digest of the training data: every clip and its content."""
    content = json.dumps([[clip.set, clip.name, clip.sha256] for clip in clips])
    return hashlib.sha256(content.encode()).hexdigest()
