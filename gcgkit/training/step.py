"""A network in training: one step of the optimizer, averaged weights, and checkpoints for exact resume (§4.1)."""

import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.nn as nn
from accelerate import Accelerator
from accelerate.utils import gather_object
from accelerate.utils import load as load_safely
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file

from . import checkpoints
from .config import OptimizerConfig
from .log import Sums, means

FLOOR = 0.02  # of the peak: where the cosine schedule ends
Losses = dict[str, torch.Tensor]


def rate_factor(step: int, steps: int, warmup: int, schedule: str = "cosine", passed: float | None = None) -> float:
    """Return the factor on the learning rate: linear up over ``warmup`` steps, then constant or half a cosine down.

    passed: the share of a run's time that is over, for the cosine, in place of the share of its steps. The schedules
    of diffusers differ: their first step has a rate of zero and does nothing, and their cosine ends at zero.
    """
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    passed = (step - warmup) / max(1, steps - warmup) if passed is None else passed
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * min(1.0, passed)))


class Learner:
    """A network in training, with its optimizer, its averaged weights and its checkpoints.

    Args:
        network: its children are the parts that may learn. Frozen parameters are neither trained nor saved.
        settings: of the optimizer.
        accelerator: made with as many gradient accumulation steps as a step has passes.
        steps: length of the whole run, for the learning rate.
        seconds: length of the run in time, if that is shorter.
        rates: factors on the learning rate of some parts, by name.
        data: a digest of the training data; a checkpoint of other data is refused.
    """

    def __init__(
        self, network: nn.Module, settings: OptimizerConfig, accelerator: Accelerator, steps: int, *,
        seconds: float | None = None, rates: dict[str, float] | None = None, data: str = "",
    ):  # fmt: skip
        self.settings, self.accelerator, self.steps, self.data = settings, accelerator, steps, data
        self.seconds, self.started = seconds, time.monotonic()
        self.done, self.sums, self.logged = 0, Sums(), (0, 0.0)
        self.inner = accelerator.unwrap_model(network).to(accelerator.device)
        for part in self.inner.children():
            part.train(any(weights.requires_grad for weights in part.parameters()))
        trained = {name: weights for name, weights in self.inner.named_parameters() if weights.requires_grad}
        self.names, self.parameters = list(trained), list(trained.values())
        decay, self.ema = settings.ema_decay, None
        if decay:
            self.ema = EMAModel(self.parameters, decay, use_ema_warmup=True, inv_gamma=1.0, power=0.75, foreach=True)
        groups: dict[str, list] = {}
        for name, weights in trained.items():
            groups.setdefault(name.partition(".")[0], []).append(weights)
        peaks = {part: settings.learning_rate * (rates or {}).get(part, 1.0) for part in groups}
        optimizer = make_optimizer(settings, [{"params": groups[part], "lr": peaks[part]} for part in groups])
        self.peaks = list(peaks.values())
        self.network, self.optimizer = accelerator.prepare(network, optimizer)
        # Weights are written and read here: of what is trained alone, by names that do not depend on the processes.
        accelerator.register_save_state_pre_hook(lambda models, weights, folder: weights.clear())
        accelerator.register_load_state_pre_hook(lambda models, folder: models.clear())

    def elapsed(self) -> float:
        """Return the seconds since the start or the resumption."""
        return time.monotonic() - self.started

    def rate(self) -> float:
        """Return the factor on the learning rate of the next step."""
        passed = self.elapsed() / self.seconds if self.seconds else None
        return rate_factor(self.done, self.steps, self.settings.warmup, self.settings.schedule, passed)

    def step(self, loss: Callable[[], Losses]) -> None:
        """Do one step of the optimizer. ``loss()`` is called once for each pass.

        Minimised is the entry ``objective`` of what it returns, or ``loss`` where there is none. The others are logged.
        """
        factor = self.rate()
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        for _ in range(self.accelerator.gradient_accumulation_steps):
            with self.accelerator.accumulate(self.network):
                parts = dict(loss())
                self.accelerator.backward(parts.pop("objective", parts["loss"]))
                if self.accelerator.sync_gradients and self.settings.max_grad_norm:
                    norm = self.accelerator.clip_grad_norm_(self.parameters, self.settings.max_grad_norm)
                    self.sums.add("gradient_norm", norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
            for name, values in parts.items():
                self.sums.add(name, values)
        if self.ema is not None:
            self.ema.step(self.parameters)
        self.done += 1

    def averaged(self) -> dict[str, torch.Tensor]:
        """Return the averaged weights by name, or the weights themselves if none are averaged."""
        return dict(zip(self.names, self.parameters if self.ema is None else self.ema.shadow_params, strict=True))

    def all_sums(self) -> dict[str, list[float]]:
        """Return sums and counts since the last log line, over all processes."""
        everyone = gather_object([self.sums.numbers()])
        names = dict.fromkeys(name for found in everyone for name in found)
        return {n: [sum(found.get(n, (0.0, 0.0))[i] for found in everyone) for i in (0, 1)] for n in names}

    def log_line(self) -> dict[str, float]:
        """Return the log's line of the steps since the last one, for which every process must call this.

        Raises ValueError for a loss that is no number.
        """
        found, now, (step, since) = means(self.all_sums()), self.elapsed(), self.logged
        if "loss" not in found:
            raise ValueError(divergence_message(self.done))
        self.sums, self.logged = Sums(), (self.done, now)
        speed = float(f"{(self.done - step) / max(1e-9, now - since):.4g}")
        rate = self.optimizer.param_groups[0]["lr"]
        return {
            "step": self.done, "seconds": round(now, 1), **found, "learning_rate": rate, "steps_per_second": speed
        }  # fmt: skip

    def save(self, folder: Path, keep: int) -> None:
        """Write a checkpoint of the present step unless it exists. Every process must call this.

        Raises ValueError, and writes nothing, where the loss has become infinite or no number.
        """
        accelerator, numbers = self.accelerator, self.all_sums()
        if not all(math.isfinite(total) for name, (total, _) in numbers.items() if name.startswith("loss")):
            raise ValueError(divergence_message(self.done))
        if self.done in (step for step, _ in checkpoints.list_checkpoints(folder)):
            return
        accelerator.wait_for_everyone()
        partial = Path(folder) / f".step-{self.done:08d}.tmp"
        if accelerator.is_main_process:
            checkpoints.begin(partial)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(partial))
        if accelerator.is_main_process:
            _write(partial / "weights.safetensors", dict(zip(self.names, self.parameters, strict=True)))
            if self.ema is not None:
                _write(partial / "averaged.safetensors", self.averaged())
            averages = 0 if self.ema is None else self.ema.optimization_step
            info = {"step": self.done, "data": self.data, "averaged": averages, "sums": numbers}
            (partial / "state.json").write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            checkpoints.finish(partial, keep)
        accelerator.wait_for_everyone()

    @torch.no_grad()
    def resume(self, folder: Path) -> int:
        """Load the newest checkpoint, if there is one, and return the step.

        Raises ValueError for a checkpoint that is damaged, or of another network or other data.
        """
        saved = checkpoints.list_checkpoints(folder)
        if not saved:
            return 0
        checkpoint, accelerator = saved[-1][1], self.accelerator
        random_states = checkpoint / f"random_states_{accelerator.process_index}.pkl"
        tensors = {"weights": self.parameters} | ({"averaged": self.ema.shadow_params} if self.ema else {})
        with checkpoints.reading(checkpoint):
            info = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
            read = {name: load_file(checkpoint / f"{name}.safetensors") for name in tensors}
            if random_states.is_file():  # not there when there are more processes than before
                load_safely(random_states)  # of a damaged file accelerate makes nothing
        if info["data"] != self.data:
            raise ValueError(
                f"{checkpoint} was trained on other data than is there now: put back what was changed, or start anew "
                "in another folder."
            )
        shapes = {name: weights.shape for name, weights in zip(self.names, self.parameters, strict=True)}
        if any({name: weights.shape for name, weights in found.items()} != shapes for found in read.values()):
            raise ValueError(f"{checkpoint} is of another network: start in another folder, or use its configuration.")
        with checkpoints.reading(checkpoint):
            accelerator.load_state(str(checkpoint))
        accelerator.step = 0  # of its passes, whose number may be another one than before
        for kind, own in tensors.items():
            for name, tensor in zip(self.names, own, strict=True):
                tensor.copy_(read[kind][name])
        if self.ema is not None:
            self.ema.optimization_step = info["averaged"]
        self.sums = Sums(info["sums"] if accelerator.is_main_process else {})
        self.done = info["step"]
        self.logged = self.done, 0.0
        return self.done


def divergence_message(step: int) -> str:
    """Return the error message for a loss that is no number."""
    return (
        f"the loss was no number by step {step}, and nothing of that was saved: go on from the last checkpoint with a "
        "lower optimizer.learning_rate, or with run.precision=bf16 in place of fp16, in a new folder."
    )


def make_optimizer(settings: OptimizerConfig, parameters: Iterable) -> torch.optim.Optimizer:
    """Make Adam as configured, of parameters or of groups; ValueError if 8-bit Adam's package is missing."""
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


def _write(path: Path, weights: dict[str, torch.Tensor]) -> None:
    save_file({name: tensor.detach().contiguous().cpu() for name, tensor in weights.items()}, path)
