"""The compared systems: plumbing with small programs of the same command line, stand-ins against brute force."""

import hashlib
import json
import multiprocessing
import os
import re
import runpy
import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny
import torch

from gcgkit import video
from gcgkit.evaluation import clips as evalset
from gcgkit.evaluation import methods
from gcgkit.evaluation import run as evaluation
from gcgkit.evaluation.systems import setup as systems
from gcgkit.evaluation.systems.runners import replacements
from gcgkit.video import images

SIZE = (32, 64)
FRAMES = 3
# What each repository's script does, as far as the adapter can see it: read frames where told, write them where told.
TINT = """
import os, sys, cv2, numpy as np
def tint(source, target, size=None):
    image = cv2.imread(source).astype(int)
    image[..., 2] += 20
    image = np.clip(image, 0, 255).astype(np.uint8)
    cv2.imwrite(target, image if size is None else cv2.resize(image, size))
"""
FAKES = {
    "vcgan": {
        "train/correlation.py": "import cupy",
        "train/test_model_second_stage_by_folder.py": TINT
        + """
import argparse, torch, correlation
parser = argparse.ArgumentParser()
parser.add_argument('--videopath'); parser.add_argument('--savepath')
opt = parser.parse_args()
x = torch.ones(1, 2, 4, 4).cuda()
assert correlation.FunctionCorrelation(tensorFirst=x, tensorSecond=x).shape == (1, 81, 4, 4)
torch.nn.Linear(1, 1).load_state_dict(torch.load('./models/model1_Second_Stage_epoch500_bs1_448p.pth'))
os.makedirs(opt.savepath)
for name in sorted(os.listdir(opt.videopath)):
    tint(os.path.join(opt.videopath, name), os.path.join(opt.savepath, name))
""",
    },
    "deepremaster": {
        "remaster.py": TINT
        + """
import argparse, subprocess, torch
parser = argparse.ArgumentParser()
parser.add_argument('--input'); parser.add_argument('--reference_dir')
parser.add_argument('--gpu', action='store_true')
opt = parser.parse_args()
torch.nn.Linear(1, 1).load_state_dict(torch.load( 'model/remasternet.pth.tar' )['modelR'])
assert len(os.listdir(opt.reference_dir)) == 1 and not opt.gpu
outputdir = 'tmp/'
os.makedirs(outputdir + 'output/')
capture, index = cv2.VideoCapture(opt.input), 0
while True:
    more, frame = capture.read()
    if not more:
        break
    cv2.imwrite(outputdir + 'input.png', frame)
    tint(outputdir + 'input.png', outputdir + 'output/%07d.png' % index, (640, 320))
    index += 1
cmd = 'exit 1'
subprocess.call( cmd, shell=True )
import shutil
shutil.rmtree(outputdir)
"""
    },
    "deepexemplar": {
        "test.py": TINT
        + """
import argparse, torch
parser = argparse.ArgumentParser()
for name in ('clip_path', 'ref_path', 'output_path'):
    parser.add_argument('--' + name)
opt = parser.parse_args()
torch.cuda.set_device(0)
torch.nn.Linear(1, 1).load_state_dict(torch.load('data/vgg19_conv.pth'))
def save_frames(image, folder, index=None, image_name=None):
    assert image_name, 'JPEG it would be'
    cv2.imwrite(os.path.join(folder, image_name), image)
output_path = os.path.join(opt.output_path, opt.clip_path.split('/')[-1] + '_00000')
os.makedirs(output_path)
height, width = cv2.imread(os.path.join(opt.ref_path, '00000.png')).shape[:2]
assert width * 9 == height * 16, (width, height)
for index, name in enumerate(sorted(os.listdir(opt.clip_path))):
    tint(os.path.join(opt.clip_path, name), os.path.join(output_path, 'x.bmp'), (768, 432))
    IA_predict_rgb = cv2.imread(os.path.join(output_path, 'x.bmp'))
    save_frames(IA_predict_rgb, output_path, index)
"""
    },
    "tcvc": {
        "codes/test_TCVC_onesampling_noGT.py": TINT
        + """
import torch, correlation_cuda, resample2d_cuda, channelnorm_cuda
os.environ["CUDA_VISIBLE_DEVICES"] = "6"
device = torch.device("cuda")
Input_dataset_folder = "/data2/yhliu/old_film"
save_folder = "../results/TCVC_{}_interlen{}_output".format("IDC", 17)
torch.nn.Linear(1, 1).load_state_dict(torch.load("../experiments/TCVC_IDC/models/80000_G.pth"), strict=True)
model = torch.nn.Linear(1, 1).to(device)
out = torch.ones(1).new()
correlation_cuda.forward(torch.ones(1, 2, 9, 9), torch.ones(1, 2, 9, 9), None, None, out, 2, 1, 2, 1, 2, 1)
assert out.shape == (1, 9, 9, 9)
for clip in os.listdir(Input_dataset_folder):
    os.makedirs(os.path.join(save_folder, clip))
    for name in sorted(os.listdir(os.path.join(Input_dataset_folder, clip))):
        tint(os.path.join(Input_dataset_folder, clip, name), os.path.join(save_folder, clip, name))
"""
    },
    "bistnet": {
        "BiSTNet-NTIRE2023/models/protoseg_core/Cityscapes/val/image/examples.png": "a picture",
        "BiSTNet-NTIRE2023/test_BiSTNet.py": TINT
        + """
import argparse, collections, torch
from mmcv.cnn import ConvModule
from mmcv.runner import load_checkpoint
from mmedit.models.common import PixelShufflePack, ResidualBlockNoBN, flow_warp, make_layer
from mmedit.models.registry import BACKBONES
assert collections.Iterable
parser = argparse.ArgumentParser()
parser.add_argument("--clip_path", default="../demo_dataset2/input")
parser.add_argument("--ref_path", default="../demo_dataset2/ref")
parser.add_argument("--output_path", default="../demo_dataset2/output")
opt = parser.parse_args()
new = collections.OrderedDict()
for k, v in torch.load("checkpoints/finetune_test0610/colornet_iter_6000.pth").items():
    new[k] = v
torch.nn.Linear(1, 1).load_state_dict(new)
segmentation = "./models/protoseg_core/checkpoints/hrnet_w48_proto_lr1x_hrnet_proto_80k_latest.pth"
class Configer:
    parameters = {("network", "resume"): segmentation}
    def get(self, *key):
        return self.parameters[key]
    def update(self, key, value):
        self.parameters[tuple(key)] = value
def Tester(configer):
    if configer.get("network", "resume") is not None:
        torch.nn.Linear(1, 1).load_state_dict({k: torch.load(segmentation)[k] for k in ("weight", "bias")})
    print("segmentation:", configer.get("network", "resume"))
def proto_segmask(configer):
    model = Tester(configer)
proto_segmask(Configer())
assert os.listdir("./models/protoseg_core/Cityscapes/val/image")[0].split(".")[-1] == "png"  # as its loader does
torch.cuda.synchronize()
for clip in os.listdir(opt.clip_path):
    assert len(os.listdir(os.path.join(opt.ref_path, clip))) == 2
    os.makedirs(os.path.join(opt.output_path, clip))
    for name in sorted(os.listdir(os.path.join(opt.clip_path, clip))):
        tint(os.path.join(opt.clip_path, clip, name), os.path.join(opt.output_path, clip, name))
""",
    },
    "deoldify": {
        "deoldify/__init__.py": """
class _Device:
    def set(self, what):
        self.what = what
device = _Device()
""",
        "deoldify/device_id.py": "class DeviceId:\n    CPU, GPU0 = 99, 0\n",
        "deoldify/visualize.py": """
import torch
from pathlib import Path
from PIL import Image, ImageMath
import numpy as np
from deoldify import device
class Visualizer:
    def get_transformed_image(self, path, render_factor, post_process, watermarked):
        assert (device.what, render_factor, post_process, watermarked) == (99, 21, True, False)
        image = np.array(Image.open(path).convert('RGB')).astype(int)
        image[..., 0] += 20
        return Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))
class Colorizer:
    vis = Visualizer()
def get_video_colorizer(render_factor):
    from torchvision.models import resnet18
    resnet18(weights='DEFAULT')  # would be downloaded
    torch.nn.Linear(1, 1).load_state_dict(torch.load(Path('models') / 'ColorizeVideo_gen.pth'))
    return Colorizer()
""",
    },
}


