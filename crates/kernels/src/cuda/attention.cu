// softmax(q k' scale) v on matrix units, the scores never in memory.
//
// Tensors are `(batch, tokens, places, heads, dim)`, with strides for all but the last; a sequence is one head at one
// place, and a thread block takes what its queries need from where it lies. A warp has 16 queries, whose products
// with a tile of keys stay in registers: what `multiply` leaves of the scores is, rounded, what it takes as weights.
// Maxima and sums run along with the tiles (Dao et al. 2022, 2023).
//
//   attention_long   four warps share tiles, for 64 queries, and a tile comes while the one before is used: sequences
// of
//                    pixels, and prompts
//   attention_short  every warp has a sequence of its own, of few tokens, and other warps work while it waits: frames
//
// `dim`, strides and starts are multiples of 8; `DIM`, to which tiles are filled with zeros, is a multiple of 16.
#include "device.cuh"

struct Strides {
  u32 batch, token, place, head;
};

struct Sizes {
  u32 queries, keys, places, heads, dim;
};

template <typename T, int DIM, int KEYS, int WARPS, int STAGES>
struct Attend {
  // So that the rows of a matrix of 8x8 lie in different banks.
  static constexpr int PITCH = DIM + 8;
  static constexpr int TILE = KEYS * PITCH;
  static constexpr float NONE = -INFINITY;

  Sizes sizes;
  // Tensors of this sequence.
  const T *q, *k, *v;
  u32 q_token, k_token, v_token;
  // Of this warp, or those that share: `STAGES` tiles of keys, then as many of values.
  T *tiles;
  u32 lane;
  // Among those that share.
  u32 thread;

  DEVICE static void meet() {
    if (WARPS > 1) {
      __syncthreads();
    } else {
      __syncwarp();
    }
  }

  // Orders tile `tile` of keys and values.
  DEVICE void order(u32 tile) const {
    constexpr u32 ACROSS = DIM / 8;
    for (u32 i = thread; i < KEYS * ACROSS; i += WARPS * 32) {
      const u32 row = i / ACROSS, column = i % ACROSS * 8, token = tile * KEYS + row;
      const bool there = token < sizes.keys && column < sizes.dim;
      T *to = tiles + tile % STAGES * TILE + row * PITCH + column;
      copy_later(to, there ? k + static_cast<u64>(token) * k_token + column : k, there);
      copy_later(to + STAGES * TILE, there ? v + static_cast<u64>(token) * v_token + column : v, there);
    }
    end_copies();
  }

  // Two neighbouring values of a query.
  DEVICE u32 query(u32 row, u32 column) const {
    if (row >= sizes.queries || column >= sizes.dim) return 0;
    return *reinterpret_cast<const u32 *>(q + static_cast<u64>(row) * q_token + column);
  }

