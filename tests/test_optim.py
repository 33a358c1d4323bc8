"""Optimizers sort parameters; schedules have their shapes."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Literal

import pytest
import torch

from gptlab import optim
from gptlab.config import build, config_from
from gptlab.errors import ConfigError
from gptlab.model import build_model
from gptlab.optim import AdamW, Muon, parameter_kind, set_learning_rate
from gptlab.schedules import WSD, Constant, Cosine, Linear, OneCycle, PowerLaw


def make_model(**changes: object) -> torch.nn.Module:
    return build_model(config_from({"model": {"dim": 32, "layers": 2, "heads": 2, "tied": False, **changes}}), 50)


def one_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, seed: int = 0) -> None:
    torch.manual_seed(seed)
    model(torch.randint(50, (2, 16)), return_logits=True).logsumexp(-1).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_kinds() -> None:
    kinds = {name: parameter_kind(name, p) for name, p in make_model(position="Learned").named_parameters()}
    assert kinds["embedding.weight"] == kinds["position.embedding.weight"] == "embedding"
    assert kinds["head.weight"] == "head"
    assert kinds["blocks.0.mlp.up.weight"] == kinds["blocks.1.attention.qkv.weight"] == "matrix"
    assert kinds["norm.weight"] == "scalar"


def test_adamw_equals_torchs_on_every_group() -> None:
    ours, theirs = make_model(), make_model()
    optimizer = AdamW(ours.named_parameters(), lr=1e-2, weight_decay=0.3)
    decayed = [p for p in theirs.parameters() if p.ndim >= 2]
    plain = [p for p in theirs.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.3}, {"params": plain, "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
    for seed in range(3):
        one_step(ours, optimizer, seed)
        one_step(theirs, reference, seed)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [AdamW, Muon])
def test_decay_falls_with_perplexity(kind: type[AdamW] | type[Muon]) -> None:
    """As torch's own decay, set by hand before each step; and none before a loss is known."""
    ours, theirs = make_model(), make_model()
    optimizer = kind(ours.named_parameters(), lr=1e-2, weight_decay=16.0, perplexity_power=1.5)
    reference = kind(theirs.named_parameters(), lr=1e-2, weight_decay=16.0)
    decays = [group["weight_decay"] for group in reference.param_groups]
    for seed, loss in enumerate([3.0, 2.0, 0.5]):
        optim.show_loss(optimizer, torch.tensor(loss / 2), lambda part: part * 2)  # as of two processes
        for group, decay in zip(reference.param_groups, decays, strict=True):
            group["weight_decay"] = decay * math.exp(-1.5 * loss)
        one_step(ours, optimizer, seed)
        one_step(theirs, reference, seed)
    start = make_model().state_dict()
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter, theirs.get_parameter(name), rtol=1e-4, atol=1e-5)
        assert not torch.equal(parameter, start[name])
    shown = torch.tensor(3.0)
    optim.show_loss(reference, shown, lambda _: pytest.fail("nobody asked for it"))


def test_decay_by_perplexity_is_of_the_step_that_is_taken() -> None:
    """Where float16's scaler finds an overflow the step is none, and so is its decay."""
    model = make_model()
    optimizer = AdamW(model.named_parameters(), lr=1e-2, weight_decay=16.0, perplexity_power=1.0)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optim.show_loss(optimizer, torch.tensor(0.0))
    before = model.blocks[0].mlp.up.weight.detach().clone()
    optimizer.found_inf = torch.tensor(1.0)
    optimizer._decay.apply()
    assert torch.equal(model.blocks[0].mlp.up.weight, before)
    optimizer.found_inf = torch.tensor(0.0)
    optimizer._decay.apply()
    torch.testing.assert_close(model.blocks[0].mlp.up.weight, before * (1 - 0.16))


def test_decay_that_nothing_is_left_of_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"optimizer.perplexity_power: 2 is how weight decay falls .* there is none"):
        AdamW(make_model().named_parameters(), weight_decay=0.0, perplexity_power=2.0)
    with pytest.raises(ConfigError, match=r"optimizer.perplexity_power: -1 is out of range"):
        Muon(make_model().named_parameters(), weight_decay=1.0, perplexity_power=-1.0)