def git(folder, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.invalid", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


run_usually = subprocess.run


def run_forked(command, **options):
    """In the place of subprocess.run: a Python script's process is a fork of this one, which has imported torch."""
    if command[0] != sys.executable or not command[1].endswith(".py"):
        return run_usually(command, **options)

    def work():
        os.dup2(options["stdout"].fileno(), 1), os.dup2(1, 2)
        os.chdir(options["cwd"])
        os.environ.clear()
        os.environ.update(options["env"])
        sys.stdout = sys.stderr = open(1, "w", encoding="utf-8", buffering=1)
        sys.argv, sys.path[0] = command[1:], str(Path(command[1]).parent)
        runpy.run_path(command[1], run_name="__main__")

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    return subprocess.CompletedProcess(command, process.exitcode)


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Make a local repository in place of a system's own, set it up, and return the folder that holds it.

    forked: see ``run_forked``.
    """

    def make(name, scripts=None, forked=sys.platform == "linux"):
        if forked:
            monkeypatch.setattr(subprocess, "run", run_forked)
        source = tmp_path / "source" / name
        source.mkdir(parents=True)
        git(source, "init", "-q")
        for path, text in {**(scripts or FAKES[name]), "LICENSE": "x", "big.bin": "not wanted"}.items():
            (source / path).parent.mkdir(parents=True, exist_ok=True)
            (source / path).write_text(text)
        git(source, "add", "-A")
        git(source, "commit", "-q", "-m", "x")
        commit = git(source, "rev-parse", "HEAD")
        git(source, "commit", "-q", "--allow-empty", "-m", "newer")
        known = systems.known()
        system = replace(known[name], repository=str(source), commit=commit)
        monkeypatch.setattr(systems, "known", lambda: {**known, name: system})
        root = tmp_path / "systems"
        systems.setup(name, root, accept=True, interpreter=sys.executable, weights=False, say=lambda text: None)
        return root

    return make


@pytest.fixture
def frames(tmp_path):
    """Gray frames of a clip as PNG, and its true first frame."""
    clip = tiny.clip(FRAMES, *SIZE)
    gray = np.repeat(cv2.cvtColor(clip[0], cv2.COLOR_RGB2GRAY)[None, ..., None], 3, axis=-1)
    gray = np.concatenate([gray + np.uint8(k) for k in range(FRAMES)])
    return images.write_frames(gray, tmp_path / "gray"), gray, clip[0]


def weights(name, root):
    """Real weight files in the place of the authors': one linear layer."""
    for entry in systems.get(name).weights:
        path = root / name / "repository" / entry["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        state = torch.nn.Linear(1, 1).state_dict()
        torch.save({"modelR": state} if name == "deepremaster" else state, path)


# --- plumbing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(FAKES))
def test_frames_go_through_the_authors_command_line_and_come_back(fake, frames, tmp_path, name):
    folder, gray, exemplar = frames
    root = fake(name, forked=False) if name == "deoldify" else fake(name)  # its stand-in is there before torchvision
    weights(name, root)
    assert systems.obstacle(name, root) is None
    out = systems.run(name, folder, exemplar, tmp_path / "out", root=root, device="cpu")
    result = video.read(out).frames
    assert result.shape == gray.shape and [p.name for p in sorted(out.iterdir())] == [
        f"{i:05d}.png" for i in range(FRAMES)
    ]
    difference = result.astype(int) - gray
    # Red is 20 higher, the rest as it was; systems of another working size blur a little on the way.
    tolerance = 12 if name in ("deepremaster", "deepexemplar") else 0
    expected = np.clip(gray[..., 0].astype(int) + 20, 0, 255) - gray[..., 0]
    assert abs(difference[..., 0] - expected).mean() <= tolerance / 4
    assert abs(difference[..., 1:]).max() <= max(tolerance * 8, 0)
    assert (tmp_path / "out.log").is_file() and not list(tmp_path.glob(".out-*"))


def test_random_weights_are_marked_and_never_measured(fake, frames, tmp_path):
    folder, _, exemplar = frames
    root = fake("vcgan")
    assert "lacks" in systems.obstacle("vcgan", root)
    with pytest.raises(FileNotFoundError, match="lacks .*model1_Second_Stage"):
        systems.run("vcgan", folder, None, tmp_path / "out", root=root, device="cpu")
    out = systems.run("vcgan", folder, None, tmp_path / "out" / "clip", root=root, device="cpu", random_weights=True)
    assert (out / images.RANDOM_WEIGHTS).is_file()
    data = evalset.open_set(tmp_path / "out", size=None)
    with pytest.raises(ValueError, match="random weights"):
        evaluation.evaluate(
            data, [methods.Folder("VCGAN", tmp_path / "out")], tmp_path / "results", metric_names=["psnr_rgb"], first=0
        )


def test_the_segmentation_of_bistnet_takes_its_weights_or_starts_at_random(fake, frames, tmp_path):
    folder, gray, exemplar = frames
    root = fake("bistnet")
    options = {"root": root, "device": "cpu"}
    out = systems.run("bistnet", folder, exemplar, tmp_path / "random", **options, random_weights=True)
    assert len(video.read(out).frames) == len(gray) and "segmentation: None" in (tmp_path / "random.log").read_text()
    weights("bistnet", root)
    systems.run("bistnet", folder, exemplar, tmp_path / "out", **options)
    assert "segmentation: ./models/protoseg_core/checkpoints/hrnet" in (tmp_path / "out.log").read_text()


def test_a_system_is_a_method_of_the_evaluation(fake, tmp_path):
    root = fake("vcgan")
    images.write_frames(tiny.clip(6, *SIZE), tmp_path / "data" / "ants")
    data = evalset.open_set(tmp_path / "data", size=None)
    method = methods.parse("system:vcgan", systems_root=root)
    options = {"metric_names": ["psnr_rgb"], "device": "cpu", "progress": False}
    (absent,) = [r for r in evaluation.evaluate(data, [method], tmp_path / "out", **options) if r["method"] == "VCGAN"]
    assert absent["clip"] is None and "lacks" in absent["absent"]
    weights("vcgan", root)
    (record,) = [r for r in evaluation.evaluate(data, [method], tmp_path / "out", **options) if r["method"] == "VCGAN"]
    assert 0 < record["metrics"]["psnr_rgb"] < 100
    assert record["identity"]["commit"] == systems.get("vcgan").commit
    assert all(len(digest) == 64 for digest in record["identity"]["weights"].values())


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("import sys; sys.exit('the model is in a bad mood')", "VCGAN left no frames .the model is in a bad mood"),
        (FAKES["vcgan"]["train/test_model_second_stage_by_folder.py"].replace(
            "sorted(os.listdir(opt.videopath))", "sorted(os.listdir(opt.videopath))[1:]"), "2 frames instead of 3"),
        (FAKES["vcgan"]["train/test_model_second_stage_by_folder.py"] + "\nraise MemoryError('too much')", "too much"),
    ],
    ids=["fails", "drops-one", "fails-late"],
)  # fmt: skip
def test_a_system_that_stops_is_told_in_one_sentence(fake, frames, tmp_path, script, message):
    root = fake("vcgan", {"train/test_model_second_stage_by_folder.py": script})
    with pytest.raises(OSError, match=message) as caught:
        systems.run("vcgan", frames[0], None, tmp_path / "out", root=root, device="cpu", random_weights=True)
    assert "\n" not in str(caught.value) and "its output is in" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_script_of_another_version_is_refused(fake, frames, tmp_path):
    scripts = {path: text.replace("old_film", "new_film") for path, text in FAKES["tcvc"].items()}
    root = fake("tcvc", scripts)
    with pytest.raises(OSError, match="is not the version that this was made for"):
        systems.run("tcvc", frames[0], None, tmp_path / "out", root=root, device="cpu", random_weights=True)


