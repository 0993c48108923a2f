#!/usr/bin/env python3
"""Writes ../quality: runs of the tiny model of `../tiny` with what diffusers offers for quality.

Pinned: torch 2.15.0, diffusers 0.42.1, transformers 5.23.0, numpy 2.4.6 (`requirements.txt`). To be run after `make_goldens.py`; nothing
is downloaded.

    HF_HUB_OFFLINE=1 OMP_NUM_THREADS=2 python quality.py [PART ...]

    guidance.safetensors    `NAME`, final latents (1, channels, frames, height, width): guidance rescaled by `rescale_noise_cfg`,
                            thresholds of the schedulers; `quantile.x` (2, 37, 1) and `quantile.RATIO`, `_threshold_sample` of them
    free_u.safetensors      `NAME`, final latents; `filter.N.x` and `filter.N`, `fourier_filter` of it
    free_init.safetensors   `NAME`, final latents
    pag.safetensors         `NAME`, final latents
    hires.safetensors       `NAME`, final latents of the second pass: those of the first enlarged by `interpolate`, or its frames,
                            go through `AnimateDiffVideoToVideoPipeline` with the same generator
    tiling.safetensors      `z` and `decoded`, `image` and `moments`: the tiled autoencoder
    quality.json            the settings of each run

All noise is drawn from one generator, seeded with `seed`. Height, width and number of frames are odd at most levels of the UNet.

AnimateDiff's pipelines do not rescale guidance: here their scheduler gets what `rescale_noise_cfg` makes of the UNet's output. DDIM runs
with `use_clipped_model_output`, so that the noise of a step fits the thresholded prediction; DPM++ and LCM know nothing else.

FreeInit's box is no filter of diffusers: `box` does what the official code does (github.com/TianxingWu/FreeInit at 410286d,
`box_low_pass_filter`).
"""
import functools
import json
import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch
from diffusers import (
    AnimateDiffPAGPipeline,
    AnimateDiffPipeline,
    AnimateDiffVideoToVideoPipeline,
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    LCMScheduler,
)
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from diffusers.utils.torch_utils import fourier_filter
from make_goldens import NEG, PROMPT
from safetensors.torch import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
TINY = os.path.join(os.path.dirname(HERE), "tiny")
OUT = os.path.join(os.path.dirname(HERE), "quality")
SEED = 21
FRAMES, WIDTH, HEIGHT = 5, 40, 24
BETAS = dict(beta_schedule="linear", beta_start=0.00085, beta_end=0.012, steps_offset=1)
SCHEDULERS = {
    "lcm": lambda **more: LCMScheduler(**BETAS, set_alpha_to_one=False, **more),
    "ddim": lambda **more: DDIMScheduler(**BETAS, set_alpha_to_one=False, clip_sample=False, timestep_spacing="leading", **more),
    "dpmpp-2m": lambda **more: DPMSolverMultistepScheduler(**BETAS, algorithm_type="dpmsolver++", timestep_spacing="leading", **more),
}
GUIDANCE = {
    "guided": dict(sampler="lcm", steps=2, guidance=7.5),
    "rescaled": dict(sampler="lcm", steps=2, guidance=7.5, rescale=0.7),
    "rescaled_whole": dict(sampler="ddim", steps=3, guidance=3.0, rescale=1.0),
    "threshold_lcm": dict(sampler="lcm", steps=2, guidance=7.5, ratio=0.9, max=1.7),
    "threshold_ddim": dict(sampler="ddim", steps=3, guidance=7.5, ratio=0.6, max=30.0),
    "threshold_dpmpp": dict(sampler="dpmpp-2m", steps=3, guidance=7.5, ratio=0.995, max=1.0),
    "both": dict(sampler="lcm", steps=2, guidance=7.5, rescale=0.4, ratio=0.8, max=2.5),
}

FREE_U = {
    "plain": dict(sampler="lcm", steps=2, guidance=1.0),
    "documented": dict(sampler="lcm", steps=2, guidance=1.0, b1=1.5, b2=1.6, s1=0.9, s2=0.2),
    "guided": dict(sampler="ddim", steps=2, guidance=3.0, b1=1.2, b2=1.4, s1=0.5, s2=1.7),
}
FREE_INIT = {
    "plain": dict(sampler="lcm", steps=3, guidance=1.0),
    "butterworth": dict(sampler="lcm", steps=3, guidance=1.0, iters=2, method="butterworth", order=4, spatial=0.25, temporal=0.25),
    "gaussian": dict(sampler="ddim", steps=4, guidance=3.0, iters=3, method="gaussian", order=4, spatial=0.4, temporal=0.6, fast=True),
    "ideal": dict(sampler="lcm", steps=5, guidance=1.0, iters=3, method="ideal", order=4, spatial=0.3, temporal=0.8, fast=True),
    "box": dict(sampler="lcm", steps=2, guidance=1.0, iters=2, method="box", order=4, spatial=0.5, temporal=0.6),
    "first_order": dict(sampler="lcm", steps=2, guidance=1.0, iters=2, method="butterworth", order=1, spatial=0.7, temporal=0.3),
}
PAG = {
    "plain": dict(sampler="lcm", steps=2, guidance=1.5),
    "guided": dict(sampler="lcm", steps=2, guidance=1.5, scale=3.0, adaptive=0.0, layers=["mid_block.*attn1"]),
    "alone": dict(sampler="lcm", steps=2, guidance=1.0, scale=1.3, adaptive=0.002, layers=["mid_block.*attn1"]),
    "many": dict(sampler="ddim", steps=3, guidance=3.0, scale=2.0, adaptive=0.001,
                 layers=["down_blocks.(0|1).attentions", "up_blocks.3.motion_modules.1.*attn2", "mid"]),
}

