"""Operations, bytes, floors and costs by arithmetic, and the clock that they are compared with."""

import time

import pytest
import tiny
import torch
from torch.utils.flop_counter import FlopCounterMode

from gcgkit.lessons import flops, random_networks, timing
from gcgkit.settings import Shortcuts


@pytest.mark.slow
def test_operations_of_stable_diffusion_are_those_that_others_counted():
    """0.324 and 0.115 TFLOP a pass at 32x56 latents, counted before and apart from this, the copy's with few tokens."""
    pipe = random_networks.random_pipeline("sd21", torch.float32, 256, 448, "meta")
    one, four = (flops.operations(pipe, 256, 448, tiles) for tiles in (1, 4))
    assert one["UNet"] == four["UNet"] == pytest.approx(0.324e12, rel=0.05)
    assert one["UNet copy"] == pytest.approx(0.115e12, rel=0.10)
    # Three more pictures' tokens cost the copy's cross-attention keys and values, and the attention itself.
    assert one["UNet copy"] < four["UNet copy"] < 1.3 * one["UNet copy"]


def test_a_frame_needs_each_part_as_often_as_the_second_stage_runs_it():
    single = {
        "UNet": 10.5, "UNet copy": 7.0, "guidance": 2.0, "autoencoder, encoding": 7.0, "text encoder": 99.0,
        "keys and values of text": 0.5, "keys and values of image tokens": 1.0,
    }  # fmt: skip
    wanted = {
        "UNet": 640.0, "UNet copy": 96.0, "guidance": 2.0, "autoencoder, encoding": 14.0,
        "keys and values of image tokens": 1.0,
    }  # fmt: skip
    assert flops.per_frame(single, steps=32) == wanted
    again = {"UNet": 672.0, "UNet copy": 224.0, "guidance": 2.0, "autoencoder, encoding": 14.0}
    assert flops.per_frame(single, steps=32, keys=False) == again


def test_a_clip_takes_the_operations_that_are_counted_for_its_frames(tmp_path):
    """One more frame of the second stage, counted while the pipeline colours it; four keyframes guide at every step."""
    pipe = tiny.pipeline(tmp_path)
    clip, options = tiny.clip(7), {"prompt": "red", "num_inference_steps": 3, "grid_size": 4, "tau": 1e6}

    def counted(frames: int, keys: bool) -> int:
        with FlopCounterMode(display=False) as counter:
            given = {n: clip[n] for n in range(4)}
            pipe.color_remaining(clip[:frames], given, shortcuts=Shortcuts(keys=keys), **options)
        return counter.get_total_flops()

    single = flops.operations(pipe, *tiny.WORKING_SIZE)
    for keys in (True, False):
        wanted = sum(flops.per_frame(single, steps=3, keys=keys).values())
        # with it comes the frame before it, encoded as a reference, which it is not itself
        assert counted(6, keys) - counted(5, keys) == wanted


def test_cost_goes_with_the_peak_and_the_price():
    found = flops.cost(seconds_per_frame=0.5, peak=65e12, fps=24)
    assert found["T4"]["seconds"] == pytest.approx(720) and found["T4"]["dollars"] == pytest.approx(0.07)
    card = flops.CARDS["A100"]
    assert found["A100"]["seconds"] == pytest.approx(720 * 65 / card.peak)
    assert found["A100"]["dollars"] == pytest.approx(720 * 65 / card.peak / 3600 * card.price)


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("NVIDIA H200", "H200"), ("NVIDIA H100 80GB HBM3", "H100 SXM"), ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"), ("NVIDIA L40S", "L40S"), ("NVIDIA L4", "L4"), ("Tesla T4", "T4"),
    ],
)  # fmt: skip
def test_a_card_is_known_by_its_drivers_name(name, card):
    assert flops.sheet_peak(name) == flops.CARDS[card].peak * 1e12


def test_other_cards_are_not_known():
    assert flops.sheet_peak("NVIDIA T400 4GB") is flops.sheet_peak("cpu") is flops.sheet_peak("Tesla T40") is None


def test_cases_take_turns_after_one_to_warm_up():
    done = []
    cases = {name: lambda name=name: done.append(name) or name for name in "ab"}
    seconds, results = timing.compare(cases, repeats=2)
    assert done == list("ababab") and results == {"a": "a", "b": "b"}
    assert {name: len(times) for name, times in seconds.items()} == {"a": 2, "b": 2}


def test_peak_memory_sees_what_was_held_for_a_moment():
    def work() -> None:
        held = torch.ones(60_000_000 // 4)
        time.sleep(1.0)  # long enough for a look at it on a busy machine
        del held

    if not torch.cuda.is_available():
        assert 45e6 < timing.peak_memory(work) < 150e6


def test_traffic_is_what_operations_read_and_write(monkeypatch):
    a, b = torch.empty(3, 5, device="meta"), torch.empty(4, 5, device="meta")
    monkeypatch.setattr(flops, "passes", lambda *_: {"product": lambda: a @ b.T, "view": lambda: a[:, 1:].T})
    assert flops.traffic(None, 8, 8) == {"product": 4 * (3 * 5 + 5 * 4 + 3 * 4), "view": 0}


def test_passes_run_on_the_pipelines_own_parts(tmp_path):
    pipe = tiny.pipeline(tmp_path)
    counted = flops.operations(pipe, 64, 64)
    timed = flops.passes(pipe, 64, 64, where="cpu")
    assert list(timed) == list(counted)
    with torch.no_grad():
        latents = timed["UNet"]().sample
    assert latents.device.type == "cpu" and latents.shape == (1, pipe.unet.config.in_channels, 8, 8)


def test_bandwidth_counts_a_copy_twice(monkeypatch):
    monkeypatch.setattr(timing.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(flops, "_best", lambda work, repeats: work() is not None and 0.5)
    assert flops.bandwidth() == 2 * 2**27 / 0.5  # 128 MiB are read and written
