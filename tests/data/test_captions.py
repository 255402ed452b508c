"""Colour names and captions against hand-made pictures whose colours are known; caption files and BLIP at toy size."""

import json
import re

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gcgkit.data import captions
from gcgkit.data import prepare as preparation
from gcgkit.data.color_words import remove_color_words
from gcgkit.data.naming import COLOR_WORDS, WORD_RGB, caption, main_colors, name_colors, thing_of

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
        ("cotracker_apple", "apple"),
        ("sam2_02_cups", "cups"),
        ("torchcodec_nasa_13013", ""),
        ("nasa_rocket", "nasa rocket"),
        ("cotrackers", "cotrackers"),
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


@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (1, 50), (50, 2), (3, 40)])
def test_captions_of_tiny_frames(shape):
    frame = np.full((*shape, 3), PAINT["red"], np.uint8)
    assert {caption(frame, "car", np.random.default_rng(seed)) for seed in range(40)} == {
        "red", "red car", "a photo of a car, red",
    }  # fmt: skip


DECISIONS = {
    "names": [
        ("red and blue car, green background", "car"),
        ("a photo of a ladybug, red and green", "a photo of a ladybug"),
        ("red car", "car"),
        ("red", ""),
        ("red and black", ""),
        ("", ""),
        ("a car", "a car"),
        ("Grey Goose", "goose"),
        ("black and white photo", "photo"),
        ("a turquoise pool and a beige wall", "a pool and a wall"),
        ("a man in a khaki jacket", "a man in a jacket"),
        ("a girl with blonde hair", "a girl with hair"),
        ("a monochrome photo of a train", "a photo of a train"),
        ("a silver car", "a car"),
    ],
    "forms": [
        ("a reddish brown horse", "a horse"),
        ("greenish water", "water"),
        ("the grass is greener", "the grass"),
        ("the whitest teeth", "the teeth"),
        ("a blackened pan and yellowing leaves", "a pan and leaves"),
        ("reds and blues of a sunset", "of a sunset"),
        ("an orangey sunset", "a sunset"),
    ],
    "compounds": [
        ("light-blue sky over a blue-green sea", "sky over a sea"),
        ("a red-haired woman", "a woman"),
        ("black-and-white film", "film"),
        ("a dark-blue car", "a car"),
        ("an off-white wall", "a wall"),
        ("a black/white photo", "a photo"),
        ("a darkblue bus", "a bus"),
        ("a salmon-coloured wall", "a wall"),
        ("a t-shirt", "a t-shirt"),
        ("a dark-haired man and a light-haired woman", "a dark-haired man and a light-haired woman"),
        ("a chocolate-chip cookie", "a chocolate-chip cookie"),
    ],
    "shades": [
        ("a light blue car", "a car"),
        ("a very dark green field", "a field"),
        ("a navy blue suit", "a suit"),
        ("a bright red bus", "a bus"),
        ("a rose gold ring", "a ring"),
        ("a snow white rabbit", "a rabbit"),
        ("a baby blue dress", "a dress"),
        ("a baby black bear", "a baby bear"),
        ("a dark room with a bright window", "a dark room with a bright window"),
        ("a traffic light red and green", "a traffic light"),
    ],
    "things": [
        ("salmon on a plate", "salmon on a plate"),
        ("a salmon coloured wall", "a wall"),
        ("chocolate cake", "chocolate cake"),
        ("a chocolate brown horse", "a horse"),
        ("a rose in a vase", "a rose in a vase"),
        ("a lime green shirt and a lime", "a shirt and a lime"),
        ("a bronze statue", "a bronze statue"),
        ("a bird that is red in colour", "a bird"),
    ],
    "orange": [
        ("a glass of orange juice", "a glass of orange juice"),
        ("an orange cat", "a cat"),
        ("an orange on a plate", "an orange on a plate"),
        ("a bowl of oranges and an orange", "a bowl of oranges and an orange"),
        ("an orange and a banana", "an orange and a banana"),
        ("an orange and white cat", "a cat"),
        ("a car, orange", "a car"),
        ("orange slices and orange juice", "orange slices and orange juice"),
    ],
    "fixed names": [
        ("a gold medal", "a gold medal"),
        ("a red panda", "a red panda"),
        ("the golden gate bridge", "the golden gate bridge"),
        ("a golden retriever", "a retriever"),
        ("a black bear", "a bear"),
        ("red wine and white bread", "wine and bread"),
        ("a us navy ship", "a us navy ship"),
    ],
    "inside words": [
        ("a redshank on a greenhouse", "a redshank on a greenhouse"),
        ("a blackbird in a redwood", "a blackbird in a redwood"),
        ("blueberries and greenery", "blueberries and greenery"),
        ("a greyhound", "a greyhound"),
        ("seared tuna, bored and tired", "seared tuna, bored and tired"),
        ("a colorful, multicolored kite", "a colorful, multicolored kite"),
    ],
    "tidying": [
        ("red, green and blue balls", "balls"),
        ("a red, white, and blue flag", "a flag"),
        ("a car and a red bus", "a car and a bus"),
        ("red and shiny car", "shiny car"),
        ("a red and shiny car", "a shiny car"),
        ("a dog, brown and white", "a dog"),
        ("cats and dogs", "cats and dogs"),
        ("the sky is blue and the grass is green", "the sky and the grass"),
        ("cats are black and dogs are white", "cats and dogs"),
        ("a man dressed in red", "a man dressed"),
        ("a woman in white and a man", "a woman and a man"),
        ("the red and the blue car", "the car"),
        ("shades of blue", "shades"),
        ("a red apple", "an apple"),
        ("a red car's wheel.", "a car's wheel."),
        ("a group of people in red and white uniforms", "a group of people in uniforms"),
        ("a dress in red, blue sky", "a dress, sky"),
        ('a "green" (red) door', "a door"),
    ],
}