HIRES = {
    "bicubic": dict(sampler="lcm", steps=2, guidance=1.5, hires=dict(scale=1.6, strength=0.5, steps=4, upscale="bicubic")),
    "nearest": dict(sampler="lcm", steps=2, guidance=1.0, hires=dict(scale=1.6, strength=0.8, steps=3, upscale="nearest")),
    "ddim": dict(sampler="ddim", steps=4, guidance=3.0, hires=dict(scale=1.6, strength=0.5, upscale="bicubic")),
    "pixels": dict(sampler="lcm", steps=2, guidance=1.0, hires=dict(scale=1.6, strength=0.5, steps=4, upscale="pixels")),
}


@functools.cache
def base():
    pipe = AnimateDiffPipeline.from_pretrained(f"{TINY}/model", torch_dtype=torch.float32)
    return {name: part for name, part in pipe.components.items() if part is not None}


def pipeline(about, kind=AnimateDiffPipeline, **more):
    pipe = kind(**base(), **more)
    threshold = dict(thresholding=True, dynamic_thresholding_ratio=about["ratio"], sample_max_value=about["max"]) if "ratio" in about else {}
    pipe.scheduler = SCHEDULERS[about["sampler"]](**threshold)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe, about, **more):
    """The final latents of a run."""
    batch = {}
    hook = pipe.unet.register_forward_hook(lambda module, inputs, output: batch.update(output=output.sample))
    step = pipe.scheduler.step

    def stepping(output, *args, **given):
        if "rescale" in about:
            output = rescale_noise_cfg(output, batch["output"].chunk(2)[1], about["rescale"])
        if about["sampler"] == "ddim" and "ratio" in about:
            given["use_clipped_model_output"] = True
        return step(output, *args, **given)

    # its parameters tell the pipeline what it takes
    stepping.__wrapped__ = step
    pipe.scheduler.step = stepping
    given = dict(prompt=PROMPT, negative_prompt=NEG, num_frames=FRAMES, width=WIDTH, height=HEIGHT, guidance_scale=about["guidance"],
                 num_inference_steps=about["steps"], generator=torch.Generator().manual_seed(SEED), output_type="latent")
    latents = pipe(**{**given, **more}).frames
    hook.remove()
    del pipe.scheduler.step
    assert torch.isfinite(latents).all()
    return latents


def distinct(tensors, names, least=0.02):
    """Every setting changes the result."""
    names = list(names)
    for i, a in enumerate(names):
        for b in names[:i]:
            assert (tensors[a] - tensors[b]).norm() > least * tensors[b].norm(), (a, b)


def guidance():
    tensors = {name: run(pipeline(about), about) for name, about in GUIDANCE.items()}
    distinct(tensors, tensors)
    x = 3 * torch.randn((2, 37), generator=torch.Generator().manual_seed(4))[..., None]
    tensors["quantile.x"] = x
    for ratio in (0.5, 0.73, 0.995):
        scheduler = LCMScheduler(thresholding=True, dynamic_thresholding_ratio=ratio, sample_max_value=4.0)
        tensors[f"quantile.{ratio}"] = scheduler._threshold_sample(x)
    return tensors


def free_u():
    tensors = {}
    for name, about in FREE_U.items():
        pipe = pipeline(about)
        if "b1" in about:
            pipe.enable_freeu(**{k: about[k] for k in ("b1", "b2", "s1", "s2")})
        tensors[name] = run(pipe, about)
        pipe.disable_freeu()
    distinct(tensors, tensors)
    for i, shape in enumerate([(2, 3, 5, 7), (1, 2, 6, 4), (2, 3, 1, 2), (1, 2, 3, 1), (1, 2, 1, 1), (1, 3, 2, 2)]):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(i))
        tensors[f"filter.{i}.x"], tensors[f"filter.{i}"] = x, fourier_filter(x, threshold=1, scale=0.2)
    return tensors


