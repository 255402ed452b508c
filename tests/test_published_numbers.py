"""Every figure in README's and the model card's tables of results against its record in ``results/``."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from gcgkit.evaluation.methods import TABLE1_SETTINGS
from gcgkit.evaluation.rows import group_rows, paired_differences, row_settings
from gcgkit.evaluation.run import read_results, t_interval
from gcgkit.evaluation.table import render

ROOT = Path(__file__).resolve().parents[1]
CARD = ROOT / "gcgkit/weights/mini/README.md"
README = ROOT / "README.md"
ROWS = {
    "gray": "gray", "transfer": "global colour transfer", "flow": "flow propagation", "Ours": "ours",
    "Ours*": "ours without colour attention and gate (Ours*)", "Ours**": "ours without the gate (Ours**)",
    "Ours***": "ours without the sliding grid (Ours***)",
    "Ours, the profile's own settings": "ours, the profile's own settings",
}  # fmt: skip
COLUMNS = {"PSNR (RGB), dB": ("psnr_rgb", 1), "ST-LPIPS": ("st_lpips", 1), "CDC, ×10⁻²": ("cdc", 100)}
METRICS = {name for name, _ in COLUMNS.values()}
SIX = "DAVIS-val, six clips"
BIASED = 6  # photographs that the first parts had seen, all of them ImageNet's


def record(name: str) -> dict:
    found = json.loads((ROOT / "results/card" / f"{name}.json").read_text(encoding="utf-8"))
    return {key: value for key, value in found.items() if key not in ("settings", "provenance", "weights")}


def text(path: Path) -> str:
    return " ".join(path.read_text(encoding="utf-8").split())


def tables(path: Path) -> list[list[dict[str, str]]]:
    """Return a page's tables: for each a list of rows by the column's title, without stars."""
    found, lines = [], path.read_text(encoding="utf-8").splitlines()
    for block in re.split(r"\n(?!\|)", "\n".join(lines)):
        rows = [
            [cell.strip(" *") for cell in line.strip("|").split("|")] for line in block.splitlines() if line[:1] == "|"
        ]
        if len(rows) > 2:
            found.append([dict(zip(rows[0], row, strict=True)) for row in rows[2:]])
    return found


def table(path: Path, column: str) -> list[dict[str, str]]:
    """Return the one table that has a column of that title."""
    (found,) = [rows for rows in tables(path) if column in rows[0]]
    return found


def agrees(printed: str, value: float) -> bool:
    """Return whether a printed number, signed or in per cent, is the value at the printed digits."""
    number = re.fullmatch(r"([+-]?\d[\d,]*(?:\.\d+)?)( %)?", printed.rstrip(".,"))
    digits = len(number[1].partition(".")[2])
    wanted = round(100 * value if number[2] else value, digits)
    return float(number[1].replace(",", "")) == pytest.approx(wanted, abs=1e-9)


def check(printed: str, value: float) -> None:
    assert agrees(printed, value), f"{printed} is printed, and the record has {value}"


def steadiness(name: str) -> float:
    mean = record(name)["mean"]
    return mean["cdc"] / mean["cdc_truth"]


@pytest.mark.parametrize("digit", ["30.06", "30.04", "-30.05", "31 %"])
def test_another_digit_does_not_agree(digit):
    assert agrees("30.05", 30.0521) and agrees("+1.22", 1.2174) and agrees("69 %", 0.6875)
    assert not agrees(digit, 30.0521)


def test_photographs():
    rows = table(CARD, "PSNR gain")
    names = ("photos", "photos-from-noise-2-steps", "photos-from-noise-8-steps", "photos-earlier-weights-8-steps")
    keys = {
        "PSNR gain": "psnr_gain", "better than gray": "better_than_gray", "colourfulness": "colorfulness_ratio",
        "blotches": "blotches_ratio", "ST-LPIPS": "st_lpips",
    }  # fmt: skip
    for row, name in zip(rows, names, strict=True):
        for column, key in keys.items():
            check(row[column], record(name)["summary"][key])
    whole = record("photos")
    check(re.search(r"ST-LPIPS \(gray: ([\d.]+)\)", text(CARD))[1], whole["summary"]["st_lpips_gray"])
    listed = [(p["file"], p["psnr"] - p["psnr_gray"]) for p in whole["photographs"]]
    seen = [gain for file, gain in listed if re.match(r"n\d{8}_", file)]
    others = [gain for file, gain in listed if not re.match(r"n\d{8}_", file)]
    assert len(seen) == BIASED and len(listed) == 48
    printed = re.search(r"the gain is (-[\d.]+) dB, on the other 42 (\+[\d.]+) dB", text(CARD))
    check(printed[1], np.mean(seen)), check(printed[2], np.mean(others))
    fresh = record("photos-72-others")
    gains = [p["psnr"] - p["psnr_gray"] for p in fresh["photographs"]]
    assert len(gains) == 72 and not {p["file"] for p in fresh["photographs"]} & {file for file, _ in listed}
    found = re.search(r"a gain of (\+[\d.]+) dB, standard error ([\d.]+) dB, (\d+ %) .*? up to (\d+) dB", text(CARD))
    error = np.std(gains, ddof=1) / len(gains) ** 0.5
    values = (np.mean(gains), error, np.mean(np.array(gains) > 0), -min(gains))
    for printed, value in zip(found.groups(), values, strict=True):
        check(printed, value)
    short = re.search(r"guesses: ([\d.]+) dB better than gray on (\d+) held-out photographs", text(README))
    assert int(short[2]) == 48
    check(short[1], whole["summary"]["psnr_gain"])
    check(re.search(r"six of the 48; these lose ([\d.]+) dB", text(README))[1], -np.mean(seen))
    check(re.search(r"and ([\d.]+) dB on 72 fresh ones", text(README))[1], np.mean(gains))
    check(
        re.search(r"Of the 48, (\d+ %) are worse than gray", text(README))[1], 1 - whole["summary"]["better_than_gray"]
    )


def test_the_picture_of_the_readme():
    found = re.search(r"optical flow from the same frame has ([\d.]+), ([\d.]+) and ([\d.]+) dB", text(README))
    for printed, numbers in zip(found.groups(), record("demo")["numbers"].values(), strict=True):
        check(printed, numbers["flow propagation"]["psnr_rgb"])


def test_the_keyframe_weight_and_the_size_on_three_clips():
    found = re.search(
        r"those three have ([\d.]+) dB, with the weight ([\d.]+), at 560x320 ([\d.]+), with both ([\d.]+)",
        text(CARD),
    )
    records = ("three-clips-448x256-weight-1", "three-clips-448x256", "three-clips-weight-1")
    values = [record(f"exemplar-{name}")["mean"]["ours"] for name in records]
    both = np.mean([record("exemplar")[clip]["ours"] for clip in ("blackswan", "dog", "soapbox")])
    for printed, value in zip(found.groups(), [*values, both], strict=True):
        check(printed, value)


def test_films_from_a_coloured_frame():
    own, papers = record("exemplar"), record("exemplar-paper-settings")
    rows = table(CARD, "mean AB of frame 0")
    assert [row["clip"] for row in rows] == [*own]
    for row in rows:
        ours, theirs = own[row["clip"]], papers[row["clip"]]
        for column, value in {
            "own settings": ours["ours"], "paper's settings": theirs["ours"], "gray": ours["gray"],
            "mean AB of frame 0": ours["mean_ab"], "flow propagation": ours["flow"], "true AB": ours["true_ab"],
            "colourfulness / truth's, own": ours["colorfulness_ratio"], "paper's": theirs["colorfulness_ratio"],
        }.items():  # fmt: skip
            check(row[column], value)
    printed = re.search(
        r"mean CDC over the truth's is ([\d.]+) at own settings and ([\d.]+) at the paper's", text(CARD)
    )
    check(printed[1], steadiness("exemplar")), check(printed[2], steadiness("exemplar-paper-settings"))
    seconds = re.search(r"server CPU (\d+) to (\d+) s a clip; .*?, (\d+) to (\d+) s\.", text(CARD))
    for first, last, found in ((1, 2, own), (3, 4, papers)):
        times = [found[row["clip"]]["seconds"] for row in rows if row["clip"] != "mean"]
        check(seconds[first], min(times)), check(seconds[last], max(times))


def test_films_in_the_readme():
    own, papers = record("exemplar")["mean"], record("exemplar-paper-settings")["mean"]
    rows = table(README, "CDC / truth's")
    values = [own["gray"], own["flow"], own["ours"], papers["ours"]]
    for row, value in zip(rows, values, strict=False):
        check(row["PSNR, dB"], value)
    for row, of, name in zip(rows[2:4], (own, papers), ("exemplar", "exemplar-paper-settings"), strict=True):
        check(row["colourfulness / truth's"], of["colorfulness_ratio"])
        check(row["CDC / truth's"], steadiness(name))
    check(rows[4]["PSNR, dB"], record("vae")["mean"])
    check(re.search(r"Ours is ([\d.]+) dB better than optical flow here", text(README))[1], own["ours"] - own["flow"])
    assert "each is better on three of the six clips" in text(README)
    gains = {clip: found["ours"] - found["flow"] for clip, found in record("exemplar").items() if clip != "mean"}
    assert sum(gain > 0 for gain in gains.values()) == 3 and len(gains) == 6
    assert abs(np.mean([gain for clip, gain in gains.items() if clip not in ("blackswan", "dog", "soapbox")])) < 0.05


def test_the_share_of_the_unet():
    with_it, without = record("exemplar-paper-settings"), record("exemplar-paper-settings-without-unet")["mean"]["ours"]
    whole = np.mean([with_it[clip]["ours"] for clip in ("blackswan", "dog")])
    printed = re.search(r"blackswan dog`\), ([\d.]+) dB, which is gray; ([\d.]+) with it", text(CARD))
    check(printed[1], without), check(printed[2], whole)
    short = re.search(r"\(([\d.]+) dB on two clips, ([\d.]+) without it\)", text(README))
    check(short[1], whole), check(short[2], without)
    noisy = record("exemplar-paper-settings-noise-scale-1")["mean"]
    calm = np.mean([with_it[clip]["colorfulness_ratio"] for clip in ("blackswan", "dog")])
    found = re.search(
        r"blackswan and dog have ([\d.]+) dB in place of ([\d.]+), and colourfulness ([\d.]+) in place of ([\d.]+)",
        text(CARD),
    )
    for printed, value in zip(found.groups(), (noisy["ours"], whole, noisy["colorfulness_ratio"], calm), strict=True):
        check(printed, value)


def test_words_keyframes_autoencoder_and_gate():
    rows = {row["what"].split(",")[0].split(" through")[0]: row["measured"] for row in table(CARD, "measured")}
    words, keys = record("words")["summary"], record("keyframes")["summary"]
    found = re.search(r"in (\d+) of (\d+); it moves \*\*([\d.]+)\*\* times", rows['prompts "COLOUR THING"'])
    assert int(found[1]) == round(words["moved"] * words["cases"]) and int(found[2]) == words["cases"]
    check(found[3], words["inside_over_outside"])
    numbers = re.findall(r"\d+\.\d+", rows["keyframes"])
    apart, shared = keys["spread_independent"], keys["spread_shared"]
    of_object, of_object_shared = keys["object_spread_independent"], keys["object_spread_shared"]
    ratios = [kind["ratio"] for kind in (apart, of_object, shared, of_object_shared)]
    values = (*ratios, apart["truth"], apart["alone"], apart["together"])
    for printed, value in zip(numbers, values, strict=True):
        check(printed, value)
    check(rows["true colours"].split()[0], record("vae")["mean"])
    gate = record("gate")
    for printed, kind in zip(rows["gate"].split(", "), ("masked", "matching", "wrong"), strict=True):
        check(printed, gate[kind])


def test_the_gate_on_its_way_in_the_results_page():
    """What the gate lets in of a wrong reference: its stage's curve, and the same pairs of frames at three times."""
    page, way = text(ROOT / "results/README.md"), record("gate-on-the-way")
    curves = json.loads((ROOT / "gcgkit/lessons/mini_training.json").read_text(encoding="utf-8"))["stages"]
    left, exported = (way[key]["wrong"] for key in list(way)[1:])
    now, end = record("gate")["wrong"], curves["gate"]["points"]["gate_unrelated"][-1]
    sentences = r"lets ([\d.]+) of a wrong .*? ends at ([\d.]+) .*? gave ([\d.]+) .*?, ([\d.]+) .*?, and ([\d.]+)"
    found = re.search(sentences, page)
    for printed, value in zip(found.groups(), (now, end, left, exported, now), strict=True):
        check(printed, value)