@pytest.mark.parametrize(
    ("text", "left"), [pytest.param(*pair, id=f"{kind}: {pair[0]}") for kind, all in DECISIONS.items() for pair in all]
)
def test_remove_color_words(text, left):
    assert remove_color_words(text) == left
    assert remove_color_words(left) == left


def test_survey_of_color_names():
    """949 names that people gave to colours (the XKCD survey): no basic colour word is left of any, as one word."""
    colors = pytest.importorskip("matplotlib.colors")
    basic = re.compile(r"red|orange|yellow|green|blue|purple|pink|brown|black|white|gr[ae]y")
    names = [name.removeprefix("xkcd:") for name in colors.XKCD_COLORS]
    left = {name: remove_color_words(f"a {name} car") for name in names}
    plants = {"wintergreen", "evergreen", "blueberry"}  # and a finger:
    assert [n for n in names if basic.search(left[n]) and n not in plants | {"pinky"}] == []
    whole = [n for n in names if left[n] == "a car"]
    assert len(whole) > 580  # the rest are things (lichen, mustard) and opinions (an ugly blue)


@given(st.text(alphabet="abz ,-", max_size=30), st.lists(st.sampled_from([*COLOR_WORDS, "grey"]), max_size=5))
def test_no_color_word_is_left(text, words):
    mixed = " ".join(part + " " + word for part, word in zip([text, "and", ",", "a", ""], words, strict=False))
    left = remove_color_words(mixed)
    assert not words_in(left) and "grey" not in left.split()
    assert remove_color_words(left) == left


# --- caption files ----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """A prepared folder: "red" of 70 frames, "blue" of 5, each frame a little darker than the one before."""
    sources = []
    for name, count in (("red", 70), ("blue", 5)):
        (tmp_path / name).mkdir()
        for i in range(count):
            shade = (np.uint8([[PAINT[name]]]) * (1 - i / 200)).astype(np.uint8)
            cv2.imwrite(str(tmp_path / name / f"{i:05d}.png"), np.tile(shade, (16, 24, 1))[..., ::-1])
        sources.append(preparation.Source(name, tmp_path / name))
    preparation.prepare(sources, tmp_path / "set", size=(16, 24), workers=1)
    return tmp_path / "set"


