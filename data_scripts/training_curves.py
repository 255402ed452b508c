"""Keep the curves of a run of gcgkit.training.mini in a small file, which the notebooks draw: each stage's errors.

python data_scripts/training_curves.py runs/mini --together results/card/training.json
python data_scripts/training_curves.py runs/variants --variants

Without a run's folder, the stages of an earlier run stay as the file has them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import _command  # noqa: F401  it puts gcgkit on the path
import numpy as np

from gcgkit.lessons.training_curves import FILE, VARIANTS, VARIANTS_FILE
from gcgkit.training.log import read_log
from gcgkit.utils.files import write_text

POINTS = 60  # of a curve, at most
NO_CURVES = ("step", "seconds", "steps_per_second", "learning_rate", "gradient_norm")
# Stage -> its log's folder, the trained parts, the data. In the order of the run.
STAGES: dict[str, tuple[str, str, str]] = {
    "hint": ("hint", "the colour attention alone", "16 pairs at 224x128; the last quarter 4 at 448x256"),
    "matching": ("matching", "the colour attention again, on fresh scenes", "8 scenes of 6 views at 448x256"),
    "gate": ("gate", "the gate alone", "16 pairs at 224x128 and 4 at 448x256 in turn"),
    "text2image": ("text2image", "the UNet alone, from captions", "16 frames at 224x128"),
    "guidance": ("guidance", "UNet copy and UNet, on pairs", "16 pairs at 224x128"),
    "fullsize": ("guidance-full", "the same two, at full size", "4 pairs at 448x256"),
}
# Stages in which all parts learned together, from the file of --together -> its logs in order, and as above.
TOGETHER: dict[str, tuple[tuple[str, ...], str, str]] = {
    "pyramid": (("pyramid",), "the feature pyramid alone, from photographs", "16 photographs"),
    "joint": (("joint", "joint_from_1380"), "UNet, copy, words, pyramid and guidance", "16 views; later also 448x256"),
    "gpu": (("gpu",), "the same, on a GPU", "720 views at 224x128 or 180 at 448x256"),
    "fidelity": (("hint_1", "hint_2", "hint_3"), "the same, for fidelity to the ColorHint", "16 views at 224x128"),
}
OF_TOGETHER = ("step", "loss", "gray", "chroma_", "hint_")  # beginnings of the entries that are kept


# The variants go on from the bundled copy; a run's folder has the name of its mode.
VARIANT_STAGES = {
    name: (mode, f"the bundled copy, mode {mode}, all else frozen", TOGETHER["fidelity"][2])
    for name, mode in VARIANTS.items()
}


def summarize(lines: Sequence[dict], points: int = POINTS) -> dict[str, list]:
    """Average a log's lines in at most ``points`` groups of equal size: each entry's mean, None for none.

    Raises ValueError for an empty log.
    """
    if not lines:
        raise ValueError("the log is empty: give a run that has trained.")
    size = -(-len(lines) // points)
    groups = [lines[i : i + size] for i in range(0, len(lines), size)]
    names = [name for name in dict.fromkeys(key for line in lines for key in line) if name not in NO_CURVES]
    result: dict[str, list] = {"step": [group[-1]["step"] for group in groups]}
    for name in names:
        found = [[line[name] for line in group if name in line] for group in groups]
        result[name] = [float(f"{np.mean(values):.4g}") if values else None for values in found]
    return result


def minutes(lines: Sequence[dict]) -> float:
    """Return the minutes that a run took by its log, whose clock restarts with each resumption."""
    seconds = [line["seconds"] for line in lines]
    ends = [a for a, b in zip(seconds, seconds[1:], strict=False) if b < a] + seconds[-1:]
    return round(sum(ends) / 60, 1)


def collect(run: str | Path, variants: bool = False) -> dict:
    """Collect the content of `read` from a run's folder. Raises FileNotFoundError for a stage without a log."""
    stages = {}
    for name, (folder, learned, batch) in (VARIANT_STAGES if variants else STAGES).items():
        lines = [line for line in read_log(Path(run) / folder) if "loss" in line]  # others are of held-out pictures
        if variants:
            lines = [{key: line[key] for key in line if key.startswith((*OF_TOGETHER, "seconds"))} for line in lines]
        stages[name] = {
            "learned": learned, "batch": batch, "steps": lines[-1]["step"], "minutes": minutes(lines),
            "points": summarize(lines),
        }  # fmt: skip
    return {"about": about(variants), "stages": stages}


def about(variants: bool = False) -> str:
    """Return the sentence at the file's head."""
    what = "ablation variants" if variants else "bundled mini weights"
    where = "one CPU core each" if variants else "two CPU cores beside other work, the stages matching and gpu on a GPU"
    return f"Training of the {what} on {where}; gcgkit.training.mini has the recipe."


def together(content: dict) -> dict[str, dict]:
    """Collect the stages of ``TOGETHER`` from their logs, ``{name: lines}``.

    A stage's logs follow each other: steps count on where a log starts anew. ``minutes`` is None without a clock in
    each of them.
    """
    stages = {}
    for name, (logs, learned, batch) in TOGETHER.items():
        lines: list[dict] = []
        for log in logs:
            done = lines[-1]["step"] if lines else 0
            before = done if content[log][0]["step"] <= done else 0
            lines += [{**line, "step": before + line["step"]} for line in content[log]]
        kept = [{key: value for key, value in line.items() if key.startswith(OF_TOGETHER)} for line in lines]
        stages[name] = {
            "learned": learned, "batch": batch, "steps": lines[-1]["step"],
            "minutes": minutes(lines) if all("seconds" in line for line in lines) else None,
            "points": summarize(kept),
        }  # fmt: skip
    return stages


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "run", type=Path, nargs="?", help="folder of the run, as given to gcgkit.training.mini as --out"
    )
    parser.add_argument("--together", type=Path, help="file with the logs of the stages in which all parts learned")
    parser.add_argument("--variants", action="store_true", help="the run is that of the ablation variants")
    parser.add_argument("--out", type=Path, help="file to write (the package's own)")
    args = parser.parse_args(argv)
    args.out = args.out or (VARIANTS_FILE if args.variants else FILE)
    if args.run is None and args.together is None:
        parser.error("give a run's folder, or a file with --together.")
    if args.run is None:
        kept = json.loads(args.out.read_text(encoding="utf-8"))
        earlier = {name: stage for name, stage in kept["stages"].items() if name not in TOGETHER}
        kept = {"about": about(args.variants), "stages": earlier}
    else:
        kept = collect(args.run, args.variants)
    if args.together is not None:
        kept["stages"] |= together(json.loads(args.together.read_text(encoding="utf-8")))
    for stage in kept["stages"].values():  # a curve to a line
        stage["points"] = {name: json.dumps(values) for name, values in stage["points"].items()}
    text = json.dumps(kept, indent=1)
    write_text(args.out, text.replace('"[', "[").replace(']"', "]") + "\n")
    print(f"The curves: {args.out}")


if __name__ == "__main__":
    main()
