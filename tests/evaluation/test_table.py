"""The table: the paper's digits against sums taken from its text, ours against hand-made results, marks and formats."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gcgkit.evaluation import run as evaluation
from gcgkit.evaluation import table
from gcgkit.evaluation.columns import METRICS, keep_distances
from gcgkit.metrics.networks import frechet_distance

ROOT = Path(__file__).resolve().parents[2]
# Sums over the ten columns of each printed row, taken from the paper's text apart from the data file.
SUMS = {
    "LDV3": (1.1611, 420.45, 682.34, 5.4960, 278.23, 3.1618, 448.25),
    "DAVIS": (1.4281, 432.83, 598.23, 5.3340, 244.14, 6.3476, 505.17),
}


def record(method, clip, value=1.0, *, name="clips", key="k" * 64, size=(256, 448), limit=None, kind="folder", **more):
    values = value if isinstance(value, dict) else {"psnr_rgb": value}
    return {
        "schema": 1, "set": {"name": name, "size": list(size), "limit": limit, "clips": 2, "chosen": False},
        "method": method, "identity": {"kind": kind}, "key": key, "clip": clip, "frames": 10, "first": 1,
        "contents": {}, "metrics": values, "not_measured": {}, "notes": [], "provenance": {}, "folder": ".", **more,
    }  # fmt: skip


def pair(method, low, high, **more):
    return [record(method, "a", low, **more), record(method, "b", high, **more)]


def rows(markdown):
    """Cells by row name, in the last section that has the name."""
    found = {}
    for line in markdown.splitlines():
        if line.startswith("| ") and not line.startswith(("| |", "| ---", "| *")):
            name, *cells = (cell.strip() for cell in line.strip("|").split(" | "))
            found[name.strip().replace("\\", "")] = cells
    return found


def columns(markdown):
    head = next(line for line in markdown.splitlines() if line.startswith("| | "))
    return [cell.strip() for cell in head.strip("|").split("|")][1:]


def reason(markdown, cell):
    """The note that a cell "not measured (x)" points to."""
    letter = re.fullmatch(r"not measured \((\w+)\)", cell)[1]
    (note,) = re.findall(rf"^- \({letter}\) (.*)$", markdown, re.MULTILINE)
    return note


# --- the paper -------------------------------------------------------------------------------------------------------


def test_the_papers_numbers_add_up():
    paper = table.paper()
    assert len(paper["methods"]) == 10
    for half, sums in SUMS.items():
        values = paper["datasets"][half]["values"]
        assert list(values) == list(paper["metrics"])
        for (name, row), expected in zip(values.items(), sums, strict=True):
            assert list(row) == paper["methods"], name
            assert sum(map(float, row.values())) == pytest.approx(expected, abs=1e-9), (half, name)


def test_the_papers_text_agrees_with_its_table():
    """What section 4.4 says of Table 1: best LPIPS, MUSIQ, FID and colourfulness of the seven, third in CDC on LDV3."""
    values = table.paper()["datasets"]["LDV3"]["values"]
    seven = table.paper()["methods"][:7]
    column = lambda name: {m: float(values[name][m]) for m in seven}  # noqa: E731
    for name, best in (("lpips", min), ("musiq", max), ("fid", min), ("colorfulness", max)):
        assert best(column(name), key=column(name).get) == "Ours"
    assert sorted(seven, key=column("cdc").get)[:3] == ["TCVC", "BiSTNet", "Ours"]
    davis = table.paper()["datasets"]["DAVIS"]["values"]
    assert davis["lpips"]["DeOldify"] == "0.1664" and davis["psnr"]["Ours***"] == "46.34"
    assert davis["fid"]["BiSTNet"] == "31.05" and values["clip_iqa"]["Ours*"] == "0.5980"
    assert values["cdc"]["VCGAN"] == "0.3267" and values["psnr"]["DeOldify"] == "57.67"


def test_without_results_the_paper_stands_alone_with_its_best_in_bold():
    text = table.render([])
    assert "**57.67**" in text and "**0.1724**" in text and "†" not in text
    assert text.count("**") == 2 * 14
    assert "### LDV 3.0 test" in text and "### DAVIS 2017 test-dev" in text


# --- ours ------------------------------------------------------------------------------------------------------------


def test_means_intervals_and_the_best_of_the_group():
    results = [*pair("truth", {}, {}), *pair("gray", 40, 40), *pair("flow", 20, 31), *pair("Ours", 24, 25)]
    found = rows(table.render(results))
    at = columns(table.render(results)).index("PSNR (RGB) ↑")
    assert found["flow †"][at] == "**25.50†** [20.00, 31.00]"
    assert found["Ours †"][at] == "24.50† [24.00, 25.00]"
    assert found["gray †"][at] == "40.00† [40.00, 40.00]"  # a scale, never the best
    assert found["Ours"][at] == "–"  # the paper's own row has no such column
    printed = columns(table.render(results)).index("PSNR as printed ↑")
    assert found["flow †"][printed] == "–" and found["DeOldify"][printed] == "**57.03**"


def test_factors_and_digits():
    values = {"cdc": 0.0012345, "flow_warp_error": 0.0012345, "colorfulness": 12.345, "st_lpips": 0.12345}
    text = table.render(pair("flow", values, values))
    found = dict(zip(columns(text), rows(text)["flow †"], strict=True))
    assert found["CDC (×10⁻²) ↓"].startswith("0.1235†") or found["CDC (×10⁻²) ↓"].startswith("0.1234†")
    assert re.match(r"1\.23[45]†", found["Warping error (×10⁻³) ↓"])
    assert re.match(r"12\.3[45]†", found["Colourfulness ↑"]) and re.match(r"0\.123[45]†", found["ST-LPIPS ↓"])


def test_what_was_not_measured_has_a_lettered_reason():
    lost = {"not_measured": {"lpips": "LPIPS needs the weights x.", "cdc": "too short"}}
    one = {"lpips": lost["not_measured"]["lpips"]}
    results = [*pair("flow", 20, 30, **lost), *pair("gray", 21, 22, not_measured=one)]
    text = table.render(results)
    found = dict(zip(columns(text), rows(text)["flow †"], strict=True))
    assert reason(text, found["LPIPS ↓"]) == "not measured: LPIPS needs the weights x."
    assert dict(zip(columns(text), rows(text)["gray †"], strict=True))["LPIPS ↓"] == found["LPIPS ↓"]
    assert reason(text, found["CDC (×10⁻²) ↓"]) == "not measured: too short"
    assert reason(text, found["MUSIQ ↑"]) == reason(text, found["FID ↓"]) == "not measured: it was not asked for"
    assert text.count("LPIPS needs the weights") == text.count("not asked for") == 1


def test_a_metric_that_some_clips_lack_is_no_mean_of_the_others():
    results = [record("flow", "a", 20), record("flow", "b", {}, not_measured={"psnr_rgb": "broken"})]
    text = table.render(results)
    cell = dict(zip(columns(text), rows(text)["flow †"], strict=True))["PSNR (RGB) ↑"]
    assert reason(text, cell) == "not measured on 1 of 2 clips: broken"


def test_a_method_that_was_absent_and_one_with_fewer_clips():
    results = [
        *pair("truth", {}, {}), *pair("flow", 20, 21), record("Ours", "a", 50),
        record("Ours*", None, {}, key="", absent="The weights are not here."),
    ]  # fmt: skip
    text = table.render(results)
    found = rows(text)
    assert found["Ours (1 of 2 clips) †"][columns(text).index("PSNR (RGB) ↑")] == "50.00†"  # no interval, not the best
    assert len(set(found["Ours* †"])) == 1 and reason(text, found["Ours* †"][0]) == "The weights are not here."


def test_other_settings_of_a_set_are_another_group():
    """The first 20 frames, and frame 0 counted too, are no rows beside the others; each has its own truth."""
    short = {"limit": 5, "key": "s" * 64}
    results = [
        *pair("truth", {}, {}), *pair("flow", 20, 21), *pair("transfer", 22, 23),
        *pair("truth", {}, {}, **short), *pair("flow", 60, 61, **short),
        *(r | {"first": 0, "frames": 8} for r in pair("flow", 90, 91, key="c" * 64)),
        record("Ours*", None, {}, key="", absent="The weights are not here."),
    ]  # fmt: skip
    results[-1].pop("first")
    for r in results:
        r["frames"] = 5 if r["set"]["limit"] else r["frames"]
    text = table.render(results)
    groups = text.split("| *Measured here on clips: ")[1:]
    assert [re.match(r"2 clips, (\d+) frames, 448x256, from frame (\d)", g).groups() for g in groups] == [
        ("20", "1"), ("10", "1"), ("16", "0"),
    ]  # fmt: skip
    assert "**22.50†**" in groups[0] and "20.50†" in groups[0] and "60.50" not in groups[0]
    assert "60.50†" in groups[1] and "90.50†" in groups[2] and "**" not in groups[1] + groups[2].split("\n\n")[0]
    assert "Ours\\* †" in groups[0] and "Ours\\* †" in groups[2]


def test_a_method_without_colour_is_no_competitor_and_is_told():
    note = {"notes": [evaluation.NO_COLOR]}
    values = lambda cdc, color: {"cdc": cdc, "colorfulness": color}  # noqa: E731
    results = [
        *pair("theirs", values(0.001, 0), values(0.001, 0), **note), *pair("gray", values(0, 0), values(0, 0), **note),
        *pair("flow", values(0.002, 9), values(0.002, 9)), *pair("Ours", values(0.003, 8), values(0.003, 8)),
    ]  # fmt: skip
    text = table.render(results)
    found = {name: dict(zip(columns(text), cells, strict=True)) for name, cells in rows(text).items() if "†" in name}
    assert found["flow †"]["CDC (×10⁻²) ↓"].startswith("**0.2000†**")
    assert "**" not in found["theirs †"]["CDC (×10⁻²) ↓"] + found["gray †"]["CDC (×10⁻²) ↓"]
    letter = re.fullmatch(r"0\.00† .* \((\w)\)", found["theirs †"]["Colourfulness ↑"])[1]
    assert f"- ({letter}) the frames hold no colour" in text and "(" not in found["gray †"]["Colourfulness ↑"]


def test_two_configurations_under_one_name_stay_apart():
    results = [*pair("Ours", 20, 21, key="a" * 64), *pair("Ours", 30, 31, key="b" * 64)]
    found = rows(table.render(results))
    assert "Ours [aaaaaaaa] †" in found and "Ours [bbbbbbbb] †" in found


def seeded(method, values, **more):
    """Records of our pipeline: ``values[s][c]`` for seed s and clip c, each seed under its own key."""
    return [
        record(method, clip, value, key=f"{seed}{method}".ljust(64, "k"), **more)
        | {"identity": {"kind": "gcg", "profile": "mini", "options": {}, "seed": seed}}
        for seed, row in enumerate(values)
        for clip, value in zip("ab", row, strict=True)
    ]


def test_seeds_are_one_row_with_the_mean_over_seeds_and_clips():
    """With two clips the interval of the mean is that between the clips' own means over seeds."""
    values = [[20.0, 31.0], [22.0, 30.0], [27.0, 29.0]]
    text = table.render([*seeded("Ours", values), *pair("flow", 1, 2)])
    a, b = (sum(row[clip] for row in values) / 3 for clip in (0, 1))
    cell = rows(text)["Ours †"][columns(text).index("PSNR (RGB) ↑")]
    assert cell == f"**{(a + b) / 2:.2f}†** [{a:.2f}, {b:.2f}]"
    assert "2 clips, 20 frames" in text and "seed 0 1 2" in text
    # A seed that lacks a clip is told.
    assert "Ours (5 of 6 runs) †" in rows(table.render([*seeded("Ours", values)[:-1], *pair("flow", 1, 2)]))


