"""The training loop against a loop written out by hand, and against itself when it is killed and resumed."""

import itertools
import json
import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from gcgkit.training import checkpoints
from gcgkit.training import step as training_step
from gcgkit.training.log import read_log
from gcgkit.training.loop import best_precision, fit, seeded
from gcgkit.training.recipes import MINI
from gcgkit.training.step import rate_factor

SETTINGS = replace(MINI.optimizer, learning_rate=0.05, warmup=4)  # AdamW, betas 0.9 and 0.99, cosine, EMA 0.999
TRUTH = torch.tensor([[1.0, -2.0, 0.5]])

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="bit for bit is promised on the CPU only")


class Killed(Exception):
    pass


def make_net() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))


def regression(net, kill_at: int | None = None, seen: list | None = None):
    """Squared error on a random batch, which stops the run at a step."""

    def loss(step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        if step == kill_at:
            raise Killed
        x = torch.randn(16, 3, generator=generator)
        if seen is not None:
            seen.append((step, x))
        error = (net(x) - x @ TRUTH.T).square().mean()
        return {"loss": error, "twice": 2 * error.detach()}

    return loss


def weights(net) -> list[torch.Tensor]:
    return [p.detach().clone() for p in net.parameters()]


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def run(folder, steps: int = 30, kill_at: int | None = None, net=None, seen=None, settings=SETTINGS, **options):
    net = net or make_net()
    options = {"precision": "no", **options}
    fit(folder, {"net": net}, regression(net, kill_at, seen), settings, steps=steps, **options)
    return net


def last(folder):
    """The newest checkpoint of a run."""
    return checkpoints.list_checkpoints(folder / "checkpoints")[-1][1]


def kept(folder, name: str) -> list[torch.Tensor]:
    """Weights of the newest checkpoint, in the network's order."""
    saved = load_file(last(folder) / f"{name}.safetensors")
    return [saved[f"net.{key}"] for key, _ in make_net().named_parameters()]


def state(folder) -> list:
    """Everything else in it: the optimizer, random states, counters and the open log line."""
    files = [torch.load(last(folder) / name, weights_only=True) for name in ("optimizer.bin",)]
    return flat([*files, json.loads((last(folder) / "state.json").read_text())])


def by_hand(steps: int, seed: int = 0, ema_decay: float = 0.999):
    """Batches, AdamW, warm-up and cosine, clipping and EMA, written out: losses, last weights, averaged weights."""
    net, losses = make_net(), []
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.05, weight_decay=0.01, betas=(0.9, 0.99))
    average = [p.detach().double() for p in net.parameters()]
    for step in range(steps):
        x = torch.randn(16, 3, generator=seeded(seed, step))
        error = (net(x) - x @ TRUTH.T).square().mean()
        losses.append(error.item())
        optimizer.zero_grad()
        error.backward()
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in net.parameters()))
        for p in net.parameters():
            p.grad *= min(1.0, 1.0 / (norm + 1e-6))
        cosine = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - 4) / (steps - 4)))
        optimizer.param_groups[0]["lr"] = 0.05 * ((step + 1) / 4 if step < 4 else cosine)
        optimizer.step()
        # the average forgets fast at first: 1 - (1 + step)^-0.75, at most ema_decay
        decay = min(ema_decay, 1 - (1 + step) ** -0.75) if step else 0.0
        average = [
            decay * a + (1 - decay) * p.detach().double() for a, p in zip(average, net.parameters(), strict=True)
        ]
    return losses, weights(net), average


def test_equals_a_loop_by_hand(tmp_path):
    net = run(tmp_path, 40)
    losses, unaveraged, average = by_hand(40)
    for got, wanted in zip(weights(net), average, strict=True):
        np.testing.assert_allclose(got.numpy(), wanted.numpy(), atol=1e-4)
    assert checkpoints.list_checkpoints(tmp_path / "checkpoints")[-1][0] == 40
    for got, wanted in zip(kept(tmp_path, "weights"), unaveraged, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=0)
    log = read_log(tmp_path)
    assert [line["step"] for line in log] == [20, 40]
    for line, part in zip(log, (losses[:20], losses[20:]), strict=True):
        assert line["loss"] == pytest.approx(np.mean(part), abs=1e-4)
        assert line["twice"] == pytest.approx(2 * line["loss"], abs=2e-6) and line["seconds"] >= 0
    assert log[1]["loss"] < log[0]["loss"] / 2  # and it learns


def test_returns_the_averaged_weights_in_eval_mode(tmp_path):
    net = run(tmp_path)
    assert same(weights(net), kept(tmp_path, "averaged"))
    assert not same(weights(net), kept(tmp_path, "weights"))
    assert not net.training


