"""Profiles: the weights that a name stands for, their folder, and their digest.

"mini" and its ablation variants are in the package; the paper's own model is put together in `paper`.
"""

import hashlib
import re
from pathlib import Path

from .utils.files import folder_sha256
from .utils.hub import pipeline_parts

WEIGHTS = Path(__file__).parent / "weights"
# Bundled profiles, and the one whose parts each shares: the ablation variants of §4.5 are a copy each.
LENDERS = {"mini": None, "mini-attention": "mini", "mini-concat": "mini"}
BUNDLED = tuple(LENDERS)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def resolve(name: str | Path) -> str:
    """Source for ``from_pretrained``: a bundled profile's folder, the given folder, or the hub id as it is.

    A folder of that name comes first. Raises FileNotFoundError for a name that is none of these or a folder without a
    pipeline, and ValueError for a folder that holds another pipeline.
    """
    name = str(name)
    folder = Path(name)
    if name in BUNDLED and not (folder / "model_index.json").is_file():
        folder = WEIGHTS / name
        if not folder.is_dir():
            raise FileNotFoundError(f"The weights of profile '{name}' are not in this installation ({_choices()}).")
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise FileNotFoundError(f"The folder '{folder}' holds no model_index.json: save a pipeline there first.")
        pipeline_parts(f"The folder '{folder}'", folder / "model_index.json", "GCGPipeline")
        return str(folder)
    if _HUB_ID.fullmatch(name) and not name.startswith("."):
        return name
    raise FileNotFoundError(f"'{name}' is neither a profile ({_choices()}) nor a folder nor a hub id (owner/name).")


def available() -> list[str]:
    """Names of the profiles whose weights are in this installation."""
    return [name for name in BUNDLED if (WEIGHTS / name / "model_index.json").is_file()]


def lender(folder: str | Path) -> str | None:
    """The bundled profile that a bundled profile's folder takes its missing parts from; None for any other."""
    folder = Path(folder)
    return LENDERS.get(folder.name) if folder == WEIGHTS / folder.name else None


def folders(name: str | Path) -> list[Path]:
    """The folders that a profile's parts lie in, its own first; none for a hub id. Raises as ``resolve`` does."""
    found, source = [], resolve(name)
    while source is not None and Path(source).is_dir():
        found.append(Path(source))
        lending = lender(source)
        source = lending and str(WEIGHTS / lending)
    return found


def weights_digest(profile: str | Path) -> str:
    """SHA-256 over the names and digests of a profile's files; "hub:..." for what lies elsewhere."""
    digests = [folder_sha256(place, (".safetensors", ".json", ".txt", ".bin")) for place in folders(profile)]
    if len(digests) < 2:
        return digests[0] if digests else f"hub:{profile}"
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()  # with the parts that it shares


def _choices() -> str:
    return "available: " + (", ".join(available()) or "none")
