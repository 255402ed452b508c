"""Configurations: whole, typed, and the same after a file; what is wrong in one is told in one sentence."""

import dataclasses
import json
import tomllib
from typing import get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gcgkit import guidance
from gcgkit.data import prepare as preparation
from gcgkit.settings import Settings
from gcgkit.training import config as configs
from gcgkit.training import recipes
from gcgkit.training import run as training_run
from gcgkit.training.recipes import CONFIGS, MINI, MINI_MORE, PAPER, PAPER_16GB, TINY

KEYS = configs.KEYS


def value(config, key):
    section, field = key.split(".")
    return getattr(getattr(config, section), field)


def test_the_paper_configuration_has_the_papers_values():
    run, optimizer, data = PAPER.run, PAPER.optimizer, PAPER.data
    assert (optimizer.name, optimizer.learning_rate, optimizer.weight_decay) == ("adam", 5e-5, 0)
    assert (run.batch_size, run.epochs, data.width, data.height, data.mask) == (24, 15, 448, 256, 0.2)
    assert data.single + data.grid == pytest.approx(0.8) and data.strip_colors == 1 and data.unrelated == 0
    assert PAPER.model.mode == "gated" and not PAPER.model.joint
    assert PAPER.loss == configs.LossConfig(hint_weight=0, snr_gamma=0)


def test_the_small_recipe_is_the_papers_but_for_memory():
    changed = set(configs.differences(PAPER, PAPER_16GB))
    assert changed == {
        "name", "data.cache_variants", "data.cache_views", "run.micro_batch", "run.precision",
        "run.gradient_checkpointing", "run.workers", "run.save_every", "validation.frames", "validation.steps",
    }  # fmt: skip
    assert PAPER_16GB.run.batch_size == 24 and PAPER_16GB.run.precision == "fp16"  # a T4 has no bfloat16


def test_going_on_is_the_minis_run_at_full_size():
    assert set(configs.differences(MINI, MINI_MORE)) == {
        "name", "model.control", "data.height", "data.width", "data.cache_variants", "data.cache_photo_variants",
        "loss.snr_gamma", "run.epochs", "run.batch_size", "run.micro_batch", "run.frozen_dtype", "run.workers",
    }  # fmt: skip
    training_run.build_pipeline(MINI_MORE)  # the bundled copy is of the kind that is to be kept


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("suffix", [".toml", ".json"])
def test_saved_and_loaded_is_the_same(tmp_path, name, suffix):
    path = tmp_path / "folder" / f"mine{suffix}"
    configs.save(CONFIGS[name], path)
    assert recipes.load(path) == CONFIGS[name] == recipes.load(name)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_toml_file_says_what_each_value_is(tmp_path):
    configs.save(PAPER, tmp_path / "c.toml")
    text = (tmp_path / "c.toml").read_text()
    assert tomllib.loads(text) == configs.to_dict(PAPER)
    for section in configs.SECTIONS:
        lines = text.split(f"[{section}]")[1].split("\n[")[0].splitlines()
        for field, hint in get_type_hints(type(getattr(PAPER, section)), include_extras=True).items():
            (line,) = (line for line in lines if line.startswith(f"{field} = "))
            assert f"  # {hint.__metadata__[-1]}" in line


def test_no_value_has_a_default_in_the_code():
    for section in configs.SECTIONS:
        for field in dataclasses.fields(getattr(PAPER, section)):
            assert field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING, field.name


@given(
    st.text(min_size=1, max_size=8).filter(str.strip),
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6), min_size=1, max_size=3),
    st.floats(1e-12, 1e6, allow_nan=False),
    st.integers(1, 10**6),
    st.booleans(),
)
def test_any_values_survive_a_file(tmp_path_factory, name, sets, rate, epochs, flag):
    changes = {
        "name": name.encode("utf-8", "ignore").decode() or "x", "data.sets": sets, "optimizer.learning_rate": rate,
        "run.epochs": epochs, "run.gradient_checkpointing": flag,
    }  # fmt: skip
    config = configs.replace(PAPER, changes)
    folder = tmp_path_factory.mktemp("c")
    for suffix in (".toml", ".json"):
        configs.save(config, folder / f"c{suffix}")
        assert recipes.load(folder / f"c{suffix}") == config


def test_a_file_may_start_from_a_named_configuration(tmp_path):
    text = 'extends = "paper"\nname = "mine"\n[model]\nmode = "attention"\n[run]\nepochs = 2\n'
    (tmp_path / "c.toml").write_text(text)
    config = recipes.load(tmp_path / "c.toml")
    assert configs.differences(PAPER, config) == ["name", "model.mode", "run.epochs"]
    assert config.run.epochs == 2.0 and isinstance(config.run.epochs, float)


