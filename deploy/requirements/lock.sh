#!/bin/sh
# Remakes cuda.txt and cpu.txt: every package of the image at the version of constraints.txt, with
# the hashes of its files. Arguments say where torch's CPU build is, and are written down nowhere:
#   pip install uv && deploy/requirements/lock.sh --torch-backend cpu
#   deploy/requirements/lock.sh --find-links FOLDER
set -eu
cd "$(dirname "$0")/../.."

lock() { # VARIANT [option...]
    variant=$1 file=deploy/requirements/$1.txt
    shift
    echo "# The $variant image: Linux, Python 3.11. Made by deploy/requirements/lock.sh." >"$file.new"
    uv pip compile pyproject.toml --extra train --extra tune --extra serve --quiet \
        --constraint constraints.txt --python-version 3.11 \
        --python-platform x86_64-manylinux_2_28 --generate-hashes --no-header --no-annotate \
        --no-emit-find-links "$@" >>"$file.new"
    mv "$file.new" "$file"
}

lock cuda
lock cpu "$@"