def test_ours_is_paired_with_each_ablation_clip_by_clip():
    ours, other = [[20.0, 31.0], [22.0, 30.0]], [[18.0, 32.0], [19.0, 31.0]]
    wide = [{"psnr_rgb": v, "cdc": 0.001, "fd_efficientnet": "x.npy"} for v in (25.0, 20.0)]
    text = table.render(
        [*seeded("Ours", ours), *seeded("Ours*", other), *seeded("Ours***", [wide]), *pair("flow", 1, 2)]
    )
    psnr, cdc = (columns(text).index(name) for name in ("PSNR (RGB) ↑", "CDC (×10⁻²) ↓"))
    found = rows(text)
    a, b = (np.mean([ours[s][clip] - other[s][clip] for s in (0, 1)]) for clip in (0, 1))
    assert (a, b) == (2.5, -1.0)
    # The t interval of two values is 12.706 standard errors to each side, and one is half of their distance.
    assert found["Ours − Ours* †"][psnr] == f"+0.75† [{0.75 - 12.7062 * 1.75:+.2f}, {0.75 + 12.7062 * 1.75:+.2f}]"
    # By hand: 21 - 25 and 30.5 - 20.
    assert found["Ours − Ours*** †"][psnr] == f"+3.25† [{3.25 - 12.7062 * 7.25:+.2f}, {3.25 + 12.7062 * 7.25:+.2f}]"
    assert found["Ours − Ours*** †"][cdc] == "–"  # Ours has none
    assert not any("−" in name for name in rows(table.render([*seeded("Ours", ours), *pair("flow", 1, 2)])))


