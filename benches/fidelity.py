#!/usr/bin/env python3
"""How often clips show what their prompts say, at 1, 2, 4, 8 and 25 steps: the paper's tables on a model of `animatelcm train`.

    animatelcm train --preset pocket -o run
    python3 benches/fidelity.py run [--joint RUN] [--plain RUN] [--prompts N] [--program target/release/animatelcm]

Rows are the consistency model (LCM, no guidance), and its teacher with DDIM and DPM++ 2M (guided). Prompts and seeds are the same in
every row. `--joint` and `--plain` name trainings that differ in `[lcm]` alone: `joint = true` learns the LoRA and the motion modules at
once, `insertion = "plain"` gives the target the LoRA at once. Each is a copy of `run` whose `config.toml` was changed before

    animatelcm train --config copy/config.toml --stage lcm --restart -o copy

Prints a Markdown table: all four right (background, colour, shape, motion), each in percent, and the 95 % interval of the first.
"""
import argparse
import json
import os
import subprocess


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("run")
    parser.add_argument("--joint")
    parser.add_argument("--plain")
    parser.add_argument("--program", default="target/release/animatelcm")
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cfg-scale", type=float, default=2.5, help="of teachers")
    parser.add_argument("--steps", type=int, nargs="*", default=[1, 2, 4, 8, 25])
    args = parser.parse_args()

    def consistent(run, lora="lcm_lora"):
        return ["--motion", f"{run}/motion_lcm.safetensors", "--lcm-lora", f"{run}/{lora}.safetensors"]

    def teacher(sampler):
        motion = ["--motion", f"{args.run}/motion_teacher.safetensors", "--lcm-lora", "none"]
        guided = ["--sampler", sampler, "--cfg-scale", str(args.cfg_scale)]
        return motion + guided + (["--spacing", "trailing"] if sampler == "ddim" else [])

    rows = [("AnimateLCM", consistent(args.run))]
    if args.plain:
        rows.append(("plain insertion", consistent(args.plain)))
    if args.joint:
        rows.append(("joint distillation", consistent(args.joint, "joint_lora")))
    rows += [("teacher, DDIM", teacher("ddim")), ("teacher, DPM++ 2M", teacher("dpmpp-2m"))]

    print("| | steps | all four | 95 % interval | background | colour | shape | motion | steady |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, flags in rows:
        for steps in args.steps:
            if steps > 8 and not name.startswith("teacher"):
                continue
            score = measure(args, flags + ["--steps", str(steps)])
            whole = score["all"]
            shares = " | ".join(f"{100 * score[part]['share']:.1f}" for part in ("background", "color", "shape", "motion", "steady"))
            interval = f"{100 * whole['low']:.1f} to {100 * whole['high']:.1f}"
            print(f"| {name} | {steps} | **{100 * whole['share']:.1f}** | {interval} | {shares} |", flush=True)


def measure(args, flags):
    command = [args.program, "eval", "--procedural", "--json", "-q", "--prompts", str(args.prompts), "--seed", str(args.seed)]
    # Teachers differ from the set's own sampler in nothing but the sampler: betas are the training's.
    command += ["--model", os.path.join(args.run, "base"), "--beta-schedule", "linear", *flags]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)["score"]


if __name__ == "__main__":
    main()
