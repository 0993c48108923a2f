//! Nodes of ComfyUI's graphs, and the links between them.

use serde_json::Value;

/// Links that are followed from a node; a graph has no longer way, except in a circle.
const FARTHEST: usize = 64;

/// A node of a graph.
#[derive(Clone, Copy)]
pub(super) struct Node<'a> {
    graph: &'a Value,
    node: &'a Value,
}

impl<'a> Node<'a> {
    /// All nodes of a graph.
    pub(super) fn all(graph: &'a Value) -> impl Iterator<Item = Self> {
        let nodes = graph.as_object().into_iter().flat_map(|nodes| nodes.values());
        nodes.map(move |node| Self { graph, node })
    }

    /// All nodes of the same graph.
    pub(super) fn others(self) -> impl Iterator<Item = Self> {
        Self::all(self.graph)
    }

    pub(super) fn class(self) -> &'a str {
        self.node.get("class_type").and_then(Value::as_str).unwrap_or_default()
    }

    pub(super) fn input(self, name: &str) -> Option<&'a Value> {
        self.node.get("inputs")?.get(name)
    }

    /// The node that an input is linked to: `["4", 0]`.
    pub(super) fn linked(self, name: &str) -> Option<Self> {
        let id = self.input(name)?.as_array()?.first()?;
        let id = id.as_str().map_or_else(|| id.to_string(), str::to_owned);
        Some(Self { graph: self.graph, node: self.graph.get(id)? })
    }

    /// The value of an input, also of a node that holds nothing but one.
    pub(super) fn value(self, name: &str) -> Option<&'a Value> {
        let mut value = self.input(name)?;
        let mut node = self;
        let mut name = name.to_owned();
        for _ in 0..FARTHEST {
            if !value.is_array() {
                return Some(value);
            }
            node = node.linked(&name)?;
            // A sampler's inputs are not what it hands on.
            if node.is_sampler() {
                return None;
            }
            let known = ["value", "text", "string", "seed", "noise_seed", "int", "float", "number"];
            name = known.into_iter().find(|name| node.input(name).is_some())?.to_owned();
            value = node.input(&name)?;
        }
        None
    }

    pub(super) fn number(self, name: &str) -> Option<f64> {
        self.value(name)?.as_f64()
    }

    pub(super) fn count(self, name: &str) -> Option<usize> {
        self.value(name)?.as_u64().map(|count| count as usize)
    }

    pub(super) fn text(self, name: &str) -> Option<&'a str> {
        self.value(name)?.as_str()
    }

    /// Returns whether a switch is on; one that is not there is off.
    pub(super) fn is_on(self, name: &str) -> bool {
        self.value(name).and_then(Value::as_bool).unwrap_or_default()
    }

    pub(super) fn is_sampler(self) -> bool {
        matches!(self.class(), "KSampler" | "KSamplerAdvanced")
    }
}

/// The nodes from one on, each linked to the one before by the first of these inputs that it has.
pub(super) fn chain<'a>(
    first: Option<Node<'a>>,
    inputs: &'static [&str],
) -> impl Iterator<Item = Node<'a>> {
    let next = |node: &Node<'a>| inputs.iter().find_map(|name| node.linked(name));
    std::iter::successors(first, next).take(FARTHEST)
}
