"""Networks compiled for the one shape that a film's frames have, on a GPU replayed as CUDA graphs.

Compiling takes minutes at Stable Diffusion's size, at the first frames; a film of some length earns it back. The
results are the same up to rounding. Under ``torch.compiler.set_stance("force_eager")`` compiled networks run as before.
"""

from weakref import WeakSet

import torch

_REPLAYED: WeakSet[torch.nn.Module] = WeakSet()  # UNets whose pipelines' networks are replayed as CUDA graphs


def networks(pipe) -> dict[str, torch.nn.Module]:
    """Networks of a pipeline that gain by compiling, by name: UNet, copy, the autoencoder's encoders and decoder."""
    parts = {f"vae.{name}": part for name, part in pipe.vae.named_children() if name.endswith(("encoder", "decoder"))}
    return {"unet": pipe.unet, "control.unet_copy": pipe.control.unet_copy, **parts}


def compile_networks(pipe, *, backend: str = "inductor") -> None:
    """Compile a pipeline's networks in place, with static shapes: each new shape is compiled by itself.

    On a GPU each network is replayed as one CUDA graph, which spares a launch per kernel, and the weights of its
    convolutions are laid out as tensor cores read them. Call it when the pipeline has its device and dtype.
    backend: as ``torch.compile`` takes it; "cudagraphs" replays the kernels as they are, which takes seconds to prepare
    and not minutes. Raises ValueError for "cudagraphs" without a GPU.
    """
    on_gpu = pipe.unet.device.type == "cuda"
    if backend == "cudagraphs" and not on_gpu:
        raise ValueError('the backend cudagraphs needs a pipeline on a GPU: move it with .to("cuda").')
    replayed = on_gpu and backend in ("inductor", "cudagraphs")
    mode = {"mode": "reduce-overhead"} if replayed and backend == "inductor" else {}
    for part in networks(pipe).values():
        if on_gpu:
            part.to(memory_format=torch.channels_last)
        part.compile(dynamic=False, backend=backend, **mode)
    (_REPLAYED.add if replayed else _REPLAYED.discard)(pipe.unet)


def begin_step(pipe) -> None:
    """Let CUDA graphs write over their earlier results.

    Called before each denoising step and each pass through the autoencoder; the arithmetic that follows them copies
    their results before the next.
    """
    if pipe.unet in _REPLAYED:
        torch.compiler.cudagraph_mark_step_begin()
