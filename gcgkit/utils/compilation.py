"""Networks compiled for the one shape that a film's frames have, on a GPU replayed as CUDA graphs.

Compiling takes minutes at Stable Diffusion's size, at the first frames; a film of some length earns it back. The
results are the same up to rounding. Under ``torch.compiler.set_stance("force_eager")`` compiled networks run as before.
"""

from __future__ import annotations

from weakref import WeakSet

import torch

_REPLAYED: WeakSet[torch.nn.Module] = WeakSet()  # UNets whose pipelines' networks are replayed as CUDA graphs


def networks(pipe) -> dict[str, torch.nn.Module]:
    """Networks of a pipeline that gain by compiling, by name: UNet, copy, the autoencoder's encoders and decoder."""
    parts = {f"vae.{name}": part for name, part in pipe.vae.named_children() if name.endswith(("encoder", "decoder"))}
    return {"unet": pipe.unet, "control.unet_copy": pipe.control.unet_copy, **parts}


def compile_networks(
    pipe, *, cuda_graphs: bool | None = None, channels_last: bool | None = None, backend: str = "inductor"
) -> None:
    """Compile a pipeline's networks in place, with static shapes: each new shape is compiled by itself.

    cuda_graphs: replay each network as one CUDA graph, which spares a launch per kernel; None for wherever the pipeline
    is on a GPU. channels_last: lay the weights of convolutions out as tensor cores read them; None likewise. backend:
    as ``torch.compile`` takes it; "cudagraphs" replays the kernels as they are, which takes seconds to prepare and not
    minutes. Call it when the pipeline has its device and dtype. Raises ValueError for CUDA graphs without a
    GPU, or with another backend than inductor and cudagraphs.
    """
    on_gpu = pipe.unet.device.type == "cuda"
    replayable = on_gpu and backend in ("inductor", "cudagraphs")
    cuda_graphs = backend == "cudagraphs" or (replayable if cuda_graphs is None else cuda_graphs)
    if cuda_graphs and not replayable:
        raise ValueError(
            'cuda_graphs needs the backend inductor or cudagraphs and a pipeline on a GPU: move it with .to("cuda").'
        )
    mode = {"mode": "reduce-overhead"} if cuda_graphs and backend == "inductor" else {}
    channels_last = on_gpu if channels_last is None else channels_last
    for part in networks(pipe).values():
        if channels_last:
            part.to(memory_format=torch.channels_last)
        part.compile(dynamic=False, backend=backend, **mode)
    (_REPLAYED.add if cuda_graphs else _REPLAYED.discard)(pipe.unet)


def begin_step(pipe) -> None:
    """Let CUDA graphs write over their earlier results.

    Called before each denoising step and each pass through the autoencoder; the arithmetic that follows them copies
    their results before the next.
    """
    if pipe.unet in _REPLAYED:
        torch.compiler.cudagraph_mark_step_begin()
