#!/usr/bin/env bash
# A GPU for machines without one: the libraries that a CUDA program calls, with kernels that run on the CPU.
#
#   tests/cuda_on_cpu/build.sh OUT
#
# OUT gets libcuda.so.1, libcublas.so.13 and so on. A build of this project with --features cuda (or cudnn) that finds
# them (LD_LIBRARY_PATH) runs as on a GPU, a thousand times slower: own kernels and candle's from their sources, cuBLAS
# and cuDNN as plain loops. `CUDA_ON_CPU_REPORT=1` tells at the end which kernels ran.
#
# What it proves is that launches, addresses, sizes and formats are right and that the arithmetic is; what it cannot
# prove is what GPUs do in their own ways: instructions, speed, limits, order of memory.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:?usage: build.sh OUT}
mkdir -p "$out/src"
out=$(cd "$out" && pwd)
cd "$here/../.."
candle=$(cargo metadata --features cuda --format-version 1 | tr '"' '\n' | grep 'candle-kernels-[^/]*/Cargo.toml$' | head -1)
[ -n "$candle" ] || { echo "no candle-kernels among the dependencies" >&2; exit 2; }

# Without `compatibility.cuh`, which is about atomics of old GPUs.
for name in affine binary cast conv fill indexing reduce ternary unary; do cp "$(dirname "$candle")/src/$name.cu" "$out/src/"; done
cp "$(dirname "$candle")"/src/{cuda_utils,binary_op_macros}.cuh "$out/src/"

flags=(-std=c++20 -O2 -fPIC -w -fno-strict-aliasing -fvisibility=hidden
  -I "$out/src" -I "$here/include" -I "$here" -I src/kernels/cuda)
compile() { # NAME ALONE: a source and whether its threads never meet
  local text=$out/src/$1.cpp
  printf '#include "cuda_on_cpu.h"\n#include "%s.cu"\n' "$1" >"$text"
  ${CXX:-c++} "${flags[@]}" -E -P "$text" | grep -oE 'extern "C" +void [A-Za-z_0-9]+' | awk '{ print $NF }' | sort -u |
    sed "s/.*/  host::kernels()[\"&\"] = host::kernel_of($2, \&&);/" >"$out/src/$1.inc"
  { cat "$text"; echo 'namespace { const bool listed = [] {'; cat "$out/src/$1.inc"; echo 'return true; }(); }'; } >"$out/src/$1.all.cpp"
  ${CXX:-c++} "${flags[@]}" -c "$out/src/$1.all.cpp" -o "$out/src/$1.o"
}
for name in affine binary cast conv fill indexing ternary unary elementwise; do compile $name true; done
for name in reduce norm attention; do compile $name false; done
${CXX:-c++} "${flags[@]}" -c "$here/libraries.cpp" -o "$out/src/libraries.o"
${CXX:-c++} -shared -o "$out/libcuda_on_cpu.so" "$out"/src/*.o
for name in cuda.so.1 cublas.so.13 cublas.so.12 cublasLt.so.13 cublasLt.so.12 curand.so.10 cudnn.so.9 nvrtc.so.13 nvrtc.so.12; do
  ln -sf libcuda_on_cpu.so "$out/lib$name"
done
