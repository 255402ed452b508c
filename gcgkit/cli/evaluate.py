"""The command ``gcgkit evaluate``; ``accelerate launch -m gcgkit.cli evaluate ...`` shares the work among processes.

torch and the rest load when a method needs them, so ``--help`` is quick.
"""

import argparse
import os
from pathlib import Path

from ..utils.commands import read_options, read_size
from ..utils.hub import require

ABOUT = "Measure methods and write Table 1; the same command goes on where it was."
USAGE = "gcgkit evaluate [options]"
SEEDS = (0, 1, 2)  # of the usual rows
EPILOG = "SPEC: gray, transfer, flow, Ours=gcg:mini,tau=4, NAME=folder:DIR, system:vcgan"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add = parser.add_argument
    add("--data", metavar="DIR", default="installed", help="prepared set, DAVIS, or videos (installed clips)")
    add("--split", metavar="NAME", help="a list of DAVIS: val, test-dev, ...")
    add("--name", metavar="TEXT", help="what the table calls the set (its folder's name)")
    add("--clips", metavar="C", nargs="+", help="only these clips")
    add("--frames", metavar="N", type=int, help="only the first N frames of each (all)")
    add("--size", metavar="WxH", default="448x256", help="frames are stretched to this; or keep (448x256)")
    add("--method", metavar="SPEC", action="append", help="what to measure, see below; repeatable (all rows)")
    add("--set", metavar="K=V", dest="options", action="append", default=[], help="option for all of our rows")
    add("--weights", metavar="W", nargs=3, help="of Ours, Ours*, Ours**: folders or profiles (the bundled ones)")
    add("--prompts", metavar="FILE", help="captions.jsonl, its folder, or JSON {clip: prompt}, for all of our rows")
    add("--metrics", metavar="M", nargs="+", help="only these metrics (all)")
    add("--first", metavar="N", type=int, default=1, help="first frame measured; 0 counts the exemplar too (1)")
    add("--seed", metavar="N", type=int, nargs="+", help="several: their mean (default 0 1 2, but 0 with --method)")
    add("--device", metavar="NAME", help="cpu, cuda, cuda:1 (a GPU if there is one)")
    add("--systems", metavar="DIR", type=Path, default=Path("systems"), help="where compared systems lie (systems)")
    add("--out", metavar="DIR", type=Path, default=Path("results"), help="frames, numbers and their sources (results)")
    add("--table", metavar="FILE", type=Path, help="write the table, .md, .tex or .html (OUT/table.md)")


def run(args: argparse.Namespace) -> None:
    """Evaluate as the options say; write and show the table. Raises ValueError and OSError as `evaluate` does."""
    suffixes = {".md": "markdown", ".tex": "latex", ".html": "html"}
    table = args.table or args.out / "table.md"
    if table.suffix not in suffixes:
        raise ValueError(f"--table {table} must end in {', '.join(suffixes)}.")
    size = read_size(args.size)
    if size is None and args.size != "keep":
        raise ValueError(f"--size takes WIDTHxHEIGHT, such as 448x256, or keep, not '{args.size}'.")
    if args.device is not None and args.device.startswith("cuda"):
        import torch

        if not torch.cuda.is_available():
            raise ValueError(f"--device {args.device}: no GPU can be used here; gcgkit doctor tells more.")
    from ..evaluation.clips import open_set
    from ..evaluation.methods import parse, refuse_prompt, table1_methods
    from ..evaluation.run import evaluate, read_results
    from ..evaluation.table import render
    from ..utils.files import write_text

    evalset = open_set(args.data, args.name, split=args.split, clips=args.clips, limit=args.frames, size=size)
    shared = read_options(args.options)
    refuse_prompt(shared)
    if args.method and args.weights:
        raise ValueError("--weights is for the usual rows: with --method, write the folder as NAME=gcg:FOLDER.")
    failure, found = None, []
    seeds = args.seed or ([0] if args.method else SEEDS)
    for seed in dict.fromkeys(seeds):
        if args.method:
            methods = [parse(text, seed=seed, systems_root=args.systems) for text in args.method]
            for method in methods:
                if hasattr(method, "options"):
                    method.options = {**shared, **method.options}
        else:
            methods = table1_methods(weights=args.weights, seed=seed, **shared)
        if seed != seeds[0]:  # the others give the same with every seed
            methods = [method for method in methods if hasattr(method, "seed")]
        for profile in filter(None, (getattr(method, "profile", None) for method in methods)):
            require(profile, "try again with a network, or give a folder")
        _give_prompts(methods, args.prompts, evalset)
        _check_options([shared, *(method.options for method in methods if hasattr(method, "options"))])
        try:
            found += evaluate(
                evalset, methods, args.out, metric_names=args.metrics, first=args.first, device=args.device
            )
        except ValueError as error:
            if not (args.out / "results.jsonl").is_file():
                raise
            failure = failure or error  # still show the measured numbers
    lacking = dict.fromkeys(f"{r['method']}: {r['absent']}" for r in found if "absent" in r)
    if args.method and lacking:  # of the usual rows some are expected to; these were asked for by name
        failure = failure or ValueError(f"no result for {'; '.join(lacking)}")
    if int(os.environ.get("RANK", "0")) == 0:
        results = read_results(args.out)
        table.parent.mkdir(parents=True, exist_ok=True)
        write_text(table, render(results, suffixes[table.suffix]))
        print(render(results), end="")
        print(f"\nThe table: {table}\nEvery number and where it came from: {args.out / 'results.jsonl'}")
    if failure is not None:
        raise failure


def _check_options(several: list[dict]) -> None:
    """Raise ValueError for options that neither the pipeline nor its row takes; torch loads only if there are any."""
    given = [{name: value for name, value in options.items() if name != "chunk"} for options in several]
    for options in filter(None, given):
        from ..evaluation.model_card import check_settings

        check_settings(options)


def _give_prompts(methods: list, file: str | None, evalset) -> None:
    """Give our rows the file's prompts, but for those with their own; ValueError if a row's fit no clip of the set."""
    from ..data.captions import read_prompts

    ours = [method for method in methods if hasattr(method, "prompts")]
    for method in ours if file else ():
        if not method.prompts:
            method.prompts, method.prompts_source = read_prompts(file)
    for method in ours:
        if method.prompts and not method.prompts.keys() & evalset.paths.keys():
            raise ValueError(
                f"{method.name}: there are prompts for {next(iter(method.prompts))} and others, but for no clip of "
                f"{evalset.name}: give the captions of this set."
            )
