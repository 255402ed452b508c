"""Ablations (§4.5): clips coloured under many settings, one changed at a time, and a small file of numbers for each.

    python -m gcgkit.evaluation.ablations                          # the bundled weights on the clip bikes
    python -m gcgkit.evaluation.ablations --weights mini-concat    # other trained weights join the same folder
    python -m gcgkit.evaluation.ablations --data DATA --frames 40  # the measuring clips of `footage`

The first true frame is the exemplar; numbers are of the frames after it. Settings that need no other weights vary:
the t of Eq. 10, D, keyframes, steps, the reference grid, SRG, and the gate fixed shut or open. The modes without a
gate or without attention, and the literal stem, are other weights, distinguished by ``--weights`` and the label.
An interrupted run continues: results of the same weights, settings and frames are not made again.
"""

import argparse
import json
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from .. import metrics
from ..color import to_gray
from ..data import footage
from ..data.clips import CLIP, FIRST, FRAMES, STRIDE, load_clip
from ..settings import Settings
from ..utils.commands import run_reporting_errors
from ..utils.files import write_text
from . import methods, provenance

SCHEMA = 1
OUT = Path("results/ablations")
DEFAULT = "default"
FIRST_MEASURED = 1  # frame 0 is the exemplar


@dataclass(frozen=True)
class Setting:
    """One way of colouring: the varied setting, its value in words, and the pipeline's options for it.

    gate: None for the trained gate, 0 or 1 to fix it shut or open (Eq. 5 then gives gray, or only CGA's colour).
    """

    group: str
    value: str
    options: dict = field(default_factory=dict)
    gate: float | None = None


def _each(group: str, values: Iterable) -> list[Setting]:
    return [Setting(group, str(value), {group: value}) for value in values]


# `noise_scale` stays the profile's own: 1, as in the paper, is in Table 1.
PAPER = {
    "tau": 4.0, "strength": 1.0, "hint_weight": 0.0, "keyframe_weight": 1.0, "working_size": [256, 448],
}  # fmt: skip
SETTINGS: tuple[Setting, ...] = (
    Setting(DEFAULT, "the profile's own"),
    *_each("tau", (1.0, 2.0, 4.0, 16.0, 1000.0)),
    *_each("strength", (0.25, 0.5, 1.0)),
    *_each("hint_weight", (0.0, 0.5, 1.0)),
    Setting("paper", "the paper's", PAPER),
    *_each("num_inference_steps", (4, 8, 16, 64)),
    *_each("num_keyframes", (1, 2, 8)),
    *(Setting("working_size", f"{w}x{h}", {"working_size": [h, w]}) for h, w in ((256, 448), (320, 560), (384, 672))),
    *_each("keyframe_weight", (1.0, 8.0, 64.0)),
    *_each("keyframe_method", ("uniform", "random")),
    *_each("dissimilarity", ("histogram", "ssim", "latent")),
    *_each("grid_size", (1, 2, 9)),
    *_each("grid_tiles", ("shrunk",)),
    Setting("srg", "nearest keyframe alone", {"use_srg": False, "single_reference": "nearest"}),
    Setting("srg", "first keyframe alone", {"use_srg": False, "single_reference": "first"}),
    Setting("gate", "shut", gate=0.0),
    Setting("gate", "open", gate=1.0),
    Setting("exemplar", "masked", {"reference_mask": True}),
    Setting("exemplar", "masked by black", {"reference_mask": True, "mask_latents": "black"}),
    Setting("exemplar", "literal", {"exemplar_mode": "literal"}),
    *_each("image_condition", ("none",)),
)
# Options that older records do not name, and the values that their runs had.
LATER = {"mask_latents": "zeros", "grid_tiles": "full"}
GROUPS = tuple(dict.fromkeys(setting.group for setting in SETTINGS))


@contextmanager
def fixed_gate(guidance, value: float) -> Iterator[None]:
    """Fix a ``GatedColorGuidance``'s gate at a value in [0, 1] within a ``with`` block.

    Raises ValueError for another value, or where the guidance has no gate to hold (modes without CDGA).
    """
    if not 0 <= value <= 1:
        raise ValueError(f"A gate is fixed at a value from 0 to 1, not {value}.")
    if guidance.cdga is None:
        raise ValueError(f"The guidance has no gate to hold: its mode is '{guidance.config.mode}'.")
    hook = guidance.cdga.register_forward_hook(lambda gate, given, found: torch.full_like(found, value))
    try:
        yield
    finally:
        hook.remove()


def color_with(pipe, truth: np.ndarray, setting: Setting, seed: int = 0, **options):
    """Colour a clip ``(T, H, W, 3)`` from its own first frame under a setting and return the pipeline's output.

    options: more of the pipeline's, for all settings alike; the setting's own win. Raises ValueError as the pipeline
    does.
    """
    with nullcontext() if setting.gate is None else fixed_gate(pipe.control.guidance, setting.gate):
        generator = torch.Generator().manual_seed(seed)
        return pipe(to_gray(truth), reference={0: truth[0]}, generator=generator, **{**options, **setting.options})


