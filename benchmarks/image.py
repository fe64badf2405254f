"""Builds the image without a container daemon, and tries it: `python -m benchmarks.image FOLDER`.

buildah runs deploy/Dockerfile over a base by debootstrap. Then a Ray job with two workers (a head
without work, a token) and the endpoint run in the result as the image's user: no capabilities, no
network, a read-only root, which buildah's chroots do not give. Prints sizes, writes the SBOM. Needs
root, buildah, debootstrap, util-linux, iproute2; for the SBOM `pipx install cyclonedx-bom` (not
beside Ray: what it brings makes `import ray` four times as long, tests/test_house.py).
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
from ast import literal_eval
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MIB = 2**20

# What a container runtime does for a pod of ours, and no more.
CONTAINER = """
set -e
ip link set lo up
mount --bind {root} {root} && mount -o remount,bind,ro {root}
mount -t tmpfs -o mode=1777 tmp {root}/tmp
mount -t tmpfs dev {root}/dev && mkdir -m 1777 {root}/dev/shm
for name in null zero full random urandom; do
  touch {root}/dev/$name; mount --bind /dev/$name {root}/dev/$name
done
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


def build(folder: Path, variant: str, debian: str, binds: list[str]) -> dict[str, Any]:
    """Write the image's files to folder/root. Gives its configuration, as Docker keeps it."""
    buildah = ["buildah", "--root", f"{folder}/storage", "--runroot", f"{folder}/run"]
    buildah += ["--storage-driver", "vfs"]
    make = [*buildah, "build", "--isolation", "chroot", "--format", "docker"]
    context = folder / "base"
    if not context.exists():
        subprocess.run(["debootstrap", "--variant=minbase", debian, folder / "debian"], check=True)
        context.mkdir()
        pack = ["tar", "-C", folder / "debian", "--exclude=./dev/*", "--exclude=./proc/*"]
        subprocess.run([*pack, "-cf", context / "base.tar", "."], check=True)
        (context / "Dockerfile").write_text("FROM scratch\nADD base.tar /\n", encoding="utf-8")
        subprocess.run([*make, "--tag", "localhost/base", context], check=True)
    shutil.rmtree(folder / "root", ignore_errors=True)
    volumes = [*pip_volumes(folder), *(f"{path}:{path}:ro" for path in binds)]
    subprocess.run(
        [*make, "--file", "deploy/Dockerfile", "--tag", "localhost/aalnet",
         "--build-arg", "BASE=localhost/base", "--build-arg", f"VARIANT={variant}",
         *(word for volume in volumes for word in ("--volume", volume)),
         "--output", f"type=local,dest={folder / 'root'}", "."], cwd=ROOT, check=True,
    )  # fmt: skip
    (folder / "root").chmod(0o755)  # buildah's --output leaves it to root alone
    config = json.loads(output(*buildah, "inspect", "--type", "image", "localhost/aalnet"))
    return dict(config["Docker"]["config"])


def pip_volumes(folder: Path) -> list[str]:
    """Shows RUN this machine's registry: pip's settings, and its certificates where none is yet."""
    lines, volumes = ["[global]"], [f"{folder}/pip.conf:/etc/pip.conf:ro"]
    for line in output(sys.executable, "-m", "pip", "config", "list").splitlines():
        key, _, value = line.partition("=")
        name, value = key.rpartition(".")[2], literal_eval(value)
        if name == "cert":
            volumes.append(f"{value}:/etc/pip-cert.pem:ro")
            value = "/etc/pip-cert.pem"
        if name != "constraint":
            lines.append(f"{name} = {' '.join(value.split())}")
    (folder / "pip.conf").write_text("\n".join(dict.fromkeys(lines)) + "\n", encoding="utf-8")
    return list(dict.fromkeys(volumes))


def try_out(root: Path, config: dict[str, Any]) -> None:
    """Train and serve inside. Raises CalledProcessError where a step fails."""
    script = CONTAINER.format(
        root=root,
        user=config["User"],
        workdir=config["WorkingDir"],
        environment=shlex.join(config["Env"]),
    )
    trial = TRIAL.format(healthcheck=shlex.join(config["Healthcheck"]["Test"][1:]))
    command = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child"]
    subprocess.run([*command, "sh", "-c", script, "sh", trial], check=True)


def write_sbom(root: Path, path: Path) -> int:
    """CycloneDX: Python's packages as installed, and Debian's. Gives their number."""
    python = root / "opt/venv/lib/python3.11/site-packages"
    with tempfile.TemporaryDirectory() as folder:
        # A virtual environment of this machine's Python that sees the image's packages only.
        subprocess.run(["python3", "-m", "venv", "--without-pip", folder], check=True)
        (Path(folder) / "lib/python3.11/site-packages/image.pth").write_text(f"{python}\n")
        command = ["cyclonedx-py", "environment", "--output-reproducible"]
        bom = json.loads(output(*command, f"{folder}/bin/python"))
    packages = output("dpkg-query", f"--admindir={root}/var/lib/dpkg", "--show")
    for name, version in (line.split("\t") for line in packages.splitlines()):
        purl = f"pkg:deb/debian/{name.split(':')[0]}@{version}"
        component = {"type": "library", "name": name, "version": version, "purl": purl}
        bom["components"].append({"bom-ref": purl, **component})
    path.write_text(json.dumps(bom, indent=1) + "\n", encoding="utf-8")
    return len(bom["components"])


def output(*command: str) -> str:
    """What a command prints."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    """Build, measure, list, try."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="for base, storage and root file system (7 GB)")
    parser.add_argument("--variant", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--debian", default="bookworm", help="release of the base")
    parser.add_argument(
        "--bind", action="append", default=[], help="show this folder to RUN, read-only"
    )
    parser.add_argument("--sbom", type=Path, help="write it here")
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    config = build(folder, options.variant, options.debian, options.bind)
    root, debian = (
        int(output("du", "-sb", str(folder / name)).split()[0]) for name in ("root", "debian")
    )
    packed = int(output("sh", "-c", f"tar -C {folder}/root -cf - . | gzip -6 | wc -c"))
    print(f"{options.variant}: {root / MIB:.0f} MiB, {packed / MIB:.0f} MiB gzipped; ", end="")
    print(f"{(root - debian) / MIB:.0f} MiB above its base")
    if options.sbom:
        print(f"{options.sbom}: {write_sbom(folder / 'root', options.sbom)} components")
    try_out(folder / "root", config)


if __name__ == "__main__":
    main()