class Counting:
    """A captioner that tells which frames it was shown."""

    def __init__(self):
        self.batches = []

    def __call__(self, frames, clips):
        self.batches.append([(clip, int(frame[0, 0].max())) for frame, clip in zip(frames, clips, strict=True)])
        return [f"{clip} {frame[0, 0].max()}" for frame, clip in zip(frames, clips, strict=True)]


def brightness(name, index):
    return int((np.float64(255) * (1 - index / 200)).astype(np.uint8))


def test_sampled_frames_in_batches_and_never_twice(folder):
    captioner = Counting()
    path = captions.caption_folder(folder, captioner, every=30, batch=3)
    wanted = [("blue", 0), ("red", 0), ("red", 30), ("red", 60)]
    shown = [(clip, brightness(clip, i)) for clip, i in wanted]
    assert path == folder / "captions.jsonl" and captioner.batches == [shown[:3], shown[3:]]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    source = {"source": "a captioner, true colours"}
    assert lines == [{"clip": c, "frame": i, "caption": f"{c} {brightness(c, i)}", **source} for c, i in wanted]
    before = path.read_bytes()
    captions.caption_folder(folder, captioner, every=30)
    assert len(captioner.batches) == 2 and path.read_bytes() == before  # a second run costs nothing
    captions.caption_folder(folder, captioner, every=35)
    assert captioner.batches[2:] == [[("red", brightness("red", 35))]]


def test_edits_by_hand_stay(folder):
    path = captions.caption_folder(folder, Counting())
    lines = path.read_text().splitlines()
    edited = [lines[0].replace("blue 255", "grüne Wiese"), "", *lines[2:]]
    path.write_text("\n".join(edited), encoding="utf-8")  # an editor that ends without an end of line
    captioner = Counting()
    captions.caption_folder(folder, captioner)
    assert captioner.batches == [[("red", 255)]]
    assert captions.read_captions(path) == {
        "blue": {0: "grüne Wiese"},
        "red": {0: "red 255", 30: f"red {brightness('red', 30)}", 60: f"red {brightness('red', 60)}"},
    }


def test_broken_run_goes_on(folder):
    path = captions.caption_folder(folder, Counting(), path=folder / "whole.jsonl")
    whole = path.read_bytes()
    for cut in (len(whole) - 1, len(whole) - 20, len(whole) // 2, 3):
        part = folder / f"part{cut}.jsonl"
        part.write_bytes(whole[:cut])
        assert captions.read_captions(part).items() <= captions.read_captions(path).items() or cut > 100
        captions.caption_folder(folder, Counting(), path=part)
        assert captions.read_captions(part) == captions.read_captions(path)
        assert sorted(part.read_bytes().splitlines()) == sorted(whole.splitlines())


def test_gray_frames_for_the_captioner(folder):
    seen = []
    captions.caption_folder(folder, lambda frames, clips: seen.extend(frames) or [""] * len(frames), gray=True)
    expected = {round(0.299 * 255), round(0.114 * 255)}  # BT.601 luma of pure red and blue
    assert {int(frame[0, 0, 0]) for frame in (seen[0], seen[1])} == expected
    assert all(np.array_equal(frame[..., 0], frame[..., c]) for frame in seen for c in (1, 2))


def test_prompts_are_the_first_captions_with_their_source(folder, tmp_path):
    def words(frames, clips):
        return [f"a red {clip} in frame {len(clips)}" for clip in clips]

    words.source = "by rule"
    captions.caption_folder(folder, words, gray=True, strip_colors=True)
    expected = {clip: remove_color_words(f"a red {clip} in frame 4") for clip in ("blue", "red")}
    for path in (folder, folder / "captions.jsonl"):
        assert captions.read_prompts(path) == (expected, "by rule, gray frames, colour words removed")
    with (folder / "captions.jsonl").open("a", encoding="utf-8") as file:  # a later line for a frame counts
        file.write('{"clip": "red", "frame": 0, "caption": "mine"}\n')
    prompts, source = captions.read_prompts(folder)
    assert prompts["red"] == "mine" and source.startswith("by rule, ") and source.endswith("names no source")
    one = tmp_path / "one.jsonl"
    one.write_text('{"clip": "a", "frame": 30, "caption": "x"}', encoding="utf-8")
    assert captions.read_prompts(one)[0] == {"a": "x"}
    by_hand = tmp_path / "words.json"
    by_hand.write_text('{"a": "red ants",\n "b": ""}', encoding="utf-8")
    assert captions.read_prompts(by_hand) == ({"a": "red ants", "b": ""}, "the file words.json")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"a": 1}', '{"a": ["x"]}'])
