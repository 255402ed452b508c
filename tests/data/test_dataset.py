"""Training samples against the frames they come from: pixels compared by hand, shares by a chi-square test."""

import dataclasses
import json
import pickle

import cv2
import numpy as np
import prepared
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import chisquare
from skimage.color import rgb2hsv

from gcgkit.data import augment
from gcgkit.data.color_words import remove_color_words
from gcgkit.data.dataset import FrameDataset, collate, loader, read_clips, show_batch
from gcgkit.data.sampling import Positions, SampleStream
from gcgkit.training.recipes import MINI, PAPER
from gcgkit.training.show_batch import main

PAPER_DATA = dataclasses.replace(PAPER.data, sets=("davis-train",), height=32, width=64)
CAPTION = "a red car on green grass"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Three clips of six frames, in one set."""
    folder = tmp_path_factory.mktemp("prepared")
    prepared.write_clips(folder)
    return folder


def options(**changes):
    return dataclasses.replace(PAPER_DATA, **{"targets_per_clip": 20, **changes})


def frame(root, label):
    """A prepared frame by its label, read with another library."""
    clip, number = label.rsplit(" ", 1)
    name, clip = clip.split("/")
    return np.asarray(Image.open(root / name / "frames" / clip / f"{int(number):05d}.png"))


def views(sample):
    """Target and references of a sample as (n, H, W, 3), and their grays (n, H, W)."""
    pixels = torch.cat([sample.target[None], sample.color]).permute(0, 2, 3, 1).numpy()
    return pixels, torch.cat([sample.gray[None], sample.ref_gray])[:, 0].numpy()


def of_kind(dataset, kind, count=6):
    found = [i for i in range(len(dataset)) if dataset.stream.draw(i).kind == kind][:count]
    assert found, kind
    return [(dataset.stream.draw(i), dataset[i]) for i in found]


# --- one sample ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "tiles"), [("mask", 0), ("single", 1), ("grid", 4)])
def test_target_and_references_get_the_same_augmentation(root, kind, tiles):
    """HSV augmentation is a map of colours: one and the same must explain the target and every reference."""
    dataset = FrameDataset(root, options(recolor_masked=True), seed=3)
    turned = 0
    for draw, sample in of_kind(dataset, kind, 12):
        pixels, grays = views(sample)
        assert sample.kind == kind and sample.color.shape == (tiles, 3, 32, 64) and len(sample.labels) == 1 + tiles
        seen = {}
        for label, view in zip(sample.labels, pixels, strict=True):
            for before, after in zip(frame(root, label).reshape(-1, 3), view.reshape(-1, 3), strict=True):
                assert seen.setdefault(tuple(before), tuple(after)) == tuple(after)
        # and it is the map that was drawn: for vivid colours the hue turns by the angle, saturation and value grow
        hue, saturation, value = draw.hsv
        before, after = rgb2hsv(frame(root, sample.labels[0])), rgb2hsv(pixels[0])
        vivid = (before[..., 1] > 0.3) & (before[..., 2] > 0.3) & (after[..., 1] > 0.2) & (after[..., 2] > 0.2)
        vivid &= (before[..., 1] * saturation < 0.98) & (before[..., 2] * value < 0.98)
        turn = (360 * (after - before)[..., 0][vivid] - hue + 180) % 360 - 180
        assert np.abs(turn).max(initial=0) < 3
        np.testing.assert_allclose(after[..., 1:][vivid], before[..., 1:][vivid] * [saturation, value], atol=0.02)
        turned += draw.recolored
        # the gray that the model sees is that of the augmented picture
        for view, gray in zip(pixels, grays, strict=True):
            assert np.abs(gray - view @ np.array([0.299, 0.587, 0.114])).max() <= 1  # luma of BT.601
    assert turned > 0


@pytest.mark.parametrize("kind", ["single", "grid"])
def test_references_are_other_frames_of_the_same_clip(root, kind):
    for draw, sample in of_kind(FrameDataset(root, options()), kind, 40):
        target, *references = (label.rsplit(" ", 1) for label in sample.labels)
        assert {clip for clip, _ in references} == {target[0]} and draw.source == draw.clip
        numbers = [number for _, number in references]
        assert target[1] not in numbers and len(set(numbers)) == len(numbers)  # 6 frames: enough for 4 different


def test_a_window_holds_references_near_the_target(root):
    dataset = FrameDataset(root, options(window=1, grid=0.8, single=0.0))
    for draw, _ in of_kind(dataset, "grid", 30):
        assert {abs(number - draw.target) for number in draw.references} == {1}  # four of the one or two neighbours


def test_captions_lose_their_colours_under_the_mask_and_where_hues_were_turned(root):
    dataset = FrameDataset(root, options(drop_text=0.3), seed=1)
    told = {}
    for i in range(len(dataset)):
        draw, sample = dataset.stream.draw(i), dataset[i]
        key = "none" if draw.drop else "stripped" if draw.kind == "mask" or draw.recolored else "whole"
        told.setdefault(key, set()).add(sample.caption)
        if draw.kind == "mask":
            assert not draw.recolored  # what nothing tells of cannot be learned
    assert told == {"none": {""}, "stripped": {"a car on grass"}, "whole": {CAPTION}}


def test_literal_captions_stay_as_they_are_but_under_the_mask(root):
    dataset = FrameDataset(root, options(drop_text=0.0, strip_recolored=False, recolor=1.0))
    for i in range(30):
        draw, sample = dataset.stream.draw(i), dataset[i]
        assert sample.caption == ("a car on grass" if draw.kind == "mask" else CAPTION)


def test_own_captions_tell_the_augmented_colours(tmp_path):
    """A clip all in one colour: the caption names what the hue was turned to, which scikit-image's hue tells."""
    red = np.full((4, 32, 64, 3), (200, 40, 40), np.uint8)
    prepared.write_set(tmp_path, "davis-train", {"thing": red})
    data = options(captions="own", drop_text=0.0, recolor=1.0, mask=0.0, single=0.6)
    dataset = FrameDataset(tmp_path, data)
    named = {}
    for i in range(20):
        hue = 360 * rgb2hsv(dataset[i].target.permute(1, 2, 0).numpy())[0, 0, 0]
        for name, low, high in (("green", 100, 140), ("blue", 220, 245), ("yellow", 58, 66)):
            if low < hue < high:
                named[name] = dataset[i].caption
    assert named and all(name in text for name, text in named.items())


