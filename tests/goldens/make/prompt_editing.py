#!/usr/bin/env python3
"""Writes ../prompt_editing.json: which prompt AUTOMATIC1111's web UI has at which step, for prompts with editing and alternation.

No package is needed and nothing is downloaded.

    python prompt_editing.py

`cases` is a list of prompt, steps and schedule, a list of pairs: the last step of a part of the run, counted from 1, and the prompt until then.

The rules are those of the web UI's `get_learned_conditioning_prompt_schedules` (version 1.10, without hires steps), read here by recursive descent
where the web UI has a grammar for a parser generator. `DOCUMENTED` are the examples in its source and wiki with their answers; the script stops if it
answers one of them otherwise. It was compared with the web UI's own function on 14,000 random prompts of the characters `ab[]():|.13`
and backslash: three are read otherwise, all with a bracket that is whole among brackets that are not, which the web UI's parser generator then
sometimes takes as text.
"""
import json
import os
import re

OUT = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "prompt_editing.json")
NUMBER = re.compile(r"\s*([+-]?(?:\d+\.\d*|\.\d+|\d+)(?:[eE][+-]?\d+)?)\s*\Z")
MARKS = "[]():|"


class Unreadable(Exception):
    """A prompt that the web UI leaves as it is."""


def sequence(text, at):
    """Nodes up to the first mark that begins no node, and where that is. A node is a string or a tuple (kind, values)."""
    nodes = []
    while at < len(text):
        if text[at] in "([":
            found = bracket(text, at)
            if found is None:
                break
            node, at = found
        elif text[at] in MARKS:
            break
        else:
            length = 2 if text[at] == "\\" else 1
            if length == 2 and (at + 1 == len(text) or text[at + 1] == "\n"):
                raise Unreadable
            node, at = text[at : at + length], at + length
        nodes.append(node)
    return nodes, at


def bracket(text, at):
    """The node of the bracket that opens here and where it ends, if it is one."""
    opening, parts, separators = text[at], [], []
    while True:
        part, at = sequence(text, at + 1)
        parts.append(part)
        if at == len(text) or text[at] in "([":
            return None
        if text[at] in ")]":
            break
        separators.append(text[at])
    if text[at] != {"(": ")", "[": "]"}[opening]:
        return None
    end = at + 1
    if not separators or (opening == "(" and separators == [":"]):
        inner = [":"] if separators else []
        return [opening, *parts[0], *inner, *(parts[1] if separators else []), text[at]], end
    if opening == "[" and set(separators) == {"|"}:
        return ("alternate", parts), end
    if opening == "[" and separators in ([":"], [":", ":"]) and all(isinstance(node, str) for node in parts[-1]):
        number = NUMBER.match("".join(parts[-1]))
        if number:
            before = parts[0] if len(parts) == 3 else []
            return ("scheduled", (before, parts[-2], number[1])), end
    return None


def whole(text):
    nodes, at = [], 0
    while True:
        more, at = sequence(text, at)
        nodes += more
        if at == len(text):
            return nodes
        if text[at] == "|":
            raise Unreadable
        nodes.append(text[at])
        at += 1


def last_step(number, steps):
    value = float(number)
    return min(steps, int(value * steps if "." in number else value))


def boundaries(nodes, steps):
    found = set()
    for node in nodes:
        if isinstance(node, list):
            found |= boundaries(node, steps)
        elif node[0] == "alternate":
            found |= set(range(1, steps + 1)).union(*(boundaries(part, steps) for part in node[1]))
        elif node[0] == "scheduled":
            before, after, number = node[1]
            found |= {last_step(number, steps)} | boundaries(before, steps) | boundaries(after, steps)
    return found


def at_step(nodes, step, steps):
    text = ""
    for node in nodes:
        if isinstance(node, str):
            text += node
        elif isinstance(node, list):
            text += at_step(node, step, steps)
        elif node[0] == "alternate":
            text += at_step(node[1][(step - 1) % len(node[1])], step, steps)
        else:
            before, after, number = node[1]
            text += at_step(before if step <= last_step(number, steps) else after, step, steps)
    return text


def schedule(prompt, steps):
    try:
        nodes = whole(prompt)
    except Unreadable:
        return [[steps, prompt]]
    ends = sorted({steps} | {end for end in boundaries(nodes, steps) if end >= 1})
    return [[end, at_step(nodes, end, steps)] for end in ends]