def test_replace_takes_text_as_from_a_command_line():
    config = configs.replace(
        PAPER,
        {"run.batch_size": "12", "run.micro_batch": "6", "optimizer.learning_rate": "1e-4", "data.crops": "true",
         "data.sets": "davis-train, mine", "validation.clips": "a", "model.mode": "concat",
         "model.dilations": "2, 4,8", "name": "x"},
    )  # fmt: skip
    assert (config.run.batch_size, config.optimizer.learning_rate, config.data.crops) == (12, 1e-4, True)
    assert config.data.sets == ("davis-train", "mine") and config.validation.clips == ("a",)
    whole = configs.replace(PAPER, {"validation.set": "", "validation.clips": ""})
    assert whole.validation.clips == () and whole.data.exclude == ()  # all 90 clips of DAVIS
    assert (config.model.mode, config.model.dilations, config.name) == ("concat", (2, 4, 8), "x")
    assert configs.replace(PAPER, {}) == PAPER


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"run.batch": 2}, r"no setting 'run.batch'; did you mean 'run.batch_size'"),
        ({"batch_size": 2}, r"no setting 'batch_size'; did you mean 'run.batch_size'"),
        ({"model": {}}, r"no setting 'model'; did you mean 'model\."),
        ({"model.mode": "gate"}, r"model.mode must be 'gated', 'attention' or 'concat', not 'gate'"),
        ({"run.batch_size": "many"}, r"run.batch_size must be a valid integer, not 'many'"),
        ({"run.batch_size": 2.5}, r"run.batch_size must be a valid integer, not 2.5"),
        ({"run.gradient_checkpointing": "maybe"}, r"run.gradient_checkpointing must be a valid boolean, not 'maybe'"),
        ({"run.epochs": float("nan")}, r"run.epochs must be a finite number, not nan"),
        ({"data.sets": [1]}, r"data.sets must be a valid string, not 1"),
        ({"model.dilations": "1,x"}, r"model.dilations must be a valid integer, not 'x'"),
        ({"model.dilations": [1, 0]}, r"model.dilations must be greater than or equal to 1, not 0"),
        ({"data.sets": []}, r"data.sets must have at least 1 item"),
        ({"data.mask": 0.5}, r"must add up to 1"),
        ({"data.mask": -0.2, "data.single": 0.8}, r"data.mask must be greater than or equal to 0"),
        ({"data.recolor": 1.5}, r"data.recolor must be less than or equal to 1"),
        ({"data.cache_views": 1}, r"data.cache_views must be greater than or equal to 2"),
        ({"data.width": 4}, r"data.width must be greater than or equal to 8"),
        ({"run.micro_batch": 5}, r"run.batch_size=24 must be a multiple of run.micro_batch=5"),
        ({"run.keep": 0}, r"run.keep must be greater than or equal to 1"),
        ({"optimizer.weight_decay": 0.1}, r"goes with optimizer.name = .adamw. only"),
        ({"optimizer.ema_decay": 1.0}, r"optimizer.ema_decay must be less than 1"),
        ({"optimizer.learning_rate": 0.0}, r"learning_rate must be greater than 0"),
        ({"validation.clips": []}, r"validation.set and validation.clips go together"),
        ({"name": ""}, r"name must have at least 1 character"),
        ({"name": 3}, r"name must be a valid string"),
    ],
)
def test_wrong_values_are_told_in_one_sentence(changes, wrong):
    with pytest.raises(ValueError, match=wrong) as error:
        configs.replace(PAPER, changes)
    assert "\n" not in str(error.value) and str(error.value).endswith((".", "?"))


@pytest.mark.parametrize("key", KEYS)
def test_a_missing_value_is_named(key):
    values = configs.to_dict(PAPER)
    section, field = key.split(".")
    del values[section][field]
    with pytest.raises(ValueError, match=f"'{key}' is missing"):
        configs.from_dict(values, recipes.CONFIGS)