def box(shape, spatial, temporal):
    frames, height, width = shape[-3:]
    reach, reach_of_frames = round(height // 2 * spatial), round(frames // 2 * temporal)
    middle = [(size // 2, reach) for size in (height, width)]
    spans = [slice(at - r, at + r) for at, r in [(frames // 2, reach_of_frames), *middle]]
    mask = torch.zeros(shape)
    mask[(..., *spans)] = 1.0
    return mask


class WithBox(AnimateDiffPipeline):
    """diffusers' pipeline with the official code's fourth filter."""

    def _get_free_init_freq_filter(self, shape, device, filter_type, order, spatial_stop_frequency, temporal_stop_frequency):
        if filter_type == "box":
            return box(shape, spatial_stop_frequency, temporal_stop_frequency)
        return super()._get_free_init_freq_filter(shape, device, filter_type, order, spatial_stop_frequency, temporal_stop_frequency)


def free_init():
    tensors, factor = {}, 4
    shape = (1, 4, FRAMES, HEIGHT // factor, WIDTH // factor)
    for name, about in FREE_INIT.items():
        pipe = pipeline(about, WithBox)
        if "iters" in about:
            pipe.enable_free_init(num_iters=about["iters"], use_fast_sampling=about.get("fast", False), method=about["method"],
                                  order=about["order"], spatial_stop_frequency=about["spatial"], temporal_stop_frequency=about["temporal"])
            mask = pipe._get_free_init_freq_filter(shape, "cpu", about["method"], about["order"], about["spatial"], about["temporal"])
            assert 0 < mask.mean() < 1, name
        tensors[name] = run(pipe, about)
    distinct(tensors, tensors)
    return tensors


def pag():
    tensors = {}
    for name, about in PAG.items():
        kind, more, given = AnimateDiffPipeline, {}, {}
        if "scale" in about:
            kind, more = AnimateDiffPAGPipeline, dict(pag_applied_layers=about["layers"])
            given = dict(pag_scale=about["scale"], pag_adaptive_scale=about["adaptive"])
        tensors[name] = run(pipeline(about, kind, **more), about, **given)
    distinct(tensors, tensors)
    return tensors


def hires():
    tensors, factor = {}, 4
    for name, about in HIRES.items():
        generator = torch.Generator().manual_seed(SEED)
        settings = about["hires"]
        first = pipeline(about)
        small = run(first, about, generator=generator)
        height, width = (round(side * settings["scale"] / factor) for side in (HEIGHT, WIDTH))
        steps = settings.get("steps", about["steps"])
        pipe = pipeline(about, AnimateDiffVideoToVideoPipeline)
        if settings["upscale"] == "pixels":
            given = dict(video=first.video_processor.postprocess_video(first.decode_latents(small, 16), output_type="pil")[0])
        else:
            large = torch.nn.functional.interpolate(small[0].transpose(0, 1), size=(height, width), mode=settings["upscale"])
            large = large.transpose(0, 1)[None]
            noise = torch.randn(large.shape, generator=generator)
            pipe.scheduler.set_timesteps(steps)
            start = pipe.scheduler.timesteps[-int(steps * settings["strength"]) :][:1]
            given = dict(latents=pipe.scheduler.add_noise(large, noise, start))
        tensors[name] = pipe(
            prompt=PROMPT, negative_prompt=NEG, height=height * factor, width=width * factor, guidance_scale=about["guidance"],
            num_inference_steps=steps, strength=settings["strength"], generator=generator, output_type="latent", **given).frames
        assert tensors[name].shape[-2:] == (height, width) and torch.isfinite(tensors[name]).all()
    distinct(tensors, tensors)
    return tensors


def tiling():
    """Tiles of 32 pixels, 8 latents, and a quarter of overlap; those at the edges are smaller than what is blended."""
    vae = AutoencoderKL.from_pretrained(f"{TINY}/model/vae", torch_dtype=torch.float32).eval()
    vae.enable_tiling()
    g = torch.Generator().manual_seed(6)
    z, image = torch.randn((1, 4, 10, 15), generator=g), torch.rand((1, 3, 40, 60), generator=g) * 2 - 1
    plain = AutoencoderKL.from_pretrained(f"{TINY}/model/vae", torch_dtype=torch.float32).eval()
    tensors = {"z": z, "decoded": vae.decode(z).sample, "image": image, "moments": vae.encode(image).latent_dist.parameters}
    assert (plain.decode(z).sample - tensors["decoded"]).abs().max() > 0.01
    assert (plain.encode(image).latent_dist.parameters - tensors["moments"]).abs().max() > 0.01
    return tensors


PARTS = {
    "guidance": (guidance, GUIDANCE),
    "free_u": (free_u, FREE_U),
    "free_init": (free_init, FREE_INIT),
    "pag": (pag, PAG),
    "hires": (hires, HIRES),
    "tiling": (tiling, {}),
}


def main():
    os.makedirs(OUT, exist_ok=True)
    about = {"seed": SEED, "frames": FRAMES, "width": WIDTH, "height": HEIGHT, "prompt": PROMPT, "negative": NEG}
    for part, (make, settings) in PARTS.items():
        if part in sys.argv[1:] or not sys.argv[1:]:
            path = f"{OUT}/{part}.safetensors"
            save_file({k: v.float().contiguous().clone() for k, v in make().items()}, path)
            os.chmod(path, 0o644)
        about[part] = settings
    with open(f"{OUT}/quality.json", "w") as file:
        json.dump(about, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    with torch.no_grad():
        main()
