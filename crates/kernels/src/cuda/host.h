// Runs CUDA kernels on a CPU, to test what they compute; only tests see this file.
//
// The threads of a block take turns, each on a stack of its own: one runs until it waits for others, and the order is
// drawn anew every time, so that a missing barrier shows as a result that depends on the seed. What a warp does as one
// is done when its last thread arrives. Copies happen as late as they may. Shared memory begins as NaN and ends at a
// page that must not be touched.
//
// The fragments of `multiply` and the order of `load_matrices` are those of the PTX ISA, sections "Matrix Fragments for
// mma.m16n8k16 with floating point type" and "ldmatrix".
#pragma once

#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#define DEVICE inline
#define KERNEL extern "C"
#define __launch_bounds__(threads)

namespace host {

struct Index {
  u32 x, y, z;

  u32 count() const { return x * y * z; }
  // The place of a number below `count`, x first.
  Index at(u32 number) const { return {number % x, number / x % y, number / x / y}; }
};

struct Copy {
  void *to;
  const void *from;
  bool there;
};

// State of a thread while another runs.
#ifdef __x86_64__
struct Context {
  void *stack;
};

// A tenth of the time that `swapcontext` takes, which asks the kernel about signals.
__attribute__((naked, noinline)) inline void swap(Context *, const Context *) {
  asm("pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15;"
      "movq %rsp, (%rdi); movq (%rsi), %rsp;"
      "popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp; ret");
}

// So that the first swap finds registers, whatever they are, and `start` to return to.
inline void begin(Context &context, unsigned char *memory, size_t size, void (*start)()) {
  void **top = reinterpret_cast<void **>((reinterpret_cast<size_t>(memory) + size) / 16 * 16) - 2;
  *top = reinterpret_cast<void *>(start);
  context.stack = top - 6;
}
#else
struct Context {
  ucontext_t saved;
};

inline void swap(Context *from, const Context *to) { swapcontext(&from->saved, &to->saved); }

inline void begin(Context &context, unsigned char *memory, size_t size, void (*start)()) {
  getcontext(&context.saved);
  context.saved.uc_stack.ss_sp = memory;
  context.saved.uc_stack.ss_size = size;
  context.saved.uc_link = nullptr;
  makecontext(&context.saved, start, 0);
}
#endif

constexpr size_t STACK = 64 * 1024;

struct Thread {
  Context context;
  std::unique_ptr<unsigned char[]> stack{new unsigned char[STACK]};
  Index index;
  // Index among the block's threads.
  u32 number;
  bool done;
  // Number of barriers it has passed with its block and its warp.
  u64 block_meetings, warp_meetings;
  // Groups of copies, the last still open.
  std::vector<std::vector<Copy>> copies;
  // The value that it shares with its warp.
  u32 shown[8];
};

struct Block {
  Index grid, size, index;
  // As many as the largest block had; those of this block come first.
  std::vector<Thread> threads;
  u32 count;
  Thread *now;
  Context scheduler;
  unsigned char *shared;
  std::function<void()> kernel;
};

inline Block block;

[[noreturn]] inline void fail(const char *why) {
  std::fprintf(stderr, "emulator: %s\n", why);
  std::exit(3);
}

inline void yield() { swap(&block.now->context, &block.scheduler); }

// Until all threads of the block have come here as often; one that has ended counts as there.
inline void meet_block() {
  const u64 mine = ++block.now->block_meetings;
  for (;;) {
    bool all = true;
    for (u32 i = 0; i < block.count && all; i++) {
      all = block.threads[i].done || block.threads[i].block_meetings >= mine;
    }
    if (all) return;
    yield();
  }
}

inline Thread *warp() { return &block.threads[block.now->number / 32 * 32]; }
inline u32 lane() { return block.now->number % 32; }

// A barrier of a warp, all of whose threads must be alive.
inline void meet_warp() {
  const u64 mine = ++block.now->warp_meetings;
  for (;;) {
    bool all = true;
    for (u32 i = 0; i < 32; i++) {
      if (warp()[i].done && warp()[i].warp_meetings < mine) fail("a warp waits for a thread that has ended");
      all &= warp()[i].warp_meetings >= mine;
    }
    if (all) return;
    yield();
  }
}

// Shows words to the warp, and runs `look` while all threads show theirs.
template <typename F>
inline void together(const u32 *words, int count, F look) {
  std::memcpy(block.now->shown, words, 4 * count);
  meet_warp();
  look(warp());
  meet_warp();
}

// Memory of `size` bytes that ends at a page that must not be touched.
inline unsigned char *guarded(size_t size) {
  const size_t page = sysconf(_SC_PAGESIZE), length = (size + page - 1) / page * page;
  void *memory = mmap(nullptr, length + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED || mprotect(static_cast<char *>(memory) + length, page, PROT_NONE) != 0) fail("no memory");
  return static_cast<unsigned char *>(memory) + length - size;
}

inline void unguard(unsigned char *memory, size_t size) {
  const size_t page = sysconf(_SC_PAGESIZE), length = (size + page - 1) / page * page;
  munmap(memory + size - length, length + page);
}

inline void enter() {
  block.kernel();
  block.now->done = true;
  yield();
}

// Runs the threads of a block until all are done.
inline void run_block(std::mt19937 &random) {
  std::vector<Thread *> order;
  for (u32 i = 0; i < block.count; i++) {
    Thread &thread = block.threads[i];
    thread.number = i;
    thread.index = block.size.at(i);
    thread.done = false;
    thread.block_meetings = thread.warp_meetings = 0;
    thread.copies.assign(1, {});
    begin(thread.context, thread.stack.get(), STACK, enter);
    order.push_back(&thread);
  }
  const auto meetings = [&] {
    u64 sum = 0;
    for (u32 i = 0; i < block.count; i++) sum += block.threads[i].block_meetings + block.threads[i].warp_meetings;
    return sum;
  };
  while (!order.empty()) {
    std::shuffle(order.begin(), order.end(), random);
    const u64 before = meetings();
    const size_t alive = order.size();
    for (Thread *thread : order) {
      block.now = thread;
      swap(&block.scheduler, &thread->context);
    }
    order.erase(std::remove_if(order.begin(), order.end(), [](Thread *thread) { return thread->done; }), order.end());
    if (meetings() == before && order.size() == alive) fail("threads wait for each other");
  }
}

// Every block of a grid, one after another. Threads that are `alone` never meet, and need no stack of their own.
inline void launch(Index grid, Index size, u32 shared, u32 seed, bool alone, std::function<void()> kernel) {
  if (size.count() > 1024 || shared > 48 * 1024) fail("more than a block may have");
  std::mt19937 random(seed);
  const size_t whole = (shared + 15) / 16 * 16;
  block.kernel = std::move(kernel);
  block.grid = grid;
  block.size = size;
  block.count = alone ? 1 : size.count();
  if (block.threads.size() < block.count) block.threads.resize(block.count);
  block.shared = guarded(whole);
  for (u32 i = 0; i < grid.count(); i++) {
    block.index = grid.at(i);
    if (alone) {
      block.now = block.threads.data();
      for (u32 j = 0; j < size.count(); j++) {
        block.now->index = size.at(j);
        block.kernel();
      }
    } else {
      std::memset(block.shared, 0xff, shared);
      run_block(random);
    }
  }
  unguard(block.shared, whole);
}

inline u16 half_bits(float v) {
  u32 bits;
  std::memcpy(&bits, &v, 4);
  const u32 sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
  if (size > 0x7f800000) return static_cast<u16>(sign | 0x7e00);
  if (size >= 0x477ff000) return static_cast<u16>(sign | 0x7c00);
  // The scaling makes the hardware round to the places that are left.
  if (size < 0x38800000) return static_cast<u16>(sign | static_cast<u32>(std::nearbyint(std::fabs(v) * 16777216.0f)));
  const u32 rounded = size + 0xfff + (size >> 13 & 1);
  return static_cast<u16>(sign | (rounded - 0x38000000) >> 13);
}

}  // namespace host

