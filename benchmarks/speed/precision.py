"""One process, one thread, demo settings otherwise. Train states of every number format, memory
layout and block family step in turns; a round is four steps, of which one has the penalty of D and
none those of G. Figures are ratios of medians over rounds to float32, contiguous, resnet. For
information: there is no bar. Parameters are counted, those of G and of D."""

from __future__ import annotations

from torch import nn

from aalnet.networks import DataSpec, Discriminator, Generator
from aalnet.settings import Settings
from benchmarks.speed.steps import contender, demo, in_turns, medians, ratio
from benchmarks.table import Result, Row

PLAIN = "float32"
FORMATS = {
    PLAIN: (),
    "float32, channels last": ("run.channels_last=true",),
    "bfloat16": ("run.precision=bfloat16",),
    "bfloat16, channels last": ("run.precision=bfloat16", "run.channels_last=true"),
}
FAMILIES = {family: (f"network.blocks={family}",) for family in ("densenet", "inception")}
SPEC = DataSpec(("one",), 1, 3)


def measure(quick: bool) -> Result:
    """Formats, layouts, families and sizes against each other."""
    settings = {name: demo(*o, quick=quick) for name, o in {**FORMATS, **FAMILIES}.items()}
    sides = {name: contender(found) for name, found in settings.items()}
    seconds, _ = in_turns(sides, range(4), rounds=1 if quick else 5)
    rows = [Row(f"step, {name} / {PLAIN}", ratio(seconds, name, PLAIN)) for name in [*sides][1:]]
    rows += [
        Row(f"parameters of G and D, {preset}", parameters(demo(f"network.preset={preset}")), "M")
        for preset in ("tiny", "base", "large")
    ]
    rows += [
        Row(f"parameters of G and D, tiny, {name}", parameters(settings[name]), "M")
        for name in FAMILIES
    ]
    return Result(rows, medians(seconds, "step", 4))


def parameters(settings: Settings) -> str:
    """Millions in the generator and in the discriminator."""
    networks: list[nn.Module] = [Generator(settings, SPEC), Discriminator(settings, SPEC)]
    counts = [sum(p.numel() for p in network.parameters()) for network in networks]
    return " + ".join(f"{count / 1e6:.2f}" for count in counts)
