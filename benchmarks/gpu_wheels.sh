#!/usr/bin/env bash
# Fetch the wheels of gpu_wheels.txt for a machine that reaches no package index:
#   benchmarks/gpu_wheels.sh FOLDER [PYTHON_VERSION]
# There: python3 -m pip install --no-index --no-deps --target SITE FOLDER/*.whl, and SITE on
# PYTHONPATH. Eleven megabytes; names only are fixed, pip chooses the versions.
set -euo pipefail
folder=${1:?a folder for the wheels}
version=${2:-3.12}
here=$(cd "$(dirname "$0")" && pwd)
options=(--no-deps --only-binary=:all: --python-version "$version" --implementation cp --dest "$folder")
for glibc in 5 12 17 24 27 28 31 34 35; do
  options+=(--platform "manylinux_2_${glibc}_x86_64")
done
options+=(--platform manylinux2014_x86_64 --platform manylinux1_x86_64)
python3 -m pip download --quiet "${options[@]}" --requirement <(grep -v '^#' "$here/gpu_wheels.txt")
# pydantic names one exact version of its compiled half.
core=$(unzip -p "$folder"/pydantic-2*.whl '*/METADATA' | sed -n 's/^Requires-Dist: \(pydantic-core==[0-9.]*\).*/\1/p')
python3 -m pip download --quiet "${options[@]}" "$core"
ls "$folder"
