"""Movies in a notebook: what a browser would get is decoded again and compared with the frames that went in."""

import base64
import re

import av
import numpy as np
import pytest

from gcgkit import video
from gcgkit.lessons.movies import WIDTH, Movie


def clip(shade: int, height: int = 60, width: int = 90, count: int = 5) -> np.ndarray:
    """Return frames of one colour each, which change with time."""
    return np.stack([np.full((height, width, 3), (shade, 20 * t, 255 - shade), np.uint8) for t in range(count)])


def decoded(movie: Movie, folder) -> video.Video:
    source = re.search(r'src="data:video/mp4;base64,([^"]+)"', movie._repr_html_())[1]
    path = folder / "movie.mp4"
    path.write_bytes(base64.b64decode(source))
    return video.read(path)


def test_a_page_gets_the_clips_side_by_side(tmp_path):
    film = decoded(Movie({"one": clip(40), "two": clip(200)}, fps=5), tmp_path)
    assert film.frames.shape == (5, 60, 180, 3) and float(film.fps) == 5
    with av.open(tmp_path / "movie.mp4") as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")  # as browsers play
    for t in range(5):
        for part, shade in ((film.frames[t, 30:, :90], 40), (film.frames[t, 30:, 90:], 200)):
            # below the labels, away from the border: H.264 halves the resolution of colour
            np.testing.assert_allclose(part[5:-5, 5:-5].mean((0, 1)), (shade, 20 * t, 255 - shade), atol=4)


def test_gray_clips_of_other_lengths_and_large_frames_are_taken(tmp_path):
    gray = np.linspace(0, 255, 7 * 301 * 1001).reshape(7, 301, 1001).astype(np.uint8)
    film = decoded(Movie({"gray": gray, "coloured": clip(9, 301, 1001, count=4)}), tmp_path)
    assert len(film.frames) == 4
    height, width = film.frames.shape[1:3]
    assert width == WIDTH and height % 2 == 0 and abs(height / width - 301 / 2002) < 0.01


def test_a_reader_without_a_player_sees_a_still(capsys):
    pytest.importorskip("IPython")
    movie = Movie({"one": clip(40), "two": clip(200)}, caption="Two  clips.")
    shown = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("IPython.display.display", lambda what, **options: shown.append(what))
        movie._ipython_display_()
    assert set(shown[0]) == {"text/html", "text/plain"} and shown[0]["text/plain"] == "Two clips."
    kind = next(iter(shown[1]._repr_mimebundle_()[0]))
    assert kind.startswith("image/") and shown[1].caption == "Two clips."


def test_the_still_counts_frames_as_the_film_does():
    still = Movie({"one": clip(40), "two": clip(200)}, picks=(0, 3), first=8).still()
    assert [axes.get_title() for axes in still.axes[:2]] == ["frame 8", "frame 11"]
    np.testing.assert_array_equal(still.axes[1].images[0].get_array()[0, 0], (40, 60, 215))  # of position 3


def test_no_clip_is_refused():
    with pytest.raises(ValueError, match="rows is empty"):
        Movie({})


def test_labels_have_a_rim_as_wide_as_their_letters():
    gray = np.full((2, 60, 300, 3), 128, np.uint8)
    shown = Movie({"the profile's own settings": gray}, columns=1).frames()[0, ..., 0].astype(int)
    bright, dark = (np.flatnonzero(where.any(0)) for where in (shown > 200, shown < 60))
    assert len(bright) > 100
    assert abs(dark[0] - bright[0]) <= 2 and abs(dark[-1] - bright[-1]) <= 2
