// Normalization, statistics in f32.
//
// Layer norm: a warp for every row, which is read three times, from the first cache but once.
// Group norm of images with their channels innermost, in three passes: sums over pieces of the images, what they
// make of every channel, and the result. Sums are of differences to a value of the group, so that a large mean takes
// nothing from the variance, and are added in an order that depends on the sizes alone.
#include "device.cuh"

// Rows of `width`; then, if there is one, a table of `positions` rows is added: `run` rows in a row take the first of
// it, as many the second, and after the last comes the first again.
template <typename T, int N>
DEVICE void layer_norm(const T *x, const T *weight, const T *bias, const T *table, T *y, u32 rows, u32 width,
                       u32 positions, u32 run, float eps) {
  const u32 row = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
  if (row >= rows) return;
  const u32 across = width / N, start = row * across;
  float sum = 0.0f;
  for (u32 c = lane; c < across; c += 32) {
    const Chunk<T, N> values = load<N>(x, start + c);
    for (int j = 0; j < N; j++) sum += widen(values.at[j]);
  }
  const float mean = warp_sum(sum) / width;
  float squares = 0.0f;
  for (u32 c = lane; c < across; c += 32) {
    const Chunk<T, N> values = load<N>(x, start + c);
    for (int j = 0; j < N; j++) {
      const float far = widen(values.at[j]) - mean;
      squares += far * far;
    }
  }
  const float scale = 1.0f / sqrtf(warp_sum(squares) / width + eps);
  const u32 position = positions ? row / run % positions : 0;
  for (u32 c = lane; c < across; c += 32) {
    const Chunk<T, N> values = load<N>(x, start + c), w = load<N>(weight, c), b = load<N>(bias, c);
    Chunk<T, N> add{}, out;
    if (positions) add = load<N>(table, position * across + c);
    for (int j = 0; j < N; j++) {
      float v = (widen(values.at[j]) - mean) * scale * widen(w.at[j]) + widen(b.at[j]);
      if (positions) v += widen(add.at[j]);
      narrow(v, out.at[j]);
    }
    store(y, start + c, out);
  }
}

#define DEFINE(NAME, T, N)                                                                                         \
  KERNEL void layer_norm_##NAME(const T *x, const T *weight, const T *bias, const T *table, T *y, u32 rows,        \
                                u32 width, u32 positions, u32 run, float eps) {                                    \
    layer_norm<T, N>(x, weight, bias, table, y, rows, width, positions, run, eps);                                 \
  }
IN_ALL_FORMATS(DEFINE)
#undef DEFINE

// A value of the group in the first image of the clip, near the group's mean as values go.
template <typename T>
DEVICE float anchor(const T *x, u32 image, u32 frames, u32 pixels, u32 channels, u32 channel) {
  return widen(x[static_cast<u64>(image / frames * frames) * pixels * channels + channel]);
}

// `(images, pieces, groups, 2)`: sums of the differences to the anchor and of their squares, over a piece of `piece`
// pixels. A block has as many threads as `width / N` divides into, and shared memory for two values a thread and
// channel of its chunk.
template <typename T, int N>
DEVICE void group_sums(const T *x, float *sums, u32 pixels, u32 piece, u32 pieces, u32 channels, u32 groups,
                       u32 frames) {
  const u32 across = channels / N, column = threadIdx.x % across, row = threadIdx.x / across;
  const u32 rows = blockDim.x / across, image = blockIdx.x / pieces, part = blockIdx.x % pieces;
  const u32 size = channels / groups;
  float from[N], sum[N], squares[N];
  for (int j = 0; j < N; j++) {
    from[j] = anchor(x, image, frames, pixels, channels, (column * N + j) / size * size);
    sum[j] = squares[j] = 0.0f;
  }
  const u32 end = min((part + 1) * piece, pixels);
  for (u32 pixel = part * piece + row; pixel < end; pixel += rows) {
    const Chunk<T, N> values = load<N>(x, (image * pixels + pixel) * across + column);
    for (int j = 0; j < N; j++) {
      const float far = widen(values.at[j]) - from[j];
      sum[j] += far;
      squares[j] += far * far;
    }
  }
  float *memory = reinterpret_cast<float *>(shared_memory());
  for (int j = 0; j < N; j++) {
    const u32 at = (row * channels + column * N + j) * 2;
    memory[at] = sum[j];
    memory[at + 1] = squares[j];
  }
  __syncthreads();
  for (u32 i = threadIdx.x; i < groups * 2; i += blockDim.x) {
    const u32 group = i / 2;
    float total = 0.0f;
    for (u32 r = 0; r < rows; r++) {
      for (u32 c = 0; c < size; c++) total += memory[(r * channels + group * size + c) * 2 + i % 2];
    }
    sums[static_cast<u64>(blockIdx.x) * groups * 2 + i] = total;
  }
}

