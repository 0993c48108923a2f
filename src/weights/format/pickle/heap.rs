//! The heap of the pickle interpreter, and the values that are handles into it.

use std::borrow::Cow;
use std::collections::BTreeSet;

use crate::weights::format::{ElementType, View};

/// A value on the interpreter's stack.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Text(u32),
    Tuple(u32),
    List(u32),
    Dict(u32),
    Global(Global),
    Storage(u32),
    Tensor(u32),
    /// An unsupported object; operations on it have no effect.
    Opaque,
}

/// Meaning of a class or function name in a pickle.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Global {
    Dict,
    RebuildTensor,
    RebuildParameter,
    RebuildFromType,
    Size,
    Storage(ElementType),
    UntypedStorage,
    DType(ElementType),
    /// A storage class of an unsupported element type.
    OddStorage,
    Foreign,
}

/// A storage as referenced by a pickle.
#[derive(Clone, Debug)]
pub(crate) struct Storage {
    /// A [`Value::Text`].
    pub(crate) key: Value,
    /// `None` if untyped: the tensor then has the element type.
    pub(crate) element: Option<ElementType>,
    /// Size in elements, or in bytes if untyped.
    pub(crate) count: usize,
}

/// A tensor as described by a pickle.
#[derive(Clone, Debug)]
pub(crate) struct TensorRef {
    pub(crate) storage: u32,
    pub(crate) element: ElementType,
    pub(crate) shape: Vec<usize>,
    pub(crate) view: View,
}

/// All objects created by a pickle.
#[derive(Debug, Default)]
pub(crate) struct Heap<'a> {
    texts: Vec<Cow<'a, str>>,
    pub(super) sequences: Vec<Vec<Value>>,
    pub(super) dicts: Vec<Vec<(Value, Value)>>,
    pub(crate) storages: Vec<Storage>,
    pub(crate) tensors: Vec<TensorRef>,
    pub(super) foreign: BTreeSet<String>,
    /// Total size of all objects in bytes, as counted by [`Heap::charge`].
    spent: usize,
}

impl<'a> Heap<'a> {
    /// Total size of all objects in bytes.
    pub(super) fn spent(&self) -> usize {
        self.spent
    }

    /// Adds the size of `count` values of type `T`.
    fn charge<T>(&mut self, count: usize) {
        self.spent = self.spent.saturating_add(count.saturating_mul(size_of::<T>()));
    }

    pub(crate) fn text(&self, value: Value) -> Option<&str> {
        match value {
            Value::Text(id) => self.texts.get(id as usize).map(AsRef::as_ref),
            _ => None,
        }
    }

    pub(crate) fn items(&self, value: Value) -> Option<&[Value]> {
        match value {
            Value::Tuple(id) | Value::List(id) => {
                self.sequences.get(id as usize).map(Vec::as_slice)
            }
            _ => None,
        }
    }

    /// The tensors of a dict by name; the last of equal names is the valid one.
    pub(crate) fn tensors_of(&self, dict: Value) -> impl Iterator<Item = (&str, &TensorRef)> {
        self.pairs(dict).filter_map(|(key, value)| match value {
            Value::Tensor(id) => Some((self.text(key)?, self.tensors.get(id as usize)?)),
            _ => None,
        })
    }

    /// The tensor of a [`Value::Tensor`].
    pub(crate) fn tensor(&self, value: Value) -> Option<&TensorRef> {
        match value {
            Value::Tensor(id) => self.tensors.get(id as usize),
            _ => None,
        }
    }

    /// The text stored in a dict under a key; the last of equal keys is the valid one.
    pub(crate) fn text_of(&self, dict: Value, key: &str) -> Option<&str> {
        let found = self.pairs(dict).filter(|(name, _)| self.text(*name) == Some(key));
        found.last().and_then(|(_, value)| self.text(value))
    }

    /// The keys and ids of the dicts in a dict.
    pub(crate) fn dicts_of(&self, dict: Value) -> impl Iterator<Item = (&str, u32)> {
        self.pairs(dict).filter_map(|(key, value)| match value {
            Value::Dict(id) => Some((self.text(key)?, id)),
            _ => None,
        })
    }

    /// Unsupported classes named in the pickle, for messages.
    pub(crate) fn foreign(&self) -> impl Iterator<Item = &str> {
        self.foreign.iter().map(String::as_str)
    }

    pub(super) fn pairs(&self, dict: Value) -> impl Iterator<Item = (Value, Value)> {
        let pairs = match dict {
            Value::Dict(id) => self.dicts.get(id as usize).map(Vec::as_slice),
            _ => None,
        };
        pairs.unwrap_or_default().iter().copied()
    }

    pub(super) fn add_text(&mut self, text: Cow<'a, str>) -> Value {
        self.charge::<Cow<'_, str>>(1);
        if let Cow::Owned(text) = &text {
            self.charge::<u8>(text.len());
        }
        self.texts.push(text);
        Value::Text(self.texts.len() as u32 - 1)
    }

    pub(super) fn add_sequence(&mut self, items: Vec<Value>) -> u32 {
        self.charge::<Vec<Value>>(1);
        self.charge::<Value>(items.len());
        self.sequences.push(items);
        self.sequences.len() as u32 - 1
    }

    /// Appends to a list; other values are ignored.
    pub(super) fn extend_list(&mut self, list: Value, items: &[Value]) {
        if let Value::List(id) = list
            && let Some(list) = self.sequences.get_mut(id as usize)
        {
            list.extend_from_slice(items);
            self.charge::<Value>(items.len());
        }
    }

    pub(super) fn add_dict(&mut self) -> Value {
        self.charge::<Vec<(Value, Value)>>(1);
        self.dicts.push(Vec::new());
        Value::Dict(self.dicts.len() as u32 - 1)
    }

    /// Adds pairs to a dict; other values are ignored.
    pub(super) fn extend_dict(&mut self, dict: Value, pairs: &[[Value; 2]]) {
        if let Value::Dict(id) = dict
            && let Some(dict) = self.dicts.get_mut(id as usize)
        {
            dict.extend(pairs.iter().map(|[key, value]| (*key, *value)));
            self.charge::<(Value, Value)>(pairs.len());
        }
    }

    pub(super) fn add_storage(&mut self, storage: Storage) -> Value {
        self.charge::<Storage>(1);
        self.storages.push(storage);
        Value::Storage(self.storages.len() as u32 - 1)
    }

    pub(super) fn add_tensor(&mut self, tensor: TensorRef) -> Value {
        self.charge::<TensorRef>(1);
        self.charge::<usize>(2 * tensor.shape.len());
        self.tensors.push(tensor);
        Value::Tensor(self.tensors.len() as u32 - 1)
    }
}