  // The 16 queries from `first` on, to `y`, whose tokens are `y_token` apart.
  DEVICE void run(u32 first, T *y, u32 y_token, float scale) const {
    // Scores in powers of two.
    scale *= 1.4426950408889634f;
    // A thread has pairs of columns of these two rows.
    const u32 row = first + lane / 4, pair_column = lane % 4 * 2;
    u32 a[DIM / 16][4];
    for (int i = 0; i < DIM / 16; i++) {
      a[i][0] = query(row, i * 16 + pair_column);
      a[i][1] = query(row + 8, i * 16 + pair_column);
      a[i][2] = query(row, i * 16 + 8 + pair_column);
      a[i][3] = query(row + 8, i * 16 + 8 + pair_column);
    }
    float found[DIM / 8][4] = {};
    float most[2] = {NONE, NONE}, total[2] = {0.0f, 0.0f};
    const u32 tile_count = (sizes.keys + KEYS - 1) / KEYS;
    if (STAGES > 1) order(0);
    for (u32 tile = 0; tile < tile_count; tile++) {
      if (STAGES > 1 && tile + 1 < tile_count) {
        order(tile + 1);
        await<1>();
      } else {
        if (STAGES == 1) order(tile);
        await<0>();
      }
      meet();
      const T *keys = tiles + tile % STAGES * TILE, *values = keys + STAGES * TILE;
      float scores[KEYS / 8][4] = {};
#pragma unroll
      for (int i = 0; i < DIM / 16; i++) {
#pragma unroll
        for (int j = 0; j < KEYS / 16; j++) {
          u32 b[4];
          load_matrices(b, keys + (j * 16 + lane % 8 + lane / 16 * 8) * PITCH + i * 16 + lane / 8 % 2 * 8);
          multiply(scores[2 * j], a[i], b[0], b[1], T());
          multiply(scores[2 * j + 1], a[i], b[2], b[3], T());
        }
      }
      float greatest[2] = {most[0], most[1]};
#pragma unroll
      for (int j = 0; j < KEYS / 8; j++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
          const bool there = tile * KEYS + j * 8 + pair_column + e % 2 < sizes.keys;
          scores[j][e] = there ? scores[j][e] * scale : NONE;
          greatest[e / 2] = fmaxf(greatest[e / 2], scores[j][e]);
        }
      }
#pragma unroll
      for (int half = 0; half < 2; half++) {
        greatest[half] = fmaxf(greatest[half], __shfl_xor_sync(0xffffffffu, greatest[half], 1));
        greatest[half] = fmaxf(greatest[half], __shfl_xor_sync(0xffffffffu, greatest[half], 2));
        const float shrink = exp2f(most[half] - greatest[half]);
        most[half] = greatest[half];
        total[half] *= shrink;
#pragma unroll
        for (int i = 0; i < DIM / 8; i++) {
          found[i][2 * half] *= shrink;
          found[i][2 * half + 1] *= shrink;
        }
      }
#pragma unroll
      for (int j = 0; j < KEYS / 8; j++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
          scores[j][e] = exp2f(scores[j][e] - most[e / 2]);
          total[e / 2] += scores[j][e];
        }
      }
#pragma unroll
      for (int j = 0; j < KEYS / 16; j++) {
        const u32 weights[4] = {
            pair(scores[2 * j][0], scores[2 * j][1], T()), pair(scores[2 * j][2], scores[2 * j][3], T()),
            pair(scores[2 * j + 1][0], scores[2 * j + 1][1], T()), pair(scores[2 * j + 1][2], scores[2 * j + 1][3], T())};
#pragma unroll
        for (int i = 0; i < DIM / 16; i++) {
          u32 b[4];
          load_transposed(b, values + (j * 16 + lane % 16) * PITCH + i * 16 + lane / 16 * 8);
          multiply(found[2 * i], weights, b[0], b[1], T());
          multiply(found[2 * i + 1], weights, b[2], b[3], T());
        }
      }
      meet();
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
      total[half] += __shfl_xor_sync(0xffffffffu, total[half], 1);
      total[half] += __shfl_xor_sync(0xffffffffu, total[half], 2);
      const u32 query = row + half * 8;
      if (query >= sizes.queries) continue;
#pragma unroll
      for (int i = 0; i < DIM / 8; i++) {
        const u32 column = i * 8 + pair_column;
        if (column >= sizes.dim) continue;
        const u32 both = pair(found[i][2 * half] / total[half], found[i][2 * half + 1] / total[half], T());
        *reinterpret_cast<u32 *>(y + static_cast<u64>(query) * y_token + column) = both;
      }
    }
  }
};

// The sequence `index` of all, heads innermost.
template <typename A, typename T>
DEVICE A sequence(const T *q, const T *k, const T *v, T *&y, Sizes sizes, Strides qs, Strides ks, Strides vs,
                  u32 index) {
  const u32 head = index % sizes.heads, place = index / sizes.heads % sizes.places,
            batch = index / sizes.heads / sizes.places;
  const auto start = [&](Strides s) {
    return static_cast<u64>(batch) * s.batch + static_cast<u64>(place) * s.place + static_cast<u64>(head) * s.head;
  };
  y += ((static_cast<u64>(batch) * sizes.queries * sizes.places + place) * sizes.heads + head) * sizes.dim;
  A attend;
  attend.sizes = sizes;
  attend.q = q + start(qs);
  attend.k = k + start(ks);
  attend.v = v + start(vs);
  attend.q_token = qs.token;
  attend.k_token = ks.token;
  attend.v_token = vs.token;
  attend.lane = threadIdx.x % 32;
  attend.tiles = reinterpret_cast<T *>(shared_memory());
  attend.thread = threadIdx.x;
  return attend;
}

