"""Adapters for the compared systems: each one's run on a folder of frames, and the way back of its frames (`setup`)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ... import video
from ...data.footage import stretch
from ...video.images import write_frames

RUNNERS = Path(__file__).parent / "runners"
_CROP = (16, 9)  # DExemplar's shape


@dataclass(frozen=True)
class Job:
    """A run of a system's script: launcher options, script, arguments, folder, and a collector of the frames."""

    folder: Path
    launcher: list[str]
    script: str
    arguments: list[str]
    collect: Callable[[], Iterator[np.ndarray]]


def _deoldify(repository: Path, frames: Path, exemplar, work: Path, cpu: bool) -> Job:
    (repository / "models").mkdir(exist_ok=True)
    arguments = [str(frames), str(work / "out"), *(["--cpu"] if cpu else [])]
    script = str(RUNNERS / "deoldify_frames.py")
    return Job(repository, ["--stand-in", "no-trunk-download"], script, arguments, lambda: _images(work / "out"))


def _tcvc(repository: Path, frames: Path, exemplar, work: Path, cpu: bool) -> Job:
    (work / "in").mkdir()
    shutil.copytree(frames, work / "in" / "clip")
    launcher = [
        "--stand-in", "flownet2-extensions",
        "--replace", '"/data2/yhliu/old_film"', repr(str(work / "in")),
        "--replace", '"../results/TCVC_{}_interlen{}_output"', repr(str(work / "out")),
        "--replace", 'os.environ["CUDA_VISIBLE_DEVICES"] = "6"', "pass",
    ]  # fmt: skip
    script = "test_TCVC_onesampling_noGT.py"
    return Job(repository / "codes", launcher, script, [], lambda: _images(work / "out" / "clip"))


def _vcgan(repository: Path, frames: Path, exemplar, work: Path, cpu: bool) -> Job:
    arguments = ["--videopath", str(frames), "--savepath", f"{work / 'out'}{os.sep}"]
    script = "test_model_second_stage_by_folder.py"
    launcher = ["--stand-in", "vcgan-correlation"]
    return Job(repository / "train", launcher, script, arguments, lambda: _images(work / "out"))


def _deepremaster(repository: Path, frames: Path, exemplar, work: Path, cpu: bool) -> Job:
    video.write(work / "clip.mkv", video.iterate(frames), video.IMAGE_FPS, lossless=True)
    write_frames([exemplar], work / "reference")
    launcher = [
        "--replace", "outputdir = 'tmp/'", f"outputdir = {str(work / 'tmp') + os.sep!r}",
        "--replace", "shutil.rmtree(outputdir)", "None",  # it holds the PNG frames
        "--replace", "subprocess.call( cmd, shell=True )", "None",  # ffmpeg, which makes H.264 of them
    ]  # fmt: skip
    arguments = ["--input", str(work / "clip.mkv"), "--reference_dir", str(work / "reference")]
    arguments += [] if cpu else ["--gpu"]
    return Job(repository, launcher, "remaster.py", arguments, lambda: _images(work / "tmp" / "output"))


def _deepexemplar(repository: Path, frames: Path, exemplar, work: Path, cpu: bool) -> Job:
    height, width = exemplar.shape[:2]
    scale = max(-(-width // _CROP[0]), -(-height // _CROP[1]))
    padded = (scale * _CROP[1], scale * _CROP[0])
    write_frames((_pad(frame, padded) for frame in video.iterate(frames)), work / "in" / "clip")
    write_frames([_pad(exemplar, padded)], work / "reference")
    launcher = [
        "--replace", "save_frames(IA_predict_rgb, output_path, index)",
        'save_frames(IA_predict_rgb, output_path, image_name=str(index).zfill(5) + ".png")',
    ]  # fmt: skip
    arguments = ["--clip_path", str(work / "in" / "clip"), "--ref_path", str(work / "reference")]
    arguments += ["--output_path", str(work / "out")]
    collect = lambda: (  # noqa: E731
        _cut(stretch(frame, padded), (height, width)) for frame in _images(work / "out" / "clip_00000")
    )
    return Job(repository, launcher, "test.py", arguments, collect)


def _bistnet(repository: Path, frames: Path, exemplar, work: Path, cpu: bool) -> Job:
    shutil.copytree(frames, work / "in" / "clip")
    write_frames([exemplar, exemplar], work / "reference" / "clip")
    # One of the modules that it imports reads the command line too and knows none of these options.
    launcher = ["--stand-in", "mmediting"]
    # Its segmentation refuses a file without weights; with random ones (`setup.run`) none is named to it.
    begin, resume = "model = Tester(configer)", "configer.get('network', 'resume')"
    forget = f"os.path.exists({resume}) or configer.update(['network', 'resume'], None)"
    launcher += ["--replace", begin, f"{forget}; {begin}"]
    for part, place in (("input", "in"), ("ref", "reference"), ("output", "out")):
        launcher += ["--replace", f'"../demo_dataset2/{part}"', repr(str(work / place))]
    folder = repository / "BiSTNet-NTIRE2023"
    return Job(folder, launcher, "test_BiSTNet.py", [], lambda: _images(work / "out" / "clip"))


ADAPTERS: dict[str, Callable[..., Job]] = {
    "deoldify": _deoldify,
    "tcvc": _tcvc,
    "vcgan": _vcgan,
    "deepremaster": _deepremaster,
    "deepexemplar": _deepexemplar,
    "bistnet": _bistnet,
}


def _images(folder: Path) -> Iterator[np.ndarray]:
    """Return the PNG frames of a folder in order of their names."""
    paths = sorted(folder.glob("*.png"))
    if not paths:
        raise ValueError(f"{folder} holds no frames.")
    for path in paths:
        yield from video.iterate(path)


def _pad(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Repeat the edges of a frame, equally on both sides, up to `size` (height, width)."""
    down, right = size[0] - frame.shape[0], size[1] - frame.shape[1]
    sides = (down // 2, down - down // 2, right // 2, right - right // 2)
    return cv2.copyMakeBorder(frame, *sides, cv2.BORDER_REPLICATE)


def _cut(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Undo `_pad`."""
    top, left = (frame.shape[0] - size[0]) // 2, (frame.shape[1] - size[1]) // 2
    return frame[top : top + size[0], left : left + size[1]]
