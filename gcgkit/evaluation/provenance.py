"""Where a number came from: package versions, the device, the time, and the memory that it took.

Nothing here loads torch: where it is not loaded yet, no network was at work and its part is left out.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata

from .. import __version__

PACKAGES = ("torch", "torchvision", "diffusers", "transformers", "accelerate", "numpy", "opencv-python-headless")


def of(device: str | None) -> dict:
    """What belongs with every measured number: versions, device, operating system, and the time it was measured."""
    computer = f"{platform.system()} {platform.machine()}"
    return {"versions": versions(), "device": device_name(device), "platform": computer, "measured": now()}


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Versions of gcgkit, of Python and of those of `packages` that are installed."""
    found = {"gcgkit": __version__, "python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def device_name(device: str | None) -> str:
    """The GPU's name, or the processor's with the threads that torch may use. device: as torch names it, or None."""
    if (torch := _torch_on_gpu(device)) is not None:
        return torch.cuda.get_device_name(device)
    torch = sys.modules.get("torch")
    threads = f", {torch.get_num_threads()} threads" if torch is not None else ""
    return f"cpu {platform.processor() or platform.machine()}{threads}"


def now() -> str:
    """The time in UTC, to the second, as ISO 8601 writes it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def reset_peak(device: str | None) -> None:
    """Begin anew to watch the GPU's memory, for `peak_memory`."""
    if (torch := _torch_on_gpu(device)) is not None:
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: str | None) -> dict[str, float]:
    """Highest memory in MB (10^6 bytes): of this process since its start, and of the GPU since `reset_peak`."""
    peak = {}
    try:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kibibytes elsewhere
        peak["process"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)
    except ImportError:  # Windows has no such counter
        pass
    if (torch := _torch_on_gpu(device)) is not None:
        peak["gpu"] = round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
    return peak


def _torch_on_gpu(device: str | None):
    """torch, if it is loaded and `device` (the best there is by default) is a GPU; else None."""
    torch = sys.modules.get("torch")  # classical methods run without it
    return torch if torch is not None and device != "cpu" and torch.cuda.is_available() else None