#define threadIdx (host::block.now->index)
#define blockIdx (host::block.index)
#define blockDim (host::block.size)
#define gridDim (host::block.grid)

inline u32 min(u32 a, u32 b) { return a < b ? a : b; }

inline float widen(f16 v) {
  const int exponent = v.bits >> 10 & 31, mantissa = v.bits & 1023;
  const float size = exponent == 31  ? (mantissa ? NAN : INFINITY)
                     : exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24)
                                     : std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25);
  return v.bits >> 15 ? -size : size;
}
inline float widen(bf16 v) {
  const u32 bits = static_cast<u32>(v.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, 4);
  return wide;
}

inline void narrow(float v, f16 &to) { to.bits = host::half_bits(v); }
inline void narrow(float v, bf16 &to) {
  u32 bits;
  std::memcpy(&bits, &v, 4);
  to.bits = static_cast<u16>(std::isnan(v) ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

template <typename T>
inline u32 pair(float low, float high, T) {
  T a, b;
  narrow(low, a);
  narrow(high, b);
  return static_cast<u32>(b.bits) << 16 | a.bits;
}

// A test leaves them out, to see that it is seen.
#ifdef WITHOUT_BARRIERS
inline void __syncthreads() {}
#else
inline void __syncthreads() { host::meet_block(); }
#endif
inline void __syncwarp() { host::meet_warp(); }

inline float __shfl_xor_sync(u32, float v, int distance) {
  u32 word;
  std::memcpy(&word, &v, 4);
  host::together(&word, 1, [&](const host::Thread *warp) {
    std::memcpy(&v, &warp[host::lane() ^ static_cast<u32>(distance)].shown[0], 4);
  });
  return v;
}

// Of a matrix of 16-bit values in registers: which half of which word is (row, column).
template <typename T>
inline float value(u32 word, u32 half) {
  const T v{static_cast<u16>(word >> 16 * half)};
  return widen(v);
}

template <typename T>
inline void multiply(float (&sums)[4], const u32 (&a)[4], u32 b0, u32 b1, T) {
  const u32 words[6] = {a[0], a[1], a[2], a[3], b0, b1};
  host::together(words, 6, [&](const host::Thread *warp) {
    for (u32 e = 0; e < 4; e++) {
      const u32 row = host::lane() / 4 + e / 2 * 8, column = host::lane() % 4 * 2 + e % 2;
      double sum = 0.0;
      for (u32 k = 0; k < 16; k++) {
        const u32 *left = warp[row % 8 * 4 + k % 8 / 2].shown, *right = warp[column * 4 + k % 8 / 2].shown;
        sum += static_cast<double>(value<T>(left[row / 8 + k / 8 * 2], k % 2)) * value<T>(right[4 + k / 8], k % 2);
      }
      sums[e] = static_cast<float>(sums[e] + sum);
    }
  });
}

inline void load_any(u32 (&to)[4], const void *row, bool transposed) {
  u32 address[2];
  std::memcpy(address, &row, 8);
  if (address[0] % 16 != 0) host::fail("a row of a matrix is not aligned");
  host::together(address, 2, [&](const host::Thread *warp) {
    for (u32 matrix = 0; matrix < 4; matrix++) {
      const auto at = [&](u32 r, u32 c) {
        const u16 *values;
        std::memcpy(&values, warp[matrix * 8 + r].shown, 8);
        return static_cast<u32>(values[c]);
      };
      const u32 r = host::lane() / 4, c = host::lane() % 4 * 2;
      to[matrix] = transposed ? at(c, r) | at(c + 1, r) << 16 : at(r, c) | at(r, c + 1) << 16;
    }
  });
}
inline void load_matrices(u32 (&to)[4], const void *row) { load_any(to, row, false); }
inline void load_transposed(u32 (&to)[4], const void *row) { load_any(to, row, true); }

inline void copy_later(void *to, const void *from, bool there) {
  if (reinterpret_cast<size_t>(to) % 16 || reinterpret_cast<size_t>(from) % 16) host::fail("a copy is not aligned");
  host::block.now->copies.back().push_back({to, from, there});
}
inline void end_copies() { host::block.now->copies.emplace_back(); }
template <int PENDING>
inline void await() {
  auto &copies = host::block.now->copies;
  while (copies.size() > PENDING + 1) {
    for (const host::Copy &copy : copies.front()) {
      if (copy.there) {
        std::memcpy(copy.to, copy.from, 16);
      } else {
        std::memset(copy.to, 0, 16);
      }
    }
    copies.erase(copies.begin());
  }
}

inline unsigned char *shared_memory() { return host::block.shared; }
