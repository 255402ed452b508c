"""Figure 6: ablation of the sliding reference grid (§4.5.2): one reference, or a grid of several."""

from __future__ import annotations

import studio

from gcgkit.evaluation import ablations
from gcgkit.lessons import plots


def draw(maker: studio.Studio) -> plots.Picture:
    """Draw rows: without SRG (only the first keyframe), with SRG, the truth; the last column enlarges a part."""
    shot = "rabbit"
    single = ablations.Setting("srg", "", {"use_srg": False, "single_reference": "first"})
    rows = {"w/o SRG": maker.from_first(shot, single), "w/ SRG": maker.from_first(shot)}
    about = maker.shots[shot]
    picks = studio.spread(about.frames - 1, 3)  # the last frame is a keyframe in both
    box = studio.largest_difference(rows, picks[-1])
    rows = {f"{label}\n{maker.psnr(frames, shot):.1f} dB": frames for label, frames in rows.items()}
    caption = maker.caption(
        "Figure 6. A single reference (the first frame, which shows little of the rabbit) against the sliding "
        "reference grid. The last column enlarges the part where the two differ most. Decibels: PSNR (rgb) of the "
        "frames after the first.", shot
    )  # fmt: skip
    rows["true colours"] = maker.truth(shot)
    return studio.draw_with_detail(rows, picks, [about.numbers[i] for i in picks], box, caption)
