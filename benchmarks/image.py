"""Builds the image where there is no container engine, and tries it: `python -m benchmarks.image`.

The Dockerfile's own steps run in a Debian root file system. Then a Ray job with two workers (a head
without work, a token) and the endpoint run in the result as the image's user: no capabilities, no
network, a read-only root. Prints sizes, writes the SBOM. Needs root, debootstrap, util-linux,
iproute2 and `cyclonedx-bom`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.dockerfile import ROOT, ignored, parse

MIB = 2**20
BASE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
BUILD_VARIABLES = ("PIP_", "SSL_CERT_FILE", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


@dataclass
class Stage:
    """A root file system under way, and what its instructions have said."""

    folder: Path
    arguments: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": BASE_PATH})
    labels: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    user: str = "0:0"
    healthcheck: list[str] = field(default_factory=list)

    def expand(self, text: str) -> str:
        """`${NAME}` by the values of ARG and ENV."""
        known = self.arguments | self.environment
        return re.sub(r"\$\{(\w+)\}", lambda found: known.get(found[1], ""), text)

    def path(self, inside: str) -> Path:
        return self.folder / os.path.join(self.workdir, inside).lstrip("/")


class Build:
    """Runs the instructions of a Dockerfile on copies of `base`, below `folder`."""

    def __init__(self, base: Path, folder: Path, arguments: dict[str, str], binds: Sequence[str]):
        self.base, self.folder, self.binds = base, folder, binds
        self.given, self.first = arguments, dict[str, str]()
        self.stages: dict[str, Stage] = {}
        self.stage: Stage | None = None

    def run(self, instructions: Iterator[tuple[str, str]]) -> Stage:
        for word, rest in instructions:
            if self.stage is None and word == "ARG":  # for FROM alone: the base is ours
                continue
            getattr(self, f"_{word.lower()}")(rest)
        assert self.stage is not None
        return self.stage

    def _from(self, rest: str) -> None:
        _, _, name = rest.partition(" AS ")
        folder = self.folder / (name or "image")
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run(["cp", "-a", str(self.base), str(folder)], check=True)
        self.stage = self.stages[name or "image"] = Stage(folder)

    def _arg(self, rest: str) -> None:
        name, _, default = rest.partition("=")
        self._now().arguments[name] = self.given.get(name, default)

    def _env(self, rest: str) -> None:
        self._now().environment |= dict(item.split("=", 1) for item in shlex.split(rest))

    def _label(self, rest: str) -> None:
        self._now().labels |= dict(i.split("=", 1) for i in shlex.split(self._now().expand(rest)))

    def _workdir(self, rest: str) -> None:
        self._now().workdir = rest
        self._now().path("").mkdir(parents=True, exist_ok=True)

    def _user(self, rest: str) -> None:
        self._now().user = rest

    def _healthcheck(self, rest: str) -> None:
        self._now().healthcheck = json.loads(rest.partition("CMD ")[2])

    def _cmd(self, rest: str) -> None:
        json.loads(rest)

    def _expose(self, rest: str) -> None:
        int(rest)

    def _copy(self, rest: str) -> None:
        stage = self._now()
        words = shlex.split(stage.expand(rest))
        source = ROOT
        if words[0].startswith("--from="):
            source = self.stages[words.pop(0).removeprefix("--from=")].folder
        *names, target = words
        for name in names:
            origin = source / name.lstrip("/")
            if source == ROOT and ignored(name):
                raise SystemExit(f".dockerignore keeps {name} out of the image")
            goal = stage.path(target)
            if origin.is_dir():
                keep_out = (
                    shutil.ignore_patterns("__pycache__", "*.pyc") if source == ROOT else None
                )
                shutil.copytree(origin, goal, symlinks=True, ignore=keep_out, dirs_exist_ok=True)
            else:
                goal = goal / origin.name if target.endswith("/") else goal
                goal.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(origin, goal)

    def _run(self, rest: str) -> None:
        stage = self._now()
        passed = {k: v for k, v in os.environ.items() if k.upper().startswith(BUILD_VARIABLES)}
        environment = passed | {k: v for k, v in stage.arguments.items() if v} | stage.environment
        mounts, made = [f"mount -t proc proc {stage.folder}/proc"], list[Path]()
        for bind in [Path("/etc/resolv.conf"), *map(Path, self.binds)]:
            mounts += bind_mount(bind, stage.folder)
            inside = [stage.folder / p.relative_to("/") for p in (bind, *bind.parents)]
            made += [path for path in inside if not path.exists()]
        script = "\n".join(["set -e", *mounts, f'exec chroot {stage.folder} sh -c "$1"'])
        print(f"RUN {rest[:90]}...", flush=True)
        command = ["unshare", "--mount", "sh", "-c", script, "sh", f"cd {stage.workdir} && {rest}"]
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        for path in made:  # what was only there to be mounted on
            with contextlib.suppress(OSError):
                path.rmdir()

    def _now(self) -> Stage:
        assert self.stage is not None, "an instruction before FROM"
        return self.stage


def bind_mount(path: Path, folder: Path) -> list[str]:
    """Shell lines that show `path` of this machine below `folder`, to be read only."""
    target = f"{folder}{path}"
    made = (
        f"mkdir -p {target}" if path.is_dir() else f"mkdir -p $(dirname {target}); touch {target}"
    )
    return [made, f"mount --bind {path} {target}", f"mount -o remount,bind,ro {target}"]


# What a container runtime does for a pod of ours, and no more.
CONTAINER = """
set -e
ip link set lo up
mount --bind {root} {root} && mount -o remount,bind,ro {root}
mount -t tmpfs -o mode=1777 tmp {root}/tmp
mount -t tmpfs -o mode=1777 shm {root}/dev/shm
mount -t proc proc {root}/proc
user={user}
exec chroot {root} /usr/bin/setpriv --reuid "${{user%:*}}" --regid "${{user#*:}}" --clear-groups \
  --no-new-privs --bounding-set=-all --inh-caps=-all \
  env --ignore-environment {environment} sh -ec "cd {workdir}; $1"
