#!/usr/bin/env python3
"""Runs of diffusers' and k-diffusion's samplers over a formula in place of a network, at five numbers of steps with every
spacing, into ../samplers/solvers.*

Pinned: torch 2.15.0, diffusers 0.42.1, k-diffusion 0.1.1.post1, torchsde 0.2.6 (`requirements.txt`).

    python solvers.py

The "network", where `x` is what the reference hands to a network (scaled to unit variance) and `t` its timestep:

    out(x, t) = 0.7 * tanh(x) + 0.1 * cos(t / 100)

Levels are the reference's, rounded to float32 as it stores them; everything else is computed in float64, so that the only
difference of a port in float32 is its own rounding.

../samplers/solvers.json         cases: sampler, spacing, steps and settings -> timesteps, sigmas, where sigmas have one more.
                                 Of samplers with two evaluations a step only the first one's. tcd, ddpm and pndm have no sigmas
../samplers/solvers.safetensors  case -> the latents after the last step, (1, 2, 3, 4, 5): batch, channels, frames, height, width

All noise is drawn from torch's generator with seed 7 on the CPU, in this order: the start, then that of the steps. What
diffusers and k-diffusion draw from a Brownian path is drawn independently. `dpmpp-3m-sde`, and the spacings `sgm-uniform` and
`ays`, which diffusers has not or not for every number of steps, are k-diffusion's loops over sigmas; `ays` is interpolated as
its authors do (research.nvidia.com/labs/toronto-ai/AlignYourSteps/howto.html).
"""
import importlib
import json
import os
import sys
import types

import diffusers
import diffusers.schedulers.scheduling_ddpm as mod_ddpm
import diffusers.schedulers.scheduling_dpmsolver_multistep as mod_dpm
import diffusers.schedulers.scheduling_tcd as mod_tcd
import numpy as np
import torch
from diffusers.schedulers import AysSchedules
from safetensors.torch import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(os.path.dirname(HERE), "samplers")
SHAPE, SEED = (1, 2, 3, 4, 5), 7
STEPS = (1, 2, 5, 8, 20)
torch.set_grad_enabled(False)
torch.set_num_threads(1)


def k_diffusion(name):
    """A module of k-diffusion without what the package imports for training."""
    if "k_diffusion" not in sys.modules:
        package = types.ModuleType("k_diffusion")
        package.__path__ = [os.path.join(p, "k_diffusion") for p in sys.path]
        sys.modules["k_diffusion"] = package
        for unused in ("torchdiffeq", "torchvision", "torchvision.transforms"):
            sys.modules[unused] = types.ModuleType(unused)
        sys.modules["torchdiffeq"].odeint = None
        sys.modules["torchvision"].transforms = sys.modules["torchvision.transforms"]
        sys.modules["torchvision.transforms"].functional = None
    return importlib.import_module(f"k_diffusion.{name}")


def network(x, t):
    return 0.7 * torch.tanh(x) + 0.1 * torch.cos(torch.as_tensor(t, dtype=torch.float64) / 100)


def draws():
    generator = torch.Generator().manual_seed(SEED)
    return lambda *_, **__: torch.randn(SHAPE, generator=generator).double()


def betas(kind="linear"):
    return dict(beta_start=0.00085, beta_end=0.012, beta_schedule=kind)


def scheduler(sampler, spacing, settings):
    common = {**betas(settings.get("beta_schedule", "linear")), "steps_offset": 1}
    common["timestep_spacing"] = spacing if spacing in ("leading", "trailing") else "linspace"
    if spacing in ("karras", "exponential"):
        common[f"use_{spacing}_sigmas"] = True
    for key in ("prediction_type", "rescale_betas_zero_snr"):
        if key in settings:
            common[key] = settings[key]
    make = {
        "tcd": lambda: diffusers.TCDScheduler(**{**common, "timestep_spacing": "leading"}, original_inference_steps=50),
        "ddpm": lambda: diffusers.DDPMScheduler(**common, clip_sample=False),
        "pndm": lambda: diffusers.PNDMScheduler(**common, skip_prk_steps=True),
        "euler": lambda: diffusers.EulerDiscreteScheduler(**common),
        "heun": lambda: diffusers.HeunDiscreteScheduler(**common),
        "lms": lambda: diffusers.LMSDiscreteScheduler(**common),
        "deis": lambda: diffusers.DEISMultistepScheduler(**common),
        "unipc": lambda: diffusers.UniPCMultistepScheduler(**common),
        "dpmpp-2m": lambda: diffusers.DPMSolverMultistepScheduler(**common),
        "dpmpp-2m-sde": lambda: diffusers.DPMSolverMultistepScheduler(**common, algorithm_type="sde-dpmsolver++"),
        "dpmpp-3m-sde": lambda: diffusers.DPMSolverMultistepScheduler(**common),  # for its levels
        "dpmpp-sde": lambda: diffusers.DPMSolverSDEScheduler(**common),
    }
    return make[sampler]()


