#!/usr/bin/env bash
# What a GPU is wanted for, as one command that ends in time: scripts/check_gpu.py, then Table 1 in full length.
#
#   scripts/gpu_session.sh prepare cifar10.tar.xz   # here: fills .gpu/ with what the machine with the GPU may lack
#   OUT=results scripts/gpu_session.sh run          # there: the working tree with .gpu/ is all that it needs
#
# `run` takes MINUTES (9.5) in all and at most CHECK_MINUTES (3) of them for the check; further arguments go to
# scripts/gpu_table1.py. $OUT gets check_gpu.md, check_gpu.log, table1_gpu.md, table1_gpu.json, table1_gpu.log and
# states.tar: trainings that did not come to their end. With the .json in docs/results and the .tar in .gpu/, a later
# `run` goes on where this one stopped.
set -euo pipefail
cd "$(dirname "$0")/.."

prepare() {
    local archive=$1 python=${PYTHON:-.venv/bin/python}
    rm -rf .gpu/wheels .gpu/data && mkdir -p .gpu/wheels .gpu/data
    cp "$archive" .gpu/data/
    "$python" -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir .gpu/wheels .
    # Pure Python, so one wheel for every version of it.
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
        --constraint constraints.txt --dest .gpu/wheels timm onnxscript onnx-ir
    git describe --always --dirty --abbrev=40 --exclude='*' >.gpu/revision
    du -sh .gpu
}

run() {
    local python=${PYTHON:-python3} out=${OUT:-runs/gpu} seconds check
    seconds=$(awk "BEGIN {print int(60 * ${MINUTES:-9.5})}")
    check=$(awk "BEGIN {print int(60 * ${CHECK_MINUTES:-3})}")
    work=$(mktemp -d)  # not local: the trap outlives the function
    trap 'rm -rf "$work"' EXIT
    mkdir -p "$out"
    export PYTHONUNBUFFERED=1 PYTHONPATH=$work/site
    "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile --no-cache-dir \
        --target "$work/site" .gpu/wheels/*.whl
    if [ -f .gpu/states.tar ]; then tar -xf .gpu/states.tar -C "$work"; fi
    if [ -f docs/results/table1_gpu.json ]; then cp docs/results/table1_gpu.json "$out"; fi

    timeout -k 5 "$check" "$python" scripts/check_gpu.py --output "$out/check_gpu.md" 2>&1 \
        | tee "$out/check_gpu.log" || echo "check_gpu.py ended with ${PIPESTATUS[0]}; going on" | tee -a "$out/check_gpu.log"

    # Once more without CUDA graphs if that fails: it goes on from the states of the first try.
    table1 "$@" || table1 --eager "$@" || true
    if [ -d "$work/states" ]; then tar -cf "$out/states.tar" -C "$work" states; fi
    ls -l "$out"
    [ -f "$out/table1_gpu.md" ]
}

# table1 ARGUMENT...: train in the time that is left. Uses the variables of `run`.
table1() {
    local left=$((seconds - SECONDS - 15))
    if [ "$left" -lt 60 ]; then echo "no time is left for Table 1"; return 0; fi
    timeout -k 5 "$left" "$python" scripts/gpu_table1.py --data cifar10:.gpu/data --out "$out" --states "$work/states" \
        --minutes "$(awk "BEGIN {print ($left - 20) / 60}")" --revision "$(cat .gpu/revision)" "$@" 2>&1 \
        | tee -a "$out/table1_gpu.log"
}

case ${1:-} in
    prepare) prepare "${2:?name the archive of CIFAR-10}" ;;
    run) run "${@:2}" ;;
    *) sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
