//! Prompt editing of AUTOMATIC1111's web UI: prompts that change between steps.
//!
//! | Written | Meaning |
//! |---|---|
//! | `[from:to:when]` | `from` until step `when`, then `to` |
//! | `[to:when]` `[from::when]` | nothing before, nothing after |
//! | `[a\|b\|c]` | another one at every step, in turn |
//!
//! `when` is the last step of the first text, counted from 1; with a point in it, it is a share of the steps: `0.5`
//! stands for half of them. Everything nests and may have weights inside. A square bracket of another form only lowers
//! the weight, as in [`prompt`](mod@super::prompt), and a backslash takes the next character its meaning.
//!
//! A bracket with another one in it that is never closed or never opened is read as text. So is the whole prompt if it
//! has a `|` outside of an alternation, or ends in a backslash: the web UI's grammar has no place for these.

use std::collections::BTreeSet;

use super::prompt::{MOST_OPEN, without_hypernets};

/// Maximum length of all versions of a prompt together: bytes.
const MOST_BYTES: usize = 16 << 20;

/// A prompt for some steps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// The last of these steps, counted from 1.
    pub until: usize,
    /// The prompt without marks of editing.
    pub text: String,
}

/// Part of a prompt.
#[derive(Debug)]
enum Node<'a> {
    Text(&'a str),
    /// `[before:after:when]`.
    Edited {
        before: Vec<Self>,
        after: Vec<Self>,
        when: When,
    },
    /// `[a|b]`.
    Alternating(Vec<Vec<Self>>),
}

/// The end of the first text of an edited bracket.
#[derive(Clone, Copy, Debug)]
struct When {
    number: f64,
    is_share: bool,
}

/// The versions of a prompt in a run of so many steps; the last one goes to the end.
///
/// # Errors
///
/// A message: too many open brackets, or versions that are too long together.
pub fn versions(prompt: &str, steps: usize) -> Result<Vec<Version>, String> {
    let prompt = without_hypernets(prompt);
    let Some(nodes) = parse(&prompt)? else {
        return Ok(vec![Version { until: steps, text: prompt.into_owned() }]);
    };
    let mut ends = Ends { steps, last: BTreeSet::from([steps]), is_alternating: false };
    ends.add(&nodes);
    let ends = ends.last_steps();
    let (mut versions, mut bytes) = (Vec::new(), 0);
    for until in ends {
        let mut text = String::new();
        write(&nodes, until, steps, &mut text);
        bytes += text.len();
        if bytes > MOST_BYTES {
            return Err(format!(
                "its versions for {steps} steps have more than {MOST_BYTES} bytes"
            ));
        }
        versions.push(Version { until, text });
    }
    Ok(versions)
}

/// Returns whether the web UI's grammar reads a prompt, so that its editing counts.
pub(super) fn is_readable(prompt: &str) -> bool {
    matches!(parse(&without_hypernets(prompt)), Ok(Some(_)))
}

impl When {
    /// Reads a number that may have spaces around it.
    fn read(text: &str) -> Option<Self> {
        let text = text.trim();
        let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
        let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, Some(exponent)),
            None => (unsigned, None),
        };
        let is_whole = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let is_number = match mantissa.split_once('.') {
            Some(("", after)) => is_whole(after),
            Some((before, after)) => is_whole(before) && (after.is_empty() || is_whole(after)),
            None => is_whole(mantissa),
        };
        let is_power =
            exponent.is_none_or(|power| is_whole(power.strip_prefix(['+', '-']).unwrap_or(power)));
        let number = text.parse().ok().filter(|_| is_number && is_power)?;
        Some(Self { number, is_share: text.contains('.') })
    }

    /// The last step of the first text, 0 if there is none.
    fn last_step(self, steps: usize) -> usize {
        let last = if self.is_share { self.number * steps as f64 } else { self.number };
        // Truncated and kept above 0 by the conversion.
        (last as usize).min(steps)
    }
}

/// A bracket that is not closed yet.
#[derive(Debug)]
struct Open<'a> {
    is_square: bool,
    /// Its contents between the separators, one more than there are of those.
    parts: Vec<Vec<Node<'a>>>,
    /// Colons and bars; `true` is a bar.
    bars: Vec<bool>,
}

impl<'a> Open<'a> {
    fn new(is_square: bool) -> Self {
        Self { is_square, parts: vec![vec![]], bars: vec![] }
    }

    fn push(&mut self, node: Node<'a>) {
        if let Some(part) = self.parts.last_mut() {
            part.push(node);
        }
    }

    fn separate(&mut self, is_bar: bool) {
        self.parts.push(vec![]);
        self.bars.push(is_bar);
    }

    /// Returns what the bracket means when it is closed, or the bracket if it means nothing.
    fn close(mut self) -> Result<Vec<Node<'a>>, Self> {
        let colons = self.bars.iter().filter(|bar| !**bar).count();
        let bars = self.bars.len() - colons;
        match (self.is_square, colons, bars) {
            (_, 0, 0) | (false, 1, 0) => {
                let close = if self.is_square { "]" } else { ")" };
                let mut nodes = self.literal();
                nodes.push(Node::Text(close));
                Ok(nodes)
            }
            (true, 0, 1..) => Ok(vec![Node::Alternating(self.parts)]),
            (true, 1 | 2, 0) => {
                let Some(when) = self.parts.last().and_then(|part| number(part)) else {
                    return Err(self);
                };
                self.parts.pop();
                let after = self.parts.pop().unwrap_or_default();
                let before = self.parts.pop().unwrap_or_default();
                Ok(vec![Node::Edited { before, after, when }])
            }
            _ => Err(self),
        }
    }

    /// Everything as text that has no meaning but that of its parts.
    fn literal(self) -> Vec<Node<'a>> {
        let mut nodes = vec![Node::Text(if self.is_square { "[" } else { "(" })];
        let mut bars = self.bars.iter();
        for part in self.parts {
            nodes.extend(part);
            if let Some(bar) = bars.next() {
                nodes.push(Node::Text(if *bar { "|" } else { ":" }));
            }
        }
        nodes
    }
}

