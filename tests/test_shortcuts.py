"""Each shortcut switched off: the same frames, by more work, counted at the networks themselves."""

from collections import Counter
from threading import Event

import numpy as np
import pytest
import tiny
import torch
from test_pipeline import color

from gcgkit import attention, references, stages
from gcgkit.color import to_gray
from gcgkit.pipeline import GCGPipeline
from gcgkit.settings import NO_SHORTCUTS, Shortcuts
from gcgkit.stages import Run

OPTIONS = {"prompt": "red", "num_keyframes": 2, "num_inference_steps": 4, "tau": 1.0}


@pytest.fixture(scope="module")
def pipe(tmp_path_factory) -> GCGPipeline:
    return tiny.pipeline(tmp_path_factory.mktemp("tiny"), strength=0.5)


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    return tiny.clip(6)


def counted(pipe, clip, **options):
    """The result, and how many samples went through each network, in how many calls."""
    samples, calls, hooks = Counter(), Counter(), []

    def watch(name: str, module) -> None:
        def count(_, args, kwargs):
            calls[name] += 1
            samples[name] += len(args[0])

        hooks.append(module.register_forward_pre_hook(count, with_kwargs=True))

    layer = next(iter(attention.layers(pipe.unet).values()))
    watch("to_k", layer.to_k)
    watch("hint", pipe.control.guidance)
    watch("copy", pipe.control.unet_copy)
    watch("unet", pipe.unet)
    watch("vae", pipe.vae.encoder)
    try:
        return color(pipe, clip, **{**OPTIONS, **options}), calls, samples
    finally:
        for hook in hooks:
            hook.remove()


@pytest.fixture(scope="module")
def usual(pipe, clip):
    return counted(pipe, clip)


@pytest.mark.parametrize(
    ("off", "more_calls", "more_samples"),
    [
        ("hints", {"hint"}, {"hint"}),
        ("references", {"vae"}, {"vae"}),
        ("copy", set(), {"copy"}),
        ("keys", {"to_k"}, {"to_k"}),
        ("halves", {"unet"}, set()),
        ("values", set(), set()),
    ],
)
def test_a_shortcut_saves_work_and_changes_nothing(pipe, clip, usual, off, more_calls, more_samples):
    output, calls, samples = usual
    without, other_calls, other_samples = counted(pipe, clip, shortcuts=Shortcuts(**{off: False}))
    assert np.abs(without.frames.astype(int) - output.frames).max() <= 1
    assert without.references == output.references
    assert {name for name in calls if other_calls[name] > calls[name]} == more_calls
    assert {name for name in samples if other_samples[name] > samples[name]} == more_samples
    assert all(other_calls[name] >= calls[name] for name in calls)


@pytest.fixture(scope="module")
def seeing(tmp_path_factory) -> GCGPipeline:
    """A pipeline with a semantic encoder."""
    return tiny.pipeline(tmp_path_factory.mktemp("seeing"), semantics=True, strength=0.5)


@pytest.mark.parametrize("off", [*vars(Shortcuts()), "all"])
def test_shortcuts_change_nothing_where_the_copy_reads_semantic_features(seeing, clip, off):
    without = NO_SHORTCUTS if off == "all" else Shortcuts(**{off: False})
    usual, other = (color(seeing, clip, **OPTIONS, shortcuts=case).frames for case in (Shortcuts(), without))
    apart = np.abs(other.astype(int) - usual)
    assert apart.max() <= 2 and apart.mean() < 0.01  # these random weights enlarge what rounding does


def test_all_off_is_the_same_clip_too(pipe, clip, usual):
    assert np.abs(counted(pipe, clip, shortcuts=NO_SHORTCUTS)[0].frames.astype(int) - usual[0].frames).max() <= 1


def test_values_are_padded_or_not_for_the_fused_kernel(pipe, clip, monkeypatch):
    widths, plain = set(), torch.nn.functional.scaled_dot_product_attention

    def watched(query, key, value, **options):
        widths.add((key.shape[-1], value.shape[-1]))
        return plain(query, key, value, **options)

    gray = torch.randn(1, 4, 4, 8)
    monkeypatch.setattr("gcgkit.guidance.F.scaled_dot_product_attention", watched)
    for padded in (True, False):
        widths.clear()
        counted(pipe, clip[:2], num_keyframes=1, shortcuts=Shortcuts(values=padded))
        pipe.control.hint(gray, gray, gray)
        assert any(key != value for key, value in widths) is not padded


