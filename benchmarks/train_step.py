"""Compare our training step with diffusers' ControlNet training example, on this machine, in one run.

    python benchmarks/train_step.py                                      # SD 2.1's shapes, batch 24, 448x256, bf16
    python benchmarks/train_step.py --recipe paper-16gb --cap-gb 16      # the small recipe, in no more memory than that
    python benchmarks/train_step.py --shapes toy --precision no          # on a CPU, to see that it runs

Three cases, with random weights and random data that are ready in main memory:

example   the example's step, rewritten from its description: frames through the autoencoder, captions
          through the text encoder, a ControlNet with the condition as a picture, the frozen UNet in half precision,
          mean squared error, clipping, AdamW as it comes. No averaged weights.
cached    our step as ``gcgkit train`` runs it: latents and image tokens come from the cache; captions through the text
          encoder, guidance over mask, single references and grids, the UNet copy, the frozen UNet, clipping, Adam,
          averaged weights.
pixels    the same without a cache: target, gray and all references are encoded in the step.

The cache is made once per data set; "with its making" adds its share of a whole run of the recipe to each step.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import ControlNetModel
from diffusers.optimization import get_scheduler

from gcgkit import GCGPipeline
from gcgkit.control import GuidedControlNet
from gcgkit.data.dataset import Batch, Sample, collate
from gcgkit.data.latent_cache import encode_tokens
from gcgkit.data.sampling import GRID_TILES, SampleStream
from gcgkit.lessons.random_networks import SHAPES, random_parts
from gcgkit.training import config as configs
from gcgkit.training import recipes
from gcgkit.training.loss import Objective, encode_batch
from gcgkit.training.step import Learner
from gcgkit.utils.weights import OF_PRECISION

CASES = ("example", "cached", "pixels")
CAPTION = "a photo of a red car on a street, green trees in the background"


# --- the example's step ----------------------------------------------------------------------------------------------


def example(config: configs.TrainConfig, shapes: dict, accelerator: Accelerator, precision: str) -> Callable[[], None]:
    """Return a function that does one step of the example, over as many passes as the recipe has."""
    device, half = accelerator.device, OF_PRECISION[precision]
    parts = random_parts(shapes, device)
    del parts["image_encoder"]
    unet, vae, text_encoder = parts["unet"], parts["vae"], parts["text_encoder"]
    levels = len(shapes["vae"]["block_out_channels"])
    # From the picture's size to the latents': each entry but the first halves it.
    widths = (16, 32, 96, 256) if shapes is SHAPES["sd21"] else (8,) * levels
    controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=widths).train().to(device)
    if config.run.gradient_checkpointing:
        controlnet.enable_gradient_checkpointing()
    optimizer = torch.optim.AdamW(controlnet.parameters(), lr=5e-6, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8)
    schedule = get_scheduler("constant", optimizer)
    controlnet, optimizer, schedule = accelerator.prepare(controlnet, optimizer, schedule)
    for part in (vae, unet, text_encoder):
        part.to(device, half)
    micro, passes = config.run.micro_batch, config.run.batch_size // config.run.micro_batch
    size, scheduler = (config.data.height, config.data.width), parts["scheduler"]
    generator = torch.Generator().manual_seed(0)
    frames = [ready(torch.rand(micro, 3, *size, generator=generator) * 2 - 1, device) for _ in range(passes)]
    conditions = [ready(torch.rand(micro, 3, *size, generator=generator), device) for _ in range(passes)]
    ids = parts["tokenizer"]([CAPTION] * micro, padding="max_length", truncation=True, return_tensors="pt").input_ids

    def step() -> None:
        for pixels, condition in zip(frames, conditions, strict=True):
            pixels, condition, tokens = (x.to(device, non_blocking=True) for x in (pixels, condition, ids))
            with accelerator.accumulate(controlnet):
                latents = vae.encode(pixels.to(half)).latent_dist.sample() * vae.config.scaling_factor
                noise = torch.randn_like(latents)
                timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (micro,), device=device)
                noisy = scheduler.add_noise(latents, noise, timesteps)
                text = text_encoder(tokens)[0]
                down, middle = controlnet(
                    noisy, timesteps, encoder_hidden_states=text, controlnet_cond=condition.to(half), return_dict=False
                )
                prediction = unet(
                    noisy, timesteps, encoder_hidden_states=text,
                    down_block_additional_residuals=[residual.to(half) for residual in down],
                    mid_block_additional_residual=middle.to(half),
                ).sample  # fmt: skip
                loss = F.mse_loss(prediction.float(), noise.float())
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(controlnet.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            loss.detach().item()  # the example logs the loss of every step

    return step


# --- our step --------------------------------------------------------------------------------------------------------


def ours(
    config: configs.TrainConfig, shapes: dict, accelerator: Accelerator, precision: str, cached: bool
) -> tuple[Callable[[], None], Callable[[], float]]:
    """Return a function for one of our steps, and one that measures the seconds for a view of the cache."""
    device = accelerator.device
    parts = random_parts(shapes, device)
    control = GuidedControlNet.from_unet(
        parts["unet"], image_tokens_dim=shapes["vision"]["projection_dim"], mode=config.model.mode, **shapes["guidance"]
    )
    pipe = GCGPipeline(**parts, control=control, height=config.data.height, width=config.data.width)
    if cached:
        for part in (pipe.vae, pipe.image_encoder):
            part.to("cpu")
    objective = Objective(config, pipe, device, precision)
    learner = Learner(objective.network, config.optimizer, accelerator, steps=1000)
    objective.network = learner.network
    micro, passes = config.run.micro_batch, config.run.batch_size // config.run.micro_batch
    stream = SampleStream([100, 100], [100, 100], config.data, seed=0)
    batches = [random_batch(stream, range(i * micro, (i + 1) * micro), config, shapes, cached) for i in range(passes)]
    batches = [batch.pin_memory() if device.type == "cuda" else batch for batch in batches]

    def view_cost() -> float:
        few = random_batch(stream, range(8), config, shapes, cached=False).to(device)
        few.references = few.references[:0]
        started = clock(device)
        encode_batch(few, pipe, config.model.image_condition, device)  # colour and gray of eight views
        frames = few.target.permute(0, 2, 3, 1).cpu().numpy()
        encode_tokens(pipe, frames, config.model.image_condition, device)
        return (clock(device) - started) / 8

    def step() -> None:
        passing = iter(batches)
        learner.step(lambda: objective(next(passing)))

    return step, view_cost


def random_batch(stream: SampleStream, positions, config: configs.TrainConfig, shapes: dict, cached: bool) -> Batch:
    """Return a batch of noise with the recipe's kinds of reference."""
    size, rng = (config.data.height, config.data.width), np.random.default_rng(0)
    latent = (4, size[0] // 8, size[1] // 8)
    tokens = (shapes["vision"]["image_size"] // shapes["vision"]["patch_size"]) ** 2, shapes["vision"]["projection_dim"]

    def noise(*shape) -> torch.Tensor:
        if cached:
            return torch.from_numpy(rng.standard_normal(shape, np.float32)).half()
        return torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8))

    samples = []
    for position in positions:
        draw = stream.draw(position)
        n = {"mask": 0, "grid": GRID_TILES}.get(draw.kind, 1)
        color, gray = (latent, latent) if cached else ((3, *size), (1, *size))
        sample = Sample(
            target=noise(*color), gray=noise(*gray), color=noise(n, *color), ref_gray=noise(n, *gray),
            tokens=noise(n, *tokens) if cached else None, kind=draw.kind, caption=CAPTION, seed=draw.seed, labels=(),
        )  # fmt: skip
        samples.append(sample)
    return collate(samples)


