"""Dataset x method x metrics (§4): coloured frames, one result per clip, and means with intervals over clips.

    results = evaluate(open_set("DATA/DAVIS", split="val"), table1_methods(), "results")

A folder of results holds::

    frames/<set>/<method>-<key>/<clip>/00000.png   what a method made (not copied for kind "folder")
    records/<set>/<method>-<key>/<clip>.json       its numbers and their provenance, written completely or not at all
    cache/                                         numbers by content of the frames
    results.jsonl                                  all records, one a line

The key identifies everything that determines the frames: a method's configuration and weights, and the size and
number of the true ones. A killed run continues; earlier frames are used again only if the true frames are the same.
Every process of ``accelerate launch`` takes its share of the clips.
"""

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from itertools import groupby
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from .. import metrics
from ..color import to_gray
from ..metrics import networks
from ..utils.files import write_text
from ..video.images import check_names
from . import columns, provenance
from .clips import EvalSet, Frames, digest
from .columns import Metric
from .methods import Method, Request

TRUTH = "truth"
NO_COLOR = "the frames hold no colour"
SCHEMA = 1
RESAMPLES = 10_000  # of the bootstrap


def evaluate(
    evalset: EvalSet,
    methods: Sequence[Method],
    out: str | Path,
    *,
    metric_names: Sequence[str] | None = None,
    first: int = 1,
    device: str | None = None,
    progress: bool = True,
) -> list[dict]:
    """Colour every clip with every method, measure it, and return the records of this set and these methods.

    metric_names: those of `columns.METRICS`, all by default. first: the first frame measured; 1 leaves out the frame
    that methods get as exemplar, for all methods alike. device: as torch names it, a GPU if there is one by default.
    The true clips are measured too, as the method "truth". Progress goes to the terminal.
    Raises ValueError for methods of one name, for a damaged ``results.jsonl``, or, after everything else is done, for a
    method that failed on a clip.
    """
    out, wanted = Path(out), columns.choose(metric_names)
    names = [method.name for method in methods]
    if len(set(names)) < len(names) or TRUTH in names:
        raise ValueError(f"methods need names of their own, and none may be called '{TRUTH}': {', '.join(names)}.")
    if first < 0:
        raise ValueError(f"first must be at least 0, not {first}.")
    if (out / "results.jsonl").is_file():
        read_results(out)  # what cannot be read cannot be kept: it is refused before anything is coloured
    rank, world, wait = _processes()
    failures: list[str] = []
    for method in [None, *methods]:
        reason = method.missing() if method is not None else None
        if reason is not None:
            if rank == 0:
                _write_absent(out, evalset, method, reason)
            continue
        if method is not None:
            _absent_path(out, evalset, method).unlink(missing_ok=True)
        clips = evalset.clips[rank::world]
        title = TRUTH if method is None else method.name
        try:
            for clip in tqdm(clips, desc=title, unit="clip", disable=None if progress else True):
                try:
                    _evaluate_clip(out, evalset, method, clip, wanted, first, device)
                except (ValueError, OSError) as error:
                    failures.append(f"{title}, {clip}: {error}")
        finally:
            if method is not None:
                method.close()
    wait()
    if rank == 0:
        merge(out)
    wait()
    if failures:
        more = f" ({len(failures) - 1} more like it)" if len(failures) > 1 else ""
        raise ValueError(f"{failures[0]}{more}")
    return [r for r in read_results(out) if r["set"]["name"] == evalset.name and r["method"] in (TRUTH, *names)]


def merge(out: str | Path) -> Path:
    """Write ``results.jsonl`` from the records of a folder of results, and return its path.

    Measurements that only the file has stay: a published folder comes without its records. Raises ValueError for a
    damaged file, and leaves it as it is.
    """
    path = Path(out) / "results.jsonl"
    found = {}
    with suppress(FileNotFoundError):
        earlier = [record for record in read_results(path) if record["clip"]]
        found = {_place(record): {k: v for k, v in record.items() if k != "folder"} for record in earlier}
    here = [json.loads(file.read_text(encoding="utf-8")) for file in Path(out).glob("records/*/*/*.json")]
    found |= {_place(record): record for record in here}
    records = [found[place] for place in sorted(found)]
    write_text(path, "".join(json.dumps(record, sort_keys=True) + "\n" for record in records))
    columns.keep_distances(Path(out), _feature_files(records))
    return path


def _place(record: dict) -> tuple[str, str, str, str]:
    return record["set"]["name"], record["method"], record["key"], record["clip"] or ""


def setting(record: dict) -> tuple:
    """Return what comparable records share: the set, its frames' size and number, and the first measured frame."""
    about = record["set"]
    return about["name"], about["size"] and tuple(about["size"]), about["limit"], record.get("first")


