#!/usr/bin/env python3
"""Walks diffusers' schedulers over a formula in place of a network and writes every step to ../samplers.

Pinned: torch 2.15.0, diffusers 0.42.1 (`requirements.txt`).

    python samplers.py

The "network", in float32, where `x` is what the scheduler hands to a network (for Euler: already divided by
sqrt(sigma^2 + 1)) and `t` the timestep, which may be fractional:

    eps(x, t) = 0.7 * tanh(x) + 0.1 * cos(t / 100)

../samplers/samplers.json         case -> scheduler class, its configuration, steps, timesteps, init_scale
../samplers/{case}.safetensors    latents.0 ... latents.5: the state after each evaluation, in the scheduler's own scaling;
                                  input.0 ... input.5: what the network was given (only where it differs from the state before)
../samplers/inputs.safetensors    init: unit noise (the start is init * init_scale); noise.0 ... noise.5, drawn in this order by
                                  schedulers that add noise. All tensors are (1, 4, 3, 5, 7): batch, channels, frames, height, width.
Six steps everywhere; Heun's have two evaluations each but the last, so eleven inputs and states.
"""
import json
import os

import diffusers.schedulers.scheduling_euler_ancestral_discrete as mod_euler_a
import diffusers.schedulers.scheduling_lcm as mod_lcm
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
)
from safetensors.torch import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(os.path.dirname(HERE), "samplers")
SHAPE, STEPS = (1, 4, 3, 5, 7), 6
torch.set_grad_enabled(False)


def eps(x, t):
    return 0.7 * torch.tanh(x) + 0.1 * torch.cos(torch.as_tensor(t, dtype=torch.float32) / 100)


SETTINGS = {
    # the scheduler folder of Stable Diffusion 1.5
    "sd15": dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1),
    # what AnimateDiff's modules were trained with, as diffusers' documentation sets it
    "animatediff": dict(beta_start=0.00085, beta_end=0.012, beta_schedule="linear", timestep_spacing="linspace", steps_offset=1),
    "trailing": dict(beta_start=0.00085, beta_end=0.012, beta_schedule="linear", timestep_spacing="trailing", steps_offset=1),
}


def cases():
    for name, common in SETTINGS.items():
        yield f"ddim_{name}", DDIMScheduler(**common, clip_sample=False, set_alpha_to_one=False)
        yield f"euler_{name}", EulerDiscreteScheduler(**common)
        yield f"heun_{name}", HeunDiscreteScheduler(**common)
        yield f"euler_a_{name}", EulerAncestralDiscreteScheduler(**common)
        yield f"dpmpp_2m_{name}", DPMSolverMultistepScheduler(**common, algorithm_type="dpmsolver++")
        if name != "trailing":  # Karras spacing does not depend on the other one
            yield f"dpmpp_2m_karras_{name}", DPMSolverMultistepScheduler(**common, algorithm_type="dpmsolver++", use_karras_sigmas=True)
    for original, end in ((50, 0.012), (100, 0.012), (200, 0.014)):
        yield f"lcm_{original}", LCMScheduler(beta_start=0.00085, beta_end=end, beta_schedule="linear", original_inference_steps=original,
                                              set_alpha_to_one=False, steps_offset=1)
    # the same "network", whose output means something else, and schedules that end in pure noise
    for kind in ("v_prediction", "sample"):
        lcm = dict(beta_start=0.00085, beta_end=0.012, original_inference_steps=50, set_alpha_to_one=False, steps_offset=1)
        for zero in (False, True):
            end = "_zero_snr" if zero else ""
            common = dict(SETTINGS["trailing"], prediction_type=kind)
            rescaled = dict(rescale_betas_zero_snr=zero)
            yield f"lcm_{kind}{end}", LCMScheduler(**lcm, beta_schedule="linear", prediction_type=kind, **rescaled)
            yield f"ddim_{kind}{end}", DDIMScheduler(**common, **rescaled, clip_sample=False, set_alpha_to_one=False)
            yield f"euler_{kind}{end}", EulerDiscreteScheduler(**common, **rescaled)
            if kind == "v_prediction":  # the reference knows no other output here
                yield f"euler_a_{kind}{end}", EulerAncestralDiscreteScheduler(**common, **rescaled)
            yield f"dpmpp_2m_{kind}{end}", DPMSolverMultistepScheduler(**common, **rescaled, algorithm_type="dpmsolver++")
    yield "ddim_v_prediction_sd15", DDIMScheduler(**SETTINGS["sd15"], prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False)
    yield "euler_v_prediction_sd15_zero_snr", EulerDiscreteScheduler(**SETTINGS["sd15"], prediction_type="v_prediction", rescale_betas_zero_snr=True)


def main():
    os.makedirs(OUT, exist_ok=True)
    g = torch.Generator().manual_seed(20240201)
    init = torch.randn(SHAPE, generator=g)
    bank = [torch.randn(SHAPE, generator=g) for _ in range(STEPS)]
    about = {}
    for name, s in cases():
        drawn = iter(bank)
        for m in (mod_lcm, mod_euler_a):
            m.randn_tensor = lambda shape, **_: next(drawn)
        s.set_timesteps(STEPS)
        assert len(s.timesteps) == (2 * STEPS - 1 if name.startswith("heun") else STEPS)
        scale = float(s.init_noise_sigma)
        x, out = init * scale, {}
        for i, t in enumerate(s.timesteps):
            given = s.scale_model_input(x, t)
            if not torch.equal(given, x):
                out[f"input.{i}"] = given
            x = s.step(eps(given, t), t, x).prev_sample
            out[f"latents.{i}"] = x
        used = STEPS - len(list(drawn))
        save_file({k: v.float().contiguous().clone() for k, v in out.items()}, f"{OUT}/{name}.safetensors")
        about[name] = {
            "scheduler": type(s).__name__,
            "config": {k: v for k, v in s.config.items() if not k.startswith("_") and v not in (None, False, float("-inf"))},
            "steps": STEPS, "timesteps": [float(t) for t in s.timesteps], "init_scale": scale, "noises": used,
        }
        assert all(torch.isfinite(v).all() for v in out.values())
    save_file({"init": init, **{f"noise.{i}": n for i, n in enumerate(bank)}}, f"{OUT}/inputs.safetensors")
    with open(f"{OUT}/samplers.json", "w") as f:
        f.write("{\n" + ",\n".join(f'"{k}":{json.dumps(v, separators=(",", ":"))}' for k, v in about.items()) + "\n}\n")


if __name__ == "__main__":
    main()
