"""Figure 5: ablation of the GCG module (§4.5.1): without CGA and CDGA, with CGA only, and complete.

Ours* and Ours** are models of their own, trained without these parts; they are shown where their weights are, beside a
whole model that was trained as they were. With the profile's own weights the gate can be fixed open, which takes CDGA's
influence away, or shut, which takes the reference's.
"""

from __future__ import annotations

import studio

from gcgkit import profiles
from gcgkit.evaluation import ablations
from gcgkit.lessons import plots

TRAINED = {  # alike, beside the same frozen UNet
    "Ours*: concatenation, own weights": "mini-concat",
    "Ours**: CGA alone, own weights": "mini-attention",
    "whole GCG, trained as these": "mini-frozen",
}
SHUT = "gate held shut"
HELD = {SHUT: ("gate", 0.0), "gate held open (CGA alone)": ("gate", 1.0)}


def draw(maker: studio.Studio) -> plots.Picture:
    """Draw rows: available variants, the whole model, the truth; the last column enlarges the largest difference."""
    shot, rows = "rabbit", {}
    bundled = {label: weights for label, weights in TRAINED.items() if weights in profiles.available()}
    trained = maker.variants or (bundled if maker.profile in profiles.BUNDLED else {})
    for label, weights in trained.items():
        rows[label] = maker.from_first(shot, weights=weights)
    for label, (group, gate) in HELD.items():
        rows[label] = maker.from_first(shot, ablations.Setting(group, label, gate=gate))
    rows["whole GCG, the profile"] = maker.from_first(shot)
    about = maker.shots[shot]
    picks = studio.spread(about.frames, 3)
    colored = {label: frames for label, frames in rows.items() if label != SHUT}  # the box shows where colours differ
    box = studio.largest_difference(colored, picks[-1])
    rows = {f"{label}\n{maker.psnr(frames, shot):.1f} dB": frames for label, frames in rows.items()}
    caption = maker.caption(
        "Figure 5. The GCG module taken apart, colouring from the true first frame. The last column enlarges the part "
        "where the coloured results differ most. Decibels: PSNR (rgb) of the frames after the first.", shot
    )  # fmt: skip
    rows["true colours"] = maker.truth(shot)
    return studio.draw_with_detail(rows, picks, [about.numbers[i] for i in picks], box, caption)
