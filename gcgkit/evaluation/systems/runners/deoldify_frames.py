"""Colour a folder of PNG frames with DeOldify's video model, run in the folder of its repository.

    python deoldify_frames.py INPUT OUTPUT [--cpu]

Calls the function that the authors' own loop over a video's frames calls, on PNG instead of the JPEG frames that the
loop makes, so that neither JPEG nor H.264 comes between the model and the result. No watermark.
"""

import argparse
import sys
from pathlib import Path

RENDER_FACTOR = 21  # the authors' own for video


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("input", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--cpu", action="store_true")
    args = parser.parse_args()
    sys.path.insert(0, ".")
    from deoldify import device
    from deoldify.device_id import DeviceId

    device.set(DeviceId.CPU if args.cpu else DeviceId.GPU0)  # before anything of theirs imports torch
    from deoldify.visualize import get_video_colorizer

    colorizer = get_video_colorizer(render_factor=RENDER_FACTOR).vis
    args.output.mkdir(parents=True, exist_ok=True)
    for path in sorted(args.input.glob("*.png")):
        options = {"render_factor": RENDER_FACTOR, "post_process": True, "watermarked": False}
        result = colorizer.get_transformed_image(path, **options)
        result.save(args.output / path.name)


if __name__ == "__main__":
    main()
