"""`aalnet train` says in one line what cannot be: settings, data, a storage, a name."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.command_line import Aalnet, assert_refused
from tests.support.tiny_runs import (
    Row,
    encoded,
    noise_picture,
    noise_rows,
    tiny_values,
    write_config,
    write_data,
    write_pairs,
)

# Settings


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("objective: {etta: 0.3}", ["`objective.etta`", "did you mean `objective.eta`"]),
        ("modle: gan", ["`modle`", "did you mean `model`"]),
        ("model: dcgan", ["model", "'dcgan'"]),
        ("objective: {eta: high}", ["objective.eta", "'high'"]),
        ("optimizer: {lr: -1}", ["optimizer.lr must be > 0, got -1"]),
        ("data: {batch_images: 2.5}", ["data.batch_images", "2.5"]),
        ("data: 5", ["data"]),
        ("run: {images: .nan}", ["run.images"]),
        ("objective: [1", ["demo.yaml", "not valid YAML"]),
        ("- model", ["demo.yaml", "list"]),
        ("just words", ["demo.yaml", "str"]),
        ("model: gan\nmodel: vae", ["`model` stands twice"]),
        ("model: !!python/object/apply:os.system ['touch pwned']", ["demo.yaml", "YAML"]),
        ("a: &a [*a]", ["`a`"]),
        ("[" * 5000, ["demo.yaml"]),
    ],
)
def test_settings_that_cannot_be(type_: Aalnet, here: Path, text: str, words: list[str]) -> None:
    (here / "demo.yaml").write_text(text)
    assert_refused(type_("train", "demo.yaml"), *words)
    assert [path.name for path in here.iterdir()] == ["demo.yaml"]


def test_a_settings_file_that_cannot_be_read(type_: Aalnet, here: Path) -> None:
    assert_refused(type_("train", "absent.yaml"), "absent.yaml", "does not exist", str(here))
    assert_refused(type_("train", here), "cannot be read")
    (here / "binary.yaml").write_bytes(b"\xff\xfe\x00\x01")
    assert_refused(type_("train", "binary.yaml"), "binary.yaml")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("objective.eta", ["--set wants key=value", "objective.eta"]),
        ("=5", ["--set wants key=value"]),
        ("objective.eta=high", ["objective.eta", "'high'"]),
        ("objective.etta=1", ["did you mean `objective.eta`"]),
        ("model.x=1", ["model"]),
        ("objective.eta=[1", ["--set objective.eta=[1"]),
        ("data.shift_px=16", ["data.shift_px", "16"]),
        ("network.widths=[4,8,16,32,64]", ["network.widths", "got 5"]),
    ],
)
def test_overrides_that_cannot_be(
    type_: Aalnet, config: Path, override: str, words: list[str]
) -> None:
    assert_refused(type_("train", config, "--set", override), *words)


@pytest.mark.parametrize(
    ("workers", "words"),
    [
        ("two", ["run.workers", "'two'"]),
        ("-1", ["run.workers", "-1"]),
        ("1.5", ["run.workers", "1.5"]),
        ("", ["run.workers"]),
        ("5", ["run.workers must be <= data.batch_images (4)", "5"]),
    ],
)
def test_workers_that_cannot_be(
    type_: Aalnet, config: Path, workers: str, words: list[str]
) -> None:
    assert_refused(type_("train", config, "--workers", workers), *words)


def test_a_gpu_that_is_not_there(type_: Aalnet, config: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert_refused(type_("train", config, "--set", "run.device=cuda"), "no GPU", "run.device=cpu")


# Data


def rows_with(row: int, **changes: Any) -> list[Row]:
    rows = noise_rows(13)
    rows[row].update(changes)
    return rows


def damaged_data(case: str, folder: Path) -> None:
    """Spoil a data set in one way."""
    train = folder / "train.parquet"
    if case == "missing":
        train.unlink()
    elif case == "empty file":
        train.write_bytes(b"")
    elif case == "truncated":
        train.write_bytes(train.read_bytes()[:-100])
    elif case == "no rows":
        write_pairs(train, [])
    elif case == "mode":
        write_pairs(train, rows_with(0, target=encoded(Image.new("RGBA", (32, 32)))))
    elif case == "shape":
        write_pairs(train, rows_with(0, condition=encoded(Image.new("RGB", (32, 16)))))
    elif case == "unequal":
        write_pairs(train, rows_with(0, condition=encoded(noise_picture(1, 64))))
    elif case == "no picture":
        write_pairs(train, rows_with(0, condition=b"hello"))
    elif case == "too large":
        write_pairs(train, rows_with(0, condition=encoded(Image.new("L", (5000, 5000)))))
    elif case == "label":
        write_pairs(folder / "test.parquet", rows_with(4, label="zebra"))
    elif case == "channels":
        write_pairs(folder / "test.parquet", noise_rows(5, channels=(1, 3)))
    elif case == "no test":
        (folder / "test.parquet").unlink()


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("missing", ["train.parquet", "does not exist", "data.train"]),
        ("empty file", ["train.parquet", "empty"]),
        ("truncated", ["train.parquet", "Parquet"]),
        ("no rows", ["train.parquet", "no rows"]),
        ("mode", ["target of `row-0`", "RGBA"]),
        ("shape", ["condition of `row-0`", "32x16", "square"]),
        ("unequal", ["`row-0`", "64 px", "32 px"]),
        ("no picture", ["condition of `row-0`", "PNG, JPEG or WebP"]),
        ("too large", ["condition of `row-0`", "4096 px"]),
        ("label", ["test.parquet", "`zebra`", "a, b, c"]),
        ("channels", ["test.parquet", "channels"]),
        ("no test", ["test.parquet", "does not exist"]),
    ],
)
def test_data_that_cannot_be_used(
    type_: Aalnet, here: Path, tmp_path: Path, case: str, words: list[str]
) -> None:
    folder = write_data(tmp_path / "data")
    damaged_data(case, folder)
    write_config(here / "demo.yaml", tiny_values(folder))
    assert_refused(type_("train", "demo.yaml"), *words)
    assert not (here / "aalnet-runs").exists(), "nothing is written before the data is checked"
    assert_refused(type_("train", "demo.yaml", "--dry-run"), *words)


@pytest.mark.parametrize("change", [
    {"target": encoded(noise_picture(3))[:-200]},
    {"target": encoded(Image.new("RGBA", (32, 32)))},
    {"condition": None},
    {"condition": encoded(noise_picture(3, 48))},
    {"condition": encoded(noise_picture(3, channels=1))},
])  # fmt: skip
def test_a_picture_deep_in_the_data(
    type_: Aalnet, here: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    folder = write_data(tmp_path / "data")
    write_pairs(folder / "train.parquet", rows_with(12, **change))
    write_config(here / "demo.yaml", tiny_values(folder))
    done = type_("train", "demo.yaml", "--workers", "0")
    assert_refused(done, "`row-12`", "train.parquet", out=None)
    assert len(done.err.splitlines()) == 1
    assert "this process, without Ray" in done.out, "the plan stands there"


# Storage and names


@pytest.mark.parametrize("below", ["file/runs", "file"])
def test_a_storage_below_a_regular_file(
    type_: Aalnet, config: Path, here: Path, below: str
) -> None:
    (here / "file").write_text("not a folder")
    assert_refused(type_("train", config, "--storage", here / below), "storage", str(here / below))


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc here")
def test_a_storage_that_cannot_be_written(type_: Aalnet, config: Path) -> None:
    assert_refused(type_("train", config, "--storage", "/proc/aalnet"), "storage /proc/aalnet")


def test_a_storage_of_a_kind_that_is_not_known(type_: Aalnet, config: Path) -> None:
    assert_refused(
        type_("train", config, "--storage", "ftp://host/runs"), "ftp://", "not supported"
    )


@pytest.mark.parametrize("name", ["", "a/b", "..", "-", "a b", "x" * 64, "é"])
def test_a_name_that_no_run_can_have(type_: Aalnet, config: Path, here: Path, name: str) -> None:
    assert_refused(type_("train", config, f"--run={name}"), "run name", "--run")
    assert sorted(path.name for path in here.iterdir()) == ["demo.yaml"]
