"""The training loop against a loop written out by hand, and against itself when it is killed and resumed."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gcgkit.training.fit import best_precision, count_parameters, fit, seeded, warmup_cosine
from gcgkit.training.log import read_log

OPTIONS = {"learning_rate": 0.05, "warmup": 4, "mixed_precision": "no"}
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


def run(folder, steps: int = 30, kill_at: int | None = None, net=None, seen=None, **options):
    net = net or make_net()
    fit(folder, {"net": net}, regression(net, kill_at, seen), steps=steps, **{**OPTIONS, **options})
    return net


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
    losses, last, average = by_hand(40)
    for got, wanted in zip(weights(net), average, strict=True):
        np.testing.assert_allclose(got.numpy(), wanted.numpy(), atol=1e-4)
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    assert saved["step"] == 40
    for got, wanted in zip(saved["modules"]["net"].values(), last, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=0)
    log = read_log(tmp_path)
    assert [line["step"] for line in log] == [20, 40]
    for line, part in zip(log, (losses[:20], losses[20:]), strict=True):
        assert line["loss"] == pytest.approx(np.mean(part), abs=1e-4)
        assert line["twice"] == pytest.approx(2 * line["loss"], abs=2e-6) and line["seconds"] >= 0
    assert log[1]["loss"] < log[0]["loss"] / 2  # and it learns


def test_returns_the_averaged_weights_in_eval_mode(tmp_path):
    net = run(tmp_path)
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    assert same(weights(net), saved["ema"]["shadow_params"])
    assert not same(weights(net), list(saved["modules"]["net"].values()))
    assert not net.training


@pytest.mark.parametrize("kill_at", [1, 7, 29])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, kill_at):
    whole = run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "killed", kill_at=kill_at, save_every=0)
    assert torch.load(tmp_path / "killed/state.pt", weights_only=True)["step"] == kill_at
    torch.rand(5)  # whatever else has drawn random numbers in between
    net, seen = make_net(), []
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1.0)  # nothing of the fresh start may stay
    resumed = run(tmp_path / "killed", net=net, seen=seen)
    assert [step for step, _ in seen] == list(range(kill_at, 30))
    assert same(weights(whole), weights(resumed))
    states = [torch.load(tmp_path / name / "state.pt", weights_only=True) for name in ("whole", "killed")]
    assert states[0]["step"] == states[1]["step"] == 30
    for name in ("modules", "optimizer", "ema"):
        assert flat(states[0][name]) == flat(states[1][name])


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
            run(tmp_path / "killed", kill_at=step, save_every=0)
    assert same(weights(whole), weights(run(tmp_path / "killed")))


def test_killed_before_the_first_checkpoint_starts_over(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path / "killed", kill_at=9, save_every=1000)
    assert not (tmp_path / "killed/state.pt").exists()
    assert same(weights(run(tmp_path / "whole")), weights(run(tmp_path / "killed")))


def test_a_finished_run_is_not_trained_again(tmp_path):
    net, seen = run(tmp_path), []
    before = (tmp_path / "state.pt").read_bytes()
    again = run(tmp_path, seen=seen)
    assert seen == [] and same(weights(net), weights(again)) and not again.training
    assert (tmp_path / "state.pt").read_bytes() == before


def test_a_checkpoint_that_was_being_written_does_not_count(tmp_path, monkeypatch):
    """The machine dies in the middle of a save: the last whole checkpoint stands, and the run goes on from it."""
    with pytest.raises(Killed):
        run(tmp_path / "killed", kill_at=12, save_every=0)
    good, save = (tmp_path / "killed/state.pt").read_bytes(), torch.save

    def torn(content, path):
        save(content, path)
        path.write_bytes(path.read_bytes()[:100])
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", torn)
        with pytest.raises(Killed):
            run(tmp_path / "killed", save_every=0)
    assert (tmp_path / "killed/state.pt").read_bytes() == good
    resumed = run(tmp_path / "killed")
    assert sorted(p.name for p in (tmp_path / "killed").iterdir()) == ["log.jsonl", "state.pt"]
    assert same(weights(run(tmp_path / "whole")), weights(resumed))


def test_frozen_parameters_stay(tmp_path):
    net = make_net()
    net[0].requires_grad_(False)
    before = weights(net)
    run(tmp_path, net=net)
    after = weights(net)
    assert same(before[:2], after[:2]) and not same(before[2:], after[2:])


def test_batches_depend_on_seed_and_step_only(tmp_path):
    seen = {}
    for name, options in (("a", {}), ("b", {"learning_rate": 0.2, "warmup": 1}), ("c", {"seed": 1})):
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


def test_warmup_cosine_by_hand():
    assert warmup_cosine(0, 1000, 100) == 0.01
    assert warmup_cosine(99, 1000, 100) == 1.0 == warmup_cosine(100, 1000, 100)
    assert warmup_cosine(550, 1000, 100) == pytest.approx(0.51)  # half way: the mean of 1 and the floor
    assert warmup_cosine(1000, 1000, 100) == pytest.approx(0.02) == warmup_cosine(5000, 1000, 100)
    assert warmup_cosine(1000, 1000, 100, floor=0.0) == pytest.approx(0.0, abs=1e-12)
    assert warmup_cosine(0, 10, 0) == 1.0


@given(st.integers(2, 500), st.integers(0, 100))
def test_warmup_cosine_goes_up_then_down(steps, warmup):
    factors = np.array([warmup_cosine(step, steps, warmup) for step in range(steps + 1)])
    assert (factors > 0).all() and (factors <= 1).all()
    top = min(warmup, steps)
    assert (np.diff(factors[:top]) > 0).all() and (np.diff(factors[top:]) <= 0).all()


def test_best_precision_of_the_cpu():
    bf16 = torch.cpu._is_avx512_bf16_supported()
    assert best_precision("cpu") == ("bf16" if bf16 else "no")


def test_count_parameters():
    assert count_parameters([make_net(), torch.nn.Linear(2, 2, bias=False)]) == (3 * 8 + 8 + 8 + 1) + 4


def test_log_means_are_over_the_steps_that_gave_the_entry(tmp_path):
    net = make_net()

    def loss(step, generator):
        error = (net(torch.randn(4, 3, generator=generator))).square().mean()
        return {"loss": error, **({"fifth": torch.tensor(float(step))} if step % 5 == 0 else {})}

    fit(tmp_path, {"net": net}, loss, steps=40, **OPTIONS)
    assert [line["fifth"] for line in read_log(tmp_path)] == [7.5, 27.5]


def test_resumed_log_repeats_no_step(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, 80, kill_at=25, save_every=0)
    with pytest.raises(Killed):
        run(tmp_path, 80, kill_at=65, save_every=1000)  # logs 40 and 60, saves nothing
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 6')
    run(tmp_path, 80)
    assert [line["step"] for line in read_log(tmp_path)] == [20, 40, 60, 80]
