"""The learner: network, optimizer, averaged weights, one step, and their checkpoints (§4.1)."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn as nn
from accelerate import Accelerator
from diffusers.training_utils import EMAModel

from .. import encoders as conditioning
from ..data.dataset import Batch, References
from . import checkpoints
from .config import TrainConfig
from .fit import warmup_cosine
from .log import Sums
from .loss import Denoiser, denoising_target, draw_noise, encode_batch, snr_weights

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
OF_PRECISION = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Learner:
    """A network in training. ``step(batches)`` does one step, with one batch for each of its passes.

    Args:
        config: the run's configuration.
        pipe: a ``GCGPipeline`` with the parts; its control, and with ``model.joint`` its UNet, are trained in place.
        accelerator: made with as many gradient accumulation steps as a step has passes, and for "fp16" with that mixed
            precision, whose gradients it scales. Otherwise it has none of its own, since it would be one for all runs
            of a process.
        steps: length of the whole run, for the learning rate.
        precision: "no", "bf16" or "fp16".
        data: a digest of the training data; a checkpoint of other data is refused.
    """

    def __init__(
        self, config: TrainConfig, pipe, accelerator: Accelerator, steps: int, precision: str = "no", data: str = ""
    ):
        self.config, self.pipe, self.accelerator, self.steps, self.data = config, pipe, accelerator, steps, data
        self.device, self.done, self.sums = accelerator.device, 0, Sums()
        run, joint, self.dtype = config.run, config.model.joint, OF_PRECISION[precision]
        self.frozen_dtype = self.dtype if run.frozen_dtype == "auto" else DTYPES[run.frozen_dtype]
        self.scheduler = copy.deepcopy(pipe.scheduler)  # a validation sets the pipeline's own to its steps
        cast = nn.Module.to  # diffusers' own warns of layers to be kept in float32, of which these models have none
        for part in (pipe.vae, pipe.text_encoder, pipe.image_encoder):
            cast(part.requires_grad_(False).eval(), self.frozen_dtype)
        pipe.text_encoder.to(self.device)
        dtype = torch.float32 if joint else self.frozen_dtype
        cast(pipe.unet.requires_grad_(joint).train(joint), device=self.device, dtype=dtype)
        cast(pipe.control.requires_grad_(True).train(), device=self.device, dtype=torch.float32)
        if self.device.type == "cuda":
            for part in (pipe.unet, pipe.control):
                part.to(memory_format=torch.channels_last)  # in which its convolutions in half precision are fastest
        if run.gradient_checkpointing:
            pipe.unet.enable_gradient_checkpointing()
            pipe.control.unet_copy.enable_gradient_checkpointing()
        if run.compile:
            compile_for_training(pipe)
        denoiser = Denoiser(pipe.unet, pipe.control, self.dtype)
        named = [(name, weights) for name, weights in denoiser.named_parameters() if weights.requires_grad]
        self.names, self.parameters = [name for name, _ in named], [weights for _, weights in named]
        decay, self.ema = config.optimizer.ema_decay, None
        if decay:
            self.ema = EMAModel(self.parameters, decay, use_ema_warmup=True, inv_gamma=1.0, power=0.75, foreach=True)
        self.model, self.optimizer = accelerator.prepare(denoiser, make_optimizer(config, self.parameters))

    def encode(self, batch: Batch) -> Batch:
        """Encode a batch into latents on the device."""
        return encode_batch(batch.to(self.device), self.pipe, self.config.model.image_condition, self.device)

    def losses(self, batch: Batch) -> tuple[torch.Tensor, dict[str, tuple[torch.Tensor, int]]]:
        """Return the loss of one encoded batch, and sums and counts for the log.

        Logged are Eq. 11's plain error, whatever weights it has in the loss, and the mean gate, by kind of reference.
        """
        settings, mode = self.config.loss, self.config.model.mode
        target, gray = batch.target.float(), batch.gray.float()
        noise, timestep = draw_noise(batch.seeds, target, self.scheduler.config.num_train_timesteps)
        noisy = self.scheduler.add_noise(target, noise, timestep)
        with torch.no_grad():
            tokenizer, encoder = self.pipe.tokenizer, self.pipe.text_encoder
            text = conditioning.text_embeddings(tokenizer, encoder, batch.captions, self.device)
        groups = [
            References(g.kind, g.rows, g.color.float(), g.gray.float(), g.tokens.to(self.dtype))
            for g in batch.references
        ]
        prediction, hint, gate = self.model(noisy, timestep, text, gray, groups)
        goal = denoising_target(self.scheduler, target, noise, timestep)
        errors = (prediction.float() - goal).square().mean((1, 2, 3))  # (B, C, h, w) -> (B,), Eq. 11
        weighted = errors
        if settings.snr_gamma:
            weighted = errors * snr_weights(self.scheduler, timestep, settings.snr_gamma)
        loss = weighted.mean()
        if settings.hint_weight and mode != "concat":
            hint_errors = (hint.float() - target).square().mean((1, 2, 3))
            if mode == "attention":  # without a gate there is no way to decline a reference that does not match
                for group in groups:
                    if group.kind not in ("single", "grid"):
                        hint_errors = hint_errors.index_fill(0, group.rows, 0.0)
            loss = loss + settings.hint_weight * hint_errors.mean()
        logged = {"loss": (errors.detach().sum(), len(errors))}
        for group in groups:
            logged[f"loss_{group.kind}"] = errors.detach()[group.rows].sum(), len(group.rows)
            if mode == "gated":
                opened = gate.detach()[group.rows].float().mean((1, 2, 3))
                logged[f"gate_{group.kind}"] = opened.sum(), len(group.rows)
        return loss, logged

    def step(self, batches: Iterable[Batch]) -> None:
        """Do one step of the optimizer over one batch per pass."""
        settings = self.config.optimizer
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * self.rate()
        for batch in batches:
            batch = self.encode(batch)
            with self.accelerator.accumulate(self.model):
                loss, logged = self.losses(batch)
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients and settings.max_grad_norm:
                    norm = self.accelerator.clip_grad_norm_(self.parameters, settings.max_grad_norm)
                    self.sums.add("gradient_norm", norm.detach().double(), 1)
                self.optimizer.step()
                self.optimizer.zero_grad()
            for name, (total, count) in logged.items():
                self.sums.add(name, total.double(), count)
        if self.ema is not None:
            self.ema.step(self.parameters)
        self.done += 1

    def rate(self) -> float:
        """Return the factor on the learning rate of the next step."""
        settings = self.config.optimizer
        if settings.schedule == "cosine":
            return warmup_cosine(self.done, self.steps, settings.warmup)
        return min(1.0, (self.done + 1) / settings.warmup) if settings.warmup else 1.0

    def averaged(self) -> dict[str, torch.Tensor]:
        """Return the averaged weights by name, or the weights themselves if none are averaged."""
        return dict(zip(self.names, self.parameters if self.ema is None else self.ema.shadow_params, strict=True))

    def trained_pipeline(self, dtype: torch.dtype):
        """Return a pipeline with copies of the averaged weights in a dtype, and the other parts unchanged.

        Using it does not touch the training.
        """
        averaged, parts = self.averaged(), dict(self.pipe.components)
        for name in ["control"] + ["unet"] * self.config.model.joint:
            source = getattr(self.pipe, name)
            # All values as they are: diffusers marks those that were given by position as defaults, to be left out.
            config = {key: value for key, value in source.config.items() if key != "_use_default_values"}
            with torch.device("meta"):  # no weights that would only be replaced
                part = type(source).from_config(config)
            own = {k.removeprefix(f"{name}."): w for k, w in averaged.items() if k.startswith(f"{name}.")}
            copied = {k: w.detach().to(dtype, copy=True).contiguous() for k, w in own.items()}
            part.load_state_dict(copied, assign=True)
            parts[name] = part.requires_grad_(False).eval()
        parts["scheduler"] = copy.deepcopy(self.scheduler)
        options = inspect.signature(type(self.pipe).__init__).parameters
        own = {name: value for name, value in self.pipe.config.items() if name in options and name not in parts}
        return type(self.pipe)(**parts, **own)

    def save(self, folder: Path) -> None:
        """Write a checkpoint of the present step unless it exists. Every process must call this.

        Raises ValueError, and writes nothing, where the loss has become infinite or no number.
        """
        accelerator, numbers = self.accelerator, self.all_sums()
        if not all(math.isfinite(total) for name, (total, _) in numbers.items() if name.startswith("loss")):
            raise ValueError(divergence_message(self.done))
        if self.done in (step for step, _ in checkpoints.list_checkpoints(folder)):
            return
        accelerator.wait_for_everyone()
        partial = checkpoints.partial_folder(folder, self.done)
        if accelerator.is_main_process:
            checkpoints.begin(folder, self.done)
            checkpoints.write_weights(partial, "weights", dict(zip(self.names, self.parameters, strict=True)))
            if self.ema is not None:
                checkpoints.write_weights(partial, "averaged", self.averaged())
            scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else {}
            checkpoints.write_state(partial, "optimizer", {"optimizer": self.optimizer.state_dict(), "scaler": scaler})
            info = {
                "step": self.done, "position": self.done * self.config.run.batch_size, "data": self.data,
                "averaged": 0 if self.ema is None else self.ema.optimization_step, "sums": numbers,
            }  # fmt: skip
            checkpoints.write_info(partial, info)
        accelerator.wait_for_everyone()
        checkpoints.write_state(partial, f"random-{accelerator.process_index}", checkpoints.random_states())
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            checkpoints.finish(partial, self.config.run.keep)
        accelerator.wait_for_everyone()

    def resume(self, folder: Path) -> int:
        """Load the newest checkpoint, if there is one, and return the step.

        Raises ValueError for a checkpoint that is damaged, or of another network or other data.
        """
        saved = checkpoints.list_checkpoints(folder)
        if not saved:
            return 0
        checkpoint = saved[-1][1]
        info, state = checkpoints.read_info(checkpoint), checkpoints.read_state(checkpoint, "optimizer")
        if info["data"] != self.data:
            raise ValueError(
                f"{checkpoint} was trained on other data than is there now: put back what was changed, or start anew "
                "in another folder."
            )
        self._fill(self.parameters, checkpoint, "weights")
        if self.ema is not None:
            self._fill(self.ema.shadow_params, checkpoint, "averaged")
            self.ema.optimization_step = info["averaged"]
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        own = f"random-{self.accelerator.process_index}"
        if (checkpoint / f"{own}.pt").is_file():  # not there when there are more processes than before
            checkpoints.set_random_states(checkpoints.read_state(checkpoint, own))
        self.sums = Sums(info["sums"] if self.accelerator.is_main_process else None)
        self.done = info["step"]
        return self.done

    @torch.no_grad()
    def _fill(self, tensors: list[torch.Tensor], checkpoint: Path, name: str) -> None:
        saved = checkpoints.read_weights(checkpoint, name)
        if {k: w.shape for k, w in saved.items()} != {k: t.shape for k, t in zip(self.names, tensors, strict=True)}:
            raise ValueError(f"{checkpoint} is of another network: start in another folder, or use its configuration.")
        for key, tensor in zip(self.names, tensors, strict=True):
            tensor.copy_(saved[key])

    def all_sums(self) -> dict[str, list[float]]:
        """Return sums and counts since the last log line, over all processes."""
        numbers = self.sums.numbers()
        if self.accelerator.num_processes == 1:
            return numbers
        everyone: list = [None] * self.accelerator.num_processes
        torch.distributed.all_gather_object(everyone, numbers)
        names = dict.fromkeys(name for found in everyone for name in found)
        return {n: [sum(found.get(n, (0.0, 0.0))[i] for found in everyone) for i in (0, 1)] for n in names}


def divergence_message(step: int) -> str:
    """Return the error message for a loss that is no number."""
    return (
        f"the loss was no number by step {step}, and nothing of that was saved: go on from the last checkpoint with a "
        "lower optimizer.learning_rate, or with run.precision=bf16 in place of fp16, in a new folder."
    )


def make_optimizer(config: TrainConfig, parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
    """Make Adam as configured; ValueError if 8-bit Adam's package is missing."""
    settings = config.optimizer
    options = {"lr": settings.learning_rate, "betas": (settings.beta1, settings.beta2), "eps": settings.epsilon}
    if settings.name == "adam8bit":
        try:
            from bitsandbytes.optim import Adam8bit
        except ImportError as error:
            raise ValueError(
                "optimizer.name=adam8bit needs bitsandbytes, which is not installed: pip install bitsandbytes, or set "
                "optimizer.name=adam."
            ) from error
        return Adam8bit(parameters, **options)
    if settings.name == "adamw":
        return torch.optim.AdamW(parameters, weight_decay=settings.weight_decay, fused=True, **options)
    return torch.optim.Adam(parameters, fused=True, **options)


def compile_for_training(pipe, backend: str = "inductor") -> None:
    """Compile a pipeline's UNet and UNet copy in place, for the static shapes of a training run's batches.

    Kernels are fused, forwards and backwards; there are no CUDA graphs, which would hold gradients in their own memory.
    A batch whose references have another number of image tokens is another shape, and compiled by itself.
    """
    for part in (pipe.unet, pipe.control.unet_copy):
        part.compile(dynamic=False, backend=backend)