TURNS = ["a", "(b:1.1)"] * 5
DOCUMENTED = [
    ("test", 10, [[10, "test"]]),
    ("a [b:3]", 10, [[3, "a "], [10, "a b"]]),
    ("a [b: 3]", 10, [[3, "a "], [10, "a b"]]),
    ("a [[[b]]:2]", 10, [[2, "a "], [10, "a [[b]]"]]),
    ("[(a:2):3]", 10, [[3, ""], [10, "(a:2)"]]),
    ("a [b : c : 1] d", 10, [[1, "a b  d"], [10, "a  c  d"]]),
    ("a[b:[c:d:2]:1]e", 10, [[1, "abe"], [2, "ace"], [10, "ade"]]),
    ("a [unbalanced", 10, [[10, "a [unbalanced"]]),
    ("a [b:.5] c", 10, [[5, "a  c"], [10, "a b c"]]),
    ("((a][:b:c [d:3]", 10, [[3, "((a][:b:c "], [10, "((a][:b:c d"]]),
    ("[a|(b:1.1)]", 10, [[i + 1, text] for i, text in enumerate(TURNS)]),
    ("[fe|]male", 10, [[i + 1, "female" if i % 2 == 0 else "male"] for i in range(10)]),
    ("[fe|||]male", 10, [[i + 1, "female" if i % 4 == 0 else "male"] for i in range(10)]),
    ("fantasy landscape with a [mountain:lake:0.25] and [an oak:a christmas tree:0.75][ in foreground::0.6][ in background:0.25] [shoddy:masterful:0.5]", 100, [
        [25, "fantasy landscape with a mountain and an oak in foreground shoddy"],
        [50, "fantasy landscape with a lake and an oak in foreground in background shoddy"],
        [60, "fantasy landscape with a lake and an oak in foreground in background masterful"],
        [75, "fantasy landscape with a lake and an oak in background masterful"],
        [100, "fantasy landscape with a lake and a christmas tree in background masterful"]]),
    ("[mountain:lake:0.25]", 100, [[25, "mountain"], [100, "lake"]]),
    ("[cow|horse] in a field", 3, [[1, "cow in a field"], [2, "horse in a field"], [3, "cow in a field"]]),
]

MORE = [
    # Numbers: a point makes a share of the steps, whatever its size; a whole number is a step.
    ("[a:b:0.3]", 7), ("[a:b:.5]", 5), ("[a:b:1.0]", 4), ("[a:b:1]", 4), ("[a:b:0]", 4), ("[a:b:0.1]", 4), ("[a:b:-2]", 4), ("[a:b:+2]", 4),
    ("[a:b:2.]", 4), ("[a:b:99]", 4), ("[a:b:2e0]", 4), ("[a:b:2.5e-1]", 8), ("[a:b:0.29]", 100), ("[a:b:1.2.3]", 4), ("[a:b: 2 ]", 4),
    ("[a:b:two]", 4), ("[a:b:]", 4), ("[a:b:2", 4), ("a:b:2]", 4), ("[a:b:2 3]", 4), ("[a:b:(2)]", 4), ("[a:b:\\2]", 4),
    # Parts that are empty, and brackets that are something else.
    ("x[a::2]y", 4), ("x[:a:2]y", 4), ("x[::2]y", 4), ("x[:2]y", 4), ("x[2]y", 4), ("[a]", 4), ("[a:b]", 4), ("[a:b:c:2]", 4), ("[]", 4), ("[|]", 4),
    ("[a:3:2]", 4), ("(a:b:2)", 4), ("(a:1.2)", 4), ("(a:b)", 4), ("()[]", 4), ("[|a]", 3), ("[a||b]", 4),
    # Nesting, weights, escapes.
    ("[[a|b]:c:2]", 4), ("[a|[b:c:3]]", 4), ("[[a:b:1]:[c:d:3]:2]", 4), ("([a:b:2]:1.3) c", 4), ("[(a:1.2) [b]:((c)):2]", 4), ("[[a|b]|[c|d]]", 5),
    ("[a|b] [c|d|e]", 6), ("[[x:y:2]]", 4), ("(([a:2]))", 4), (r"\[a:b:2\]", 4), (r"[a\:b:c:2]", 4), (r"[a\]b:c:2]", 4), (r"[a\|b|c]", 2), (r"a\\[b:2]", 4),
    # What is out of balance, and bars that make the whole prompt one text.
    ("[a (b:c:2]", 4), ("[a] b:c:2]", 4), ("[a [b:c:2]", 4), ("a) [b:c:2]", 4), ("[x (b] [c:d:2]", 4), ("[a:b] [c:d:2]", 4), ("[a:b [c:d:2]]", 4),
    ("(a:b:c [d:e:2])", 4), ("a|b [c:d:2]", 4), ("(a|b) [c:d:2]", 4), ("[a|b:2]", 4), ("[a|b:c|d] [e:2]", 4), ("[a|b", 4), ("[a:b:2] \\", 4),
    ("a, [b:c:2]\nBREAK\n[d|e]", 3), ("[a\nb:c:2]", 3), ("[ünï:中:2]", 3), ("", 3),
]


def main():
    for prompt, steps, want in DOCUMENTED:
        got = schedule(prompt, steps)
        assert got == want, (prompt, got, want)
    cases = [[prompt, steps, want] for prompt, steps, want in DOCUMENTED]
    cases += [[prompt, steps, schedule(prompt, steps)] for prompt, steps in MORE]
    with open(OUT, "w", encoding="utf-8") as file:
        rows = ",\n".join(json.dumps(case, ensure_ascii=False, separators=(",", ":")) for case in cases)
        file.write('{"cases":[\n' + rows + "\n]}\n")


if __name__ == "__main__":
    main()
