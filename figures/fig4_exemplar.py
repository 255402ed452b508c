"""Figure 4: colouring from the true first frame, against the classical baselines and the available systems."""

from __future__ import annotations

import studio

from gcgkit import baselines
from gcgkit.lessons import plots


def draw(maker: studio.Studio) -> plots.Picture:
    """Draw two clips side by side; rows: gray, systems, transfer, flow, ours, truth with the exemplar first."""
    rows: dict[str, dict] = {}
    for shot in maker.shots:
        gray, truth = maker.gray(shot), maker.truth(shot)
        own = {"gray input": gray, **maker.systems(shot)}
        own["classical baseline: global transfer"] = baselines.global_transfer(gray, truth[0])
        own["classical baseline: flow propagation"] = baselines.propagate_by_flow(gray, truth[0])
        own["ours, exemplar"] = maker.from_first(shot)
        for label, frames in own.items():
            rows.setdefault(label, {})[shot] = frames
    rows = {f"{label}\n{_scores(maker, own)} dB": own for label, own in rows.items()}
    rows["true colours"] = {shot: maker.truth(shot) for shot in maker.shots}
    text = (
        "Figure 4. Colouring from the true first frame (green border). Decibels: PSNR (rgb) of the frames after the "
        "first, left and right clip."
    )
    picture, axes, columns = studio.two_clips(maker, rows, 3, text)
    for panel, (_, i) in zip(axes[-1], columns, strict=True):
        if i == 0:
            studio.frame_border(panel)
    return picture


def _scores(maker: studio.Studio, own: dict) -> str:
    return " / ".join(f"{maker.psnr(frames, shot):.1f}" for shot, frames in own.items())
