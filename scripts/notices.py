#!/usr/bin/env python3
"""Writes THIRD_PARTY_NOTICES.md: what a released program contains beside this project's own code, and its licences.

    python3 scripts/notices.py            writes the file
    python3 scripts/notices.py --check    fails if it is not what would be written

Needs cargo and the sources of all dependencies, which `cargo fetch --locked` downloads; nothing is compiled. Crates are
the normal dependencies of the default features on the targets below. Where a crate offers several licences the first
of PREFERRED is taken. Equal texts are printed once.
"""

import collections
import json
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "THIRD_PARTY_NOTICES.md"
TARGETS = [
    "x86_64-unknown-linux-gnu",
    "aarch64-unknown-linux-gnu",
    "aarch64-apple-darwin",
    "x86_64-pc-windows-msvc",
]
# First those whose text needs no name of an author filled in.
PREFERRED = ["Apache-2.0", "Apache-2.0 WITH LLVM-exception", "MIT", "ISC", "Zlib", "BSD-2-Clause", "BSD-3-Clause"]
# How a text is recognised; the first that fits counts.
SIGNS = [
    ("Apache-2.0", r"apache license,? version 2\.0,? january 2004"),
    ("MPL-2.0", r"^mozilla public license,? version 2\.0"),
    ("Unicode-3.0", r"unicode license v3"),
    ("CDLA-Permissive-2.0", r"community data license agreement.{1,10}permissive.{1,10}version 2\.0"),
    ("BSD-3-Clause", r"redistribution and use in source and binary forms.*neither the name"),
    ("BSD-2-Clause", r"redistribution and use in source and binary forms"),
    ("MIT", r"permission is hereby granted, free of charge, to any person obtaining a copy"),
    ("ISC", r"permission to use, copy, modify,? (and/or|and) distribute this software for any purpose"),
    ("Zlib", r"this software is provided ['‘’`]*as-is['‘’`]*, without any express or implied"),
]
# For crates that come without their text.
TEMPLATES = {
    "MIT": """MIT License

Copyright (c) {holder}

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
""",
    "BSD-2-Clause": """BSD 2-Clause License

Copyright (c) {holder}

Redistribution and use in source and binary forms, with or without modification, are permitted provided that the
following conditions are met:

1. Redistributions of source code must retain the above copyright notice, this list of conditions and the following
   disclaimer.

2. Redistributions in binary form must reproduce the above copyright notice, this list of conditions and the following
   disclaimer in the documentation and/or other materials provided with the distribution.

THIS SOFTWARE IS PROVIDED BY THE COPYRIGHT HOLDERS AND CONTRIBUTORS "AS IS" AND ANY EXPRESS OR IMPLIED WARRANTIES,
INCLUDING, BUT NOT LIMITED TO, THE IMPLIED WARRANTIES OF MERCHANTABILITY AND FITNESS FOR A PARTICULAR PURPOSE ARE
DISCLAIMED. IN NO EVENT SHALL THE COPYRIGHT HOLDER OR CONTRIBUTORS BE LIABLE FOR ANY DIRECT, INDIRECT, INCIDENTAL,
SPECIAL, EXEMPLARY, OR CONSEQUENTIAL DAMAGES (INCLUDING, BUT NOT LIMITED TO, PROCUREMENT OF SUBSTITUTE GOODS OR
SERVICES; LOSS OF USE, DATA, OR PROFITS; OR BUSINESS INTERRUPTION) HOWEVER CAUSED AND ON ANY THEORY OF LIABILITY,
WHETHER IN CONTRACT, STRICT LIABILITY, OR TORT (INCLUDING NEGLIGENCE OR OTHERWISE) ARISING IN ANY WAY OUT OF THE USE OF
THIS SOFTWARE, EVEN IF ADVISED OF THE POSSIBILITY OF SUCH DAMAGE.
""",
}
LICENCE_FILE = re.compile(r"(licen[cs]e|copying|copyright|unlicense)([-_. ].*)?$", re.IGNORECASE)
NOTICE_FILE = re.compile(r"notice([-_. ].*)?$", re.IGNORECASE)
NOT_SHIPPED = {"tests", "test", "examples", "benches", "fuzz", "target", "docs"}
HEAD = """# Third-party notices

`animatelcm` is licensed under either MIT or Apache-2.0, at your option ([LICENSE-MIT](LICENSE-MIT),
[LICENSE-APACHE](LICENSE-APACHE)). A compiled program also contains the work of others, which is listed here with its
licences. Published weights are not part of the program; `animatelcm models list` names their licences.

This file is written by `scripts/notices.py`. Run that again when `Cargo.lock` changes.

## H.264

MP4 files are written and read with [OpenH264](https://github.com/cisco/openh264), Copyright (c) 2013, Cisco Systems,
under the BSD 2-Clause licence below. It is compiled from source as part of this program (feature `mp4`). Cisco pays the
fees for H.264's patents only for the binary modules that Cisco itself distributes; **a program built from source comes
with no patent licence from Cisco**. Whether you need one depends on your country and on what you do; whoever
distributes or sells builds with `mp4` should find out. Without the feature (`--no-default-features` and the other
features by name) no H.264 code is in the program.

## CLIP's merges

`assets/clip/merges.txt` is the byte-pair vocabulary of OpenAI's CLIP (<https://github.com/openai/CLIP>), under MIT:

{clip}

## The small model

`assets/pocket` and `assets/readme.gif` were made by this project from nothing, without other people's data, and are
under this project's own licence.

## Rust's standard library

It is part of every Rust program, Copyright The Rust Project Developers, and under MIT or Apache-2.0.
"""


