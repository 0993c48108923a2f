#!/usr/bin/env python3
"""Writes ../video: short videos by x264 and FFmpeg, and their frames as FFmpeg decodes them.

Pinned: av 18.1.0 (FFmpeg with x264), numpy 2.4.6 (`requirements.txt`).

    python video.py

    plain.mp4      64x48, 7 frames, H.264 high with B-frames and CABAC, BT.709 tags
    untagged.mp4   66x50, 3 frames, H.264 main, no word about its colours
    clip.y4m       34x26, 3 frames, 4:2:0
    frames.safetensors   NAME.EXT: (frames, height, width, 3), RGB
"""
import os

import av
import numpy as np
from safetensors.numpy import save_file

OUT = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "video")


def picture(width, height, i):
    """Smooth in all channels, and another one at every step."""
    y, x = np.mgrid[:height, :width]
    wave = [128 + 100 * np.sin(x / (7.0 + 3 * c) + y / (11.0 - 2 * c) + 0.35 * i * (c + 1)) for c in range(3)]
    return np.stack(wave, -1).round().astype(np.uint8)


def write(name, codec, width, height, count, pixels="yuv420p", colours=None, **options):
    with av.open(f"{OUT}/{name}", "w", format="yuv4mpegpipe" if name.endswith("y4m") else None) as box:
        stream = box.add_stream(codec, rate=8, options={k: str(v) for k, v in options.items()})
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        if colours:
            stream.codec_context.colorspace = stream.codec_context.color_primaries = stream.codec_context.color_trc = colours
        for i in range(count):
            frame = av.VideoFrame.from_ndarray(picture(width, height, i), format="rgb24")
            frame = frame.reformat(format=pixels, dst_colorspace="ITU709" if colours else "ITU601")
            for packet in stream.encode(frame):
                box.mux(packet)
        for packet in stream.encode():
            box.mux(packet)


def read(name):
    """RGB by FFmpeg's careful path: without these flags it repeats chroma instead of interpolating it.

    H.264 has chroma at the left pixel of two unless it says otherwise (table E-1, type 0); FFmpeg wants to be told.
    """
    with av.open(f"{OUT}/{name}") as box:
        frames = list(box.decode(video=0))
    graph = av.filter.Graph()
    colours = "bt709" if name == "plain.mp4" else "smpte170m"
    place = "center" if name.endswith("y4m") else "left"
    source = graph.add_buffer(width=frames[0].width, height=frames[0].height, format=frames[0].format, time_base=frames[0].time_base)
    scale = graph.add("scale", f"flags=bilinear+accurate_rnd+full_chroma_int+full_chroma_inp:in_color_matrix={colours}:in_range=tv:out_range=pc:in_chroma_loc={place}")
    steps = [source, scale, graph.add("format", "rgb24"), graph.add("buffersink")]
    for first, second in zip(steps, steps[1:]):
        first.link_to(second)
    graph.configure()
    pictures = []
    for frame in frames:
        graph.push(frame)
        pictures.append(graph.pull().to_ndarray(format="rgb24"))
    return np.stack(pictures), {frame.pict_type for frame in frames}


def main():
    os.makedirs(OUT, exist_ok=True)
    quiet = {"x264-params": "threads=1:no-info=1"}
    write("plain.mp4", "libx264", 64, 48, 7, colours=1, profile="high", bf=2, b_strategy=0, crf=14, g=7, **quiet)
    write("untagged.mp4", "libx264", 66, 50, 3, profile="main", bf=0, crf=14, **quiet)
    write("clip.y4m", "wrapped_avframe", 34, 26, 3)
    frames = {}
    for name, count in [("plain.mp4", 7), ("untagged.mp4", 3), ("clip.y4m", 3)]:
        frames[name], kinds = read(name)
        assert len(frames[name]) == count, name
        assert (av.video.frame.PictureType.B in kinds) == (name == "plain.mp4"), (name, kinds)
        height, width = frames[name].shape[1:3]
        sources = np.stack([picture(width, height, i) for i in range(count)])
        error = np.abs(frames[name].astype(int) - sources).mean()
        print(name, os.path.getsize(f"{OUT}/{name}"), "bytes, mean error", error)
        assert error < 6, name
    save_file(frames, f"{OUT}/frames.safetensors")


if __name__ == "__main__":
    main()
