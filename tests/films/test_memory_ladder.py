"""Steps down when a device has too little memory, with networks that raise at given sizes, as a card would."""

import copy

import numpy as np
import pytest
import tiny
import torch

from gcgkit.color import to_gray
from gcgkit.films.memory_ladder import CARDS, OFFLOADS, Card, MemoryLadder
from gcgkit.films.shot import LaterReference
from gcgkit.pipeline import GCGPipeline
from gcgkit.references import ReferencePool
from gcgkit.settings import Settings
from gcgkit.stages import Run, color_frame, color_jointly

FRAMES = 4
SIZE = {"guidance_scale": 2.0, "height": tiny.WORKING_SIZE[0], "width": tiny.WORKING_SIZE[1]}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return tiny.pipeline(tmp_path_factory.mktemp("model"))


@pytest.fixture
def pipe(original):
    """A pipeline of its own, as the tests change its networks."""
    copied = GCGPipeline(**{name: copy.deepcopy(part) for name, part in original.components.items()}, **SIZE)
    copied.set_progress_bar_config(disable=True)
    return copied


@pytest.fixture(scope="module")
def gray():
    return to_gray(tiny.clip(FRAMES))


def too_much():
    raise torch.OutOfMemoryError("CUDA out of memory. (raised by the test)")


def offloaded(network) -> bool:
    return any(p.device.type == "meta" for p in network.parameters())


def scarce(pipe, fits) -> list[int]:
    """Let the UNet raise unless ``fits(batch)``; returns the batches it is asked for."""
    asked = []

    def check(module, args, kwargs):
        asked.append(len(args[0]))
        if not fits(len(args[0])):
            too_much()

    pipe.unet.register_forward_pre_hook(check, with_kwargs=True)
    return asked


def one_frame(ladder, gray) -> np.ndarray:
    """The work of a frame that no reference guides."""
    settings = Settings(num_inference_steps=1, prompt="red car")

    @torch.no_grad()
    def work(group):
        run = Run(ladder.pipe, gray.shape[1:], settings, torch.Generator().manual_seed(3))
        return color_frame(run, gray[0], 0, ReferencePool())[0]

    return ladder.run(work)


def keyframes(ladder, gray, group=None) -> list[np.ndarray]:
    """Joint colouring in groups of what ``ladder`` allows."""
    run = Run(ladder.pipe, gray.shape[1:], Settings(num_inference_steps=1, prompt="red"), torch.Generator())
    run.denoiser._noise = torch.zeros_like(run.denoiser._noise)

    @torch.no_grad()
    def work(group):
        result, size = [], group or len(gray)
        for i in range(0, len(gray), size):
            part = gray[i : i + size]
            result += color_jointly(run, part, tuple(range(i, i + len(part))), [])[0]
        return result

    return ladder.run(work, len(gray))


def test_plenty_of_memory_changes_nothing(pipe, gray):
    wanted = one_frame(MemoryLadder(pipe), gray)
    told = []
    np.testing.assert_array_equal(one_frame(MemoryLadder(pipe, say=told.append), gray), wanted)
    assert told == []


def test_a_single_failure_is_tried_again_as_it_was(pipe, gray):
    wanted = one_frame(MemoryLadder(pipe), gray)
    failures, told = [1], []
    scarce(pipe, lambda batch: not (failures and failures.pop()))
    np.testing.assert_array_equal(one_frame(MemoryLadder(pipe, say=told.append), gray), wanted)
    assert told == []


def test_a_reference_that_finds_too_little_memory_is_encoded_again_and_then_kept(pipe, gray):
    run = Run(pipe, gray.shape[1:], Settings(num_inference_steps=1), torch.Generator())
    with torch.no_grad():
        wanted, asked = run.reference(2, gray[2], tiny.clip(FRAMES)[2]), []

    def encode():
        asked.append(2)
        return wanted if len(asked) > 1 else too_much()

    later = LaterReference(2, wanted.descriptor, encode)
    assert later.descriptor is wanted.descriptor and not asked
    assert MemoryLadder(pipe).run(lambda _: later.color) is wanted.color and len(asked) == 2
    for name, part in vars(wanted).items():
        assert getattr(later, name) is part
    assert len(asked) == 2


