#!/usr/bin/env bash
# A GPU for machines without one: the libraries that a CUDA program calls, with kernels that run on the CPU.
#
#   tests/cuda_on_cpu/build.sh OUT
#
# OUT gets libcuda.so, libcublas.so, libcudnn.so and so on, to link with and to run with. A build of this project with
# --features cuda or cudnn still needs CUDA's compiler, but no driver and no other library; it then runs as on a GPU, a
# thousand times slower: own kernels and candle's from their sources, cuBLAS and cuDNN as plain loops.
#
#   CUDA_COMPUTE_CAP=80 RUSTFLAGS="-L OUT" cargo build --release --features cudnn
#   CUDA_ON_CPU=1 LD_LIBRARY_PATH=OUT target/release/animatelcm generate … --device cuda
#   CUDA_ON_CPU=1 LD_LIBRARY_PATH=OUT cargo test --release --features cudnn -- --nocapture gpu::
#
# `CUDA_ON_CPU_REPORT=1` tells at the end which kernels ran, `CUDA_ON_CPU=1` makes the tests choose smaller shapes.
#
# What it proves is that launches, addresses, sizes and formats are right and that the arithmetic is; what it cannot
# prove is what GPUs do in their own ways: instructions, speed, limits, order of memory.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:?usage: build.sh OUT}
mkdir -p "$out/src"
out=$(cd "$out" && pwd)
cd "$here/../.."
source_of() { # NAME: where a dependency's source is
  local found
  found=$(cargo metadata --features cudnn --format-version 1 | tr '"' '\n' | grep "/$1-[^/]*/Cargo.toml\$" | head -1)
  [ -n "$found" ] || { echo "no $1 among the dependencies" >&2; exit 2; }
  dirname "$found"
}
candle=$(source_of candle-kernels)/src
bindings=$(source_of cudarc)/src

# Without `compatibility.cuh`, which is about atomics of old GPUs.
for name in affine binary cast conv fill indexing reduce ternary unary; do cp "$candle/$name.cu" "$out/src/"; done
cp "$candle"/{cuda_utils,binary_op_macros}.cuh "$out/src/"

flags=(-std=c++20 -O2 -fPIC -w -fno-strict-aliasing -fvisibility=hidden
  -I "$out/src" -I "$here/include" -I "$here" -I crates/kernels/src/cuda)
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
# What else the bindings name is there, to be linked, and stops the program when it is called.
nm --defined-only -g "$out/src/libraries.o" | awk '{ print $3 }' | sort >"$out/src/played"
for library in driver cublas cublaslt curand cudnn nvrtc; do
  grep -A1 'extern "C" {' "$bindings/$library/sys/mod.rs" | sed -n 's/^ *fn \([A-Za-z_0-9]*\)(.*/\1/p'
done | sort -u | comm -23 - "$out/src/played" | {
  printf '#include <stdio.h>\n#include <stdlib.h>\n#define F(n) void n(void) { fprintf(stderr, "cuda on cpu: no " #n "\\n"); abort(); }\n'
  sed 's/.*/F(&)/'
} >"$out/src/missing.c"
${CC:-cc} -w -fPIC -c "$out/src/missing.c" -o "$out/src/missing.o"
${CXX:-c++} -shared -o "$out/libcuda_on_cpu.so" "$out"/src/*.o
for name in cuda.so{,.1} cublas.so{,.12,.13} cublasLt.so{,.12,.13} curand.so{,.10} cudnn.so{,.9} nvrtc.so{,.12,.13}; do
  ln -sf libcuda_on_cpu.so "$out/lib$name"
done
