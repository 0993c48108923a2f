"""Images and videos for `tests/media`, by Pillow, libwebp's webpmux and FFmpeg. Files of the folder that are not made here
were made once with the same programs: `exif` by Pillow, videos by FFmpeg, and broken ones from `video/plain.mp4` by changing its
tables."""

import random
import struct
import subprocess
import tempfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

OUT = Path(__file__).parent.parent / "media"
KEY = "76a6c65c5ea762046bd749a2e632ccbb"


def run(*args):
    subprocess.run(args, check=True, capture_output=True)


def picture(width, height, seed):
    draw = random.Random(seed)
    image = Image.new("RGBA", (width, height))
    kinds = [0, 255, 255, 90, 200]
    image.putdata([(draw.randrange(256), draw.randrange(256), draw.randrange(256), draw.choice(kinds)) for _ in range(width * height)])
    return image


def combinations():
    """Every way to dispose and to blend after every other, partial and whole frames, opaque and half transparent pixels."""
    width, height = 12, 10
    ways = [(dispose, blend) for dispose in (0, 1) for blend in "+-"]
    order = [a for first in ways for second in ways for a in (first, second)]
    with tempfile.TemporaryDirectory() as folder:
        args = []
        for i, (dispose, blend) in enumerate(order):
            whole = i % 5 == 3
            size = (width, height) if whole else (6, 4)
            x, y = (0, 0) if whole else (2 * (i % 4), 2 * (i % 3))
            name = f"{folder}/{i}.webp"
            image = picture(*size, i)
            (image if i % 7 else image.convert("RGB")).save(name, lossless=True, exact=True)
            args += ["-frame", name, f"+50+{x}+{y}+{dispose}{blend}b"]
        run("webpmux", *args, "-loop", "0", "-bgcolor", "255,9,8,7", "-o", str(OUT / "combinations.webp"))
    animation = Image.open(OUT / "combinations.webp")
    assert animation.n_frames == len(order) and animation.size == (width, height)
    sheet = Image.new("RGB", (width, height * len(order)))
    for i in range(len(order)):
        animation.seek(i)
        sheet.paste(animation.convert("RGB"), (0, height * i))
    sheet.save(OUT / "combinations.png")


def stills():
    image = Image.open(OUT / "o1.png").convert("RGB")
    image.save(OUT / "still.bmp")
    image.save(OUT / "still.tiff", compression="tiff_lzw")
    turned = image.transpose(Image.Transpose.ROTATE_90)
    tags = Image.Exif()
    tags[0x0112] = 6
    turned.save(OUT / "turned.tiff", exif=tags)


def png(path, values, kind):
    """Writes a PNG of 16 bits a channel with alpha, which Pillow does not."""
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    chunk = lambda name, body: struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks))


def alpha():
    """Pictures of every depth and kind of transparency; beside each what Pillow makes of it in RGB, and pasted on a colour. Of 16 bits
    Pillow takes the upper byte, or clips; they are rounded to 8 bits here."""
    ground = (200, 30, 90)
    levels = np.arange(12 * 13).reshape(12, 13) * 255 // 155
    colour = np.stack([levels, levels[:, ::-1], 255 - levels[::-1], np.roll(levels, 5, 1)], 2).astype(np.uint8)
    deep = np.random.default_rng(3).integers(0, 65536, (12, 13, 4))
    deep[:2, :, 3], deep[2:4, :, 3] = 0, 65535
    rgba = Image.fromarray(colour)
    palette = Image.fromarray(colour[..., :3]).quantize(16)
    rgba.save(OUT / "alpha-rgba.png")
    rgba.save(OUT / "alpha-rgba.webp", lossless=True, exact=True)
    rgba.save(OUT / "alpha-rgba.tiff")
    rgba.save(OUT / "clear-apng.png", save_all=True, append_images=[rgba.rotate(180), rgba.transpose(Image.Transpose.FLIP_LEFT_RIGHT)])
    rgba.convert("LA").save(OUT / "alpha-la.png")
    palette.save(OUT / "alpha-palette.png", transparency=bytes(range(0, 256, 17)))
    palette.save(OUT / "alpha-palette.gif", transparency=3)
    rgba.convert("L").save(OUT / "alpha-none.png")
    rgba.convert("1").save(OUT / "alpha-bit.png")
    png(OUT / "alpha-grey16.png", deep[..., :1], 0)
    png(OUT / "alpha-la16.png", deep[..., 2:], 4)
    png(OUT / "alpha-rgba16.png", deep, 6)
    eight = np.rint(deep / 257).astype(np.uint8)
    rounded = {"grey16.png": eight[..., 0], "la16.png": eight[..., 2:], "rgba16.png": eight}
    for path in sorted(OUT.glob("alpha-*.*")):
        name = path.name.removeprefix("alpha-")
        if name.endswith("-read.png"):
            continue
        image = Image.fromarray(rounded[name]) if name in rounded else Image.open(path)
        flat = image.convert("RGBA").convert("RGB")
        on = Image.new("RGB", image.size, ground)
        on.paste(flat, mask=image.convert("RGBA").getchannel("A"))
        sheet = Image.new("RGB", (26, 12))
        sheet.paste(flat, (0, 0))
        sheet.paste(on, (13, 0))
        sheet.save(OUT / f"alpha-{name.replace('.', '-')}-read.png")


def foreign():
    source = ["-f", "lavfi", "-i", "testsrc=size=64x48:rate=8:duration=0.25", "-bitexact", "-y"]
    run("ffmpeg", *source, "-c:v", "prores_ks", str(OUT / "prores.mov"))
    run("ffmpeg", *source, "-pix_fmt", "rgb48be", "-f", "apng", str(OUT / "deep.png"))
    run("ffmpeg", *source, "-c:v", "libx264", "-pix_fmt", "yuv420p", "-encryption_scheme", "cenc-aes-ctr", "-encryption_key", KEY,
        "-encryption_kid", KEY, str(OUT / "encrypted.mp4"))
    run("ffmpeg", *source, "-c:v", "libx264", "-pix_fmt", "yuv420p10le", str(OUT / "ten_bits.mp4"))
    run("ffmpeg", *source, "-c:v", "mpeg2video", str(OUT / "mpeg2.mp4"))
    run("ffmpeg", *source, "-c:v", "libvpx", str(OUT / "vp8.webm"))
    run("ffmpeg", "-i", str(OUT / "whole.mp4"), "-c", "copy", "-bitexact", "-y", "-movflags", "frag_keyframe+empty_moov+default_base_moof",
        str(OUT / "fragments.mp4"))


combinations()
stills()
alpha()
foreign()