def test_table_1_and_the_ablations_in_the_results_page():
    page = ROOT / "results/README.md"
    values: dict[str, dict[str, list[float]]] = {}
    for line in (ROOT / "results/mini/results.jsonl").read_text(encoding="utf-8").splitlines():
        run = json.loads(line)
        if run["metrics"] and run["set"]["name"] == SIX:
            for name in METRICS & set(run["metrics"]):
                values.setdefault(run["method"], {}).setdefault(name, []).append(run["metrics"][name])
    rows = table(page, "CDC, ×10⁻²")
    assert len(rows) == len(ROWS)
    for row in rows:
        name = next(name for name, text in ROWS.items() if text == row["method"].replace("\\", ""))
        for column, (key, factor) in COLUMNS.items():
            check(row[column], factor * np.mean(values[name][key]))
    for row in table(page, "file in `ablations/`"):
        found = json.loads(
            (ROOT / "results/ablations" / row["file in `ablations/`"].strip("`")).read_text(encoding="utf-8")
        )
        check(row["PSNR (RGB), dB"], found["psnr_rgb"])


def test_old_film_in_the_results_page():
    page, files = ROOT / "results/README.md", {}
    for flicker in ("0.08", "0.25"):
        files[flicker] = json.loads((ROOT / f"results/aged/flicker-{flicker}.json").read_text(encoding="utf-8"))[
            "summary"
        ]
    films = {"clean": "clean", "aged": "aged", "aged, flicker removed (`--deflicker`)": "deflickered"}
    for row in table(page, "flicker 0.08: PSNR, dB"):
        weak, strong = (found[films.get(row["film"], "clean")] for found in files.values())
        gray = "_gray" if row["film"] == "gray, clean" else ""
        for column, value in {
            "flicker 0.08: PSNR, dB": weak["psnr" + gray], "AB error, 0.08": weak["ab" + gray],
            "flicker 0.25: PSNR, dB": strong["psnr" + gray], "AB error, 0.25": strong["ab" + gray],
        }.items():  # fmt: skip
            check(row[column], value)
        if not gray:
            check(row["CDC"], strong["cdc"])


