#!/usr/bin/env python3
"""Writes ../inpaint: runs of the tiny model of `../tiny` that keep frames, or parts of frames, of a video.

Pinned: torch 2.15.0, diffusers 0.42.1, transformers 5.23.0, numpy 2.4.6, pillow 13.0.0 (`requirements.txt`). To be run after
`make_goldens.py`; nothing is downloaded.

    HF_HUB_OFFLINE=1 OMP_NUM_THREADS=2 python inpaint.py

    runs.safetensors  `mask_u8`, one mask for all frames, of the size of `other_u8`, and `masks_u8`, one for each, of the size of
                      the clip, in grey levels around the middle too. The videos are those of `../video_to_video`. Noise comes from one generator, seeded with 33, in the order of
                      `video_to_video.py`. Of every run `NAME.latents`; of some `NAME.made` (frames, height, width), 1 where the
                      latents are made and 0 where they are kept.
    inpaint.json      the settings of each run
    overlay.safetensors  pictures put over others by VaeImageProcessor.apply_overlay: `source` over `made` under `mask` is `NAME`, all in
                      bytes, (rows, columns, channels); `soft` of random grey levels, `hard` of two. Random numbers of a generator
                      of numpy's, seeded with 20

The pipeline is AnimateDiffVideoToVideoPipeline. After every step the kept latents are replaced as in
StableDiffusionInpaintPipeline for UNets of four channels: `scheduler.add_noise(clean, noise, timesteps[i + 1])`, after the last
step by the clean ones. Masks become latents by that pipeline's own mask processor and nearest interpolation. At strength 1 that
pipeline begins with noise alone; so do made parts here, while kept parts are at the level of the first step from the beginning.
"""
import json
import os

import numpy as np
import PIL.Image
import torch
from diffusers import AnimateDiffVideoToVideoPipeline
from diffusers.image_processor import VaeImageProcessor
from make_goldens import FRAMES, LH, LW, NEG, PROMPT, picture
from safetensors.torch import save_file
from video_to_video import SCHEDULERS, SEED, TINY, pil

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(os.path.dirname(HERE), "inpaint")
RUNS = {
    "lcm_ends": dict(sampler="lcm", steps=4, strength=0.8, guidance=1.0, keep=[0, 5]),
    "lcm_whole": dict(sampler="lcm", steps=3, strength=1.0, guidance=1.5, keep=[0]),
    "lcm_masks": dict(sampler="lcm", steps=4, strength=1.0, guidance=1.0, mask="masks_u8"),
    "lcm_both": dict(sampler="lcm", steps=4, strength=0.5, guidance=1.0, mask="mask_u8", video="other_u8", keep=[3]),
    "ddim_first": dict(sampler="ddim", steps=5, strength=0.6, guidance=1.0, keep=[0]),
    "ddim_mask": dict(sampler="ddim", steps=4, strength=1.0, guidance=1.0, mask="mask_u8", video="other_u8"),
    "euler_middle": dict(sampler="euler", steps=5, strength=0.8, guidance=1.0, keep=[2, 3]),
    "euler_whole": dict(sampler="euler", steps=4, strength=1.0, guidance=1.5, keep=[5, 0], mask="masks_u8"),
}


def made_latents(masks, keep):
    """(frames, 1, height, width), 1 where latents are made."""
    processor = VaeImageProcessor(vae_scale_factor=4, do_normalize=False, do_binarize=True, do_convert_grayscale=True)
    if masks is None:
        made = torch.ones((FRAMES, 1, LH, LW))
    else:
        masks = processor.preprocess(pil(masks), height=LH * 4, width=LW * 4)
        made = torch.nn.functional.interpolate(masks, size=(LH, LW)).expand(FRAMES, 1, LH, LW).clone()
    made[keep] = 0
    return made


