"""The step: resumption, number of workers, switches, guards, schedule, moving average."""

import inspect
import itertools
import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aalnet import ddm, mem
from aalnet.baselines import STEPS, train_step
from aalnet.batch import ALONE, Batch, World
from aalnet.errors import CheckpointError, DataError, NonFiniteError
from aalnet.networks import DataSpec
from aalnet.sampling import noise_for
from aalnet.settings import OptimizerSettings, RunSettings, Settings, parse_settings
from aalnet.state import TrainState
from aalnet.update import apply, backward, frozen, learning_rate, require_finite

SPEC = DataSpec(labels=("a", "b"), condition_channels=1, target_channels=1)
TINY = {"widths": [4, 8], "noise_size": 4, "embedding_size": 8}
BATCH, K = 5, 3
ALL_TERMS = {
    "K": K, "offset_share": 0.5, "flatness": 1e-4, "gamma": 1e-4,
    "penalty_interval": 2, "r1_interval": 2,
}  # fmt: skip


def settings_of(
    model: str = "aalnet", *, run: dict[str, Any] | None = None, **sections: Any
) -> Settings:
    given = {
        "model": model,
        "network": TINY,
        "data": {"batch_images": BATCH},
        "objective": ALL_TERMS | sections.pop("objective", {}),
        "optimizer": {"warmup_images": 10} | sections.pop("optimizer", {}),
        "run": {"images": 20 * BATCH} | (run or {}),
    }
    return parse_settings(given | sections)


def new_state(settings: Settings, dtype: torch.dtype = torch.float32) -> TrainState:
    values = settings.to_dict()
    values["run"]["precision"] = str(dtype).removeprefix("torch.")
    return TrainState(parse_settings(values), SPEC, torch.device("cpu"))


def global_batch(images_seen: int, dtype: torch.dtype = torch.float32, k: int = K) -> Batch:
    """White paper with a dark shape, as a function of the images seen."""
    noise = noise_for(7, images_seen, BATCH, k, TINY["noise_size"])
    coarse = noise_for(8, images_seen, BATCH, 2, 16).view(BATCH, 2, 4, 4)
    drawn = nn.functional.interpolate(coarse, scale_factor=8.0, mode="bilinear").clamp(-1, 1)
    label = torch.arange(BATCH) % 2
    parts = (drawn[:, :1].to(dtype), drawn[:, 1:].to(dtype), label, noise.to(dtype))
    return Batch(*parts, BATCH)


def part_of(batch: Batch, part: slice) -> Batch:
    tensors = (batch.condition, batch.target, batch.label, batch.noise)
    return Batch(*(tensor[part] for tensor in tensors), batch.global_images)


def train(state: TrainState, steps: int, world: World = ALONE, part: slice = slice(None)) -> None:
    dtype = next(state.generator.parameters()).dtype
    for _ in range(steps):
        batch = global_batch(state.images_seen, dtype)
        STEPS[state.settings.model](state, part_of(batch, part), world)


class Recorder:
    """A world of one worker that keeps a copy of all it was asked to sum."""

    def __init__(self) -> None:
        self.calls: list[list[Tensor]] = []

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        self.calls.append([tensor.detach().clone() for tensor in tensors])