def measure(frames: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Return PSNR (rgb, dB), and colourfulness and CDC over the truth's, of all frames but the given one: (T, H, W, 3).

    Raises ValueError for clips of fewer than six frames, which leave too few for CDC.
    """
    _check_length(truth)
    ours, true = frames[FIRST_MEASURED:], truth[FIRST_MEASURED:]
    return {
        "psnr_rgb": metrics.psnr_rgb(ours, true),
        "colorfulness_ratio": metrics.colorfulness(ours) / metrics.colorfulness(true),
        "cdc_ratio": metrics.cdc([ours]) / metrics.cdc([true]),
    }


def resolved(pipe, setting: Setting, **options) -> dict:
    """Return a run's value for each varied setting, with the profile's own filled in."""
    completed = Settings.of(**{**options, **setting.options}).completed(pipe)
    values = {name: getattr(completed, name) for each in SETTINGS for name in each.options}
    values["working_size"] = list(values["working_size"] or (pipe.config.height, pipe.config.width))
    mode = pipe.control.guidance.config.mode
    gate = {None: "learned" if mode == "gated" else "none", 0.0: "shut", 1.0: "open"}
    return {**values, "gate": gate.get(setting.gate, setting.gate), "mode": mode}


def plan(pipe, groups: Sequence[str] | None = None, **options) -> list[Setting]:
    """Return the settings of some groups (all by default) that differ from the profile's own and can be set.

    Raises ValueError for an unknown group.
    """
    for group in groups or ():
        if group not in GROUPS:
            raise ValueError(f"There is no group of settings '{group}'; the groups are {', '.join(GROUPS)}.")
    own = resolved(pipe, Setting(DEFAULT, ""), **options)
    gated = pipe.control.guidance.cdga is not None
    return [
        setting
        for setting in SETTINGS
        if (not groups or setting.group in groups)
        and (gated or setting.gate is None)
        and (setting.group == DEFAULT or resolved(pipe, setting, **options) != own)
    ]


def run(
    pipe,
    clips: Mapping[str, np.ndarray],
    out: str | Path = OUT,
    *,
    label: str,
    weights: str,
    groups: Sequence[str] | None = None,
    seed: int = 0,
    sources: Mapping[str, dict] | None = None,
    **options,
) -> list[Path]:
    """Colour each clip ``{name: (T, H, W, 3)}`` under each setting, write a JSON file for each and return their paths.

    label: a name for the weights; weights: their digest. sources: how each clip's frames were taken, kept and
    compared.
    options: as for `color_with`. Files of the same run are left unchanged. Errors as of `plan`,
    `measure` and the pipeline.
    """
    for truth in clips.values():
        _check_length(truth)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    work = [(name, setting) for name in clips for setting in plan(pipe, groups, **options)]
    where = {"device": pipe.device.type, "threads": torch.get_num_threads(), "versions": provenance.versions()}
    paths, bar = [], tqdm(work, desc=f"Ablations of {label}", unit="run", disable=None)
    for name, setting in bar:
        bar.set_postfix_str(f"{name}: {setting.group} {setting.value}")
        truth = clips[name]
        what = {
            "schema": SCHEMA, "label": label, "weights": weights, "clip": name, "frames": len(truth),
            "size": list(truth.shape[1:3]), "source": (sources or {}).get(name, {}), "seed": seed,
            "group": setting.group, "value": setting.value, "settings": resolved(pipe, setting, **options),
        }  # fmt: skip
        path = out / f"{_slug(label)}-{_slug(name)}-{_slug(f'{setting.group} {setting.value}')}.json"
        paths.append(path)
        if _is_same_run(path, what):
            continue
        clock, cpu = time.monotonic(), time.process_time()
        frames = color_with(pipe, truth, setting, seed, **options).frames
        seconds = {"seconds": round(time.monotonic() - clock, 1), "cpu_seconds": round(time.process_time() - cpu, 1)}
        numbers = {key: round(value, 4) for key, value in measure(frames, truth).items()}
        write_text(path, json.dumps({**what, **numbers, **seconds, **where}, indent=1) + "\n")
    return paths


def read(folder: str | Path = OUT, label: str | None = None, clip: str | None = None) -> list[dict]:
    """Return the records of a folder of results, optionally of one label or one clip.

    Raises ValueError for a file that is no record.
    """
    records = []
    for path in sorted(Path(folder).glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            fits = record["schema"] == SCHEMA and record["psnr_rgb"] is not None
        except (ValueError, KeyError, TypeError):
            fits = False
        if not fits:
            again = "run python -m gcgkit.evaluation.ablations"
            raise ValueError(f"{path} is no record of an ablation: take it out, or {again}.")
        if label in (None, record["label"]) and clip in (None, record["clip"]):
            records.append(record)
    order = {(setting.group, setting.value): i for i, setting in enumerate(SETTINGS)}
    last = len(order)
    return sorted(records, key=lambda r: (r["label"], r["clip"], order.get((r["group"], r["value"]), last)))


def series(records: Sequence[dict], group: str) -> list[tuple[object, dict]]:
    """Return (value, record) of a group and of the profile's own setting; numbers rise, otherwise its own is first."""
    found = [(r["settings"].get(group, r["value"]), r) for g in (DEFAULT, group) for r in records if r["group"] == g]
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value, _ in found):
        found.sort(key=lambda pair: pair[0])
    return found