def test_the_conclusions_of_the_results_page():
    """Paired differences of Table 1, computed again from its records, and what age and its removal do to colours."""
    page = text(ROOT / "results/README.md")
    records = [r for r in read_results(ROOT / "results/mini") if r["set"]["name"] == SIX and not r.get("absent")]
    rows = {name: own for (name, _), own in group_rows(records).items()}
    apart = {name: paired_differences(rows["Ours"], own, "psnr_rgb") for name, own in rows.items()}
    found = re.search(r"attention brings ([\d.]+) dB, and something on every clip", page)
    check(found[1], np.mean(apart["Ours*"]))
    assert min(apart["Ours*"]) > 0
    found = re.search(
        r"not decided: ([\d.]+) dB in the mean, t interval (-[\d.]+) to ([\d.]+), "
        r"better on (\d) of 6 clips and worse on (\d)",
        page,
    )
    low, high = t_interval(apart["Ours**"])
    check(found[1], np.mean(apart["Ours**"])), check(found[2], low), check(found[3], high)
    assert [int(found[4]), int(found[5])] == [sum(s * x > 0 for x in apart["Ours**"]) for s in (1, -1)]
    installed = [r for r in read_results(ROOT / "results/mini") if r["set"]["name"] == "installed"]
    others = {name: own for (name, _), own in group_rows(r for r in installed if not r.get("absent")).items()}
    assert "On the installed clips all three intervals hold zero" in page
    for metric in ("psnr_rgb", "st_lpips", "cdc"):
        low, high = t_interval(paired_differences(others["Ours"], others["Ours**"], metric))
        assert low < 0 < high, metric
    found = re.search(r"grid costs ([\d.]+) dB \(([\d.]+) to ([\d.]+)\)", page)
    low, high = t_interval(apart["Ours***"])
    check(found[1], -np.mean(apart["Ours***"])), check(found[2], -high), check(found[3], -low)
    flow = {name: paired_differences(rows["flow"], own, "psnr_rgb") for name, own in rows.items() if "Ours" in name}
    own = "Ours, the profile's own settings"
    assert "better than all rows at the paper's settings on every clip" in page
    assert min(min(values) for name, values in flow.items() if name != own) > 0
    found = re.search(r"profile's own settings on (\d) of (\d), by ([\d.]+) dB in the mean of all six", page)
    assert [int(found[1]), int(found[2])] == [sum(x > 0 for x in flow[own]), len(flow[own])]
    check(found[3], np.mean(flow[own]))
    mean = record("exemplar")["mean"]
    check(re.search(r"Over forty frames, .*? ours is ([\d.]+) dB better", page)[1], mean["ours"] - mean["flow"])
    check(re.search(r"Over twelve frames, flow leads by ([\d.]+) dB", text(README))[1], np.mean(flow[own]))
    aged = json.loads((ROOT / "results/aged/flicker-0.25.json").read_text(encoding="utf-8"))["summary"]
    check(re.search(r"true colours on the aged film have ([\d.]+)\.", page)[1], aged["aged"]["cdc_truth"])
    assert "wins back more than a third of the loss in AB error" in page
    lost, left = (aged[film]["ab"] - aged["clean"]["ab"] for film in ("aged", "deflickered"))
    assert 1 / 3 < (lost - left) / lost < 1 / 2