def test_muon_is_torchs_muon_on_matrices_and_adamw_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optim, "has_fast_bfloat16", lambda _: True)  # what torch's always takes, fast or not
    ours, theirs = make_model(), make_model()
    before = copy.deepcopy(ours.state_dict())
    rates = {"adamw_lr": 3e-3, "head_lr": 1e-3, "scalar_lr": 5e-3}
    optimizer = Muon(ours.named_parameters(), lr=0.02, weight_decay=0.1, unstack=False, **rates)
    named = dict(theirs.named_parameters())
    kinds = {name: parameter_kind(name, p) for name, p in named.items()}
    adam = {"betas": (0.9, 0.95), "eps": 1e-8}
    matrices = [p for n, p in named.items() if kinds[n] == "matrix"]
    references: list[torch.optim.Optimizer] = [torch.optim.Muon(matrices, lr=0.02, weight_decay=0.1, momentum=0.95)]
    for kind, lr, decay in (("embedding", 3e-3, 0.1), ("head", 1e-3, 0.1), ("scalar", 5e-3, 0.0)):
        some = [p for n, p in named.items() if kinds[n] == kind]
        references.append(torch.optim.AdamW(some, lr=lr, weight_decay=decay, **adam))
    # One step: Newton-Schulz runs in bfloat16, whose last bits would already matter in a second gradient.
    one_step(ours, optimizer)
    torch.manual_seed(0)
    theirs(torch.randint(50, (2, 16)), return_logits=True).logsumexp(-1).sum().backward()
    for reference in references:
        reference.step()
    for name, p in ours.named_parameters():
        mine, its = p - before[name], named[name] - before[name]
        assert (mine - its).norm() <= (0.01 if kinds[name] == "matrix" else 1e-5) * its.norm(), name


