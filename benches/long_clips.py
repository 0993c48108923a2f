#!/usr/bin/env python3
"""Measures travelling prompts and closed loops on the small model inside the program.

    python3 benches/long_clips.py target/release/animatelcm [--seeds 6]

- Travel: a circle that is red up to frame 7 and blue from frame 9 on (linear between). The first frame in which more
  blue than red is seen, and whether it stays.
- Loops: 32 frames of a ring that moves right, with `--loop closed` and without. A jump is the mean difference of two
  frames in levels of 255; told are that from the last frame to the first, and the largest of all others.

Needs numpy and Pillow.
"""

import argparse
import subprocess
import tempfile

import numpy as np
from PIL import Image

TRAVEL = "; ".join(f"{frame}: a {color} circle standing still on a black background"
                   for frame, color in ((0, "red"), (7, "red"), (9, "blue")))
RING = "a green ring moving right on a navy background"


def frames(program, folder, seed, *args):
    """The frames of a clip, as levels of red, green and blue."""
    path = f"{folder}/clip.png"
    subprocess.run([program, "generate", *args, "--seed", str(seed), "-q", "-y", "-o", path], check=True,
                   stdout=subprocess.DEVNULL)
    with Image.open(path) as image:
        for index in range(image.n_frames):
            image.seek(index)
            yield np.asarray(image.convert("RGB"), np.float32)


def is_blue(frame):
    """Whether the bright part of a frame is more blue than red."""
    bright = frame[frame.max(-1) > 90]
    return len(bright) > 0 and bright[:, 2].mean() > bright[:, 0].mean()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--seeds", type=int, default=6)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(1, args.seeds + 1):
            blue = [is_blue(frame) for frame in frames(args.program, folder, seed, "", "--travel", TRAVEL)]
            first = blue.index(True) if True in blue else None
            stays = first is not None and all(blue[first:])
            print(f"travel, seed {seed}: blue from frame {first}{'' if stays else ', not for good'}", flush=True)
        for loop in ("closed", "none"):
            for seed in range(1, args.seeds + 1):
                clip = list(frames(args.program, folder, seed, RING, "--frames", "32", "--loop", loop))
                jumps = [np.abs(after - before).mean() for before, after in zip(clip, clip[1:] + clip[:1])]
                last, most = jumps[-1], max(jumps[:-1])
                word = "within" if last <= most else "beyond"
                print(f"loop {loop}, seed {seed}: jump {last:.2f}, others up to {most:.2f}: {word}", flush=True)


if __name__ == "__main__":
    main()
