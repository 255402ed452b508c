"""What the texts of notebooks 04 to 07 find in words, against the numbers that their cells printed."""

import re
from pathlib import Path

import nbformat

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"


def notebook(number):
    (path,) = FOLDER.glob(f"{number}_*.ipynb")
    return nbformat.read(path, as_version=4)


def printed(number, pattern):
    """The numbers of the one place in a notebook's printed outputs that a pattern with groups matches."""
    streams = [o.text for cell in notebook(number).cells for o in cell.get("outputs", []) if o.output_type == "stream"]
    (found,) = re.findall(pattern, "\n".join(streams))
    return [float(x) for x in (found if isinstance(found, tuple) else (found,))]


def table(number, head):
    """Rows ``{label: {column: number}}`` of the one table whose head begins with these words; no number is None."""
    outputs = [o.get("data", {}).get("text/markdown", "") for c in notebook(number).cells for o in c.get("outputs", [])]
    (text,) = [text for text in outputs if text.startswith(f"| {head}")]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    number_of = lambda cell: float(cell) if re.fullmatch(r"[-+]?\d+(\.\d+)?", cell) else None  # noqa: E731
    return {line[0]: dict(zip(lines[0][1:], map(number_of, line[1:]), strict=True)) for line in lines[2:]}


def says(number, words):
    """Whether exactly one text of a notebook has these words."""
    texts = [cell.source for cell in notebook(number).cells if cell.cell_type == "markdown"]
    return sum(words in text for text in texts) == 1


def test_the_gate_without_its_extra_token_stays_open_for_a_wrong_reference():
    assert says("04", "Without the extra token, the gate stays open for the wrong reference too")
    wrong, literal = printed("04", r"'wrong, extra token': ([\d.]+), 'wrong, no extra token': ([\d.]+)")
    assert wrong < 0.9 and literal > 0.99


def test_the_gate_lets_a_part_of_a_wrong_reference_through():
    assert says("04", "For the matching reference the gate is open nearly everywhere")
    assert says("04", "*wrong* from *right* only in part")
    matching, wrong, masked = printed("04", r"matching ([\d.]+), wrong ([\d.]+), masked ([\d.]+)")
    assert matching > 0.95 and 0.3 < wrong < 0.9 and masked < 0.02


def test_the_copy_uses_hint_and_image_tokens():
    assert says("04", "moves by more than half of what the whole copy moves it")
    whole = printed("04", r"trained copy: it moves by ([\d.]+)")[0]
    assert printed("04", r"zero: it moves by ([\d.]+)")[0] > whole / 2


def test_a_wrong_reference_is_worse_than_gray_even_with_the_gate():
    assert says("04", "gray alone is better than these wrong colours")
    assert printed("04", r"gray alone: ([\d.]+) dB")[0] > table("04", "reference")["wrong"]["gated, dB"]


def test_keyframes_agree_more_together():
    assert says("05", "In every row of the table, Eq. 8 makes the frames agree more")
    rows = table("05", "spread of the mean colour")
    assert len(rows) == 4 and all(row["together"] < row["each alone"] for row in rows.values())
    assert says("05", "The true clip's own spread is not zero")
    assert printed("05", r"true colours: a spread of ([\d.]+)")[0] > 0.1


def test_measures_of_dissimilarity_agree_on_the_two_ends_alone():
    assert says("05", "Here the three agree on nothing but the two ends")
    assert printed("05", r"frames that all three choose: \[(\d+), (\d+)\]") == [0, 39]


def test_the_papers_settings_work_and_a_grid_that_slides_passes_errors_on():
    assert says("06", "the result is many decibels better than gray")
    assert printed("06", r"the paper's settings, where the grid slides, over gray: ([-+.\d]+) dB")[0] > 5
    assert says("06", "the grid that slides is worse than the grid that keeps its keyframes")
    assert printed("06", r"the one that keeps its keyframes: ([-+.\d]+) dB")[0] < -0.5
    assert says("06", "Here the neighbours did not make the clip steadier")
    warp = [row["flow warp error, 1e-4 (colours 0 to 1)"] for row in table("06", " | PSNR, dB").values()]
    gray, slid, kept, _, truth = warp
    assert slid >= kept and gray < truth


def test_shrunk_tiles_cost_much_and_further_ones_bring_little():
    assert says("06", "the first printed number says that this brings little here")
    assert 0 <= printed("06", r"four references over one: ([-+.\d]+) dB")[0] < 1
    assert printed("06", r"shrunk over full size: ([-+.\d]+) dB")[0] < -3
    psnr = {name: row["PSNR of the hint's colours, dB"] for name, row in table("06", "layout").items()}
    assert says("06", "Square and row are equally good") and abs(psnr["2 x 2"] - psnr["1 x 4"]) < 0.1


def test_the_attention_fetches_the_colours_and_the_unet_copies_them_at_the_papers_settings():
    rows = table("07", "PSNR in dB, frame 0 is given")
    gray, paper, own = rows["gray"]["all parts"], rows["the paper's"], rows["the profile's"]
    unet, cga = "without the UNet's colours", "without CGA's"
    assert says("07", "Without the UNet's colours the frames are gray") and abs(paper[unet] - gray) < 0.3
    assert says("07", "Without those that CGA fetches they are nearly gray, too") and abs(paper[cga] - gray) < 1
    assert says("07", "the PSNR is the same without the UNet's colours") and abs(own[unet] - own["all parts"]) < 0.3
    assert says("07", "the fetched colours are put in directly") and abs(own[cga] - gray) < 1
    assert says("07", "lead to the same PSNR") and abs(paper["all parts"] - own["all parts"]) < 0.3


def test_denoising_adds_nothing_where_a_reference_tells_the_colour():
    assert says("07", "None of the three is better than the ColorHint alone on this clip")
    gain = r"([-+.\d]+) dB"
    best = printed("07", rf"at its best: from noise {gain}\nfrom the noised hint {gain}, the profile {gain}")
    assert all(gain <= 0 for gain in best)
    assert says("07", "From noise, more steps help") and printed("07", r"6 steps over 1: ([-+.\d]+) dB")[0] > 0.3


def test_words_change_nothing_in_stage_two():
    assert says("07", "the words move the mean colour by next to nothing")
    moved = [row["moved by the words of stage 2"] for row in table("07", "mean colour, units").values()]
    assert max(moved) < 0.2


def test_the_grid_is_a_little_better_where_each_end_shows_nearly_everything():
    assert says("07", "the grid is only a little better than one reference")
    assert 0 < printed("07", r"the grid over one reference: ([-+.\d]+) dB")[0] < 1