def test_a_second_run_on_more_clips_leaves_one_reason_for_each_row():
    """The folder holds a run on one clip, then one with another tau on both."""
    first, second = ({"provenance": {"settings": {"tau": tau, "steps": 2}}} for tau in (4.0, 64.0))
    results = [
        *seeded("Ours", [[20.0, 0.0]], name="davis-test-dev", **first)[:1],
        *seeded("Ours", [[21.0, 22.0]], name="davis-test-dev", **second),
    ]
    for r in results[1:]:
        r["key"], r["identity"] = "s" * 64, r["identity"] | {"options": {"tau": 64.0}}
    text = table.render(results)
    assert re.findall(r"(\d+) clips? instead of 30", text) == ["2"]
    assert {"Ours [tau 4.0] (1 of 2 clips) †", "Ours [tau 64.0] †"} <= rows(text).keys()


def test_weights_that_only_some_rows_have_are_told_at_these_rows():
    results = [*seeded("Ours", [[1.0, 2.0]]), *seeded("Ours*", [[1.0, 2.0]])]
    for r in results[2:]:
        r["identity"]["profile"], r["provenance"] = "mine", {"unet_parameters": 900_000_000}
    text = table.render(results)
    (letter,) = re.findall(r"^\| Ours † \((\w)\)", text, re.MULTILINE)
    assert f"- ({letter}) the mini model's weights" in text and "Ours* †" in rows(text)