def rows(records: Iterable[dict]) -> dict[str, dict[str, object]]:
    """Return the records as rows of a table ``{name: {column: value}}``, for `lessons.notebook.table`."""
    return {
        f"{record['group']}: {record['value']}": {
            "PSNR, dB": record["psnr_rgb"],
            "colourfulness / truth's": record["colorfulness_ratio"],
            "CDC / truth's": record["cdc_ratio"],
            "CPU s": record["cpu_seconds"],
        }
        for record in records
    }


def load_clips(
    names: Sequence[str] | None = None, frames: int = FRAMES, first: int | None = None, stride: int | None = None,
    data: str | Path | None = None,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Load clips ``{name: (T, 256, 448, 3)}``: installed ones (the demo's by default), or with ``data`` the test clips.

    first, stride: which frames of an installed clip; by default the demo's own shot, or the first frames one by one.
    Raises ValueError for a name that is not there, FileNotFoundError where a clip is not installed.
    """
    if data is not None:
        found = {n: clip for n, clip in footage.measuring_clips(data, frames) if not names or n in names}
        if lacking := [name for name in names or () if name not in found]:
            raise ValueError(f"{data} holds no measuring clip '{lacking[0]}'; it holds {', '.join(found) or 'others'}.")
        return found
    return {name: load_clip(name, count=frames, **shot(name, first, stride)) for name in names or [CLIP]}


def shot(name: str, first: int | None = None, stride: int | None = None) -> dict[str, int]:
    """Return first frame and stride of an installed clip: as given, or the demo's for its clip, else 0 and 1."""
    start, step = (FIRST, STRIDE) if name == CLIP else (0, 1)
    return {"first": start if first is None else first, "stride": step if stride is None else stride}


def _check_length(truth: np.ndarray) -> None:
    if len(truth) < FIRST_MEASURED + 5:
        raise ValueError(f"CDC needs {FIRST_MEASURED + 5} frames and more here, not {len(truth)}: raise --frames.")


def _is_same_run(path: Path, what: dict) -> bool:
    """Return True if a file holds this very run."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        record["settings"] = {**LATER, **record["settings"]}
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return json.loads(json.dumps(what)).items() <= record.items()


def _slug(text: str) -> str:
    return re.sub(r"[^\w.]+", "_", text).strip("_")


def _run(args: argparse.Namespace) -> None:
    clips = load_clips(args.clip, args.frames, args.first, args.stride, args.data)
    pipe = methods.load_pipeline(args.weights)
    options = {} if args.steps is None else {"num_inference_steps": args.steps}
    label = args.label or Path(args.weights).name
    sources = {name: {} if args.data else shot(name, args.first, args.stride) for name in clips}
    if args.list:
        for setting in plan(pipe, args.group, **options):
            print(f"{setting.group}: {setting.value}")
        return
    run(
        pipe, clips, args.out, label=label, weights=methods.weights_digest(args.weights), groups=args.group,
        seed=args.seed, sources=sources, **options,
    )  # fmt: skip
    for name in clips:
        print(f"\n{label} on {name}")
        for title, row in rows(read(args.out, label, name)).items():
            print(f"{title:34}" + "  ".join(f"{column} {value:7.2f}" for column, value in row.items()))


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m gcgkit.evaluation.ablations",
        description="Colour clips under many settings and keep the numbers.",
    )
    add = parser.add_argument
    add("--weights", metavar="NAME", default="mini", help="bundled name, folder or hub id (mini)")
    add("--label", metavar="TEXT", help="what the weights are called in the results (their name)")
    add("--clip", metavar="NAME", nargs="+", help=f"installed clips, or measuring clips with --data ({CLIP})")
    add("--frames", metavar="N", type=int, default=FRAMES, help=f"frames of each clip ({FRAMES})")
    add("--first", metavar="N", type=int, help="first frame of an installed clip (the demo's)")
    add("--stride", metavar="N", type=int, help="every N-th frame of an installed clip (the demo's)")
    add("--data", metavar="DIR", type=Path, help="data folder, to use its measuring clips")
    add("--group", metavar="G", nargs="+", help=f"only these groups: {', '.join(GROUPS)}")
    add("--steps", metavar="N", type=int, help="denoising steps where they are not varied (32)")
    add("--seed", metavar="N", type=int, default=0, help="same seed, same colours (0)")
    add("--out", metavar="DIR", type=Path, default=OUT, help=f"where the files go ({OUT})")
    add("--list", action="store_true", help="list the settings and stop")
    args = parser.parse_args(argv)
    return run_reporting_errors(lambda: _run(args))


if __name__ == "__main__":
    sys.exit(main())