@pytest.mark.parametrize("kill_at", [1, 7, 29])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, kill_at):
    whole = run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "killed", kill_at=kill_at, save_every=1)
    assert last(tmp_path / "killed").name == f"step-{kill_at:08d}"
    torch.rand(5)  # whatever else has drawn random numbers in between
    net, seen = make_net(), []
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1.0)  # nothing of the fresh start may stay
    resumed = run(tmp_path / "killed", net=net, seen=seen)
    assert [step for step, _ in seen] == list(range(kill_at, 30))
    assert same(weights(whole), weights(resumed))
    assert last(tmp_path / "whole").name == last(tmp_path / "killed").name == "step-00000030"
    assert same(kept(tmp_path / "whole", "weights"), kept(tmp_path / "killed", "weights"))
    assert state(tmp_path / "whole") == state(tmp_path / "killed")


def test_random_numbers_of_a_loss_are_those_of_an_uninterrupted_run(tmp_path):
    """A loss may draw from any generator: all of them are in the checkpoint."""

    def train(folder, kill_at=None):
        net, drawn = make_net(), []

        def loss(step, generator):
            if step == kill_at:
                raise Killed
            numbers = torch.rand(2), torch.tensor(np.random.rand(2)), torch.tensor(random.random())
            drawn.append([n.flatten().tolist() for n in numbers])
            return {"loss": (net(torch.cat([numbers[0], numbers[1].float()])[:3]) - 1).square().mean()}

        random.seed(1), np.random.seed(2), torch.manual_seed(3)
        fit(folder, {"net": net}, loss, SETTINGS, steps=9, precision="no", save_every=1)
        return drawn, weights(net)

    drawn, whole = train(tmp_path / "whole")
    with pytest.raises(Killed):
        train(tmp_path / "killed", kill_at=5)
    again, resumed = train(tmp_path / "killed")
    assert again == drawn[5:] and same(whole, resumed)


def flat(value) -> list:
    """Everything in a nested state, tensors as lists, for an exact comparison."""
    if isinstance(value, dict):
        return [item for key in sorted(value, key=str) for item in (str(key), *flat(value[key]))]
    if isinstance(value, (list, tuple)):
        return [item for part in value for item in flat(part)]
    return value.flatten().tolist() if isinstance(value, torch.Tensor) else [value]


def test_killed_twice(tmp_path):
    whole = run(tmp_path / "whole")
    for step in (5, 18):
        with pytest.raises(Killed):
            run(tmp_path / "killed", kill_at=step, save_every=1)
    assert same(weights(whole), weights(run(tmp_path / "killed")))


def test_killed_before_the_first_checkpoint_starts_over(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path / "killed", kill_at=9, save_every=1000)
    assert checkpoints.list_checkpoints(tmp_path / "killed/checkpoints") == []
    assert same(weights(run(tmp_path / "whole")), weights(run(tmp_path / "killed")))


def test_a_finished_run_is_not_trained_again(tmp_path):
    net, seen = run(tmp_path), []
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    again = run(tmp_path, seen=seen)
    assert seen == [] and same(weights(net), weights(again)) and not again.training
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_a_checkpoint_that_was_being_written_does_not_count(tmp_path, monkeypatch):
    """The machine dies in the middle of a save: the last whole checkpoint stands, and the run goes on from it."""
    with pytest.raises(Killed):
        run(tmp_path / "killed", kill_at=12, save_every=1)
    good, save_state = last(tmp_path / "killed"), Accelerator.save_state

    def torn(self, folder):
        save_state(self, folder)
        for file in Path(folder).iterdir():
            file.write_bytes(file.read_bytes()[:100])
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Accelerator, "save_state", torn)
        with pytest.raises(Killed):
            run(tmp_path / "killed", save_every=1)
    assert last(tmp_path / "killed") == good
    resumed = run(tmp_path / "killed", save_every=10)
    assert sorted(p.name for p in (tmp_path / "killed/checkpoints").iterdir()) == ["step-00000020", "step-00000030"]
    assert same(weights(run(tmp_path / "whole")), weights(resumed))


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    run(tmp_path, 3)
    other = torch.nn.Linear(3, 1)
    with pytest.raises(ValueError, match="step-00000003 is of another network"):
        fit(tmp_path, {"net": other}, regression(other), SETTINGS, steps=5, precision="no")


def test_the_clock_ends_a_run_and_lowers_its_rate(tmp_path, monkeypatch):
    """A clock that goes a second further with each step: ten seconds, a rate that falls with them, then no more."""
    now, seen = [0.0], []
    monkeypatch.setattr(training_step.time, "monotonic", lambda: now[0])
    net = make_net()
    error = regression(net)

    def loss(step, generator):
        now[0] += 1.0
        return error(step, generator)

    rates = lambda learner, log: seen.append(learner.optimizer.param_groups[0]["lr"])  # noqa: E731
    settings = replace(SETTINGS, warmup=2)
    fit(tmp_path, {"net": net}, loss, settings, steps=10**6, seconds=10.0, precision="no", after_step=rates)
    wanted = [0.025, 0.05] + [0.05 * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * t / 10))) for t in range(2, 11)]
    assert seen == pytest.approx(wanted) and last(tmp_path).name == "step-00000011"