def by_diffusers(sampler, spacing, steps, settings):
    s, noise = scheduler(sampler, spacing, settings), draws()
    for module in (mod_tcd, mod_dpm, mod_ddpm):
        module.randn_tensor = noise
    if spacing == "ays":
        s.set_timesteps(timesteps=AysSchedules["StableDiffusionTimesteps"])
    else:
        s.set_timesteps(steps)
    s.noise_sampler = noise
    for name in ("alphas_cumprod", "final_alpha_cumprod", "sigmas"):
        if isinstance(getattr(s, name, None), torch.Tensor):
            setattr(s, name, getattr(s, name).double())
    more = {"eta": settings["gamma"]} if sampler == "tcd" else {}
    x = noise() * torch.as_tensor(s.init_noise_sigma).double()
    if sampler == "dpmpp-3m-sde":
        x, sigmas, loop = x * (s.sigmas[0] ** 2 + 1) ** 0.5, s.sigmas, "sample_dpmpp_3m_sde"
        return *levels(sampler, s), by_k_diffusion(loop, x, s.timesteps, sigmas, noise)
    for t in s.timesteps:
        given = s.scale_model_input(x, t)
        x = s.step(network(given, t), t, x, **more).prev_sample
    return *levels(sampler, s), x


def levels(sampler, s):
    every = slice(None)
    if sampler in ("heun", "dpmpp-sde"):
        every = slice(0, None, 2)
    timesteps, sigmas = s.timesteps, getattr(s, "sigmas", None)
    if sampler == "pndm":  # the second one is evaluated twice
        timesteps = torch.cat([timesteps[:1], timesteps[2:]])
    if sampler in ("tcd", "ddpm", "pndm"):
        sigmas = None
    if sampler in ("heun", "dpmpp-sde"):
        sigmas = torch.cat([sigmas[:1], sigmas[1::2]])
    return timesteps[every], sigmas


def by_k_diffusion(loop, x, timesteps, sigmas, noise):
    """A loop over sigmas in k-diffusion's scaling."""
    at = {float(sigma): t for sigma, t in zip(sigmas, timesteps)}

    def model(x, sigma):
        out = network(x / (sigma[0] ** 2 + 1) ** 0.5, at[float(sigma[0])])
        return x - sigma[0] * out

    loop = getattr(k_diffusion("sampling"), loop)
    more = {"noise_sampler": noise} if "noise_sampler" in loop.__wrapped__.__code__.co_varnames else {}
    return loop(model, x, sigmas, disable=True, **more)


def by_levels(sampler, spacing, steps, settings):
    """`sgm-uniform` and `ays` of any number of steps."""
    cumulative = diffusers.DDIMScheduler(**betas(settings.get("beta_schedule", "linear"))).alphas_cumprod.double()
    discrete = k_diffusion("external").DiscreteSchedule(((1 - cumulative) / cumulative) ** 0.5, quantize=False)
    if spacing == "sgm-uniform":
        timesteps = torch.linspace(999, 0, steps + 1, dtype=torch.float64)[:-1]
        sigmas = discrete.t_to_sigma(timesteps)
    else:
        table = np.append(discrete.sigmas[AysSchedules["StableDiffusionTimesteps"]].numpy(), discrete.sigmas[0])
        places, wanted = np.linspace(0, 1, len(table)), np.linspace(0, 1, steps + 1)
        sigmas = np.exp(np.interp(wanted, places, np.log(table[::-1])))[::-1][:-1].copy()
        sigmas = torch.from_numpy(sigmas)
        timesteps = discrete.sigma_to_t(sigmas)
    sigmas, noise = torch.cat([sigmas, torch.zeros(1)]).double(), draws()
    # The DPM-Solver family starts from unit variance, the others from sigma times noise.
    scale = sigmas[0] if sampler in ("euler", "lms") else (sigmas[0] ** 2 + 1) ** 0.5
    loop = {"euler": "sample_euler", "lms": "sample_lms", "dpmpp-2m": "sample_dpmpp_2m", "dpmpp-3m-sde": "sample_dpmpp_3m_sde"}
    return timesteps, sigmas, by_k_diffusion(loop[sampler], noise() * scale, timesteps, sigmas, noise)


