// Elementwise kernels. Images are channels-last.
//
// All are bound by memory: each thread reads and writes one chunk of up to 16 bytes.
#include "device.cuh"

// The epilogue of a product: y = activation(y + bias + shift) + residual, in place. `parts` says which there are: 1 the
// bias, 2 the shift, both `(width)`, and 4 the residual. Activations: 0 none, 1 SiLU, 2 ReLU.
template <typename T, int N>
DEVICE void epilogue(T *y, const T *bias, const T *shift, const T *residual, u32 chunks, u32 width, u32 parts,
                     u32 activation) {
  const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= chunks) return;
  const u32 column = i % (width / N);
  Chunk<T, N> values = load<N>(y, i), b{}, s{}, r{};
  if (parts & 1) b = load<N>(bias, column);
  if (parts & 2) s = load<N>(shift, column);
  if (parts & 4) r = load<N>(residual, i);
  for (int j = 0; j < N; j++) {
    float v = widen(values.at[j]);
    if (parts & 1) v += widen(b.at[j]);
    if (parts & 2) v += widen(s.at[j]);
    if (activation == 1) v = silu(v);
    if (activation == 2) v = v < 0.0f ? 0.0f : v;
    if (parts & 4) v += widen(r.at[j]);
    narrow(v, values.at[j]);
  }
  store(y, i, values);
}

#define DEFINE(NAME, T, N)                                                                                       \
  KERNEL void epilogue_##NAME(T *y, const T *bias, const T *shift, const T *residual, u32 chunks, u32 width,     \
                              u32 parts, u32 activation) {                                                       \
    epilogue<T, N>(y, bias, shift, residual, chunks, width, parts, activation);                                  \
  }
IN_ALL_FORMATS(DEFINE)
#undef DEFINE

// Gated GELU of rows `(2 width)`, values and then gates, with a bias `(2 width)` if `biased`: value * gelu(gate).
template <typename T, int N>
DEVICE void geglu(const T *x, const T *bias, T *y, u32 chunks, u32 width, u32 biased) {
  const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= chunks) return;
  const u32 across = width / N, row = i / across, column = i % across;
  const Chunk<T, N> values = load<N>(x, row * 2 * across + column);
  const Chunk<T, N> gates = load<N>(x, row * 2 * across + across + column);
  Chunk<T, N> value_bias{}, gate_bias{}, out;
  if (biased) {
    value_bias = load<N>(bias, column);
    gate_bias = load<N>(bias, across + column);
  }
  for (int j = 0; j < N; j++) {
    float value = widen(values.at[j]), gate = widen(gates.at[j]);
    if (biased) {
      value += widen(value_bias.at[j]);
      gate += widen(gate_bias.at[j]);
    }
    narrow(value * gelu(gate), out.at[j]);
  }
  store(y, i, out);
}

#define DEFINE(NAME, T, N)                                                                              \
  KERNEL void geglu_##NAME(const T *x, const T *bias, T *y, u32 chunks, u32 width, u32 biased) {        \
    geglu<T, N>(x, bias, y, chunks, width, biased);                                                     \
  }
IN_ALL_FORMATS(DEFINE)
#undef DEFINE

// The patches of a convolution (im2col): rows `(kernel, kernel, channels)` for the outputs from `first` on, zeros
// beyond the edges. The image is first stretched to `seen`, by nearest neighbours, then padded.
template <typename T, int N>
DEVICE void patches(const T *x, T *y, u32 chunks, u32 first, u32 channels, u32 height, u32 width, u32 seen_height,
                    u32 seen_width, u32 out_height, u32 out_width, u32 kernel, u32 stride, u32 before) {
  const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= chunks) return;
  const u32 across = channels / N, taps = kernel * kernel;
  const u32 c = i % across, tap = i / across % taps, output = first + i / across / taps;
  const u32 out_x = output % out_width, out_y = output / out_width % out_height, image = output / out_width / out_height;
  // Below zero they are huge, and beyond the edge as well.
  const u32 seen_y = out_y * stride + tap / kernel - before, seen_x = out_x * stride + tap % kernel - before;
  Chunk<T, N> values{};
  if (seen_y < seen_height && seen_x < seen_width) {
    const u32 at_y = seen_y * height / seen_height, at_x = seen_x * width / seen_width;
    values = load<N>(x, ((image * height + at_y) * width + at_x) * across + c);
  }
  store(y, i, values);
}

#define DEFINE(NAME, T, N)                                                                                          \
  KERNEL void patches_##NAME(const T *x, T *y, u32 chunks, u32 first, u32 channels, u32 height, u32 width,          \
                             u32 seen_height, u32 seen_width, u32 out_height, u32 out_width, u32 kernel, u32 stride, \
                             u32 before) {                                                                          \
    patches<T, N>(x, y, chunks, first, channels, height, width, seen_height, seen_width, out_height, out_width,     \
                  kernel, stride, before);                                                                          \
  }
IN_ALL_FORMATS(DEFINE)
#undef DEFINE
