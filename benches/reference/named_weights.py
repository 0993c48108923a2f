"""Weights as a function of their names: the same billion numbers in numpy and in Rust, without a file.

A tensor is drawn for its *full name*, which is the component, a dot and the diffusers name: `unet.conv_in.weight`,
`vae.decoder.conv_in.bias`, `text_encoder.text_model.final_layer_norm.weight`. Motion modules belong to `unet`. With wrapping 64-bit
arithmetic, element i (row-major, from 0) is

    h = FNV-1a 64 of the full name's bytes        (h = 0xcbf29ce484222325; for each byte: h = (h ^ byte) * 0x100000001b3)
    z = h + (i + 1) * 0x9e3779b97f4a7c15          splitmix64 (Steele et al., 2014), seeded by h, value number i
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9
    z = (z ^ z >> 27) * 0x94d049bb133111eb
    z =  z ^ z >> 31
    u = (z >> 40) / 2^23 - 1                      in [-1, 1), exact in float32

and the weight, in float32 (every product and sum rounded once, constants rounded to float32 first),

    ends in `.bias`                               0.1 * u
    one dimension, ends in `.weight`              1 + 0.25 * u            (norms)
    `token_embedding`, `position_embedding`       0.5 * u
    anything else                                 a * u, a = sqrt(3 / fan_in), fan_in = elements of one output row; a in float64,
                                                  then rounded to float32

so that every layer roughly keeps the variance and no tensor is idle: zero-initialised projections are drawn too. Position tables
(`pos_embed.pe`) are computed, not drawn. Inputs are drawn the same way for the names `input.*`, scaled by sqrt(3) (variance 1).
"""
import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MIX1, MIX2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
CHUNK = 1 << 18  # stays in the cache


def fnv1a(text):
    h = 0xCBF29CE484222325
    for byte in text.encode():
        h = (h ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return h


def uniform(name, start, stop):
    """Elements start..stop of the stream of `name`, float32 in [-1, 1)."""
    z = np.arange(start + 1, stop + 1, dtype=np.uint64)
    z *= GOLDEN
    z += np.uint64(fnv1a(name))
    z ^= z >> np.uint64(30)
    z *= MIX1
    z ^= z >> np.uint64(27)
    z *= MIX2
    z ^= z >> np.uint64(31)
    z >>= np.uint64(40)
    u = z.astype(np.float32)
    u *= np.float32(2.0**-23)
    u -= np.float32(1)
    return u


def fill(name, array):
    """Overwrites a C-contiguous float32 array with the weights of `name`."""
    flat = array.reshape(-1)
    if name.endswith(".bias"):
        scale, shift = 0.1, 0.0
    elif array.ndim == 1 and name.endswith(".weight"):
        scale, shift = 0.25, 1.0
    elif "token_embedding" in name or "position_embedding" in name:
        scale, shift = 0.5, 0.0
    elif name.startswith("input."):
        scale, shift = 3**0.5, 0.0
    else:
        scale, shift = (3 / (array.size // array.shape[0])) ** 0.5, 0.0
    for start in range(0, flat.size, CHUNK):
        stop = min(start + CHUNK, flat.size)
        u = uniform(name, start, stop)
        u *= np.float32(scale)
        if shift:
            u += np.float32(shift)
        flat[start:stop] = u
    return array
