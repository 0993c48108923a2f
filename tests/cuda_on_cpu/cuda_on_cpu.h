// CUDA C++ for a C++ compiler: what candle's kernels use beside what our own do (`crates/kernels/src/cuda/host.h`).
#pragma once

#include <cassert>
#include <cstdint>
#include <limits>
#include <map>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#include "../../crates/kernels/src/cuda/device.cuh"

#define __CUDA_ARCH__ 800
#define __global__
#define __device__ inline
#define __host__
#define __constant__ static
#define __forceinline__
#define __restrict__
// Blocks run one after another.
#define __shared__ static

constexpr int warpSize = 32;

using std::isinf;
using std::isnan;

struct float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }

// A 16-bit format: every operation is one of f32, rounded.
template <typename Bits>
struct Short {
  u16 bits;

  Short() = default;
  template <typename V, typename = std::enable_if_t<std::is_arithmetic_v<V>>>
  Short(V v) {
    Bits to;
    narrow(static_cast<float>(v), to);
    bits = to.bits;
  }
  operator float() const { return widen(Bits{bits}); }
  Short &operator+=(Short v) { return *this = Short(float(*this) + float(v)); }
  Short &operator-=(Short v) { return *this = Short(float(*this) - float(v)); }
  Short &operator*=(Short v) { return *this = Short(float(*this) * float(v)); }
  Short &operator/=(Short v) { return *this = Short(float(*this) / float(v)); }
};

#define OPERATOR(OP)                                                             \
  template <typename B>                                                          \
  Short<B> operator OP(Short<B> a, Short<B> b) {                                 \
    return Short<B>(float(a) OP float(b));                                       \
  }
OPERATOR(+) OPERATOR(-) OPERATOR(*) OPERATOR(/)
#undef OPERATOR
#define OPERATOR(OP)                                                             \
  template <typename B>                                                          \
  bool operator OP(Short<B> a, Short<B> b) {                                     \
    return float(a) OP float(b);                                                 \
  }
OPERATOR(<) OPERATOR(>) OPERATOR(<=) OPERATOR(>=) OPERATOR(==) OPERATOR(!=)
#undef OPERATOR
template <typename B>
Short<B> operator-(Short<B> a) {
  return Short<B>(-float(a));
}

using __half = Short<f16>;
using half = __half;
using __nv_bfloat16 = Short<bf16>;
struct __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
#define OPERATION(NAME, OP) \
  inline __nv_bfloat162 NAME(__nv_bfloat162 a, __nv_bfloat162 b) { return {a.x OP b.x, a.y OP b.y}; }
OPERATION(__hadd2, +)
OPERATION(__hsub2, -)
OPERATION(__hmul2, *)
OPERATION(__h2div, /)
#undef OPERATION

inline float __half2float(__half v) { return v; }
inline __half __float2half(float v) { return v; }
inline float __bfloat162float(__nv_bfloat16 v) { return v; }
inline __nv_bfloat16 __float2bfloat16(float v) { return v; }
inline __nv_bfloat16 __float2bfloat16_rn(float v) { return v; }

// Named by candle, never used here.
struct __nv_fp8_e4m3 {
  unsigned char __x;

  __nv_fp8_e4m3() = default;
  template <typename V>
  explicit __nv_fp8_e4m3(V) {
    host::fail("no 8-bit floats here");
  }
  template <typename V>
  operator V() const {
    host::fail("no 8-bit floats here");
  }
};
constexpr int __NV_E4M3 = 0;
inline __half __nv_cvt_fp8_to_halfraw(unsigned char, int) { host::fail("no 8-bit floats here"); }

#define FUNCTION(NAME, CALL)                                          \
  inline __half NAME(__half v) { return CALL(float(v)); }             \
  inline __nv_bfloat16 NAME(__nv_bfloat16 v) { return CALL(float(v)); }
inline float inverse(float v) { return 1.0f / v; }
FUNCTION(hexp, std::exp)
FUNCTION(hlog, std::log)
FUNCTION(hsin, std::sin)
FUNCTION(hcos, std::cos)
FUNCTION(hsqrt, std::sqrt)
FUNCTION(hceil, std::ceil)
FUNCTION(hfloor, std::floor)
FUNCTION(hrcp, inverse)
FUNCTION(__habs, std::fabs)
#undef FUNCTION

// The greater and the lesser; NaN wins in those that say so.
#define CHOICE(NAME, OP)                                                                        \
  template <typename B>                                                                         \
  Short<B> NAME(Short<B> a, Short<B> b) {                                                       \
    return OP(float(a), float(b));                                                              \
  }                                                                                             \
  template <typename B>                                                                         \
  Short<B> NAME##_nan(Short<B> a, Short<B> b) {                                                 \
    return a != a || b != b ? Short<B>(NAN) : NAME(a, b);                                       \
  }
CHOICE(__hmax, std::fmax)
CHOICE(__hmin, std::fmin)
#undef CHOICE
template <typename B>
bool __hisnan(Short<B> v) {
  return v != v;
}

template <typename T>
T __shfl_xor_sync(u32 mask, T v, int distance, int) {
  return T(__shfl_xor_sync(mask, float(v), distance));
}

inline float rsqrtf(float v) { return 1.0f / std::sqrt(v); }
inline double rsqrt(double v) { return 1.0 / std::sqrt(v); }
inline double normcdf(double v) { return 0.5 * std::erfc(-v * 0.70710678118654752); }
inline float normcdff(float v) { return 0.5f * std::erfc(-v * 0.70710678f); }
template <typename A, typename B>
auto max(A a, B b) {
  return a > b ? a : b;
}

// One thread runs at a time.
template <typename T, typename V>
T atomicAdd(T *at, V v) {
  const T before = *at;
  *at = T(before + T(v));
  return before;
}

namespace host {

struct Kernel {
  bool alone;
  std::function<std::function<void()>(void **)> bind;
};

std::map<std::string, Kernel> &kernels();

template <typename... A>
Kernel kernel_of(bool alone, void (*kernel)(A...)) {
  const auto bind = [kernel](void **parameters) -> std::function<void()> {
    std::tuple<std::remove_const_t<A>...> arguments;
    [&]<size_t... I>(std::index_sequence<I...>) {
      ((std::memcpy(&std::get<I>(arguments), parameters[I], sizeof(std::get<I>(arguments)))), ...);
    }(std::index_sequence_for<A...>());
    return [kernel, arguments] { std::apply(kernel, arguments); };
  };
  return {alone, bind};
}

}  // namespace host
