#!/usr/bin/env python3
"""Writes the noise tables and timesteps of diffusers' schedulers to ../schedules.

Pinned: torch 2.15.0, diffusers 0.42.1, numpy 2.4.6 (`requirements.txt`).

    python schedules.py

../schedules/alphas_cumprod.safetensors   `{beta schedule}.{beta end}` -> (1000,) float32; beta start is 0.00085 everywhere
../schedules/zero_snr.safetensors         the same, rescaled to zero terminal SNR
../schedules/schedules.json
    lcm          beta_end, original_steps, steps, strength -> timesteps, or error (diffusers' first line)
    boundary     timestep -> c_skip, c_out with timestep_scaling 10 and sigma_data 0.5
    ddim         beta_schedule, spacing, steps -> timesteps, previous (-1 and below: the final alpha), final_alpha_cumprod
    euler, euler_ancestral    the same -> timesteps (fractional for linspace), sigmas, init_noise_sigma
    heun                      the same; each level but the first and last is there twice
    dpmpp_2m, dpmpp_2m_karras the same -> timesteps, sigmas
All spacings use steps_offset 1 (which only `leading` reads) and set_alpha_to_one false, as SD1.5 publishes.
"""
import json
import os

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
OUT = os.path.join(os.path.dirname(HERE), "schedules")
START = 0.00085
STEPS = (1, 2, 4, 5, 10, 25)
SPACINGS = ("leading", "trailing", "linspace")


def numbers(t):
    """Exact decimal forms: whole numbers as integers, float32 with the digits that tell it from its neighbours."""
    return [int(v) if float(v).is_integer() and not t.is_floating_point() else float(f"{float(v):.9g}") for v in t]


def lcm(beta_end, original, steps, strength=1.0):
    case = {"beta_end": beta_end, "original_steps": original, "steps": steps, "strength": strength}
    s = LCMScheduler(beta_start=START, beta_end=beta_end, beta_schedule="linear", original_inference_steps=original)
    try:
        s.set_timesteps(steps, strength=strength)
        case["timesteps"] = numbers(s.timesteps)
    except ValueError as e:
        case["error"] = " ".join(str(e).split())
    return case


def main():
    os.makedirs(OUT, exist_ok=True)
    tables = {}
    for kind in ("linear", "scaled_linear"):
        for end in (0.012, 0.014):
            tables[f"{kind}.{end}"] = LCMScheduler(beta_start=START, beta_end=end, beta_schedule=kind).alphas_cumprod
    tables["squaredcos_cap_v2"] = LCMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod
    save_file({k: v.contiguous() for k, v in tables.items()}, f"{OUT}/alphas_cumprod.safetensors")
    zero_snr = {}
    for name in tables:
        kind, _, end = name.partition(".")
        s = LCMScheduler(beta_start=START, beta_end=float(end or 0.012), beta_schedule=kind, rescale_betas_zero_snr=True)
        zero_snr[name] = s.alphas_cumprod.contiguous()
    save_file(zero_snr, f"{OUT}/zero_snr.safetensors")

    out = {"lcm": []}
    for original, end in ((50, 0.012), (100, 0.012), (200, 0.014)):
        for n in (*range(1, 13), 16, 25, original, original + 1, 1001):
            out["lcm"].append(lcm(end, original, n))
        for strength in (0.6, 0.25, 0.05):
            out["lcm"] += [lcm(end, original, n, strength) for n in (1, 4, 8)]
    out["lcm"] += [lcm(0.012, 1000, 4), lcm(0.012, 1001, 4), lcm(0.012, 7, 4), lcm(0.012, 3, 4), lcm(0.012, 300, 5)]
    s = LCMScheduler()
    out["boundary"] = []
    for t in (0, 1, 4, 9, 19, 129, 249, 259, 499, 749, 999):
        c_skip, c_out = s.get_scalings_for_boundary_condition_discrete(t)
        out["boundary"].append({"timestep": t, "c_skip": float(c_skip), "c_out": float(c_out)})

    for name in ("ddim", "euler", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_2m_karras"):
        out[name] = []
        for kind in ("linear", "scaled_linear"):
            for spacing in SPACINGS:
                for n in STEPS:
                    case = {"beta_schedule": kind, "spacing": spacing, "steps": n}
                    common = dict(beta_start=START, beta_end=0.012, beta_schedule=kind, timestep_spacing=spacing, steps_offset=1)
                    if name == "ddim":
                        s = DDIMScheduler(**common, clip_sample=False, set_alpha_to_one=False)
                    elif name == "euler":
                        s = EulerDiscreteScheduler(**common)
                    elif name == "euler_ancestral":
                        s = EulerAncestralDiscreteScheduler(**common)
                    elif name == "heun":
                        s = HeunDiscreteScheduler(**common)
                    else:
                        s = DPMSolverMultistepScheduler(**common, algorithm_type="dpmsolver++", use_karras_sigmas=name.endswith("karras"))
                    try:
                        s.set_timesteps(n)
                    except Exception as e:  # recorded: a port may well do better
                        case["error"] = f"{type(e).__name__}: {' '.join(str(e).split())}"
                        out[name].append(case)
                        continue
                    case["timesteps"] = numbers(s.timesteps)
                    if name == "ddim":
                        case["previous"] = [t - 1000 // n for t in case["timesteps"]]
                        case["final_alpha_cumprod"] = numbers(s.final_alpha_cumprod[None])[0]
                    else:
                        case["sigmas"] = numbers(s.sigmas)
                    if name.startswith(("euler", "heun")):
                        case["init_noise_sigma"] = numbers(torch.as_tensor(s.init_noise_sigma).reshape(1).float())[0]
                    out[name].append(case)
    with open(f"{OUT}/schedules.json", "w") as f:
        f.write("{\n")
        for i, (k, rows) in enumerate(out.items()):
            body = ",\n".join(json.dumps(r, separators=(",", ":"), allow_nan=False) for r in rows)
            f.write(f'"{k}":[\n{body}\n]' + (",\n" if i + 1 < len(out) else "\n"))
        f.write("}\n")


if __name__ == "__main__":
    main()
