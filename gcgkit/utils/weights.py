"""The place of weights in memory."""

from __future__ import annotations

import torch


def align_weights(pipe, boundary: int = 64) -> None:
    """Copy unaligned weights, such as those mapped from a file, to addresses as aligned as PyTorch's own.

    CPU kernels sum unaligned data in another order. Without the copy, the output of a loaded pipeline differs in the
    last bit from the output of the pipeline that was saved.
    """
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            for weights in (*component.parameters(), *component.buffers()):
                if weights.device.type == "cpu" and weights.data_ptr() % boundary:
                    weights.data = weights.data.clone()