def _feature_files(records: list[dict]) -> Iterator[tuple[list[str], list[str]]]:
    """Return the feature files of method and truth, clip by clip, for every set, method and metric over a set."""
    truth = {(setting(r), r["clip"]): r["metrics"] for r in records if r["method"] == TRUTH}
    for name in (metric.name for metric in columns.METRICS.values() if metric.kind == "set"):
        having = [r for r in records if r["method"] != TRUTH and name in r["metrics"]]
        for _, own in groupby(having, key=lambda r: (r["set"]["name"], r["method"], r["key"])):
            pairs = [(r["metrics"][name], truth.get((setting(r), r["clip"]), {}).get(name)) for r in own]
            if all(other for _, other in pairs):
                yield [mine for mine, _ in pairs], [other for _, other in pairs]


def read_results(path: str | Path) -> list[dict]:
    """Return the records of a ``results.jsonl``, or of its folder, without an incomplete last line.

    Each has "set", "method", "clip", "metrics", "not_measured", "provenance". Raises FileNotFoundError or ValueError.
    """
    path = Path(path)
    path = path / "results.jsonl" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: run gcgkit evaluate first.")
    records = []
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            version = record["schema"]
        except (ValueError, KeyError, TypeError):
            if number == len(lines):
                break
            raise ValueError(f"{path}, line {number}, is no result: mend the line or move the file away.") from None
        if version != SCHEMA:
            raise ValueError(f"{path}, line {number}, is of schema {version}, not {SCHEMA}: move the file away.")
        record["folder"] = str(path.parent)
        records.append(record)
    return records


def bootstrap_interval(values: Sequence[float], *, level: float = 0.95) -> tuple[float, float] | None:
    """Return the percentile bootstrap interval of the mean over clips, always of the same draws; None below two."""
    values = np.asarray(values, np.float64)
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, not {level}.")
    if len(values) < 2:
        return None
    picks = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))  # (R, N)
    low, high = np.quantile(values[picks].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def t_interval(values: Sequence[float], *, level: float = 0.95) -> tuple[float, float] | None:
    """Return Student's t interval of the mean over clips, which allows for few of them; None below two values."""
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, not {level}.")
    if len(values) < 2:
        return None
    freedom = len(values) - 1
    # With t = sqrt(freedom) tan(angle), the density of |t| is proportional to cos(angle) ** (freedom - 1).
    angles = np.linspace(0, np.pi / 2, 200_001)
    density = np.cos(angles) ** (freedom - 1)
    below = np.concatenate([[0], np.cumsum(density[1:] + density[:-1])])
    bound = np.sqrt(freedom) * np.tan(np.interp(level * below[-1], below, angles))
    mean, half = np.mean(values), bound * np.std(values, ddof=1) / np.sqrt(len(values))
    return float(mean - half), float(mean + half)


# --- one clip --------------------------------------------------------------------------------------------------------


def _evaluate_clip(
    out: Path, evalset: EvalSet, method: Method | None, clip: str, wanted: list[Metric], first: int, device: str | None
) -> None:
    """Bring the record of one clip up to date: do nothing, add metrics, or do all."""
    truth, (content, count) = evalset.frames(clip), evalset.digest(clip)
    name, identity = (TRUTH, {"kind": TRUTH}) if method is None else (method.name, method.identity())
    key = _key(evalset, identity)
    place = Path(evalset.name) / f"{_slug(name)}-{key[:8]}"
    path = out / "records" / place / f"{clip}.json"
    record = _read_record(path, content, first)
    if method is None:
        wanted = [metric for metric in wanted if metric.of_truth]
    pending = [metric for metric in wanted if record is None or not _has_number_or_reason(record, metric)]
    if record is not None and not pending and identity["kind"] != "folder":
        return
    began, made = time.monotonic(), {}
    pred, pred_content = truth.keep_in_memory(), content
    if method is not None:
        folder, made = _color(out / "frames" / place / clip, method, Request(clip, truth, device), content)
        began = time.monotonic()
        pred = _checked(folder, count, truth, foreign=identity["kind"] == "folder")
        pred_content = digest(pred)[0]
    if record is not None and record["contents"]["frames"] != pred_content:
        record, pending = None, wanted
    if record is None:
        record = {
            "schema": SCHEMA, "set": evalset.describe(), "method": name, "identity": identity, "key": key,
            "clip": clip, "frames": count, "first": first, "contents": {"truth": content, "frames": pred_content},
            "metrics": {}, "not_measured": {}, "notes": [], "provenance": {},
        }  # fmt: skip
    elif not pending:
        return
    _measure(record, pending, pred, truth, out / "cache", device)
    record["set"] = evalset.describe()
    seconds = {"measuring_seconds": round(time.monotonic() - began, 3)}
    record["provenance"] = {**record["provenance"], **provenance.collect(device), **made, **seconds}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(record, sort_keys=True, indent=1) + "\n")


