"""The commands of the model card's figures with a folder that lacks their clips."""

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
