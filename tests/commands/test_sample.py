"""`aalnet sample` and `aalnet evaluate`: what they write and print, and what they refuse."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cluster.runs.checkpoint import checkpoints
from cluster.runs.run import Run
from cluster.storage.folder import FolderStore
from tests.support.command_line import (
    Aalnet,
    Done,
    assert_refused,
)
from tests.support.tiny_runs import encoded, noise_picture, noise_rows, write_pairs

# sample


def sample(type_: Aalnet, storage: Path, image: object, *more: object, label: str = "a") -> Done:
    return type_("sample", "demo", image, "--label", label, "--storage", storage, *more)


def test_samples_differ_and_are_the_same_again(type_: Aalnet, storage: Path, here: Path) -> None:
    (here / "x.png").write_bytes(encoded(noise_picture(1)))
    done = sample(type_, storage, "x.png", "-k", 3, "--out", "out/grid.png")
    assert (done.code, done.err, done.out) == (0, "", "out/grid.png\n")
    first = (here / "out" / "grid.png").read_bytes()
    with Image.open(here / "out" / "grid.png") as grid:
        assert grid.width > 4 * 96
    sample(type_, storage, "x.png", "-k", 3, "--out", "out/grid.png")
    assert (here / "out" / "grid.png").read_bytes() == first
    sample(type_, storage, "x.png", "-k", 3, "--out", "out/grid.png", "--seed", 1)
    assert (here / "out" / "grid.png").read_bytes() != first


def test_a_folder_takes_every_sample_by_itself(type_: Aalnet, storage: Path, here: Path) -> None:
    (here / "x.png").write_bytes(encoded(noise_picture(1)))
    done = sample(type_, storage, "x.png", "-k", 2, "--out", "out/")
    assert done.code == 0, done.err
    pictures = [np.asarray(Image.open(line)) for line in done.out.split()]
    assert [picture.shape for picture in pictures] == [(32, 32, 3)] * 2
    assert not np.array_equal(pictures[0], pictures[1])


def test_labels_are_known_by_name(type_: Aalnet, storage: Path, here: Path) -> None:
    (here / "x.png").write_bytes(encoded(noise_picture(1)))
    done = sample(type_, storage, "x.png", label="zebra")
    assert_refused(done, "unknown label `zebra`", "a, b, c")
    assert not (here / "grid.png").exists()


IMAGES: dict[str, tuple[bytes | None, list[str]]] = {
    "missing": (None, ["x.png", "cannot be read"]),
    "text": (b"hello", ["x.png", "PNG, JPEG or WebP"]),
    "empty": (b"", ["x.png", "PNG, JPEG or WebP"]),
    "truncated": (encoded(noise_picture(1))[:-500], ["x.png", "cannot be decoded"]),
    "rgba": (encoded(Image.new("RGBA", (32, 32))), ["x.png", "RGBA", "--convert"]),
    "grey": (encoded(noise_picture(1, channels=1)), ["x.png", "grey", "--convert"]),
    "not square": (encoded(Image.new("RGB", (32, 40))), ["x.png", "32x40", "--convert"]),
    "small": (encoded(noise_picture(1, 16)), ["x.png", "16 px", "32 px", "--convert"]),
    "huge": (encoded(Image.new("RGB", (5000, 5000))), ["x.png", "4096 px"]),
}


@pytest.mark.parametrize("case", IMAGES)
def test_an_image_that_cannot_be_a_condition(
    type_: Aalnet, storage: Path, here: Path, case: str
) -> None:
    content, words = IMAGES[case]
    if content is not None:
        (here / "x.png").write_bytes(content)
    assert_refused(sample(type_, storage, "x.png"), *words)
    assert not (here / "grid.png").exists()


@pytest.mark.parametrize("case", ["rgba", "grey", "not square", "small"])
def test_convert_brings_an_image_into_form(
    type_: Aalnet, storage: Path, here: Path, case: str
) -> None:
    content, _ = IMAGES[case]
    assert content is not None
    (here / "x.png").write_bytes(content)
    assert sample(type_, storage, "x.png", "--convert").code == 0
    assert (here / "grid.png").exists()


def test_an_output_that_cannot_be_written(type_: Aalnet, storage: Path, here: Path) -> None:
    (here / "x.png").write_bytes(encoded(noise_picture(1)))
    assert_refused(sample(type_, storage, "x.png", "--out", "x.png/grid.png"), "--out")
    assert_refused(sample(type_, storage, "x.png", "--out", "x.png/folder"), "--out")


@pytest.mark.parametrize("option", [["-k", "0"], ["-k", "many"], ["--seed", "-1"], ["--nonsense"]])
def test_options_that_cannot_be(
    type_: Aalnet, storage: Path, here: Path, option: list[str]
) -> None:
    (here / "x.png").write_bytes(encoded(noise_picture(1)))
    done = sample(type_, storage, "x.png", *option)
    assert (done.code, done.out) == (2, "")
    assert option[0] in done.err
    assert "Traceback" not in done.err


# evaluate


def test_evaluate_prints_figures(type_: Aalnet, storage: Path, data: Path) -> None:
    done = type_("evaluate", "demo@16", "--json", "--storage", storage)
    assert done.code == 0
    assert done.err.startswith("warning: 4 held-out pairs are few")
    assert len(done.err.splitlines()) == 1
    figures = json.loads(done.out)
    assert (figures["run"], figures["images_seen"], figures["k"]) == ("demo", 16, 2)
    assert {
        "energy_score",
        "energy_score_se",
        "kid_unpaired_lite0",
        "l1_condition",
    } <= figures.keys()
    stored = checkpoints(Run(FolderStore(storage), "demo"))[0].manifest().figures
    assert figures["l1"] == pytest.approx(stored["l1"], rel=1e-6)
    table = type_("evaluate", "demo@16", "--storage", storage)
    assert table.code == 0
    assert "best_of_k_l1" in table.out


def test_temperature_moves_the_figures(type_: Aalnet, storage: Path) -> None:
    def spread(*more: object) -> float:
        done = type_("evaluate", "demo", "--json", "--storage", storage, *more)
        return float(json.loads(done.out)["diversity"])

    assert spread() < spread("--temperature", 2)
    assert spread("--temperature", 1) == spread()


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf"])
def test_temperature_that_is_no_scale(type_: Aalnet, storage: Path, value: str) -> None:
    told = f"temperature must be finite and > 0, got {float(value)}"
    evaluated = type_("evaluate", "demo", "--temperature", value, "--storage", storage)
    assert_refused(evaluated, told)
    options = ("--label", "a", "--temperature", value, "--storage", storage)
    assert_refused(type_("sample", "demo", "absent.png", *options), told)


def test_evaluate_on_data_that_cannot_be_used(type_: Aalnet, storage: Path, tmp_path: Path) -> None:
    def evaluate(*more: object) -> Done:
        return type_("evaluate", "demo", "--storage", storage, *more)

    assert_refused(evaluate("--data", "absent.parquet"), "absent.parquet", "does not exist")
    labels = write_pairs(tmp_path / "labels.parquet", noise_rows(5, labels=5))
    assert_refused(evaluate("--data", labels), "`d`", "a, b, c")
    grey = write_pairs(tmp_path / "grey.parquet", noise_rows(5, channels=(1, 1)))
    assert_refused(evaluate("--data", grey), "channels")
    one = write_pairs(tmp_path / "one.parquet", noise_rows(1))
    assert_refused(evaluate("--data", one), "two images")
    assert_refused(evaluate("--features", "absent.pt"), "absent.pt")
    (tmp_path / "text.pt").write_text("no network")
    assert_refused(evaluate("--features", tmp_path / "text.pt"), "text.pt")