def test_the_table_in_the_results_is_what_its_records_give():
    folder = ROOT / "results/mini"
    assert (folder / "table.md").read_text(encoding="utf-8") == render(read_results(folder))


@pytest.mark.parametrize("group", [SIX, "installed"])
def test_rows_of_table_1_differ_only_in_what_their_names_say(group):
    records = [r for r in read_results(ROOT / "results/mini") if r["set"]["name"] == group and not r.get("absent")]
    rows = {name: row_settings(own) for (name, _), own in group_rows(records).items() if name.startswith("Ours")}
    ours, grid = rows["Ours"], rows["Ours***"]
    assert ours["seed"] and ours == rows["Ours*"] == rows["Ours**"]
    assert {name for name in ours | grid if ours.get(name) != grid.get(name)} == {"use_srg"}


def test_settings_in_the_results_page():
    page = text(ROOT / "results/README.md")
    records = [r for r in read_results(ROOT / "results/mini") if r["identity"].get("kind") == "gcg"]
    settings = {r["method"]: r["provenance"]["settings"] for r in records}
    own = settings["Ours, the profile's own settings"]
    found = re.search(
        r"`strength` ([\d.]+), `hint_weight` (\d+), `tau` (\d+), `keyframe_weight` (\d+).*? noise scale of ([\d.]+), "
        r"which is (\d+) in Table 1",
        page,
    )
    names = ("strength", "hint_weight", "tau", "keyframe_weight", "noise_scale")
    for printed, value in zip(
        found.groups(), [*(own[name] for name in names), settings["Ours"]["noise_scale"]], strict=True
    ):
        check(printed, value)
    found = re.search(
        r"(\d+) steps from noise, tau (\d+), hint weight (\d+), keyframe weight (\d+), (\d+)x(\d+), full", page
    )
    names = ("num_inference_steps", "tau", "hint_weight", "keyframe_weight")
    values = [*(TABLE1_SETTINGS[name] for name in names), *TABLE1_SETTINGS["working_size"][::-1]]
    for printed, value in zip(found.groups(), values, strict=True):
        check(printed, value)
    assert TABLE1_SETTINGS["strength"] == TABLE1_SETTINGS["noise_scale"] == 1
    for name, value in TABLE1_SETTINGS.items():
        assert settings["Ours"][name] == value


