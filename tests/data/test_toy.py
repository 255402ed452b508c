"""The toy data set goes the way of the real one; the parts of the real one are as other files tell."""

import json
import re
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny

from gcgkit.data import captions, catalog, footage, toy
from gcgkit.data import prepare as preparation

ROOT = Path(__file__).resolve().parents[2]


def test_archive_has_daviss_layout_and_the_frames(tmp_path):
    clips = {"one": tiny.clip(3, 48, 80), "two": tiny.clip(2, 48, 80, seed=1)}
    path = toy.write_archive(tmp_path / "toy.zip", clips)
    with zipfile.ZipFile(path) as archive:
        assert sorted(archive.namelist()) == [
            "DAVIS/ImageSets/2017/train.txt",
            *(f"DAVIS/JPEGImages/480p/one/0000{i}.jpg" for i in range(3)),
            *(f"DAVIS/JPEGImages/480p/two/0000{i}.jpg" for i in range(2)),
        ]
        assert archive.read("DAVIS/ImageSets/2017/train.txt").decode().split() == ["one", "two"]
        data = np.frombuffer(archive.read("DAVIS/JPEGImages/480p/two/00001.jpg"), np.uint8)
    frame = cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1]  # RGB
    assert np.abs(frame.astype(int) - clips["two"][1]).mean() < 8  # JPEG
    assert toy.listing(path)["DAVIS/JPEGImages/480p/one/*.jpg"].startswith("3 files, ")
    assert toy.listing(path)["DAVIS/ImageSets/2017/train.txt"] == "1 file, 8 B"
    assert [p.name for p in tmp_path.iterdir()] == ["toy.zip"]
    with pytest.raises(ValueError, match="frames is empty"):
        toy.write_archive(tmp_path / "none.zip", {})


def test_unpacked_it_is_what_preparation_reads(tmp_path):
    path = toy.write_archive(tmp_path / "toy.zip", {"one": tiny.clip(3, 48, 80), "two": tiny.clip(2, 48, 80)})
    told = []
    files = toy.unpack(path, tmp_path / "data", say=told.append)
    assert len(files) == 6 and all(file.is_file() for file in files)
    assert len(told) == 1 and str(tmp_path) not in told[0] and "6 files" in told[0]
    found = preparation.davis_sources(tmp_path / "data", "train")
    assert [(s.clip, len(list(s.path.iterdir()))) for s in found] == [("one", 3), ("two", 2)]


@pytest.mark.slow
def test_one_call_prepares_the_installed_clips_with_captions(tmp_path):
    root = toy.prepared(tmp_path, count=2)
    manifest = preparation.read_manifest(root / toy.NAME)
    assert [(clip["clip"], clip["frames"]) for clip in manifest["clips"]] == [(name, 2) for name in toy.CLIPS]
    assert (manifest["height"], manifest["width"]) == footage.SIZE
    assert all(clip["source_size"] == list(toy.SIZE) for clip in manifest["clips"])
    assert set(captions.read_captions(root / toy.NAME / preparation.CAPTIONS)) == set(toy.CLIPS)
    before = {file: file.stat().st_mtime_ns for file in (root / toy.NAME / "frames").rglob("*.png")}
    toy.prepared(tmp_path, count=2)
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_parts_of_the_data_sets_are_those_of_the_split_files_the_table_and_the_readme():
    for name in ("ldv-train", "ldv-test"):
        listed = (ROOT / f"data_scripts/splits/{name}.txt").read_text().split()
        assert catalog.SPLITS[name].clips == len(listed)
        assert listed[0] in catalog.SPLITS[name].title and listed[-1] in catalog.SPLITS[name].title
    table = json.loads((ROOT / "gcgkit/evaluation/table1.json").read_text(encoding="utf-8"))["datasets"]
    assert catalog.SPLITS["davis-test-dev"].clips == table["DAVIS"]["clips"]
    assert catalog.SPLITS["davis-test-dev"].frames == table["DAVIS"]["frames"]
    assert catalog.SPLITS["ldv-test"].clips == table["LDV3"]["clips"]
    told = (ROOT / "data_scripts/README.md").read_text(encoding="utf-8").replace(",", "")
    counts = re.search(r"train \((\d+) clips (\d+) frames\) val \((\d+) (\d+)\) test-dev \((\d+) (\d+)\)", told)
    parts = [catalog.SPLITS[f"davis-{part}"] for part in ("train", "val", "test-dev")]
    assert [int(x) for x in counts.groups()] == [x for part in parts for x in (part.clips, part.frames)]
    # §4.2: 335 videos of LDV and 90 of DAVIS to train on, 30 of each to test on.
    assert sum(part.clips for part in catalog.SPLITS.values() if part.used == "training") == 335 + 90
    assert sum(part.clips for part in catalog.SPLITS.values() if part.used == "testing") == 30 + 30
