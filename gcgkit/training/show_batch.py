"""``python -m gcgkit.training.show_batch DATA``: draw a training batch, sample by sample."""

import argparse
from pathlib import Path

from ..data.dataset import FrameDataset, collate, show_batch
from ..utils.commands import read_pairs
from . import config as configs
from . import recipes


def main(argv: list[str] | None = None) -> None:
    """Draw a training batch from prepared folders."""
    parser = argparse.ArgumentParser(prog="python -m gcgkit.training.show_batch", description=main.__doc__)
    parser.add_argument("data", type=Path, help="folder of prepared sets")
    parser.add_argument("--config", default="paper", help="named configuration or file (paper)")
    parser.add_argument("--set", dest="changes", metavar="KEY=VALUE", action="append", default=[], help="repeatable")
    parser.add_argument("--batch-size", type=int, default=8, help="samples (8)")
    parser.add_argument("--start", type=int, default=0, help="position of the first (0)")
    parser.add_argument("--out", type=Path, default=Path("batch.png"), help="picture to write (batch.png)")
    args = parser.parse_args(argv)
    config = configs.replace(recipes.load(args.config), read_pairs(args.changes))
    dataset = FrameDataset(args.data, config.data, config.run.seed)
    batch = collate([dataset[args.start + i] for i in range(args.batch_size)])
    args.out.parent.mkdir(parents=True, exist_ok=True)
    partial = args.out.with_name(f"{args.out.stem}.partial{args.out.suffix or '.png'}")
    show_batch(batch, limit=args.batch_size).savefig(partial, dpi=150)
    partial.replace(args.out)
    print(f"{len(dataset.clips)} clips, {len(dataset)} samples per epoch; a batch of {len(batch)}:")
    print(f"  target {tuple(batch.target.shape)}, gray {tuple(batch.gray.shape)}")
    for group in batch.references:
        print(f"  {group.kind}: {len(group.rows)} sample(s), references {tuple(group.color.shape)}")
    print(f"the picture: {args.out}")


if __name__ == "__main__":
    main()
