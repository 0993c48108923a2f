#!/usr/bin/env python3
"""Writes ../text: prompts with weights, breaks and embeddings, encoded by the tiny text encoder.

Pinned: torch 2.15.0, transformers 5.23.0 (`requirements.txt`).

    HF_HUB_OFFLINE=1 python words.py

The prompt language is that of AUTOMATIC1111's web UI; `read` and `fill` below implement it from its description, not
from its code: letters carry the product of the brackets around them, equal neighbours are joined, chunks have 75
tokens, and the words after a comma at most 20 tokens back move on. States are multiplied by the weights and scaled
to their former mean. Its documentation's examples are checked before anything is written.

../text/words.json              {"cases": [{"name", "prompt", "skip", "chunks": how many}]}
../text/words.safetensors       {name: (1, chunks*77, 12)}
../text/embeddings/*            textual inversions in every published form
../text/embeddings.json         {"cases": [{"name", "files": [[file, word or null]], "prompt"}]}
../text/embeddings.safetensors  {name: (1, 77, 12)}: states by transformers, with a larger table, of the prompt in which
                                each word of several vectors is replaced by its tokens, as diffusers does it
"""
import json
import os
import re

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTokenizer

torch.set_grad_enabled(False)
torch.set_num_threads(2)
HERE = os.path.dirname(os.path.abspath(__file__))
MODEL = f"{HERE}/../tiny/model"
OUT = f"{HERE}/../text"
WIDTH, ROOM, BACK = 12, 75, 20
BREAK = object()


# ------------------------------------------------------------------------------------------------ the language
def read(prompt):
    """[(text, weight) or BREAK]: a tree of brackets first, weights from the inside out."""
    pos = 0

    def closing_weight():
        return re.compile(r":\s*([+-]?[0-9.]+)\s*\)").match(prompt, pos)

    def group(opened):
        """Everything up to the bracket that closes `opened`, each piece with the factors met so far."""
        nonlocal pos
        pieces = []
        while pos < len(prompt):
            c = prompt[pos]
            if c == "\\":
                escaped = prompt[pos + 1 : pos + 2]
                keep = escaped if escaped and escaped in "()[]\\" else ""
                pieces.append(("lit", keep, 1.0))
                pos += 1 + len(keep)
            elif c in "([":
                pos += 1
                pieces += group(opened + [c])
            elif c == ":" and "(" in opened and closing_weight():
                assert opened[-1] == "(", "crossed brackets are not for this script"
                m = closing_weight()
                pos = m.end()
                return scale(pieces, float(m[1]))
            elif c == ")" and opened and opened[-1] == "(":
                pos += 1
                return scale(pieces, 1.1)
            elif c == "]" and opened and opened[-1] == "[":
                pos += 1
                return scale(pieces, 1 / 1.1)
            elif c in ")]:":
                assert c == ":" or {")": "(", "]": "["}[c] not in opened, "crossed brackets"
                pieces.append(("lit", c, 1.0))
                pos += 1
            else:
                end = pos
                while end < len(prompt) and prompt[end] not in "\\()[]:":
                    end += 1
                pieces.append(("words", prompt[pos:end], 1.0))
                pos = end
        return scale(pieces, {"(": 1.1, "[": 1 / 1.1}[opened[-1]]) if opened else pieces

    def scale(pieces, by):
        return [(kind, text, weight * by) for kind, text, weight in pieces]

    flat = []
    for kind, text, weight in group([]):
        bits = re.split(r"\s*\bBREAK\b\s*", text) if kind == "words" else [text]
        for i, bit in enumerate(bits):
            flat += [BREAK] * (i > 0) + [[bit, weight]]
    joined = []
    for item in flat:
        if item is not BREAK and joined and joined[-1] is not BREAK and joined[-1][1] == item[1]:
            joined[-1][0] += item[0]
        else:
            joined.append(item)
    return [item for item in joined if item is BREAK or item[0]]


def fill(items, tok):
    """Chunks of 75 (id, weight) pairs."""
    comma = tok.get_vocab()[",</w>"]
    chunks, chunk, last = [], [], None
    for item in items:
        if item is BREAK:
            chunks.append(chunk)
            chunk, last = [], None
            continue
        for i in tok(item[0], add_special_tokens=False).input_ids:
            if i == comma:
                last = len(chunk)
            elif last is not None and len(chunk) == ROOM and ROOM - last <= BACK:
                chunks.append(chunk[: last + 1])
                chunk, last = chunk[last + 1 :], None
            if len(chunk) == ROOM:
                chunks.append(chunk)
                chunk, last = [], None
            chunk.append((i, item[1]))
    return chunks + [chunk] if chunk or not chunks else chunks


