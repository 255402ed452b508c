"""Footnotes of Table 1 from hand-made records, and the recorded settings of its rows on a toy model."""

import pytest
import tiny

from gcgkit import cli
from gcgkit.evaluation import clips as evalset
from gcgkit.evaluation import footnotes, methods, table
from gcgkit.evaluation import run as evaluation
from gcgkit.video import images

SETTINGS = {"tau": 4.0, "strength": 1.0, "hint_weight": 0.0, "num_inference_steps": 2, "use_srg": True, "grid_size": 4}


def record(method, clip, settings=SETTINGS, prompts=None, source="BLIP, gray frames", **more):
    identity = {"kind": "gcg", "profile": "mini", "options": {}, "seed": 0, "reference": "first", "prompts": {}}
    if prompts:
        identity |= {"prompts": prompts, "prompts_source": source}
    return {
        "schema": 1, "set": {"name": "clips", "size": [256, 448], "limit": None, "clips": 2, "chosen": False},
        "method": method, "identity": identity, "key": method.ljust(64), "clip": clip, "frames": 10, "first": 1,
        "contents": {}, "metrics": {"psnr_rgb": 1.0}, "not_measured": {}, "notes": [], "folder": ".",
        "provenance": {"settings": dict(settings)}, **more,
    }  # fmt: skip


def pair(method, **more):
    return [record(method, clip, **more) for clip in ("a", "b")]


def test_shared_settings_come_first_and_each_difference_is_told():
    words = {"a": "a dog", "b": "a cat"}
    rows = [
        *pair("Ours", prompts=words),
        *pair("Ours*", prompts=words),
        *pair("Ours***", settings={**SETTINGS, "use_srg": False}, prompts=words),
        *pair("own", settings={**SETTINGS, "tau": 64.0, "strength": 0.25}),
    ]
    (note,) = footnotes.footnotes(rows)
    shared, *differences = note.split(". ")
    assert shared.startswith("Ours on clips: num_inference_steps 2, strength 1.0, hint_weight 0.0, tau 4.0, seed 0, ")
    assert shared.endswith("prompts BLIP, gray frames")
    assert differences == ["Ours***: use_srg False", "own: strength 0.25, tau 64.0, prompts none."]
    assert note.replace("*", "\\*") in table.render(rows)


def test_clips_without_a_prompt_and_other_sources_are_told():
    rows = [*pair("Ours", prompts={"a": "a dog"}), *pair("Ours*", prompts={"a": "x", "b": "y"}, source="BLIP, true")]
    (note,) = footnotes.footnotes(rows)
    assert "Ours: prompts BLIP, gray frames (none for 1 of 2 clips)." in note
    assert "Ours*: prompts BLIP, true." in note


@pytest.fixture(scope="module")
def toy_pipe(tmp_path_factory):
    return tiny.pipeline(tmp_path_factory.mktemp("pipe"))


def settings_of(pipe, method="Ours", spec="gcg:mini", clip="a", **options):
    """The record of a row as the command line makes it: its identity, and the settings that the pipeline completed."""
    row = methods.parse(",".join([f"{method}={spec}", *(f"{name}={value}" for name, value in options.items())]))
    row._pipe = pipe
    made = record(method, clip, settings=row.facts()["settings"], key=f"{method}{sorted(options.items())}".ljust(64))
    return {**made, "identity": row.identity()}


@pytest.mark.parametrize(
    ("option", "value"),
    [("num_keyframes", 1), ("solver", "dpm++"), ("side_by_side", 8), ("chunk", 3), ("negative_prompt", "gray"),
     ("past_window", 2), ("reference", "none")],
)  # fmt: skip
def test_a_setting_that_all_rows_share_is_told_if_it_is_not_the_default(toy_pipe, option, value):
    names = ("Ours", "Ours*", "Ours**")
    (plain,) = footnotes.footnotes([settings_of(toy_pipe, name) for name in names])
    (note,) = footnotes.footnotes([settings_of(toy_pipe, name, **{option: value}) for name in names])
    assert f"{option} {value}" in note and option not in plain
    assert note.count(". ") == plain.count(". ") == 0  # no row differs
    (one,) = footnotes.footnotes([settings_of(toy_pipe, name, **{option: value}) for name in names[:1]]
                                 + [settings_of(toy_pipe, name) for name in names[1:]])  # fmt: skip
    assert one.endswith(f" Ours: {option} {value}.") and one.count(option) == 1


@pytest.mark.parametrize("option", ["past_window", "chunk"])
def test_no_bound_is_told_as_all_and_not_as_the_profiles(toy_pipe, option):
    (note,) = footnotes.footnotes([settings_of(toy_pipe, **{option: "null"})])
    assert f"{option} all" in note


def test_what_the_profile_fills_in_is_no_setting_that_somebody_gave(toy_pipe):
    (note,) = footnotes.footnotes([settings_of(toy_pipe)])
    assert toy_pipe.config["guess_strength"] is not None and "guess_strength" not in note
    (note,) = footnotes.footnotes([settings_of(toy_pipe, guess_strength=0.75)])
    assert "guess_strength 0.75" in note