def test_setup_brings_the_pinned_commit_and_only_the_files_that_count(fake):
    root = fake("vcgan")
    repository = root / "vcgan" / "repository"
    assert git(repository, "rev-parse", "HEAD") == systems.get("vcgan").commit
    assert (repository / "train/correlation.py").is_file() and not (repository / "big.bin").exists()
    # What is there is kept.
    (repository / "train/correlation.py").write_text("mine")
    systems.setup("vcgan", root, accept=True, interpreter=sys.executable, weights=False, say=lambda text: None)
    assert (repository / "train/correlation.py").read_text() == "mine"


@pytest.mark.parametrize("good", [True, False])
def test_weights_with_a_direct_link_are_fetched_and_checked(fake, tmp_path, monkeypatch, good):
    root, content = fake("deepremaster"), b"weights"
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "w.tar").write_bytes(content)
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path / "served")
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}/w.tar"
        md5 = hashlib.md5(content if good else b"x").hexdigest()
        entry = {"path": "model/remasternet.pth.tar", "from": address, "direct": True, "md5": md5}
        known = systems.known()
        changed = replace(known["deepremaster"], weights=(entry,))
        monkeypatch.setattr(systems, "known", lambda: {**known, "deepremaster": changed})
        told = []
        repository = systems.setup("deepremaster", root, accept=True, interpreter=sys.executable, say=told.append)
    finally:
        server.shutdown()
        server.server_close()
    assert (repository / entry["path"]).is_file() == good
    assert good or "not the authors'" in told[-1]
    assert (systems.obstacle("deepremaster", root) is None) == good


