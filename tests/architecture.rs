//! The layers of the crate, held by reading its source.
//!
//! A module may use itself and modules on lower layers, never a sibling or one above. The table is
//! quoted in `src/lib.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Layers from the ground up.
const LAYERS: [&[&str]; 14] = [
    &["error", "spelling"],
    &["device", "rng", "files"],
    &["schedule", "media", "weights", "hub"],
    &["nn", "sampler", "output", "procedural", "preprocess"],
    &["models"],
    &["text"],
    &["adapters", "metrics"],
    &["request"],
    &["library"],
    &["pipeline"],
    &["job", "train"],
    &["queue", "batch"],
    &["server"],
    &["cli"],
];

/// Uses that are forbidden though the layers would allow them, and why.
const APART: [(&str, &str, &str); 4] = [
    ("models", "sampler", "they meet in pipeline, through sampler::Denoiser"),
    ("pipeline", "output", "they meet through media::FrameSink"),
    ("library", "hub", "networks come from files, wherever those come from"),
    ("pipeline", "hub", "a pipeline is built from files, wherever they come from"),
];

/// Where `cfg(feature = ...)` may stand; a name that ends in a slash is a folder.
const FEATURE_GATES: [&str; 8] = [
    "kernels/",
    "output/mod.rs",
    "device.rs",
    "lib.rs",
    "media/video/",
    "job/resolve.rs",
    "queue/mod.rs",
    "cli/",
];

/// What is in `src/lib.rs` itself and may be named as `crate::Name`: part of the ground layer. `kernels` is a crate of
/// its own.
const ROOT_NAMES: [&str; 7] =
    ["Error", "ErrorKind", "Quantize", "Result", "Stop", "error", "kernels"];

/// Every source file's path below `src`, with slashes, and its code without comments. The crate of the kernels is read
/// as a module.
fn sources() -> BTreeMap<String, String> {
    let mut found = below("src");
    for (file, code) in below("crates/kernels/src") {
        let file = if file == "lib.rs" { "mod.rs" } else { &file };
        found.insert(format!("kernels/{file}"), code.replace("crate::", "crate::kernels::"));
    }
    found
}

