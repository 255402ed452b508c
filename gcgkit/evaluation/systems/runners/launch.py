"""Run a compared system's script unchanged, on a newer torch and another machine than its authors knew.

    python launch.py [--cpu] [--random-weights] [--stand-in NAME]... [--replace OLD NEW]... SCRIPT [ARGUMENT...]

The script runs in the current folder as if started by itself. Before that: names that newer packages dropped are put
back; with --cpu every move to a GPU stays on the CPU; a stand-in answers for a module that cannot be installed; a
replaced text must be in the script, or this stops. With --random-weights a weight file that is absent is no error and
the network keeps its random start, which shows that the system runs and nothing else.
"""

from __future__ import annotations

import argparse
import collections
import collections.abc
import contextlib
import os
import random
import sys
import time
import types
from pathlib import Path


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--random-weights", action="store_true")
    parser.add_argument("--stand-in", action="append", default=[], choices=sorted(STAND_INS))
    parser.add_argument("--replace", action="append", default=[], nargs=2, metavar=("OLD", "NEW"))
    parser.add_argument("script", type=Path)
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    args = parser.parse_args(argv)
    script = args.script.resolve()
    source = script.read_text(encoding="utf-8")
    for old, new in args.replace:
        if old not in source:
            sys.exit(f"launch: {script.name} does not hold {old!r}: it is not the version that this was made for.")
        source = source.replace(old, new)
    put_back_names()
    if args.cpu:
        stay_on_cpu()
    soften_loading(args.random_weights)
    for name in args.stand_in:
        STAND_INS[name]()
    sys.argv = [str(args.script), *args.arguments]
    sys.path[0] = str(script.parent)
    exec(compile(source, str(script), "exec"), {"__name__": "__main__", "__file__": str(script)})


def put_back_names() -> None:
    """Restore names that old code uses and newer packages have dropped."""
    import numpy
    import PIL.Image

    for name, kind in {"float": float, "int": int, "bool": bool, "object": object, "str": str}.items():
        if name not in vars(numpy):
            setattr(numpy, name, kind)
    for name in ("Iterable", "Sequence", "Mapping", "Callable", "Sized"):
        if not hasattr(collections, name):
            setattr(collections, name, getattr(collections.abc, name))
    for name, new in {"ANTIALIAS": "LANCZOS", "CUBIC": "BICUBIC", "LINEAR": "BILINEAR"}.items():
        if not hasattr(PIL.Image, name):
            setattr(PIL.Image, name, getattr(PIL.Image.Resampling, new))
    with contextlib.suppress(ImportError):
        import scipy.ndimage

        sys.modules.setdefault("scipy.ndimage.filters", scipy.ndimage)


def stay_on_cpu() -> None:
    """Make ``.cuda()`` and ``.to("cuda")`` do nothing."""
    import torch

    os.environ["CUDA_VISIBLE_DEVICES"] = ""

    def stay(self, *args, **kwargs):
        return self

    def cpu(value):
        return torch.device("cpu") if "cuda" in str(value) and not isinstance(value, torch.Tensor) else value

    for owner in (torch.Tensor, torch.nn.Module):
        move = owner.to
        owner.cuda = stay
        owner.to = lambda self, *a, _move=move, **k: _move(self, *map(cpu, a), **{n: cpu(v) for n, v in k.items()})
    torch.cuda.set_device = lambda *args: None
    torch.cuda.synchronize = lambda *args: None  # a function of its own: torch refuses one under two names
    torch.cuda.device_of = lambda *args: contextlib.nullcontext()
    torch.cuda.FloatTensor = torch.FloatTensor


class Nothing:
    """A stand-in for a missing weight file: every item of it is empty too."""

    def __getitem__(self, key):
        return self

    def get(self, key, default=None):
        return self

    def __contains__(self, key) -> bool:
        return False

    def keys(self):
        return []

    items = values = keys

    def __iter__(self):
        return iter([])

    def __len__(self) -> int:
        return 0


