"""The paper's own sizes with random weights: Stable Diffusion 2.1's UNet, its copy and guidance, one step on the CPU.

Weights are filled with small noise, stored as bfloat16 and computed with in float32. Encoders are one layer deep but as
wide as the real ones. Two processes, so that the memory of putting the model together does not count as that of using
it.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

GIGABYTE = 1e9

BUILD = """
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPImageProcessor, CLIPTextConfig, CLIPTextModel
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

import tiny
from gcgkit.lessons.random_networks import SHAPES
from gcgkit.paper import build_paper

folder = Path(sys.argv[1])
base, vision = folder / "base", folder / "vision"

def filled(model_class, config):
    with torch.device("meta"):
        model = model_class.from_config(config)
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if weights.ndim == 1:
                weights.fill_(1.0 if name.endswith("weight") else 0.0)
            else:
                # one block of noise again and again: drawing 865 million numbers takes longer than everything else
                spread = 1 / weights[0].numel() ** 0.5
                noise = (spread * torch.randn(min(weights.numel(), 1 << 16))).to(weights.dtype)
                flat = weights.view(-1)
                for start in range(0, len(flat), len(noise)):
                    flat[start : start + len(noise)] = noise[: len(flat) - start]
    return model

torch.manual_seed(0)
unet = filled(UNet2DConditionModel, SHAPES["sd21"]["unet"])
unet.save_pretrained(base / "unet")
del unet
filled(AutoencoderKL, SHAPES["sd21"]["vae"]).save_pretrained(base / "vae")
words = tiny.tokenizer(base / "tokenizer")
known = {"vocab_size": len(words), "num_hidden_layers": 1, "pad_token_id": words.pad_token_id}
known |= {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
text_encoder = CLIPTextModel(CLIPTextConfig(**SHAPES["sd21"]["text"] | known))
text_encoder.to(torch.bfloat16).save_pretrained(base / "text_encoder")
CLIPVisionModelWithProjection(CLIPVisionConfig(**SHAPES["sd21"]["vision"] | {"num_hidden_layers": 1})).to(
    torch.bfloat16
).save_pretrained(vision)
CLIPImageProcessor().save_pretrained(vision)
DDIMScheduler(
    beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, set_alpha_to_one=False,
    steps_offset=1, prediction_type="epsilon",
).save_pretrained(base / "scheduler")
build_paper(base, vision, dtype=torch.bfloat16).save_pretrained(folder / "pipeline")
"""

STEP = """
import json
import resource
import sys
import time

import numpy as np
import torch

from gcgkit import GCGPipeline

started = time.monotonic()
pipe = GCGPipeline.from_pretrained(sys.argv[1])
pipe.set_progress_bar_config(disable=True)
loaded = time.monotonic()
latents, timesteps = [], []

def look(pipe, step, timestep, kwargs):
    latents.append(kwargs["latents"].clone())
    timesteps.append(int(timestep))
    return {}

rng = np.random.default_rng(0)
frame = rng.integers(0, 256, (256, 448), dtype=np.uint8)
exemplar = rng.integers(0, 256, (256, 448, 3), dtype=np.uint8)
out = pipe(
    frame[None], "red car", reference=exemplar, num_inference_steps=1, callback_on_step_end=look,
    generator=torch.Generator().manual_seed(0),
)
source, copy = pipe.unet.state_dict(), pipe.control.unet_copy.state_dict()
shared = [name for name in source if name.startswith(("conv_in.", "time_embedding.", "down_blocks.", "mid_block."))]
residual = max(float(w.abs().max()) for n, w in copy.items() if n.startswith("controlnet_down_blocks"))
unit = 1 if sys.platform == "darwin" else 1024
print(json.dumps({
    "unet": sum(p.numel() for p in pipe.unet.parameters()),
    "copy": sum(p.numel() for p in pipe.control.unet_copy.parameters()),
    "dtypes": sorted({str(p.dtype) for m in (pipe.unet, pipe.control, pipe.vae) for p in m.parameters()}),
    "cross": [pipe.unet.config.cross_attention_dim, pipe.control.unet_copy.config.cross_attention_dim],
    "tokens": [pipe.text_encoder.config.hidden_size, pipe.image_encoder.config.projection_dim],
    "projection": type(pipe.control.token_projection).__name__,
    "copied": all(torch.equal(source[n], copy[n]) for n in shared) and len(shared),
    "residual": residual,
    "guidance_scale": pipe.config.guidance_scale,
    "latents": [list(z.shape) for z in latents],
    "finite": all(bool(torch.isfinite(z).all()) for z in latents),
    "frames": list(out.frames.shape),
    "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
    "loading": loaded - started,
    "step": time.monotonic() - loaded,
}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="peak memory is read the POSIX way")
def test_one_step_at_the_papers_size(tmp_path, request):
    if "slow" not in request.config.getoption("-m"):
        pytest.skip("takes minutes and 8 GB: run it with -m slow")
    here = Path(__file__).parent
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)]),
        "CUDA_VISIBLE_DEVICES": "",
    }

    def process(code: str, folder: Path) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code, str(folder)], env=environment, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    try:
        started = time.monotonic()
        process(BUILD, tmp_path)
        building = time.monotonic() - started
        shutil.rmtree(tmp_path / "base")
        got = json.loads(process(STEP, tmp_path / "pipeline").splitlines()[-1])
    finally:
        for folder in ("base", "vision", "pipeline"):
            shutil.rmtree(tmp_path / folder, ignore_errors=True)
    seconds = f"building {building:.0f} s, loading {got['loading']:.0f} s, one step {got['step']:.0f} s"
    print(f"peak {got['peak'] / GIGABYTE:.1f} GB, {seconds}")
    assert got["unet"] == 865_910_724  # as Stable Diffusion 2.1's
    assert 360e6 < got["copy"] < 368e6
    assert got["dtypes"] == ["torch.float32"]
    assert got["cross"] == [1024, 1024] and got["tokens"] == [1024, 1024] and got["projection"] == "Identity"
    assert got["copied"] > 200 and got["residual"] == 0
    assert got["guidance_scale"] == 9.0
    assert got["latents"] == [[1, 4, 32, 56]] and got["finite"]
    assert got["frames"] == [1, 256, 448, 3]
    assert got["peak"] < 20 * GIGABYTE
