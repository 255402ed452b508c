"""What the notebooks' and the README's texts say of gcgkit in words, where no code prints it, against gcgkit itself."""

import ast
import functools
import json
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest

from gcgkit import color, keyframes, metrics, profiles, srg
from gcgkit.evaluation import run as evaluation
from gcgkit.evaluation import table
from gcgkit.guidance import GatedColorGuidance
from gcgkit.lessons import demo, wrong_colors
from gcgkit.lessons import notebook as lesson
from gcgkit.paper import PAPER_GUIDANCE_SCALE
from gcgkit.settings import Settings
from gcgkit.training import recipes
from gcgkit.vae import LumaChromaAutoencoder

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TEXTS = {
    path.stem: [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]
    for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
}
colored = functools.partial(getattr, Settings())
guided = functools.partial(lesson.default, GatedColorGuidance.__init__)
PAPER = (recipes.load("paper"), recipes.load("paper-16gb"))


def mini(file):
    """A configuration of the bundled profile."""
    return json.loads((Path(profiles.resolve("mini")) / file).read_text(encoding="utf-8"))


@functools.cache
def latents():
    """Shape of the bundled autoencoder's latents of a frame of 448x256 pixels."""
    vae = LumaChromaAutoencoder.from_pretrained(Path(profiles.resolve("mini")) / "vae")
    return tuple(lesson.latents(vae, np.zeros((256, 448, 3), np.uint8)).shape)


def recipe(config):
    return config.optimizer.name, config.optimizer.learning_rate, config.run.batch_size, config.run.epochs


def in_passes_half_and_recomputed(run):
    return run.micro_batch < run.batch_size and run.precision == "fp16" and run.gradient_checkpointing


EARLIER = "photos-earlier-weights-8-steps"


def results(name):
    return json.loads((ROOT / "results/card" / f"{name}.json").read_text(encoding="utf-8"))


def turning_point():
    """The share of the stage gpu that had passed when the held-out error was least; it rose from there."""
    held = [(line["step"], line["held"]) for line in results("training")["gpu_held_out"]]
    return min(held, key=lambda pair: pair[1])[0] / held[-1][0], held[-1][1] > 1.1 * min(error for _, error in held)


def extra_token():
    return mini("control/config.json")["guidance_config"]["null_token"] and not guided("null_token")


def psnr_of_pale_sepia():
    """PSNR of lightness of the sepia frame in notebook 01."""
    truth = demo.load_clip("bigbuckbunny", 70, count=1)
    lightness = color.rgb_to_lab(truth[0])[..., 0]
    return metrics.psnr_luma(color.join_lab(lightness, np.full((*lightness.shape, 2), 5.0))[None], truth)


def psnr_by_frame(name):
    """PSNR of each frame of a wrong clip in notebook 10."""
    truth = demo.load_clip("bikes", 106, 6, 2)
    wrong = wrong_colors.FAKES[name](truth)
    return [metrics.psnr_rgb(wrong[[k]], truth[[k]]) for k in range(len(truth))]


def frozen_below_moved():
    (first, *frozen), (_, *moved) = map(psnr_by_frame, ("colours of frame 0, frozen", "moved by one pixel"))
    return first == 100 and all(x < y for x, y in zip(frozen, moved, strict=True))


def flow_leads_on_each_clip():
    means = {}
    for record in evaluation.read_results(ROOT / "results/mini"):
        if record["method"] in ("flow", "Ours") and record["set"]["name"].startswith("DAVIS"):
            means.setdefault(record["clip"], {}).setdefault(record["method"], []).append(record["metrics"]["psnr_rgb"])
    return len(means) == 6 and all(np.mean(clip["flow"]) > np.mean(clip["Ours"]) for clip in means.values())