"""

TRIAL = """
test "$(id -u)" = 10001; ! touch /opt/aalnet/written 2>/dev/null
new_key="import secrets; print(secrets.token_urlsafe(32))"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=$(python -c "$new_key")
export AALNET_STORAGE=/tmp/runs
ray start --head --num-cpus=0 --node-ip-address=127.0.0.1 >/dev/null
for worker in 1 2; do ray start --address=127.0.0.1:6379 --num-cpus=1 >/dev/null; done
ray job submit --address http://127.0.0.1:8265 -- aalnet train configs/demo.yaml --run tried \
  --workers 1:2 --set run.images=480 --set run.checkpoint_every_images=240
ray stop >/dev/null
python -c "$new_key" > /tmp/key
sed s/NAME/me/ <<keys > /tmp/keys
$(aalnet serve --hash-key < /tmp/key)
keys
aalnet serve tried --host 0.0.0.0 --keys /tmp/keys & endpoint=$!
until {healthcheck}; do kill -0 $endpoint; sleep 1; done 2>/dev/null
python -c 'from PIL import Image; Image.new("RGB", (32, 32), "white").save("/tmp/x.png")'
header="Authorization: Bearer $(cat /tmp/key)"
label=$(wget -qO- --header "$header" http://127.0.0.1:8000/v1/model |
  python -c 'import json, sys; print(json.load(sys.stdin)["labels"][0])')
AALNET_API_KEY=$(cat /tmp/key) aalnet sample /tmp/x.png --label "$label" -k 4 --seed 1 \
  --url http://127.0.0.1:8000 --out /tmp/grid.png
kill $endpoint; wait $endpoint; echo "the endpoint ended with $?"
"""


def try_out(image: Stage) -> None:
    """Train and serve inside. Raises CalledProcessError where a step fails."""
    script = CONTAINER.format(
        root=image.folder,
        user=image.user,
        workdir=image.workdir,
        environment=shlex.join(f"{key}={value}" for key, value in image.environment.items()),
    )
    trial = TRIAL.format(healthcheck=shlex.join(image.healthcheck))
    command = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child"]
    subprocess.run([*command, "sh", "-c", script, "sh", trial], check=True)


def size_bytes(folder: Path, compressed: bool = False) -> int:
    """What the folder's files take, plain or as a gzipped archive (what a node pulls)."""
    if not compressed:
        done = subprocess.run(["du", "-sb", folder], check=True, capture_output=True, text=True)
        return int(done.stdout.split()[0])
    pack = f"tar -C {folder} --exclude=./proc/* -cf - . | gzip -6 | wc -c"
    return int(subprocess.run(pack, shell=True, check=True, capture_output=True).stdout)


def write_sbom(image: Stage, path: Path) -> int:
    """CycloneDX: Python's packages as installed, and Debian's. Gives their number."""
    python = image.folder / "opt/venv/lib/python3.11/site-packages"
    with tempfile.TemporaryDirectory() as folder:
        # A virtual environment of this machine's Python that sees the image's packages only.
        subprocess.run(["python3", "-m", "venv", "--without-pip", folder], check=True)
        (Path(folder) / "lib/python3.11/site-packages/image.pth").write_text(f"{python}\n")
        command = [sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible"]
        made = subprocess.run(
            [*command, f"{folder}/bin/python"], check=True, stdout=subprocess.PIPE, text=True
        )
    bom = json.loads(made.stdout)
    query = ["dpkg-query", f"--admindir={image.folder}/var/lib/dpkg", "--show"]
    listed = subprocess.run(query, check=True, capture_output=True, text=True).stdout
    for name, version in (line.split("\t") for line in listed.splitlines()):
        purl = f"pkg:deb/debian/{name.split(':')[0]}@{version}"
        component = {"type": "library", "name": name, "version": version, "purl": purl}
        bom["components"].append({"bom-ref": purl, **component})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(bom, indent=1) + "\n", encoding="utf-8")
    return len(bom["components"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a new folder for the root file systems (4 GB)")
    parser.add_argument("--variant", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--debian", default="bookworm", help="release of the base")
    parser.add_argument(
        "--bind", action="append", default=[], help="show this folder to RUN, read-only"
    )
    parser.add_argument("--sbom", type=Path, help="write it here")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    base = asked.folder / "base"
    if not base.exists():
        made = ["debootstrap", "--variant=minbase", asked.debian, str(base)]
        subprocess.run(made, check=True, stdout=subprocess.DEVNULL)
    text = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
    image = Build(base, asked.folder, {"VARIANT": asked.variant}, asked.bind).run(parse(text))
    whole, packed, under = (
        size_bytes(image.folder), size_bytes(image.folder, compressed=True), size_bytes(base),
    )  # fmt: skip
    print(f"{asked.variant}: {whole / MIB:.0f} MiB, {packed / MIB:.0f} MiB gzipped;", end=" ")
    print(f"{(whole - under) / MIB:.0f} MiB above its base")
    if asked.sbom:
        print(f"{asked.sbom}: {write_sbom(image, asked.sbom)} components")
    try_out(image)


if __name__ == "__main__":
    main()
