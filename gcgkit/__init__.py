"""Video colorization with gated colour-guided diffusion: the kit's library.

The files beside this one are the method of the paper. The packages around it, lowest first: ``utils``, ``video``;
``data``, ``metrics``; ``films``, ``training``, ``evaluation``; ``lessons``; ``cli``. Every part loads when it is first
used, so that importing the package costs nothing: ``gcgkit.metrics.cdc(...)`` works after ``import gcgkit``.
"""

from importlib import import_module
from importlib.util import find_spec

__version__ = "0.1.0"

_CLASSES = {"GCGPipeline": "pipeline", "GCGOutput": "pipeline", "GuidedControlNet": "control"}
__all__ = [*_CLASSES, "attention", "baselines", "color", "guidance", "keyframes", "metrics", "srg", "video"]


def __getattr__(name: str):
    if name in _CLASSES:
        return getattr(import_module(f".{_CLASSES[name]}", __name__), name)
    # Any other module and package works alike; a folder of data, such as ``weights``, is neither.
    if not name.startswith("_") and (found := find_spec(f"{__name__}.{name}")) is not None and found.has_location:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module 'gcgkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
