"""The circumstances of a measurement: package versions, device, time, and memory.

Nothing here loads torch: if it is not loaded yet, no network has run, and its part is left out.
"""

import platform
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata

from .. import __version__

PACKAGES = ("torch", "torchvision", "diffusers", "transformers", "accelerate", "numpy", "opencv-python-headless")


def collect(device: str | None) -> dict:
    """Return what every measured number is stored with: versions, device, operating system, and time."""
    computer = f"{platform.system()} {platform.machine()}"
    return {"versions": versions(), "device": device_name(device), "platform": computer, "measured": now()}


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Return the versions of gcgkit, of Python and of the installed ones of `packages`."""
    found = {"gcgkit": __version__, "python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def device_name(device: str | None) -> str:
    """Return the GPU's name, or the processor's with torch's threads. device: as torch names it, or None."""
    if (torch := _torch_on_gpu(device)) is not None:
        return torch.cuda.get_device_name(device)
    torch = sys.modules.get("torch")
    threads = f", {torch.get_num_threads()} threads" if torch is not None else ""
    return f"cpu {platform.processor() or platform.machine()}{threads}"


def now() -> str:
    """Return the time in UTC, to the second, in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def reset_peak(device: str | None) -> None:
    """Reset the GPU's memory peak, for `peak_memory`."""
    if (torch := _torch_on_gpu(device)) is not None:
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: str | None) -> dict[str, float]:
    """Return the peak memory in MB (10^6 bytes): of this process since its start, and of the GPU since `reset_peak`."""
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
    """Return torch if it is loaded and `device` (the best one by default) is a GPU; else None."""
    torch = sys.modules.get("torch")  # classical methods run without it
    return torch if torch is not None and device != "cpu" and torch.cuda.is_available() else None