def test_frames_are_scaled_whole_where_sizes_differ(root):
    dataset = FrameDataset(root, options(height=16, width=32, recolor=0.0))
    draw, sample = next((d, s) for d, s in of_kind(dataset, "single"))
    whole = frame(root, sample.labels[0]).reshape(16, 2, 32, 2, 3).mean((1, 3))  # each pixel the mean of 2 x 2
    expected = augment.augment_hsv(np.rint(whole).astype(np.uint8)[None], *draw.hsv)[0]
    assert np.abs(views(sample)[0][0].astype(int) - expected).max() <= 3


def test_crops_show_the_same_place_nearly(root):
    """Zoomed, mirrored, yet target and reference of one sample alike: nearer to each other than to other samples."""
    dataset = FrameDataset(root, options(height=24, width=40, crops=True, recolor=0.0), seed=2)
    samples = [views(sample)[0].astype(float) for _, sample in of_kind(dataset, "single", 12)]
    own = [np.abs(pixels[0] - pixels[1]).mean() for pixels in samples]
    other = [np.abs(a[0] - b[1]).mean() for a in samples for b in samples if a is not b]
    assert all(pixels.shape == (2, 24, 40, 3) for pixels in samples)
    assert np.mean(own) < 0.7 * np.mean(other)


def test_a_photograph_gives_different_crops_of_itself(tmp_path):
    rng = np.random.default_rng(0)
    picture = cv2.resize(rng.integers(0, 256, (9, 15, 3), dtype=np.uint8), (85, 43), interpolation=cv2.INTER_CUBIC)
    prepared.write_set(tmp_path, "photos-train", {"one": picture[None], "two": picture[None, ::-1]}, kind="photos")
    dataset = FrameDataset(
        tmp_path, options(sets=("photos-train",), recolor=0.0, mask=0.0, single=0.6, targets_per_photo=20)
    )
    assert len(dataset) == 40
    for _, sample in of_kind(dataset, "grid", 5):
        pixels = views(sample)[0]
        assert pixels.shape == (5, 32, 64, 3) and set(sample.labels) == {sample.labels[0]}
        differences = [np.abs(pixels[0].astype(int) - other).mean() for other in pixels[1:]]
        assert min(differences) > 0.5  # never a copy of the target


