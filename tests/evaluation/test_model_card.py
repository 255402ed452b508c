"""The commands of the model card's figures: folders that lack their clips, options that they refuse, and counts."""

import json

import pytest

from gcgkit.evaluation import aged, automatic, model_card
from gcgkit.settings import Settings


@pytest.mark.parametrize(
    ("command", "part"),
    [(model_card, ["vae"]), (model_card, ["exemplar"]), (model_card, ["gate"]), (automatic, ["words"]),
     (automatic, ["keyframes"]), (aged, [])],
)  # fmt: skip
def test_a_folder_without_the_clips_is_refused_in_one_sentence(command, part, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "load_pipeline", lambda *arguments: None)
    monkeypatch.setattr(Settings, "completed", lambda settings, pipe: settings)
    assert command.main([*part, "--data", str(tmp_path), "--json", str(tmp_path / "out.json")]) == 1
    told = capsys.readouterr().err
    assert "holds none of the measuring clips: put DAVIS/JPEGImages/480p" in told and told.count("\n") == 1
    assert not (tmp_path / "out.json").exists()


def test_any_option_of_the_pipeline_is_set_by_name():
    words = ["--steps", "8", "--set", "tau=4", "--set", "working_size=[256,448]", "--set", "use_srg=false"]
    options = model_card.pipeline_options(model_card.part_parser("about").parse_args(words))
    settings = Settings.of(**options)
    assert (settings.num_inference_steps, settings.tau, settings.use_srg) == (8, 4, False)
    assert tuple(settings.working_size) == (256, 448)


@pytest.mark.parametrize(
    ("command", "words", "sentence"),
    [(model_card, "exemplar --set tua=4", "did you mean 'tau'"), (aged, "--set tua=4", "did you mean 'tau'"),
     (model_card, "exemplar --set seed=3", "no option 'seed'"), (model_card, "exemplar --steps 0", "at least 1"),
     (model_card, "exemplar --set clips=dog", "no option 'clips'"), (automatic, "photos --set seed=1", "no option"),
     (automatic, "words --set prompt=red", "sets prompt itself"),
     (automatic, "keyframes --set num_keyframes=3", "sets num_keyframes itself"),
     (automatic, "keyframes --set noise=shared", "sets noise itself"),
     (model_card, "exemplar --set dissimilarity=lpips --set network=x", "needs network="),
     (model_card, "gate --frames 8", "gate does not use --frames"),
     *((model_card, f"{part} {option}", f"{part} does not use {option.split()[0]}")
       for part in ("vae", "gate", "memory", "data")
       for option in ("--set tau=4", "--steps 8", "--clips dog", "--without-unet"))],
)  # fmt: skip
def test_an_option_without_use_is_refused_before_the_weights_load(command, words, sentence, monkeypatch, capsys):
    monkeypatch.setattr(command, "load_pipeline", lambda *arguments: pytest.fail("the weights were loaded"))
    assert command.main(words.split()) == 1
    told = capsys.readouterr().err
    assert sentence in told and told.count("\n") == 1


def test_files_are_counted_and_a_folder_without_any_is_refused(tmp_path, capsys):
    command = ["data", "--data", str(tmp_path)]
    assert model_card.main(command) == 1
    told = capsys.readouterr().err
    assert "put photos/**/*.jpg" in told and told.count("\n") == 1
    for name in ("clips/b.mp4", "clips/a.mp4", *(f"photos/{'xy'[i % 2]}/{i:02d}.jpg" for i in range(21))):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name in ("dog", "tennis", "bear"):
        (tmp_path / "DAVIS/JPEGImages/480p" / name).mkdir(parents=True)
    assert model_card.main(command) == 0
    # Sorted, x has 11 and y has 10; the first and the twenty-first are held out.
    assert json.loads(capsys.readouterr().out) == {
        "photographs": 19, "by_source": {"x": 10, "y": 9}, "held_out": 2, "davis_clips": ["bear", "tennis"],
        "other_clips": ["a", "b"],
    }  # fmt: skip
