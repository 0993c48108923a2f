#!/usr/bin/env python3
"""Writes ../preprocess: hints made of small pictures, by OpenCV and Pillow.

Pinned: opencv-python-headless 5.0.0, numpy 2.4.6, pillow 13.0.0 (`requirements.txt`). Nothing is downloaded.

    OMP_NUM_THREADS=1 python preprocess.py

    pictures.safetensors  of every picture N `N.picture` (1, height, width, 3), and as bits, eight in a byte, row after row, the edges
                          that `cv2.Canny` finds in it: `N.canny.LOW.HIGH` in colour, `N.grey.LOW.HIGH` of its grey.
                          Of some also `N.softedge`, `N.lineart`, `N.scribble`, `N.gray` (height, width), `N.blur` (1, height,
                          width, 3) with sigma 2.5, `N.tile` with factor 4; the formulas are below.

Pictures are in RGB, as diffusers and the preprocessors of the web user interfaces hand them to OpenCV.
"""
import os

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(os.path.dirname(HERE), "preprocess")
THRESHOLDS = [(100, 200), (20.9, 60.5)]


def noise(draw, height, width):
    return draw.integers(0, 256, (height, width, 3), dtype=np.uint8)


def levels(draw, height, width):
    """Noise of few levels: many neighbours, and channels, are equally strong."""
    return (draw.integers(0, 3, (height, width, 3)) * 60).astype(np.uint8)


def shapes(draw, height, width):
    image = Image.new("RGB", (width, height), tuple(int(v) for v in draw.integers(0, 256, 3)))
    pen = ImageDraw.Draw(image)
    for kind in range(5):
        x, y = sorted(draw.integers(-4, width + 4, 2)), sorted(draw.integers(-4, height + 4, 2))
        box = [int(x[0]), int(y[0]), int(x[1]), int(y[1])]
        fill = tuple(int(v) for v in draw.integers(0, 256, 3))
        [pen.ellipse, pen.rectangle, pen.line][kind % 3](box, fill=fill)
    return np.array(image)


def gradient(draw, height, width):
    y, x = np.mgrid[0:height, 0:width]
    planes = [draw.integers(-20, 21) * x + draw.integers(-20, 21) * y + draw.integers(0, 256) for _ in range(3)]
    return (np.stack(planes, 2) % 256).astype(np.uint8)


def photo(draw, height, width):
    """Shades, shapes and grain."""
    small = Image.fromarray(noise(draw, 4, 5)).resize((width, height), Image.Resampling.BICUBIC)
    mixed = 0.6 * np.array(small) + 0.4 * cv2.GaussianBlur(shapes(draw, height, width), (3, 3), 0.8)
    return (mixed + draw.normal(0, 5, mixed.shape)).clip(0, 255).astype(np.uint8)


PICTURES = [
    (noise, 24, 24), (noise, 17, 31), (noise, 1, 1), (noise, 1, 9), (noise, 8, 1), (noise, 2, 3),
    (levels, 24, 26), (levels, 19, 13),
    (shapes, 32, 32), (shapes, 27, 33), (shapes, 16, 40), (shapes, 33, 15),
    (gradient, 20, 20), (gradient, 13, 29), (gradient, 31, 11),
    (photo, 32, 40), (photo, 31, 29), (photo, 25, 37), (photo, 40, 24), (photo, 33, 33),
]
WITH_ALL = [1, 5, 9, 16]


def grey(picture):
    """ITU-R 601-2, as `convert("L")`."""
    return np.array(Image.fromarray(picture).convert("L"))


def softedge(picture):
    """The length of Sobel's gradient of the grey, over 4: a step keeps its height."""
    x = cv2.Sobel(grey(picture), cv2.CV_32F, 1, 0)
    y = cv2.Sobel(grey(picture), cv2.CV_32F, 0, 1)
    return np.rint(np.sqrt(x * x + y * y) / 4).clip(0, 255).astype(np.uint8)


def lineart(picture):
    """`lineart_standard` of ComfyUI's ControlNet preprocessors and sd-webui-controlnet."""
    x = picture.astype(np.float32)
    darker = (cv2.GaussianBlur(x, (0, 0), 6.0) - x).min(axis=2).clip(0, 255)
    lines = darker[darker > 8]
    darker /= max(16, np.median(lines) if lines.size else 0)
    darker *= 127
    return darker.clip(0, 255).astype(np.uint8)


def scribble(picture):
    """`scribble_xdog` of the same."""
    x = picture.astype(np.float32)
    narrow, wide = cv2.GaussianBlur(x, (0, 0), 0.5), cv2.GaussianBlur(x, (0, 0), 5.0)
    dog = (255 - (wide - narrow).min(axis=2)).clip(0, 255).astype(np.uint8)
    return np.where(2 * (255 - dog.astype(int)) > 32, 255, 0).astype(np.uint8)


def blur(picture):
    return np.rint(cv2.GaussianBlur(picture.astype(np.float32), (0, 0), 2.5)).clip(0, 255).astype(np.uint8)


def tile(picture):
    height, width = picture.shape[:2]
    small = (max(1, round(width / 4)), max(1, round(height / 4)))
    image = Image.fromarray(picture).resize(small, Image.Resampling.BOX)
    return np.array(image.resize((width, height), Image.Resampling.BICUBIC))


def main():
    os.makedirs(OUT, exist_ok=True)
    draw = np.random.default_rng(27)
    all_, found = {}, 0
    for number, (kind, height, width) in enumerate(PICTURES):
        picture, name = kind(draw, height, width), f"{number:02}"
        all_[f"{name}.picture"] = picture[None]
        for low, high in THRESHOLDS:
            for word, image in [("canny", picture), ("grey", grey(picture))]:
                edges = cv2.Canny(image, low, high)
                assert set(np.unique(edges)) <= {0, 255} and edges.shape == (height, width)
                all_[f"{name}.{word}.{low:g}.{high:g}"] = np.packbits(edges > 0)
                found += 0 < (edges > 0).mean() < 1
        if number in WITH_ALL:
            for make in (softedge, lineart, scribble):
                all_[f"{name}.{make.__name__}"] = make(picture)
            all_[f"{name}.gray"] = grey(picture)
            all_[f"{name}.blur"] = blur(picture)[None]
            all_[f"{name}.tile"] = tile(picture)[None]
    assert found > 50, found
    save_file({k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in all_.items()}, f"{OUT}/pictures.safetensors")


if __name__ == "__main__":
    cv2.setNumThreads(1)
    main()