class Workers:
    """Worlds of several workers in threads, which meet at a barrier to sum."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.barrier = threading.Barrier(count, timeout=60)
        self.given: dict[int, Sequence[Tensor]] = {}
        self.summed: list[Tensor] = []
        self.calls: list[list[Tensor]] = []

    def _add_up(self) -> None:
        ranks = [self.given[rank] for rank in range(self.count)]
        self.summed = [torch.stack(list(parts)).sum(dim=0) for parts in zip(*ranks, strict=True)]
        self.calls.append(self.summed)

    def sum_of(self, rank: int, tensors: Sequence[Tensor]) -> None:
        self.given[rank] = [tensor.detach().clone() for tensor in tensors]
        if self.barrier.wait() == 0:
            self._add_up()
        self.barrier.wait()
        for tensor, total in zip(tensors, self.summed, strict=True):
            tensor.copy_(total)
        self.barrier.wait()

    def train(self, states: list[TrainState], steps: int, cuts: list[int]) -> None:
        parts = [slice(a, b) for a, b in itertools.pairwise(cuts)]

        def work(rank: int) -> None:
            try:
                train(states[rank], steps, _Rank(self, rank), parts[rank])
            except BaseException:
                self.barrier.abort()
                raise

        with ThreadPoolExecutor(self.count) as pool:
            list(pool.map(work, range(self.count)))


class _Rank:
    def __init__(self, workers: Workers, rank: int) -> None:
        self.workers, self.rank = workers, rank

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        self.workers.sum_of(self.rank, tensors)


CUTS = {1: [0, 5], 2: [0, 3, 5], 3: [0, 1, 3, 5]}


def vector(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().double().flatten() for tensor in tensors])


def weights_of(state: TrainState) -> Tensor:
    networks = (*state.networks.values(), state.ema)
    return vector([p for network in networks for p in network.parameters()])


def apart(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).norm() / wanted.norm()).item()


# Resumption.


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("model", ["aalnet", "gan", "vae"])
def test_resume_is_exact(model: str, optimizer: str) -> None:
    settings = settings_of(model, optimizer={"name": optimizer, "lr": 1e-3})
    whole, first = new_state(settings), new_state(settings)
    train(whole, 4)
    train(first, 2)
    saved = {
        name: {key: value.clone() for key, value in tensors.items()}
        for name, tensors in first.tensors().items()
    }
    again = new_state(
        settings_of(model, optimizer={"name": optimizer, "lr": 1e-3}, run={"seed": 5})
    )
    again.settings = settings
    again.load_tensors(saved)
    again.images_seen, again.steps = first.images_seen, first.steps
    train(again, 2)

    wanted, found = whole.tensors(), again.tensors()
    assert wanted.keys() == found.keys()
    sides = {"generator", "posterior" if model == "vae" else "discriminator"}
    optimizers = {"generator_optimizer", "discriminator_optimizer"} - (
        {"discriminator_optimizer"} if model == "vae" else set()
    )
    assert wanted.keys() == {*sides, "ema", *optimizers}
    for name, tensors in wanted.items():
        assert tensors.keys() == found[name].keys()
        assert tensors
        for key, value in tensors.items():
            assert torch.equal(value, found[name][key]), f"{name}: {key}"
    assert (again.images_seen, again.steps) == (whole.images_seen, whole.steps) == (20, 4)
    assert not torch.equal(weights_of(first), weights_of(whole))


def test_the_seed_alone_decides_the_first_weights() -> None:
    torch.manual_seed(1)
    first = weights_of(new_state(settings_of(run={"seed": 3})))
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    assert torch.equal(weights_of(new_state(settings_of(run={"seed": 3}))), first)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.equal(weights_of(new_state(settings_of(run={"seed": 4}))), first)


def damaged(kind: str, files: dict[str, dict[str, Tensor]]) -> None:
    weight = files["generator"]["output.weight"]
    if kind == "no ema":
        del files["ema"]
    elif kind == "another file":
        files["posterior"] = {}
    elif kind == "a name is missing":
        del files["generator"]["output.weight"]
    elif kind == "another shape":
        files["generator"]["output.weight"] = weight[:, :1]
    elif kind == "another type":
        files["generator"]["output.weight"] = weight.double()
    elif kind == "an optimizer of more parameters":
        files["generator_optimizer"]["9999.exp_avg"] = weight
    elif kind == "an optimizer of another shape":
        files["generator_optimizer"]["0.exp_avg"] = weight[..., :2]


@pytest.mark.parametrize(
    "kind",
    [
        "no ema", "another file", "a name is missing", "another shape", "another type",
        "an optimizer of more parameters", "an optimizer of another shape",
    ],
)  # fmt: skip
def test_a_checkpoint_of_another_make_is_refused(kind: str) -> None:
    state = new_state(settings_of())
    train(state, 1)
    files = {name: dict(tensors) for name, tensors in state.tensors().items()}
    damaged(kind, files)
    with pytest.raises(CheckpointError):
        new_state(settings_of()).load_tensors(files)


# The number of workers.


def trained_by(count: int, steps: int, dtype: torch.dtype, settings: Settings) -> list[TrainState]:
    states = [new_state(settings, dtype) for _ in range(count)]
    Workers(count).train(states, steps, CUTS[count])
    return states


@pytest.mark.parametrize(
    ("model", "dtype", "tolerance"),
    [
        ("aalnet", torch.float64, 1e-9),
        ("aalnet", torch.float32, 1e-3),
        ("gan", torch.float64, 1e-9),
        ("vae", torch.float64, 1e-9),
    ],
)
def test_workers_change_nothing_in_twenty_steps(
    model: str, dtype: torch.dtype, tolerance: float
) -> None:
    settings = settings_of(model)
    alone = new_state(settings, dtype)
    train(alone, 20)
    for count in (2, 3) if dtype == torch.float64 and model == "aalnet" else (3,):
        states = trained_by(count, 20, dtype, settings)
        for state in states:
            assert apart(weights_of(state), weights_of(alone)) <= tolerance
            assert torch.equal(weights_of(state), weights_of(states[0]))
    assert apart(weights_of(alone), weights_of(new_state(settings, dtype))) > 0.01


@pytest.mark.parametrize("penalties_due", [False, True])
@pytest.mark.parametrize("count", [2, 3])
def test_summed_gradients_of_one_step(count: int, penalties_due: bool) -> None:
    settings = settings_of()
    alone, one = new_state(settings), Recorder()
    states, several = [new_state(settings) for _ in range(count)], Workers(count)
    for state in (alone, *states):
        state.steps = int(penalties_due)
    train(alone, 1, one)
    several.train(states, 1, CUTS[count])
    assert len(one.calls) == len(several.calls) == (4 if penalties_due else 2)
    for mine, theirs in zip(one.calls, several.calls, strict=True):
        assert apart(vector(theirs), vector(mine)) <= 1e-5


def test_reported_values_are_those_of_the_global_batch() -> None:
    settings = settings_of()
    batch = global_batch(0)
    whole = train_step(new_state(settings), batch)
    workers, states = Workers(2), [new_state(settings) for _ in range(2)]
    parts = [part_of(batch, slice(0, 3)), part_of(batch, slice(3, 5))]
    with ThreadPoolExecutor(2) as pool:
        found = list(
            pool.map(lambda r: train_step(states[r], parts[r], _Rank(workers, r)), range(2))
        )
    assert found[0] == found[1]
    assert found[0] == pytest.approx(whole, rel=1e-4, abs=1e-6)


# Switches: a weight of 0 removes its term, from the output and from the gradient.

OFF = {
    "lambda": 0.0, "eta": 0.0, "beta": 0.0, "gamma": 0.0, "flatness": 0.0, "offset_share": 0.0,
    "r1": 0.0, "penalty_interval": 1, "r1_interval": 1, "penalty_method": "exact",
}  # fmt: skip
ALWAYS = {
    "separation", *ddm.ACCURACIES, "discriminator_norm", "log_likelihood", "generator_norm",
}  # fmt: skip


def gradients_with(**objective: float) -> tuple[dict[str, float], Tensor, Tensor]:
    """One step without moving D: the values, D's and G's gradients before clipping."""
    still = {"name": "sgd", "lr": 1e-30}
    state = new_state(settings_of(objective=OFF | objective, optimizer=still), torch.float64)
    world = Recorder()
    values = train_step(state, global_batch(0, torch.float64), world)
    sides = {len(list(net.parameters())): name for name, net in state.networks.items()}
    assert len(sides) == 2
    found = {sides[len(c) - 1]: vector(c[:-1]) for c in world.calls if len(c) - 1 in sides}
    return values, found["discriminator"], found["generator"]


@pytest.mark.parametrize(
    ("key", "names", "side"),
    [
        ("lambda", {"realism"}, "generator"),
        ("eta", {"entropy"}, "generator"),
        ("beta", {"reward"}, "generator"),
        ("gamma", {"response"}, "generator"),
        ("flatness", {"density_flatness"}, "generator"),
        ("r1", {"image_gradient"}, "discriminator"),
        ("offset_share", {"offset", "discriminator_offset"}, "both"),
    ],
)
def test_each_weight_switches_its_term_alone(key: str, names: set[str], side: str) -> None:
    fixed = {"eta": 1.0} if key == "offset_share" else {}
    kept = ALWAYS | {"entropy"} if fixed else ALWAYS
    results = [gradients_with(**{key: weight}, **fixed) for weight in (0.0, 0.5, 1.0)]
    values = [result[0] for result in results]
    assert values[0].keys() == kept
    assert values[1].keys() == values[2].keys() == kept | names
    for name in names:
        assert values[1][name] == values[2][name] != 0  # raw, whatever its weight
    for position, name in ((1, "discriminator"), (2, "generator")):
        none, half, full = (result[position] for result in results)
        assert (full - none).norm() == pytest.approx(2 * (half - none).norm().item(), rel=1e-6)
        assert ((full - none).norm() > 0) == (side in (name, "both"))


def test_offset_is_weighed_by_eta_too() -> None:
    values, _, _ = gradients_with(eta=0.0, offset_share=1.0)
    assert values.keys() == ALWAYS


def test_weights_carry_the_articles_signs() -> None:
    objective = settings_of(
        objective={"lambda": 2, "eta": 3, "beta": 5, "offset_share": 7, "r1": 11, "r1_interval": 13}
    ).objective
    assert ddm.generator_weights(objective) == {
        "log_likelihood": 1, "realism": 2, "entropy": 3, "offset": -21, "reward": 5,
    }  # fmt: skip
    assert ddm.discriminator_weights(objective) == {
        "separation": 1, "discriminator_offset": -21, "image_gradient": -0.5 * 11 * 13,
        "discriminator_accuracy": 0, "real_accuracy": 0, "fake_accuracy": 0,
    }  # fmt: skip


def test_a_penalty_weighs_the_steps_it_was_not_due() -> None:
    found = []
    for interval in (1, 4):
        state = new_state(
            settings_of(objective=OFF | {"gamma": 0.1, "penalty_interval": interval}),
            torch.float64,
        )
        mem.add_penalty_gradients(state, global_batch(0, torch.float64), ALONE)
        found.append(vector([p.grad for p in state.generator.parameters()]))
    torch.testing.assert_close(found[1], 4 * found[0])


def test_intervals_name_the_last_step_of_each() -> None:
    state = new_state(settings_of(objective={"penalty_interval": 3, "r1_interval": 2}))
    seen = [train_step(state, global_batch(state.images_seen)).keys() for _ in range(6)]
    assert ["image_gradient" in keys for keys in seen] == [False, True] * 3
    assert ["response" in keys for keys in seen] == [False, False, True] * 2
    assert ["density_flatness" in keys for keys in seen] == [False, False, True] * 2


def test_gan_uses_the_first_noise_alone() -> None:
    states = [new_state(settings_of("gan")) for _ in range(2)]
    batch = global_batch(0)
    one = Batch(batch.condition, batch.target, batch.label, batch.noise[:, :1], BATCH)
    values = [STEPS["gan"](s, b, ALONE) for s, b in zip(states, (batch, one), strict=True)]
    assert values[0] == values[1]
    assert torch.equal(weights_of(states[0]), weights_of(states[1]))


# Does it learn at all, and does it stay whole?


@pytest.mark.parametrize(
    ("model", "name", "better"),
    [("aalnet", "log_likelihood", 1), ("gan", "l1", -1), ("vae", "log_likelihood", 1)],
)
def test_every_model_learns_one_batch(model: str, name: str, better: int) -> None:
    settings = settings_of(model, optimizer={"lr": 2e-3}, run={"images": 10_000})
    state, batch = new_state(settings), global_batch(0)
    values = [STEPS[model](state, batch, ALONE)[name] for _ in range(25)]
    assert better * (values[-1] - values[0]) > 0.1 * abs(values[0])


def test_entropy_does_not_drive_samples_away() -> None:
    """Unclamped, an eta of 0.4 drove samples to infinity within 200 steps."""
    settings = parse_settings(
        {
            "network": TINY,
            "objective": {"eta": 0.4},
            "optimizer": {"warmup_images": 50},
        }
    )
    state = new_state(settings)
    for _ in range(200):
        batch = part_of(global_batch(state.images_seen, k=4), slice(0, 3))
        train_step(state, batch)
    samples = state.generator(batch.condition, batch.label, batch.noise)
    assert samples.abs().max() < 10


# Guards.


@pytest.mark.parametrize(
    ("model", "first"), [("aalnet", "separation"), ("gan", "real_probability")]
)
def test_a_nan_in_the_batch_stops_the_run(model: str, first: str) -> None:
    state = new_state(settings_of(model))
    state.images_seen = 1_234_565
    batch = global_batch(0)
    batch.target[2, 0, 5, 5] = math.nan
    with pytest.raises(NonFiniteError, match=rf"^`{first}` is nan at 1,234,565 images") as caught:
        STEPS[model](state, batch, ALONE)
    assert "optimizer.lr" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert state.images_seen == 1_234_565


@pytest.mark.parametrize(
    ("model", "network", "first"),
    [
        ("aalnet", "generator", "separation"),
        ("aalnet", "discriminator", "separation"),
        ("vae", "generator", "log_likelihood"),
        ("vae", "posterior", "log_likelihood"),
    ],
)
def test_a_nan_in_a_parameter_stops_the_run(model: str, network: str, first: str) -> None:
    state = new_state(settings_of(model))
    next(state.networks[network].parameters()).data[0] = math.nan
    with pytest.raises(NonFiniteError, match=rf"^`{first}` is nan at 0 images"):
        STEPS[model](state, global_batch(0), ALONE)


def test_the_first_of_several_is_named_and_all_are_listed() -> None:
    measured = {"a": torch.tensor(1.0), "b": torch.tensor(-math.inf), "c": torch.tensor(math.nan)}
    with pytest.raises(NonFiniteError, match=r"^`b` is -inf at 7 images \(not finite: b, c\)"):
        require_finite(measured, 7)
    assert require_finite({"a": torch.tensor(0.5)}, 7) == {"a": 0.5}


def test_an_infinite_gradient_is_caught_by_its_norm() -> None:
    state = new_state(settings_of(objective=OFF))
    state.generator.output.register_full_backward_hook(
        lambda module, grads, outs: (grads[0] * math.inf,)
    )
    with pytest.raises(NonFiniteError, match=r"^`generator_norm` is (nan|inf)"):
        train_step(state, global_batch(0))


@pytest.mark.parametrize(("clip", "clipped"), [(1e-3, True), (1e9, False)])
def test_clipping_bounds_the_step_and_reports_the_norm_before(clip: float, clipped: bool) -> None:
    plain = {"name": "sgd", "lr": 0.5, "momentum": 0.0, "clip_norm": clip, "warmup_images": 0}
    state = new_state(settings_of(optimizer=plain), torch.float64)
    batch = global_batch(0, torch.float64)
    samples = state.generator(batch.condition, batch.label, batch.noise)
    found = {"log_likelihood": -(samples - 0.1).square().sum(dim=(1, 2, 3, 4))}
    backward(found, {"log_likelihood": 1.0}, batch)
    gradient = vector(
        [torch.zeros_like(p) if p.grad is None else p.grad for p in state.generator.parameters()]
    )
    before = vector(list(state.generator.parameters()))
    measured = apply(state, "generator", found, batch, ALONE)
    step = before - vector(list(state.generator.parameters()))
    norm = gradient.norm().item()
    assert norm > 1e-3
    assert measured["generator_norm"].item() == pytest.approx(norm)
    assert measured["log_likelihood"].item() == pytest.approx(found["log_likelihood"].mean().item())
    wanted = 0.5 * gradient * (clip / norm if clipped else 1)
    assert apart(step, wanted) < 1e-9
    assert all(p.grad is None for p in state.generator.parameters())


def test_d_is_trained_by_its_own_terms_alone() -> None:
    state = new_state(settings_of())
    train_step(state, global_batch(0))
    assert all(p.grad is None for p in state.discriminator.parameters())
    assert all(p.requires_grad for p in state.discriminator.parameters())
    assert not any(p.requires_grad for p in state.ema.parameters())


def test_frozen_gives_gradients_back_even_after_an_error() -> None:
    network = nn.Linear(2, 2)

    def flags() -> list[bool]:
        return [p.requires_grad for p in network.parameters()]

    with frozen(network):
        assert flags() == [False, False]
    assert flags() == [True, True]
    with pytest.raises(KeyError), frozen(network):
        raise KeyError
    assert flags() == [True, True]


def test_a_batch_must_fit_together() -> None:
    good = global_batch(0)
    for broken in (
        {"condition": good.condition[:2]},
        {"target": good.target[..., :16]},
        {"label": good.label[:, None]},
        {"noise": good.noise[0]},
        {"global_images": 4},
    ):
        with pytest.raises(DataError, match="cannot hold"):
            Batch(**{**good.__dict__, **broken})


# Schedule and moving average.


@pytest.mark.parametrize(
    ("seen", "share"),
    [
        (0, 1 / 100), (49, 0.5), (99, 1), (100, 1), (500, 1), (700, 1), (850, 0.5), (999, 1 / 300),
        (1000, 0), (2000, 0),
    ],
)  # fmt: skip
def test_learning_rate(seen: int, share: float) -> None:
    optimizer = OptimizerSettings(lr=0.2, warmup_images=100, decay_share=0.3)
    run = RunSettings(images=1000)
    assert learning_rate(optimizer, run, seen) == pytest.approx(0.2 * share, abs=1e-15)


@pytest.mark.parametrize(("seen", "share"), [(0, 1), (999, 1), (5000, 1)])
def test_learning_rate_without_warm_up_and_decay(seen: int, share: float) -> None:
    optimizer = OptimizerSettings(lr=0.2, warmup_images=0, decay_share=0.0)
    assert learning_rate(optimizer, RunSettings(images=1000), seen) == 0.2 * share


def test_every_optimizer_gets_the_scheduled_rate() -> None:
    state = new_state(settings_of(optimizer={"lr": 0.01, "warmup_images": 20}))
    for wanted in (0.01 * 1 / 20, 0.01 * 6 / 20):
        train(state, 1)
        rates = [g["lr"] for o in state.optimizers.values() for g in o.param_groups]
        assert rates == pytest.approx([wanted] * 2)


def test_the_moving_average_follows_its_formula() -> None:
    halflife = 2.0  # images; reached after 40 images, since early on it is 5 % of them
    settings = settings_of(optimizer={"ema_halflife_images": halflife}, run={"images": 1000})
    state = new_state(settings, torch.float64)
    wanted = vector(list(state.ema.parameters()))
    for step in range(12):
        state.generator.output.bias.data.fill_(float(step))
        now = vector(list(state.generator.parameters()))
        early = 0.05 * step * BATCH
        keep = 0.0 if step == 0 else 0.5 ** (BATCH / min(halflife, early))
        wanted = keep * wanted + (1 - keep) * now
        state.advance(BATCH)
        torch.testing.assert_close(vector(list(state.ema.parameters())), wanted)
    assert (state.images_seen, state.steps) == (12 * BATCH, 12)
    assert apart(wanted, now) > 1e-3


# Shape of the code.


@pytest.mark.parametrize("step", list(STEPS.values()), ids=list(STEPS))
def test_a_step_fits_one_screen(step: Callable[..., object]) -> None:
    assert len(inspect.getsource(step).splitlines()) <= 45