// Blocks of 64 queries of a sequence are neighbours.
template <typename T, int DIM, int KEYS>
DEVICE void attention_long(const T *q, const T *k, const T *v, T *y, Sizes sizes, Strides qs, Strides ks, Strides vs,
                           float scale) {
  const u32 blocks = (sizes.queries + 63) / 64;
  const auto attend =
      sequence<Attend<T, DIM, KEYS, 4, 2>>(q, k, v, y, sizes, qs, ks, vs, blockIdx.x / blocks);
  attend.run(blockIdx.x % blocks * 64 + threadIdx.x / 32 * 16, y, sizes.places * sizes.heads * sizes.dim, scale);
}

template <typename T, int DIM, int KEYS>
DEVICE void attention_short(const T *q, const T *k, const T *v, T *y, Sizes sizes, Strides qs, Strides ks, Strides vs,
                            float scale, u32 sequences) {
  const u32 warp = threadIdx.x / 32, index = blockIdx.x * (blockDim.x / 32) + warp;
  if (index >= sequences) return;
  using Alone = Attend<T, DIM, KEYS, 1, 1>;
  Alone attend = sequence<Alone>(q, k, v, y, sizes, qs, ks, vs, index);
  attend.tiles += warp * 2 * Alone::TILE;
  attend.thread = attend.lane;
  for (u32 first = 0; first < sizes.queries; first += 16) {
    attend.run(first, y, sizes.places * sizes.heads * sizes.dim, scale);
  }
}

#define DEFINE(T, DIM, LONG_KEYS)                                                                                   \
  KERNEL void __launch_bounds__(128) attention_long_##T##_##DIM(                                                    \
      const T *q, const T *k, const T *v, T *y, u32 queries, u32 keys, u32 places, u32 heads, u32 dim, u32 qb,      \
      u32 qt, u32 qp, u32 qh, u32 kb, u32 kt, u32 kp, u32 kh, u32 vb, u32 vt, u32 vp, u32 vh, float scale) {        \
    attention_long<T, DIM, LONG_KEYS>(q, k, v, y, {queries, keys, places, heads, dim}, {qb, qt, qp, qh},            \
                                      {kb, kt, kp, kh}, {vb, vt, vp, vh}, scale);                                   \
  }                                                                                                                 \
  KERNEL void __launch_bounds__(128) attention_short_##T##_##DIM(                                                   \
      const T *q, const T *k, const T *v, T *y, u32 queries, u32 keys, u32 places, u32 heads, u32 dim, u32 qb,      \
      u32 qt, u32 qp, u32 qh, u32 kb, u32 kt, u32 kp, u32 kh, u32 vb, u32 vt, u32 vp, u32 vh, float scale,          \
      u32 sequences) {                                                                                              \
    attention_short<T, DIM, 16>(q, k, v, y, {queries, keys, places, heads, dim}, {qb, qt, qp, qh},                  \
                                {kb, kt, kp, kh}, {vb, vt, vp, vh}, scale, sequences);                              \
  }
#define IN_BOTH_FORMATS(DIM, LONG_KEYS) DEFINE(f16, DIM, LONG_KEYS) DEFINE(bf16, DIM, LONG_KEYS)
IN_BOTH_FORMATS(16, 64)
IN_BOTH_FORMATS(48, 64)
IN_BOTH_FORMATS(64, 64)
IN_BOTH_FORMATS(80, 64)
IN_BOTH_FORMATS(160, 32)
#undef DEFINE
#undef IN_BOTH_FORMATS
