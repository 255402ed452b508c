"""The diagram of the model: nothing overlaps, highlighting pales the rest, and shapes are those of real tensors."""

from itertools import combinations

import numpy as np
import pytest
import tiny
import torch
from matplotlib.patches import FancyBboxPatch

from gcgkit import encoders
from gcgkit.lessons import diagram


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return tiny.pipeline(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def seeing(tmp_path_factory):
    """A pipeline whose copy reads semantic features."""
    return tiny.pipeline(tmp_path_factory.mktemp("tokenizer"), semantics=True)


def drawn(picture):
    """Texts with their extents in pixels, and the boxes' extents."""
    picture.png()
    renderer = picture.figure.canvas.get_renderer()
    (axes,) = picture.axes
    texts = [(t.get_text(), t.get_window_extent(renderer)) for t in axes.texts if t.get_text()]
    boxes = [p.get_window_extent(renderer) for p in axes.patches if isinstance(p, FancyBboxPatch)]
    return texts, boxes


def test_texts_overlap_neither_each_other_nor_the_edge_of_a_box(pipe, seeing):
    for picture in (diagram.draw_model(), diagram.draw_model(pipe=pipe), diagram.draw_model(pipe=seeing)):
        texts, boxes = drawn(picture)
        assert len(texts) > 25 and len(boxes) > 15
        for (one, first), (other, second) in combinations(texts, 2):
            assert not first.overlaps(second), f"{one!r} lies on {other!r}"
        for text, extent in texts:
            for box in boxes:
                inside = box.x0 <= extent.x0 and extent.x1 <= box.x1 and box.y0 <= extent.y0 and extent.y1 <= box.y1
                assert inside or not extent.overlaps(box), f"{text!r} crosses the edge of a box"


def test_no_line_runs_through_a_label():
    picture = diagram.draw_model()
    texts, _ = drawn(picture)
    (axes,) = picture.axes
    for line in axes.lines:
        points = axes.transData.transform(np.column_stack(line.get_data()))
        for start, end in zip(points, points[1:], strict=False):
            for x, y in start + np.linspace(0, 1, 200)[:, None] * (end - start):
                assert not [text for text, extent in texts if extent.contains(x, y)]


def test_what_is_not_highlighted_is_pale():
    picture = diagram.draw_model(("cga",))
    alphas = {text.get_text().split("\n")[0]: text.get_alpha() for text in picture.axes[0].texts}
    assert alphas["CGA (Eq. 1, 2)"] == 1 and alphas["CDGA (Eq. 3, 4)"] == alphas["VAE decoder"] == diagram.PALE
    whole = diagram.draw_model().axes[0].texts
    assert {text.get_alpha() for text in whole} <= {1, None}


def test_semantics_are_named_where_the_copy_reads_them(pipe, seeing):
    for one, named in ((pipe, False), (seeing, True)):
        picture = diagram.draw_model(pipe=one)
        assert any("semantics" in text.get_text() for text in picture.axes[0].texts) == named
        assert ("The paper has no such part" in picture.caption) == named


def test_an_unknown_part_is_refused():
    with pytest.raises(ValueError, match="no part of the model: gray, reference"):
        diagram.draw_model(("cga", "decoder"))


@torch.no_grad()
def test_shapes_are_those_of_tensors_on_their_way(pipe):
    told = diagram.sizes(pipe)
    frame = np.zeros((*tiny.WORKING_SIZE, 3), np.uint8)
    latents = encoders.encode(pipe.vae, frame)
    tokens = encoders.image_tokens(pipe.image_encoder, pipe.feature_extractor, frame)
    words = pipe.encode_prompt(["red car"])
    seen = {}
    hook = pipe.control.unet_copy.register_forward_pre_hook(
        lambda module, args, given: seen.update(given), with_kwargs=True
    )
    pipe.control(latents, 1, tokens, latents, latents, latents)
    hook.remove()
    real = {
        "frame_gray": frame[..., 0], "latents": latents[0], "latents_ref": latents[0], "image_tokens": tokens[0],
        "text_tokens": words[0], "condition": seen["controlnet_cond"][0],
    }  # fmt: skip
    assert {name: str(tuple(x.shape)) for name, x in real.items()}.items() <= told.items()
    assert set(told) == set(diagram.sizes())
    shown = "\n".join(text.get_text() for text in diagram.draw_model(pipe=pipe).axes[0].texts)
    assert all(size in shown for size in told.values())
