#!/usr/bin/env python3
"""Kills `animatelcm models pull` at random moments and looks at what is left.

    cargo build && tests/kill/pulls.py target/debug/animatelcm --trials 300
    tests/kill/pulls.py target/debug/animatelcm --calls    # Linux, with strace: before each call that changes a file

A small hub on loopback serves the files, quickly or in slow pieces, now and then with cut connections or without
ranges. A trial begins with an empty cache, a whole one, one with a damaged file, or one that holds another model of the
same repository. After each SIGKILL everything under a final name (`blobs`, `snapshots`, `refs`, the record) must be
whole, a partial file must be the beginning of the true one, `models path` and `models verify` must take nothing that is
not whole, and the other model must still be there. A third of the trials kill the next pull, too. The last pull of each
trial must succeed and leave the same files as one that was never killed, and nothing beside them but locks. Exits with
1 if anything of this was not so.
"""

import argparse
import collections
import hashlib
import http.server
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

COMMIT = "c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00"
# Calls that change what is on the disk, or make it last.
CALLS = ("openat,write,rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,rmdir,mkdir,mkdirat,"
         "ftruncate,fsync,fdatasync,flock")
RECORD = "animatelcm.json"


def sha256(data):
    return hashlib.sha256(data).hexdigest()


class File:
    """A file of a repository. Large ones are redirected to and named by their sha256, as on the real hub."""

    def __init__(self, path, size, large=False, known=True):
        self.path, self.large, self.known = path, large, known
        self.data = random.Random(path).randbytes(size)
        self.etag = sha256(self.data) if large else sha256(self.data)[:40]


class Model:
    """A manifest. The files of all models of a repository are in it."""

    def __init__(self, name, repo, files, revision="main", mirrors=()):
        self.name, self.repo, self.files, self.revision, self.mirrors = name, repo, files, revision, list(mirrors)

    def home(self):
        """The repository that really has it."""
        return self.mirrors[0] if self.mirrors else self.repo

    def toml(self):
        lines = [f'name = "{self.name}"', 'kind = "lora"', 'title = "t"', f'repo = "{self.repo}"',
                 f'revision = "{self.revision}"', f"mirrors = {json.dumps(self.mirrors)}",
                 "[licence]", 'name = "MIT"', 'url = "https://example.org"']
        for file in self.files:
            lines += ["[[files]]", f'path = "{file.path}"']
            if file.known:
                lines += [f"size = {len(file.data)}", f'sha256 = "{sha256(file.data)}"']
            else:
                lines.append('sha256 = "recorded-at-first-pull"')
        return "\n".join(lines) + "\n"


