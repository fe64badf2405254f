"""`aalnet runs` and `aalnet doctor`, as they are typed."""

import importlib
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aalnet.errors import AalnetError, CheckpointError, ConfigError
from aalnet.settings import parse_settings
from cluster.commands import doctor, runs, watch
from cluster.launch import jobs
from cluster.runs.run import Record, Run
from cluster.storage.folder import FolderStore
from cluster.storage.store import StoreUnavailable
from cluster.view.checks import Check

EVALUATION: Record = {
    "kind": "evaluation", "images": 48, "k": 8, "energy_score": 16.0, "energy_score_se": 0.36,
    "energy_score_condition": 20.0, "kid_unpaired_lite0": 0.5,
    "kid_unpaired_lite0_condition": 0.245, "l1": 0.1, "best_of_k_l1": 0.1, "diversity": 0.06,
}  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "storage")


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AALNET_STORAGE", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def make(store: FolderStore, name: str, *records: Record) -> Run:
    run = Run(store, name)
    run.write_settings(parse_settings({"run": {"images": 96}}))
    for record in ({"kind": "start", "images": 0}, *records):
        run.log(record)
    return run


def typed(*arguments: str, code: int = 0) -> str:
    """Standard output of `aalnet runs ...`; errors of ours come through, as to the front door."""
    result = CliRunner().invoke(runs.app, arguments)
    if isinstance(result.exception, AalnetError):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.stdout


def end(status: str, **more: str) -> Record:
    return {"kind": "end", "images": 96, "status": status, "train_seconds": 1.0, **more}


# list


def test_list_of_nothing_says_how_to_start(store: FolderStore) -> None:
    assert f"aalnet train CONFIG --storage {store.uri}" in typed("list", "--storage", store.uri)
    assert json.loads(typed("list", "--storage", store.uri, "--json")) == []
    assert not store.root.exists()


def test_list(store: FolderStore) -> None:
    better = {**EVALUATION, "images": 96, "energy_score": 12.5, "diversity": 0.07}
    make(store, "one", EVALUATION, better, {**EVALUATION, "images": 96}, end("finished"))
    make(store, "two")
    lines = typed("list", "--storage", store.uri).splitlines()
    assert " ".join(lines[0].split()) == "run model status images best energy score diversity age"
    assert lines[1].split()[:6] == ["one", "aalnet", "finished", "96/96", "12.5", "0.0600"]
    assert lines[2].split()[:6] == ["two", "aalnet", "running", "0/96", "-", "-"]


def test_list_as_json_by_the_variable(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    make(store, "one", EVALUATION, end("failed", error="why"))
    monkeypatch.setenv("AALNET_STORAGE", store.uri)
    (row,) = json.loads(typed("list", "--json"))
    assert (row["run"], row["status"], row["error"]) == ("one", "failed", "why")
    assert (row["images"], row["total_images"], row["best_energy_score"]) == (96, 96, 16.0)


def test_a_damaged_run_is_listed(store: FolderStore) -> None:
    make(store, "good")
    store.write("runs/bad/run.yaml", b"model: [")
    store.write("runs/half/metrics.jsonl", b"")
    out = typed("list", "--storage", store.uri)
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["bad", "good", "half"]
    assert out.count("damaged") == 2


def test_an_unsupported_storage() -> None:
    with pytest.raises(ConfigError, match="not supported"):
        typed("list", "--storage", "gs://bucket")


def test_a_bucket_without_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "absent"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StoreUnavailable, match="no AWS credentials found; set AWS_ACCESS_KEY_ID"):
        typed("list", "--storage", "s3://bucket")


# show


def test_show(store: FolderStore) -> None:
    run = make(store, "one", EVALUATION)
    for images in (8, 48):
        store.write(run.key("checkpoints", str(images), "MANIFEST.json"), b"{}")
        store.write(run.key("samples", f"{images}.png"), b"")
    store.write(run.key("report.html"), b"")
    out = typed("show", "one", "--storage", store.uri)
    assert "checkpoints  8, 48\n" in out
    assert f"{store.uri}/runs/one/samples/48.png" in out
    assert f"{store.uri}/runs/one/report.html" in out
    assert [line.split()[-1] for line in out.splitlines() if line.startswith("  kid")] == ["worse"]
    assert ["energy_score", "16.0", "0.360", "20.0", "better"] in [
        line.split() for line in out.splitlines()
    ]
    assert f"  aalnet runs watch one --storage {store.uri}" in out.splitlines()
    facts = json.loads(typed("show", "one", "--storage", store.uri, "--json"))
    assert facts["checkpoints"] == [8, 48]
    assert facts["evaluation"]["l1"] == 0.1
    assert facts["settings"]["objective"]["lambda"] == 3.0


def test_show_of_a_young_run(store: FolderStore) -> None:
    make(store, "one")
    out = typed("show", "one", "--storage", store.uri)
    assert "checkpoints  none yet" in out
    assert "report       none yet" in out


