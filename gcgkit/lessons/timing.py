"""Tools for measuring speed: a clock that waits for the device, alternating cases, peak memory, the machine."""

import gc
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable

import psutil
import torch


def machine() -> dict:
    """Return what a figure depends on: device, PyTorch's version, CPU threads."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {"device": name, "torch": torch.__version__, "threads": torch.get_num_threads()}


def now() -> float:
    """Wait for the device and return the time in seconds."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def clock(work: Callable[[], object]) -> tuple[float, object]:
    """Return the seconds that some work takes, the device's included, and its result."""
    started = now()
    result = work()
    return now() - started, result


def compare(
    cases: dict[str, Callable[[], object]], repeats: int, warmup: int = 1
) -> tuple[dict[str, list[float]], dict[str, object]]:
    """Time each case ``repeats`` times, in turns, after a warm-up; return seconds and each one's last result."""
    seconds, results = defaultdict(list), {}
    for turn in range(-warmup, repeats):
        for name, work in cases.items():
            spent, results[name] = clock(work)
            if turn >= 0:
                seconds[name].append(spent)
    return dict(seconds), results


def peak_memory(work: Callable[[], object]) -> int:
    """Return the bytes that some work allocates at its peak.

    On a GPU what PyTorch allocates; elsewhere the process's resident size, sampled every few milliseconds.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    resident = lambda: psutil.Process().memory_info().rss  # noqa: E731
    before = resident()
    highest, done = [before], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            highest[0] = max(highest[0], resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return highest[0] - before


def line(name: str, seconds: list[float], frames: int, more: str = "") -> str:
    """Return a line for one case: median and range, and frames per second."""
    middle = statistics.median(seconds)
    spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
    return f"{name:28} {middle:8.2f} s ({spread})  {frames / middle:7.3f} frames/s  {more}".rstrip()
