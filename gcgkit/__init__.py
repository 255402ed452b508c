"""Video colorization with gated colour-guided diffusion: the kit's library.

Submodules load when they are first used, so that importing the package costs nothing: ``gcgkit.metrics.cdc(...)`` works
after ``import gcgkit``.
"""

from importlib import import_module

__version__ = "0.1.0"

_SUBMODULES = (
    "ablations",
    "archives",
    "attention",
    "baselines",
    "captions",
    "checkpoints",
    "clips",
    "color",
    "colorize_cli",
    "colorwords",
    "commands",
    "compilation",
    "conditioning",
    "configs",
    "contact_sheet",
    "control",
    "dataset",
    "demo",
    "denoiser",
    "disk",
    "doctor",
    "download",
    "draws",
    "efficientnet",
    "evalset",
    "evaluate_cli",
    "evaluation",
    "fakes",
    "film",
    "film_reader",
    "footage",
    "frame_folder",
    "frames",
    "guidance",
    "hosts",
    "job_folder",
    "job_setup",
    "jobs",
    "keyframes",
    "latent_cache",
    "learner",
    "lesson",
    "lesson_runs",
    "loading",
    "many",
    "measures",
    "media",
    "memory",
    "methods",
    "metric_networks",
    "metrics",
    "mini",
    "mini_history",
    "mini_parts",
    "pairs",
    "pipeline",
    "plots",
    "preparation",
    "profiles",
    "provenance",
    "psnr_study",
    "quality",
    "recipes",
    "references",
    "settings",
    "shortcuts",
    "shot_run",
    "shots",
    "solvers",
    "sources",
    "srg",
    "stages",
    "system_jobs",
    "systems",
    "table",
    "table_formats",
    "tensorcolor",
    "toydata",
    "train_cli",
    "train_memory",
    "trainer",
    "training",
    "training_log",
    "vae",
    "validation",
    "video",
    "widgets",
)
_FROM_PIPELINE = ("GCGPipeline", "GCGOutput")
__all__ = ["__version__", *_FROM_PIPELINE, *_SUBMODULES]


def __getattr__(name: str):
    if name in _SUBMODULES:
        return import_module(f".{name}", __name__)
    if name in _FROM_PIPELINE:
        return getattr(import_module(".pipeline", __name__), name)
    raise AttributeError(f"module 'gcgkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
