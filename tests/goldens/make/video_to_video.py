#!/usr/bin/env python3
"""Writes ../video_to_video: runs of the tiny model of `../tiny` that begin with a video.

Pinned: torch 2.15.0, diffusers 0.42.1, transformers 5.23.0, numpy 2.4.6, pillow 13.0.0 (`requirements.txt`). To be run after
`make_goldens.py`; nothing is downloaded.

    HF_HUB_OFFLINE=1 OMP_NUM_THREADS=2 python video_to_video.py

    runs.safetensors    `video_u8`, six pictures of the clip's size; `other_u8`, the same of another size; `hint_u8`, the hints of the
                        ControlNet's run. All noise comes from one generator, seeded with 33, in this order:
                        `noise.source` (frames, channels, height, width), for the posterior; `noise.start` (1, frames, channels, height,
                        width), added at the first step; `noise.0`, `noise.1`, ... (1, channels, frames, height, width), LCM's.
                        `encoded` are the posterior's samples, scaled (1, frames, channels, height, width). Of every run
                        `NAME.latents`, of some `NAME.frames`.
    video_to_video.json the settings of each run

TAESD draws nothing, so that its run's generator begins with the noise of the start.

All runs go the way of AnimateDiffVideoToVideoPipeline: the scheduler plans all steps, and the first of them are left out.
"""
import json
import os

import numpy as np
import torch
from diffusers import (
    AnimateDiffVideoToVideoControlNetPipeline,
    AnimateDiffVideoToVideoPipeline,
    AutoencoderTiny,
    ControlNetModel,
    DDIMScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
)
from make_goldens import FRAMES, LH, LW, NEG, PROMPT, picture
from PIL import Image
from safetensors.torch import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
TINY = os.path.join(os.path.dirname(HERE), "tiny")
OUT = os.path.join(os.path.dirname(HERE), "video_to_video")
SEED = 33
BETAS = dict(beta_schedule="linear", beta_start=0.00085, beta_end=0.012, steps_offset=1)
SCHEDULERS = {
    "lcm": LCMScheduler(**BETAS, set_alpha_to_one=False),
    "ddim": DDIMScheduler(**BETAS, set_alpha_to_one=False, clip_sample=False, timestep_spacing="leading"),
    "euler": EulerDiscreteScheduler(**BETAS, timestep_spacing="leading"),
}
RUNS = {
    "lcm_half_guided": dict(sampler="lcm", steps=4, strength=0.5, guidance=1.5),
    "lcm_default": dict(sampler="lcm", steps=4, strength=0.8, guidance=1.0),
    "lcm_whole": dict(sampler="lcm", steps=3, strength=1.0, guidance=1.0),
    "ddim_half": dict(sampler="ddim", steps=5, strength=0.5, guidance=1.0),
    "ddim_most_guided": dict(sampler="ddim", steps=5, strength=0.8, guidance=3.0),
    "euler_most": dict(sampler="euler", steps=5, strength=0.6, guidance=1.0),
    "stretched": dict(sampler="lcm", steps=4, strength=0.5, guidance=1.0, video="other_u8"),
    "image": dict(sampler="lcm", steps=4, strength=0.6, guidance=1.0, video="image"),
    "taesd": dict(sampler="lcm", steps=4, strength=0.5, guidance=1.0, vae="taesd"),
    "control": dict(sampler="lcm", steps=4, strength=0.8, guidance=1.5, scale=0.7, start=0.3, end=1.0),
}


def pil(pictures):
    return [Image.fromarray(p) for p in pictures]