def run(videos, about):
    pipe = AnimateDiffVideoToVideoPipeline.from_pretrained(f"{TINY}/model", torch_dtype=torch.float32)
    pipe.scheduler = scheduler = SCHEDULERS[about["sampler"]]
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(SEED)
    video = pipe.video_processor.preprocess_video(pil(videos[about.get("video", "video_u8")]), height=LH * 4, width=LW * 4).permute(0, 2, 1, 3, 4)
    clean = pipe.vae.config.scaling_factor * pipe.encode_video(video[0], generator, 16)[None]
    noise = torch.randn(clean.shape, generator=generator)
    # frames before channels until here
    clean, noise = clean.permute(0, 2, 1, 3, 4), noise.permute(0, 2, 1, 3, 4)
    made = made_latents(videos[about["mask"]] if "mask" in about else None, about.get("keep", []))
    made = made.permute(1, 0, 2, 3)[None]

    steps = about["steps"]
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps[steps - int(steps * about["strength"]):]
    noised = scheduler.add_noise(clean, noise, timesteps[:1])
    start = noised
    if about["strength"] == 1.0:
        start = made * noise * scheduler.init_noise_sigma + (1 - made) * noised

    def replace(p, i, t, d):
        assert t == timesteps[i]
        known = clean
        if i < len(timesteps) - 1:
            known = p.scheduler.add_noise(clean, noise, timesteps[i + 1 : i + 2])
        return {"latents": (1 - made) * known + made * d["latents"]}

    latents = pipe(latents=start, prompt=PROMPT, negative_prompt=NEG, height=LH * 4, width=LW * 4, num_inference_steps=steps,
                   strength=about["strength"], guidance_scale=about["guidance"], generator=generator,
                   callback_on_step_end=replace, output_type="latent").frames
    assert torch.equal(latents * (1 - made), clean * (1 - made)) and (latents != clean)[(made > 0).expand_as(clean)].all()
    return latents, made[0, 0]


def mask(height, width, k):
    """A slanted band in levels of grey."""
    y, x = np.mgrid[0:height, 0:width]
    level = 128 + 6 * (np.abs(x - y - 10 * k) - 12)
    return np.repeat(level.clip(0, 255).astype(np.uint8)[..., None], 3, 2)


def overlays():
    """Random pictures over random pictures, at random opacities and at both ends."""
    random = np.random.default_rng(20)
    made, source = (random.integers(0, 256, (23, 37, 3), np.uint8) for _ in range(2))
    soft = random.integers(0, 256, (23, 37), np.uint8)
    all_ = {"made": made, "source": source}
    for name, levels in {"soft": soft, "hard": np.where(soft < 100, 0, 255).astype(np.uint8)}.items():
        made_, source_, mask_ = (PIL.Image.fromarray(x) for x in (made, source, levels))
        over = np.array(VaeImageProcessor().apply_overlay(mask_, source_, made_))
        assert (over[levels == 0] == source[levels == 0]).all() and (over[levels == 255] == made[levels == 255]).all()
        all_ |= {f"{name}.mask": levels, name: over}
    save_file({k: torch.from_numpy(v) for k, v in all_.items()}, f"{OUT}/overlay.safetensors")


def main():
    os.makedirs(OUT, exist_ok=True)
    overlays()
    videos = {
        "video_u8": [picture(LH * 4, LW * 4, k) for k in range(FRAMES)],
        "other_u8": [picture(40, 48, k + 20) for k in range(FRAMES)],
        "mask_u8": [mask(40, 48, 1)],
        "masks_u8": [mask(LH * 4, LW * 4, k) for k in range(FRAMES)],
    }
    # one channel is enough
    all_ = {k: torch.from_numpy(np.stack(videos[k])[..., 0]) for k in ("mask_u8", "masks_u8")}
    for name, settings in RUNS.items():
        latents, made = run(videos, settings)
        assert torch.isfinite(latents).all() and 0 < made.mean() < 1, name
        all_[f"{name}.latents"] = latents
        if "mask" in settings:
            all_[f"{name}.made"] = made.to(torch.uint8)
    save_file({k: v.contiguous().clone() for k, v in all_.items()}, f"{OUT}/runs.safetensors")
    with open(f"{OUT}/inpaint.json", "w") as f:
        json.dump({"seed": SEED, "prompt": PROMPT, "negative": NEG, "runs": RUNS}, f, indent=1)
        f.write("\n")


if __name__ == "__main__":
    with torch.no_grad():
        main()