# --- measuring -------------------------------------------------------------------------------------------------------


def ready(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Move a tensor to pinned memory, which copies to the device fast."""
    return tensor.pin_memory() if device.type == "cuda" else tensor


def clock(device: torch.device) -> float:
    """Wait for the device and return the time in seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def measure(case: str, config, shapes: dict, accelerator: Accelerator, precision: str, warmup: int, steps: int) -> dict:
    """Return seconds of each step, peak bytes of memory (on a GPU), and for "pixels" the cost of a cached view."""
    device = accelerator.device
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    found: dict = {}
    if case == "example":
        step = example(config, shapes, accelerator, precision)
    else:
        step, view_cost = ours(config, shapes, accelerator, precision, case == "cached")
    try:
        for _ in range(warmup):
            step()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        seconds = []
        for _ in range(steps):
            started = clock(device)
            step()
            seconds.append(clock(device) - started)
        found["seconds"] = seconds
        if case == "pixels":
            view_cost()
            found["view_seconds"] = view_cost()
        if device.type == "cuda":
            found["allocated"] = torch.cuda.max_memory_allocated(device)
            found["reserved"] = torch.cuda.max_memory_reserved(device)
    finally:
        del step
        accelerator.free_memory()
        gc.collect()
    return found


def run(args: argparse.Namespace) -> dict:
    """Measure the cases in turn, ``args.rounds`` times, and sum up."""
    changes = {"run.batch_size": args.batch, "data.height": args.height, "run.compile": args.compile}
    config = recipes.load(args.recipe)
    precision = args.precision or config.run.precision
    micro = args.micro or min(config.run.micro_batch, args.batch)
    optimizer = {"optimizer.name": args.optimizer} if args.optimizer else {}
    config = configs.replace(config, {**changes, **optimizer, "data.width": args.width, "run.micro_batch": micro})
    accelerator = Accelerator(mixed_precision=precision, cpu=args.cpu or not torch.cuda.is_available())
    accelerator.gradient_accumulation_steps = config.run.batch_size // micro
    device, shapes = accelerator.device, SHAPES[args.shapes]
    if args.cap_gb:
        if device.type != "cuda":
            raise SystemExit("--cap-gb caps a GPU's allocator, and there is no GPU here.")
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, args.cap_gb * 1e9 / total))
    cases: dict[str, dict] = {}
    for round_ in range(args.rounds):
        for case in args.cases:
            print(f"round {round_ + 1} of {args.rounds}: {case} ...", file=sys.stderr, flush=True)
            try:
                found = measure(case, config, shapes, accelerator, precision, args.warmup, args.steps)
            except torch.cuda.OutOfMemoryError:
                cases[case] = {"out_of_memory": True}
                continue
            entry = cases.setdefault(case, {"seconds": []})
            if "out_of_memory" not in entry:
                entry["seconds"] += found.pop("seconds")
                entry.update(found)
    for found in cases.values():
        if found.get("seconds"):
            found["steps_per_second"] = 1 / statistics.median(found["seconds"])
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "torch": torch.__version__, "shapes": args.shapes, "recipe": args.recipe, "precision": precision,
        "batch": config.run.batch_size, "micro_batch": micro, "height": args.height, "width": args.width,
        "optimizer": config.optimizer.name, "compile": config.run.compile, "cap_gb": args.cap_gb, "cases": cases,
        **ratios(cases, config),
    }  # fmt: skip


