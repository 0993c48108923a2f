#!/usr/bin/env python3
"""Kills `animatelcm generate` before each call that changes a file (Linux, strace), for every kind of output.

    output_calls.py PROGRAM [SECONDS]

Checks as tests/kill/outputs.py does: after the kill the output is the old one or the new one, whole (a series may be
caught while its files get their names, but old and new are never seen together); the next run of any kind in the folder
removes what was left and completes a series; a rerun gives the new output.
"""

import collections
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from outputs import OUTPUTS, PROMPT, command, files  # noqa: E402

CALLS = ("openat,write,rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,rmdir,mkdir,mkdirat,"
         "ftruncate,fsync,fdatasync,flock,lseek,chmod,fchmod")


def main():
    program, limit = str(pathlib.Path(sys.argv[1]).resolve()), float(sys.argv[2]) if len(sys.argv) > 2 else 600
    begin, count, wrong, cases = time.time(), collections.Counter(), [], {}
    with tempfile.TemporaryDirectory() as room:
        room = pathlib.Path(room)
        trace = room / "trace"
        for output in OUTPUTS:
            old, folder = room / "old", room / "trial"
            shutil.rmtree(old, ignore_errors=True)
            old.mkdir()
            subprocess.run(command(program, output, 1, 6), cwd=old, check=True, stdout=subprocess.DEVNULL)
            before_all = files(old)[0]
            for had_old in True, False:
                words = [word for word in command(program, output, 2, 4) if had_old or word != "-y"]

                def prepare():
                    shutil.rmtree(folder, ignore_errors=True)
                    shutil.copytree(old, folder) if had_old else folder.mkdir()

                prepare()
                subprocess.run(["strace", "-qq", "-o", str(trace), "-e", f"trace={CALLS}", *words], cwd=folder, check=True,
                               stdout=subprocess.DEVNULL)
                after, before = files(folder)[0], before_all if had_old else {}
                seen, points, drafting = collections.Counter(), [], False
                for line in trace.read_text().splitlines():
                    name, has, rest = line.partition("(")
                    if not has or not name.isidentifier():
                        continue
                    seen[name] += 1
                    drafting |= ".animatelcm-" in rest
                    # Not the many files of the system and of the model.
                    if drafting and (name != "openat" or ' "/' not in rest or str(folder) in rest):
                        points.append((name, seen[name]))
                cases[f"{output}{' over an old one' * had_old}"] = len(points)
                for number, (name, when) in enumerate(points):
                    if time.time() - begin > limit:
                        count["left out for want of time"] += 1
                        continue
                    prepare()
                    process = subprocess.run(["strace", "-qq", "-o", str(trace), "-e", f"trace={CALLS}", "-e",
                                              f"inject={name}:signal=KILL:when={when}", *words], cwd=folder,
                                             capture_output=True, text=True)
                    call = ([line for line in trace.read_text().splitlines() if "(" in line] or [""])[-1][:120]
                    count["kills" if process.returncode == -9 else "was done before"] += 1
                    got, hidden = files(folder)
                    count["left something hidden"] += bool(hidden)

                    def complain(what, **more):
                        wrong.append({"output": output, "had_old": had_old, "before": f"{name} {when}", "call": call,
                                      "what": what, "code": process.returncode, **more})

                    def whole(got):
                        if output == "both.gif":
                            return all(got.get(n) in (before.get(n), after.get(n)) for n in {*before, *after})
                        return got in (before, after)

                    if not whole(got):
                        one = all(after.get(n) == v for n, v in got.items()) or all(before.get(n) == v for n, v in got.items())
                        if "%" in output and one:
                            count["series caught in between"] += 1
                        else:
                            complain("neither old nor new", got=sorted(got), hidden=hidden)
                    other = [program, "generate", PROMPT, "--frames", "1", "--steps", "1", "-W", "64", "-H", "64", "-q", "-o",
                             "other.y4m"]
                    rerun = subprocess.run(other, cwd=folder, capture_output=True, text=True)
                    (folder / "other.y4m").unlink(missing_ok=True)
                    got, left = files(folder)
                    if rerun.returncode or left or not whole(got):
                        complain("the next run", code_then=rerun.returncode, left=left, got=sorted(got),
                                 error=rerun.stderr[-200:])
                    count["litter cleaned"] += bool(hidden) and not left
                    if number % 4 == 0:
                        last = subprocess.run(command(program, output, 2, 4), cwd=folder, capture_output=True, text=True)
                        count["reruns to the end"] += 1
                        if last.returncode or files(folder) != (after, []):
                            complain("the rerun", code_then=last.returncode, error=last.stderr[-200:])
    print(json.dumps({"seconds": round(time.time() - begin), "calls": cases, "counts": dict(sorted(count.items())),
                      "wrong": len(wrong), "first": wrong[:10]}, indent=1))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