def test_distances_between_sets_come_from_the_features(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "cache").mkdir()
    sides = {}
    for method in ("truth", "flow"):
        for clip in ("a", "b"):
            sides[method, clip] = rng.normal(size=(6, 4)) + (method == "flow")
            np.save(tmp_path / "cache" / f"{method}-{clip}.npy", sides[method, clip])
    results = [
        record(m, c, {"fd_efficientnet": f"{m}-{c}.npy"}, folder=str(tmp_path))
        for m in ("truth", "flow") for c in ("a", "b")
    ]  # fmt: skip
    text = table.render(results)
    expected = frechet_distance(
        np.concatenate([sides["flow", "a"], sides["flow", "b"]]),
        np.concatenate([sides["truth", "a"], sides["truth", "b"]]),
    )
    found = dict(zip(columns(text), rows(text)["flow †"], strict=True))
    assert found["FD-EfficientNet ↓"] == f"{expected:.2f}†"
    assert dict(zip(columns(text), rows(text)["truth †"], strict=True))["FD-EfficientNet ↓"] == "–"
    # Two seeds: the mean of the distances of each, here of the truth's own frames (0) and of the flow's.
    two = seeded("Ours", [[{"fd_efficientnet": f"{m}-{c}.npy"} for c in "ab"] for m in ("truth", "flow")])
    for r in two:
        r["folder"] = str(tmp_path)
    cell = dict(zip(columns(text), rows(table.render([*results, *two]))["Ours †"], strict=True))["FD-EfficientNet ↓"]
    assert float(cell.strip("*†")) == pytest.approx(expected / 2, abs=0.01)
    keep_distances(tmp_path, [(["flow-a.npy", "flow-b.npy"], ["truth-a.npy", "truth-b.npy"])])
    for file in (tmp_path / "cache").iterdir():
        file.unlink()
    assert table.render(results) == text  # the distance is kept
    (tmp_path / "distances.json").unlink()
    assert "no longer in the cache" in table.render(results)


# --- the paper's scale -----------------------------------------------------------------------------------------------


def whole_set(method, **more):
    """Records as a whole run on DAVIS's test-dev would give: 30 clips, 2086 frames."""
    options = {"name": "davis-test-dev", **more}
    frames = [70] * 29 + [56]
    return [record(method, f"clip{i:02d}", 20.0 + i, **options) | {"frames": n} for i, n in enumerate(frames)]


