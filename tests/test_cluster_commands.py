"""The command line: every mistake of a user gets one clear line, exit code 2, and harms nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aalnet.__main__ import COMMANDS, main
from aalnet.settings import parse_settings
from cluster.runs.checkpoint import Checkpoint, checkpoints
from cluster.runs.run import Run
from cluster.storage.folder import FolderStore
from cluster.view.progress import latest
from tests.support.tiny_runs import (
    Row,
    aalnet,
    aalnet_command,
    command_environment,
    encoded,
    noise_picture,
    noise_rows,
    tiny_values,
    write_config,
    write_data,
    write_pairs,
)


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


Aalnet = Callable[..., Done]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to type commands in."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in ("RAY_ADDRESS", "AALNET_STORAGE"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def type_(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Aalnet:
    """Type `aalnet ...` in this process: its import of torch is paid once."""

    def typed(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["aalnet", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
            code: Any = 0
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        return Done(int(code or 0), out, err)

    return typed


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def config(data: Path, here: Path) -> Path:
    return write_config(here / "demo.yaml", tiny_values(data))


@pytest.fixture(scope="session")
def storage(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage with the finished run `demo`."""
    folder = tmp_path_factory.mktemp("storage")
    config = write_config(folder / "demo.yaml", tiny_values(data))
    done = aalnet("train", config, "--storage", folder / "runs-here", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return folder / "runs-here"


def assert_refused(done: Done, *words: str, out: str | None = "") -> None:
    """Exit code 2, a line or few that say what is wrong, and nothing on standard output."""
    assert done.code == 2, (done.out, done.err)
    lines = done.err.strip().splitlines()
    assert done.err.startswith("error: ")
    assert done.err.count("error: ") == 1
    assert 1 <= len(lines) <= 3, done.err
    assert "Traceback" not in done.out + done.err
    assert [word for word in words if word not in done.err] == [], done.err
    if out is not None:
        assert done.out == out


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


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


# Storage and runs


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


@pytest.mark.parametrize(
    "command",
    [
        ["sample", "dmeo", "x.png", "--label", "a"],
        ["evaluate", "dmeo"],
        ["runs", "show", "dmeo"],
        ["runs", "watch", "dmeo"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_a_run_that_is_not_there(type_: Aalnet, storage: Path, command: list[str]) -> None:
    done = type_(*command, "--storage", storage)
    assert_refused(done, "`dmeo` does not exist", "did you mean `demo`?")
    assert_refused(type_(*command, "--storage", storage / "absent"), "does not exist", "runs list")


def test_another_setting_under_the_same_name(type_: Aalnet, storage: Path, config: Path) -> None:
    before = files_below(storage)
    done = type_("train", config, "--storage", storage, "--set", "optimizer.lr=0.1")
    assert_refused(done, "`demo`", "optimizer.lr", "0.1", "--run")
    assert files_below(storage) == before


def test_a_finished_run_says_so(type_: Aalnet, storage: Path, config: Path) -> None:
    done = type_("train", config, "--storage", storage)
    assert (done.code, done.err) == (0, "")
    assert "run `demo` is finished: 32 images" in done.out
    assert f"aalnet evaluate demo --storage {storage}" in done.out


# Checkpoints


@pytest.fixture
def copied(storage: Path, tmp_path: Path) -> Run:
    """The finished run in a storage of its own, to be spoilt."""
    shutil.copytree(storage, tmp_path / "copied")
    return Run(FolderStore(tmp_path / "copied"), "demo")


SPOILT = {
    "manifest": ("manifest", b"{"),
    "list": ("manifest", b"[]"),
    "version": ("manifest", b'{"format_version": 99, "blobs": {}}'),
    "the format before": ("manifest", b'{"format_version": 1, "files": {}}'),
    "no fields": ("manifest", b'{"format_version": 2}'),
    "tensors": ("ema", b"\x80\x04pickled"),
}


def spoil(found: Checkpoint, part: str, content: bytes) -> None:
    name = "MANIFEST.json" if part == "manifest" else found.manifest().blobs[part].name
    (Path(found.run.store.uri) / found.key(name)).write_bytes(content)


@pytest.mark.parametrize("case", SPOILT)
def test_a_checkpoint_that_cannot_be_used(
    type_: Aalnet, copied: Run, here: Path, case: str
) -> None:
    older, newest = checkpoints(copied)
    spoil(newest, *SPOILT[case])
    (here / "x.png").write_bytes(encoded(noise_picture(1)))
    where = ("--storage", copied.store.uri)

    def commands(name: str) -> list[Done]:
        sample = ("sample", name, "x.png", "--label", "a", "--out", f"{name[-2:]}.png")
        return [type_(*sample, *where), type_("evaluate", name, *where)]

    for done in commands("demo@32"):
        assert_refused(done, "checkpoints/32")
    assert not (here / "32.png").exists()
    for done in commands("demo"):
        assert done.code == 0, "the one before is whole"
        assert done.err.startswith("warning: checkpoint at 32 images is passed over: ")
        assert len(done.err.splitlines()) == 1
        assert "checkpoints/32" in done.err
    assert (here / "mo.png").exists()
    spoil(older, *SPOILT[case])
    for name in ("demo", "demo@16"):
        for done in commands(name):
            assert done.code == 2
            assert done.err.splitlines()[-1].startswith("error: ")
            assert "checkpoints/16" in done.err.splitlines()[-1]


def test_resuming_from_a_damaged_checkpoint(
    type_: Aalnet, copied: Run, data: Path, here: Path
) -> None:
    shutil.rmtree(Path(copied.uri) / "checkpoints" / "32")
    spoil(checkpoints(copied)[-1], "training", b"x")
    config = write_config(here / "demo.yaml", tiny_values(data))
    done = type_("train", config, "--storage", copied.store.uri)
    assert_refused(
        done, "no checkpoint of run `demo` can be used", "checkpoints/16/training", out=None
    )


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
    assert (done.code, done.err) == (0, "")
    figures = json.loads(done.out)
    assert (figures["run"], figures["images_seen"], figures["k"]) == ("demo", 16, 2)
    assert {"kid_lite0", "l1", "best_of_k_l1", "diversity", "l1_condition"} <= figures.keys()
    stored = checkpoints(Run(FolderStore(storage), "demo"))[0].manifest().figures
    assert figures["l1"] == pytest.approx(stored["l1"], rel=1e-6)
    table = type_("evaluate", "demo@16", "--storage", storage)
    assert table.code == 0
    assert "best_of_k_l1" in table.out


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


# Plans, schemas, help


def test_a_dry_run_shows_the_plan_and_writes_nothing(
    type_: Aalnet, config: Path, here: Path
) -> None:
    before = files_below(here)
    done = type_("train", config, "--dry-run", "--workers", "2", "--run", "plan")
    assert (done.code, done.err) == (0, "")
    words = ["plan", "aalnet", "32 px", "13 training and 5 held-out", "3 labels", "2 Ray Train"]
    words += ["on cpu", "32 in batches of 4", "every 16 images", str(here / "aalnet-runs")]
    assert [word for word in words if word not in done.out] == []
    assert files_below(here) == before
    assert [path.name for path in here.iterdir()] == ["demo.yaml"]
    assert "ray" not in sys.modules or not sys.modules["ray"].is_initialized()


def test_a_dry_run_of_a_run_that_goes_on(type_: Aalnet, copied: Run, config: Path) -> None:
    shutil.rmtree(Path(copied.uri) / "checkpoints" / "32")
    before = files_below(Path(copied.store.uri))
    done = type_("train", config, "--dry-run", "--storage", copied.store.uri)
    assert done.code == 0, done.err
    assert "going on from 16" in done.out
    assert files_below(Path(copied.store.uri)) == before


def test_train_shows_the_plan_the_progress_and_what_comes_next(storage: Path, data: Path) -> None:
    run = Run(FolderStore(storage), "demo")
    assert run.settings() == parse_settings(tiny_values(data))
    assert run.status() == "finished"
    assert Path(run.uri, "report.html").exists()


def test_schema_prints_json(type_: Aalnet) -> None:
    done = type_("schema")
    assert (done.code, done.err) == (0, "")
    schema = json.loads(done.out)
    assert schema["additionalProperties"] is False
    assert {"model", "data", "objective", "run"} <= schema["properties"].keys()


RUNS = [["runs", name] for name in ("list", "show", "watch", "sweep")]


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS), *RUNS], ids=" ".join)
def test_help(type_: Aalnet, command: list[str]) -> None:
    done = type_(*command, "--help")
    assert (done.code, done.err) == (0, "")
    assert "Usage: " in done.out


@pytest.mark.parametrize(
    ("words", "missing", "extra"),
    [
        ("train configs/demo.yaml", "safetensors", "train"),
        ("tune configs/campaign-laptop.yaml", "optuna", "tune"),
        ("serve demo", "fastapi", "endpoint"),
        ("deploy status trainer", "kubernetes", "deploy"),
    ],
)
def test_a_package_that_is_not_installed(words: str, missing: str, extra: str) -> None:
    code = (
        f"import sys; sys.modules[{missing!r}] = None; sys.argv = ['aalnet', *sys.argv[1:]]\n"
        "from aalnet.__main__ import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words.split()], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    command = words.partition(" ")[0]
    assert done.stderr.startswith(f"error: `aalnet {command}` needs the package `{missing}`")
    assert f"pip install -e '.[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_command_that_does_not_exist(type_: Aalnet) -> None:
    done = type_("trian")
    assert (done.code, done.out) == (2, "")
    assert "trian" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("number", "code", "told"),
    [
        (signal.SIGINT, 130, "Ctrl-C: stopping after a checkpoint; Ctrl-C again ends it at once\n"),
        (signal.SIGTERM, 143, "SIGTERM: stopping after a checkpoint\n"),
    ],
)
def test_a_signal_without_ray(
    here: Path, data: Path, number: signal.Signals, code: int, told: str
) -> None:
    changes = {"run.images": 100_000, "run.checkpoint_every_images": 8, "run.log_every_images": 24}
    config = write_config(here / "demo.yaml", tiny_values(data, changes))
    run = Run(FolderStore(here / "aalnet-runs"), "demo")
    process = subprocess.Popen(
        aalnet_command("train", config), cwd=here, env=command_environment(),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        deadline_s = time.monotonic() + 60
        while not checkpoints(run) and time.monotonic() < deadline_s:
            time.sleep(0.05)
        os.killpg(process.pid, number)
        out, err = process.communicate(timeout=25)
    finally:
        process.kill()
    assert process.returncode == code
    assert err == told
    assert "checkpoint at 8/100,000" in out
    end, trained = run.records()[-1], latest(run.records(), "train")
    assert trained is not None
    assert (end["kind"], end["status"], run.status()) == ("end", "stopped", "stopped")
    newest = checkpoints(run)[-1]
    assert newest.images == end["images"] == trained["images"], "no step is lost"
    assert f"run `demo` is stopped at {newest.images:,} images; the same command goes on" in out
    for blob in newest.manifest().blobs.values():
        newest.tensors(blob)
    again = aalnet("train", config, "--dry-run", cwd=here)
    assert f"going on from {newest.images:,}" in again.stdout


# promote


def test_promote_and_roll_back(type_: Aalnet, copied: Run) -> None:
    where = ("--model", "best-one", "--storage", copied.store.uri)
    done = type_("promote", "demo@16", *where)
    digest = checkpoints(copied)[0].manifest().digest
    assert (done.code, done.err) == (0, "")
    assert done.out == f"model `best-one` is demo@16 ({digest[:12]})\n"
    assert type_("promote", "demo", *where).out.startswith("model `best-one` is demo@32 (")
    assert type_("promote", "--roll-back", *where).out == done.out
    assert_refused(type_("promote", "--roll-back", *where), "`best-one`", "nothing to roll back")


def test_a_promotion_that_cannot_be(type_: Aalnet, copied: Run) -> None:
    where = ("--storage", copied.store.uri)
    for arguments, words in (
        (["demo"], ["--model NAME is missing", "none yet"]),
        (["--model", "one"], ["either RUN[@IMAGES] or --roll-back"]),
        (["demo", "--roll-back", "--model", "one"], ["either RUN[@IMAGES] or --roll-back"]),
        (["demo", "--model", "../one"], ["model name `../one`"]),
        (["--roll-back", "--model", "one"], ["model `one` does not exist"]),
        (["demo@17", "--model", "one"], ["no checkpoint at 17"]),
        (["dmeo", "--model", "one"], ["did you mean `demo`"]),
    ):
        assert_refused(type_("promote", *arguments, *where), *words)
    spoil(checkpoints(copied)[-1], "training", b"x")
    assert_refused(type_("promote", "demo@32", "--model", "one", *where), "checkpoints/32/training")
    assert copied.store.keys("models/") == []


def test_a_mistake_typed_in_a_shell(here: Path) -> None:
    done = aalnet("train", "absent.yaml", cwd=here)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: settings file `absent.yaml` does not exist")
    assert len(done.stderr.splitlines()) == 1