/// The number that is all of a part.
fn number(part: &[Node<'_>]) -> Option<When> {
    let text = |node: &Node<'_>| match node {
        Node::Text(text) => Some((*text).to_owned()),
        _ => None,
    };
    When::read(&part.iter().map(text).collect::<Option<String>>()?)
}

/// The parts of a prompt; `None` if all of it is text.
fn parse(prompt: &str) -> Result<Option<Vec<Node<'_>>>, String> {
    let (mut nodes, mut open): (Vec<Node<'_>>, Vec<Open<'_>>) = (vec![], vec![]);
    let mut rest = prompt;
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '\\' => match rest.chars().nth(1) {
                None | Some('\n') => return Ok(None),
                Some(escaped) => 1 + escaped.len_utf8(),
            },
            '(' | ')' | '[' | ']' | ':' | '|' => 1,
            _ => rest.find(['(', ')', '[', ']', ':', '|', '\\']).unwrap_or(rest.len()),
        };
        let (piece, after) = rest.split_at(length);
        rest = after;
        match (first, open.last_mut()) {
            ('(' | '[', _) => {
                open.push(Open::new(first == '['));
                if open.len() > MOST_OPEN {
                    return Err(format!("more than {MOST_OPEN} brackets are open at once"));
                }
            }
            (':' | '|', Some(bracket)) => bracket.separate(first == '|'),
            ('|', None) => return Ok(None),
            (')' | ']', Some(_)) => {
                let Some(last) = open.pop() else { continue };
                let closed =
                    if last.is_square == (first == ']') { last.close() } else { Err(last) };
                match closed {
                    Ok(inner) => match open.last_mut() {
                        Some(outer) => inner.into_iter().for_each(|node| outer.push(node)),
                        None => nodes.extend(inner),
                    },
                    // Neither it nor any bracket around it can mean anything.
                    Err(last) => {
                        open.push(last);
                        if !give_up(&mut open, &mut nodes) {
                            return Ok(None);
                        }
                        nodes.push(Node::Text(piece));
                    }
                }
            }
            (_, Some(bracket)) => bracket.push(Node::Text(piece)),
            (_, None) => nodes.push(Node::Text(piece)),
        }
    }
    Ok(give_up(&mut open, &mut nodes).then_some(nodes))
}

/// Turns open brackets into text. Returns whether they have no bars.
fn give_up<'a>(open: &mut Vec<Open<'a>>, nodes: &mut Vec<Node<'a>>) -> bool {
    let has_bar = open.iter().any(|bracket| bracket.bars.contains(&true));
    nodes.extend(open.drain(..).flat_map(Open::literal));
    !has_bar
}

/// The steps after which a prompt changes.
struct Ends {
    steps: usize,
    last: BTreeSet<usize>,
    is_alternating: bool,
}

impl Ends {
    fn add(&mut self, nodes: &[Node<'_>]) {
        for node in nodes {
            match node {
                Node::Text(_) => {}
                Node::Edited { before, after, when } => {
                    self.last.insert(when.last_step(self.steps));
                    self.add(before);
                    self.add(after);
                }
                Node::Alternating(parts) => {
                    self.is_alternating = true;
                    for part in parts {
                        self.add(part);
                    }
                }
            }
        }
    }

    fn last_steps(self) -> Box<dyn Iterator<Item = usize>> {
        if self.is_alternating {
            return Box::new(1..=self.steps);
        }
        Box::new(self.last.into_iter().filter(|step| *step > 0))
    }
}

/// Writes the prompt of a step, counted from 1.
fn write(nodes: &[Node<'_>], step: usize, steps: usize, text: &mut String) {
    for node in nodes {
        match node {
            Node::Text(piece) => text.push_str(piece),
            Node::Edited { before, after, when } => {
                let part = if step <= when.last_step(steps) { before } else { after };
                write(part, step, steps, text);
            }
            Node::Alternating(parts) => {
                if let Some(part) = parts.get((step - 1) % parts.len()) {
                    write(part, step, steps, text);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endless_prompts_take_no_time() {
        for piece in [
            "[a:b:2]", "[a|b]", "[", "(", "]", ":", "|", "[a:", "[a|", "\\", "[a:b]", "(a:b:c)",
            "[(a]", "\\(", "a ",
        ] {
            let prompt = piece.repeat((1 << 17) / piece.len());
            let took = || {
                let start = std::time::Instant::now();
                let _ = versions(&prompt, 4);
                start.elapsed()
            };
            let took = (0..3).map(|_| took()).min().unwrap();
            assert!(took.as_millis() < 2000, "{piece}: {took:?}");
        }
    }

    #[test]
    fn versions_that_are_too_long_together_are_refused_and_so_are_endless_brackets() {
        let prompt = format!("[a|b]{}", "x".repeat(1 << 20));
        assert_eq!(versions(&prompt, 8).unwrap().len(), 8);
        assert!(versions(&prompt, 1000).unwrap_err().contains("1000 steps"));
        assert!(versions(&"[a".repeat(100), 4).unwrap_err().contains("64 brackets"));
    }
}
