"""The settings for drawing training samples (§4.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal


@dataclass(frozen=True)
class DataConfig:
    """Settings for drawing training samples."""

    sets: Annotated[tuple[str, ...], "prepared sets to train on, folders of the data folder"]
    exclude: Annotated[tuple[str, ...], "clips of these sets to leave out; validation clips are always left out"]
    height: Annotated[int, "of the training frames, in pixels"]
    width: Annotated[int, "of the training frames, in pixels"]
    crops: Annotated[bool, "random crops of clips, zoomed and mirrored; photographs always get them"]
    targets_per_clip: Annotated[int, "targets of each clip and epoch, spread over it; 0 for every frame once"]
    targets_per_photo: Annotated[int, "targets of each photograph and epoch, each a different crop"]
    window: Annotated[int, "largest distance of references from the target, in frames; 0 for the whole clip"]
    mask: Annotated[float, "share of samples under the reference mask"]
    single: Annotated[float, "share with one reference frame"]
    grid: Annotated[float, "share with a grid of four"]
    unrelated: Annotated[float, "share with a frame of another clip; none in the paper"]
    captions: Annotated[Literal["file", "own"], "the set's captions, or new ones of each sample's own colours"]
    strip_colors: Annotated[float, "share of masked samples whose caption loses its colour words"]
    drop_text: Annotated[float, "share of samples without a caption"]
    recolor: Annotated[float, "share of samples turned to any hue; the others vary slightly"]
    recolor_masked: Annotated[bool, "turn hues under the mask too, where nothing shows the new colours"]
    strip_recolored: Annotated[bool, "remove colour words, now wrong, from the file's captions of turned samples"]
    cache_variants: Annotated[int, "HSV variants of each clip that are encoded once, before training; 0 for none"]
    cache_photo_variants: Annotated[int, "the same for each photograph; 0 for as many as for a clip"]
    cache_views: Annotated[int, "frames of each variant in the cache"]
    cache_seed: Annotated[int, "of the cache's draws, so that runs with other seeds share it"]
