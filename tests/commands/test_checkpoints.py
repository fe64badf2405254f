"""Commands on a finished run: found by name, gone on with, damaged, promoted and rolled back."""

import shutil
from pathlib import Path

import pytest

from aalnet.settings import parse_settings
from cluster.runs.checkpoint import Checkpoint, checkpoints
from cluster.runs.run import Run
from cluster.storage.folder import FolderStore
from tests.support.command_line import (
    Aalnet,
    Done,
    assert_refused,
    files_below,
)
from tests.support.tiny_runs import encoded, noise_picture, tiny_values, write_config


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


# Runs


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


def test_train_shows_the_plan_the_progress_and_what_comes_next(storage: Path, data: Path) -> None:
    run = Run(FolderStore(storage), "demo")
    assert run.settings() == parse_settings(tiny_values(data))
    assert run.status() == "finished"
    assert Path(run.uri, "report.html").exists()


def test_a_dry_run_of_a_run_that_goes_on(type_: Aalnet, copied: Run, config: Path) -> None:
    shutil.rmtree(Path(copied.uri) / "checkpoints" / "32")
    before = files_below(Path(copied.store.uri))
    done = type_("train", config, "--dry-run", "--storage", copied.store.uri)
    assert done.code == 0, done.err
    assert "going on from 16" in done.out
    assert files_below(Path(copied.store.uri)) == before


# Checkpoints


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
        (told,) = [line for line in done.err.splitlines() if "held-out pairs are few" not in line]
        assert told.startswith("warning: checkpoint at 32 images is passed over: ")
        assert "checkpoints/32" in told
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
