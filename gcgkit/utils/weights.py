"""Weights: their place in memory, and their type."""

import torch

OF_PRECISION = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}  # as accelerate names them


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


def chosen_dtype(dtype, torch_dtype) -> torch.dtype | dict:
    """Return the dtype to load weights in, of the two names for it, float32 by default; text becomes torch's own.

    Raises ValueError for both at once and for text that names none.
    """
    if dtype is not None and torch_dtype is not None:
        raise ValueError("dtype and torch_dtype are one option under two names: give only dtype.")
    dtype = dtype or torch_dtype or torch.float32
    if not isinstance(dtype, str):
        return dtype
    found = getattr(torch, dtype.removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"dtype must be one of torch's, such as torch.float16, not {dtype!r}.")
    return found
