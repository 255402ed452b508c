"""Figure 3: automatic colouring without any given colour, against classical methods with one coloured frame.

The classical baselines cannot guess colours: they get ours of the first frame, and carry or transfer it. The compared
systems join where their frames are.
"""

from __future__ import annotations

import studio

from gcgkit import baselines
from gcgkit.lessons import plots


def draw(maker: studio.Studio) -> plots.Picture:
    """Draw two clips side by side; rows: gray, systems, transfer, flow, ours, truth."""
    rows: dict[str, dict] = {}
    for shot in maker.shots:
        gray, ours = maker.gray(shot), maker.from_words(shot, studio.PROMPTS[shot][0])
        own = {"gray input": gray, **maker.systems(shot)}
        own["classical baseline: global transfer of our frame 0"] = baselines.global_transfer(gray, ours[0])
        own["classical baseline: flow carries our frame 0"] = baselines.propagate_by_flow(gray, ours[0])
        own |= {"ours, from a prompt": ours, "true colours": maker.truth(shot)}
        for label, frames in own.items():
            rows.setdefault(label, {})[shot] = frames
    prompts = " and ".join(f'"{studio.PROMPTS[shot][0]}"' for shot in maker.shots)
    text = (
        "Figure 3. Automatic colouring: no row but the last knows a true colour. Prompts, left and right: "
        f"{prompts}. The two classical baselines start from our own first frame."
    )
    return studio.two_clips(maker, rows, 3, text)[0]
