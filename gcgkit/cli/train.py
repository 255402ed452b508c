"""The command ``gcgkit train``; ``accelerate launch -m gcgkit.cli train ...`` shares the work among processes.

torch and the rest load when training begins, so ``--help`` is quick.
"""

import argparse
import sys
from pathlib import Path

from ..utils.commands import read_pairs
from ..utils.hub import require

ABOUT = "Train on prepared data, or go on with a run that was cut off."
EPILOG = "on several GPUs: accelerate launch -m gcgkit.cli train, and the same options"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add = parser.add_argument
    add("--config", metavar="NAME", default="paper", help="paper, paper-16gb, mini, mini-more, tiny, or a file (paper)")
    add("--set", dest="changes", metavar="KEY=VALUE", action="append", default=[], help="another value; repeatable")
    add("--data", metavar="DIR", type=Path, default=Path("data/prepared"), help="prepared sets (data/prepared)")
    add("--out", metavar="DIR", type=Path, help="the run's folder (runs/ and the configuration's name)")
    add("--cache", metavar="DIR", type=Path, help="where encoded clips are kept (the data's folder)")
    add("--cpu", action="store_true", help="do without the GPU")
    add("--write", metavar="FILE", type=Path, help="write the configuration, .toml or .json, and stop")


def run(args: argparse.Namespace) -> None:
    """Train as the options say. Raises ValueError, FileNotFoundError and OSError as ``training.run.train`` does."""
    from ..data import prepare
    from ..training import config as configs
    from ..training import recipes

    changes = read_pairs(args.changes, "KEY=VALUE, such as run.batch_size=8")
    config = configs.replace(recipes.load(args.config), changes)
    if args.write is not None:
        configs.save(config, args.write)
        print(f"The configuration: {args.write}")
        return
    out = args.out or Path("runs") / config.name
    # Bad input is told before torch and diffusers load, which takes seconds.
    for name in config.data.sets:
        prepare.read_manifest(args.data / name)
    for part in ("base", "image_encoder"):
        remedy = f"run python data_scripts/weights.py with a network, or give a folder with --set model.{part}=FOLDER"
        require(getattr(config.model, part), remedy)
    from ..training.run import train

    try:
        folder = train(config, args.data, out, cache=args.cache, cpu=args.cpu)
    except KeyboardInterrupt:
        print(f"\ngcgkit: interrupted; the same command goes on from the last checkpoint in {out}.", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":
            raise ValueError(
                f"the GPU has too little memory for passes of {config.run.micro_batch} samples: add --set "
                "run.micro_batch=N with fewer, or --set run.gradient_checkpointing=true; the result stays the same."
            ) from error
        raise
    print(f"The trained pipeline: {folder}")