def _color(folder: Path, method: Method, request: Request, content: str) -> tuple[Path, dict]:
    """Return the folder of a method's frames, made now unless an earlier run made it, and the cost of making them."""
    made_file = folder / "made.json"
    if made_file.is_file():
        made = json.loads(made_file.read_text(encoding="utf-8"))
        if made.pop("truth") == content:
            return folder, made
    shutil.rmtree(folder, ignore_errors=True)
    # A method writes everything in here, so that the next run removes the remains of a killed one.
    scratch = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(scratch, ignore_errors=True)
    began, aside = time.monotonic(), scratch / "frames"
    provenance.reset_peak(request.device)
    try:
        place = method.run(request, aside)
    except BaseException:
        with suppress(OSError):  # a compared system's own output stays in it, to be read
            scratch.rmdir()
        raise
    if place != aside:
        return place, {}
    seconds, peak = round(time.monotonic() - began, 3), provenance.peak_memory(request.device)
    made = {"coloring_seconds": seconds, "peak_mb": peak, "coloured": provenance.now()}
    made.update(method.facts())
    write_text(aside / made_file.name, json.dumps({"truth": content, **made}) + "\n")
    aside.rename(folder)
    shutil.rmtree(scratch, ignore_errors=True)
    return folder, made


def _checked(folder: Path, count: int, truth: Frames, foreign: bool) -> Frames:
    """Return a method's frames; refuse those that do not fit the true ones. `foreign` frames may be BGR."""
    found = check_names(folder)
    if found != count:
        raise ValueError(f"{folder} holds {found} frames, the true clip {count}: every frame is needed.")
    frames = Frames(folder).keep_in_memory()
    got, want = next(iter(frames)).shape, next(iter(truth)).shape
    if got != want:
        raise ValueError(
            f"{folder} holds frames of {got[1]}x{got[0]}, the true ones are {want[1]}x{want[0]}: write that size."
        )
    if max(int(frame.max()) for frame in frames) <= 1 < max(int(frame.max()) for frame in truth):
        raise ValueError(f"{folder} holds values of 0 and 1 alone: scale them to 0..255 before writing.")
    if foreign and metrics.swapped_channels(frames, (to_gray(frame) for frame in truth)):
        raise ValueError(f"{folder} holds frames with red and blue exchanged: write them as RGB, not BGR.")
    return frames


def _measure(result: dict, wanted: list[Metric], pred: Frames, truth: Frames, cache: Path, device: str | None) -> None:
    """Fill in a record's missing metrics, each with its number or the reason for none."""
    first = result["first"]
    rest, true_rest = pred.from_frame(first), truth.from_frame(first)
    contents = (result["contents"]["truth"], result["contents"]["frames"], str(first))
    for metric in wanted:
        if metric.name in result["metrics"]:
            continue
        try:
            value = columns.measure(metric, rest, true_rest, cache=cache, contents=contents, device=device)
        except (networks.MetricUnavailable, ValueError) as error:
            result["not_measured"][metric.name] = str(error)
            continue
        result["not_measured"].pop(metric.name, None)
        result["metrics"][metric.name] = value
        if metric.network:
            used = result["provenance"].setdefault("networks", {})
            used[metric.network] = networks.identity(metric.network)
    if result["metrics"].get("colorfulness") == 0 and not result["notes"]:
        result["notes"].append(NO_COLOR)


def _has_number_or_reason(record: dict, metric: Metric) -> bool:
    """Return True if a record has the metric's number, or a reason for none that still applies."""
    if metric.name in record["metrics"]:
        return True
    lasting = metric.network is None or networks.missing(metric.network) is not None
    return lasting and metric.name in record["not_measured"]


def _read_record(path: Path, content: str, first: int) -> dict | None:
    """Return an earlier record of the same true frames, or None."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        same = record["schema"] == SCHEMA and record["contents"]["truth"] == content and record["first"] == first
    except (OSError, ValueError, KeyError):
        return None
    return record if same else None


def _write_absent(out: Path, evalset: EvalSet, method: Method, reason: str) -> None:
    """Write a record with the reason why a method has no numbers."""
    path = _absent_path(out, evalset, method)
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "schema": SCHEMA, "set": evalset.describe(), "method": method.name, "identity": {}, "key": "", "clip": None,
        "absent": reason, "metrics": {}, "not_measured": {}, "notes": [], "provenance": provenance.collect(None),
    }  # fmt: skip
    write_text(path, json.dumps(record, sort_keys=True, indent=1) + "\n")


def _absent_path(out: Path, evalset: EvalSet, method: Method) -> Path:
    return out / "records" / evalset.name / f"{_slug(method.name)}-absent" / "absent.json"


# --- names and processes ---------------------------------------------------------------------------------------------


def _key(evalset: EvalSet, identity: dict) -> str:
    """Return a digest of all that determines the frames, 64 hexadecimal digits. It leaves the choice of clips out."""
    decided = {"size": evalset.size and list(evalset.size), "limit": evalset.limit, **identity}
    return hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()


def _slug(name: str) -> str:
    """Return a method's name as part of a folder's name; the key behind it keeps Ours* and Ours** apart."""
    return re.sub(r"[^\w.+-]", "_", name.replace("*", "+"))


def _processes():
    """Return this process's number, the number of processes, and a function that waits for all."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0, 1, lambda: None
    from accelerate import PartialState

    state = PartialState(timeout=timedelta(days=7))  # one process may colour for hours after another is done
    return state.process_index, state.num_processes, state.wait_for_everyone
