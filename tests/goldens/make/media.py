"""Images and videos for `tests/media`, by Pillow, libwebp's webpmux and FFmpeg. Files of the folder that are not made here
were made once with the same programs: `exif` by Pillow, videos by FFmpeg, and broken ones from `video/plain.mp4` by changing its
tables."""

import random
import subprocess
import tempfile
from pathlib import Path

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
foreign()