@pytest.mark.parametrize("stretches", [2, 3, 9])
def test_side_by_side_without_earlier_frames_is_the_same_clip(pipe, clip, stretches):
    """With Ours*** nothing depends on the order of the frames."""
    options = {**OPTIONS, "use_srg": False}
    one, many = (color(pipe, clip, **options, side_by_side=n) for n in (1, stretches))
    assert np.abs(one.frames.astype(int) - many.frames).max() <= 1
    assert one.references == many.references and one.keyframes == many.keyframes


def test_side_by_side_is_guided_by_finished_frames_only(pipe, clip, usual, monkeypatch):
    order, choose_usually = [], references.ReferencePool.choose

    def choose(self, distances, t, settings):
        held = {r.frame for r in (*self.keys, *self.past)}
        assert not order or order[-1] <= held  # what was there stays
        order.append(held)
        return choose_usually(self, distances, t, settings)

    monkeypatch.setattr(references.ReferencePool, "choose", choose)
    output, calls, samples = counted(pipe, clip, side_by_side=2)
    keys = set(output.keyframes)
    others = [i for i in range(len(clip)) if i not in keys]
    first, second = others[: len(others) // 2], others[len(others) // 2 :]
    assert [set(held) for held in dict.fromkeys(map(frozenset, order))] == [keys, keys | {first[0], second[0]}]
    used = {n: {f for run in output.references[n] for f in (*run.keyframes, *run.past)} for n in others}
    assert all(used[n] <= keys for n in (first[0], second[0]))
    assert all(used[n] <= keys | {first[0], second[0]} for n in (first[1], second[1]))
    _, calls_alone, samples_alone = usual
    assert samples["unet"] == samples_alone["unet"] and calls["unet"] < calls_alone["unet"]


def test_the_next_frames_are_encoded_while_colours_are_put_on(pipe, clip, monkeypatch):
    """Colours of the first two frames wait until the latents of the two that follow are there; once is enough."""
    whole = color(pipe, clip, **OPTIONS, side_by_side=2)
    others = [i for i in range(len(clip)) if i not in whole.keyframes]
    gray = [frame.tobytes() for frame in to_gray(clip)]
    first, next_ones = ([gray[others[i]] for i in places] for places in ((0, 2), (1, 3)))
    encode_usually, merge_usually, ahead, met, times = Run.encode, stages.merge_luminance, Event(), [], Counter()

    def encode(self, *frames):
        latents = encode_usually(self, *frames)
        times.update(frame.tobytes() for frame in frames)
        if [frame.tobytes() for frame in frames] == next_ones:
            ahead.set()
        return latents

    def merge(image, colors):
        if image.tobytes() in first:
            met.append(ahead.wait(20))
        return merge_usually(image, colors)

    monkeypatch.setattr(Run, "encode", encode)
    monkeypatch.setattr(stages, "merge_luminance", merge)
    assert np.array_equal(color(pipe, clip, **OPTIONS, side_by_side=2).frames, whole.frames)
    assert met == [True, True]
    assert [times[image] for image in (*first, *next_ones)] == [1, 1, 1, 1]


def test_side_by_side_streams_in_order_and_repeats(pipe, clip):
    options = {**OPTIONS, "side_by_side": 2}
    whole = color(pipe, clip, **options).frames
    assert np.array_equal(color(pipe, clip, **options).frames, whole)
    streamed = list(pipe.stream(iter(clip), generator=torch.Generator().manual_seed(0), **options))
    assert np.array_equal(np.stack(streamed), whole)


@pytest.mark.parametrize("wrong", [{"side_by_side": 0}, {"side_by_side": 1.5}, {"shortcuts": {"hints": False}}])
def test_what_cannot_be_is_told(pipe, clip, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        color(pipe, clip, **wrong)
