"""The curves of the run that made the mini weights, in a small file: each stage's parts and errors.

``data_scripts/training_curves.py`` makes ``mini_training.json`` of a run's folder and of the logs of the later stages,
in which all parts learned together. It makes ``variants_training.json`` of the run in which the ablation variants of
§4.5 were trained.
"""

import json
from pathlib import Path

FILE = Path(__file__).with_name("mini_training.json")
VARIANTS_FILE = FILE.with_name("variants_training.json")
# The ablation variants: name -> mode of the guidance.
VARIANTS = {"mini-attention": "attention", "mini-concat": "concat"}


def read(path: str | Path = FILE) -> dict[str, dict]:
    """Read the stages: ``{name: {"learned", "batch", "steps", "minutes", "points": {entry: [value or None]}}}``.

    ``points["step"]`` is the last step that each point stands for; ``minutes`` is None if they are not known. Raises
    FileNotFoundError without the file.
    """
    return json.loads(Path(path).read_text(encoding="utf-8"))["stages"]


def curve(stage: dict, entry: str | None = None) -> tuple[list[int], list[float]]:
    """Return steps and values of one entry of a stage for a plot, without points that have no value.

    entry: None for the loss, or in the stage ``matching``, whose log had none, the error with one reference. Raises
    ValueError, with a list of the entries, for an entry that the stage's log did not have.
    """
    points = stage["points"]
    entry = entry or ("loss" if "loss" in points else "hint_single")
    if entry not in points:
        raise ValueError(f"there is no entry {entry!r}; the log has {', '.join(points)}.")
    pairs = [(step, value) for step, value in zip(points["step"], points[entry], strict=True) if value is not None]
    return [step for step, _ in pairs], [value for _, value in pairs]