def run(*command):
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def squeezed(text):
    return " ".join(text.split())


def packages():
    """The packages that end up in the program, by name and version."""
    metadata = json.loads(run("cargo", "metadata", "--offline", "--locked", "--format-version", "1"))
    known = {(p["name"], p["version"]): p for p in metadata["packages"] if p["source"]}
    wanted = set()
    for target in TARGETS:
        tree = run("cargo", "tree", "--package", "animatelcm", "--offline", "--locked", "--edges", "normal",
                   "--target", target, "--prefix", "none", "--no-dedupe", "--format", "{p}")
        for line in tree.splitlines():
            name, version = line.split()[:2]
            wanted.add((name, version.removeprefix("v")))
    return [known[key] for key in sorted(wanted) if key in known]


def alternatives(expression):
    """An SPDX expression as a list of lists: one of each must be taken."""
    expression = re.sub(r"\s*/\s*", " OR ", expression)
    parts = re.split(r"\s+AND\s+(?![^(]*\))", expression)
    return [re.split(r"\s+OR\s+", part.strip("() ")) for part in parts]


def taken(expression):
    def rank(name):
        return PREFERRED.index(name) if name in PREFERRED else len(PREFERRED)
    return [min(names, key=rank) for names in alternatives(expression)]


def kind(text):
    text = squeezed(text).lower()
    return next((name for name, sign in SIGNS if re.search(sign, text)), None)


def files(folder, pattern):
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.is_file() and pattern.match(path.name) and not NOT_SHIPPED & set(inside.parts[:-1]):
            if path.suffix not in {".rs", ".c", ".h", ".py", ".toml"}:
                yield inside, path.read_text(encoding="utf-8", errors="replace").replace("\r\n", "\n").strip("\n")


def apache_terms(text):
    """The terms without the appendix, which says how to apply them."""
    return squeezed(text.split("END OF TERMS AND CONDITIONS")[0]).lower().replace("https:", "http:")


