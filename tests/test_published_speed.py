"""The figures of benchmarks/README.md and the speeds of REPRODUCING.md against their records in ``benchmarks/records``.

Costs and operations are computed here again. The GPU's record was written down from printed output, so ratios and
ranges in it are also checked against each other.
"""

import itertools
import json
import re
import statistics
import sys
from pathlib import Path

import pytest
import torch
from test_published_numbers import check, table, tables, text

from gcgkit.lessons import flops
from gcgkit.lessons.random_networks import random_pipeline

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import colorize  # noqa: E402

PAGE, PLAN = ROOT / "benchmarks/README.md", ROOT / "REPRODUCING.md"
OPERATIONS = r"takes ([\d.]+) TFLOP in the UNet and, with .*?, ([\d.]+) in the copy. Of these ([\d.]+) and ([\d.]+)"
STEP_BY_STEP = (
    r"from ([\d.]+) to ([\d.]+) TFLOP, diffusers' being ([\d.]+), "
    r"and those of a frame from ([\d.]+) to ([\d.]+), diffusers' being ([\d.]+)"
)
ALLOWED = ("PyTorch 2.11", "Stable Diffusion 2.1")
SOLVER_COLUMNS = {"DDIM": "ddim", "DPM-Solver++": "dpm++", "UniPC": "unipc"}
UNIT = r"\d[\d.,]*(?: to \d[\d.]*)? ?(?:ms|s|MB|GB|%|TFLOP|times|minutes|dB|gray levels?)\b"


def record(name: str) -> dict:
    return json.loads((ROOT / "benchmarks/records" / f"{name}.json").read_text(encoding="utf-8"))


H200, CPU = record("h200"), record("cpu")


def numbers(cell: str) -> list[str]:
    """Return the numbers of a table's cell as they are printed."""
    return re.findall(r"\d+(?:\.\d+)?", cell)


def hold(printed: list[str], values: list[float]) -> None:
    """Compare printed numbers with values, one by one, at the printed digits."""
    for one, value in zip(printed, values, strict=True):
        check(one, value)


# --- on a GPU --------------------------------------------------------------------------------------------------------


def test_the_second_stage_on_a_gpu():
    compiled, plain = H200["second stage, compiled"], H200["second stage, not compiled"]
    cases = [compiled[name] for name in ("diffusers", "ours", "ours, dpm++, 16 steps")]
    rows = table(PAGE, "frames/s")
    for row, case in zip(rows, cases, strict=False):
        hold(numbers(row["frames/s"]), [case["frames_per_second"], *case["seconds"]])
        low, high = case["seconds"]
        assert low <= compiled["frames"] / case["frames_per_second"] <= high + 0.005  # the median is in the range
    for row, case in zip(rows[1:3], cases[1:], strict=True):
        check(row["beside diffusers'"].split()[0], case["frames_per_second"] / cases[0]["frames_per_second"])
    speed = plain["frames_per_second"]
    for row, whose in zip(rows[3:], ("diffusers", "ours"), strict=True):
        hold(row["frames/s"].split("; "), [speed[f"{whose}, 1"], speed[f"{whose}, 8"]])
    gains = rows[4]["beside diffusers'"].removesuffix(" times").split("; ")
    hold(gains, [plain["gain"]["1"], plain["gain"]["8"]])
    for batch, gain in plain["gain"].items():
        assert speed[f"ours, {batch}"] / speed[f"diffusers, {batch}"] == pytest.approx(gain, abs=0.02)
    commands = {row["command"].strip("`") for row in rows} - {"the same"}
    assert commands == {compiled["command"], plain["command"]}
    taken = compiled["ours"]["median"] / compiled["frames"]
    assert taken == pytest.approx(compiled["seconds_per_frame"], abs=6e-4)
    peak = compiled["peak_tflops"]["matrix product"]
    assert compiled["tflop_per_frame"] / taken / peak == pytest.approx(compiled["share_of_peak"], abs=1e-3)


def test_the_first_stage():
    columns = ("m", "written plainly, s", "times as fast", "ours, MB more", "written plainly, MB more")
    names = ("m", "plain", "gain", "ours_mb", "plain_mb")
    found = [rows for rows in tables(PAGE) if "written plainly, s" in rows[0]]
    for rows, known in zip(found, (H200["first stage"], CPU["first stage"]), strict=True):
        for row, entry in zip(rows, known["rows"], strict=True):
            hold(numbers(row["ours, s"]), [entry["ours"], *entry.get("range", ())])
            hold([row[column] for column in columns], [entry[name] for name in names])
            assert entry["plain"] / entry["ours"] == pytest.approx(entry["gain"], abs=0.02)