@pytest.mark.parametrize("fast", [True, False], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("shape", [(3, 40, 24), (3, 24, 40), (1, 32, 32)])
def test_orthogonalized_matrices_keep_their_singular_vectors(
    shape: tuple[int, int, int], fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optim, "has_fast_bfloat16", lambda _: fast)
    torch.manual_seed(0)
    found = optim.orthogonalize(matrices := torch.randn(shape))
    assert (found.dtype, found.shape) == (torch.float32, matrices.shape)
    u, _, vt = torch.linalg.svd(matrices, full_matrices=False)
    turned = u.mT @ found @ vt.mT
    values = turned.diagonal(dim1=1, dim2=2)
    assert values.min() > 0.3
    assert values.max() < 1.3
    assert (turned - torch.diag_embed(values)).abs().max() < (0.05 if fast else 1e-4)


def muon_step(parameters: dict[str, torch.Tensor], gradients: dict[str, torch.Tensor], **options: object) -> None:
    optimizer = Muon(parameters.items(), **options)  # type: ignore[arg-type]
    for _ in range(2):
        for name, parameter in parameters.items():
            parameter.grad = gradients[name].clone()
        optimizer.step()


@pytest.mark.parametrize("unstack", [True, False])
def test_stacked_matrices_are_orthogonalized_each_by_itself(unstack: bool) -> None:
    torch.manual_seed(0)
    sizes = (32, 16, 16)
    whole = torch.nn.Parameter(torch.randn(64, 32))
    whole.stacked = sizes
    apart = [torch.nn.Parameter(piece.clone()) for piece in whole.detach().split(sizes)]
    gradient = torch.randn(64, 32) * torch.cat([torch.full((n, 1), x) for n, x in zip(sizes, (9, 1, 0.1), strict=True)])
    muon_step({"qkv": whole}, {"qkv": gradient}, unstack=unstack, weight_decay=0.1)
    muon_step(
        {f"m{i}": p for i, p in enumerate(apart)},
        {f"m{i}": g for i, g in enumerate(gradient.split(sizes))},
        weight_decay=0.1,
    )
    assert torch.equal(whole, torch.cat(apart)) == unstack


def test_a_shared_step_of_many_matrices_is_cut_where_memory_would_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    gradients = {f"m{i}": torch.randn(16, 8) for i in range(5)}
    together, cut = ({name: torch.nn.Parameter(torch.zeros(16, 8)) for name in gradients} for _ in range(2))
    muon_step(together, gradients)
    monkeypatch.setattr(optim, "_ELEMENTS", 2 * 16 * 8)
    muon_step(cut, gradients)
    torch.testing.assert_close(list(together.values()), list(cut.values()))


def test_models_say_which_matrices_they_stack() -> None:
    model = make_model(heads=4, block={"attention": {"kv_heads": 2}})
    stacked = {name: p.stacked for name, p in model.named_parameters() if hasattr(p, "stacked")}
    assert stacked == {f"blocks.{i}.attention.qkv.weight": (32, 16, 16) for i in range(2)}


@pytest.mark.parametrize("use", ["AdamW", "Muon"])
def test_state_dict_round_trip_goes_on_exactly(use: str) -> None:
    a = make_model()
    first = build("optimizer", use, named_parameters=a.named_parameters())
    one_step(a, first)
    b = make_model()
    b.load_state_dict(a.state_dict())
    second = build("optimizer", use, named_parameters=b.named_parameters())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    one_step(a, first, 1)
    one_step(b, second, 1)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_muons_momentum_rises_over_its_warmup_and_goes_on_from_a_checkpoint() -> None:
    """Steps of a constant gradient: the buffer is what the momenta so far make of it."""

    def optimizer() -> tuple[Muon, torch.Tensor]:
        weight = torch.nn.Parameter(torch.eye(4))
        weight.grad = torch.ones(4, 4)
        return Muon([("mlp.weight", weight)], momentum_warmup=4, momentum_start=0.5, momentum=0.9), weight

    one, weight = optimizer()
    expected = 0.0
    for momentum in (0.5, 0.6, 0.7):
        one.step()
        expected = momentum * expected + (1 - momentum)
    assert one.state[weight]["momentum_buffer"][0, 0].item() == pytest.approx(expected)
    two, other = optimizer()
    two.load_state_dict(one.state_dict())
    for momentum in (0.8, 0.9, 0.9):
        two.step()
        expected = momentum * expected + (1 - momentum)
    assert two.state[other]["momentum_buffer"][0, 0].item() == pytest.approx(expected)


def test_learning_rates_move_together() -> None:
    optimizer = Muon(make_model().named_parameters(), lr=0.02, adamw_lr=3e-3)
    set_learning_rate(optimizer, 0.5)
    set_learning_rate(optimizer, 0.25)
    assert {group["kind"]: group["lr"] for group in optimizer.param_groups} == {
        "matrix": 0.005,
        "embedding": 0.00075,
        "head": 0.00075,
        "scalar": 0.00075,
    }


def test_torchs_own_optimizers_fit_the_slot() -> None:
    config = config_from({"optimizer": {"use": "torch.optim.rmsprop:RMSprop", "lr": 0.1, "momentum": 0.9}})
    optimizer = build("optimizer", config.optimizer, named_parameters=list(make_model().named_parameters()))
    assert isinstance(optimizer, torch.optim.RMSprop)
    assert optimizer.param_groups[0]["momentum"] == 0.9


def test_schedules() -> None:
    for schedule in (Cosine(100, warmup=0.1, final=0.1), Linear(100, warmup=0.1, final=0.1)):
        values = [schedule(step) for step in range(101)]
        assert values[0] == pytest.approx(0.1)
        assert values[9] == values[10] == 1.0
        assert values[100] == pytest.approx(0.1)
        assert all(a >= b for a, b in itertools.pairwise(values[10:]))
    assert Cosine(100, warmup=0.0, final=0.0)(50) == pytest.approx(0.5)
    assert Linear(100, warmup=0.0, final=0.0)(25) == pytest.approx(0.75)
    wsd = WSD(100, warmup=0.1, decay=0.2, final=0.0)
    assert [wsd(step) for step in (10, 50, 80)] == [1.0, 1.0, 1.0]
    assert wsd(90) == pytest.approx(0.5)
    assert wsd(99) == pytest.approx(0.05)
    assert Constant(100, warmup=0.0)(99) == 1.0


@pytest.mark.parametrize("growth", [1, 2])
def test_restarts_are_torchs(growth: int) -> None:
    """Without a warmup, down to 0, with a whole number of steps in each cycle."""
    cycles, first = 3, 20
    total = sum(first * growth**index for index in range(cycles))
    ours = Cosine(total, warmup=0.0, final=0.0, cycles=cycles, growth=float(growth))
    theirs = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(_one_rate(1.0), T_0=first, T_mult=growth)
    assert [ours(step) for step in range(total)] == pytest.approx(_rates_of(theirs, total), abs=1e-12)
    linear = Linear(total, warmup=0.0, final=0.0, cycles=cycles, growth=float(growth))
    assert [linear(0), linear(first // 2), linear(first)] == pytest.approx([1.0, 0.5, 1.0])


@pytest.mark.parametrize("anneal", ["cosine", "linear"])
def test_one_cycle_is_torchs(anneal: Literal["cosine", "linear"]) -> None:
    """torch counts to the last step, which ends at the final rate; here that is the step after it."""
    strategy: Literal["cos", "linear"] = "cos" if anneal == "cosine" else "linear"
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        _one_rate(0.04), max_lr=1.0, total_steps=101, pct_start=31 / 101, anneal_strategy=strategy, cycle_momentum=False
    )
    ours = OneCycle(100, warmup=0.3, initial=0.04, final=4e-6, anneal=anneal)
    assert [ours(step) for step in range(101)] == pytest.approx(_rates_of(theirs, 101), abs=1e-9)


def _one_rate(lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)


def _rates_of(schedule: torch.optim.lr_scheduler.LRScheduler, steps: int) -> list[float]:
    rates = []
    for step in range(steps):
        rates.append(float(schedule.optimizer.param_groups[0]["lr"]))
        schedule.optimizer.step()
        if step < steps - 1:
            schedule.step()
    return rates


def test_a_power_law_does_not_know_where_the_run_ends() -> None:
    short, long = PowerLaw(200, warmup=0.1, power=0.08), PowerLaw(1000, warmup=0.02, power=0.08)
    assert [short(step) for step in range(200)] == pytest.approx([long(step) for step in range(200)], rel=1e-12)
    assert short(19) == short(20) == 1.0
    assert short(20 + 99) == pytest.approx(100**-0.08)
    with pytest.raises(ConfigError, match=r"schedule.power: -0.5 is out of range; make it at least 0"):
        PowerLaw(100, power=-0.5)


@pytest.mark.parametrize(
    ("use", "arguments", "message"),
    [
        ("AdamW", {"lr": -1e-3}, "optimizer.lr: -0.001 is out of range; make it above 0"),
        ("AdamW", {"head_lr": -1e-3}, "optimizer.head_lr: -0.001 is out of range"),
        ("AdamW", {"betas": [0.9, 1.0]}, "optimizer.betas: 1 is out of range; make it at least 0 and below 1"),
        ("AdamW", {"eps": 0.0}, "optimizer.eps: 0 is out of range; make it above 0"),
        ("AdamW", {"weight_decay": -0.1}, "optimizer.weight_decay: -0.1 is out of range"),
        ("Muon", {"lr": -0.02}, "optimizer.lr: -0.02 is out of range"),
        ("Muon", {"adamw_lr": -0.02}, "optimizer.adamw_lr: -0.02 is out of range"),
        ("Muon", {"momentum": 1.0}, "optimizer.momentum: 1 is out of range; make it at least 0 and below 1"),
        ("Muon", {"momentum_start": -0.1}, "optimizer.momentum_start: -0.1 is out of range"),
        ("Muon", {"momentum_warmup": -1}, "optimizer.momentum_warmup: -1 is out of range; make it at least 0"),
        ("Muon", {"ns_steps": 0}, "optimizer.ns_steps: 0 is out of range; make it from 1 to 99"),
        ("Muon", {"ns_steps": 100}, "optimizer.ns_steps: 100 is out of range"),
        ("Muon", {"betas": [-0.1, 0.9]}, "optimizer.betas: -0.1 is out of range"),
        ("Muon", {"eps": -1e-8}, "optimizer.eps: -1e-08 is out of range"),
        ("Muon", {"weight_decay": -0.1}, "optimizer.weight_decay: -0.1 is out of range"),
    ],
)
def test_impossible_numbers_are_refused(use: str, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("optimizer", {"use": use, **arguments}, named_parameters=make_model().named_parameters())


@pytest.mark.parametrize("use", ["AdamW", "Muon"])
def test_a_rate_that_nothing_learns_at_is_refused(use: str) -> None:
    tied = make_model(tied=True)
    with pytest.raises(ConfigError, match=r"optimizer.head_lr: .* a tied head is an embedding; set embedding_lr"):
        build("optimizer", {"use": use, "head_lr": 1e-3}, named_parameters=tied.named_parameters())
    bare = make_model(norm={"use": "RMSNorm", "affine": False})
    with pytest.raises(ConfigError, match=r"optimizer.scalar_lr: the model has no parameter of the kind 'scalar'"):
        build("optimizer", {"use": use, "scalar_lr": 1e-3}, named_parameters=bare.named_parameters())


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"use": "Cosine", "warmup": 1.5}, "schedule.warmup: 1.5 is out of range; make it from 0 to 1"),
        ({"use": "Linear", "final": -0.1}, "schedule.final: -0.1 is out of range; make it from 0 to 1"),
        ({"use": "Cosine", "final": 2.0}, "schedule.final: 2 is out of range"),
        ({"use": "Cosine", "cycles": 0}, "schedule.cycles: 0 is out of range; make it from 1 to 99"),
        ({"use": "Linear", "growth": 1e9}, r"schedule.growth: 1e\+09 is out of range; make it from 0.1 to 10"),
        ({"use": "OneCycle", "initial": 2.0}, "schedule.initial: 2 is out of range"),
        ({"use": "WSD", "decay": -1.0}, "schedule.decay: -1 is out of range"),
        (
            {"use": "WSD", "warmup": 0.5, "decay": 0.6},
            "last 0.6 of the run and a warmup over its first 0.5 overlap",
        ),
    ],
)
def test_impossible_schedules_are_refused(schedule: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("schedule", schedule, total_steps=100)