def test_show_of_a_failed_run_says_why_and_how_to_go_on(store: FolderStore) -> None:
    make(store, "one", end("failed", error="bad\x1b[2Jterm"))
    out = typed("show", "one", "--storage", store.uri)
    assert "error        bad?[2Jterm" in out
    assert "aalnet train CONFIG --run one" in out


@pytest.mark.parametrize("command", ["show", "watch"])
def test_a_wrong_name(store: FolderStore, command: str) -> None:
    make(store, "mine")
    with pytest.raises(CheckpointError, match="did you mean `mine`"):
        typed(command, "mime", "--storage", store.uri)
    with pytest.raises(ConfigError, match="run name"):
        typed(command, "../mine", "--storage", store.uri)


# watch


def test_watch_of_a_finished_run_says_so(store: FolderStore) -> None:
    make(store, "one", end("finished"))
    assert typed("watch", "one", "--storage", store.uri) == "run `one` is finished: 96 images\n"


def test_watch_of_a_failed_run_fails(store: FolderStore) -> None:
    make(store, "one", EVALUATION, end("failed", error="why"))
    out = typed("watch", "one", "--storage", store.uri, code=1)
    assert out.splitlines()[-1] == "failed at 96/96 after 1.0s: why"


def test_watch_goes_on_to_the_end(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(store, "one", EVALUATION, {"kind": "train", "images": 48})

    def follow(*args: object, **kwargs: int) -> Iterator[Record]:
        yield from run.records()[kwargs["from_records"] :]
        yield end("finished")

    monkeypatch.setattr(watch, "follow", follow)
    lines = typed("watch", "one", "--storage", store.uri).splitlines()
    assert [line.split()[0] for line in lines] == ["evaluation", "images", "finished"]


# doctor


def checks(storage: str, *arguments: str, code: int = 0) -> dict[str, dict[str, str]]:
    result = CliRunner().invoke(doctor.app, ["--storage", storage, "--json", *arguments])
    assert result.exit_code == code, result.output
    found = json.loads(result.stdout)
    assert found["ok"] == (code == 0)
    return {check["name"]: check for check in found["checks"]}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what loads big packages."""
    for name in ("torch", "features", "ray"):
        monkeypatch.setattr(
            doctor, f"check_{name}", lambda name=name: doctor.Check(name, "ok", "left out")
        )


@pytest.mark.usefixtures("quick")
def test_doctor_is_content_and_leaves_nothing(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch, repo_root: Path
) -> None:
    monkeypatch.chdir(repo_root)
    found = checks(store.uri)
    assert found["storage"]["status"] == found["data"]["status"] == "ok"
    assert not store.root.exists()
    store.write("kept", b"")
    checks(store.uri)
    assert store.keys() == ["kept"]
    assert [path.name for path in store.root.iterdir()] == ["kept"]


@pytest.mark.usefixtures("quick")
def test_doctor_with_bad_storage(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    found = checks(str(tmp_path / "file" / "below"), code=1)
    assert found["storage"]["status"] == "fail"
    assert "choose another with --storage" in found["storage"]["detail"]
    found = checks("gs://bucket", code=1)
    assert found["storage"]["status"] == found["disk"]["status"] == "fail"
    assert "not supported" in found["storage"]["detail"]


@pytest.mark.usefixtures("quick")
def test_doctor_shows_a_remedy_and_no_traceback(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> Check:
        raise ImportError("no \x1b[2J module")

    monkeypatch.setattr(doctor, "check_torch", broken)
    result = CliRunner().invoke(doctor.app, ["--storage", store.uri])
    assert result.exit_code == 1
    assert "fail  torch         ImportError: no ?[2J module" in result.stdout
    assert "make setup" in result.stdout
    assert "Traceback" not in result.output


def test_doctor_of_another_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator nms does not exist')")
    info = tmp_path / "torchvision-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    check = doctor.check_torchvision()
    assert check.status == "fail"
    assert check.remedy == "pip uninstall torchvision"


@contextmanager
def silent_port() -> Iterator[int]:
    """A port where something listens and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "http://127.0.0.1:{}"])
def test_doctor_does_not_wait_for_a_silent_cluster(
    monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setattr(doctor, "CLUSTER_TIMEOUT_S", 1.0)
    monkeypatch.setattr(jobs, "ANSWER_S", 1.0)
    importlib.import_module("ray.job_submission")  # which takes seconds of its own
    with silent_port() as port:
        address = form.format(port)
        started_at_s = time.monotonic()
        check = doctor._guarded("cluster", lambda: doctor.check_cluster(address))
    assert check.status == "fail"
    assert "is the head up" in check.detail if "http" in form else check.remedy
    assert time.monotonic() - started_at_s < 15


@pytest.mark.parametrize("address", ["http://[bad", "http://:8265", "http://127.0.0.1:99999"])
def test_doctor_of_a_wrong_address(address: str) -> None:
    check = doctor._guarded("cluster", lambda: doctor.check_cluster(address))
    assert check.status == "fail"
    assert address in check.detail


def test_memory_is_at_most_the_machines() -> None:
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < doctor._memory_bytes() <= whole