def test_the_logs_of_training():
    """The card's figures of training, and the hours and steps of REPRODUCING.md."""
    logs, card = record("training"), text(CARD)
    gains = logs["pyramid_held_out_db_over_gray"]
    found = re.search(r"over gray: ([\d.]+)\. After 500 steps it had ([\d.]+); .*?, had ([\d.]+) after 500", card)
    for printed, name in zip(
        found.groups(), ("pyramid, 2500 steps", "pyramid, 500 steps", "flat, 500 steps"), strict=True
    ):
        check(printed, gains[name])
    found = re.search(r"had ([\d.]+) of squared error on held-out ones after 400 steps and ([\d.]+) at the end", card)
    held = {entry["step"]: entry["held"] for entry in logs["gpu_held_out"]}
    check(found[1], held[400]), check(found[2], held[max(held)])

    plan = text(ROOT / "REPRODUCING.md")
    first = int(re.search(r"together: ([\d,]+) steps of 16", card)[1].replace(",", ""))
    more = [
        int(n.replace(",", "")) for n in re.search(r"again, (\d+), ([\d,]+) and ([\d,]+) steps of 16", card).groups()
    ]
    found = re.search(r"about seven hours .*? ([\d.]+) s for each of the ([\d,]+) later steps", plan)
    steps = int(found[2].replace(",", ""))
    assert steps == first + sum(more)
    joint = logs["joint"]
    assert joint[-1]["step"] == 1380 and "the first 1,380 steps of training together" in plan
    # The clock starts again after a stop: that interval counts nothing.
    pace = [
        (after["seconds"] - before["seconds"]) / (after["step"] - before["step"])
        for before, after in zip([{"seconds": 0, "step": 0}, *joint], joint, strict=False)
        if after["seconds"] > before["seconds"]
    ]
    check(found[1], np.median(pace))
    check(re.search(r"their mean is ([\d.]+) s", plan)[1], np.mean(pace))
    assert round(2 + steps * np.median(pace) / 3600) == 7 and 7.25 < 2 + steps * np.mean(pace) / 3600 < 7.75
    check(re.search(r"took ([\d.]+) s a step on two cores", card)[1], np.median(pace))
    variants = json.loads((ROOT / "gcgkit/lessons/variants_training.json").read_text(encoding="utf-8"))["stages"]
    found = re.search(r"two ablation variants took ([\d.]+) and ([\d.]+) minutes", plan)
    for printed, stage in zip(found.groups(), variants.values(), strict=True):
        check(printed, stage["minutes"])
    more = re.search(r"learn ([\d,]+) more steps of 16 views", card)[1]
    assert {stage["steps"] for stage in variants.values()} == {int(more.replace(",", ""))}


