"""The settings for drawing training samples (§4.1), and the kinds of value that a configuration's fields have."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass


def _split(value: Any) -> Any:
    """Return a list, or text from a command line with commas, as a tuple."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    return tuple(value) if isinstance(value, list) else value


FORM = ConfigDict(extra="forbid", allow_inf_nan=False)
Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Weight = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Pixels = Annotated[int, Field(ge=8)]
Names = Annotated[tuple[str, ...], BeforeValidator(_split)]
Counts = Annotated[tuple[Count, ...], BeforeValidator(_split)]


@dataclass(frozen=True, config=FORM)
class DataConfig:
    """Settings for drawing training samples."""

    sets: Annotated[Names, Field(min_length=1), "prepared sets to train on, folders of the data folder"]
    exclude: Annotated[Names, "clips of these sets to leave out; validation clips are always left out"]
    height: Annotated[Pixels, "of the training frames, in pixels"]
    width: Annotated[Pixels, "of the training frames, in pixels"]
    crops: Annotated[bool, "random crops of clips, zoomed and mirrored; photographs always get them"]
    targets_per_clip: Annotated[CountOrZero, "targets of each clip and epoch, spread over it; 0 for every frame once"]
    targets_per_photo: Annotated[Count, "targets of each photograph and epoch, each a different crop"]
    window: Annotated[CountOrZero, "largest distance of references from the target, in frames; 0 for the whole clip"]
    mask: Annotated[Share, "share of samples under the reference mask"]
    single: Annotated[Share, "share with one reference frame"]
    grid: Annotated[Share, "share with a grid of four"]
    unrelated: Annotated[Share, "share with a frame of another clip; none in the paper"]
    captions: Annotated[Literal["file", "own"], "the set's captions, or new ones of each sample's own colours"]
    strip_colors: Annotated[Share, "share of masked samples whose caption loses its colour words"]
    drop_text: Annotated[Share, "share of samples without a caption"]
    recolor: Annotated[Share, "share of samples turned to any hue; the others vary slightly"]
    recolor_masked: Annotated[bool, "turn hues under the mask too, where nothing shows the new colours"]
    strip_recolored: Annotated[bool, "remove colour words, now wrong, from the file's captions of turned samples"]
    cache_variants: Annotated[
        CountOrZero, "HSV variants of each clip that are encoded once, before training; 0 for none"
    ]
    cache_photo_variants: Annotated[CountOrZero, "the same for each photograph; 0 for as many as for a clip"]
    cache_views: Annotated[int, Field(ge=2), "frames of each variant in the cache"]
    cache_seed: Annotated[CountOrZero, "of the cache's draws, so that runs with other seeds share it"]

    @model_validator(mode="after")
    def _shares(self) -> DataConfig:
        if abs(self.mask + self.single + self.grid + self.unrelated - 1) > 1e-6:
            raise ValueError("data.mask, data.single, data.grid, data.unrelated must add up to 1.")
        return self
