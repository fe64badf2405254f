"""`aalnet sample`: several pictures for condition images."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated

import torch
import typer
from PIL import Image
from torch import Tensor

from aalnet.errors import DataError
from aalnet.networks import DataSpec
from aalnet.sampling import as_temperature, best_device, draw, from_uint8, grid, noise_for, to_uint8
from cluster.commands.options import Storage, Temperature
from cluster.data.pictures import MODES, decode_image, png
from cluster.runs.checkpoint import find_checkpoint, load_generator
from cluster.storage.location import open_store
from deploy.endpoint.client import EndpointClient

app = typer.Typer(add_completion=False)


@app.command()
def sample(
    model: Annotated[
        str,
        typer.Argument(
            help="run, run@images, run@best or a path; left out with --url",
            metavar="RUN|CHECKPOINT",
        ),
    ],
    images: Annotated[
        list[Path] | None, typer.Argument(help="condition images", metavar="IMAGE...")
    ] = None,
    *,
    label: Annotated[str, typer.Option(help="label of the images")],
    k: Annotated[int, typer.Option("-k", min=1, max=256, help="samples per image")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="same seed, same pictures")] = 0,
    out: Annotated[
        Path, typer.Option(help="a PNG for one grid, or a folder/ for single pictures")
    ] = Path("grid.png"),
    convert: Annotated[
        bool, typer.Option("--convert", help="bring images of another size or mode into form")
    ] = False,
    url: Annotated[
        str | None, typer.Option(help="ask a sampling endpoint instead: http://host:8000")
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="API key of the endpoint", envvar="AALNET_API_KEY")
    ] = None,
    temperature: Temperature = 1.0,
    storage: Storage = "./aalnet-runs",
) -> None:
    """Draw k pictures for each condition image."""
    if url is not None:
        images = [Path(model), *(images or [])]
        client = EndpointClient(url, key)
        conditions, samples = draw_remotely(client, images, label, k, seed, temperature)
    elif images:
        conditions, samples = draw_here(
            model, images, label, k, seed, convert, storage, temperature
        )
    else:
        raise DataError("an IMAGE is missing: aalnet sample RUN IMAGE... --label L")
    for path in write(out, images, conditions, samples):
        print(path)


def draw_here(
    model: str,
    images: list[Path],
    label: str,
    k: int,
    seed: int,
    convert: bool,
    storage: str,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Conditions [N, Cx, S, S] and samples [N, k, Cy, S, S] by a checkpoint on this machine."""
    scale = as_temperature(temperature)
    checkpoint = find_checkpoint(open_store(storage), model)
    spec = checkpoint.manifest().spec
    index = label_index(label, spec)
    device = best_device()
    generator, settings = load_generator(checkpoint, device)
    size_px = settings.data.size_px
    conditions = torch.stack([read_condition(path, spec, size_px, convert) for path in images])
    noise = scale * noise_for(seed, 0, len(images), k, settings.network.noise_size)
    labels = torch.full((len(images),), index, device=device)
    return conditions, draw(generator, conditions.to(device), labels, noise.to(device)).cpu()


def draw_remotely(
    client: EndpointClient,
    images: list[Path],
    label: str,
    k: int,
    seed: int,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The same from an endpoint, every image with the same seed."""
    conditions, samples = [], []
    for path in images:
        data = read_bytes(path)
        samples.append(client.sample(data, label, k, seed, temperature).images)
        size_px = samples[-1].shape[-1]
        pixels, _ = decode_image(data, f"image `{path}`", size_px, convert_to="RGB")
        conditions.append(from_uint8(pixels))
    return torch.stack(conditions), torch.stack(samples)


def label_index(label: str, spec: DataSpec) -> int:
    """The index of a label that the model knows."""
    if label not in spec.labels:
        close = difflib.get_close_matches(label, spec.labels, n=1)
        hint = f"did you mean `{close[0]}`? It" if close else "it"
        raise DataError(f"unknown label `{label}`; {hint} knows {', '.join(spec.labels)}")
    return spec.labels.index(label)


def read_condition(path: Path, spec: DataSpec, size_px: int, convert: bool) -> Tensor:
    """An image file as a condition [Cx, H, W] in [-1, 1].

    Raises:
        DataError: it cannot be read, or has another size or mode and `convert` is off.
    """
    data = read_bytes(path)
    name, mode = f"image `{path}`", MODES[spec.condition_channels]
    if convert:
        pixels, _ = decode_image(data, name, size_px, convert_to=mode)
    else:
        hint = "add --convert to bring it into form"
        try:
            pixels, original_px = decode_image(data, name, size_px)
        except DataError as error:
            raise DataError(f"{error}, or {hint}") from error
        if original_px < size_px or pixels.shape[0] != spec.condition_channels:
            raise DataError(
                f"{name} is {original_px} px, {'grey' if len(pixels) == 1 else 'RGB'}; the model "
                f"takes {size_px} px or more, {mode}: {hint}"
            )
    return from_uint8(pixels)


def read_bytes(path: Path) -> bytes:
    """The bytes of an image file. Raises DataError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"image `{path}` cannot be read: {error.strerror}") from error


def write(out: Path, images: list[Path], conditions: Tensor, samples: Tensor) -> list[Path]:
    """Write one grid, or every sample as its own PNG where `out` is a folder."""
    k = samples.shape[1]
    if out.suffix.lower() == ".png":
        heads = ["condition", *(f"sample {i + 1}" for i in range(k))]
        rows = [[conditions[i], *samples[i]] for i in range(len(images))]
        pictures = {out: grid(rows, heads)}
    else:
        pictures = {
            out / f"{i}-{path.stem}-{j}.png": Image.fromarray(to_uint8(samples[i, j]))
            for i, path in enumerate(images)
            for j in range(k)
        }
    try:
        for path, picture in pictures.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(picture))
    except OSError as error:
        raise DataError(f"--out {out} cannot be written: {error.strerror}") from error
    return list(pictures)