def cases():
    for gamma in (0.0, 0.3, 1.0):
        for steps in (1, 2, 4, 8, 20):
            yield "tcd", None, steps, {"gamma": gamma}
    for sampler in ("ddpm", "pndm", "lms", "deis", "unipc", "dpmpp-2m-sde", "dpmpp-3m-sde", "dpmpp-sde"):
        spacings = ["leading"] if sampler == "pndm" else ["leading", "trailing", "linspace"]
        for spacing in spacings:
            for steps in STEPS:
                yield sampler, spacing, steps, {"beta_schedule": "scaled_linear" if sampler == "pndm" else "linear"}
    for spacing in ("karras", "exponential"):
        for sampler in ("lms", "deis", "unipc", "dpmpp-2m-sde", "dpmpp-3m-sde", "dpmpp-sde"):
            for steps in (2, 3, 5, 8, 20):
                yield sampler, spacing, steps, {}
    # Spacings of samplers that are in ../samplers/samplers.json otherwise, and AnimateDiff-Lightning's numbers of steps.
    for sampler in ("euler", "heun", "dpmpp-2m"):
        for steps in (2, 3, 5, 8, 20):
            yield sampler, "exponential", steps, {}
    for steps in (1, 2, 4, 8):
        yield "euler", "trailing", steps, {}
    for spacing in ("sgm-uniform", "ays"):
        for sampler in ("euler", "lms", "dpmpp-2m", "dpmpp-3m-sde"):
            for steps in (1, 2, 5, 10, 20):
                yield sampler, spacing, steps, {"beta_schedule": "scaled_linear"}
    # The same "network", whose output means something else, and schedules that end in pure noise.
    v = {"prediction_type": "v_prediction"}
    zero = {**v, "rescale_betas_zero_snr": True}
    for sampler in ("lms", "deis", "unipc", "dpmpp-2m-sde", "dpmpp-sde", "ddpm"):
        yield sampler, "trailing", 6, v
    yield "tcd", None, 6, {**v, "gamma": 0.3}
    for sampler in ("unipc", "dpmpp-2m-sde", "ddpm"):
        yield sampler, "trailing", 6, zero
    yield "tcd", None, 6, {**zero, "gamma": 0.3}
    for sampler in ("unipc", "dpmpp-2m-sde", "deis"):
        yield sampler, "trailing", 6, {"prediction_type": "sample"}


def run_of(sampler, spacing, steps, settings):
    has_levels = spacing == "sgm-uniform" or (spacing == "ays" and (steps != 10 or sampler != "euler"))
    return (by_levels if has_levels else by_diffusers)(sampler, spacing, steps, settings)


def numbers(values):
    return [float(f"{float(value):.9g}") for value in values]


def main():
    about, latents = [], {}
    for sampler, spacing, steps, settings in cases():
        if sampler == "dpmpp-3m-sde" and steps == 1:
            continue  # the reference fails
        timesteps, sigmas, x = run_of(sampler, spacing, steps, settings)
        name = str(len(about))
        assert torch.isfinite(x).all(), (sampler, spacing, steps)
        latents[name] = x.float().contiguous()
        case = {"sampler": sampler, "spacing": spacing, "steps": steps, **settings, "timesteps": numbers(timesteps)}
        if sigmas is not None:
            case["sigmas"] = numbers(sigmas)
        about.append(case)
    save_file(latents, f"{OUT}/solvers.safetensors")
    with open(f"{OUT}/solvers.json", "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(case, separators=(",", ":")) for case in about) + "\n]\n")


if __name__ == "__main__":
    main()
