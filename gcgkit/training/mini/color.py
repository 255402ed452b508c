"""Training the mini profile to colour: copy and UNet together, on all kinds of references (§3.4.2, §4.1).

    python -m gcgkit.training.mini.color --pack DIR --data DIR --start DIR --out DIR [--steps N | --seconds N]
    python -m gcgkit.training.mini.color --start DIR --out DIR --export DIR

It starts from a folder of parts, ``--start``: a pipeline's, with a ``semantic_encoder``, and with ``semantics``'
``pyramid.safetensors`` if its copy reads no semantic features yet. Scenes are drawn as they are needed, see
``device_scenes``. A killed run in ``--out`` continues. ``--export`` writes what the run has learned so far as a
pipeline folder. With ``--mode`` a copy of the ablation learns alone, or is exported, beside the parts of ``--start``.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn as nn
from safetensors.torch import load_file

from ...pipeline import GCGPipeline
from ...semantics import SemanticEncoder
from ..checkpoints import list_checkpoints
from ..log import TrainingLog
from ..loop import fit
from ..recipes import MINI
from ..step import Learner
from . import joint
from .encoders import save
from .pack import load_pack, read_originals

RATES = {"text": 0.5, "pyramid": 0.3, "guidance": 0.5}  # over the learning rate of copy and UNet
CHECK_EVERY = 200  # steps between looks at held-out photographs


def train(
    trainer: joint.Trainer, out: Path, mode: str | None = None, *, learning_rate: float = 4e-4, warmup: int = 100,
    **options,
) -> None:  # fmt: skip
    """Train all parts that learn; with a mode, train a copy with such a guidance and freeze the rest.

    options: of ``loop.fit``, such as ``steps`` and ``seconds``.
    """
    modules = trainer.modules()
    if mode is not None:
        for part in modules.values():
            part.eval().requires_grad_(False)
        fresh = joint.with_semantics(trainer.unet, trainer.control, out, mode)
        fresh.guidance.requires_grad_(False), fresh.pyramid.eval().requires_grad_(False)
        trainer.control = fresh.to(memory_format=torch.channels_last)
        modules = {"copy": fresh.unet_copy}
    optimizer = replace(MINI.optimizer, learning_rate=learning_rate, warmup=warmup, weight_decay=0.02)

    def check(learner: Learner, log: TrainingLog | None) -> None:
        if log is not None and len(trainer.held.sizes) and learner.done % CHECK_EVERY == 0:
            log.write({"step": learner.done, **{k: round(float(v), 5) for k, v in trainer.held_errors().items()}})

    fit(
        out, modules, trainer.joint_loss, optimizer, rates=RATES, title=mode or "colour", after_step=check, **options
    )  # fmt: skip
    save(trainer.control, out / "control")
    if mode is None:
        save(trainer.unet, out / "unet")
        trainer.text.save_pretrained(out / "text_encoder")


def export(start: Path, run: Path, folder: Path, mode: str | None = None) -> None:
    """Write a pipeline folder in half precision: ``start`` with the averaged weights of the run's last checkpoint.

    mode: that the run was started with. Raises FileNotFoundError for a run without a checkpoint.
    """
    saved = list_checkpoints(run / "checkpoints")
    if not saved:
        raise FileNotFoundError(f"{run} holds no checkpoint yet: it gets one every two minutes, and one at the end.")
    step, checkpoint = saved[-1]
    pipe = GCGPipeline.from_pretrained(start)
    semantic_encoder = SemanticEncoder.from_pretrained(start / "semantic_encoder")
    control = joint.with_semantics(pipe.unet, pipe.control, start, mode)
    pipe.register_modules(control=control, semantic_encoder=semantic_encoder)
    modules = nn.ModuleDict(joint.learning(pipe.unet, pipe.text_encoder, control))
    for name, weights in load_file(checkpoint / "averaged.safetensors").items():
        modules.get_parameter(name).data.copy_(weights)
    pipe.to(torch.float16).save_pretrained(folder)
    print(f"{folder}: weights of step {step}", flush=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--pack", type=Path, help="folder made by data_scripts/mini_pack.py")
    parser.add_argument("--data", type=Path, help="the photographs themselves, instead of the pack's smaller ones")
    parser.add_argument("--start", type=Path, required=True, help="folder of the parts to start from")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sizes", choices=tuple(joint.SIZES), default="small")
    parser.add_argument("--batch", type=int, default=16, help="views of the most frequent size per step")
    parser.add_argument("--steps", type=int, default=10**6)
    parser.add_argument("--seconds", type=float, help="stop after so long, whatever --steps says")
    kinds = ", ".join(f"{name}={share}" for name, share in joint.KINDS.items())
    parser.add_argument("--kinds", nargs="+", metavar="NAME=SHARE", help=f"of references, in place of {kinds}")
    parser.add_argument("--learning-rate", type=float, default=4e-4)
    parser.add_argument("--mode", choices=("attention", "concat"))
    parser.add_argument("--export", type=Path, metavar="FOLDER", help="write a pipeline folder instead of training")
    args = parser.parse_args(argv)
    if args.export:
        export(args.start, args.out, args.export, args.mode)
        return
    if not args.pack:
        parser.error("--pack is needed for training")
    torch.manual_seed(0)
    pack = load_pack(args.pack)
    if args.data:
        read_originals(pack, args.data)
    kinds = {name: float(share) for name, share in (pair.split("=") for pair in args.kinds or [])}
    if args.kinds and (set(kinds) - set(joint.KINDS) or abs(sum(kinds.values()) - 1) > 1e-6):
        parser.error(f"--kinds takes shares of {', '.join(joint.KINDS)} that add up to one")
    trainer = joint.Trainer(pack, args.start, args.sizes, args.batch, kinds or joint.KINDS)
    train(trainer, args.out, args.mode, steps=args.steps, seconds=args.seconds, learning_rate=args.learning_rate)


if __name__ == "__main__":
    main()