@pytest.mark.parametrize(("limit", "group"), [(8, None), (4, 2), (3, 1), (2, 1)])
def test_keyframes_go_in_smaller_batches(pipe, gray, limit, group):
    """Two halves of guidance: a group of g frames is a batch of 2 g."""
    asked, told = scarce(pipe, lambda batch: batch <= limit), []
    ladder = MemoryLadder(pipe, say=told.append)
    assert len(keyframes(ladder, gray)) == FRAMES
    assert ladder.group == group and not ladder.sliced and ladder.offload == "none"
    assert asked[-1] <= limit and asked[0] == 2 * FRAMES
    assert told == [s for s in told if "at a time" in s] and len(told) == {None: 0, 2: 1, 1: 2}[group]
    asked.clear()
    keyframes(ladder, gray)  # the step stays: nothing fails again
    assert max(asked) == 2 * (group or FRAMES)


def test_smaller_batches_come_out_as_when_asked_for(pipe, gray):
    wanted = keyframes(MemoryLadder(pipe, card=Card(group=2)), gray)
    scarce(pipe, lambda batch: batch <= 4)
    np.testing.assert_array_equal(keyframes(MemoryLadder(pipe, say=lambda text: None), gray), wanted)


def test_then_slices_then_the_encoders_then_all(pipe, gray):
    """Each step in its turn, said once each, with the colours of before."""
    wanted = one_frame(MemoryLadder(pipe), gray).astype(int)
    told, steps = [], []
    ladder = MemoryLadder(pipe, say=told.append)

    def fits(batch):
        steps.append((ladder.sliced, ladder.offload))
        return ladder.offload == "all"

    scarce(pipe, fits)
    result = one_frame(ladder, gray)
    order = [(False, "none"), (True, "none"), (True, "encoders"), (True, "all")]
    assert list(dict.fromkeys(steps)) == order
    assert ["slices" in told[0], "encoders stay" in told[1], "all weights stay" in told[2]] == [True] * 3
    assert len(told) == 3
    assert np.abs(result - wanted).max() <= 1  # slices sum in another order
    assert all(offloaded(getattr(pipe, name)) for name in ("unet", "control", "vae", "text_encoder", "image_encoder"))
    processors = {type(p).__name__ for p in pipe.unet.attn_processors.values()}
    assert processors == {"SlicedAttnProcessor"}
    again = one_frame(ladder, gray)
    np.testing.assert_array_equal(again, result)
    assert len(told) == 3


def test_where_nothing_helps_one_sentence_says_so(pipe, gray):
    scarce(pipe, lambda batch: False)
    with pytest.raises(ValueError, match="too little memory.*--device cpu"):
        one_frame(MemoryLadder(pipe, say=lambda text: None), gray)


def test_other_errors_go_through(pipe, gray):
    with pytest.raises(ZeroDivisionError):
        MemoryLadder(pipe).run(lambda group: 1 / 0)


def test_weights_that_do_not_fit_stay_in_the_computer(pipe, gray, monkeypatch):
    """The move to the device itself fails, as on a card that is too small for all networks."""
    wanted = one_frame(MemoryLadder(pipe), gray)
    move, told = type(pipe.image_encoder).to, []
    monkeypatch.setattr(
        type(pipe.image_encoder), "to", lambda self, d: too_much() if d != "cpu" else move(self, d)
    )
    ladder = MemoryLadder(pipe, torch.device("cpu"), say=told.append)
    assert ladder.offload == "encoders" and len(told) == 1
    assert offloaded(pipe.image_encoder) and offloaded(pipe.text_encoder) and not offloaded(pipe.unet)
    np.testing.assert_array_equal(one_frame(ladder, gray), wanted)


@pytest.mark.parametrize("name", CARDS)
def test_each_card_can_be_started_with(pipe, gray, name):
    """On the CPU in float32, where the result must be that of no settings at all, but for the slices' order."""
    wanted = one_frame(MemoryLadder(pipe), gray).astype(int)
    told, card = [], CARDS[name]
    ladder = MemoryLadder(pipe, card=card, say=told.append)
    assert (ladder.group, ladder.sliced, ladder.offload) == (card.group, card.slicing, card.offload) and told == []
    assert np.abs(one_frame(ladder, gray) - wanted).max() <= 1
    assert offloaded(pipe.text_encoder) == (card.offload != "none")


def test_smaller_cards_never_get_larger_settings():
    cards = list(CARDS.values())
    for small, large in zip(cards, cards[1:], strict=False):
        assert (small.group or 10**9) <= (large.group or 10**9)
        assert small.slicing >= large.slicing and OFFLOADS.index(small.offload) >= OFFLOADS.index(large.offload)
        assert {"float16": 2, "float32": 4}[small.dtype] <= {"float16": 2, "float32": 4}[large.dtype]