def models(big):
    return {model.name: model for model in [
        Model("one", "owner/one", [File("one.safetensors", big, large=True)], revision=COMMIT),
        Model("many", "owner/many", [
            File("model_index.json", 541),
            File("unet/weights.safetensors", big, large=True),
            File("unet/config.json", 700, known=False),
            File("vae/deep/weights.bin", big // 2, large=True, known=False),
            File("tokenizer/merges.txt", big // 8),
            File("tokenizer/empty.txt", 0),
        ]),
        Model("beside", "owner/many", [File("beside.safetensors", big // 4, large=True), File("beside.json", 90)]),
        Model("moved", "owner/gone", [File("moved.bin", big // 2, large=True)], mirrors=["owner/new"]),
    ]}


class Hub(http.server.ThreadingHTTPServer):
    """Serves models. `finished` counts the transfers that were sent to their end since `begin`."""

    daemon_threads = True

    def __init__(self, known):
        super().__init__(("127.0.0.1", 0), Answer)
        self.files = {f"{model.home()}/{file.path}": file for model in known.values() for file in model.files}
        self.begin(0, "plain")
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def begin(self, pause, mood):
        self.pause, self.mood, self.finished, self.run = pause, mood, 0, object()

    def handle_error(self, request, client_address):
        pass  # A client that goes away in the middle is what this is about.


class Answer(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def answer(self, status, headers, length=0):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def do_GET(self):
        hub, path = self.server, self.path.lstrip("/")
        run, pause, mood = hub.run, hub.pause, hub.mood
        elsewhere = path.startswith("cdn/")
        name = path[4:] if elsewhere else "/".join(p for i, p in enumerate(path.split("/")) if i not in (2, 3))
        file = hub.files.get(name)
        if file is None:
            return self.answer(404, {})
        facts = {"ETag": f'"{file.etag}"', "X-Repo-Commit": COMMIT}
        size = len(file.data)
        if file.large and not elsewhere:
            return self.answer(302, {"Location": f"http://{self.headers['Host']}/cdn/{name}", "X-Repo-Commit": COMMIT,
                                     "X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": size, "ETag": '"pointer"'})
        first, last = self.headers["Range"].removeprefix("bytes=").split("-")
        first, last = int(first), int(last or size - 1)
        transfers = last > 0 or size == 1
        if first >= size:
            return self.answer(416, {**facts, "Content-Range": f"bytes */{size}"})
        if mood == "no ranges" and transfers:
            first = 0
            self.answer(200, facts, size)
        else:
            facts["Content-Range"] = f"bytes {first}-{last}/{size}"
            self.answer(206, facts, last - first + 1)
        end = last + 1
        if mood == "cuts" and transfers and random.random() < 0.5:
            end = random.randint(first, last)
        for start in range(first, end, 16384):
            self.wfile.write(file.data[start:min(start + 16384, end)])
            if transfers and pause:
                time.sleep(pause)
        if transfers and end == last + 1 and run is hub.run:
            hub.finished += 1


class Room:
    """The program, the hub, and a cache that they work on."""

    def __init__(self, program, folder, big):
        self.program, self.folder, self.cache = program, folder, folder / "cache"
        self.models = models(big)
        self.hub = Hub(self.models)
        self.by_etag = {file.etag: file for file in self.hub.files.values()}
        for model in self.models.values():
            (folder / f"{model.name}.toml").write_text(model.toml())
        self.environment = {**os.environ, "HF_HOME": str(self.cache), "HF_TOKEN": "",
                            "HF_ENDPOINT": f"http://127.0.0.1:{self.hub.server_port}"}
        for name in ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY",
                     "ALL_PROXY"]:
            self.environment.pop(name, None)

    def command(self, verb, names):
        return [self.program, "models", verb, "-q", *(f"{name}.toml" for name in names)]

    def run(self, verb, names):
        return subprocess.run(self.command(verb, names), cwd=self.folder, env=self.environment, capture_output=True,
                              text=True)

    def start(self, names, before=()):
        return subprocess.Popen([*before, *self.command("pull", names)], cwd=self.folder, env=self.environment,
                                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def fill(self, names):
        """Empties the cache and pulls models without trouble. Returns the seconds of that."""
        shutil.rmtree(self.cache, ignore_errors=True)
        self.cache.mkdir()
        start = time.time()
        if names and self.run("pull", names).returncode:
            raise SystemExit(f"even an undisturbed pull of {names} fails: {self.run('pull', names).stderr}")
        return time.time() - start

    def tree(self):
        """What is in the cache, but for locks: links by target, files by bytes, records by content."""
        found = {}
        for path in sorted(self.cache.rglob("*")):
            name = str(path.relative_to(self.cache))
            if path.is_symlink():
                found[name] = "-> " + os.readlink(path)
            elif path.name == RECORD:
                found[name] = json.loads(path.read_bytes())
            elif path.is_file() and path.suffix != ".lock":
                found[name] = path.read_bytes()
        return found

    def look(self, damaged):
        """What is wrong under final names, and the kinds of things beside them. `damaged` was so from the beginning."""
        wrong, litter = [], collections.Counter()
        for path in sorted(self.cache.rglob("*")):
            name = path.relative_to(self.cache).as_posix()
            parts = name.split("/")  # hub/models--owner--name/KIND/...
            kind, rest = (parts[2], parts[3:]) if len(parts) > 2 else ("", [])
            if path.is_dir() and not path.is_symlink():
                continue
            repo = parts[1].removeprefix("models--").replace("--", "/") if len(parts) > 2 else ""
            try:
                data = path.read_bytes()
            except OSError as error:
                wrong.append(f"{name}: {error}")
                continue
            if path.suffix == ".lock":
                litter["lock"] += 1
            elif kind in (RECORD + ".part", "animatelcm.ref.part"):
                litter["record.part"] += 1
            elif kind == RECORD:
                try:
                    for key, record in json.loads(data)["files"].items():
                        true = self.hub.files[f"{repo}/{key.partition('/')[2]}"].data
                        if record != {"size": len(true), "sha256": sha256(true)}:
                            wrong.append(f"{name}: {key} is {record}")
                except (ValueError, KeyError) as error:
                    wrong.append(f"{name}: {len(data)} bytes, {error!r}")
            elif kind == "refs":
                if data != COMMIT.encode():
                    wrong.append(f"{name}: {data!r}")
            elif kind == "blobs" and path.suffix == ".part":
                litter["blob.part"] += 1
                if not self.by_etag[path.stem].data.startswith(data):
                    wrong.append(f"{name}: not the beginning of the file")
            elif kind in ("blobs", "snapshots"):
                file = self.by_etag.get(rest[0]) if kind == "blobs" else self.hub.files.get(
                    f"{repo}/{'/'.join(rest[1:])}")
                if file is None:
                    wrong.append(f"{name}: what is this?")
                elif data not in (file.data, damaged):
                    wrong.append(f"{name}: {len(data)} bytes of {len(file.data)}")
            else:
                wrong.append(f"{name}: what is this?")
        return wrong, litter


class Campaign:
    def __init__(self, room, dice):
        self.room, self.dice = room, dice
        self.count, self.wrong = collections.Counter(), []
        self.ends = {}

    def complain(self, what, **more):
        self.wrong.append({"what": what, **self.now, **more})

    def end(self, names):
        """The cache after undisturbed pulls of models, and the seconds of these and of a check of all files."""
        key = tuple(sorted(set(names)))
        if key not in self.ends:
            self.room.hub.begin(0, "plain")
            seconds = self.room.fill(key)
            kept = self.room.folder / f"kept-{'-'.join(key)}"
            shutil.copytree(self.room.cache, kept, symlinks=True)
            start = time.time()
            self.room.run("pull", key)
            self.ends[key] = (kept, self.room.tree(), seconds, time.time() - start)
        return self.ends[key]

    def prepare(self, names, state):
        """Sets up the cache. Returns the models that are whole in it and the bytes of a damaged file."""
        whole = {"empty": [], "whole": names, "damaged": names, "beside": ["beside"]}[state]
        kept = self.end(whole)[0] if whole else None
        shutil.rmtree(self.room.cache, ignore_errors=True)
        if kept:
            shutil.copytree(kept, self.room.cache, symlinks=True)
        else:
            self.room.cache.mkdir()
        if state != "damaged":
            return whole, None
        model = self.room.models[self.dice.choice(names)]
        file = self.dice.choice([file for file in model.files if file.data])
        blob = self.room.cache / "hub" / f"models--{model.home().replace('/', '--')}" / "blobs" / file.etag
        damaged = bytearray(file.data)
        damaged[self.dice.randrange(len(damaged))] ^= 1
        blob.write_bytes(damaged)
        return [name for name in names if name != model.name], bytes(damaged)

    def inspect(self, names, whole, damaged):
        wrong, litter = self.room.look(damaged)
        if wrong:
            self.complain("under final names", wrong=wrong)
        for kind in litter:
            self.count[f"left {kind}"] += 1
        for name in sorted({*names, *whole}):
            path, verify = self.room.run("path", [name]), self.room.run("verify", [name])
            model = self.room.models[name]
            if path.returncode not in (0, 3) or verify.returncode not in (0, 3, *([5] if damaged else [])):
                self.complain("exit code", model=name, path=path.returncode, verify=verify.returncode,
                              error=(path.stderr + verify.stderr)[-300:])
            if name in whole and (path.returncode or verify.returncode):
                self.complain("it was whole before", model=name, error=path.stderr + verify.stderr)
            if (path.returncode == 3) != (verify.returncode == 3):
                self.complain("path and verify do not agree", model=name, path=path.stderr, verify=verify.stderr)
            if path.returncode:
                self.count["seen: not yet"] += 1
                continue
            place = pathlib.Path(path.stdout.strip())
            place = place.parent if len(model.files) == 1 else place
            is_true = all((place / file.path).read_bytes() == file.data for file in model.files)
            self.count["seen: whole" if is_true else "seen: damaged as before"] += 1
            if is_true != (verify.returncode == 0) or not is_true and not damaged:
                self.complain("accepted", model=name, verify=verify.stdout, code=verify.returncode)

    def finish(self, names, whole, damaged, left_before):
        """The last pull."""
        self.room.hub.begin(0, "plain")
        last = self.room.run("pull", names)
        wrong, litter = self.room.look(None)
        if last.returncode or wrong:
            self.complain("the last pull", code=last.returncode, error=last.stderr[-300:], wrong=wrong)
        if set(litter) - {"lock"}:
            self.complain("the last pull left something", litter=dict(litter))
        elif left_before:
            self.count["litter cleaned"] += 1
        verify = self.room.run("verify", names)
        if verify.returncode or verify.stdout.count("ok ") != sum(len(self.room.models[n].files) for n in names):
            self.complain("the last verify", code=verify.returncode, out=verify.stdout + verify.stderr)
        got, kept = self.room.tree(), self.room.cache.with_name("cache-of-this-trial")
        # Making the tree to compare with may need the cache.
        self.room.cache.rename(kept)
        expected = self.end([*names, *whole, *(["beside"] if self.now["state"] == "beside" else [])])[1]
        shutil.rmtree(self.room.cache, ignore_errors=True)
        kept.rename(self.room.cache)
        differing = sorted(name for name in {*got, *expected} if got.get(name) != expected.get(name))
        if differing:
            self.complain("not the cache of an undisturbed pull", differing=differing)

    def left(self):
        return any(path.name.endswith(".part") for path in self.room.cache.rglob("*.part"))

    def at_random(self, trial):
        dice, room = self.dice, self.room
        names = dice.choice([["one"], ["many"], ["many", "one"], ["moved"], ["beside", "moved"]])
        state = dice.choice(["empty", "empty", "empty", "whole", "damaged", "beside"])
        self.now = {"trial": trial, "names": names, "state": state}
        seconds, check = self.end(names)[2:]
        transfers = sum(len([file for file in room.models[name].files if file.data]) for name in names)
        pieces = sum(len(file.data) // 16384 + 1 for name in names for file in room.models[name].files)
        whole, damaged = self.prepare(names, state)
        left = False
        for _ in range(dice.choice([1, 1, 2, 3])):
            pause, mood = dice.choice([0, 0.002, 0.006]), dice.choice(["plain", "plain", "cuts", "no ranges"])
            length = check if state == "whole" else seconds + pause * pieces
            length = 1.5 * check if state == "damaged" else length
            # Half of the kills fall where a file gets its names: just after its last byte was sent.
            aimed = dice.random() < 0.5 and state in ("empty", "beside")
            moment, wait = dice.randint(1, transfers), dice.uniform(0, 0.03) if aimed else dice.uniform(0, length)
            self.now |= {"pause": pause, "mood": mood, "after": [moment if aimed else 0, round(wait, 4)]}
            room.hub.begin(pause, mood)
            process = room.start(names)
            while aimed and room.hub.finished < moment and process.poll() is None:
                time.sleep(0.0005)
            time.sleep(wait)
            process.kill()
            self.settle(process, process.communicate(), names, whole, damaged)
            left |= self.left()
        self.finish(names, whole, damaged, left)

    def settle(self, process, said, names, whole, damaged):
        self.now["code"] = process.returncode
        self.count["kills" if process.returncode == -signal.SIGKILL else "was done before"] += 1
        if process.returncode not in (0, -signal.SIGKILL):
            self.complain("exit code of the pull", error=said[1].decode()[-300:])
        self.inspect(names, whole, damaged)

    def traced(self, names, state, more):
        """A pull under strace, which puts what it sees into the file `trace`."""
        whole, damaged = self.prepare(names, state)
        self.room.hub.begin(0, "plain")
        words = ["strace", "-qq", "-o", "trace", *more]
        return self.room.start(names, words), whole, damaged

    def calls(self, names, state, follow):
        """The calls of an undisturbed pull that are worth a kill: a name and which of its kind in its thread."""
        process = self.traced(names, state, [*follow, "-e", f"trace={CALLS}"])[0]
        if process.wait():
            raise SystemExit(f"even an undisturbed pull under strace fails: {process.stderr.read()}")
        seen, found = collections.Counter(), []
        main = None
        for line in (self.room.folder / "trace").read_text().splitlines():
            thread, line = line.split(maxsplit=1) if follow else (None, line)
            main = main or thread
            name, has_name, rest = line.partition("(")
            if not has_name or not name.isidentifier():
                continue
            seen[thread, name] += 1
            number = seen[thread, name]
            # Not the libraries; of the record's many small pieces a few.
            if name == "openat" and str(self.room.cache) not in rest or follow and thread == main:
                continue
            if name == "write" and int(rest.rpartition("= ")[2]) < 30 and number % 9:
                continue
            if (name, number) not in found:
                found.append((name, number))
        return found

    def before_each_call(self, names, state):
        """Kills a pull before each of its calls: those of its first thread, then those of the threads that fetch."""
        for follow in [], ["-f"]:
            for name, number in self.calls(names, state, follow):
                before = f"{name} {number}{' of any thread' * len(follow)}"
                self.now = {"names": names, "state": state, "before": before}
                process, whole, damaged = self.traced(names, state, [
                    *follow, "-e", f"trace={CALLS}", "-e", f"inject={name}:signal=KILL:when={number}"])
                error = process.communicate()
                lines = [line for line in (self.room.folder / "trace").read_text().splitlines() if "(" in line]
                self.now["call"] = lines[-1].replace(str(self.room.cache), "")[:160] if lines else ""
                self.settle(process, error, names, whole, damaged)
                self.finish(names, whole, damaged, self.left())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--calls", action="store_true", help="not at random: before each call that changes a file")
    options = parser.parse_args()
    program = str(pathlib.Path(options.program).resolve())
    random.seed(options.seed)
    start = time.time()

    with tempfile.TemporaryDirectory() as folder:
        # Few pieces where calls are counted.
        room = Room(program, pathlib.Path(folder), 30_000 if options.calls else 1_500_000)
        campaign = Campaign(room, random.Random(options.seed))
        if options.calls:
            for names, state in [(["one"], "empty"), (["many"], "beside"), (["many"], "damaged"),
                                 (["moved"], "empty"), (["many", "one"], "whole")]:
                campaign.before_each_call(names, state)
        else:
            for trial in range(options.trials):
                campaign.at_random(trial)
        room.hub.shutdown()

    kinds = collections.Counter(fault["what"] for fault in campaign.wrong)
    print(json.dumps({"trials": None if options.calls else options.trials, "seed": options.seed,
                      "seconds": round(time.time() - start), "counts": dict(sorted(campaign.count.items())),
                      "wrong": len(campaign.wrong), "kinds": dict(kinds), "first": campaign.wrong[:10]}, indent=1))
    return 1 if campaign.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
