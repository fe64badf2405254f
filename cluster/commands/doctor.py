"""`aalnet doctor`: is this machine, this storage and this cluster fit for training?

Each check answers by itself, with a remedy; none lets an error through.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import typer

from aalnet.errors import AalnetError
from cluster.commands.options import Address, Json, Storage
from cluster.launch import jobs
from cluster.launch.ray_internals import server_version
from cluster.storage.folder import FolderStore
from cluster.storage.location import open_store
from cluster.storage.store import BlobExists, Store
from cluster.view.checks import Check, print_checks

GIB = 2**30
LOW_MEMORY_GIB, LOW_DISK_GIB, NO_DISK_GIB = 2.0, 5.0, 0.5
CLUSTER_TIMEOUT_S = 15.0
RAY_MINOR = "2.60"
LARGE_BYTES = 17 * 2**20  # an object store takes it in parts
DATA = Path("data/openmoji64")
JOIN = """
import json, sys, ray
ray.init(address=sys.argv[1], log_to_driver=False, configure_logging=False)
print(json.dumps(ray.cluster_resources()))
"""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def doctor(
    storage: Storage = "./aalnet-runs", address: Address = None, as_json: Json = False
) -> None:
    """Check this machine, the storage and the cluster. Exit code 1 if a check fails."""
    print_checks(checks(storage, address), as_json)


def checks(storage: str, address: str | None) -> Iterator[Check]:
    """All checks in order, each as soon as it is known."""
    todo: dict[str, Callable[[], Check]] = {
        "python": check_python,
        "torch": check_torch,
        "torchvision": check_torchvision,
        "machine": check_machine,
        "features": check_features,
        "data": check_demo_data,
        "ray": check_ray,
        "storage": lambda: check_storage(storage),
        "disk": lambda: check_disk(storage),
    }
    if address:
        todo["cluster"] = lambda: check_cluster(address)
    for name, check in todo.items():
        yield _guarded(name, check)


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except AalnetError as error:
        return Check(name, "fail", str(error))
    except Exception as error:  # noqa: BLE001, whatever a check meets is its answer
        remedy = "run `make setup` again" if isinstance(error, ImportError) else ""
        return Check(name, "fail", f"{type(error).__name__}: {error}", remedy)


def check_python() -> Check:
    """The interpreter; an older one than 3.11 does not get here."""
    return Check("python", "ok", f"{platform.python_version()}, {sys.executable}")


def check_torch() -> Check:
    """torch and the devices that it sees."""
    import torch

    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi"):
            detail = f"{torch.__version__} sees no GPU, though there is a driver"
            remedy = "install a CUDA build of torch, or check the driver with `nvidia-smi`"
            return Check("torch", "warn", detail, remedy)
        return Check("torch", "ok", f"{torch.__version__}, CPU only")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16: keep run.precision float32"
    return Check("torch", "ok", f"{torch.__version__}, {', '.join(names)}, {bf16}")


def check_torchvision() -> Check:
    """torchvision is not needed; one of another torch breaks `import torchmetrics`."""
    if importlib.util.find_spec("torchvision") is None:
        return Check("torchvision", "ok", "absent, as it should be")
    version = importlib.metadata.version("torchvision")
    try:
        importlib.import_module("torchvision")
    except Exception as error:  # noqa: BLE001, it raises many kinds
        reason = f"{version} does not fit this torch ({error}) and breaks torchmetrics"
        return Check("torchvision", "fail", reason, "pip uninstall torchvision")
    return Check("torchvision", "ok", f"{version}, fits this torch")


def check_machine() -> Check:
    """Cores and memory that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory_gib = _memory_bytes() / GIB
    detail = f"{cores} cores, {memory_gib:.1f} GiB of memory"
    if memory_gib < LOW_MEMORY_GIB:
        remedy = "set run.workers to 1 and data.memory_budget_mib lower"
        return Check("machine", "warn", detail, remedy)
    return Check("machine", "ok", detail)


def _memory_bytes() -> int:
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        return min(whole, int(limit))
    return whole


def check_features() -> Check:
    """The weights of the kernel distance."""
    from aalnet.features import load_features

    name, _ = load_features(None)
    return Check("features", "ok", f"weights of {name}")


def check_demo_data() -> Check:
    """The embedded data set, from this folder or from the repository."""
    import pyarrow.parquet

    folders = [root / DATA for root in (Path(), Path(__file__).resolve().parents[2])]
    folder = next((path for path in folders if path.is_dir()), None)
    if folder is None:
        return Check("data", "fail", f"{DATA} does not exist", "run from the repository's folder")
    rows = [
        pyarrow.parquet.read_table(folder / f"{part}.parquet").num_rows
        for part in ("train", "test")
    ]
    detail = f"{folder}: {rows[0]:,} pairs to train on, {rows[1]:,} held out"
    if folder == folders[0]:
        return Check("data", "ok", detail)
    return Check("data", "warn", detail, "configs name it from the repository's folder; run there")


