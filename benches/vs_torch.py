#!/usr/bin/env python3
"""`animatelcm bench` against diffusers on torch and OpenVINO, in turn on the same machine, as a table for RESULTS.md.

    cargo build --release
    python benches/vs_torch.py target/release/animatelcm [--frames 8] [--width 256] [--height 256] [--rounds 3] [--repeats 1]
                               [--only animatelcm-f32,torch-f32,...] [--threads N] [--out table.md]

Candidates: animatelcm-f32, animatelcm-bf16; the same with -int8 (rounded weights of the UNet) and -w8a8 (and activations of
linear layers); torch-f32, torch-bf16 (eager, channels last), torch-f32-compile, torch-bf16-compile (with inductor's freezing);
openvino-f32, openvino-bf16 (of the folder that reference/openvino_bench.py has converted for this shape). By default all without
the last four. Each is a process of its own, with one pass to warm up, and all of them take their turn in every round, so that what
else the machine does hits all alike. The least of all passes is what counts; the greatest is the spread. Processor seconds are those of the
whole process, weights and warming up included. The weights are random (reference/named_weights.py, src/weights/random.rs):
times do not depend on them. All hold the text encoder too, in f32 where it is ours, but OpenVINO, which has the other two. Needs what reference/README.md says, and about 8 GB of memory.
"""
import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
NAMES = ["animatelcm-f32", "animatelcm-bf16", "animatelcm-f32-int8", "animatelcm-bf16-int8", "animatelcm-f32-w8a8",
         "animatelcm-bf16-w8a8", "torch-f32", "torch-bf16", "torch-f32-compile", "torch-bf16-compile", "openvino-f32", "openvino-bf16"]


def arguments():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("program", type=Path)
    ap.add_argument("--frames", type=int, default=8)
    ap.add_argument("--width", type=int, default=256)
    ap.add_argument("--height", type=int, default=256)
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("--repeats", type=int, default=1)
    ap.add_argument("--threads", type=int, default=os.cpu_count())
    ap.add_argument("--only", default=",".join(NAMES[:-4]))
    ap.add_argument("--openvino", type=Path, help="the folder of converted models")
    ap.add_argument("--out", type=Path)
    a = ap.parse_args()
    unknown = set(a.only.split(",")) - set(NAMES)
    if unknown:
        ap.error(f"no candidate {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    if "openvino" in a.only and not a.openvino:
        ap.error("openvino wants --openvino DIR; see reference/openvino_bench.py")
    return a


def command(a, name):
    tool, dtype, *more = name.split("-")
    size = ["--frames", str(a.frames), "--width", str(a.width), "--height", str(a.height), "--steps", "1"]
    times = ["--repeats", str(a.repeats), "--warmup", "1"]
    if tool == "animatelcm":
        return [str(a.program), "bench", "--random-weights", "sd15", "--device", "cpu", "--dtype", dtype, *size, *times,
                "--no-cold-start", "--json", "--quiet", "--quantize", *(more or ["none"])]
    if tool == "openvino":
        return [sys.executable, str(HERE / "reference" / "openvino_bench.py"), "run", str(a.openvino), "--dtype", dtype, *times,
                "--frames", str(a.frames), "--vae-chunk", "4", "--threads", str(a.threads)]
    run = [sys.executable, str(HERE / "reference" / "diffusers_bench.py"), "--dtype", dtype, *size, *times,
           "--threads", str(a.threads), "--device", "cpu", "--channels-last", "--per-frame", "--vae-chunk", "4",
           "--parts", "text,unet,vae"]
    return run + (["--compile"] if more else [])


def run(a, name):
    """Seconds of steps and decodings, peak memory, processor seconds of the process, load average before it."""
    load = os.getloadavg()[0]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"RAYON_NUM_THREADS": str(a.threads), "OMP_NUM_THREADS": str(a.threads),
                                "TORCHINDUCTOR_FREEZING": "1"}
    done = subprocess.run(command(a, name), capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    out = json.loads(done.stdout[done.stdout.index("{"):])
    seconds = {"cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, "load": load}
    if name.startswith("animatelcm"):
        for part, key in (("step", "unet_step"), ("decode", "decode")):
            seconds[part] = (out[key]["seconds"]["p10"], out[key]["seconds"]["p90"])
        gflop = {"step": out["unet_step"]["gflop"], "decode": out["decode"]["gflop"]}
    else:
        for part, key in (("step", "unet_step_s"), ("decode", "vae_decode_s")):
            if key in out:
                seconds[part] = (out[key]["p10"], out[key]["p90"])
        gflop = None
    return seconds | {"peak": out["peak_memory_bytes"], "gflop": gflop, "versions": out["versions"]}


def main():
    a = arguments()
    names = a.only.split(",")
    results = {name: [] for name in names}
    for i in range(a.rounds):
        for name in names:
            result = run(a, name)
            results[name].append(result)
            spent = {part: "%.2f-%.2f" % result[part] for part in ("step", "decode") if part in result}
            print(f"round {i + 1}, {name}: {spent}, load {result['load']:.1f}", file=sys.stderr, flush=True)
    work = next((r["gflop"] for rs in results.values() for r in rs if r["gflop"]), None)
    versions = {}
    for rs in results.values():
        versions |= rs[0]["versions"]
    keep = ("animatelcm", "torch", "diffusers", "openvino")
    lines = [
        f"{a.frames} frames of {a.width}x{a.height}, {a.threads} threads, {a.rounds} rounds of {a.repeats} passes; "
        + ", ".join(f"{k} {versions[k]}" for k in keep if k in versions),
        "",
        "| | step, s | GFLOP/s | decode, s | GFLOP/s | peak, GiB | processor, s | load |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, rs in results.items():
        cells = [name]
        for part in ("step", "decode"):
            both = [r[part] for r in rs if part in r]
            if not both:
                cells += ["", ""]
                continue
            least, most = min(b[0] for b in both), max(b[1] for b in both)
            cells += [f"{least:.2f} (to {most:.2f})", f"{work[part] / least:.0f}" if work else ""]
        peak = max(r["peak"] or 0 for r in rs) / 2**30
        loads = [r["load"] for r in rs]
        cells += [f"{peak:.2f}", f"{min(r['cpu'] for r in rs):.0f}", f"{min(loads):.1f}-{max(loads):.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    text = "\n".join(lines) + "\n"
    print(text)
    if a.out:
        a.out.write_text(text)


if __name__ == "__main__":
    main()
