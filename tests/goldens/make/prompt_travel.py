#!/usr/bin/env python3
"""Writes ../prompt_travel: prompts by frame in diffusers, on the tiny model of `../tiny`.

Pinned: torch 2.15.0, diffusers 0.42.1, transformers 5.23.0, numpy 2.4.6 (`requirements.txt`). To be run after `make_goldens.py`; nothing is
downloaded.

    HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 python prompt_travel.py

    prompt_travel.json         `states`: keys, frames and interpolation of each case; `runs`: those of each run
    states.safetensors         `NAME`: text states of every frame, (frames, tokens, dim)
    runs.safetensors           `NAME.latents`: the clean latents, (1, channels, frames, height, width); first latents and noise are those of
                               `../tiny/cases`

States are those of `_encode_prompt_free_noise`, which interpolates as `_lerp` says, or as the callback does: there diffusers' own `slerp` (that of
`AudioDiffusionPipeline`). diffusers wants a key for frame 0.

Runs have pooled norms and a grid of 50. Travelling ones are FreeNoise's with one window, which is the whole clip; edited ones get other states from
`callback_on_step_end`, the way that diffusers has for prompts that change between steps. `prompts` lists what the steps of a run are to have; the program is
given `edited`, in AUTOMATIC1111's words for the same.
"""
import json
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch
from diffusers import AnimateDiffPipeline, LCMScheduler
from diffusers.pipelines.deprecated.audio_diffusion.pipeline_audio_diffusion import AudioDiffusionPipeline
from make_goldens import FRAMES, LH, LW, NEG
from safetensors.torch import load_file, save_file

HERE = os.path.dirname(os.path.abspath(__file__))
TINY = os.path.join(os.path.dirname(HERE), "tiny")
OUT = os.path.join(os.path.dirname(HERE), "prompt_travel")
BETAS = dict(beta_schedule="linear", beta_start=0.00085, beta_end=0.012, steps_offset=1)

THREE = {0: "a corgi walking", 2: "the dog in the park, 4k", 5: "bad quality"}
STATES = {
    "lerp": dict(keys=THREE, frames=6, interpolation="linear"),
    "slerp": dict(keys=THREE, frames=6, interpolation="spherical"),
    "slerp_held": dict(keys={0: "a corgi", 4: "walking in the park"}, frames=7, interpolation="spherical"),
}
RUNS = {
    "travel": dict(keys=THREE, interpolation="linear", guidance=1.0),
    "travel_guided": dict(keys=THREE, interpolation="linear", guidance=1.5),
    "travel_spherical": dict(keys={0: "a corgi", 4: "walking in the park"}, interpolation="spherical", guidance=1.5),
    "edited": dict(prompts=["a corgi", "a corgi", "a dog", "a dog"], edited="a [corgi:dog:2]", guidance=1.5),
    "alternating": dict(prompts=["a corgi", "a dog", "a corgi", "a dog"], edited="a [corgi|dog]", guidance=1.0),
}


def slerp(start, end, a, b):
    count = end - start + 1
    if torch.equal(a, b):  # which `slerp` divides by zero for
        return a.repeat(count, 1, 1)
    return torch.cat([AudioDiffusionPipeline.slerp(a, b, i / (count - 1)) for i in range(count)])


def pipeline(interpolation, frames):
    pipe = AnimateDiffPipeline.from_pretrained(f"{TINY}/model", torch_dtype=torch.float32)
    pipe.scheduler = LCMScheduler(**BETAS, set_alpha_to_one=False)
    pipe.set_progress_bar_config(disable=True)
    if interpolation:
        callback = {"linear": None, "spherical": slerp}[interpolation]
        pipe.enable_free_noise(context_length=frames, context_stride=frames, noise_type="random", prompt_interpolation_callback=callback)
    return pipe


def states():
    tensors = {}
    for name, case in STATES.items():
        pipe = pipeline(case["interpolation"], case["frames"])
        tensors[name], _ = pipe._encode_prompt_free_noise(dict(case["keys"]), case["frames"], torch.device("cpu"), 1, False)
        assert tensors[name].shape[0] == case["frames"] and tensors[name].isfinite().all()
    return tensors


def run(about):
    noise = load_file(f"{TINY}/cases/noise.safetensors")
    x = load_file(f"{TINY}/cases/unet.safetensors")["x"].float()
    pipe = pipeline(about.get("interpolation"), FRAMES)
    drawn = iter([noise[f"noise.{i}"].float() for i in range(3)])
    import diffusers.schedulers.scheduling_lcm as lcm

    original, lcm.randn_tensor = lcm.randn_tensor, lambda *a, **k: next(drawn)
    out, guided = {}, about["guidance"] > 1

    def encoded(prompt):
        cond, uncond = pipe.encode_prompt(prompt, "cpu", 1, guided, NEG)
        rows = [uncond, cond] if guided else [cond]
        return torch.cat(rows).repeat_interleave(FRAMES, 0)

    def after(p, i, t, given):
        out["latents"] = given["latents"].clone()
        if "prompts" in about and i + 1 < len(about["prompts"]):
            return {"prompt_embeds": encoded(about["prompts"][i + 1])}
        return {}

    prompt = dict(about["keys"]) if "keys" in about else about["prompts"][0]
    pipe(prompt=prompt, negative_prompt=NEG, num_frames=FRAMES, height=LH * 4, width=LW * 4, num_inference_steps=4, guidance_scale=about["guidance"],
         latents=x, callback_on_step_end=after, callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"], output_type="latent")
    lcm.randn_tensor = original
    return out["latents"]


def main():
    os.makedirs(OUT, exist_ok=True)
    torch.set_grad_enabled(False)
    runs = {name: run(about) for name, about in RUNS.items()}
    names = list(runs)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            assert (runs[a] - runs[b]).abs().max() > 1e-2, (a, b)
    save_file({k: v.contiguous() for k, v in states().items()}, f"{OUT}/states.safetensors")
    save_file({f"{k}.latents": v.contiguous() for k, v in runs.items()}, f"{OUT}/runs.safetensors")
    with open(f"{OUT}/prompt_travel.json", "w") as file:
        json.dump({"negative": NEG, "states": STATES, "runs": RUNS}, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()