def test_files_that_are_none(tmp_path):
    def load(name, text):
        (tmp_path / name).write_text(text)
        return recipes.load(tmp_path / name)

    with pytest.raises(FileNotFoundError, match="neither a configuration .paper, .* nor a .toml"):
        recipes.load("papers")
    with pytest.raises(FileNotFoundError, match="neither"):
        recipes.load(tmp_path / "none.toml")
    with pytest.raises(ValueError, match="a.toml cannot be read as TOML"):
        load("a.toml", "name = ")
    with pytest.raises(ValueError, match="a.json cannot be read as JSON"):
        load("a.json", "{")
    with pytest.raises(ValueError, match="a.json: a configuration is a table"):
        load("a.json", "[1]")
    with pytest.raises(ValueError, match="a.toml: extends must be one of paper"):
        load("a.toml", 'extends = "papers"')
    with pytest.raises(ValueError, match="run must be a section"):
        load("a.json", json.dumps({"extends": "paper", "run": 3}))
    with pytest.raises(ValueError, match="run.batch_size must be a valid integer, not True"):
        load("a.json", json.dumps({"extends": "paper", "run": {"batch_size": True}}))
    with pytest.raises(ValueError, match="run.batch_size must be a valid integer, not '8'"):
        load("a.toml", 'extends = "paper"\n[run]\nbatch_size = "8"\n')
    with pytest.raises(ValueError, match="no setting 'runs'; did you mean 'run'"):
        load("a.json", json.dumps({"extends": "paper", "runs": {}}))
    with pytest.raises(ValueError, match="no setting 'run.sead'; did you mean 'run.seed'"):
        load("a.toml", 'extends = "paper"\n[run]\nsead = 1\n')
    with pytest.raises(ValueError, match="must end in .toml or .json"):
        configs.save(PAPER, tmp_path / "c.yaml")


def test_configurations_cannot_be_changed_by_accident():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PAPER.run.seed = 1


def test_choices_are_those_of_the_library():
    hints = get_type_hints(configs.ModelConfig)
    assert hints["mode"].__args__ == guidance.MODES and hints["stem"].__args__ == guidance.STEMS
    for name in ("mask_latents", "grid_tiles", "image_condition"):
        for value_of in (*hints[name].__args__, getattr(PAPER.model, name)):
            assert getattr(Settings(**{name: value_of}), name) == value_of
    own = guidance.GatedColorGuidance().config
    for name in ("mode", "stem", "hidden_dim", "heads", "gate_bias"):
        assert getattr(PAPER.model, name) == own[name], name


def test_what_may_change_within_a_run_exists_and_leaves_the_steps_alone():
    assert set(configs.CHANGEABLE) <= {"name", *KEYS}
    free = [key for key in configs.CHANGEABLE if key.split(".")[0] in ("model", "optimizer", "loss")]
    assert free == [] and "run.seed" not in configs.CHANGEABLE and "run.batch_size" not in configs.CHANGEABLE


def test_every_named_configuration_is_for_something():
    assert [config.name for config in (PAPER, PAPER_16GB, MINI, MINI_MORE, TINY)] == list(CONFIGS)
    assert TINY.run.max_steps <= 4 and MINI.model.joint and value(MINI, "loss.hint_weight") > 0


# --- files from anywhere ---------------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
CHANGED = st.dictionaries(st.sampled_from(["name", "extends", *configs.SECTIONS]), VALUES, max_size=4)
FIELDS = st.tuples(st.sampled_from(KEYS), VALUES).map(
    lambda pair: {"extends": "paper", pair[0].split(".")[0]: {pair[0].split(".")[1]: pair[1]}}
)
MANIFESTS = st.dictionaries(st.sampled_from(["version", "complete", "clips", "x"]), VALUES | st.just(1), max_size=4)
DEEP = st.just(b"[" * 100_000)


def as_json(values: st.SearchStrategy) -> st.SearchStrategy:
    return values.map(lambda value: json.dumps(value).encode())


SPOILT = st.binary(max_size=60) | as_json(VALUES | CHANGED | FIELDS) | DEEP


@pytest.mark.slow
@settings(max_examples=2000, deadline=None)
@given(data=SPOILT, suffix=st.sampled_from(["json", "toml"]))
def test_two_thousand_spoilt_configurations_raise_only_value_errors(tmp_path_factory, data, suffix):
    path = tmp_path_factory.getbasetemp() / f"spoilt.{suffix}"
    path.write_bytes(data)
    try:
        config = recipes.load(path)
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert configs.from_dict(configs.to_dict(config), recipes.CONFIGS) == config


@pytest.mark.slow
@settings(max_examples=2000, deadline=None)
@given(data=st.binary(max_size=60) | as_json(VALUES | MANIFESTS) | DEEP)
def test_two_thousand_spoilt_manifests_raise_only_value_errors(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    (folder / preparation.MANIFEST).write_bytes(data)
    try:
        manifest = preparation.read_manifest(folder)
    except ValueError as error:
        assert str(folder) in str(error)
    else:
        assert manifest["version"] == preparation.VERSION and manifest["complete"]
