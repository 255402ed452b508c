"""Compiled networks: the same clip, compiled once per shape, and nothing kept that a CUDA graph would write over."""

import cv2
import numpy as np
import pytest
import tiny
import torch
from test_pipeline import color
from torch._dynamo.testing import CompileCounterWithBackend

from gcgkit import cli
from gcgkit.pipeline import GCGPipeline
from gcgkit.utils import compilation

OPTIONS = {"prompt": "red", "num_inference_steps": 4, "tau": 1.0}


@pytest.fixture
def pipe(tmp_path) -> GCGPipeline:
    return tiny.pipeline(tmp_path, strength=0.5)


@pytest.fixture
def clip() -> np.ndarray:
    return tiny.clip(5)


@pytest.fixture(autouse=True)
def _forget_what_was_compiled():
    yield
    torch.compiler.reset()


@pytest.mark.slow
def test_the_real_compiler_gives_the_same_clip(pipe, clip, request):
    if "slow" not in request.config.getoption("-m"):
        pytest.skip("takes minutes: run it with -m slow")
    plain = color(pipe, clip[:3], **OPTIONS).frames
    compilation.compile_networks(pipe)
    assert np.abs(color(pipe, clip[:3], **OPTIONS).frames.astype(int) - plain).max() <= 1


def reuse_outputs(graph, _inputs):
    """A backend that runs the graph as it is, but hands out each output in the same memory every time, as replayed CUDA
    graphs do: what a caller still holds from the call before changes under its hands."""
    held: dict[int, torch.Tensor] = {}

    def run(*args):
        outputs = graph(*args)
        given = []
        for place, output in enumerate(outputs):
            if isinstance(output, torch.Tensor):
                output = held.setdefault(place, torch.empty_like(output)).copy_(output)
            given.append(output)
        return given

    return run


@pytest.mark.slow
def test_compiled_once_per_shape_and_nothing_is_held_over(pipe, clip):
    """A second clip of the same shape compiles nothing; its frames are the eager ones although outputs are reused."""
    others = {"side_by_side": 2, "num_keyframes": 2}
    plain = [color(pipe, clip, **OPTIONS, **options).frames for options in ({}, others)]
    counter = CompileCounterWithBackend(reuse_outputs)
    compilation.compile_networks(pipe, backend=counter)
    for options, wanted in zip(({}, others), plain, strict=True):
        first = color(pipe, clip, **OPTIONS, **options).frames
        compiled = counter.frame_count
        assert compiled > 0
        assert np.array_equal(color(pipe, clip, **OPTIONS, **options).frames, first)
        assert counter.frame_count == compiled
        assert np.abs(first.astype(int) - wanted).max() <= 1
    with torch.compiler.set_stance("force_eager"):
        assert np.array_equal(color(pipe, clip, **OPTIONS).frames, plain[0])


def test_the_networks_that_do_the_work_are_compiled(pipe):
    parts = compilation.networks(pipe)
    assert list(parts) == ["unet", "control.unet_copy", "vae.encoder", "vae.decoder"]
    mini = compilation.networks(GCGPipeline.from_pretrained("mini"))
    assert list(mini)[2:] == ["vae.luma_encoder", "vae.chroma_encoder", "vae.decoder"]


def test_every_use_of_a_replayed_network_begins_a_step(pipe, clip, monkeypatch):
    """With CUDA graphs each passage through a network is told of before, and never without them."""
    told, calls = [], []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: told.append(len(calls)))
    parts = compilation.networks(pipe).values()
    hooks = [part.register_forward_pre_hook(lambda module, _: calls.append(module)) for part in parts]
    color(pipe, clip[:3], **OPTIONS)
    assert told == [] and calls
    calls.clear()
    monkeypatch.setattr(compilation, "_REPLAYED", {pipe.unet})
    color(pipe, clip[:3], **OPTIONS)
    # a step of the denoising is one call of the copy and one of the UNet; every other call stands alone
    assert sorted(set(told)) == [i for i, module in enumerate(calls) if module is not pipe.unet]
    for hook in hooks:
        hook.remove()


def test_cuda_graphs_without_a_gpu_are_refused(pipe):
    with pytest.raises(ValueError, match="cudagraphs needs a pipeline on a GPU"):
        compilation.compile_networks(pipe, backend="cudagraphs")


@pytest.mark.parametrize("flags", [[], ["--compile"]])
def test_the_command_compiles_when_asked(pipe, clip, tmp_path, monkeypatch, flags):
    pipe.save_pretrained(tmp_path / "weights")
    asked = []
    monkeypatch.setattr(compilation, "compile_networks", asked.append)
    (tmp_path / "film").mkdir()
    for number, frame in enumerate(clip[:2]):
        cv2.imwrite(str(tmp_path / f"film/{number}.png"), frame)
    film, out = tmp_path / "film", tmp_path / "out"
    options = ["--profile", tmp_path / "weights", "--steps", "1", "--device", "cpu", *flags]
    assert cli.main([str(x) for x in ("colorize", film, out, *options)]) == 0
    assert [type(given) for given in asked] == [GCGPipeline] * len(flags)
    assert len(list(out.glob("*.png"))) == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", ["inductor", "cudagraphs"])
def test_cuda_graphs_give_the_same_clip(pipe, clip, backend):
    pipe.to("cuda")
    options = {**OPTIONS, "num_keyframes": 2}
    with torch.compiler.set_stance("force_eager"):
        plain = color(pipe, clip, **options).frames
    compilation.compile_networks(pipe, backend=backend)
    assert pipe.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    for _ in range(2):
        assert np.abs(color(pipe, clip, **options).frames.astype(int) - plain).max() <= 1
