"""`aalnet compare`: models on one task, with equal images or equal seconds, side by side."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import torch
import typer
from rich.console import Console
from torch import Tensor

from aalnet.errors import AalnetError, ConfigError
from aalnet.networks import DataSpec
from aalnet.sampling import best_device
from aalnet.settings import Settings
from cluster.commands.options import Address, Json, Set, Storage, with_workers
from cluster.commands.train import check_data, train_run
from cluster.launch import launcher
from cluster.runs.checkpoint import find_checkpoint, load_generator
from cluster.runs.comparison import Comparison, Model, Outcome
from cluster.runs.contestants import KNOWN, Contestant, contestants
from cluster.runs.goodput import goodput
from cluster.runs.run import Run
from cluster.storage.location import open_store
from cluster.storage.store import BlobMissing, Store
from cluster.training.cost import Budget, budgets
from cluster.training.held_out import HeldOut
from cluster.training.temperatures import SAMPLES, best_temperatures
from cluster.view import comparison as view

app = typer.Typer(add_completion=False)
N = TypeVar("N", int, float)
PICTURED = 4  # samples of each model, in the picture
TEMPERATURES = "0.7,1,1.3,1.6,2"


@app.command()
def compare(
    config: Annotated[str, typer.Argument(help="settings file (YAML)", metavar="CONFIG")],
    models: Annotated[
        str, typer.Option(help="separated by commas; NAME=FILE: with settings of its own")
    ] = ",".join(KNOWN),
    equal: Annotated[
        Literal["images", "seconds"], typer.Option(help="what each model trains on as much of")
    ] = "images",
    seconds: Annotated[
        float | None, typer.Option(help="of training a run, with --equal seconds", metavar="S")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="0,1,2: a run of each model for each; default: the file's")
    ] = None,
    temperatures: Annotated[
        str, typer.Option(help="of sampling, the best of which counts; 1: only that one")
    ] = TEMPERATURES,
    overrides: Set = None,
    run: Annotated[
        str | None,
        typer.Option(help="runs are called NAME-MODEL-SEED; default: the file's", metavar="NAME"),
    ] = None,
    storage: Storage = "./aalnet-runs",
    workers: Annotated[str | None, typer.Option(help="as for `aalnet train`")] = None,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Train models on one task, measure all alike, say how sure the differences are.

    A run that is trained already is not trained again. Table, picture and JSON go to
    <storage>/comparisons/NAME.
    """
    with _standard_output_is_json(as_json):
        contest = Contest(
            open_store(storage),
            Path(config).stem if run is None else run,
            contestants(config, models, with_workers(overrides, workers)),
            numbers("--temperatures", temperatures, float),
            address,
        )
        first = contest.contestants[0].settings
        all_seeds = [first.run.seed] if seeds is None else numbers("--seeds", seeds, int)
        if (equal == "seconds") is (seconds is None):
            raise ConfigError("--equal seconds and --seconds S belong together: give both")
        if seconds is not None and not 0 < seconds < math.inf:
            raise ConfigError(f"--seconds must be > 0, got {seconds:g}")
        found = contest.held(all_seeds, seconds)
    publish(contest, found, as_json=as_json)
    for complaint in found.complaints:
        print(complaint, file=sys.stderr)
    if found.complaints:
        raise typer.Exit(1)


def publish(contest: Contest, found: Comparison, *, as_json: bool) -> None:
    """Write the result into the store and show it."""
    store, prefix = contest.store, contest.prefix
    store.write(f"{prefix}/comparison.json", json.dumps(found.to_dict(), indent=1).encode())
    store.write(f"{prefix}/comparison.md", view.markdown(found).encode())
    if contest.rows:
        store.write(f"{prefix}/comparison.png", view.picture(contest.rows))
    if as_json:
        print(json.dumps(found.to_dict()))
        return
    for table in view.tables(found):
        Console().print(table)
    for note in view.notes(found):
        print(note)
    print(
        f"written  {store.uri}/{prefix}/comparison.md, .json{' and .png' if contest.rows else ''}"
    )


def numbers(option: str, text: str, kind: type[N]) -> list[N]:
    """The numbers in `0,1,2`, none twice: seeds from 0 on, temperatures above 0.

    Raises:
        ConfigError: something else stands there.
    """
    try:
        values = [kind(part) for part in text.split(",")]
    except ValueError:
        values = []
    fits = all(math.isfinite(one) and (one > 0 or (kind is int and one == 0)) for one in values)
    if not values or not fits or len(set(values)) < len(values):
        example, rule = ("0,1,2", "whole, 0 or more") if kind is int else (TEMPERATURES, "above 0")
        raise ConfigError(
            f"{option} wants numbers, {rule}, each once, as in {example}; got `{text}`"
        )
    return values


