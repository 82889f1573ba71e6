#!/bin/sh
# Correctness, then speed, all of it within --seconds (default 460; a part that does not fit is skipped by name). The report is
# left in the folder given with --output (default build/cuda-report).
#   run.sh [--output FOLDER] [--torch PYTHON] [--seconds N] [--device NAME] [--shapes tiny]
begun=$(date +%s)
seconds=460
python=python3
torch=
previous=
for argument in "$@"; do
  case "$previous" in
    --seconds) seconds=$argument ;;
    --torch) python=$argument torch=$argument ;;
    --output) output=$(realpath -m "$argument") ;;
    --device) device=$argument ;;
    --shapes) shapes=$argument ;;
  esac
  previous=$argument
done
cd "$(dirname "$0")" || exit 1
export BALORA_BINARY="$PWD/prebuilds/linux-x64/balora.node"
# cuBLAS of the machine's own, or as pip's wheels have it beside torch: site-packages/nvidia/*/lib
wheels=$("$python" -c 'import glob, sys
print(":".join(d for p in sys.path if p for d in sorted(glob.glob(p + "/nvidia/*/lib"))))' 2>/dev/null)
export LD_LIBRARY_PATH="$wheels${wheels:+:}$LD_LIBRARY_PATH"
set -- --output "${output:-$PWD/build/cuda-report}" --device "${device:-cuda}" --shapes "${shapes:-all}"
# Less than half of the time tells whether the numbers are right.
./node scripts/test_cuda.mjs "$@" --seconds $((seconds * 2 / 5))
tested=$?
left=$((seconds - $(date +%s) + begun))
[ "$left" -gt 0 ] || left=1
./node scripts/bench_cuda.mjs "$@" --seconds "$left" ${torch:+--torch "$torch"} || exit 1
exit $tested