def ratios(cases: dict[str, dict], config: configs.TrainConfig, clips: int = 425) -> dict[str, float]:
    """Return our speed over the example's, and again with the cache's making shared over the paper's 425 clips."""
    speed = {case: found["steps_per_second"] for case, found in cases.items() if "steps_per_second" in found}
    found = {f"{case}_over_example": speed[case] / speed["example"] for case in speed if "example" in speed}
    if {"example", "cached"} <= set(speed) and "view_seconds" in cases.get("pixels", {}):
        views = clips * config.data.cache_variants * config.data.cache_views
        steps = config.run.epochs * clips * config.data.targets_per_clip / config.run.batch_size
        share = cases["pixels"]["view_seconds"] * views / steps
        found["cached_with_its_making_over_example"] = 1 / (1 / speed["cached"] + share) / speed["example"]
    found.pop("example_over_example", None)
    return found


def report(result: dict) -> str:
    """Return the result as a table."""
    more = (", ours compiled" if result["compile"] else "") + (
        f", capped at {result['cap_gb']} GB" if result["cap_gb"] else ""
    )
    lines = [
        f"{result['device']}, torch {result['torch']}, {result['shapes']} shapes, {result['recipe']}, "
        f"{result['precision']}, batch {result['batch']} in passes of {result['micro_batch']}, "
        f"{result['width']}x{result['height']}{more}",
        f"{'':10}{'steps/s':>9}{'median s':>10}{'peak GB':>9}{'reserved':>10}",
    ]
    for case, found in result["cases"].items():
        if "steps_per_second" not in found:
            lines.append(f"{case:10}  out of memory")
            continue
        memory = [f"{found[name] / 1e9:.2f}" if name in found else "-" for name in ("allocated", "reserved")]
        speed = found["steps_per_second"]
        lines.append(f"{case:10}{speed:9.3f}{1 / speed:10.3f}{memory[0]:>9}{memory[1]:>10}")
    for name, value in result.items():
        if name.endswith("over_example"):
            lines.append(f"{name.replace('_', ' ')}: {value:.2f}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", choices=SHAPES, default="sd21", help="sizes of the networks")
    parser.add_argument("--recipe", default="paper", help="configuration: paper, paper-16gb, or a file")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--micro", type=int, help="samples per pass (the recipe's)")
    parser.add_argument("--height", type=int, default=256)
    parser.add_argument("--width", type=int, default=448)
    parser.add_argument("--precision", choices=("no", "bf16", "fp16"), help="the recipe's by default")
    parser.add_argument("--optimizer", choices=("adam", "adamw", "adam8bit"), help="ours; the recipe's by default")
    parser.add_argument("--compile", action="store_true", help="ours with run.compile=true; the example as it comes")
    parser.add_argument("--cap-gb", type=float, help="let the GPU's allocator have no more than this, in 1e9 bytes")
    parser.add_argument("--steps", type=int, default=20, help="measured steps per round")
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=2, help="the cases take turns so often")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--out", type=Path, help="also write the result as JSON")
    args = parser.parse_args(argv)
    result = run(args)
    print(report(result))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        partial = args.out.with_name(args.out.name + ".tmp")
        partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        partial.replace(args.out)
    return result


if __name__ == "__main__":
    main()
