#!/usr/bin/env python3
"""Writes CLIP's merges to assets/clip and the ids of hard strings to ../tokenizer.

Pinned: transformers 5.23.0, tokenizers 0.23.3 (`requirements.txt`); merges from open_clip_torch 3.3.0
(`pip download --no-deps open_clip_torch==3.3.0`; the file is the one of OpenAI's CLIP, MIT licence).

    HF_HUB_OFFLINE=1 python tokenizer.py [--merges bpe_simple_vocab_16e6.txt.gz]

Without --merges the file in assets/clip is used as it is.

../tokenizer/clip.json   {"cases": [{"text" | "repeat" + "times", "ids": 77 numbers, "length": ids without truncation}]}
../tiny/extras/tokenizer the tiny tokenizer as transformers 5 saves it: one tokenizer.json
"""
import argparse
import gzip
import json
import os
import shutil
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
from make_goldens import byte_alphabet
from transformers import CLIPTokenizer

HERE = os.path.dirname(os.path.abspath(__file__))
GOLDENS = os.path.dirname(HERE)
ASSET = os.path.normpath(f"{GOLDENS}/../../assets/clip/merges.txt")
MERGES = 49152 - 256 - 2  # what the 49408 entries of CLIP's vocabulary leave beside 2 * 256 bytes and 2 specials

