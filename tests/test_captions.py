"""Colour names and captions against hand-made pictures whose colours are known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gcgkit.captions import COLOR_WORDS, WORD_RGB, caption, main_colors, name_colors, remove_color_words, thing_of

PAINT = {**WORD_RGB, "black": (0, 0, 0), "gray": (128, 128, 128), "white": (255, 255, 255)}


def flat(word: str, height: int = 24, width: int = 32) -> np.ndarray:
    return np.full((height, width, 3), PAINT[word], np.uint8)


def stripes(*words: str) -> np.ndarray:
    """Vertical stripes of equal width, 12 columns each."""
    return np.concatenate([flat(word, 24, 12) for word in words], 1)


def words_in(text: str) -> set[str]:
    return {word for word in text.replace(",", " ").split() if word in COLOR_WORDS}


@pytest.mark.parametrize("word", COLOR_WORDS)
def test_each_color_is_named_by_its_word(word):
    named = name_colors(flat(word, 3, 5))
    assert named.shape == (3, 5)
    assert {COLOR_WORDS[i] for i in named.ravel()} == {word}


@pytest.mark.parametrize(
    ("rgb", "word"),
    [
        ((20, 120, 40), "green"),  # grass
        ((135, 206, 235), "blue"),  # a clear sky
        ((250, 250, 245), "white"),
        ((200, 30, 30), "red"),
        ((90, 60, 30), "brown"),  # bark
        ((255, 192, 203), "pink"),
        ((20, 20, 22), "black"),
        ((128, 0, 128), "purple"),
    ],
)
def test_everyday_colors(rgb, word):
    assert COLOR_WORDS[name_colors(np.uint8([[rgb]]))[0, 0]] == word


def test_each_pixel_has_its_own_name():
    picture = np.uint8([[PAINT["red"], PAINT["blue"]], [PAINT["green"], PAINT["white"]]])
    assert [[COLOR_WORDS[i] for i in row] for row in name_colors(picture)] == [["red", "blue"], ["green", "white"]]


def test_main_colors_widest_first():
    assert main_colors(stripes("blue", "red", "blue")) == ["blue", "red"]
    assert main_colors(stripes("red", "red", "blue")) == ["red", "blue"]
    assert main_colors(stripes("blue", "red", "green", "yellow", "cyan", "purple")) == []  # none has a fifth
    assert main_colors(stripes("green", "red", "green", "blue"), least=0.3) == ["green"]
    assert main_colors(stripes("green", "red", "blue"), most=3) == ["red", "green", "blue"]  # a tie: order of words


def test_neutral_colors_count_little():
    assert main_colors(stripes("white", "white", "red")) == ["red", "white"]
    assert main_colors(stripes("gray", "red")) == ["red"]
    assert main_colors(flat("black")) == ["black"]


@pytest.mark.parametrize(
    ("name", "thing"),
    [
        ("n02165456_ladybug", "ladybug"),
        ("n01608432_kite_bird", "kite bird"),
        ("drift-straight", "drift straight"),
        ("tuneavideo_car-turn", "car turn"),
        ("tokenflow_wolf", "wolf"),
        ("100075", ""),
    ],
)
def test_thing_of(name, thing):
    assert thing_of(name) == thing


def captions_of(picture: np.ndarray, thing: str, count: int = 60) -> set[str]:
    return {caption(picture, thing, np.random.default_rng(seed)) for seed in range(count)}


def test_captions_of_one_color():
    forms = captions_of(flat("red"), "car")
    assert forms == {"red car, red background", "red", "red car", "a photo of a car, red"}


def test_middle_and_background():
    picture = np.tile(flat("green"), (2, 2, 1))  # 48 x 64
    picture[12:36, 16:48] = PAINT["red"]
    forms = captions_of(picture, "bus")
    assert "red bus, green background" in forms
    assert "green bus, red background" not in forms
    assert "a photo of a bus, green and red" in forms


def test_without_colors_or_thing():
    quilt = np.concatenate([flat(word, 4, 32) for word in ("red", "orange", "yellow", "green", "cyan", "blue")])
    plain = {text for text in captions_of(quilt, "quilt") if "background" not in text}
    assert plain == {"quilt"}  # six colours with a sixth each: none is named
    assert "a photo of a picture, blue" in captions_of(flat("blue"), "")


def test_same_seed_same_caption():
    picture = stripes("blue", "red")
    assert len({caption(picture, "x", np.random.default_rng(3)) for _ in range(5)}) == 1


@given(
    cells=st.lists(st.sampled_from(sorted(PAINT)), min_size=1, max_size=16),
    shape=st.tuples(st.integers(4, 40), st.integers(4, 40)),
    seed=st.integers(0, 1000),
)
def test_captions_invent_no_color(cells, shape, seed):
    places = np.random.default_rng(seed).integers(len(cells), size=shape)
    picture = np.uint8([PAINT[word] for word in cells])[places]
    text = caption(picture, "car", np.random.default_rng(seed))
    assert words_in(text) <= {cells[i] for i in np.unique(places)}
    assert remove_color_words(text) in ("car", "a photo of a car", "")


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("red and blue car, green background", "car"),
        ("a photo of a ladybug, red and green", "a photo of a ladybug"),
        ("red car", "car"),
        ("red", ""),
        ("red and black", ""),
        ("", ""),
        ("a car", "a car"),
        ("Grey Goose", "goose"),
        ("black and white photo", "photo"),
        ("red, green and blue balls", "balls"),
        ("red, green, and blue balls", "balls"),
        ("a car and a red bus", "a car and a bus"),
        ("red and shiny car", "shiny car"),
        ("a dog, brown and white", "a dog"),
        ("cats and dogs", "cats and dogs"),
        ("a redshank on a greenhouse", "a redshank on a greenhouse"),  # no colour words, though they hold some
        ("light-blue sky over a blue-green sea", "sky over a sea"),
        ("a red-haired woman", "a woman"),
        ("black-and-white film", "film"),
        ("a t-shirt", "a t-shirt"),
    ],
)
def test_remove_color_words(text, left):
    assert remove_color_words(text) == left


@given(st.text(alphabet="abz ,-", max_size=30), st.lists(st.sampled_from([*COLOR_WORDS, "grey"]), max_size=5))
def test_no_color_word_is_left(text, words):
    mixed = " ".join(part + " " + word for part, word in zip([text, "and", ",", "a", ""], words, strict=False))
    left = remove_color_words(mixed)
    assert not words_in(left) and "grey" not in left.split()
    assert remove_color_words(left) == left
