"""The figures on a toy model: each is drawn and saved whole, colourings are made once, captions say where from."""

import importlib
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import reimport
import tiny

import gcgkit
from gcgkit import metrics
from gcgkit.data import clips
from gcgkit.evaluation import ablations, table
from gcgkit.lessons import demo

FIGURES = Path(__file__).resolve().parents[1] / "figures"
sys.path.insert(0, str(FIGURES))

import fig2_framework  # noqa: E402
import fig5_gcg  # noqa: E402
import make  # noqa: E402
import studio  # noqa: E402


def installed() -> bool:
    try:
        return bool([clips.find(shot.clip) for shot in studio.SHOTS.values()])
    except FileNotFoundError:
        return False


needs_clips = pytest.mark.skipif(not installed(), reason="the demo's clips are not installed: run make setup")
SMALL = {name: studio.Shot(shot.clip, shot.first, 3, shot.stride) for name, shot in studio.SHOTS.items()}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    tiny.pipeline(folder / "source").save_pretrained(folder / "toy")
    return folder / "toy"


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Few dots an inch: what is looked at here does not depend on them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(studio, "DPI", 60)
        yield


@pytest.fixture(scope="module")
def maker(weights, tmp_path_factory):
    return studio.Studio(str(weights), tmp_path_factory.mktemp("out"), steps=1, shots=SMALL)


def texts(picture):
    axes = [text.get_text() for each in picture.axes for text in (*each.texts, each.title)]
    return "\n".join(axes)