TEXTS = [
    "",
    " ",
    "a",
    "A corgi walking in the park, 4k!!",
    "masterpiece, best quality, 1girl, face, white background,",
    "bad quality, worse quality, low resolution",
    "MiXeD CaSe PROMPT with ALLCAPS",
    "  leading, trailing and   inner   spaces  ",
    "tabs\tand\nnew\r\nlines\x0b\x0cand more",
    "it's we're I'm you've she'll he'd don't CAN'T 'quoted' o'clock '' '",
    "numbers 0 7 42 1234567890 3.14 1e-5 10,000 \u00bd \u00b2 \u2167 \u0663 \u4e94",
    "caf\u00e9 na\u00efve \u00c9t\u00e9 stra\u00dfe \u00c5ngstr\u00f6m",  # precomposed
    "cafe\u0301 nai\u0308ve E\u0301te\u0301 A\u030angstro\u0308m",  # decomposed
    "\u0130stanbul I\u0131 \u03a3\u03af\u03c3\u03c5\u03c6\u03bf\u03c2 \ufb01ne \u212bngstr\u00f6m",
    "\U0001f600\U0001f436 a dog \U0001f3c3\u200d\u2640\ufe0f \U0001f1e9\U0001f1ea \U0001f44d\U0001f3fd",
    "\u4e2d\u6587 \u65e5\u672c\u8a9e \u30ab\u30bf\u30ab\u30ca \ud55c\uad6d\uc5b4 \u1112\u1161\u11ab",
    "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd \u200frtl\u200e mark",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 \u0baa\u0bb4",
    "zero\u200bwidth zero\u200cnon\u200djoiner \ufeffbom soft\u00adhyphen word\u2060joiner",
    "nbsp\u00a0here thin\u2009space ideographic\u3000space line\u2028sep para\u2029sep nel\u0085end",
    "control\x00nul \x01\x02\x1b[31mred\x7fdel",
    "&amp; &lt;b&gt; &#39; &quot;quoted&quot; &nbsp; &eacute; &copy 5 &lt 6",
    "<b>bold</b> <|startoftext|> inside <|endoftext|> after",
    "walking<|endoftext|>park",
    "<|ENDOFTEXT|> <|endoftext| > <|endoftext",
    "<|startoftext|>",
    "!!! ??? ... ,,, ;;; --- ___ *** ((())) [[[]]] {{{}}}",
    "hello!!!world???yes...no",
    "(masterpiece:1.2), [bad hands], <lora:style:0.8>, BREAK, {a|b}, __wildcard__",
    "snake_case kebab-case camelCase path/to/file.ext a.b.c user@example.com #tag $5 50% ~x~ ^y^ `z` \\n \"q\"",
    "e=mc\u00b2 \u2260 \u221e \u2192 \u2264 \u20ac100 \u00a35 \u00a9\u00ae\u2122 \u2026 \u2014 \u2013 \u201cquotes\u201d \u2018single\u2019",
    "supercalifragilisticexpialidocious antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    "a b c d e f g h i j k l m n o p q r s t u v w x y z " * 3,  # 78 letters: cut
    "word " * 75,  # 75 words and both specials: 77 exactly
    "word " * 76,  # one too many
    "\U0001f600" * 80,
    "x" * 300,
    "1" * 200,
    "'s" * 100,
    "\u00e9" * 150,
    "\ufffd \ud7ff \U0010ffff \U000e0001",
    "a\u0300\u0301\u0302\u0303\u0304 zalgo",
    "\u1e9e \u01c4 \u01c5 \u0149 \u0390 \u1f88",  # odd lower cases
    "1girl's 2nd 3D 4K 8k HDR10 mp4 h264",
    "A photo of 's'tart 'll 've'",
]
REPEATS = [("a corgi ", 12500), ("x", 100000), ("\U0001f600", 25000), (" ", 100000), ("!", 100000), ("<|endoftext|>", 7000), ("1", 100000)]


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--merges", help="bpe_simple_vocab_16e6.txt.gz")
    args = ap.parse_args()
    if args.merges:
        lines = gzip.open(args.merges, "rt", encoding="utf8").read().split("\n")
        os.makedirs(os.path.dirname(ASSET), exist_ok=True)
        with open(ASSET, "w", encoding="utf8", newline="\n") as f:
            f.write("#version: 0.2\n" + "".join(f"{line}\n" for line in lines[1 : 1 + MERGES]))
    merges = [tuple(line.split(" ")) for line in open(ASSET, encoding="utf8").read().split("\n")[1:] if line]
    assert len(merges) == MERGES and all(len(m) == 2 for m in merges)
    letters = byte_alphabet()
    vocab = letters + [c + "</w>" for c in letters] + ["".join(m) for m in merges] + ["<|startoftext|>", "<|endoftext|>"]
    ids = {t: i for i, t in enumerate(vocab)}
    assert len(ids) == len(vocab) == 49408 and ids["<|endoftext|>"] == 49407

    folder = tempfile.mkdtemp(prefix="clip-")
    json.dump(ids, open(f"{folder}/vocab.json", "w", encoding="utf8"), ensure_ascii=False)
    shutil.copy(ASSET, f"{folder}/merges.txt")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    json.dump({"model_max_length": 77, "tokenizer_class": "CLIPTokenizer", **special}, open(f"{folder}/tokenizer_config.json", "w"))
    json.dump(special, open(f"{folder}/special_tokens_map.json", "w"))
    tok = CLIPTokenizer.from_pretrained(folder)
    shutil.rmtree(folder)
    # known from the CLIP repository: clip.tokenize("a diagram") = 49406, 320, 22697, 49407
    assert tok("a diagram").input_ids == [49406, 320, 22697, 49407]

    cases = []
    for case in [{"text": t} for t in TEXTS] + [{"repeat": t, "times": n} for t, n in REPEATS]:
        text = case.get("text", case.get("repeat", "") * case.get("times", 1))
        case["ids"] = tok(text, padding="max_length", max_length=77, truncation=True).input_ids
        case["length"] = len(tok(text).input_ids)
        assert len(case["ids"]) == 77
        cases.append(case)
    os.makedirs(f"{GOLDENS}/tokenizer", exist_ok=True)
    with open(f"{GOLDENS}/tokenizer/clip.json", "w") as f:  # ASCII: escapes survive every editor
        rows = ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases)
        f.write('{"bos":49406,"eos":49407,"pad":49407,"cases":[\n' + rows + "\n]}\n")

    tiny = CLIPTokenizer.from_pretrained(f"{GOLDENS}/tiny/model/tokenizer")
    tiny.save_pretrained(f"{GOLDENS}/tiny/extras/tokenizer")


if __name__ == "__main__":
    main()