def main():
    apache = (ROOT / "LICENSE-APACHE").read_text(encoding="utf-8").strip("\n")
    texts = collections.OrderedDict()  # squeezed text -> (title, text, users)
    notices, rows = [], []

    def use(title, text, user):
        texts.setdefault(squeezed(text), (title, text, []))[2].append(user)

    for package in packages():
        folder = pathlib.Path(package["manifest_path"]).parent
        user = f"{package['name']} {package['version']}"
        expression = package["license"] or "see its text"
        choice = taken(expression)
        missing = set()
        found = list(files(folder, LICENCE_FILE))
        for name in choice:
            name = name.split(" WITH ")[0]
            own = [text for inside, text in found if len(inside.parts) == 1 and kind(text) == name]
            if name == "Apache-2.0":
                # The terms are the same for all; what differs is whom an appendix names.
                for text in own:
                    after = text.partition("END OF TERMS AND CONDITIONS")[2]
                    holders = re.findall(r"^\s*(Copyright (?:\(c\) )?\d{4}.*?)\s*$", after, re.MULTILINE)
                    notices.extend(f"{user}: {holder}" for holder in holders)
                same = all(apache_terms(apache) in apache_terms(text) for text in own)
                for text in [apache] if same else own:
                    use(name, text, user)
            elif own:
                for text in own:
                    use(name, text, user)
            else:
                missing.add(name)
        for name in missing:
            # A text under no known name, such as a combined one, is printed whole.
            rest = [text for inside, text in found if len(inside.parts) == 1]
            if not rest and name in TEMPLATES:
                authors = [re.sub(r"\s*<.*?>", "", author) for author in package["authors"]]
                holder = ", ".join(authors) or f"the authors of {package['name']}"
                rest = [TEMPLATES[name].format(holder=holder)]
            if not rest:
                sys.exit(f"{user}: no text of {name}")
            for text in rest:
                use(name, text, user)
        for inside, text in found:
            if len(inside.parts) > 1 and kind(text) != "Apache-2.0":
                use(kind(text) or "other", text, f"{user} ({inside.as_posix()})")
        for inside, text in files(folder, NOTICE_FILE):
            notices.append(f"{user}, {inside.as_posix()}:\n\n{quoted(text)}")
        link = f"[{package['name']}]({package['repository']})" if package["repository"] else package["name"]
        rows.append(f"| {link} | {package['version']} | {expression} | {' and '.join(choice)} |")

    clip = quoted((ROOT / "assets/clip/LICENSE").read_text(encoding="utf-8"))
    out = [HEAD.format(clip=clip), "## Crates\n"]
    out.append("Linked into the program on Linux, macOS or Windows. Their sources, also of those under MPL-2.0, are in")
    out.append("the places that the names lead to, and as crates of these versions.\n")
    out.append("| Crate | Version | Licence | Used under |\n|---|---|---|---|")
    out.extend(rows)
    if notices:
        out.append("\n## Notices that come with them\n")
        out.extend(f"- {notice}" if "\n" not in notice else f"{notice}\n" for notice in notices)
    out.append("\n## Texts\n")
    order = sorted(texts.values(), key=lambda entry: (-len(entry[2]), entry[0], entry[2]))
    for title, text, users in order:
        out.append(f"### {title}\n\nUsed by {', '.join(users)}.\n\n{quoted(text)}\n")
    result = "\n".join(out).rstrip() + "\n"

    if "--check" in sys.argv[1:]:
        if not OUTPUT.exists() or OUTPUT.read_text(encoding="utf-8") != result:
            sys.exit(f"{OUTPUT.name} is not up to date: python3 scripts/notices.py")
    else:
        OUTPUT.write_text(result, encoding="utf-8")
        print(f"{OUTPUT.name}: {len(rows)} crates, {len(texts)} texts, {len(result)} bytes")


def quoted(text):
    fence = "````" if "```" in text else "```"
    lines = "\n".join(line.rstrip() for line in text.strip("\n").splitlines())
    return f"{fence}text\n{lines}\n{fence}"


if __name__ == "__main__":
    main()