def test_the_licence_is_shown_before_anything_is_fetched(tmp_path):
    told = []
    with pytest.raises(ValueError, match="read the licence of DRemaster first"):
        systems.setup("deepremaster", tmp_path, say=told.append)
    assert "CC BY-NC-SA" in told[0] and not list(tmp_path.iterdir())
    assert systems.plan("deepremaster", tmp_path).splitlines()[0].startswith("DRemaster: licence CC BY-NC-SA 4.0")


def test_a_repository_that_cannot_be_reached_is_told(tmp_path):
    with pytest.raises(OSError, match="fetching VCGAN failed: .*nowhere"):
        systems.setup("vcgan", tmp_path, accept=True, source=tmp_path / "nowhere", say=lambda text: None)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f, t: systems.get("photoshop"), "no system called 'photoshop'"),
        (
            lambda f, t: systems.run("vcgan", f, None, t / "out", root=t),
            "is not set up: run python -m gcgkit.evaluation.systems setup",
        ),
        (lambda f, t: systems.plan("x"), "no system called"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(frames, tmp_path, call, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        call(frames[0], tmp_path)


# --- what is known of them -------------------------------------------------------------------------------------------


def test_the_six_are_pinned_with_licence_and_weights():
    assert list(systems.known()) == ["deoldify", "tcvc", "vcgan", "deepremaster", "deepexemplar", "bistnet"]
    pins = {
        "deoldify": "5f86c2892379", "tcvc": "08cfe3694e1f", "vcgan": "7d30e6e5610a", "deepremaster": "60b418c6e5dd",
        "deepexemplar": "2c41bdf34ea7", "bistnet": "f96414237af5",
    }  # fmt: skip
    exemplar = {name for name, system in systems.known().items() if system.exemplar}
    assert exemplar == {"deepremaster", "deepexemplar", "bistnet"}
    for name, system in systems.known().items():
        assert re.fullmatch(r"[0-9a-f]{40}", system.commit) and system.commit.startswith(pins[name])
        assert system.licence and system.checked and system.weights and system.notes.endswith(".")
        told = systems.plan(name)
        for entry in system.weights:
            assert entry["path"] in told and entry["from"] in told
        assert system.commit in told and system.command in told
    lines = systems.table().splitlines()
    assert len(lines) == 8 and all(line.count("|") == 7 for line in lines)


def test_the_methods_have_the_papers_names():
    from gcgkit.evaluation.table import paper

    assert {system.label for system in systems.known().values()} == set(paper()["methods"][:6])


def test_the_command_lists_and_plans(capsys):
    assert systems.main([]) == 0 and systems.main(["plan", "tcvc"]) == 0
    told = capsys.readouterr().out
    assert "| DeOldify (`deoldify`) | MIT |" in told and "none stated" in told and "git clone" in told
    assert systems.main(["setup", "vcgan"]) == 1
    assert "read the licence of VCGAN first" in capsys.readouterr().err


def test_nothing_of_theirs_is_in_the_package():
    """The data file holds facts, the runners hold our own code: none of their file headers."""
    text = json.dumps({name: str(system) for name, system in systems.known().items()})
    assert "def " not in text and "import " not in text
    for path in Path(systems.__file__).parent.joinpath("runners").glob("*.py"):
        assert "copyright" not in path.read_text().lower()


# --- stand-ins against brute force -----------------------------------------------------------------------------------


def correlation_by_loops(a, b, padding, kernel, reach, step, spacing):
    """The definition, in loops over output places and displacements."""
    half, radius = (kernel - 1) // 2, reach // spacing
    a, b = (np.pad(x, ((0, 0), (0, 0), (padding,) * 2, (padding,) * 2)) for x in (a, b))
    border = half + reach
    rows, columns = (int(np.ceil((size - 2 * border) / step)) for size in a.shape[-2:])
    side = 2 * radius + 1
    out = np.zeros((a.shape[0], side * side, rows, columns))
    for n, i, j in np.ndindex(a.shape[0], rows, columns):
        y, x = i * step + reach, j * step + reach
        for k, (p, q) in enumerate(np.ndindex(side, side)):
            down, right = (p - radius) * spacing, (q - radius) * spacing
            total = 0.0
            for v in range(-half, half + 1):
                for u in range(-half, half + 1):
                    total += (a[n, :, y + v, x + u] * b[n, :, y + down + v, x + right + u]).sum()
            out[n, k, i, j] = total / (kernel**2 * a.shape[1])
    return out


@pytest.mark.parametrize("setting", [(4, 1, 4, 1, 1), (4, 1, 4, 1, 2), (4, 3, 3, 1, 1), (3, 1, 2, 2, 1)])
def test_correlation_agrees_with_loops(setting):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 2, 3, 6, 7))
    found = replacements.correlation(torch.tensor(a), torch.tensor(b), *setting)
    np.testing.assert_allclose(found.numpy(), correlation_by_loops(a, b, *setting), atol=1e-12)