def sentences() -> list[tuple[str, list[float]]]:
    """Return patterns of the page's sentences with figures, and what the records have for their numbers."""
    compiled, plain, first = H200["second stage, compiled"], H200["second stage, not compiled"], H200["first stage"]
    speed, long, few = plain["frames_per_second"], first["m = 8, 32 steps"], H200["parts"]
    ours, quick = (
        compiled["ours"]["median"],
        compiled["frames"] / compiled["ours, dpm++, 16 steps"]["frames_per_second"],
    )
    shares, parts, length = few["share"], CPU["parts"], CPU["length"]
    share = ("UNet", "UNet copy", "autoencoder", "guidance", "all else")
    on_cpu = ("UNet", "guidance", "autoencoder", "UNet copy", "all else")
    cases = CPU["shortcuts"]
    peak = compiled["peak_tflops"]
    return [
        (r"a step is ([\d.]+) times as fast as diffusers'", [compiled["step_gain"]]),
        (r"([\d.]+) s of our ([\d.]+) go into work", [2 * quick - ours, ours]),  # 16 and 32 steps, and the same rest
        (r"\((\d+) ms to launch a step's kernels\)", [plain["launch_ms_per_step"]]),
        (r"so that 8 side by side are ([\d.]+) times as fast", [speed["ours, 8"] / speed["ours, 1"]]),
        (r"A frame took ([\d.]+) TFLOP in ([\d.]+) s compiled: ([\d.]+) % of the (\d+) TFLOP/s .*? \((\d+) in a conv",
         [compiled["tflop_per_frame"], compiled["seconds_per_frame"], 100 * compiled["share_of_peak"], *peak.values()]),
        (r"the highest memory was ([\d.]+) GB", [compiled["highest_gb"]]),
        (r"were up to (\d+) gray levels apart", [first["gray_levels"]]),
        (r"m = 8 takes ours ([\d.]+) s \(([\d.]+) to ([\d.]+)\), and ([\d.]+) s \(([\d.]+) to ([\d.]+)\)",
         [x for case in ("ours", "ours, replayed") for x in (long[case]["seconds"], *long[case]["range"])]),
        (r"not compiled, ([\d.]+) s: UNet ([\d.]+) %, UNet copy ([\d.]+) %, autoencoder ([\d.]+) %, guidance ([\d.]+) %"
         r"; .*? all else ([\d.]+) %", [few["seconds"], *(100 * shares[name] for name in share)]),
        (r"extrapolated from (\d+) s for a minute of film", [ours / compiled["frames"] * 60 * flops.FPS]),
        (r"took ([\d.]+) s on two threads\. .*? took ([\d.]+) times as long, .*? ([\d.]+) to ([\d.]+) times; .*? at "
         r"most (\d+) gray level", [cases["seconds"], cases["all_off"], *cases["each_off"], cases["gray_levels"]]),
        (r"every logit built .*? at most (\d+) gray level", [CPU["first stage"]["gray_levels"]]),
        (r"under other load, ([\d.]+) s: UNet (\d+) %, guidance (\d+) %, autoencoder (\d+) %, UNet copy (\d+) %; .*? "
         r"all else ([\d.]+) %", [parts["seconds"], *(100 * parts["share"][name] for name in on_cpu)]),
        (r"(\d+) frames took ([\d.]+) s and (\d+) took ([\d.]+) s, ([\d.]+) times what proportion .*? "
         r"had ([\d.]+) times",
         [x for pair in zip(length["frames"], length["seconds"], strict=True) for x in pair]
         + length["of_in_proportion"]),
    ]  # fmt: skip


def test_the_sentences():
    page = text(PAGE)
    for pattern, values in sentences():
        found = re.search(pattern, page)
        assert found, pattern
        hold([*found.groups()], values)
    length = CPU["length"]
    growth = (length["seconds"][1] / length["frames"][1]) / (length["seconds"][0] / length["frames"][0])
    assert growth == pytest.approx(length["of_in_proportion"][0], abs=0.005)


