#!/usr/bin/env python3
"""Kills `animatelcm generate` at random moments and looks at what is left.

    cargo build && tests/kill/outputs.py target/debug/animatelcm --trials 400

After each SIGKILL (or the signal that --signal names) the output must be the old one or the new one, whole. A numbered
series may be caught while its files get their names; then old and new files are never seen together, and the next run
must make it whole. The next run into the same folder must also remove whatever was left. After
SIGINT or SIGTERM, once or twice, nothing may be left at all. Exits with 1 if anything of this was not so.
"""

import argparse
import collections
import hashlib
import json
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

PROMPT = "a red star moving up on a navy background"
OUTPUTS = ["a.gif", "a.webp", "a.apng", "a.png", "a.mp4", "a.y4m", "f_%03d.png", "f_%d.png", "both.gif"]


def command(program, output, seed, frames):
    words = [program, "generate", PROMPT, "--frames", str(frames), "--steps", "1", "-W", "64", "-H", "64",
             "--seed", str(seed), "-q", "-y", "-o", output]
    if output == "both.gif":
        words += ["--tensors-out", "both.safetensors"]
    return words


def files(folder):
    """Visible files and their hashes; names of hidden entries."""
    seen, hidden = {}, []
    for path in folder.iterdir():
        if path.name.startswith("."):
            hidden.append(path.name)
        else:
            seen[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return seen, sorted(hidden)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--trials", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--signal", default="KILL", choices=["KILL", "INT", "TERM"])
    parser.add_argument("--twice", action="store_true", help="send it again after a random moment")
    parser.add_argument("--late", action="store_true", help="only in the last part of a run, where files are written")
    options = parser.parse_args()
    program = str(pathlib.Path(options.program).resolve())
    number = getattr(signal, "SIG" + options.signal)
    dice = random.Random(options.seed)

    with tempfile.TemporaryDirectory() as room:
        room = pathlib.Path(room)
        # The old clip is longer than the new one, so that frames are left over.
        old, new, seconds = {}, {}, {}
        for output in OUTPUTS:
            for known, seed, frames in [(old, 1, 6), (new, 2, 4)]:
                folder = room / f"{'old' if known is old else 'new'}-{output.replace('%', '')}"
                folder.mkdir()
                start = time.time()
                subprocess.run(command(program, output, seed, frames), cwd=folder, check=True, stdout=subprocess.DEVNULL)
                seconds[output] = time.time() - start
                known[output] = (folder, files(folder)[0])

        count = collections.Counter()
        wrong = []
        for trial in range(options.trials):
            output = OUTPUTS[trial % len(OUTPUTS)]
            folder = room / "trial"
            shutil.rmtree(folder, ignore_errors=True)
            had_old = dice.random() < 0.7
            if had_old:
                shutil.copytree(old[output][0], folder)
            else:
                folder.mkdir()
            before = old[output][1] if had_old else {}
            after = new[output][1]
            process = subprocess.Popen(command(program, output, 2, 4), cwd=folder, stdout=subprocess.DEVNULL,
                                       stderr=subprocess.PIPE)
            least = 0.6 if options.late else 0.0
            time.sleep(seconds[output] * dice.uniform(least, 1.15))
            process.send_signal(number)
            if options.twice:
                time.sleep(dice.choice([0.0, dice.uniform(0, 0.05)]))
                process.send_signal(number)
            error = process.communicate()[1].decode()
            seen, hidden = files(folder)
            count["killed" if process.returncode in (-number, 130) else "was done before"] += 1
            count["left something hidden"] += bool(hidden)

            def complain(what, **more):
                wrong.append({"trial": trial, "output": output, "what": what, "had_old": had_old,
                              "code": process.returncode, "error": error[-200:], **more})

            if process.returncode not in (0, 130, -number):
                complain("exit code")
            if options.signal != "KILL" and hidden:
                complain("left behind after a signal", hidden=hidden)

            def state(seen):
                # Two files get their names one after the other.
                names = set(before) | set(after)
                if seen == after:
                    return "new"
                if seen == before:
                    return "old"
                if output == "both.gif" and all(seen.get(n) in (before.get(n), after.get(n)) for n in names):
                    return "each of two whole"
                return None

            now = state(seen)
            if now is None and "%" in output:
                is_new = [after.get(name) == value for name, value in seen.items()]
                is_old = [before.get(name) == value for name, value in seen.items()]
                if all(is_new) or all(is_old):
                    now = "series caught in between"
            if now is None:
                complain("neither old nor new", seen=sorted(seen), hidden=hidden)
            count[f"seen: {now}"] += 1

            # Another run in the folder, of whatever kind, puts things right; it is not about the same output.
            other = [program, "generate", PROMPT, "--frames", "1", "--steps", "1", "-q", "-o", "other.y4m"]
            rerun = subprocess.run(other, cwd=folder, capture_output=True, text=True)
            (folder / "other.y4m").unlink(missing_ok=True)
            seen, hidden = files(folder)
            if hidden:
                complain("the next run left something", hidden=hidden, next=rerun.stderr[-200:])
            settled = state(seen)
            if settled is None:
                complain("not whole after the next run", seen=sorted(seen), next=rerun.stderr[-200:])
            if trial % 10 == 0:
                last = subprocess.run(command(program, output, 2, 4), cwd=folder, capture_output=True, text=True)
                if last.returncode or files(folder) != (after, []):
                    complain("a whole run later", next=last.stderr[-200:], code_then=last.returncode)

    print(json.dumps({"trials": options.trials, "signal": options.signal, "twice": options.twice,
                      "seconds": round(max(seconds.values()), 2), "counts": dict(sorted(count.items())),
                      "wrong": len(wrong), "first": wrong[:10]}, indent=1))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