def test_passes_and_module_rates_by_hand(tmp_path):
    """Two passes of eight samples are one batch of sixteen; a module's factor is on its learning rate alone."""
    data = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    nets = {}
    for name, passes in (("one", 1), ("two", 2)):
        net = nets[name] = make_net()
        turns = itertools.cycle(data.chunk(passes))

        def loss(step, generator, net=net, turns=turns):
            x = next(turns)
            return {"loss": (net(x) - x @ TRUTH.T).square().mean()}

        fit(
            tmp_path / name, {"first": net[0], "last": net[2]}, loss, SETTINGS, steps=5, precision="no",
            accelerator=Accelerator(cpu=True, gradient_accumulation_steps=passes), rates={"last": 0.0},
        )  # fmt: skip
    for one, two in zip(*(weights(net) for net in nets.values()), strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)
    start = make_net()
    assert same(weights(start[2]), weights(nets["two"][2])) and not same(weights(start[0]), weights(nets["two"][0]))


def test_frozen_parameters_stay(tmp_path):
    net = make_net()
    net[0].requires_grad_(False)
    before = weights(net)
    run(tmp_path, net=net)
    after = weights(net)
    assert same(before[:2], after[:2]) and not same(before[2:], after[2:])


def test_batches_depend_on_seed_and_step_only(tmp_path):
    seen = {}
    for name, options in (("a", {}), ("b", {"settings": replace(SETTINGS, learning_rate=0.2)}), ("c", {"seed": 1})):
        seen[name] = []
        run(tmp_path / name, 12, seen=seen[name], **options)
    batches = {name: [x for _, x in found] for name, found in seen.items()}
    assert same(batches["a"], batches["b"])
    assert not any(torch.equal(x, y) for x, y in zip(batches["a"], batches["c"], strict=True))
    assert len({x.sum().item() for x in batches["a"]}) == 12


@given(st.tuples(st.integers(0, 50), st.integers(0, 10**5)), st.tuples(st.integers(0, 50), st.integers(0, 10**5)))
def test_seeds_do_not_meet(one, two):
    assert (seeded(*one).initial_seed() == seeded(*two).initial_seed()) == (one == two)
    assert torch.equal(torch.rand(3, generator=seeded(*one)), torch.rand(3, generator=seeded(*one)))


def test_last_log_line_has_the_rest(tmp_path):
    run(tmp_path, 25)
    assert [line["step"] for line in read_log(tmp_path)] == [20, 25]
    raw = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in raw] == read_log(tmp_path)
    assert read_log(tmp_path)[1]["loss"] == pytest.approx(np.mean(by_hand(25)[0][20:]), abs=1e-4)


def test_learning_rates_by_hand():
    assert rate_factor(0, 1000, 100) == 0.01
    assert rate_factor(99, 1000, 100) == 1.0 == rate_factor(100, 1000, 100)
    assert rate_factor(550, 1000, 100) == pytest.approx(0.51)  # half way: the mean of 1 and the floor
    assert rate_factor(1000, 1000, 100) == pytest.approx(0.02) == rate_factor(5000, 1000, 100)
    assert rate_factor(0, 10, 0) == 1.0
    assert [rate_factor(s, 100, 10, "constant") for s in (0, 4, 9, 50)] == [0.1, 0.5, 1, 1]
    assert [rate_factor(s, 100, 0, "constant") for s in (0, 50, 99)] == [1, 1, 1]
    assert (
        rate_factor(200, 1000, 100, passed=0.5) == pytest.approx(0.51) and rate_factor(9, 1000, 100, passed=0.5) == 0.1
    )


@given(st.integers(2, 500), st.integers(0, 100))
def test_the_rate_goes_up_then_down(steps, warmup):
    factors = np.array([rate_factor(step, steps, warmup) for step in range(steps + 1)])
    assert (factors > 0).all() and (factors <= 1).all()
    top = min(warmup, steps)
    assert (np.diff(factors[:top]) > 0).all() and (np.diff(factors[top:]) <= 0).all()


def test_best_precision_of_the_cpu():
    bf16 = torch.cpu._is_avx512_bf16_supported()
    assert best_precision("cpu") == ("bf16" if bf16 else "no")


def test_log_means_are_over_the_steps_that_gave_the_entry(tmp_path):
    net = make_net()

    def loss(step, generator):
        error = (net(torch.randn(4, 3, generator=generator))).square().mean()
        return {"loss": error, **({"fifth": torch.tensor(float(step))} if step % 5 == 0 else {})}

    fit(tmp_path, {"net": net}, loss, SETTINGS, steps=40, precision="no")
    assert [line["fifth"] for line in read_log(tmp_path)] == [7.5, 27.5]


def test_resumed_log_repeats_no_step(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, 80, kill_at=25, save_every=1)
    with pytest.raises(Killed):
        run(tmp_path, 80, kill_at=65, save_every=1000)  # logs 40 and 60, saves nothing
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 6')
    run(tmp_path, 80)
    assert [line["step"] for line in read_log(tmp_path)] == [20, 40, 60, 80]