def soften_loading(random_weights: bool) -> None:
    """Load weights onto the CPU first, never run code in them, and with `random_weights` load none."""
    import torch

    load, load_state, began = torch.load, torch.nn.Module.load_state_dict, time.time()

    def patient_load(file, *args, **kwargs):
        kwargs.setdefault("map_location", "cpu")
        if random_weights and isinstance(file, (str, os.PathLike)) and not os.path.exists(file):
            print(f"launch: {file} is not there; the weights are random")
            return Nothing()
        if isinstance(file, (str, os.PathLike)) and not os.path.exists(file):
            sys.exit(f"launch: the weights {os.path.abspath(file)} are not there.")
        if isinstance(file, (str, os.PathLike)) and os.path.getmtime(file) >= began:
            kwargs.setdefault("weights_only", False)  # the program's own, made a moment ago
        return load(file, *args, **kwargs)

    def patient_state(self, state, *args, **kwargs):
        if random_weights and len(state) == 0:
            return None
        return load_state(self, state, *args, **kwargs)

    torch.load = patient_load
    torch.nn.Module.load_state_dict = patient_state
    if random_weights:
        import numpy

        torch.manual_seed(0)
        numpy.random.seed(0)
        random.seed(0)
        torch.hub.load_state_dict_from_url = lambda *args, **kwargs: Nothing()


def _module(name: str, **content) -> types.ModuleType:
    """Register a module of this name and content before all others."""
    module = types.ModuleType(name)
    module.__dict__.update(content)
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)
    return module


def _replacements():
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    try:
        import replacements
    finally:
        sys.path.pop(0)
    return replacements


def _vcgan_correlation() -> None:
    """Replace VCGAN's CuPy ``correlation``: displacements of up to 4, one pixel each."""
    ours = _replacements()

    def of_two_maps(tensorFirst, tensorSecond):  # noqa: N803  names of the module that this stands for
        return ours.correlation(tensorFirst, tensorSecond, 4, 1, 4, 1, 1)

    _module("correlation", FunctionCorrelation=of_two_maps)


def _flownet2_extensions() -> None:
    """Replace TCVC's three CUDA extensions, which write into given tensors."""
    ours = _replacements()

    def correlate(first, second, rest1, rest2, output, padding, kernel, reach, step, spacing, multiply):
        output.set_(ours.correlation(first, second, padding, kernel, reach, step, spacing).contiguous())

    def resample(image, flow, output, kernel, bilinear):
        if kernel != 1:
            raise ValueError(f"resampling knows a kernel of one pixel only, got {kernel}")
        output.copy_(ours.resample(image, flow, bilinear))

    def norm(values, output, degree):
        output.copy_(values.square().sum(dim=1, keepdim=True).sqrt())

    _module("correlation_cuda", forward=correlate)
    _module("resample2d_cuda", forward=resample)
    _module("channelnorm_cuda", forward=norm)


def _mmediting() -> None:
    """Replace the parts of mmcv 1.x and mmedit 0.x that BiSTNet uses and no newer torch installs."""
    ours = _replacements()

    class Registry:
        def register_module(self, *args, **kwargs):
            return lambda kind: kind

    for name in ("mmcv", "mmedit", "mmedit.models"):
        _module(name)
    _module("mmcv.cnn", ConvModule=ours.ConvModule)
    _module("mmcv.runner", load_checkpoint=lambda *args, **kwargs: None)
    names = ("PixelShufflePack", "ResidualBlockNoBN", "flow_warp", "make_layer")
    _module("mmedit.models.common", **{name: getattr(ours, name) for name in names})
    _module("mmedit.models.registry", BACKBONES=Registry())
    _module("mmedit.utils", get_root_logger=lambda *args, **kwargs: None)


def _no_trunk_download() -> None:
    """Start DeOldify from random weights: it fetches an ImageNet trunk only to overwrite it with its own."""
    import torch

    torch.hub.load_state_dict_from_url = lambda *args, **kwargs: Nothing()
    load_state = torch.nn.Module.load_state_dict

    def skip_nothing(self, state, *args, **kwargs):
        return None if isinstance(state, Nothing) else load_state(self, state, *args, **kwargs)

    torch.nn.Module.load_state_dict = skip_nothing


STAND_INS = {
    "no-trunk-download": _no_trunk_download,
    "vcgan-correlation": _vcgan_correlation,
    "flownet2-extensions": _flownet2_extensions,
    "mmediting": _mmediting,
}

if __name__ == "__main__":
    main(sys.argv[1:])
