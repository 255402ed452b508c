"""A run of ``gcgkit train``: Eq. 11 over prepared data, on a CPU, one GPU or many, resumable (§3.4.2, §4.1).

    pipeline = train(load("paper"), "data/prepared", "runs/paper")             # the same as the command
    gcgkit train --config paper --data data/prepared --out runs/paper
    accelerate launch -m gcgkit.cli train --config paper --data data/prepared --out runs/paper

A run's folder holds ``config.toml``, ``checkpoints/``, ``log.jsonl``, ``tensorboard/``, ``validation/`` and, at the
end, ``pipeline/``, which ``GCGPipeline.from_pretrained`` reads. The same call resumes from the last checkpoint.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator

from .. import encoders
from ..control import GuidedControlNet
from ..data import latent_cache
from ..data.dataset import Clip, FrameDataset, loader, read_clips
from ..data.sampling import Positions
from ..paper import build_paper
from ..pipeline import GCGPipeline
from . import checkpoints, recipes, validation
from . import config as configs
from .config import TrainConfig
from .log import TrainingLog
from .loop import best_precision, fit
from .loss import Objective
from .step import Learner

__all__ = ["build_pipeline", "total_steps", "train"]


def train(
    config: TrainConfig,
    data: str | Path,
    out: str | Path,
    *,
    cache: str | Path | None = None,
    cpu: bool = False,
    on_step: Callable[[int], None] | None = None,
) -> Path:
    """Train as configured on the prepared sets in ``data`` and return the folder of the finished pipeline.

    out: the run's folder; a run of the same configuration in it is resumed. cache: where latents are kept, ``data`` by
    default. cpu: do without the GPU. on_step(step) is called after each step. Raises ValueError,
    FileNotFoundError and OSError with one sentence.
    """
    data, out, run = Path(data), Path(out), config.run
    _check_folder(config, out)
    cpu = cpu or not torch.cuda.is_available()
    precision = _precision(config, cpu)
    clips = read_clips(data, config.data.sets, [*config.data.exclude, *config.validation.clips])
    held_out = validation.load_clips(config, data)
    # Only "fp16" is accelerate's own, which scales its gradients; it would be one for all runs of a process.
    accelerator = Accelerator(mixed_precision="fp16" if precision == "fp16" else "no", cpu=cpu)
    rank, world = accelerator.process_index, accelerator.num_processes
    accelerator.print(_describe_clips(config, data, clips))
    passes = Positions(0, 0, run.batch_size, run.micro_batch, 0, world).passes
    accelerator.gradient_accumulation_steps = passes
    pipe = build_pipeline(config)
    multiple = encoders.canvas_multiple(pipe.vae, pipe.unet)
    if config.data.height % multiple or config.data.width % multiple:
        raise ValueError(f"data.height and data.width must be multiples of {multiple} for this model.")
    # The encoders get their dtype here, and the cache's content depends on it.
    objective = Objective(config, pipe, accelerator.device, precision)
    objective.network = accelerator.prepare(objective.network)
    if config.data.cache_variants:
        dataset = _cached(config, clips, pipe, accelerator, Path(cache or data))
    else:
        dataset = FrameDataset(data, config.data, run.seed, config.validation.clips)
        for part in filter(None, (pipe.vae, pipe.image_encoder, pipe.semantic_encoder)):
            part.to(accelerator.device)
    steps, batches = total_steps(config, len(dataset)), None

    def loss(step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        nonlocal batches
        if batches is None:  # a resumed run begins here
            positions = Positions(step, steps, run.batch_size, run.micro_batch, rank, world)
            batches = iter(loader(dataset, positions, run.workers, pin=accelerator.device.type == "cuda"))
        return objective(next(batches))

    def after_step(learner: Learner, log: TrainingLog | None) -> None:
        if held_out and (learner.done % config.validation.every == 0 or learner.done == steps):
            if log is not None:
                with validation.preserved_random_states():
                    trained = objective.trained_pipeline(learner.averaged(), objective.frozen_dtype)
                    found = validation.validate(trained, held_out, config.validation.steps, accelerator.device)
                validation.write(*found, learner.done, out, log)
            accelerator.wait_for_everyone()
        if on_step is not None:
            on_step(learner.done)

    if accelerator.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        configs.save(config, out / "config.toml")
    learner = fit(
        out, objective.network, loss, config.optimizer, steps=steps, seed=run.seed, accelerator=accelerator,
        precision="no",  # the network casts by itself
        log_every=run.log_every, save_every=run.save_every, keep=run.keep, epoch=len(dataset) / run.batch_size,
        data=_identity(clips), after_step=after_step,
    )  # fmt: skip
    final = out / "pipeline"
    if accelerator.is_main_process and (batches is not None or not final.is_dir()):
        dtype = getattr(torch, run.export_dtype)
        _save_pipeline(objective.trained_pipeline(learner.averaged(), dtype).to("cpu").to(dtype), final)
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
    options = {name: getattr(model, name) for name in configs.GUIDANCE_OPTIONS}
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
        pyramid, seeing = pipe.control.pyramid, {}
        if pyramid is not None:
            seeing = {name: pipe.control.config[name] for name in ("semantic_channels", "semantic_width")}
        control = GuidedControlNet.from_unet(
            pipe.unet, image_tokens_dim=width, condition_width=model.condition_width, **seeing, **options
        )
        control.pyramid = pyramid  # the recognition stays as it is
        pipe.register_modules(control=control)
        return pipe
    own = pipe.control.guidance.config
    plain = lambda value: list(value) if isinstance(value, tuple) else value  # noqa: E731  as JSON keeps them
    wrong = [f"model.{name}={own[name]}" for name, value in options.items() if plain(own[name]) != plain(value)]
    if wrong:
        raise ValueError(f"model.control=keep: the copy in {model.base} has {', '.join(wrong)}; set that too.")
    return pipe


def _cached(
    config: TrainConfig, clips: list[Clip], pipe: GCGPipeline, accelerator: Accelerator, root: Path
) -> latent_cache.LatentDataset:
    """Return the dataset of latents, encoding missing ones first; processes share the clips among them."""
    condition = config.model.image_condition
    encoding = list(filter(None, (pipe.vae, pipe.image_encoder, pipe.semantic_encoder)))
    folder = latent_cache.cache_folder(root, clips, config.data, pipe, condition)
    if latent_cache.missing(folder, clips):
        for part in encoding:
            part.to(accelerator.device)
        rank, world = accelerator.process_index, accelerator.num_processes
        latent_cache.build_cache(folder, clips, config.data, pipe, condition, accelerator.device, rank, world)
        for part in encoding:
            part.to("cpu")  # from here on only validation needs them
    accelerator.wait_for_everyone()
    return latent_cache.LatentDataset(folder, clips, config.data, config.run.seed)


def _save_pipeline(pipe: GCGPipeline, final: Path) -> None:
    """Save a pipeline in a folder that appears when it is complete."""
    partial = final.with_name(f".{final.name}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    if words := getattr(pipe.tokenizer, "backend_tokenizer", None):  # else its last call would be saved with it
        words.no_truncation()
        words.no_padding()
    pipe.save_pretrained(partial)
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


def _describe_clips(config: TrainConfig, data: Path, clips: list[Clip]) -> str:
    """Return a sentence with the number of training clips, and each that is left out with the setting that does so."""
    sets, used = config.data.sets, {(clip.set, clip.name) for clip in clips}
    present = [(clip.set, clip.name) for clip in read_clips(data, sets)]
    reason = {name: "validation" for name in config.validation.clips} | {
        name: "data.exclude" for name in config.data.exclude
    }
    left_out = [f"{clip[1]} ({reason[clip[1]]})" for clip in present if clip not in used]
    end = f"; left out: {', '.join(left_out)}" if left_out else ""
    return f"Training on {len(clips)} of the {len(present)} clips in {', '.join(sets)}{end}."


def _identity(clips: list[Clip]) -> str:
    """Return a digest of the training data: every clip and its content."""
    content = json.dumps([[clip.set, clip.name, clip.sha256] for clip in clips])
    return hashlib.sha256(content.encode()).hexdigest()