def test_frames_too_small_for_a_crop_are_scaled_up(root):
    sample = FrameDataset(root, options(height=64, width=128, crops=True))[0]
    assert sample.target.shape == (3, 64, 128)


def test_an_unrelated_reference_is_of_another_clip(root):
    dataset = FrameDataset(root, options(mask=0.2, single=0.2, grid=0.2, unrelated=0.4))
    sources = set()
    for draw, sample in of_kind(dataset, "unrelated", 30):
        target, reference = (label.rsplit(" ", 1)[0] for label in sample.labels)
        assert target != reference and draw.source != draw.clip
        sources.add((target, reference))
        expected = augment.augment_hsv(frame(root, sample.labels[1])[None], *draw.hsv)[0]
        np.testing.assert_array_equal(views(sample)[0][1], expected)
    assert len(sources) == 6  # every other clip comes up


# --- many samples ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [PAPER.data, MINI.data], ids=["paper", "mini"])
def test_shares_come_out_as_asked(data):
    stream = SampleStream([50, 70, 90, 33], [500] * 4, data, seed=5)
    draws = [stream.draw(i) for i in range(6000)]
    shares = {kind: getattr(data, kind) for kind in augment.KINDS}
    counted = [sum(draw.kind == kind for draw in draws) for kind in augment.KINDS]
    expected = [share * len(draws) for share in shares.values()]
    asked = [(c, e) for c, e in zip(counted, expected, strict=True) if e or c]
    assert chisquare(*zip(*asked, strict=True)).pvalue > 1e-3
    masked = [draw for draw in draws if draw.kind == "mask"]
    shown = [draw for draw in draws if draw.kind != "mask"]
    for part, flag, share in (
        (draws, "drop", data.drop_text),
        (shown, "recolored", data.recolor),
        (masked, "strip", data.strip_colors),
    ):
        hits = sum(getattr(draw, flag) for draw in part)
        assert abs(hits / len(part) - share) < 4 * (share * (1 - share) / len(part)) ** 0.5 + 1e-9, flag
    assert not any(draw.recolored for draw in masked)
    # one thing drawn says nothing of another: the target frames' mean does not depend on the kind
    places = {kind: np.mean([d.target for d in draws if d.kind == kind and d.clip == 1]) for kind in ("mask", "single")}
    assert abs(places["mask"] - places["single"]) < 4


