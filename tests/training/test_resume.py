"""Runs that are killed, or shared among processes, end with the weights of one that was left in peace."""

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import prepared
import pytest
import torch
from prepared import last_checkpoint as last
from prepared import run, same_files
from prepared import run_config as config
from safetensors.torch import load_file

from gcgkit.profiles import weights_digest
from gcgkit.training import checkpoints
from gcgkit.training import config as configs
from gcgkit.training import run as training_run
from gcgkit.training.log import read_log

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="bit for bit is promised on the CPU only")


def child(settings: configs.TrainConfig, data: str, out: str, counter) -> None:
    """A training run in a process of its own that tells each step it has done."""
    torch.set_num_threads(1)

    def tell(step):
        counter.value = step

    training_run.train(settings, data, out, cpu=True, on_step=tell)


def kill_at_random(settings, place, out: Path, kills: int, rng: random.Random) -> list[int]:
    """Start the run ``kills`` times and end it with SIGKILL at a random moment each; returns the steps it had done."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["torch", "gcgkit.training.run"])
    steps, reached = settings.run.max_steps, []
    for i in range(kills):
        counter = processes.Value("i", 0, lock=False)
        process = processes.Process(target=child, args=(settings, str(place / "data"), str(out), counter))
        process.start()
        done = checkpoints.list_checkpoints(out / "checkpoints")
        # spread over what is left, so that each kill comes before the end; then anywhere within the step
        low, high = (done[-1][0] if done else 0), steps - 1
        goal = rng.randint(low + 1, max(low + 1, low + 2 * (high - low) // (kills - i + 1)))
        deadline = time.monotonic() + 300
        while counter.value < goal and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(rng.random() * 0.1)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL, "the run ended before it could be killed"
        reached.append(counter.value)
    return reached


def check_kills(place, tmp_path, kills: int, **changes) -> list[int]:
    settings = config(place, run__save_every=3, run__batch_size=2, run__micro_batch=1, run__log_every=2, **changes)
    whole = training_run.train(settings, place / "data", tmp_path / "whole", cpu=True)
    reached = kill_at_random(settings, place, tmp_path / "killed", kills, random.Random(7))
    resumed = training_run.train(settings, place / "data", tmp_path / "killed", cpu=True)
    one, other = last(whole.parent), last(resumed.parent)
    assert one.name == other.name == f"step-{settings.run.max_steps:08d}"
    assert same_files(one, other)
    assert same_state(one, other)
    clean = lambda out: [  # noqa: E731
        {k: v for k, v in line.items() if k not in ("seconds", "steps_per_second")} for line in read_log(out.parent)
    ]
    assert clean(whole) == clean(resumed)
    return reached


def same_state(one: Path, other: Path) -> bool:
    """Optimizer, random states and counters of two checkpoints."""

    def flat(value):
        if isinstance(value, dict):
            return [item for key in sorted(value, key=str) for item in (str(key), *flat(value[key]))]
        if isinstance(value, (list, tuple)):
            return [item for part in value for item in flat(part)]
        return value.flatten().tolist() if isinstance(value, torch.Tensor) else [value]

    state = [flat(torch.load(c / "optimizer.bin", weights_only=True)) for c in (one, other)]
    return state[0] == state[1] and (one / "state.json").read_bytes() == (other / "state.json").read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_killed_and_resumed_equals_uninterrupted(place, tmp_path):
    reached = check_kills(place, tmp_path, kills=2, run__max_steps=16)
    assert reached == sorted(reached) and 0 < reached[0] < 16


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("cached", [False, True], ids=["pixels", "cached"])
def test_killed_ten_times(place, tmp_path, request, cached):
    if "slow" not in request.config.getoption("-m"):
        pytest.skip("takes minutes: run it with -m slow")
    changes = {"data__cache_variants": 3, "data__cache_views": 4, "optimizer__schedule": "cosine"} if cached else {}
    validated = {"validation__set": "davis-val", "validation__clips": "a", "validation__every": 17}
    reached = check_kills(place, tmp_path, kills=10, run__max_steps=60, **changes, **validated)
    print(f"killed after steps {reached}")
    assert len(reached) == 10


def launch(place, out, processes: int, **changes) -> list[dict]:
    """The run under ``accelerate launch`` in its own processes; returns its log."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        # "multi_gpu" is accelerate's word for several processes: with its own "--cpu" it starts one, without a word
        [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes),
         "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
         "-m", "gcgkit.cli", "train", *prepared.options(config(place, **changes), place, out)],
        env=environment, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return read_log(out)


@pytest.mark.slow
def test_two_processes_equal_one_with_the_doubled_batch(place, tmp_path):
    """The first 20 losses of ``accelerate launch`` with 2 CPU processes, 2 samples each, against 4 samples in one."""
    shared = {"run__max_steps": 20, "run__log_every": 1, "run__save_every": 7, "optimizer__learning_rate": 1e-3}
    run(place, tmp_path / "one", run__micro_batch=4, **shared)
    two = launch(place, tmp_path / "two", 2, run__micro_batch=2, **shared)
    one = read_log(tmp_path / "one")
    assert len(one) == len(two) == 20
    difference = max(abs(a["loss"] - b["loss"]) for a, b in zip(one, two, strict=True))
    print(f"largest difference of the first 20 losses: {difference:.1e}")
    assert difference < 1e-4
    assert len({line["loss"] for line in two}) == 20
    weights = [load_file(last(tmp_path / name) / "averaged.safetensors") for name in ("one", "two")]
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], atol=1e-4, rtol=1e-3)
    names = sorted(p.name for p in last(tmp_path / "two").glob("random*"))
    assert names == ["random_states_0.pkl", "random_states_1.pkl"]
    # and one process goes on with what two began
    steps = []
    run(place, tmp_path / "two", steps.append, **{**shared, "run__max_steps": 22, "run__micro_batch": 4})
    assert steps == [21, 22]


def test_a_pipeline_that_is_exported_again_has_the_same_digest(tmp_path):
    """Also when no caption was tokenized since, as in a run that was killed between its last step and the export."""
    place = prepared.workplace(tmp_path)
    before = weights_digest(run(place, tmp_path / "out", run__max_steps=2))
    shutil.rmtree(tmp_path / "out" / "pipeline")
    assert weights_digest(run(place, tmp_path / "out", run__max_steps=2)) == before
