#!/bin/sh
# Runs the tests and then the benchmark on a machine with a GPU, within --seconds (default 460; a part that would take longer is
# skipped, and named). The report is written to --output (default build/cuda-report).
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
# cuBLAS is the machine's, or that of pip's wheels beside torch (site-packages/nvidia/*/lib).
wheels=$("$python" -c 'import glob, sys
print(":".join(d for p in sys.path if p for d in sorted(glob.glob(p + "/nvidia/*/lib"))))' 2>/dev/null)
export LD_LIBRARY_PATH="$wheels${wheels:+:}$LD_LIBRARY_PATH"
set -- --output "${output:-$PWD/build/cuda-report}" --device "${device:-cuda}" --shapes "${shapes:-all}"
# The tests get two fifths of the time.
./node scripts/test_cuda.mjs "$@" --seconds $((seconds * 2 / 5))
tested=$?
left=$((seconds - $(date +%s) + begun))
[ "$left" -gt 0 ] || left=1
./node scripts/bench_cuda.mjs "$@" --seconds "$left" ${torch:+--torch "$torch"} || exit 1
exit $tested
