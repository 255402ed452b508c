"""Weights as they lie in memory."""

from __future__ import annotations

import torch


def align_weights(pipe, boundary: int = 64) -> None:
    """Move weights that lie askew in memory, as those mapped from a file do, to where PyTorch would have put them.

    CPU kernels sum in another order for askew data: without this a loaded pipeline's output differs in the last bit
    from that of the one that was saved.
    """
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            for weights in (*component.parameters(), *component.buffers()):
                if weights.device.type == "cpu" and weights.data_ptr() % boundary:
                    weights.data = weights.data.clone()