def test_no_other_sentence_of_the_page_has_a_measured_figure():
    """What is left without tables, commands and checked sentences has no number with a unit and no decimal."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line[:1] != "|"]
    page = re.sub(r"`[^`]*`", "", " ".join(" ".join(lines).split()))
    for pattern, _ in [*sentences(), (OPERATIONS, []), (STEP_BY_STEP, [])]:
        page = re.sub(pattern, "", page)
    for allowed in ALLOWED:
        page = page.replace(allowed, "")
    assert re.findall(rf"\S* ?(?:{UNIT}|\d+\.\d+)", page) == []


def test_training_on_a_gpu():
    known = H200["training"]
    compiled, plain, small = known["compiled"], known["not compiled"], known["paper-16gb"]
    rows = table(PAGE, "steps/s")
    speed = lambda part, case: part[case]["steps_per_second"]  # noqa: E731
    gain = lambda part, case: speed(part, case) / speed(part, "example")  # noqa: E731
    expected = [
        ([speed(compiled, "example")], [compiled["example"]["gb"]]),
        ([speed(compiled, "cached"), gain(compiled, "cached")], [compiled["cached"]["gb"]]),
        (
            [speed(plain, "example"), speed(plain, "cached"), gain(plain, "cached")],
            [plain["example"]["gb"], plain["cached"]["gb"]],
        ),
        ([speed(plain, "pixels"), gain(plain, "pixels")], [plain["pixels"]["gb"]]),
        ([speed(small, "cached")], [small["cached"]["gb"], small["cached"]["reserved_gb"]]),
    ]
    for row, (speeds, memory) in zip(rows, expected, strict=True):
        hold(numbers(row["steps/s"]), speeds), hold(numbers(row["highest memory"]), memory)
    commands = {row["command"].strip("`") for row in rows} - {"the same"}
    assert commands == {part["command"] for part in (compiled, plain, small)}


def test_the_cost_of_a_minute_of_film():
    compiled = H200["second stage, compiled"]
    found = flops.cost(compiled["ours"]["median"] / compiled["frames"], flops.sheet_peak(H200["device"]))
    rows = table(PAGE, "dollars")
    assert {row["card"].removesuffix(" (measured)") for row in rows} == set(found)
    for row in rows:
        name = row["card"].removesuffix(" (measured)")
        check(row["seconds"], found[name]["seconds"]), check(row["dollars"], found[name]["dollars"])
        check(row["at dollars an hour"], flops.CARDS[name].price)
    printed = re.search(r"an A100 takes ([\d.]+) times as long, an RTX 4090 ([\d.]+) times", text(PLAN))
    hold([*printed.groups()], [flops.CARDS["H200"].peak / flops.CARDS[name].peak for name in ("A100", "RTX 4090")])


def test_the_plan_takes_its_speeds_from_the_records():
    speed, steps = H200["second stage, not compiled"]["frames_per_second"], H200["training"]["not compiled"]
    plan = text(PLAN)
    for printed in re.findall(r"steps at ([\d.]+) a second, measured on an H200", plan):
        check(printed, steps["cached"]["steps_per_second"])
    rates = re.findall(r"(?:frames|figures) at (0\.\d+) a second", plan)
    assert len(rates) == 3 and set(rates) == {f"{speed['ours, 1']:.2f}"}
    faster = re.search(r"colours ([\d.]+) times as fast, measured on one H200", plan)[1]
    check(faster, speed["ours, 8"] / speed["ours, 1"])
    slower = re.search(r"needs no cache; a step then takes ([\d.]+) times as long", plan)[1]
    check(slower, steps["cached"]["steps_per_second"] / steps["pixels"]["steps_per_second"])

    prepared, run = record("prepare"), record("reproduce-mini")
    for printed in re.findall(r"(?:frames|300 frames) at (\d+) a second(?: on one busy core|; the archive)", plan):
        check(printed, prepared["frames"] / prepared["wall_seconds"])
    own = r"The mini profile took (\d+) minutes on a shared core, (\d+) of them its own computing time"
    printed = re.search(own, plan)
    hold([*printed.groups()], [run["wall_seconds"] / 60, run["processor_seconds"] / 60])
    assert sum(run["seconds"].values()) <= run["wall_seconds"]
    assert re.search(r"every step at small size: (\d+) minutes of one core", plan)[1] == printed[2]


# --- on a CPU --------------------------------------------------------------------------------------------------------


def test_solvers():
    found, rows = record("solvers")["clips"], table(PAGE, "DDIM")
    assert [row["steps"] for row in rows] == ["4", "8", "16", "32"]
    assert [*found] == [*re.search(r"in the mean of (\w+), (\w+) and (\w+),", text(PAGE)).groups()]
    for row, (column, solver) in itertools.product(rows, SOLVER_COLUMNS.items()):
        check(row[column], statistics.mean(cases[f"{solver} {row['steps']}"]["psnr"] for cases in found.values()))


def test_operations(tmp_path):
    """Counted again: they are arithmetic."""
    colorize.main(["operations", "--shapes", "sd21", "--json", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["figures"]["operations"]
    rows = table(PAGE, "ours, TFLOP")
    for row, key in zip(rows, ("a step", "a frame", "a step without keys", "a frame without keys"), strict=True):
        own, peer = found[key]
        hold([row["ours, TFLOP"], row["diffusers'"], row["times as many"]], [own / 1e12, peer / 1e12, peer / own])
    single = flops.operations(random_pipeline("sd21", torch.bfloat16, 256, 448, "meta"), 256, 448)
    keys = [single[flops.KEYS_OF_TEXT], 4 * single[flops.KEYS_OF_TOKENS]]
    told = [n / 1e12 for kind in ("a step", "a frame") for n in (found[f"{kind} without keys"][0], *found[kind])]
    hold([*re.search(STEP_BY_STEP, text(PAGE)).groups()], told)
    printed = re.search(OPERATIONS, text(PAGE))
    hold([*printed.groups()], [count / 1e12 for count in (single["UNet"], single["UNet copy"], *keys)])