/// The same for the files below one folder of the repository.
fn below(folder: &str) -> BTreeMap<String, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut found = BTreeMap::new();
    let mut folders: Vec<PathBuf> = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(&root).unwrap().to_string_lossy().replace('\\', "/");
                found.insert(name, without_comments(&fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found
}

fn without_comments(text: &str) -> String {
    let code = |line: &&str| !line.trim_start().starts_with("//");
    text.lines().filter(code).collect::<Vec<_>>().join("\n")
}

/// The top-level module that a file belongs to.
fn module_of(file: &str) -> &str {
    file.split('/').next().unwrap_or(file).trim_end_matches(".rs")
}

fn layer_of(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// The first names of the paths that `code` starts with `prefix`, such as `crate::`.
fn names_after(code: &str, prefix: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (start, _) in code.match_indices(prefix) {
        let before = code[..start].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
            continue;
        }
        let rest = &code[start + prefix.len()..];
        match rest.strip_prefix('{') {
            Some(group) => names.extend(group_heads(group)),
            None => names.extend(identifier(rest)),
        }
    }
    names
}

fn identifier(text: &str) -> Option<String> {
    let name: String = text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    (!name.is_empty()).then_some(name)
}

/// The first name of each path in the braces that `text` is the inside of.
fn group_heads(text: &str) -> Vec<String> {
    let mut heads = Vec::new();
    let (mut depth, mut at_head) = (1, true);
    for (i, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => at_head = true,
            _ if at_head && depth == 1 && !c.is_whitespace() => {
                heads.extend(identifier(&text[i..]));
                at_head = false;
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    heads
}

/// The top-level modules that a file uses, by `crate::` or by climbing to the root with `super::`.
fn uses(file: &str, code: &str) -> BTreeSet<String> {
    let mut names = names_after(code, "crate::");
    // `super::` leads out of the file's module as often as the module is deep.
    let parts = file.split('/').count();
    let depth = if file.ends_with("/mod.rs") { parts - 1 } else { parts };
    let climbed = names_after(code, &"super::".repeat(depth));
    names.extend(climbed.into_iter().filter(|name| layer_of(name).is_some()));
    names.remove("super");
    names
}

/// What is wrong with what a file uses.
fn misuses(file: &str, code: &str) -> Vec<String> {
    let module = module_of(file);
    let Some(layer) = layer_of(module) else {
        return vec![format!("{file}: `{module}` is on no layer")];
    };
    uses(file, code)
        .into_iter()
        .filter(|used| used != module)
        .filter_map(|used| {
            if ROOT_NAMES.contains(&used.as_str()) {
                return None;
            }
            let Some(below) = layer_of(&used) else {
                return Some(format!("{file}: `crate::{used}` is on no layer"));
            };
            if below >= layer {
                return Some(format!("{file}: layer {layer} may not use `{used}` on {below}"));
            }
            APART
                .iter()
                .find(|(user, other, _)| *user == module && *other == used)
                .map(|(_, _, why)| format!("{file}: may not use `{used}`: {why}"))
        })
        .collect()
}

#[test]
fn modules_use_only_lower_layers() {
    let found: Vec<_> = sources()
        .iter()
        .filter(|(file, _)| !matches!(file.as_str(), "lib.rs" | "main.rs" | "build.rs"))
        .filter(|(file, _)| module_of(file) != "kernels")
        .flat_map(|(file, code)| misuses(file, code))
        .collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// Every path that starts with `crate`, `self` or `super`, with each path of a group by itself.
fn paths(code: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for start in ["crate::", "self::", "super::"] {
        for (at, _) in code.match_indices(start) {
            let before = code[..at].chars().next_back();
            if before.is_none_or(|c| !(c.is_alphanumeric() || c == '_' || c == ':')) {
                follow(&code[at..], &[], &mut found);
            }
        }
    }
    found
}

/// Adds the paths that `text` begins with, below `above`.
fn follow(text: &str, above: &[String], found: &mut Vec<Vec<String>>) {
    let Some(name) = identifier(text) else { return };
    let path: Vec<String> = above.iter().cloned().chain([name.clone()]).collect();
    match text[name.len()..].strip_prefix("::") {
        Some(rest) if rest.starts_with('{') => {
            let (mut depth, mut is_head) = (0, true);
            for (i, c) in rest.char_indices() {
                match c {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    ',' if depth == 1 => is_head = true,
                    _ if is_head && depth == 1 && !c.is_whitespace() => {
                        follow(&rest[i..], &path, found);
                        is_head = false;
                    }
                    _ => {}
                }
                if depth == 0 {
                    break;
                }
            }
        }
        Some(rest) => follow(rest, &path, found),
        None => found.push(path),
    }
}

/// The module that a file is.
fn module_path(file: &str) -> Vec<String> {
    let path = file.trim_end_matches(".rs").trim_end_matches("/mod");
    path.split('/').map(str::to_owned).collect()
}

/// For every module, which of its children use which others.
fn uses_between_siblings(
    sources: &BTreeMap<String, String>,
) -> BTreeMap<Vec<String>, BTreeMap<String, BTreeSet<String>>> {
    let modules: BTreeSet<Vec<String>> = sources
        .keys()
        .map(|file| module_path(file))
        .flat_map(|path| (1..=path.len()).map(move |depth| path[..depth].to_vec()))
        .collect();
    let mut uses: BTreeMap<Vec<String>, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
    for (file, code) in sources {
        let own = module_path(file);
        let code = code.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        for path in paths(code) {
            let mut rest = &path[1..];
            let mut at = if path[0] == "crate" { vec![] } else { own.clone() };
            if path[0] == "super" {
                at.pop();
            }
            while let Some(("super", more)) = rest.split_first().map(|(a, b)| (a.as_str(), b)) {
                at.pop();
                rest = more;
            }
            for name in rest {
                let inner: Vec<String> = at.iter().cloned().chain([name.clone()]).collect();
                if !modules.contains(&inner) {
                    break;
                }
                at = inner;
            }
            let shared = own.iter().zip(&at).take_while(|(a, b)| a == b).count();
            if let (Some(from), Some(to)) = (own.get(shared), at.get(shared)) {
                let children = uses.entry(own[..shared].to_vec()).or_default();
                children.entry(from.clone()).or_default().insert(to.clone());
            }
        }
    }
    uses
}

/// A way from `from` back to itself.
fn circle(from: &str, uses: &BTreeMap<String, BTreeSet<String>>) -> Option<Vec<String>> {
    let mut ways = vec![vec![from.to_owned()]];
    let mut seen = BTreeSet::new();
    while let Some(way) = ways.pop() {
        for next in way.last().and_then(|last| uses.get(last)).into_iter().flatten() {
            let longer: Vec<String> = way.iter().cloned().chain([next.clone()]).collect();
            if next == from {
                return Some(longer);
            }
            if seen.insert(next.clone()) {
                ways.push(longer);
            }
        }
    }
    None
}

#[test]
fn no_modules_use_each_other_in_a_circle() {
    let mut found = Vec::new();
    for (module, uses) in uses_between_siblings(&sources()) {
        // Those of the crate are held to their layers.
        if !module.is_empty() {
            let circles = uses.keys().filter_map(|from| circle(from, &uses));
            found.extend(circles.map(|way| format!("{}: {}", module.join("/"), way.join(" -> "))));
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn circles_are_noticed() {
    let files = |files: &[(&str, &str)]| {
        let files = files.iter().map(|(file, code)| ((*file).to_owned(), (*code).to_owned()));
        let uses = uses_between_siblings(&files.collect());
        let uses = uses.get(&vec!["m".to_owned()]).cloned().unwrap_or_default();
        uses.keys().filter_map(|from| circle(from, &uses)).count()
    };
    let (a, c) =
        (("m/a.rs", "use super::b::{self, X};"), ("m/c/mod.rs", "fn f() { super::a::g() }"));
    assert_eq!(files(&[a, ("m/b.rs", "use crate::m::{\n    c,\n    d::D,\n};"), c]), 3);
    assert_eq!(files(&[a, ("m/b.rs", "use super::c::C;"), ("m/c/x.rs", "use crate::m::d;")]), 0);
    let inner = ("m/c/x.rs", "use super::super::a;");
    assert_eq!(files(&[a, ("m/b.rs", "use super::c::C;"), ("m/c/mod.rs", ""), inner]), 3);
}

#[test]
fn features_are_asked_for_in_few_places() {
    let found: Vec<_> = sources()
        .into_iter()
        .filter(|(file, code)| {
            let gated = code.lines().any(|line| line.contains("cfg") && line.contains("feature ="));
            let allowed = FEATURE_GATES.iter().any(|gate| match gate.strip_suffix('/') {
                Some(_) => file.starts_with(gate),
                None => file == gate,
            });
            gated && !allowed
        })
        .map(|(file, _)| file)
        .collect();
    assert!(found.is_empty(), "`cfg(feature = ...)` stands in {found:?}");
}

#[test]
fn the_crate_documentation_quotes_the_layers() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs");
    let text = fs::read_to_string(path).unwrap();
    let mut quoted = BTreeMap::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("//!")) {
        let mut words = line.split_whitespace();
        if let Some(layer) = words.next().and_then(|word| word.parse::<usize>().ok()) {
            quoted.insert(layer, words.map(str::to_owned).collect::<Vec<_>>());
        }
    }
    let here = sources();
    for (layer, modules) in LAYERS.iter().enumerate() {
        // Layers that nobody lives on yet need no mention.
        let lived_in = |module: &str| here.keys().any(|file| module_of(file) == module);
        let words = quoted.get(&layer).cloned().unwrap_or_default();
        for module in modules.iter().filter(|module| lived_in(module)) {
            assert!(words.iter().any(|word| word == module), "layer {layer} lacks `{module}`");
        }
        let strangers: Vec<_> = words
            .iter()
            .filter(|word| layer_of(word).is_some_and(|other| other != layer))
            // The text beside the names may mention other modules.
            .filter(|word| words.iter().position(|w| w == *word) < Some(modules.len()))
            .collect();
        assert!(strangers.is_empty(), "layer {layer} lists {strangers:?}");
    }
}

#[test]
fn the_rules_notice_misuse() {
    let misuse = |file: &str, code: &str| misuses(file, code).len();
    assert_eq!(misuse("sampler/lcm.rs", "use crate::rng::Noise;\nuse crate::{Error, Result};"), 0);
    assert_eq!(misuse("sampler/lcm.rs", "use super::{Denoiser, Sampler};"), 0);
    assert_eq!(misuse("sampler/lcm.rs", "use super::super::rng::Noise;"), 0);
    // A sibling, an upper layer, both in a group, climbing, in passing, and by a macro.
    assert_eq!(misuse("sampler/lcm.rs", "use crate::nn::Linear;"), 1);
    assert_eq!(misuse("sampler/lcm.rs", "use crate::pipeline;"), 1);
    assert_eq!(misuse("sampler/lcm.rs", "use crate::{\n  nn::{A, cli}, Result,\n  text,\n};"), 2);
    assert_eq!(misuse("sampler/mod.rs", "use super::nn::Linear;"), 1);
    assert_eq!(misuse("sampler/lcm.rs", "use super::super::nn::Linear;"), 1);
    assert_eq!(misuse("rng.rs", "fn f() -> crate::models::Unet {}"), 1);
    assert_eq!(misuse("rng.rs", "macro_rules! m { () => { $crate::cli::run() } }"), 1);
    // Names that are on no layer, and the pairs that keep apart.
    assert_eq!(misuse("util.rs", ""), 1);
    assert_eq!(misuse("models/unet.rs", "use crate::sampler::Denoiser;"), 1);
    assert_eq!(misuse("pipeline/mod.rs", "use crate::{hub, output};"), 2);
    assert_eq!(misuse("models/unet.rs", &without_comments("/// See [`crate::cli`].")), 0);
}
