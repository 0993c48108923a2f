"""The official client's calls of videos, against a running server.

    pip install openai==3.57.0
    python openai_client.py http://127.0.0.1:7870/v1 KEY

The server must have a queue of 3. Nothing is expected of other APIs of OpenAI.
"""

import io
import json
import struct
import sys
import time
import warnings
import zlib

import openai

warnings.simplefilter("ignore", DeprecationWarning)

PROMPT = "a red circle moving left on a white background"


def png(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes(3 * width) for _ in range(height))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def refused(kind, call):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


def main(address, key):
    client = openai.OpenAI(base_url=address, api_key=key)
    small = {"num_frames": 4, "num_inference_steps": 1}

    # Create, with and without fields of our own, and poll.
    video = client.videos.create_and_poll(prompt=PROMPT, extra_body={**small, "seed": 5})
    assert video.status == "completed" and video.progress == 100, video
    assert video.seconds == "0.5" and video.size == "64x64", video
    plain = client.videos.create_and_poll(prompt=PROMPT, model="pocket", seconds="4", size="64x64")
    assert plain.status == "completed" and plain.num_frames == 32, plain
    request = json.dumps({"sampling": {"sampler": "euler"}})
    euler = client.videos.create_and_poll(prompt=PROMPT, extra_body={**small, "seed": 5, "request": request})
    assert euler.status == "completed" and euler.sha256 != video.sha256, euler

    # The three variants of the content.
    clip = client.videos.download_content(video.id)
    assert clip.read()[4:8] == b"ftyp" and clip.response.headers["content-type"] == "video/mp4"
    for variant in ["thumbnail", "spritesheet"]:
        picture = client.videos.download_content(video.id, variant=variant).read()
        assert picture[:4] == b"RIFF" and picture[8:12] == b"WEBP", picture[:16]

    # Pages.
    ids = [entry.id for entry in client.videos.list(limit=2)]
    assert ids == [euler.id, plain.id, video.id], ids
    ids = [entry.id for entry in client.videos.list(limit=2, order="asc")]
    assert ids == [video.id, plain.id, euler.id], ids

    # A picture to start from, and a remix.
    reference = ("start.png", io.BytesIO(png(48, 32)), "image/png")
    # Two steps: of one, most is noise already and none would be left.
    settings = {**small, "seed": 1, "num_inference_steps": 2}
    started = client.videos.create_and_poll(prompt=PROMPT, input_reference=reference, extra_body=settings)
    assert started.status == "completed", started
    remix = client.videos.remix(video.id, prompt="a blue ring on a grey background")
    assert remix.remixed_from_video_id == video.id and remix.seed == 5, remix
    assert client.videos.poll(remix.id).status == "completed"

    # Deleted is gone.
    gone = client.videos.delete(video.id)
    assert gone.deleted and gone.object == "video.deleted", gone
    refused(openai.NotFoundError, lambda: client.videos.retrieve(video.id))

    # A cancelled one ends a poll.
    long = {"num_frames": 16, "num_inference_steps": 900, "request": request}
    running = client.videos.create(prompt=PROMPT, extra_body=long)
    refused(openai.NotFoundError, lambda: client.videos.download_content(running.id))
    client.post(f"/videos/{running.id}/cancel", cast_to=object)
    ended = client.videos.poll(running.id)
    assert ended.status == "failed" and ended.error.code == "cancelled", ended

    # Errors as the client's exceptions.
    error = refused(openai.BadRequestError, lambda: client.videos.create(prompt=PROMPT, size="large"))
    assert error.code == "invalid_request" and error.param == "size", error
    error = refused(openai.NotFoundError, lambda: client.videos.create(prompt=PROMPT, model="sora-2"))
    assert error.code == "model_not_found", error
    nested = {"lora": [{"file": "x"}]}
    refused(openai.BadRequestError, lambda: client.videos.create(prompt=PROMPT, extra_body=nested))
    stranger = openai.OpenAI(base_url=address, api_key="alcm_0")
    refused(openai.AuthenticationError, lambda: stranger.videos.list())

    # A full queue: at once, and then after the retries that the server's Retry-After asks for.
    hasty = client.with_options(max_retries=0)
    jobs = [hasty.videos.create(prompt=PROMPT, extra_body=long)]
    while client.videos.retrieve(jobs[0].id).status == "queued":
        time.sleep(0.05)
    jobs += [hasty.videos.create(prompt=PROMPT, extra_body=long) for _ in range(3)]
    error = refused(openai.RateLimitError, lambda: hasty.videos.create(prompt=PROMPT, extra_body=long))
    assert error.code == "queue_full" and int(error.response.headers["retry-after"]) > 0, error
    for job in jobs:
        client.videos.delete(job.id)
    print("all calls work with openai", openai.__version__)


if __name__ == "__main__":
    main(*sys.argv[1:])
