"""Figure 1: one gray clip coloured from different words, and from a coloured frame."""

from __future__ import annotations

import studio

from gcgkit.lessons import plots


def draw(maker: studio.Studio) -> plots.Picture:
    """Draw rows: the gray input, a colouring for each prompt, and one from the true first frame."""
    shot, about = "rabbit", maker.shots["rabbit"]
    rows = {"gray input": maker.gray(shot)}
    for prompt in studio.PROMPTS[shot]:
        rows[f'prompt: "{prompt}"'] = maker.from_words(shot, prompt)
    rows["exemplar: frame 0 in colour"] = maker.from_first(shot)
    picks = studio.spread(about.frames, 4)
    caption = maker.caption(
        "Figure 1. A gray clip coloured from words alone, and from its first frame in colour (green border).", shot
    )
    lines = {label: [frames[i] for i in picks] for label, frames in rows.items()}
    picture, axes = studio.grid(lines, [f"frame {about.numbers[i]}" for i in picks], caption)
    studio.frame_border(axes[-1, 0])
    return picture
