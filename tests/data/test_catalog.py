"""The list of archives: which of an archive's files are wanted, and what they are called."""

import pytest

from gcgkit.data import catalog


@pytest.mark.parametrize(
    ("archive", "path", "name"),
    [
        ("ldv3", "LDV3/raw 017 x.mkv", "017.mkv"),
        ("ldv2", "001.MKV", "001.mkv"),
        ("ldv3", "v001-002.mkv", "001.mkv"),  # the first number of three digits
        ("ldv3", "0012-003.mkv", "003.mkv"),
        ("ldv3", "1234.mkv", None),
        ("ldv3", "a/x001/b.mkv", None),  # a folder's number
        ("ldv3", "001.mp4", None),
        ("bsds", "./BSR/BSDS500/data/images/train/12.jpg", "12.jpg"),
        ("bsds", "BSR/BSDS500/data/images/val/12.jpg", None),
        ("imagenet", "samples-1/n01440764_tench.JPEG", "n01440764_tench.JPEG"),
        ("imagenet", "samples-1/README.jpg", None),
        ("imagenet", "n01440764_x/y.jpg", None),
        ("davis-trainval", "DAVIS/ImageSets/2017/train.txt", "DAVIS/ImageSets/2017/train.txt"),
    ],
)
def test_wanted_files_and_their_names(archive, path, name):
    assert catalog.ARCHIVES[archive].choose(path) == name
