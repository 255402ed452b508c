"""Provenance against what the installed packages and the operating system say themselves."""

import importlib
import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch

import gcgkit
from gcgkit.evaluation import provenance


def test_versions_are_those_of_the_imported_packages():
    found = provenance.versions()
    modules = {"numpy": "numpy", "torch": "torch", "diffusers": "diffusers", "transformers": "transformers"}
    for package, module in modules.items():
        assert found[package] == importlib.import_module(module).__version__.split("+")[0]
    assert found["gcgkit"] == gcgkit.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert set(provenance.versions(("numpy", "no-such-package"))) == {"gcgkit", "python", "numpy"}


def test_the_time_is_utc_to_the_second():
    told = datetime.fromisoformat(provenance.now())
    assert told.utcoffset() == timedelta(0) and told.microsecond == 0
    assert abs(datetime.now(UTC) - told) < timedelta(seconds=5)


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs /proc")
def test_peak_memory_is_what_the_kernel_counts():
    block = bytearray(os.urandom(1)) * 50_000_000  # touched, so that it counts
    kibibytes = int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
    assert provenance.peak_memory("cpu")["process"] == pytest.approx(kibibytes * 1024 / 1e6, rel=0.02)
    assert len(block) == 50_000_000


def test_the_device_is_the_one_that_was_asked_for(monkeypatch):
    assert re.fullmatch(rf"cpu .+, {torch.get_num_threads()} threads", provenance.device_name("cpu"))
    cards = {None: "first card", "cuda": "first card", "cuda:1": "second card"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: cards[device])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device=None: 3e6 if device == "cuda:1" else 1e6)
    assert provenance.device_name("cuda:1") == "second card" and provenance.device_name(None) == "first card"
    assert provenance.peak_memory("cuda:1")["gpu"] == 3.0 and "gpu" not in provenance.peak_memory("cpu")
    assert provenance.device_name("cpu").startswith("cpu ")


def test_it_does_not_load_torch():
    program = "import sys; from gcgkit.evaluation import provenance; provenance.collect(None); "
    program += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