def test_an_epoch_shows_every_clip_equally_and_spreads_targets_over_it():
    stream = SampleStream([40, 8, 1], [20] * 3, options(), seed=0)
    for epoch in range(3):
        draws = [stream.draw(epoch * 60 + i) for i in range(60)]
        assert np.bincount([draw.clip for draw in draws]).tolist() == [20, 20, 20]
        targets = sorted(draw.target for draw in draws if draw.clip == 0)
        assert all(target // 2 == slot for slot, target in enumerate(targets))  # one in each 20th of the 40 frames
        assert sorted(draw.target for draw in draws if draw.clip == 1)[::5] == [0, 2, 4, 6]
    first, second = ([stream.draw(i + 60 * epoch).clip for i in range(60)] for epoch in (0, 1))
    assert first != second


def test_every_frame_once(root, tmp_path):
    stream = SampleStream([3, 5, None], [3, 5, 1], options(), seed=0)
    assert len(stream) == 9
    assert FrameDataset(root, options(targets_per_clip=0)).stream.slots == [6, 6, 6]
    for epoch in (0, 4):
        seen = sorted((d.clip, d.target) for d in (stream.draw(9 * epoch + i) for i in range(9)))
        assert seen == [(0, 0), (0, 1), (0, 2), *((1, i) for i in range(5)), (2, 0)]


def test_a_sample_depends_on_seed_and_position_alone(root):
    data = options()
    one, two, other = FrameDataset(root, data, 7), FrameDataset(root, data, 7), FrameDataset(root, data, 8)
    for i in reversed(range(3)):
        two[i + 40]  # drawn before, in another order
    differ = 0
    for i in (0, 3, 59, 60, 500):
        np.random.seed(i)
        torch.manual_seed(i)
        a, b, c = one[i], two[i], other[i]
        assert torch.equal(a.target, b.target) and torch.equal(a.color, b.color) and a.labels == b.labels
        assert (a.caption, a.seed, a.kind) == (b.caption, b.seed, b.kind)
        differ += a.labels != c.labels or not torch.equal(a.target, c.target)
    assert differ == 5
    assert len({one[i].seed for i in range(130)}) == 130  # epochs differ too


def test_worker_processes_change_nothing(root):
    dataset = FrameDataset(root, options(), seed=4)
    positions = Positions(2, 5, batch=4, micro=2)
    alone, together = (list(loader(dataset, positions, workers)) for workers in (0, 2))
    assert len(alone) == len(together) == 6
    for a, b in zip(alone, together, strict=True):
        assert torch.equal(a.target, b.target) and a.seeds == b.seeds and a.captions == b.captions
        for x, y in zip(a.references, b.references, strict=True):
            assert x.kind == y.kind and torch.equal(x.color, y.color) and torch.equal(x.rows, y.rows)


def test_a_dataset_can_be_sent_to_worker_processes_of_any_kind(root):
    dataset = FrameDataset(root, options())
    twin = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(twin[5].target, dataset[5].target) and len(twin) == len(dataset)


def test_iterating_a_dataset_is_one_epoch(root):
    dataset = FrameDataset(root, options(targets_per_clip=2))
    assert [s.seed for s in dataset] == [dataset[i].seed for i in range(6)]


# --- batches ---------------------------------------------------------------------------------------------------------


def test_collate_groups_by_kind_and_loses_nothing(root):
    dataset = FrameDataset(root, options())
    samples = [dataset[i] for i in range(20)]
    batch = collate(samples)
    assert len(batch) == 20 and not batch.encoded and batch.gray.shape == (20, 1, 32, 64)
    rows = torch.cat([group.rows for group in batch.references])
    assert sorted(rows.tolist()) == list(range(20))
    assert [group.kind for group in batch.references] == ["mask", "single", "grid"]
    for group in batch.references:
        for place, row in enumerate(group.rows.tolist()):
            assert samples[row].kind == group.kind
            assert torch.equal(group.color[place], samples[row].color)
            assert torch.equal(group.gray[place], samples[row].ref_gray)
    for i, sample in enumerate(samples):
        assert torch.equal(batch.target[i], sample.target) and batch.captions[i] == sample.caption
    moved = batch.to("cpu")
    assert torch.equal(moved.target, batch.target) and moved.captions == batch.captions


@settings(max_examples=40)
@given(st.integers(0, 5), st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.integers(1, 3))
def test_positions_are_the_same_however_a_batch_is_shared(start, micro, world, passes, steps):
    batch = micro * world * passes
    shares = [list(Positions(start, start + steps, batch, micro, rank, world)) for rank in range(world)]
    assert all(len(share) == passes * steps for share in shares)
    for step in range(steps):
        seen = [p for share in shares for part in share[step * passes : (step + 1) * passes] for p in part]
        first = (start + step) * batch
        assert sorted(seen) == list(range(first, first + batch))
    assert all(len(part) == micro for share in shares for part in share)


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(ValueError, match=r"a batch of 24 cannot be shared by 5 process\(es\) in passes of 4"):
        Positions(0, 1, 24, 4, 0, 5)


# --- folders and pictures --------------------------------------------------------------------------------------------


def test_sets_are_joined_and_clips_left_out(root, tmp_path):
    prepared.write_clips(tmp_path, "davis-train", count=3)
    prepared.write_set(tmp_path, "mine", {"x": tiny.clip(4), "y": tiny.clip(5)}, format="png")
    clips = read_clips(tmp_path, ["mine", "davis-train"], ["y", "b"])
    assert [clip.label for clip in clips] == ["mine/x", "davis-train/a", "davis-train/c"]
    assert [clip.frames for clip in clips] == [4, 6, 6]
    assert [clip.caption(5) for clip in clips] == ["", CAPTION, CAPTION]
    dataset = FrameDataset(tmp_path, options(sets=("mine", "davis-train"), exclude=("y", "b")), exclude=["a"])
    assert [clip.label for clip in dataset.clips] == ["mine/x", "davis-train/c"]


def test_folders_that_cannot_be_trained_on(root, tmp_path):
    with pytest.raises(FileNotFoundError, match="none"):
        read_clips(root, ["none"])
    with pytest.raises(ValueError, match="has no clip to train on in davis-train"):
        read_clips(root, ["davis-train"], ["a", "b", "c"])
    folder = prepared.write_set(tmp_path, "half", {"x": tiny.clip(3)}, complete=False)
    with pytest.raises(ValueError, match="not complete"):
        read_clips(tmp_path, ["half"])
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "complete": True}))
    (folder / "frames/x/00001.png").unlink()
    dataset = FrameDataset(tmp_path, options(sets=("half",), grid=0.8, single=0.0))
    with pytest.raises(ValueError, match="00001.png cannot be read as an image"):
        [dataset[i] for i in range(10)]
    with pytest.raises(ValueError, match="data.unrelated is above 0, but there is only one clip"):
        FrameDataset(tmp_path, options(sets=("half",), mask=0.1, unrelated=0.1))