# Notebook, words of its text, and whether it is so.
STATEMENTS = [
    (
        "01",
        "the pale sepia picture wins: its number is as high as the one in Table 1",
        lambda: psnr_of_pale_sepia() > float(table.paper()["datasets"]["DAVIS"]["values"]["psnr"]["DeOldify"]),
    ),
    ("02", "shrinks a frame by eight on each side", lambda: latents()[2:] == (32, 56)),
    ("02", "a picture of four numbers per place", lambda: latents()[1] == 4),
    ("02", "mini model predicts $z_0$", lambda: mini("scheduler/scheduler_config.json")["prediction_type"] == "sample"),
    ("02", "its profile keeps to a low one", lambda: mini("model_index.json")["guidance_scale"] < 3),
    ("02", "so it runs only the last steps", lambda: mini("model_index.json")["guess_strength"] < 1),
    ("03", "the stem also reads $s$", lambda: mini("control/config.json")["guidance_config"]["semantic_width"] > 0),
    ("03", 'shared by both, gives it some (`stem="conv"`)', lambda: guided("stem") == "conv"),
    ("04", "adds one more token that belongs to no reference (`null_token=True`)", extra_token),
    (
        "05",
        "Here it is the mean squared difference of small gray frames unless another measure is named",
        lambda: lesson.default(keyframes.pairwise_dissimilarity, "measure") == colored("dissimilarity") == "mse",
    ),
    ("05", "the pipeline's default is one noise for all", lambda: colored("noise") == "shared"),
    ("06", "$t$ to run from τ to 0", lambda: [srg.rescale_timestep(t, 1000, 4.0) for t in (1000, 0)] == [4, 0]),
    (
        "06",
        "tiles keep their size unless you ask for `shrink=True`",
        lambda: not lesson.default(srg.make_grid, "shrink"),
    ),
    ("07", "in place of the grid (`use_srg=False`)", lambda: colored("use_srg") is True),
    (
        "09",
        "Adam, its learning rate, its batch, its epochs",
        lambda: [recipe(x) for x in PAPER] == [("adam", 5e-5, 24, 15)] * 2,  # §4.1
    ),
    ("09", "does not weight the timesteps", lambda: not any(x.loss.snr_gamma for x in PAPER)),
    (
        "09",
        "gathers the batch in several passes, and recomputes values that the first one keeps",
        lambda: in_passes_half_and_recomputed(PAPER[1].run) and not in_passes_half_and_recomputed(PAPER[0].run),
    ),
    ("09", "its own colours were worse than gray", lambda: results(EARLIER)["summary"]["psnr_gain"] < 0),
    (
        "09",
        "on held-out photographs, the error rose again after the first third of the stage",
        lambda: turning_point() == (pytest.approx(1 / 3), True),
    ),
    ("10", 'ten "colourings" of it', lambda: len(wrong_colors.FAKES) == 10),
    ("10", "at three distances in time", lambda: len(metrics.CDC_GAPS) == 3),
    ("10", "each of its other frames has a lower PSNR than the clip that is moved by one pixel", frozen_below_moved),
    ("11", "*flow* is better on each of the six clips", flow_leads_on_each_clip),
    (
        "11",
        "Seven systems and three ablations, seven metrics, two test sets",
        lambda: [len(table.paper()[part]) for part in ("methods", "metrics", "datasets")] == [10, 7, 2],
    ),
]


@pytest.mark.parametrize(("number", "words", "so"), STATEMENTS, ids=[f"{n}-{words[:30]}" for n, words, _ in STATEMENTS])
def test_what_texts_say_is_so(number, words, so):
    (texts,) = (texts for name, texts in TEXTS.items() if name.startswith(number))
    assert sum(words in text for text in texts) == 1, "the text has changed: change this list, too"
    assert so(), "gcgkit has changed: change the text, too"


@functools.cache
def options() -> set:
    """Names of arguments and of classes' fields in gcgkit."""
    found = set()
    for path in (ROOT / "gcgkit").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.arg):
                found.add(node.arg)
            elif isinstance(node, ast.ClassDef):
                found |= {line.target.id for line in node.body if isinstance(line, ast.AnnAssign)}
    return found


@pytest.mark.parametrize("name", TEXTS)
def test_options_that_texts_name_exist(name):
    codes = [code for text in TEXTS[name] for code in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)]
    assert {option for code in codes for option in re.findall(r"\b([a-z_]+)=", code)} <= options()


def test_the_readme_has_the_map_of_the_series():
    rows = re.findall(r"^\| \[(\d\d) .*?\]\(notebooks/(\w+)\.ipynb\) \| (.+) \| (\d+) \|$", README, re.MULTILINE)
    minutes = {name: re.search(r"About (\d+) minute", texts[0])[1] for name, texts in TEXTS.items()}
    assert rows == [(name[:2], name, what, minutes[name]) for name, what in lesson.SERIES.items()]


def test_the_readme_states_the_settings_of_the_profiles():
    text, own, steps = " ".join(README.split()), mini("model_index.json"), colored("num_inference_steps")
    assert f"Both denoise in {steps} DDIM steps" in text
    assert f"| guidance scale | {own['guidance_scale']:g} | {PAPER_GUIDANCE_SCALE} |" in text