def test_a_file_without_prompts_is_refused(tmp_path, text):
    (tmp_path / "words.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="words.json holds no prompts: write lines"):
        captions.read_prompts(tmp_path / "words.json")
    with pytest.raises(FileNotFoundError, match="nowhere.jsonl does not exist"):
        captions.read_prompts(tmp_path / "nowhere.jsonl")


def test_colours_are_not_named_from_gray_frames(folder):
    with pytest.raises(ValueError, match="gray frames show no colours"):
        captions.caption_folder(folder, captions.ColorCaptions(), gray=True)
    assert not (folder / "captions.jsonl").exists()


def test_lines_that_cannot_be_read_are_named(tmp_path):
    path = tmp_path / "captions.jsonl"
    good = '{"clip": "a", "frame": 0, "caption": "x"}\n'
    for bad in (
        "nonsense",
        "[]",
        '{"clip": "a"}',
        '{"clip": "a", "frame": "0", "caption": "x"}',
        '{"clip": "a", "frame": -1, "caption": "x"}',
    ):
        path.write_text(good + bad + "\n" + good)
        with pytest.raises(ValueError, match=r"captions\.jsonl, line 2, is not of the form"):
            captions.read_captions(path)
    path.write_text(good + good.replace("x", "y"))
    assert captions.read_captions(path) == {"a": {0: "y"}}  # the later line counts
    assert captions.read_captions(tmp_path / "absent") == {}


def test_nearest_caption():
    known = {"a": {0: "zero", 30: "thirty", 61: "sixty-one"}}
    found = [captions.nearest_caption(known, "a", i) for i in (0, 15, 16, 45, 46, 500)]
    assert found == ["zero", "zero", "thirty", "thirty", "sixty-one", "sixty-one"]
    assert captions.nearest_caption(known, "b", 3) == ""


def test_sampled_frames():
    assert captions.sampled_frames(61, 30) == [0, 30, 60]
    assert captions.sampled_frames(1) == [0] and captions.sampled_frames(0) == []
    with pytest.raises(ValueError, match="every must be at least 1"):
        captions.sampled_frames(5, 0)


def test_color_captions_need_no_weights(folder):
    path = captions.caption_folder(folder, captions.ColorCaptions(seed=1))
    found = captions.read_captions(path)
    assert "blue" in found["blue"][0] and "red" in found["red"][30]


@pytest.fixture(scope="module")
def tiny_blip(tmp_path_factory):
    """A BLIP with random weights and 12 words, saved as the hub's are."""
    pytest.importorskip("torch")
    import tiny

    return tiny.blip(tmp_path_factory.mktemp("blip"))


def test_blip_captions_a_batch_as_one_by_one(tiny_blip):
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (24, 40, 3), np.uint8) for _ in range(3)]
    blip = captions.Blip(tiny_blip, length=5)
    together = blip(frames, ["a"] * 3)
    assert together == [blip([frame])[0] for frame in frames]
    assert len(set(together)) == 3 and all(len(text.split()) == 5 for text in together)
    assert {word for text in together for word in text.split()} <= {"a", "red", "car", "dog", "on", "grass", "the"}


def test_blip_that_is_not_here_names_the_command(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"run python data_scripts/weights\.py blip"):
        captions.Blip(tmp_path)([np.zeros((8, 8, 3), np.uint8)])
