"""One training loop for every part of the mini model: accelerate, EMA, atomic checkpoints, exact resume (§4.1).

Batches are drawn by step number from a generator seeded with ``(seed, step)``, so that the place in the data needs no
saving: a run that was killed and resumed sees the batches that it would have seen.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from tqdm.auto import tqdm

from .log import _cut_log


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


def warmup_cosine(step: int, steps: int, warmup: int, floor: float = 0.02) -> float:
    """Return the factor on the learning rate: linear up over ``warmup`` steps, then half a cosine down to ``floor``."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def fit(
    folder: str | Path,
    modules: dict[str, torch.nn.Module],
    loss: Callable[[int, torch.Generator], dict[str, torch.Tensor]],
    *,
    steps: int,
    learning_rate: float,
    warmup: int = 100,
    weight_decay: float = 0.01,
    ema_decay: float = 0.999,
    max_grad_norm: float = 1.0,
    save_every: float = 120.0,
    seed: int = 0,
    mixed_precision: str | None = None,
    title: str = "training",
    rates: dict[str, float] | None = None,
    seconds: float | None = None,
) -> dict[str, torch.nn.Module]:
    """Minimise ``loss(step, generator)["loss"]`` over the trainable parameters of ``modules`` and return them averaged.

    The loss's other entries are logged. Every ``save_every`` seconds and at the end the folder gets ``state.pt``
    (weights, EMA, optimizer, step), written aside and renamed; a second call with the same folder continues there.
    One line per 20 steps goes to ``log.jsonl``. rates: factors on the learning rate of some modules. seconds: stop
    after this time instead, with a learning rate that falls by the clock; for a machine with limited time.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    accelerator = Accelerator(mixed_precision="no", cpu=device == "cpu")
    # Not accelerate's own mixed precision, which is one for the whole process: stages differ in theirs.
    precision = mixed_precision or best_precision(device)
    autocast = torch.autocast(accelerator.device.type, torch.bfloat16, enabled=precision == "bf16")
    for module in modules.values():
        module.to(accelerator.device).train()
    groups = [
        {"params": [p for p in module.parameters() if p.requires_grad], "rate": (rates or {}).get(name, 1.0)}
        for name, module in modules.items()
    ]
    groups = [group for group in groups if group["params"]]
    parameters = [p for group in groups for p in group["params"]]
    optimizer = torch.optim.AdamW(groups, learning_rate, (0.9, 0.99), weight_decay=weight_decay, fused=True)
    ema = EMAModel(parameters, decay=ema_decay, use_ema_warmup=True, inv_gamma=1.0, power=0.75, foreach=True)
    optimizer = accelerator.prepare(optimizer)
    state, first = folder / "state.pt", 0
    if state.exists():
        saved = torch.load(state, map_location=accelerator.device, weights_only=True)
        for name, module in modules.items():
            module.load_state_dict(saved["modules"][name])
        optimizer.load_state_dict(saved["optimizer"])
        ema.load_state_dict(saved["ema"])
        first = saved["step"]

    def save(step: int) -> None:
        content = {
            "modules": {name: module.state_dict() for name, module in modules.items()},
            "optimizer": optimizer.state_dict(),
            "ema": ema.state_dict(),
            "step": step,
        }
        torch.save(content, state.with_suffix(".tmp"))
        os.replace(state.with_suffix(".tmp"), state)

    saved_at, started, sums, done = time.monotonic(), time.monotonic(), {}, first
    bar = tqdm(range(first, steps), initial=first, total=steps, desc=title, mininterval=5.0, disable=None)
    _cut_log(folder / "log.jsonl", first)
    with (folder / "log.jsonl").open("a") as log:
        for step in bar:
            elapsed = time.monotonic() - started
            if seconds is not None:
                if elapsed > seconds:
                    break
                passed = warmup_cosine(int(elapsed * 1000), int(seconds * 1000), 0) if step >= warmup else 1.0
                factor = passed * min(1.0, (step + 1) / warmup)
            else:
                factor = warmup_cosine(step, steps, warmup)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * group["rate"] * factor
            with autocast:
                parts = loss(step, seeded(seed, step))
            accelerator.backward(parts["loss"])
            accelerator.clip_grad_norm_(parameters, max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            ema.step(parameters)
            done = step + 1
            for name, value in parts.items():
                total, count = sums.get(name, (0.0, 0))  # not every step has every part
                sums[name] = total + value.detach(), count + 1  # still a tensor, so that a GPU need not wait
            if (step + 1) % 20 == 0 or step + 1 == steps:
                means = {name: round(float(total) / count, 6) for name, (total, count) in sums.items()}
                line = {"step": step + 1, "seconds": round(time.monotonic() - started, 1), **means}
                log.write(json.dumps(line) + "\n")
                log.flush()
                bar.set_postfix({"loss": means["loss"]})
                sums = {}
            if time.monotonic() - saved_at > save_every:
                save(step + 1)
                saved_at = time.monotonic()
    if done > first:
        save(done)
    ema.copy_to(parameters)
    for module in modules.values():
        module.eval()
    return modules


def count_parameters(modules: Iterable[torch.nn.Module]) -> int:
    """Count the parameters of some modules."""
    return sum(p.numel() for module in modules for p in module.parameters())