def known_examples():
    assert read("an (important) word") == [["an ", 1.0], ["important", 1.1], [" word", 1.0]]
    assert read("(unbalanced") == [["unbalanced", 1.1]]
    assert read(r"\(literal\]") == [["(literal]", 1.0]]
    assert read("(unnecessary)(parens)") == [["unnecessaryparens", 1.1]]
    assert read("a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).") == [
        ["a ", 1.0], ["house", 1.5730000000000004], [" ", 1.1], ["on", 1.0], [" a ", 1.1], ["hill", 0.55],
        [", sun, ", 1.1], ["sky", 1.4641000000000006], [".", 1.1]]


# ------------------------------------------------------------------------------------------------ the encoder
def encode(model, ids, skip):
    out = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
    if not skip:
        return out.last_hidden_state
    norm = [m for n, m in model.named_modules() if n.endswith("final_layer_norm")][0]
    return norm(out.hidden_states[-(skip + 1)])


WORDS = {
    "plain": ("A corgi walking in the park, 4k!!", 0),
    "round": ("a (corgi) walking in the park", 0),
    "number": ("a (corgi:1.4) walking in the (park:0.3)", 0),
    "square": ("a [corgi] walking in [[the park]]", 0),
    "nested": ("a (((corgi:1.3)) [walking] in the (park:0.5), the, (((dog))).", 0),
    "negative": ("a corgi (in the park:-0.7)", 0),
    "zero": ("a corgi (in the park:0)", 0),
    "escapes": (r"a \(corgi\) \[walking\] (in \\ the \(park\):1.2)", 0),
    "unbalanced": ("a) corgi] 10:30 (walking [in the park", 0),
    "skip": ("a (corgi:1.4) walking [in] the park", 1),
    "break": ("a corgi BREAK (walking:1.2) in the\nBREAK\npark", 0),
    "first_break": ("BREAK a corgi", 0),
    "exact": ("corgi " * 75, 0),
    "long": ("walking " * 74 + "(in the park:1.5) a dog", 0),
    "comma": ("corgi " * 60 + ", (bad quality:1.3) the dog in the park, " + "dog " * 20 + "walking in the park", 0),
    "far_comma": ("corgi " * 40 + ", " + "dog " * 50, 0),
    "three": ("the (park:1.1), " * 60, 0),
    "empty": ("", 0),
}


def words(model, tok):
    cases, tensors = [], {}
    for name, (prompt, skip) in WORDS.items():
        states = []
        for chunk in fill(read(prompt), tok):
            pad = ROOM - len(chunk)
            ids = [tok.bos_token_id] + [i for i, _ in chunk] + [tok.eos_token_id] * (pad + 1)
            weights = torch.tensor([1.0] + [w for _, w in chunk] + [1.0] * (pad + 1), dtype=torch.float32)
            z = encode(model, ids, skip)
            before = z.double().mean()
            z = z * weights[None, :, None]
            states.append(z * (before / z.double().mean()).float())
        tensors[name] = torch.cat(states, 1).contiguous()
        cases.append({"name": name, "prompt": prompt, "skip": skip, "chunks": len(states)})
    count = {case["name"]: case["chunks"] for case in cases}
    assert (count["exact"], count["long"], count["break"], count["three"]) == (1, 2, 3, 3), count
    write("words", cases, tensors)