def test_parameters_in_the_card_and_the_readme():
    counts = {}
    for file in (ROOT / "gcgkit/weights/mini").glob("*/*.safetensors"):
        with safe_open(file, "np") as tensors:
            counts[file.parent.name] = sum(math.prod(tensors.get_slice(key).get_shape()) for key in tensors.keys())
    for row in table(CARD, "parameters"):
        if row["parameters"]:
            name = row["part"].split(",")[-1 if "text_encoder" in row["part"] else 0].strip(" `")
            check(row["parameters"].removesuffix(" M"), counts[name] / 1e6)
    for page in (CARD, README):
        check(re.search(r"([\d.]+) M parameters", text(page))[1], sum(counts.values()) / 1e6)


def test_the_counts_of_photographs_and_clips():
    known, card = record("data"), text(CARD)
    assert f"{known['photographs']:,} for the pyramid" in card and f"has the {known['photographs']:,} by source" in card
    assert sum(known["by_source"].values()) == known["photographs"]
    assert known["held_out"] == math.ceil((known["photographs"] + known["held_out"]) / 20)
    davis, others = (
        re.search(r"DAVIS 2017 clips \| (\d+), 40", card)[1],
        re.search(r"repositories \| (\d+), 40", card)[1],
    )
    assert (int(davis), int(others)) == (len(known["davis_clips"]), len(known["other_clips"]))
    assert f": {', '.join(known['davis_clips'])} |" in card
    photos, clips = re.search(r"trained on ([\d,]+) photographs and (\d+) clips", text(README)).groups()
    assert f"{photos} for copy, UNet and words" in card and int(clips) == int(davis) + int(others)