@dataclass
class Contest:
    """Contestants in a store, and what is kept from one run to the next."""

    store: Store
    name: str
    contestants: list[Contestant]
    temperatures: list[float]
    address: str | None
    rows: dict[str, list[list[Tensor]]] = field(default_factory=dict)  # pictures, by model
    _held_out: dict[int, HeldOut] = field(default_factory=dict)  # by the length of noise

    @property
    def prefix(self) -> str:
        """Where the result goes, in the store."""
        return f"comparisons/{self.name}"

    def held(self, seeds: list[int], seconds: float | None) -> Comparison:
        """Train and measure everyone, seed by seed; a run that fails is told of and passed over.

        Raises:
            ConfigError, CheckpointError, DataError: before anything is trained.
        """
        for one in self.contestants:
            check_data(one.settings)
            for seed in seeds:
                self.run(one, seed)  # refuses a name that is none
        planned = self._planned(seeds, seconds)
        for one in self.contestants:
            for seed in seeds:
                run = self.run(one, seed)
                run.require_same_path(one.with_run(images=planned[one.name].images, seed=seed))
        outcomes: dict[str, list[Outcome]] = {one.name: [] for one in self.contestants}
        for seed in seeds:
            for one in self.contestants:
                outcomes[one.name].append(self._outcome(one, seed, planned[one.name].images))
        models = [
            Model(
                one.name, one.settings.model, one.file, planned[one.name].images,
                planned[one.name].seconds(one.settings.data.batch_images), outcomes[one.name],
            )
            for one in self.contestants
        ]  # fmt: skip
        equal = "images" if seconds is None else "seconds"
        return Comparison(self.name, equal, seconds, seeds, self.temperatures, SAMPLES, models)

    def run(self, one: Contestant, seed: int) -> Run:
        """The run of a contestant with a seed."""
        return Run(self.store, f"{self.name}-{one.name}-{seed}")

    def _planned(self, seeds: Sequence[int], seconds: float | None) -> dict[str, Budget]:
        """Images of each model. Those for equal seconds are measured once, then kept."""
        if seconds is None:
            return {one.name: Budget(one.settings.run.images, None) for one in self.contestants}
        kept = self._kept(seconds)
        fresh: dict[str, Settings] = {}
        planned: dict[str, Budget] = {}
        for one in self.contestants:
            started = (self.run(one, seed).settings() for seed in seeds)
            before = next((settings for settings in started if settings is not None), None)
            if (budget := kept.get(f"{one.name} {one.settings.digest()}")) is not None:
                planned[one.name] = budget
            elif before is not None:  # the plan is lost
                planned[one.name] = Budget(before.run.images, None)
            else:
                fresh[one.name] = one.settings
        if fresh:
            print(f"timing steps of {', '.join(fresh)} on this machine", flush=True)
            placement = launcher.place_here(self.contestants[0].settings)
            planned |= budgets(fresh, seconds, torch.device(placement.device), placement.workers)
        for one in self.contestants:
            kept[f"{one.name} {one.settings.digest()}"] = planned[one.name]
            print(f"{one.name:>12}  {planned[one.name].images:,} images")
        plan = {key: dataclasses.asdict(budget) for key, budget in kept.items()}
        self.store.write(
            self._plan_key, json.dumps({"seconds": seconds, "budgets": plan}, indent=1).encode()
        )
        return planned

    @property
    def _plan_key(self) -> str:
        return f"{self.prefix}/plan.json"

    def _kept(self, seconds: float) -> dict[str, Budget]:
        """What was measured for this comparison before."""
        try:
            plan = json.loads(self.store.read(self._plan_key))
            before = float(plan["seconds"])
            kept = {
                str(key): Budget(int(each["images"]), each["step_s"])
                for key, each in plan["budgets"].items()
            }
        except BlobMissing:
            return {}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            print(f"warning: {self._plan_key} is damaged ({error}); made anew", file=sys.stderr)
            return {}
        if before != seconds:
            raise ConfigError(
                f"comparison `{self.name}` was planned for {before:g} seconds, now it is "
                f"{seconds:g}; choose another name with --run, or put the old value back"
            )
        return kept

    def _outcome(self, one: Contestant, seed: int, images: int) -> Outcome:
        """Train a run, where it is not, and measure it."""
        settings, run = one.with_run(images=images, seed=seed), self.run(one, seed)
        outcome = Outcome(one.name, seed, run.name, settings.digest(), images)
        print(f"== {one.name}, seed {seed} ==", flush=True)
        try:
            train_run(run, settings, self.address)
            outcome = self._measured(outcome, settings)
        except AalnetError as error:
            outcome = dataclasses.replace(outcome, failure=" ".join(str(error).split()))
        if outcome.complaint is not None:
            print(outcome.complaint, file=sys.stderr)
        return outcome

    def _measured(self, outcome: Outcome, settings: Settings) -> Outcome:
        checkpoint = find_checkpoint(self.store, outcome.run)
        generator, _ = load_generator(checkpoint, best_device())
        held_out = self._pairs(settings, checkpoint.manifest().spec)
        chosen = best_temperatures(held_out, generator, self.temperatures)
        figures = held_out.evaluate(generator, temperature=chosen)
        if outcome.model not in self.rows:
            self.rows[outcome.model] = held_out.grid_rows(generator, PICTURED, chosen)
        time_use = goodput(checkpoint.run.records(), settings.data.batch_images).seconds
        return dataclasses.replace(
            outcome,
            figures=figures,
            seconds=round(time_use["step"] + time_use["data"], 2),
            temperatures=tuple(round(float(one), 6) for one in chosen[:2]),
        )

    def _pairs(self, settings: Settings, spec: DataSpec) -> HeldOut:
        """The held-out pairs, once for all whose noise has the same length."""
        size = settings.network.noise_size
        if size not in self._held_out:
            self._held_out[size] = HeldOut(settings, spec, best_device())
        return self._held_out[size]


@contextlib.contextmanager
def _standard_output_is_json(asked: bool) -> Iterator[None]:
    """What is told on the way goes to standard error, where a script reads standard output."""
    with contextlib.redirect_stdout(sys.stderr) if asked else contextlib.nullcontext():
        yield
