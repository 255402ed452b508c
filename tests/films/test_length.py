"""A long film in one job: 10,000 frames and 200 shots, with a colouring that takes no time in the model's place.

The stand-ins replace the four calls by which `films.shot` colours; the job's own code is what is measured.
"""

import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
from test_job import PROCESSES

from gcgkit import video
from gcgkit.films import batch, shots
from gcgkit.films.folder import JobFolder
from gcgkit.films.job import Options
from gcgkit.films.status import report
from gcgkit.video import film

LENGTH = 50  # frames of a shot


def picture(number: int) -> np.ndarray:
    """Gray frame of a film ``(32, 64)`` that tells its number."""
    rows, columns = np.mgrid[:32, :64]
    frame = (40 + 2 * ((columns + number) % 64) + rows).astype(np.uint8)
    frame[:8, :8] = 60 + number // LENGTH % 100
    return frame


def colored(gray: np.ndarray, before: int) -> np.ndarray:
    """A colouring of a frame that depends on the frame coloured before it, too: ``(H, W, 3)``."""
    return np.stack([gray, 255 - gray, np.full_like(gray, before % 251)], axis=-1)


class Coloring:
    """In the place of `stages.Run`."""

    def __init__(self, pipe, size, settings, generator):
        self.settings, self.encode, self.seed = settings, None, 0

    def reference(self, number, gray, frame):
        return SimpleNamespace(frame=number)

    def references(self, numbers, grays, frames):
        return [self.reference(n, None, None) for n in numbers]


def work(source: Path, out: Path, listed: Path, model: Path, stop: int, memory, restart) -> None:
    """Colour a film in a process of its own; end it without a word before frame `stop`. Tell memory and restart."""
    import resource  # not on Windows

    from gcgkit.films import shot

    started = time.monotonic()

    def color_frame(run, gray, number, pool):
        if restart.value < 0:
            restart.value = time.monotonic() - started
        if number == stop:
            os._exit(9)
        return colored(gray, pool.past[-1].frame if pool.past else 0), run.reference(number, None, None), None

    shot.Run, shot.color_frame = Coloring, color_frame
    shot.choose_keyframes = lambda local, clip, settings, encode, seed: [0, len(clip) - 1]
    shot.color_jointly = lambda run, grays, numbers, references: ([colored(gray, 0) for gray in grays], None)
    with open(os.devnull, "w") as nowhere:
        sys.stdout = sys.stderr = nowhere
        ladder = SimpleNamespace(pipe=None, run=lambda work, count=1: work(None))
        options = Options(profile=str(model), shots=listed, lossless=True)
        batch.colorize([(source, out)], options, lambda profile, dtype: ladder, batch.Worker())
    memory.value = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(place: Path, model: Path, frames: int, stop: int) -> tuple[Path, int, float]:
    """Colour a film with a stop before a frame; return it, the greatest memory in bytes and the restart in seconds."""
    source, out, listed = place / f"{frames}.mkv", place / f"out{frames}.mkv", place / f"{frames}.csv"
    video.write(source, (np.repeat(picture(n)[..., None], 3, -1) for n in range(frames)), 24, lossless=True)
    shots.write_csv(listed, [shots.Shot(n, n + LENGTH - 1) for n in range(0, frames, LENGTH)])
    memory = PROCESSES.Value("q", 0)
    for goal, code in ((stop, 9), (-1, 0)):
        restart = PROCESSES.Value("d", -1.0)
        process = PROCESSES.Process(target=work, args=(source, out, listed, model, goal, memory, restart))
        process.start()
        process.join()
        assert process.exitcode == code
    return out, memory.value, restart.value


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell a process's memory this way")
def test_ten_thousand_frames_and_two_hundred_shots(tmp_path):
    tiny.pipeline(tmp_path / "source").save_pretrained(tmp_path / "tiny")
    results = {}
    for frames in (1_000, 10_000):
        began = time.monotonic()
        results[frames] = measure(tmp_path, tmp_path / "tiny", frames, frames * 19 // 20 + 7)
        _, memory, restart = results[frames]
        print(f"{frames} frames: {memory / 1e6:.0f} MB, restart {restart:.2f} s, all {time.monotonic() - began:.0f} s")
    out, memory, restart = results[10_000]
    assert memory < 1.1 * results[1_000][1]
    assert restart < 5
    count = 0
    for number, frame in enumerate(film.frames(out)):
        place = number % LENGTH
        before = 0 if place in (0, LENGTH - 1) or place == 1 else number - 1
        np.testing.assert_array_equal(frame, colored(picture(number), before))
        count += 1
    assert count == 10_000
    began = time.monotonic()
    told = report(out)
    assert time.monotonic() - began < 5 and "10,000 of 10,000 (100 %)" in told and "200 of 200 done" in told
    folder = JobFolder.beside(out)
    assert len(folder.done()) == 10_000