def test_show_batch_draws_target_gray_and_references(root):
    dataset = FrameDataset(root, options())
    batch = collate([dataset[i] for i in range(5)])
    figure = show_batch(batch, limit=4)
    shown = [axis for axis in figure.axes if axis.images]
    drawn = sum(2 + len(dataset[i].color) for i in range(4))
    assert len(shown) == drawn
    np.testing.assert_array_equal(shown[0].images[0].get_array(), batch.target[0].permute(1, 2, 0).numpy())
    np.testing.assert_array_equal(shown[1].images[0].get_array(), batch.gray[0, 0].numpy())
    assert shown[0].get_ylabel().startswith(dataset[0].kind)
    with pytest.raises(ValueError, match="show_batch needs pixels"):
        show_batch(dataclasses.replace(batch, encoded=True))


def test_from_a_prepared_folder_to_a_batch_with_one_command(root, tmp_path, capsys):
    picture = tmp_path / "out" / "batch.png"
    changes = ["data.sets=davis-train", "data.height=32", "data.width=64"]
    main([str(root), "--batch-size", "6", "--out", str(picture), *(part for c in changes for part in ("--set", c))])
    told = capsys.readouterr().out
    assert "3 clips, 192 samples per epoch; a batch of 6:" in told
    assert "target (6, 3, 32, 64), gray (6, 1, 32, 64)" in told
    assert Image.open(picture).size[0] > 300 and [p.name for p in picture.parent.iterdir()] == ["batch.png"]


def test_captions_are_read_anew_from_an_edited_file(tmp_path):
    folder = prepared.write_clips(tmp_path, count=1)
    with (folder / "captions.jsonl").open("a") as file:
        file.write(json.dumps({"clip": "a", "frame": 5, "caption": "a blue boat"}) + "\n")
    (clip,) = read_clips(tmp_path, ["davis-train"])
    assert [clip.caption(i) for i in (0, 2, 3, 5)] == [CAPTION, CAPTION, "a blue boat", "a blue boat"]
    assert remove_color_words(clip.caption(5)) == "a boat"