# The figures in sentences that the tests of this file, of test_published_speed and of test_reproduce read, and after
# them what is no measurement: versions, settings that were given in training, arithmetic.
N = r"[+-]?\d+(?:\.\d+)?"
READ = {
    README: [
        rf"same frame has {N}, {N} and {N} dB", rf"Ours is {N} dB better than optical flow", rf"flow leads by {N} dB",
        rf"guesses: {N} dB better than gray",
        rf"and {N} dB on 72 fresh", rf"noise \({N} dB on two clips, {N} without it\)",
        r"48, \d+ % are worse",
        rf"these lose {N} dB",
        r"doi 10\.\d+/\d+\.\d+", r"Python 3\.11 to 3\.14", r"Apache-2\.0",
    ],
    ROOT / "results/README.md": [
        rf"lets {N} of a wrong .*? ends at {N}",
        rf"gave {N} with the gate .*?, {N} after",
        rf"and {N} after the guidance",
        rf"attention brings {N} dB", rf"not decided: {N} dB in the mean, t interval {N} to {N}",
        rf"costs {N} dB \({N} to {N}\)", rf"by {N} dB in the mean of all six", rf"ours is {N} dB better",
        rf"profile's own \( {N}", rf"noise scale of {N}", rf"aged film have {N}",
        rf"null token by {N}", rf"at flicker {N} and 40 at {N}", rf"CDC at {N}", r"95 %",
    ],
    ROOT / "REPRODUCING.md": [
        rf"took {N} minutes on a shared core",
        rf"need {N} GB and {N} hours",
        rf"A100 takes {N} times as long, an RTX 4090 {N} times",
        rf"latents is {N} GB by arithmetic", rf"a step then takes {N} times", rf"colours {N} times as fast",
        rf"and {N} s for each",
        rf"their mean is {N} s",
        rf"variants took {N} and {N} minutes",
        rf"plan above is {N} hours",
        rf"that is {N} kWh", r"card with 16 GB", r"full 700 W", r"LDV 3\.0",
    ],
    CARD: [
        rf"{N} M param", rf"over gray: {N}\. After 500 steps it had {N}", rf"three layers, had {N} after",
        rf"from noise had {N} of squared .*? and {N} at the end",
        rf"those three have {N} dB, with the weight {N}, at 560x320 {N}, with both {N}",
        rf"ST-LPIPS \(gray: {N}\)", rf"gain of {N} dB, standard error {N} dB, \d+ %", rf"up to {N} dB",
        rf"the gain is {N} dB, on the other 42 {N} dB", rf"server CPU {N} to {N} s a clip;.*?, {N} to {N} s\.",
        rf"truth's is {N} at own settings and {N} at", rf"\), {N} dB, which is gray; {N} with it",
        rf"dog have {N} dB in place of {N}, and colourfulness {N} in place of {N}",
        rf"sharpened by {N}", rf"took {N} s a step on two cores",
        rf"lowered by {N}",
        rf"three states: {N} .*? {N} of its middle .*? {N} of its end",
        r"20 to 40 %",
        rf"decay of {N}",
        r"rates 3e-4, 3\.5e-4",
        rf"\( {N}\)",
        rf"with {N}; Table 1",
        rf"- {N} is part of",
        r"at 55 %",
    ],
}  # fmt: skip


@pytest.mark.parametrize("page", READ, ids=lambda path: path.parent.name + "/" + path.name)
def test_no_other_sentence_of_a_page_has_a_figure(page):
    """Without commands, tables and what is read no number with a unit and no decimal is left."""
    body = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    body = " ".join(" ".join(line for line in body.splitlines() if line[:1] != "|").split())
    body = re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`]*`", "", body))
    for pattern in READ[page]:
        body = re.sub(pattern, " ", " ".join(body.split()))
    unit = r"(?:ms|s|MB|GB|%|TFLOP|times|minutes|hours|kWh|W|dB|gray levels?)\b"
    assert re.findall(rf"\S* ?(?:\d[\d.,]*(?: to \d[\d.]*)? ?{unit}|\d+\.\d+)", body) == []