def run(videos, about):
    name = about.get("video", "video_u8")
    video = pil(videos["video_u8"][:1] * FRAMES if name == "image" else videos[name])
    kind, more, given = AnimateDiffVideoToVideoPipeline, {}, {}
    if "scale" in about:
        net = ControlNetModel.from_pretrained(f"{TINY}/extras/controlnet", torch_dtype=torch.float32)
        kind, more = AnimateDiffVideoToVideoControlNetPipeline, dict(controlnet=net)
        given = dict(conditioning_frames=pil(videos["hint_u8"]), controlnet_conditioning_scale=about["scale"],
                     control_guidance_start=about["start"], control_guidance_end=about["end"])
    if "vae" in about:
        more["vae"] = AutoencoderTiny.from_pretrained(f"{TINY}/extras/{about['vae']}", torch_dtype=torch.float32)
    pipe = kind.from_pretrained(f"{TINY}/model", torch_dtype=torch.float32, **more)
    pipe.scheduler = SCHEDULERS[about["sampler"]]
    pipe.set_progress_bar_config(disable=True)
    out = {}
    add_noise = pipe.scheduler.add_noise

    def adding(clean, noise, timestep):
        out["encoded"], out["noise"] = clean, noise
        return add_noise(clean, noise, timestep)

    pipe.scheduler.add_noise = adding

    def last(p, i, t, d):
        out["latents"] = d["latents"].clone()
        return {}

    frames = pipe(video=video, prompt=PROMPT, negative_prompt=NEG, height=LH * 4, width=LW * 4, num_inference_steps=about["steps"],
                  strength=about["strength"], guidance_scale=about["guidance"], generator=torch.Generator().manual_seed(SEED),
                  callback_on_step_end=last, output_type="pt", **given).frames
    del pipe.scheduler.add_noise
    kept = int(about["steps"] * about["strength"])
    out["timesteps"] = pipe.scheduler.timesteps[-kept:].float()
    out["frames"] = frames[0]
    return out


def main():
    os.makedirs(OUT, exist_ok=True)
    videos = {
        "video_u8": [picture(LH * 4, LW * 4, k) for k in range(FRAMES)],
        "other_u8": [picture(40, 48, k + 20) for k in range(FRAMES)],
        "hint_u8": [picture(LH * 4, LW * 4, k + 40) for k in range(FRAMES)],
    }
    all_ = {k: torch.from_numpy(np.stack(v)) for k, v in videos.items()}
    g = torch.Generator().manual_seed(SEED)
    all_["noise.source"] = torch.randn((FRAMES, 4, LH, LW), generator=g)
    all_["noise.start"] = torch.randn((1, FRAMES, 4, LH, LW), generator=g)
    for i in range(2):
        all_[f"noise.{i}"] = torch.randn((1, 4, FRAMES, LH, LW), generator=g)
    about = {}
    for name, settings in RUNS.items():
        out = run(videos, settings)
        encoded, noise = out.pop("encoded"), out.pop("noise")
        # draws are recorded in the order in which the pipeline makes them
        first = torch.randn(all_["noise.start"].shape, generator=torch.Generator().manual_seed(SEED))
        assert torch.equal(noise, first if "vae" in settings else all_["noise.start"]), name
        if "video" not in settings and "vae" not in settings:
            torch.testing.assert_close(all_.setdefault("encoded", encoded), encoded, rtol=0, atol=0)
        assert all(torch.isfinite(v).all() for v in out.values()), name
        timesteps = [float(t) for t in out.pop("timesteps")]
        about[name] = {**settings, "timesteps": timesteps}
        if name not in ("lcm_half_guided", "ddim_most_guided"):
            out.pop("frames")
        all_ |= {f"{name}.{k}": v for k, v in out.items()}
    # strength, source and noise all matter
    a, b = all_["lcm_default.latents"], all_["lcm_half_guided.latents"]
    assert (a - b).norm() > 0.05 * a.norm()
    assert (all_["image.latents"] - a).norm() > 0.05 * a.norm()
    assert (all_["control.latents"] - a).norm() > 0.05 * a.norm()
    save_file({k: v.contiguous().clone() for k, v in all_.items()}, f"{OUT}/runs.safetensors")
    with open(f"{OUT}/video_to_video.json", "w") as f:
        json.dump({"seed": SEED, "prompt": PROMPT, "negative": NEG, "runs": about}, f, indent=1)
        f.write("\n")


if __name__ == "__main__":
    with torch.no_grad():
        main()
