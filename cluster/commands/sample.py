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
from aalnet.sampling import draw, from_uint8, grid, noise_for, to_uint8
from cluster.checkpoint import find_checkpoint, load_generator, spec_of
from cluster.commands.options import Storage
from cluster.data import CHANNELS, decode_image
from cluster.held_out import png
from cluster.store import open_store

app = typer.Typer(add_completion=False)
MODES = {channels: mode for mode, channels in CHANNELS.items()}


@app.command()
def sample(
    model: Annotated[
        str, typer.Argument(help="run, run@images, run@best or a path", metavar="RUN|CHECKPOINT")
    ],
    images: Annotated[list[Path], typer.Argument(help="condition images", metavar="IMAGE...")],
    label: Annotated[str, typer.Option(help="label of the images")],
    k: Annotated[int, typer.Option("-k", min=1, max=256, help="samples per image")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="same seed, same pictures")] = 0,
    out: Annotated[
        Path, typer.Option(help="a PNG for one grid, or a folder/ for single pictures")
    ] = Path("grid.png"),
    convert: Annotated[
        bool, typer.Option("--convert", help="bring images of another size or mode into form")
    ] = False,
    storage: Storage = "./aalnet-runs",
) -> None:
    """Draw k pictures for each condition image."""
    found = find_checkpoint(open_store(storage), model)
    spec = spec_of(found.state())
    index = label_index(label, spec)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator, settings = load_generator(found, device)
    size_px = settings.data.size_px
    conditions = torch.stack([read_condition(path, spec, size_px, convert) for path in images])
    noise = noise_for(seed, 0, len(images), k, settings.network.noise_size).to(device)
    labels = torch.full((len(images),), index, device=device)
    samples = draw(generator, conditions.to(device), labels, noise).cpu()
    for path in write(out, images, conditions, samples):
        print(path)


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
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"image `{path}` cannot be read: {error.strerror}") from error
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