def test_resample_agrees_with_loops_also_outside():
    rng = np.random.default_rng(1)
    image, flow = rng.normal(size=(2, 3, 5, 6)), rng.uniform(-4, 4, size=(2, 2, 5, 6))
    flow[0, :, 0, 0] = 0
    expected = np.zeros_like(image)
    for n, y, x in np.ndindex(2, 5, 6):
        right, down = x + flow[n, 0, y, x], y + flow[n, 1, y, x]
        left, top = int(np.floor(right)), int(np.floor(down))
        a, b = right - left, down - top
        for i, j, weight in ((0, 0, (1 - a) * (1 - b)), (0, 1, a * (1 - b)), (1, 0, (1 - a) * b), (1, 1, a * b)):
            expected[n, :, y, x] += weight * image[n, :, np.clip(top + i, 0, 4), np.clip(left + j, 0, 5)]
    found = replacements.resample(torch.tensor(image), torch.tensor(flow))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)
    nearest = replacements.resample(torch.tensor(image), torch.full((2, 2, 5, 6), 0.6), bilinear=False)
    np.testing.assert_array_equal(nearest.numpy()[:, :, :4, :5], image[:, :, 1:, 1:])


def test_flow_warp_agrees_with_opencv():
    rng = np.random.default_rng(2)
    image = rng.random((12, 16)).astype(np.float32)
    flow = rng.uniform(-2, 2, (12, 16, 2)).astype(np.float32)
    y, x = np.mgrid[:12, :16].astype(np.float32)
    expected = cv2.remap(image, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    found = replacements.flow_warp(torch.tensor(image)[None, None], torch.tensor(flow)[None])[0, 0].numpy()
    inside = (x + flow[..., 0] > 0) & (x + flow[..., 0] < 15) & (y + flow[..., 1] > 0) & (y + flow[..., 1] < 11)
    np.testing.assert_allclose(found[inside], expected[inside], atol=0.02)  # OpenCV rounds places to 1/32


def test_blocks_have_the_parameters_of_their_checkpoints():
    block = replacements.ResidualBlockNoBN(mid_channels=4)
    assert set(block.state_dict()) == {"conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"}
    pack = replacements.PixelShufflePack(4, 3, 2, upsample_kernel=3)
    assert set(pack.state_dict()) == {"upsample_conv.weight", "upsample_conv.bias"}
    x = torch.randn(1, 4, 5, 6)
    assert pack(x).shape == (1, 3, 10, 12) and block(x).shape == x.shape
    with torch.no_grad():
        block.conv2.weight.zero_(), block.conv2.bias.zero_()
    torch.testing.assert_close(block(x), x)
    layers = replacements.make_layer(replacements.ResidualBlockNoBN, 3, mid_channels=4)
    assert len(layers) == 3 and layers(x).shape == x.shape
    relu = replacements.ConvModule(4, 2, 3, padding=1, act_cfg={"type": "ReLU"})
    assert (relu(x) >= 0).all() and set(relu.state_dict()) == {"conv.weight", "conv.bias"}
    with pytest.raises(ValueError, match="no normalisation"):
        replacements.ConvModule(4, 2, 3, norm_cfg={"type": "BN"})