def test_an_option_for_all_rows_that_takes_an_ablations_difference_away_is_told(toy_pipe):
    alike = {"use_srg": "false", "grid_size": 1}
    (note,) = footnotes.footnotes([settings_of(toy_pipe, name, **alike) for name in ("Ours", "Ours*", "Ours***")])
    assert "use_srg False" in note and "grid_size 1" in note and note.count(". ") == 0


@pytest.mark.parametrize("option", ["side_by_side", "chunk"])
def test_rows_of_one_name_are_told_apart_by_the_option_that_differs(toy_pipe, option):
    pair = [settings_of(toy_pipe, clip=clip, **more) for more in ({}, {option: 8}) for clip in ("a", "b")]
    for older in (False, True):  # older records do not hold side_by_side among the settings
        for made in pair if older else ():
            made["provenance"]["settings"].pop("side_by_side", None)
        text = table.render(pair)
        usual = {"side_by_side": "1", "chunk": "not set"}[option]
        assert f"| Ours [{option} 8]" in text and f"| Ours [{option} {usual}]" in text


@pytest.mark.parametrize("words", [["--method", "gcg:mini,prompt=a red car"], ["--set", "prompt=a red car"]])
def test_one_prompt_for_all_clips_is_refused(words, tmp_path, capsys):
    images.write_frames(tiny.clip(2), tmp_path / "data" / "ants")
    command = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"), *words]
    assert cli.main(["evaluate", *command]) == 1
    told = capsys.readouterr().err
    assert "give --prompts FILE" in told and told.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Records of the rows of Table 1 on two toy models, one with settings of its own; and its clips."""
    place = tmp_path_factory.mktemp("rows")
    for name, own in (("ours", {"strength": 0.5, "hint_weight": 1.0, "tau": 64.0}), ("plain", {})):
        tiny.pipeline(place / "source", **own).save_pretrained(place / name)
    for name in ("ants", "bees"):
        images.write_frames(tiny.clip(4, seed=len(name)), place / "data" / name)
    clips = evalset.open_set(place / "data", "toy", size=None)
    rows = methods.table1_methods(
        weights=[str(place / "ours"), str(place / "plain"), str(place / "plain")], seed=3, num_inference_steps=2,
        working_size=[32, 64],
    )  # fmt: skip
    for row in rows:
        if isinstance(row, methods.Pipeline):
            row.prompts, row.prompts_source = {"ants": "red car"}, "a test"
    records = evaluation.evaluate(clips, rows, place / "out", metric_names=["psnr_rgb"], device="cpu", progress=False)
    return {r["method"]: r for r in records if r["clip"] == "ants"}


def test_rows_differ_only_in_what_their_names_say(measured):
    settings = {name: r["provenance"]["settings"] for name, r in measured.items() if r["identity"]["kind"] == "gcg"}
    assert list(settings) == ["Ours", "Ours*", "Ours**", "Ours***", methods.OWN_SETTINGS]
    base = settings["Ours"]
    assert base["num_inference_steps"] == 2  # the option's, before the table's
    assert {name: base[name] for name in ("tau", "strength", "hint_weight", "guidance_scale")} == {
        "tau": 4.0, "strength": 1.0, "hint_weight": 0.0, "guidance_scale": 2.0,
    }  # fmt: skip
    assert settings["Ours*"] == settings["Ours**"] == base
    assert settings["Ours***"] == {**base, "use_srg": False}
    own = {"strength": 0.5, "hint_weight": 1.0, "tau": 64.0}
    assert settings[methods.OWN_SETTINGS] == {**base, **own}
    assert {measured[name]["identity"]["seed"] for name in settings} == {3}
    assert {measured[name]["identity"]["prompts_source"] for name in settings} == {"a test"}


def test_the_bundled_rows_share_their_settings_too():
    from gcgkit import profiles

    own = [methods._config(profile) for _, profile, _ in methods.TABLE1_OURS if profile in profiles.available()]
    sizes = {tuple(row.options["working_size"]) for row in methods.table1_methods() if row.name.startswith("Ours*")}
    assert sizes == {(256, 448)}  # the paper's
    rest = ("guidance_scale",)  # what TABLE1_SETTINGS leaves to the profile
    assert len({tuple(config[name] for name in rest) for config in own}) == 1


def test_a_model_whose_own_settings_are_the_papers_has_no_row_more(tmp_path):
    tiny.pipeline(tmp_path / "source").save_pretrained(tmp_path / "plain")
    rows = methods.table1_methods(weights=[str(tmp_path / "plain")] * 3)
    assert methods.OWN_SETTINGS not in [row.name for row in rows]
    with pytest.raises(ValueError, match="not 2 of them"):
        methods.table1_methods(weights=["mini", "mini"])