#define DEFINE(NAME, T, N)                                                                                         \
  KERNEL void group_sums_##NAME(const T *x, float *sums, u32 pixels, u32 piece, u32 pieces, u32 channels,          \
                                u32 groups, u32 frames) {                                                          \
    group_sums<T, N>(x, sums, pixels, piece, pieces, channels, groups, frames);                                    \
  }
IN_ALL_FORMATS(DEFINE)
#undef DEFINE

// From `(clips, frames * pieces, groups, 2)` sums to `(clips, channels)` means and scales; a warp for every group of
// every clip.
template <typename T>
DEVICE void group_fold(const T *x, const float *sums, const T *weight, float *means, float *scales, u32 clips,
                       u32 pixels, u32 pieces, u32 channels, u32 groups, u32 frames, float eps) {
  const u32 unit = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
  if (unit >= clips * groups) return;
  const u32 clip = unit / groups, group = unit % groups, size = channels / groups, parts = frames * pieces;
  float sum = 0.0f, squares = 0.0f;
  for (u32 part = lane; part < parts; part += 32) {
    const u64 at = (static_cast<u64>(clip * parts + part) * groups + group) * 2;
    sum += sums[at];
    squares += sums[at + 1];
  }
  const float count = static_cast<float>(size) * pixels * frames;
  const float far = warp_sum(sum) / count, variance = warp_sum(squares) / count - far * far;
  const float mean = anchor(x, clip * frames, frames, pixels, channels, group * size) + far;
  const float scale = 1.0f / sqrtf((variance < 0.0f ? 0.0f : variance) + eps);
  for (u32 c = group * size + lane; c < (group + 1) * size; c += 32) {
    means[clip * channels + c] = mean;
    scales[clip * channels + c] = scale * widen(weight[c]);
  }
}

#define DEFINE(NAME, T)                                                                                            \
  KERNEL void group_fold_##NAME(const T *x, const float *sums, const T *weight, float *means, float *scales,       \
                                u32 clips, u32 pixels, u32 pieces, u32 channels, u32 groups, u32 frames,           \
                                float eps) {                                                                       \
    group_fold<T>(x, sums, weight, means, scales, clips, pixels, pieces, channels, groups, frames, eps);           \
  }
DEFINE(f32, float)
DEFINE(f16, f16)
DEFINE(bf16, bf16)
#undef DEFINE

// (x - mean) * scale + bias, then SiLU if asked; `span` chunks are a clip.
template <typename T, int N>
DEVICE void group_apply(const T *x, const float *means, const float *scales, const T *bias, T *y, u32 chunks,
                        u32 span, u32 channels, u32 with_silu) {
  const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= chunks) return;
  const u32 across = channels / N, column = i % across, clip = i / span;
  const Chunk<T, N> values = load<N>(x, i), b = load<N>(bias, column);
  const Chunk<float, N> mean = load<N>(means, clip * across + column), scale = load<N>(scales, clip * across + column);
  Chunk<T, N> out;
  for (int j = 0; j < N; j++) {
    const float v = (widen(values.at[j]) - mean.at[j]) * scale.at[j] + widen(b.at[j]);
    narrow(with_silu ? silu(v) : v, out.at[j]);
  }
  store(y, i, out);
}

#define DEFINE(NAME, T, N)                                                                                         \
  KERNEL void group_apply_##NAME(const T *x, const float *means, const float *scales, const T *bias, T *y,         \
                                 u32 chunks, u32 span, u32 channels, u32 with_silu) {                              \
    group_apply<T, N>(x, means, scales, bias, y, chunks, span, channels, with_silu);                               \
  }
IN_ALL_FORMATS(DEFINE)
#undef DEFINE
