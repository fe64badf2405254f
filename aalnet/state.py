"""TrainState: everything that a step changes, in one object that can be saved and restored."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from aalnet.batch import Batch
from aalnet.corners import objective_of
from aalnet.density import Density
from aalnet.errors import CheckpointError
from aalnet.networks import DataSpec, Discriminator, Generator, Proposal
from aalnet.phases import Phase, phase_at, spans
from aalnet.settings import OptimizerSettings, Settings

ADAM_SLOTS = {"step", "exp_avg", "exp_avg_sq"}  # what it holds of each parameter
EMA_WARMUP_SHARE = 0.05  # early on, the moving average's half-life is this share of images seen


class TrainState:
    """Networks, the moving average of G, both optimizers, and how far the run has come.

    `images_seen` counts conditions of global batches; data order, noise and learning rate
    are functions of it, so they need no state of their own. `steps` paces the intervals.
    """

    def __init__(self, settings: Settings, spec: DataSpec, device: torch.device) -> None:
        self.spec = spec
        self.device = device
        self.settings = settings
        self.objective = objective_of(settings)
        self.density = Density(self.objective.scale, self.objective.width)
        self.images_seen = 0
        self.steps = 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.run.seed)
            networks: dict[str, nn.Module] = {"generator": Generator(settings, spec)}
            if self.objective.proposal:
                networks["proposal"] = Proposal(settings, spec)
            if any(span.phase.adversary for span in spans(self.objective, settings.run.images)):
                networks["discriminator"] = Discriminator(settings, spec)
        self.dtype = torch.float64 if settings.run.precision == "float64" else torch.float32
        layout = torch.channels_last if settings.run.channels_last else torch.contiguous_format
        self.networks = {
            name: network.to(device=device, dtype=self.dtype, memory_format=layout)  # type: ignore[call-overload]
            for name, network in networks.items()
        }
        self.ema = copy.deepcopy(self.generator).requires_grad_(False).eval()
        generator_side = [p for n, net in self.networks.items() if n != "discriminator"
                          for p in net.parameters()]  # fmt: skip
        self.optimizers = {"generator": _optimizer(settings.optimizer, generator_side)}
        if "discriminator" in self.networks:
            parameters = list(self.discriminator.parameters())
            self.optimizers["discriminator"] = _optimizer(settings.optimizer, parameters)

    @property
    def generator(self) -> Generator:
        """G as it is trained; users sample from its moving average."""
        network = self.networks["generator"]
        assert isinstance(network, Generator)
        return network

    @property
    def discriminator(self) -> Discriminator:
        """D; there is none in a run without an adversary."""
        network = self.networks["discriminator"]
        assert isinstance(network, Discriminator)
        return network

    @property
    def proposal(self) -> Proposal:
        """q(z given x, c, y); there is none in a run without a proposal."""
        network = self.networks["proposal"]
        assert isinstance(network, Proposal)
        return network

    @property
    def phase(self) -> Phase:
        """Which parts of the objective work in the next step."""
        return phase_at(self.objective, self.settings.run.images, self.images_seen)

    def place(self, batch: Batch) -> Batch:
        """A batch in this state's device, type and memory layout."""
        return batch.to(self.device, self.dtype, channels_last=self.settings.run.channels_last)

    def autocast(self) -> AbstractContextManager[None]:
        """bf16 where settings ask for it; terms and penalties always stay in float32."""
        enabled = self.settings.run.precision == "bfloat16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def due(self, interval: int) -> bool:
        """Is this step one of every `interval`? The first one is not: D knows nothing yet."""
        return self.steps % interval == interval - 1

    def advance(self, images: int) -> None:
        """Close a step: move the average of G and count the images."""
        optimizer = self.settings.optimizer
        halflife = min(optimizer.ema_halflife_images, EMA_WARMUP_SHARE * self.images_seen + 1e-9)
        pull = 1 - 0.5 ** (images / halflife)
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.ema.parameters()), list(self.generator.parameters()), pull
            )
        self.images_seen += images
        self.steps += 1

    @torch.no_grad()
    def ema_distance(self) -> float:
        """||G - its moving average|| / ||the moving average||. Waits for the device."""
        average: list[Tensor] = list(self.ema.parameters())
        apart = torch._foreach_sub(list(self.generator.parameters()), average)
        own, size = (torch.stack(torch._foreach_norm(part)).norm() for part in (apart, average))
        return float(own / size)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Every tensor of the state, by file: one flat mapping per network and optimizer."""
        files = {name: dict(network.state_dict()) for name, network in self.networks.items()}
        files["ema"] = dict(self.ema.state_dict())
        for name, optimizer in self.optimizers.items():
            files[f"{name}_optimizer"] = {
                f"{index}.{key}": value
                for index, values in optimizer.state_dict()["state"].items()
                for key, value in values.items()
                if isinstance(value, Tensor)
            }
        return files

    def load_tensors(self, files: dict[str, dict[str, Tensor]]) -> None:
        """Restore what `tensors` gave, bit for bit.

        Raises:
            CheckpointError: a file is missing, or a tensor's name, shape or type is another's.
        """
        own = {**self.networks, "ema": self.ema}
        names = {*own, *(f"{name}_optimizer" for name in self.optimizers)}
        if files.keys() != names:
            raise CheckpointError(f"checkpoint holds {sorted(files)}, wanted {sorted(names)}")
        for name, network in own.items():
            load_network(network, files[name], name)
        for name, optimizer in self.optimizers.items():
            _load_optimizer(optimizer, files[f"{name}_optimizer"], f"{name}_optimizer")


def load_network(network: nn.Module, tensors: dict[str, Tensor], name: str) -> None:
    """Copy tensors into a network of just these names, shapes and types.

    Raises:
        CheckpointError: they differ.
    """
    own = network.state_dict()
    _require_alike(own, tensors, name)
    with torch.no_grad():
        for key, value in own.items():
            value.copy_(tensors[key])


def _require_alike(own: dict[str, Tensor], loaded: dict[str, Tensor], name: str) -> None:
    if own.keys() != loaded.keys():
        differing = sorted(own.keys() ^ loaded.keys())
        raise CheckpointError(f"`{name}` does not fit these settings: {differing[0]} differs")
    for key, value in own.items():
        if value.shape != loaded[key].shape or value.dtype != loaded[key].dtype:
            raise CheckpointError(
                f"`{name}` does not fit these settings: {key} is {loaded[key].dtype} "
                f"{tuple(loaded[key].shape)}, wanted {value.dtype} {tuple(value.shape)}"
            )


def _optimizer(
    settings: OptimizerSettings, parameters: list[nn.Parameter]
) -> torch.optim.Optimizer:
    if settings.name == "sgd":
        return torch.optim.SGD(parameters, lr=settings.lr, momentum=settings.momentum, fused=True)
    betas = (settings.beta1, settings.beta2)
    return torch.optim.Adam(parameters, lr=settings.lr, betas=betas, fused=True)


def _load_optimizer(
    optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], name: str
) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, slot = key.partition(".")
        if not index.isdecimal() or int(index) >= len(parameters):
            raise CheckpointError(f"`{name}` does not fit these settings: {key} has no parameter")
        parameter = parameters[int(index)]
        counts = slot == "step"
        shape, dtype = ((), torch.float32) if counts else (parameter.shape, parameter.dtype)
        if (value.shape, value.dtype) != (shape, dtype):
            raise CheckpointError(
                f"`{name}` does not fit these settings: {key} is {value.dtype} "
                f"{tuple(value.shape)}, wanted {dtype} {tuple(shape)}"
            )
        if not counts:
            value = torch.empty_like(parameter).detach().copy_(value)  # its memory layout too
        state.setdefault(int(index), {})[slot] = value
    slots = {"momentum_buffer"} if isinstance(optimizer, torch.optim.SGD) else ADAM_SLOTS
    if odd := [index for index, values in state.items() if values.keys() != slots]:
        raise CheckpointError(
            f"`{name}` does not fit these settings: {odd[0]} has {sorted(state[odd[0]])}, "
            f"wanted {sorted(slots)}"
        )
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
