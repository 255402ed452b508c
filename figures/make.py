"""``make figures``: the paper's figures 1 to 6, a diagram of the model and Table 1 from a profile, as PNG and PDF.

    python figures/make.py --profile mini --only 5 6

Colourings are made once and kept in ``OUT/cache``, so that a second run only draws.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import fig1_teaser
import fig2_framework
import fig3_automatic
import fig4_exemplar
import fig5_gcg
import fig6_srg
import studio
import table1
from tqdm import tqdm

from gcgkit import profiles
from gcgkit.lessons.diagram import draw_model
from gcgkit.utils.commands import read_pairs, run_reporting_errors

FIGURES = {
    "1": ("fig1", fig1_teaser), "2": ("fig2", fig2_framework), "3": ("fig3", fig3_automatic),
    "4": ("fig4", fig4_exemplar), "5": ("fig5", fig5_gcg), "6": ("fig6", fig6_srg),
}  # fmt: skip
TABLE, MODEL = "table", "model"


def make(maker: studio.Studio, wanted: list[str], results: Path) -> dict[str, float]:
    """Make figures and table by number, and return the seconds that each took."""
    seconds = {}
    for number in tqdm(wanted, desc="Figures", unit="figure", disable=None):
        started = time.monotonic()
        if number == TABLE:
            paths, title = table1.write(results, maker.out), "Table 1"
        elif number == MODEL:
            paths, title = maker.save(draw_model(pipe=maker.pipe()), MODEL), "The model"
        else:
            name, module = FIGURES[number]
            paths, title = maker.save(module.draw(maker), name), f"Figure {number}"
        seconds[number] = time.monotonic() - started
        tqdm.write(f"{title}: {', '.join(map(str, paths))} in {seconds[number]:.0f} s")
    return seconds


def main(argv: list[str] | None = None) -> int:
    """Run the command and return an exit code."""
    parser = argparse.ArgumentParser(prog="figures/make.py", description="Make figures and Table 1.")
    add = parser.add_argument
    add("--profile", default="mini", help="bundled name, paper, folder or hub id (mini)")
    add("--only", nargs="+", choices=[*FIGURES, MODEL, TABLE], help="only these (all)")
    add("--out", metavar="DIR", type=Path, default=studio.HERE / "out", help="where they go (figures/out)")
    add("--results", metavar="DIR", type=Path, help="results for Table 1 (results/PROFILE)")
    add("--seed", metavar="N", type=int, default=0, help="same seed, same colours (0)")
    add("--steps", metavar="N", type=int, default=32, help="denoising steps (32)")
    add("--frames-of", metavar="NAME=DIR", action="append", default=[], help="another system's frames, for 3 and 4")
    add("--variant", metavar="LABEL=WEIGHTS", action="append", default=[], help="trained variant for 5: Ours*=FOLDER")
    args = parser.parse_args(argv)
    results = args.results or studio.HERE.parent / "results" / Path(args.profile).name
    return run_reporting_errors(lambda: _run(args, results))


def _run(args: argparse.Namespace, results: Path) -> None:
    wanted = "NAME=DIR with a folder that is there"
    frames_of = {name: Path(folder) for name, folder in read_pairs(args.frames_of, wanted, "--frames-of").items()}
    if lost := [folder for folder in frames_of.values() if not folder.is_dir()]:
        raise ValueError(f"--frames-of takes {wanted}, not '{lost[0]}'.")
    variants = read_pairs(args.variant, "LABEL=WEIGHTS, such as Ours*=runs/concat/pipeline", "--variant")
    variants = {label: profiles.resolve(weights) for label, weights in variants.items()}
    maker = studio.Studio(args.profile, args.out, args.seed, args.steps, frames_of=frames_of, variants=variants)
    seconds = make(maker, args.only or [*FIGURES, MODEL, TABLE], results)
    print(f"Figures: all in {args.out}, {sum(seconds.values()):.0f} s.")


if __name__ == "__main__":
    sys.exit(main())