def test_only_the_whole_set_with_other_weights_is_at_the_papers_scale():
    paper_run = whole_set("Ours", kind="gcg")
    for r in paper_run:
        r["identity"] = {"kind": "gcg", "profile": "trained-paper"}
        r["provenance"] = {"unet_parameters": 865_910_724}
    assert table.below_paper_scale(paper_run) == []
    text = table.render(paper_run)
    assert "†" not in text and text.index("### DAVIS") < text.index("Measured here on davis-test-dev: ")
    for r in paper_run:
        r["identity"] = {"kind": "gcg", "profile": "mini"}
    assert table.below_paper_scale(paper_run) == ["the mini model's weights"]
    for r in paper_run:
        r["identity"], r["provenance"] = {"kind": "gcg", "profile": "my-own"}, {"unet_parameters": 4_000_000}
    (reason,) = table.below_paper_scale(paper_run)
    assert reason.startswith("a UNet of 4.0 million parameters")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda rs: rs[:-1], "29 clips instead of 30"),
        (lambda rs: [r | {"set": r["set"] | {"limit": 40}} for r in rs], "2086 frames instead of all"),
        (lambda rs: [r | {"frames": 40} for r in rs], "1200 frames instead of all"),
        (lambda rs: [r | {"set": r["set"] | {"size": [128, 224]}} for r in rs], "another size than 448x256"),
        (lambda rs: [r | {"set": r["set"] | {"name": "davis-val"}} for r in rs], "not one of the paper's test sets"),
        (lambda rs: [r | {"set": r["set"] | {"chosen": True}} for r in rs], "30 clips chosen by name"),
    ],
)
def test_anything_less_is_marked_at_every_number(change, reason):
    results = change(whole_set("flow"))
    assert any(reason in told for told in table.below_paper_scale(results))
    for form in table.FORMATS:
        text = table.render(results, form)
        mark = "$\\dagger$" if form == "latex" else "†"
        mean = f"{np.mean([r['metrics']['psnr_rgb'] for r in results]):.2f}"
        place = text.index(mean, text.index("Measured here"))
        assert text[place + len(mean) :].startswith(mark), form
        assert "not at the paper" in text


# --- formats ---------------------------------------------------------------------------------------------------------


def test_all_formats_hold_the_same_digits_and_rendering_again_changes_none():
    ours = ({"psnr_rgb": 24.5, "cdc": 0.004}, {"psnr_rgb": 25, "cdc": 0.005})
    results = [*pair("flow", 20.123, 31.987), *pair("Ours*", *ours)]
    digits = {}
    for form in table.FORMATS:
        text = table.render(results, form)
        assert table.render(json.loads(json.dumps(results)), form) == text
        digits[form] = sorted(re.findall(r"\d+\.\d{2,4}", text))
    assert digits["markdown"] == digits["latex"] == digits["html"]
    built = table.build(results)
    assert built._repr_html_() == table.render(results, "html")
    with pytest.raises(ValueError, match="form must be one of"):
        table.render(results, "word")


def test_latex_escapes_and_balances():
    text = table.render(pair("a_b & 50% [x]", 20, 21), "latex")
    assert r"a\_b \& 50\% {[}x{]}" in text and "†" not in text and "↑" not in text and "⁻" not in text
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 3
    stripped = re.sub(r"\\[{}]", "", text)
    assert stripped.count("{") == stripped.count("}")
    for line in text.splitlines():
        if line.endswith(r"\\") and "multicolumn" not in line:
            assert len(re.findall(r"(?<!\\)&", line)) == len(table.build(pair("x", 20, 21)).columns)


def test_html_escapes_and_parses():
    from html.parser import HTMLParser

    text = table.render(pair("<script>", 20, 21), "html")
    opened = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag != "br":
                opened.append(tag)

        def handle_endtag(self, tag):
            assert opened.pop() == tag

    Reader().feed(text)
    assert opened == [] and "<script>" not in text and "&lt;script&gt; †" in text


def test_every_metric_has_a_column_with_its_direction():
    values = {name: 0.5 for name, metric in METRICS.items() if metric.kind != "set"}
    head = columns(table.render(pair("flow", values, values)))
    for name in values:
        label = METRICS[name].label
        assert any(cell.startswith(label) and cell[-1] in "↑↓" for cell in head), name


def test_the_command_renders_results(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in pair("flow", 20, 21)))
    done = subprocess.run(
        [sys.executable, "-m", "gcgkit.evaluation.table", str(tmp_path), "--format", "html",
         "--out", str(tmp_path / "t.html")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "t.html").read_text() == table.render(evaluation.read_results(tmp_path), "html")
    assert table.main([str(tmp_path / "nothing")]) == 1
