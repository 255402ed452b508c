"""The training loop of every network here: accelerate, averaged weights, atomic checkpoints, exact resume (§4.1).

``fit`` is called with a loss. Random draws of a step come from a generator that ``(seed, step)`` determines, and all
other random states are in the checkpoints, so that on a CPU a run that was killed and resumed ends with the weights of
one that was never interrupted, bit for bit.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn as nn
from accelerate import Accelerator
from tqdm.auto import tqdm

from .config import OptimizerConfig
from .log import TrainingLog
from .step import Learner, Losses

SAVE_SECONDS = 120.0


def best_precision(device: torch.device | str | None = None) -> str:
    """Return the fastest safe mixed precision of a device, for accelerate: ``"bf16"`` or ``"no"``.

    A CPU without bfloat16 instructions emulates them a hundred times slower than float32, so it gets ``"no"``.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    return "bf16" if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported() else "no"


def seeded(seed: int, step: int) -> torch.Generator:
    """Return the CPU generator for one step of one run."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)


def fit(
    folder: str | Path,
    network: nn.Module | dict[str, nn.Module],
    loss: Callable[[int, torch.Generator], Losses],
    settings: OptimizerConfig,
    *,
    steps: int,
    seconds: float | None = None,
    seed: int = 0,
    rates: dict[str, float] | None = None,
    precision: str | None = None,
    accelerator: Accelerator | None = None,
    log_every: int = 20,
    save_every: int | None = None,
    keep: int = 2,
    epoch: float | None = None,
    data: str = "",
    after_step: Callable[[Learner, TrainingLog | None], None] | None = None,
    title: str = "Training",
) -> Learner:
    """Train a network, or several by name, on ``loss(step, generator)``, and leave it with its averaged weights.

    ``Learner.step`` describes the values of the loss; they may have any shape, and their means are logged. A second
    call with the same folder continues from the last of its ``checkpoints``; ``log.jsonl`` lies beside them.

    settings: of the optimizer. seconds: stop after this time if ``steps`` are not done by then, with a learning rate
    that falls by the clock. rates: factors on the learning rate of some modules. precision: "bf16" for autocast around
    the loss, "no", or None for the best of the device. save_every: steps between checkpoints, None for every two
    minutes. epoch: its length in steps, for the log. data: see ``Learner``. after_step(learner, log) is called after
    each step, before it is saved; other processes than the main one have no log. Raises ValueError for a loss that is
    no number, and for a checkpoint that cannot be continued.
    """
    folder = Path(folder)
    network = nn.ModuleDict(network) if isinstance(network, dict) else network
    accelerator = accelerator or Accelerator(
        mixed_precision="no", cpu=not torch.cuda.is_available(), gradient_accumulation_steps=1
    )
    learner = Learner(network, settings, accelerator, steps, seconds=seconds, rates=rates, data=data)
    first = learner.resume(folder / "checkpoints")
    if first < steps:
        device, world, rank = accelerator.device.type, accelerator.num_processes, accelerator.process_index
        # Not accelerate's own mixed precision, which is one for the whole process: networks differ in theirs.
        mixed = (precision or best_precision(device)) == "bf16"
        loss = torch.autocast(device, torch.bfloat16, enabled=mixed)(loss)
        log = TrainingLog(folder, first) if accelerator.is_main_process else None
        shown = None if log else True  # None: on terminals only
        bar = tqdm(initial=first, total=steps, desc=title, unit="step", mininterval=1.0, disable=shown)
        saved = time.monotonic()
        while learner.done < steps and not (seconds and learner.elapsed() > seconds):
            generator = seeded(seed, learner.done * world + rank)
            learner.step(partial(loss, learner.done, generator))
            if learner.done % log_every == 0 or learner.done == steps:
                line = learner.log_line() | ({"epoch": round(learner.done / epoch, 4)} if epoch else {})
                bar.set_postfix(loss=f"{line['loss']:.4f}")
                if log is not None:
                    log.write(line)
            if after_step is not None:
                after_step(learner, log)
            due = learner.done % save_every == 0 if save_every else time.monotonic() - saved > SAVE_SECONDS
            if due:
                learner.save(folder / "checkpoints", keep)
                saved = time.monotonic()
            bar.update()
        bar.close()
        if learner.done > first:
            learner.save(folder / "checkpoints", keep)
        if log is not None:
            log.close()
    if learner.ema is not None:
        learner.ema.copy_to(learner.parameters)
    learner.inner.eval()
    return learner
