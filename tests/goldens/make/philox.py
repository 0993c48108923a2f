"""torch's CUDA normal generator in numpy: Philox4x32-10 (Salmon et al., 2011) and cuRAND's Box-Muller.

Facts from torch 2.15.0, ATen/native/cuda/DistributionTemplates.h (`calc_execution_policy`,
`distribution_elementwise_grid_stride_kernel`, `normal_and_transform`) and cuRAND's curand_philox4x32_x.h, curand_normal.h:

  * A draw of n values runs `blocks = min(ceil(n / 256), cap)` blocks of 256 threads, threads = 256 * blocks;
    cap = (multiprocessors of the GPU) * (its threads per multiprocessor / 256), so large draws depend on the GPU model.
  * Thread i owns the counter (offset / 4 low, offset / 4 high, i low, i high), the key is (seed low, seed high).
    Each round trip takes one block of four words, makes four normals of it, and adds one to the counter.
  * Element j of the output comes from thread j % threads, normal (j / threads) % 4 of round trip j / (4 * threads).
  * After the draw the generator's offset has grown by 4 * ceil(n / (4 * threads)).
  * Words x, y give u = x / 2^32 + 1 / 2^33, v = (y / 2^32 + 1 / 2^33) * 2 pi, s = sqrt(-2 ln u) and the normals s sin v, s cos v;
    on the device in float32 with a fast sine, here in float64: expect differences of a few 1e-6.

For n <= 256 * cap (every GPU with n <= 40960; n = 65536 on most) only the first normal of a block is used: element j is then the
first normal of counter (offset / 4, 0, j, 0), and every draw advances the offset by 4. That form is what stable-diffusion-webui
and stable-diffusion.cpp ship.
"""
import numpy as np

M0, M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
W0, W1 = 0x9E3779B9, 0xBB67AE85
LOW = np.uint64(0xFFFFFFFF)
BLOCK = 256

# multiprocessors * (threads per multiprocessor / 256)
GPU_BLOCKS = {"T4": 40 * 4, "RTX 3090": 82 * 6, "RTX A4000": 48 * 6, "RTX A6000": 84 * 6, "RTX 4090": 128 * 6, "V100": 80 * 8,
              "A100": 108 * 8, "H100 PCIe": 114 * 8, "H100 SXM": 132 * 8}


def philox(counter, key):
    """Ten rounds; `counter` is four uint64 arrays that hold 32-bit words, `key` two integers. Returns four such arrays."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = M0 * c0, M1 * c2
        c0, c1, c2, c3 = (p1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0), p1 & LOW, (p0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1), p0 & LOW
        k0, k1 = (k0 + W0) & 0xFFFFFFFF, (k1 + W1) & 0xFFFFFFFF
    return c0, c1, c2, c3


def box_muller(x, y):
    u = (x.astype(np.float64) + 0.5) / 2**32
    v = (y.astype(np.float64) + 0.5) / 2**32 * (2 * np.pi)
    s = np.sqrt(-2 * np.log(u))
    return s * np.sin(v), s * np.cos(v)


class CudaGenerator:
    """`torch.Generator("cuda").manual_seed(seed)` on a GPU that runs at most `max_blocks` blocks; None: no limit."""

    def __init__(self, seed, max_blocks=None):
        self.key = (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF)
        self.max_blocks, self.offset = max_blocks, 0

    def randn(self, n):
        blocks = -(-n // BLOCK)
        if self.max_blocks is not None:
            blocks = min(blocks, self.max_blocks)
        threads = BLOCK * blocks
        trips = -(-n // (4 * threads))
        out = np.empty((trips, 4, threads))
        thread = np.arange(threads, dtype=np.uint64)
        for trip in range(trips):
            at = self.offset // 4 + trip
            words = philox((np.full(threads, at & 0xFFFFFFFF, np.uint64), np.full(threads, at >> 32, np.uint64),
                            thread & LOW, thread >> np.uint64(32)), self.key)
            out[trip, 0], out[trip, 1] = box_muller(words[0], words[1])
            out[trip, 2], out[trip, 3] = box_muller(words[2], words[3])
        self.offset += 4 * trips
        return out.reshape(-1)[:n].astype(np.float32)
