"""The commands of the model card's figures with a folder that lacks their clips."""

import pytest

from gcgkit.evaluation import aged, automatic, model_card


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