def check_ray() -> Check:
    """The version of Ray; runs with `run.workers: 0` go without it."""
    if importlib.util.find_spec("ray") is None:
        remedy = "run `make setup`, or train with --workers 0"
        return Check("ray", "warn", "not installed", remedy)
    import ray

    if not ray.__version__.startswith(f"{RAY_MINOR}."):
        remedy = f"pip install 'ray[default,train]~={RAY_MINOR}.0'"
        return Check("ray", "warn", f"{ray.__version__}; tested with {RAY_MINOR}", remedy)
    return Check("ray", "ok", ray.__version__)


def check_storage(storage: str) -> Check:
    """Write, append, list, read back and delete blobs; two writers must not both win."""
    store = open_store(storage)
    folder = f"doctor-{uuid.uuid4().hex[:8]}"
    key, large = f"{folder}/blob", f"{folder}/large"
    root = store.root if isinstance(store, FolderStore) else None
    existed = root is None or root.exists()
    try:
        started_at_s = time.perf_counter()
        store.write(key, b"1")
        seconds = time.perf_counter() - started_at_s
        if store.appends:
            store.append(key, b"2")
        else:
            store.write(key, b"12")
        parts = os.urandom(LARGE_BYTES)
        store.write(large, parts)
        whole = store.keys(f"{folder}/") == [key, large] and store.read(key) == b"12"
        whole = (
            whole and store.read(large) == parts and store.read_range(large, 9, 9) == parts[9:18]
        )
        refused = _refuses_second_writer(store, key)
    finally:
        store.delete(key)
        store.delete(large)
        if root is not None and not existed:
            with contextlib.suppress(OSError):
                root.rmdir()
    if not whole:
        remedy = "choose another with --storage"
        return Check("storage", "fail", f"{store.uri} does not give back what was written", remedy)
    if not refused:
        detail = f"{store.uri} ignores conditional puts (If-None-Match): two writers both win"
        remedy = "use a server that knows them, or make sure that no two trainers share a run"
        return Check("storage", "fail", detail, remedy)
    return Check("storage", "ok", f"{store.uri}, {1000 * seconds:.0f} ms for a small write")


def _refuses_second_writer(store: Store, key: str) -> bool:
    try:
        store.create(key, b"another writer's")
    except BlobExists:
        return store.read(key) == b"12"
    return False


def check_disk(storage: str) -> Check:
    """Free space where the storage lies."""
    store = open_store(storage)
    if not isinstance(store, FolderStore):
        return Check("disk", "ok", "the storage is no disk of this machine")
    folder = store.root
    there = next(path for path in (folder, *folder.parents) if path.is_dir())
    free_gib = shutil.disk_usage(there).free / GIB
    detail = f"{free_gib:.1f} GiB free at {there}"
    remedy = "free some space, choose another --storage, or lower run.keep_last"
    if free_gib < LOW_DISK_GIB:
        return Check("disk", "fail" if free_gib < NO_DISK_GIB else "warn", detail, remedy)
    return Check("disk", "ok", detail)


def check_cluster(address: str) -> Check:
    """Join a Ray cluster as training would, in a process of its own that is given up in time."""
    if address.startswith(("http://", "https://")):
        return _check_job_server(address)
    remedy = "check the address and its port, and that the head node runs (`ray status` there)"
    command = [sys.executable, "-c", JOIN, address]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=CLUSTER_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        detail = f"{address} did not answer within {CLUSTER_TIMEOUT_S:.0f} s"
        return Check("cluster", "fail", detail, remedy)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        return Check("cluster", "fail", f"{address}: {reason}", remedy)
    resources = json.loads(done.stdout.strip().splitlines()[-1])
    cpus, gpus = resources.get("CPU", 0), resources.get("GPU", 0)
    detail = f"{address}: {cpus:g} CPUs, {gpus:g} GPUs"
    return Check("cluster", "ok", detail)


def _check_job_server(address: str) -> Check:
    version = server_version(jobs.job_client(address))
    detail = f"{address}: takes jobs (`aalnet submit`), Ray {version}"
    if not version.startswith(f"{RAY_MINOR}."):
        return Check("cluster", "warn", detail, f"tested with {RAY_MINOR}: use the same there")
    return Check("cluster", "ok", detail)
