"""The GPU memory of a training run, computed from its configuration; `recipes` explains it in words (§4.1).

Weights, gradients and the optimizer's state can be counted exactly. The activations that a pass keeps for its backward
pass cannot: `recipes` has a count on the networks' shapes, and ``benchmarks/train_step.py --cap-gb 16`` measures them
on a card.
"""

from ..training.config import TrainConfig

# Parameters of Stable Diffusion 2.1's UNet and text encoder, and of the UNet copy with its guidance.
UNET, TEXT_ENCODER, COPY = 866e6, 340e6, 363e6
_BYTES = {"no": 4, "bf16": 2, "fp16": 2, "float32": 4, "bfloat16": 2, "float16": 2}


def resident_memory(
    config: TrainConfig, *, unet: float = UNET, text_encoder: float = TEXT_ENCODER, copy: float = COPY
) -> dict[str, float]:
    """Return the memory that stays allocated from step to step, by its content, in 1e9 bytes.

    config: of a run whose latents come from the cache, so that neither autoencoder nor image encoder is there. unet,
    text_encoder, copy: numbers of parameters. Raises ValueError for precision "auto", which depends on the card.
    """
    run, optimizer = config.run, config.optimizer
    if run.precision == "auto":
        raise ValueError("run.precision=auto depends on the card: give a configuration with no, bf16 or fp16.")
    low = _BYTES[run.precision]
    frozen = low if run.frozen_dtype == "auto" else _BYTES[run.frozen_dtype]
    trained = copy + (unet if config.model.joint else 0)
    moments = 2 if optimizer.name == "adam8bit" else 8  # two, of one byte or of four
    parts = {
        "frozen UNet": 0 if config.model.joint else unet * frozen,
        "frozen text encoder": text_encoder * frozen,
        "trained weights, float32": trained * 4,
        "their gradients": trained * 4,
        "the optimizer's two moments": trained * moments,
        "averaged weights": trained * 4 if optimizer.ema_decay else 0,
        "half-precision copies in a pass": trained * 2 if low == 2 else 0,
    }
    return {name: count / 1e9 for name, count in parts.items() if count}
