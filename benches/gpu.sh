#!/usr/bin/env bash
# Everything that wants a GPU, in one go: parity, our bench, diffusers beside it, and one table at the end.
#
#   benches/gpu.sh OUT [PROGRAM [TESTS]]
#
#   OUT      a folder for logs and results
#   PROGRAM  an animatelcm built with --features cuda or cudnn      [built here, release, --features cudnn]
#   TESTS    the same build's integration tests, an executable; it reads the goldens of the folder that it was built in
#                                                                   [built here]
#   PYTHON   (environment) a Python with tests/goldens/make/requirements.txt; without one there is no other side [python3]
#   QUICK=1  (environment) one repeat, no torch.compile
#
# A part that fails is told and does not stop the others; the exit status is that of the parity tests.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:?usage: benches/gpu.sh OUT [PROGRAM [TESTS]]}
mkdir -p "$out"
out=$(cd "$out" && pwd)
python=${PYTHON:-python3}
program=${2:-}
tests=${3:-}
cd "$here/.."

if [ -z "$program" ]; then
  cargo build --release --features cudnn || exit
  program=target/release/animatelcm
fi
if [ -z "$tests" ]; then
  tests=$(cargo test --release --features cudnn --test integration --no-run --message-format=json |
    sed -n 's/.*"name":"integration".*"executable":"\([^"]*\)".*/\1/p') || exit
fi

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee "$out/gpu.txt"

# 1. Parity. cuDNN may multiply f32 on tensor cores with 10-bit mantissas: the second run tells that apart from mistakes.
"$tests" --nocapture gpu:: >"$out/parity.log" 2>&1
parity=$?
if grep -q '^skipped on cuda' "$out/parity.log" || ! grep -qE '^test result: ok\. [1-9]' "$out/parity.log"; then
  parity=1
fi
if [ $parity -ne 0 ]; then
  NVIDIA_TF32_OVERRIDE=0 "$tests" --nocapture gpu:: >"$out/parity-without-tf32.log" 2>&1
  echo "parity failed; with NVIDIA_TF32_OVERRIDE=0 the status is $?"
fi
grep -hE '^test result|skipped|: [0-9.]+e-?[0-9]+$|panicked' "$out"/parity*.log

# Whether seeds mean what torch means by them there.
"$python" "$here/reference/cuda_noise.py" 2>&1 | tail -n 1 | tee "$out/noise.txt"

# 2. Ours, and diffusers beside it. Both sides are warm: the first clip compiles and picks kernels. The memory of the
# device is sampled from outside, for both sides alike.
repeats=5
[ "${QUICK:-0}" = 1 ] && repeats=1
measured() { # NAME COMMAND…
  local name=$1
  shift
  nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits -lms 100 >"$out/$name.mib" &
  local watcher=$!
  "$@" >"$out/$name.json" 2>"$out/$name.log" || tail -n 2 "$out/$name.log"
  kill $watcher
  wait $watcher 2>/dev/null
}
theirs() { # NAME FLAGS…
  local name=theirs-$1
  shift
  measured "$name" "$python" "$here/reference/diffusers_bench.py" --device cuda --channels-last --per-frame \
    --repeats $repeats "$@"
}
for dtype in f16 bf16; do
  for kernels in default experimental; do
    name=ours-$dtype
    [ $kernels = default ] || name=$name-$kernels
    measured $name "$program" bench --random-weights sd15 --device cuda --dtype $dtype --kernels $kernels \
      --repeats $repeats --json
  done
done
for dtype in f16 bf16; do
  theirs $dtype --dtype $dtype
  [ "${QUICK:-0}" = 1 ] || theirs $dtype-compiled --dtype $dtype --compile
done

# 3. From the start of the process to the file, with the small model.
measured ours-pocket "$program" bench --device cuda --repeats $repeats --json

"$python" "$here/reference/gpu_table.py" "$out" | tee "$out/table.md"
exit $parity
