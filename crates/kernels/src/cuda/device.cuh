// Common parts of the kernels: dtypes, values that are read together, and what a warp does as one.
//
// Everything that only a GPU has is in this file, in two forms: instructions (PTX ISA 7.0, compute capability 8.0) for
// nvcc, and for a C++ compiler the same by `host.h`, which runs kernels on a CPU to test them.
#pragma once

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

struct f16 {
  u16 bits;
};
struct bf16 {
  u16 bits;
};

#ifdef __CUDACC__

#define DEVICE __device__ __forceinline__
#define KERNEL extern "C" __global__

DEVICE float widen(f16 v) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(v.bits));
  return wide;
}
DEVICE float widen(bf16 v) { return __uint_as_float(static_cast<u32>(v.bits) << 16); }

DEVICE void narrow(float v, f16 &to) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(v)); }
DEVICE void narrow(float v, bf16 &to) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to.bits) : "f"(v)); }

// Two values in the order in which matrix instructions want them: the first in the low half.
DEVICE u32 pair(float low, float high, f16) {
  u32 both;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}
DEVICE u32 pair(float low, float high, bf16) {
  u32 both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}

// sums += a b, of 16x16 values and 16x8; `mma.m16n8k16` says which thread holds what.
DEVICE void multiply(float (&sums)[4], const u32 (&a)[4], u32 b0, u32 b1, f16) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
DEVICE void multiply(float (&sums)[4], const u32 (&a)[4], u32 b0, u32 b1, bf16) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four matrices of 8x8 values from shared memory, whose rows the threads 0-7, 8-15, 16-23 and 24-31 point at.
DEVICE void load_matrices(u32 (&to)[4], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(static_cast<u32>(__cvta_generic_to_shared(row)))
               : "memory");
}
DEVICE void load_transposed(u32 (&to)[4], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(static_cast<u32>(__cvta_generic_to_shared(row)))
               : "memory");
}

// 16 bytes from global to shared memory, or zeros; they are there after `await` and a barrier.
DEVICE void copy_later(void *to, const void *from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(static_cast<u32>(__cvta_generic_to_shared(to))),
               "l"(from), "r"(there ? 16 : 0)
               : "memory");
}
DEVICE void end_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits for all copies but those of the last `PENDING` groups.
template <int PENDING>
DEVICE void await() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

DEVICE unsigned char *shared_memory() {
  extern __shared__ __align__(16) unsigned char memory[];
  return memory;
}

#else
#include "host.h"
#endif

DEVICE float widen(float v) { return v; }
DEVICE void narrow(float v, float &to) { to = v; }

// N values that are read and written at once.
template <typename T, int N>
struct alignas(sizeof(T) * N) Chunk {
  T at[N];
};

template <int N, typename T>
DEVICE Chunk<T, N> load(const T *from, u32 index) {
  return reinterpret_cast<const Chunk<T, N> *>(from)[index];
}

template <typename T, int N>
DEVICE void store(T *to, u32 index, const Chunk<T, N> &values) {
  reinterpret_cast<Chunk<T, N> *>(to)[index] = values;
}

DEVICE float silu(float v) { return v / (1.0f + expf(-v)); }

DEVICE float gelu(float v) { return 0.5f * v * (1.0f + erff(v * 0.70710678118654752f)); }

// The sum over a warp, in every thread.
DEVICE float warp_sum(float v) {
  for (int distance = 16; distance > 0; distance /= 2) v += __shfl_xor_sync(0xffffffffu, v, distance);
  return v;
}

// A kernel in every number format, by single values and by 16 bytes at once.
#define IN_ALL_FORMATS(DEFINE) \
  DEFINE(f32_x1, float, 1)     \
  DEFINE(f32_x4, float, 4)     \
  DEFINE(f16_x1, f16, 1)       \
  DEFINE(f16_x8, f16, 8)       \
  DEFINE(bf16_x1, bf16, 1)     \
  DEFINE(bf16_x8, bf16, 8)
