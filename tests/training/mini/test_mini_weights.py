"""The bundled weights: what is in the folder, and that they really colour real film (no mock, no tint)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from gcgkit import color, encoders, metrics, profiles
from gcgkit.data import clips, naming
from gcgkit.pipeline import GCGPipeline

FOLDER = profiles.WEIGHTS / "mini"


@pytest.fixture(scope="module")
def pipe() -> GCGPipeline:
    pipe = GCGPipeline.from_pretrained("mini")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    try:
        clips.find(clips.CLIP)
    except FileNotFoundError as missing:
        pytest.skip(str(missing))
    return clips.load_clip()[:5]


def test_folder_is_small_safe_and_says_no_machine_path():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 30e6
    assert {path.suffix for path in files} <= {".json", ".txt", ".md", ".safetensors"}
    for path in files:
        if path.suffix == ".json" and path.name != "tokenizer.json":  # whose vocabulary has a slash, by right
            assert not [text for text in strings(json.loads(path.read_text())) if Path(text).is_absolute()], path


def strings(value):
    """Every text in a JSON value."""
    if isinstance(value, (dict, list)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from strings(part)
    elif isinstance(value, str):
        yield value


def test_card_names_each_part_and_every_limit_section():
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    parts = [name for name in json.loads((FOLDER / "model_index.json").read_text()) if (FOLDER / name).is_dir()]
    assert len(parts) == 9 and all(f"`{part}`" in card for part in parts)
    assert all(f"## {section}" in card for section in ("Data", "Training", "Measured", "Limits"))
    assert "Apache-2.0" in card  # the terms of the semantic encoder


def test_weights_are_half_precision_on_disk_and_float32_in_memory(pipe):
    from safetensors import safe_open

    with safe_open(next((FOLDER / "unet").glob("*.safetensors")), "pt") as saved:
        assert saved.get_tensor(next(iter(saved.keys()))).dtype == torch.float16
    assert pipe.unet.dtype == torch.float32


def from_exemplar(pipe, clip, **options) -> np.ndarray:
    """The clip coloured from its true first frame."""
    options |= {"num_inference_steps": 4, "num_keyframes": 2, "generator": torch.Generator().manual_seed(0)}
    return pipe(color.to_gray(clip), reference={0: clip[0]}, **options).frames


@pytest.fixture(scope="module")
def colored(pipe, clip) -> np.ndarray:
    return from_exemplar(pipe, clip)


def test_exemplar_beats_gray_and_a_tint(colored, clip):
    gray = color.to_gray(clip)
    lab = color.rgb_to_lab(np.repeat(gray[..., None], 3, -1))
    lab[..., 1:] = color.rgb_to_lab(clip[0])[..., 1:].mean((0, 1))
    tint = np.clip(np.rint(color.lab_to_rgb(lab) * 255), 0, 255).astype(np.uint8)
    ours, tinted = metrics.psnr_rgb(colored[1:], clip[1:]), metrics.psnr_rgb(tint[1:], clip[1:])
    assert ours > metrics.psnr_rgb(np.repeat(gray[..., None], 3, -1)[1:], clip[1:]) + 1
    assert ours > tinted + 1


def test_keeping_what_the_gate_lets_through_beats_leaving_it_to_the_unet(pipe, colored, clip):
    left = from_exemplar(pipe, clip, hint_weight=0.0)
    assert metrics.psnr_rgb(colored[1:], clip[1:]) > metrics.psnr_rgb(left[1:], clip[1:]) + 0.2


def test_gate_is_closed_under_the_mask_and_trusts_a_matching_reference_more(pipe, clip):
    code = lambda image: encoders.encode(pipe.vae, image)  # noqa: E731
    frame, reference = color.to_gray(clip[4]), color.to_gray(clip[0])
    with torch.no_grad():
        gray, ref_gray, other = code(frame), code(reference), code(clip[0])
        seen = encoders.semantics(pipe, frame)
        masked = pipe.control.hint(gray, gray * 0, gray * 0, seen).gate.mean()
        matching = pipe.control.hint(gray, ref_gray, other, seen, encoders.semantics(pipe, reference)).gate.mean()
    assert masked <= 0.1 and matching >= masked + 0.1


def test_a_colour_word_moves_the_picture_towards_its_hue(pipe, clip):
    gray = color.to_gray(clip[:1])

    def mean_ab(prompt: str) -> np.ndarray:
        generator = torch.Generator().manual_seed(0)
        frame = pipe(gray, prompt=prompt, num_inference_steps=3, generator=generator).frames[0]
        return color.rgb_to_lab(frame)[..., 1:].mean((0, 1))

    plain = mean_ab("")
    for word in ("red", "blue", "green"):
        toward = color.rgb_to_lab(np.uint8([[naming.WORD_RGB[word]]]))[0, 0, 1:]
        assert (mean_ab(word) - plain) @ toward > 0, word