@needs_clips
@pytest.mark.parametrize("number", make.FIGURES)
def test_each_figure_is_saved_as_png_and_pdf_and_a_second_drawing_makes_nothing_anew(maker, number):
    seconds = make.make(maker, [number], Path("none"))
    assert list(seconds) == [number] and seconds[number] > 0
    name = make.FIGURES[number][0]
    assert (maker.out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert (maker.out / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    assert not [path for path in maker.out.iterdir() if path.name.startswith(".")]
    height, width = cv2.imread(str(maker.out / f"{name}.png")).shape[:2]
    assert width == 12 * studio.DPI and 200 < height < 750
    before = {path: path.stat().st_mtime_ns for path in (maker.out / "cache").glob("*")}
    maker._pipes.clear()
    picture = make.FIGURES[number][1].draw(maker)
    assert not maker._pipes and before  # nothing was loaded, and nothing made
    assert before == {path: path.stat().st_mtime_ns for path in (maker.out / "cache").glob("*")}
    for part in ("Profile toy", studio.weights_of(maker.profile)[:12], "seed 0", "1 steps", gcgkit.__version__):
        assert part in picture.caption
    assert picture.caption.startswith(f"Figure {number}.")
    assert "bigbuckbunny" in picture.caption and "CC BY 3.0" in picture.caption


@needs_clips
def test_trained_variants_join_figure_5(maker, weights):
    variants = {"Ours*, trained": str(weights)}
    mine = studio.Studio(maker.profile, maker.out, steps=1, shots=SMALL, variants=variants)
    assert "Ours*, trained" in texts(fig5_gcg.draw(mine))
    assert "Ours*" not in texts(fig5_gcg.draw(maker))


@needs_clips
def test_a_figure_drawn_twice_is_the_same_to_the_byte(maker):
    one, other = (maker.save(make.FIGURES["6"][1].draw(maker), name)[0].read_bytes() for name in ("one", "other"))
    assert one == other


@needs_clips
def test_classical_baselines_are_labelled_so_and_the_exemplar_has_a_border(maker):
    picture = make.FIGURES["4"][1].draw(maker)
    assert "classical baseline: flow" in texts(picture).replace("\n", " ")
    green = [axes for axes in picture.axes if {s.get_linewidth() for s in axes.spines.values()} == {3}]
    assert len(green) == 2
    for axes, shot in zip(green, SMALL, strict=True):
        assert np.array_equal(axes.images[0].get_array(), maker.truth(shot)[0])


@needs_clips
def test_numbers_on_figures_are_those_of_the_frames(maker):
    shot = "rabbit"
    held = maker.from_first(shot, ablations.Setting("gate", "", gate=1.0))
    expected = metrics.psnr_rgb(held[1:], demo.load_clip("bigbuckbunny", 0, 3, 12)[1:])
    assert f"{expected:.1f} dB" in texts(fig5_gcg.draw(maker))


@needs_clips
def test_keys_of_the_cache_tell_settings_seeds_and_weights_apart(maker, monkeypatch):
    made = []

    def value(**changes):
        other = studio.Studio(**{"profile": maker.profile, "out": maker.out / "other", "steps": 1, **changes})
        return other.cached({"what": 1}, lambda: made.append(1) or np.full(2, len(made)))

    first = value()
    assert np.array_equal(value(), first) and len(made) == 1
    assert not np.array_equal(value(seed=1), first) and not np.array_equal(value(steps=2), first)
    monkeypatch.setattr(studio, "code_digest", lambda: "other code")
    assert not np.array_equal(value(), first)


def test_all_modules_that_decide_a_colouring_are_in_the_digest():
    with reimport.fresh():
        importlib.import_module("gcgkit.pipeline")
        found = {m.removeprefix("gcgkit.") for m in reimport.loaded() if not hasattr(sys.modules[m], "__path__")}
    assert "stages" in found and found <= set(studio.CODE)


def test_largest_difference_by_hand():
    one = np.zeros((2, 60, 90, 3), np.uint8)
    other = one.copy()
    other[1, 33:43, 50:60] = 200
    left, top, width, height = studio.largest_difference({"one": one, "other": other}, 1)
    assert (width, height) == (30, 20)
    assert left <= 50 and left + width >= 60 and top <= 33 and top + height >= 43


def test_grid_of_four_tiles_by_hand():
    clip = np.stack([np.full((4, 6, 3), 10 * i, np.uint8) for i in range(4)])
    joined = fig2_framework._grid(clip, [3, 0, 1, 2])
    assert joined.shape == (8, 12, 3)
    assert [joined[0, 0, 0], joined[0, 11, 0], joined[7, 0, 0], joined[7, 11, 0]] == [30, 0, 10, 20]


@needs_clips
def test_frames_of_another_system_join_or_are_refused(maker, tmp_path):
    for shot, about in SMALL.items():
        folder = tmp_path / about.clip
        folder.mkdir()
        for i, frame in enumerate(maker.truth(shot)):
            assert cv2.imwrite(str(folder / f"{i:05d}.png"), frame[..., ::-1])
    joined = studio.Studio(maker.profile, maker.out, steps=1, shots=SMALL, frames_of={"TCVC": tmp_path})
    assert np.array_equal(joined.systems("rabbit")["TCVC"], maker.truth("rabbit"))
    assert "TCVC" in texts(make.FIGURES["3"][1].draw(joined))
    (tmp_path / "bikes" / "00002.png").unlink()
    with pytest.raises(ValueError, match="holds 2 of 448x256"):
        joined.systems("street")


def test_the_diagram_is_saved_as_png_and_pdf(maker):
    make.make(maker, [make.MODEL], Path("none"))
    assert (maker.out / "model.png").read_bytes().startswith(b"\x89PNG")
    assert (maker.out / "model.pdf").read_bytes().startswith(b"%PDF")


def test_table_with_and_without_results(maker, tmp_path, capsys):
    make.make(maker, ["table"], tmp_path / "nothing")
    assert "the paper's numbers stand alone" in capsys.readouterr().out
    for suffix, form in (("md", "markdown"), ("tex", "latex"), ("html", "html")):
        assert (maker.out / f"table1.{suffix}").read_text(encoding="utf-8") == table.render([], form)
    record = {
        "schema": 1, "set": {"name": "DAVIS", "size": [256, 448], "limit": None, "clips": 1, "chosen": False},
        "method": "mine", "identity": {"kind": "folder"}, "key": "k" * 64, "clip": "a", "frames": 10, "first": 1,
        "contents": {}, "metrics": {"psnr_rgb": 31.41}, "not_measured": {}, "notes": [], "provenance": {},
    }  # fmt: skip
    (tmp_path / "results.jsonl").write_text(json.dumps(record) + "\n", encoding="utf-8")
    make.make(maker, ["table"], tmp_path)
    assert "31.41" in (maker.out / "table1.md").read_text(encoding="utf-8")


def test_command_line_refuses_in_one_sentence(tmp_path, capsys):
    assert make.main(["--only", "1", "--frames-of", "TCVC=no/such/folder", "--out", str(tmp_path)]) == 1
    assert "NAME=DIR" in capsys.readouterr().err
    assert make.main(["--only", "1", "--profile", "no/such/folder/here", "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("gcgkit: ") and error.count("\n") == 1