# ------------------------------------------------------------------------------------------------ embeddings
class Vectors:
    """Different for every word, and of the size of the table's rows."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(7)

    def __call__(self, count):
        return 0.5 * torch.randn(count, WIDTH, generator=self.generator)


def embeddings():
    folder = f"{OUT}/embeddings"
    os.makedirs(folder, exist_ok=True)
    draw = Vectors()
    v = {name: draw(count) for name, count in dict(cat=1, style=3, bad=2, toy=1, old=2, half=4, one=1, two=2).items()}
    save_file({"<cat-toy>": v["cat"][0].clone()}, f"{folder}/diffusers.safetensors")  # one vector without a count
    save_file({"emb_params": v["style"]}, f"{folder}/EasyStyle.safetensors")
    save_file({"<half>": v["half"].half()}, f"{folder}/half.safetensors")
    save_file({"<one>": v["one"], "<two>": v["two"]}, f"{folder}/words.safetensors")
    save_file({"clip_l": draw(2), "clip_g": draw(2)}, f"{folder}/sdxl.safetensors")
    save_file({"emb_params": torch.zeros(1, 1024)}, f"{folder}/sd2.safetensors")
    torch.save({"<toy>": v["toy"][0].clone()}, f"{folder}/learned_embeds.bin")
    a1111 = {"string_to_token": {"*": 265}, "name": "badstyle", "step": 99, "sd_checkpoint": None, "sd_checkpoint_name": None}
    torch.save({**a1111, "string_to_param": {"*": v["bad"]}}, f"{folder}/bad-style-v2.pt")
    old = torch.nn.ParameterDict({"*": torch.nn.Parameter(v["old"])})
    torch.save({"string_to_token": {"*": torch.tensor(265)}, "string_to_param": old}, f"{folder}/oldform.pt")
    torch.save(v["bad"].clone(), f"{folder}/bare.pt")
    v["half"] = v["half"].half().float()

    known = {"diffusers.safetensors": ("<cat-toy>", "cat"), "EasyStyle.safetensors": ("EasyStyle", "style"),
             "half.safetensors": ("<half>", "half"), "learned_embeds.bin": ("<toy>", "toy"),
             "bad-style-v2.pt": ("badstyle", "bad"), "oldform.pt": ("oldform", "old"), "bare.pt": (None, "bad")}
    runs = {
        "diffusers": ([["diffusers.safetensors", None]], "a <cat-toy> in the park"),
        "several": ([["EasyStyle.safetensors", None]], "a corgi, EasyStyle, in the park"),
        "case": ([["EasyStyle.safetensors", None]], "a corgi, easystyle"),
        "pickle": ([["learned_embeds.bin", None]], "the <toy>"),
        "a1111": ([["bad-style-v2.pt", None]], "badstyle dog"),
        "parameter_dict": ([["oldform.pt", None]], "a dog oldform"),
        "bare": ([["bare.pt", "<mine>"]], "a dog <mine>"),
        "renamed": ([["diffusers.safetensors", "park-cat"]], "a park-cat in the park"),
        "many": ([["diffusers.safetensors", None], ["half.safetensors", None], ["EasyStyle.safetensors", "<s>"]],
                 "<s> <cat-toy><half> and <cat-toy>"),
    }
    cases, tensors = [], {}
    for name, (files, prompt) in runs.items():
        # As diffusers' load_textual_inversion: tokens `word`, `word_1`, ... in a larger table; the word becomes all.
        tok, model = load()
        text = prompt
        for file, word in files:
            rows = v[known[file][1]]
            word = word or known[file][0]
            tokens = [word] + [f"{word}_{i}" for i in range(1, len(rows))]
            assert tok.add_tokens(tokens) == len(tokens)
            model.resize_token_embeddings(len(tok), mean_resizing=False)
            table = model.get_input_embeddings().weight
            for token, row in zip(tokens, rows):
                table[tok.convert_tokens_to_ids(token)] = row
            text = re.sub(re.escape(word), " ".join(tokens), text, flags=re.I)
        ids = tok(text, padding="max_length", max_length=77, truncation=True).input_ids
        assert any(i >= 542 for i in ids), name
        tensors[name] = encode(model, ids, 0).contiguous()
        cases.append({"name": name, "files": files, "prompt": prompt})
    write("embeddings", cases, tensors)


def load():
    return CLIPTokenizer.from_pretrained(f"{MODEL}/tokenizer"), CLIPTextModel.from_pretrained(f"{MODEL}/text_encoder", dtype=torch.float32).eval()


def write(name, cases, tensors):
    with open(f"{OUT}/{name}.json", "w") as f:
        rows = ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases)
        f.write('{"cases":[\n' + rows + "\n]}\n")
    save_file(tensors, f"{OUT}/{name}.safetensors")


if __name__ == "__main__":
    os.makedirs(OUT, exist_ok=True)
    known_examples()
    tok, model = load()
    words(model, tok)
    embeddings()
