//! A pickle interpreter that extracts tensors and never executes code.
//!
//! A pickle is a program for a stack machine. This interpreter implements every opcode of protocols 0 to 5 and a few
//! constructors of torch. Any other class or function becomes [`Value::Opaque`]; calling, building or filling it has no
//! effect. So the tensors of a file that also contains Lightning callbacks, numpy scalars or malicious code can still
//! be read.
//!
//! Values are small handles into one [`Heap`], so a malicious file cannot build a value whose drop recurses without
//! bound. Nothing is copied that the file could reference repeatedly, and the heap size is limited per byte of the
//! pickle: time and memory are linear in the size of the pickle.

mod heap;

use super::{ElementType, View, quoted};
use heap::{Global, Storage};
pub(super) use heap::{Heap, TensorRef, Value};

/// Maximum number of foreign classes remembered for error messages.
const MOST_FOREIGN: usize = 8;
/// Maximum number of an object's attributes to inspect; a module's parameters are among the first.
const MOST_ATTRIBUTES: usize = 4;
/// Maximum nesting of `_rebuild_from_type_v2`, which wraps another call.
const DEEPEST_CALL: usize = 4;
/// Maximum number of call arguments read; no supported call takes more.
const MOST_ARGUMENTS: usize = 8;
/// Maximum number of dimensions of a tensor.
const MOST_DIMENSIONS: usize = 8;
/// Maximum length in bytes of a class name or storage key.
const LONGEST_WORD: usize = 256;

/// Heap bytes allowed for any pickle.
const SMALL_HEAP: usize = 1 << 20;
/// Heap bytes allowed per byte of the pickle beyond [`SMALL_HEAP`]. Files of `torch.save` need 4 to 8.
const HEAP_PER_BYTE: usize = 16;

/// Runs the pickle at the start of `bytes`. Returns the heap, the result and the number of bytes consumed.
pub(super) fn run(bytes: &[u8]) -> Result<(Heap<'_>, Value, usize), String> {
    let mut machine = Machine {
        input: Input { bytes, at: 0 },
        heap: Heap::default(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: Vec::new(),
        memoized: 0,
    };
    // All empty tuples share this sequence.
    machine.heap.add_sequence(Vec::new());
    loop {
        let at = machine.input.at;
        let stop = machine
            .step()
            .map_err(|reason| format!("its pickle is damaged at byte {at}: {reason}"))?;
        if let Some(result) = stop {
            return Ok((machine.heap, result, machine.input.at));
        }
        if machine.heap.spent() > SMALL_HEAP + HEAP_PER_BYTE * machine.input.at {
            let spent = machine.heap.spent() >> 20;
            return Err(format!(
                "its pickle is not a list of tensors: its first {} bytes make objects of {spent} MiB",
                machine.input.at
            ));
        }
    }
}

type Step<T> = Result<T, String>;

struct Machine<'a> {
    input: Input<'a>,
    heap: Heap<'a>,
    stack: Vec<Value>,
    /// Stack heights of the open marks.
    marks: Vec<usize>,
    /// The memo by index. Picklers count upwards, so no index exceeds the number of bytes read.
    memo: Vec<Option<Value>>,
    /// Number of occupied memo entries.
    memoized: usize,
}

/// The empty tuple, which is the first sequence of every heap.
const EMPTY_TUPLE: Value = Value::Tuple(0);

impl Machine<'_> {
    /// Executes one opcode; returns the result at `STOP`. Opcode letters are those of Python's `pickletools`.
    // Opcodes with equal arms are listed with their group.
    #[allow(clippy::match_same_arms)]
    fn step(&mut self) -> Step<Option<Value>> {
        match self.input.byte()? {
            0x80 => {
                let protocol = self.input.byte()?;
                if protocol > 5 {
                    return Err(format!("protocol {protocol} is unknown"));
                }
            }
            0x95 => _ = self.input.take(8)?, // FRAME: only a hint for readers of streams
            b'.' => return self.pop().map(Some),

            // Stack
            b'(' => self.marks.push(self.stack.len()),
            b'0' => {
                // POP removes a mark if nothing lies above it.
                if self.marks.last() == Some(&self.stack.len()) {
                    self.marks.pop();
                } else {
                    self.pop()?;
                }
            }
            b'1' => _ = self.pop_mark()?,
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }

            // Scalars
            b'N' => self.stack.push(Value::None),
            0x88 => self.stack.push(Value::Bool(true)),
            0x89 => self.stack.push(Value::Bool(false)),
            b'J' => {
                let value = i32::from_le_bytes(self.input.array()?);
                self.stack.push(Value::Int(value.into()));
            }
            b'K' => {
                let value = self.input.byte()?;
                self.stack.push(Value::Int(value.into()));
            }
            b'M' => {
                let value = u16::from_le_bytes(self.input.array()?);
                self.stack.push(Value::Int(value.into()));
            }
            b'I' | b'L' => {
                let line = self.input.line()?;
                let value = match line {
                    "00" => Value::Bool(false),
                    "01" => Value::Bool(true),
                    _ => line.trim_end_matches('L').parse().map_or(Value::Opaque, Value::Int),
                };
                self.stack.push(value);
            }
            0x8a => {
                let len = self.input.byte()? as usize;
                self.long(len)?;
            }
            0x8b => {
                let len = u32::from_le_bytes(self.input.array()?) as usize;
                self.long(len)?;
            }
            b'F' => {
                self.input.line()?;
                self.stack.push(Value::Opaque);
            }
            b'G' => {
                self.input.take(8)?;
                self.stack.push(Value::Opaque);
            }

            // Text. Python 2 wrote names as byte strings, so these are treated as text too.
            b'X' | b'T' => {
                let len = u32::from_le_bytes(self.input.array()?);
                self.text(len.into())?;
            }
            0x8c | b'U' => {
                let len = self.input.byte()?;
                self.text(len.into())?;
            }
            0x8d => {
                let len = u64::from_le_bytes(self.input.array()?);
                self.text(len)?;
            }
            b'V' => {
                let line = self.input.line()?;
                let text = self.heap.add_text(line.into());
                self.stack.push(text);
            }
            b'S' => {
                let line = self.input.line()?;
                let text = self.heap.add_text(line.trim_matches(['\'', '"']).into());
                self.stack.push(text);
            }

            // Bytes
            b'B' => {
                let len = u32::from_le_bytes(self.input.array()?);
                self.skip_bytes(len.into())?;
            }
            b'C' => {
                let len = self.input.byte()?;
                self.skip_bytes(len.into())?;
            }
            0x8e | 0x96 => {
                let len = u64::from_le_bytes(self.input.array()?);
                self.skip_bytes(len)?;
            }
            0x97 => self.stack.push(Value::Opaque), // NEXT_BUFFER
            0x98 => _ = self.top()?,                // READONLY_BUFFER

            // Containers
            b')' => self.stack.push(EMPTY_TUPLE),
            0x85 => self.tuple(1)?,
            0x86 => self.tuple(2)?,
            0x87 => self.tuple(3)?,
            b't' => {
                let items = self.pop_mark()?;
                let id = self.heap.add_sequence(items);
                self.stack.push(Value::Tuple(id));
            }
            b']' => {
                let id = self.heap.add_sequence(Vec::new());
                self.stack.push(Value::List(id));
            }
            b'l' => {
                let items = self.pop_mark()?;
                let id = self.heap.add_sequence(items);
                self.stack.push(Value::List(id));
            }
            b'}' => {
                let dict = self.heap.add_dict();
                self.stack.push(dict);
            }
            b'd' => {
                let items = self.pop_mark()?;
                let dict = self.heap.add_dict();
                self.set_items(dict, &items)?;
                self.stack.push(dict);
            }
            b'a' => {
                let item = self.pop()?;
                self.append(&[item])?;
            }
            b'e' => {
                let items = self.pop_mark()?;
                self.append(&items)?;
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                let dict = self.top()?;
                self.set_items(dict, &[key, value])?;
            }
            b'u' => {
                let items = self.pop_mark()?;
                let dict = self.top()?;
                self.set_items(dict, &items)?;
            }
            0x8f => self.stack.push(Value::Opaque), // EMPTY_SET
            0x90 => {
                self.pop_mark()?; // ADDITEMS
                self.top()?;
            }
            0x91 => {
                self.pop_mark()?; // FROZENSET
                self.stack.push(Value::Opaque);
            }

            // Memo
            b'q' => {
                let key = self.input.byte()?;
                self.put(key.into())?;
            }
            b'r' => {
                let key = u32::from_le_bytes(self.input.array()?);
                self.put(key.into())?;
            }
            b'p' => {
                let key = self.input.number()?;
                self.put(key)?;
            }
            0x94 => {
                let key = self.memoized as u64;
                self.put(key)?;
            }
            b'h' => {
                let key = self.input.byte()?;
                self.get(key.into())?;
            }
            b'j' => {
                let key = u32::from_le_bytes(self.input.array()?);
                self.get(key.into())?;
            }
            b'g' => {
                let key = self.input.number()?;
                self.get(key)?;
            }

            // Classes and calls
            b'c' => {
                let (module, name) = (self.input.line()?, self.input.line()?);
                let global = self.global(module, name);
                self.stack.push(global);
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let word = |value| self.heap.text(value).filter(|text| text.len() <= LONGEST_WORD);
                let words = word(module).zip(word(name));
                let (module, name) = words.ok_or("a class without a proper name")?;
                let (module, name) = (module.to_owned(), name.to_owned());
                let global = self.global(&module, &name);
                self.stack.push(global);
            }
            b'R' | 0x81 => {
                let arguments = self.pop()?;
                let callee = self.pop()?;
                let made = self.call(callee, arguments, 0)?;
                self.stack.push(made);
            }
            0x92 => {
                let _keywords = self.pop()?;
                let arguments = self.pop()?;
                let callee = self.pop()?;
                let made = self.call(callee, arguments, 0)?;
                self.stack.push(made);
            }
            b'i' => {
                let (module, name) = (self.input.line()?, self.input.line()?);
                self.global(module, name);
                self.pop_mark()?;
                self.stack.push(Value::Opaque);
            }
            b'o' => {
                self.pop_mark()?;
                self.stack.push(Value::Opaque);
            }
            // BUILD sets attributes. A dict keeps its items whatever attributes it gets, except for torch's
            // ParameterDict, which is a module whose items are the attribute `_parameters`.
            b'b' => {
                let state = self.pop()?;
                let top = self.top()?;
                let items = {
                    let mut first = self.heap.pairs(state).take(MOST_ATTRIBUTES);
                    first.find(|(name, _)| self.heap.text(*name) == Some("_parameters"))
                };
                if let (Value::Dict(_), Some((_, items @ Value::Dict(_)))) = (top, items) {
                    self.pop()?;
                    self.stack.push(items);
                }
            }
            0x82 => {
                self.input.take(1)?;
                self.stack.push(Value::Opaque);
            }
            0x83 => {
                self.input.take(2)?;
                self.stack.push(Value::Opaque);
            }
            0x84 => {
                self.input.take(4)?;
                self.stack.push(Value::Opaque);
            }
            b'P' => {
                self.input.line()?;
                self.stack.push(Value::Opaque);
            }
            b'Q' => {
                let id = self.pop()?;
                let storage = self.persistent(id)?;
                self.stack.push(storage);
            }
            opcode => return Err(format!("opcode 0x{opcode:02x} is unknown")),
        }
        Ok(None)
    }

    fn pop(&mut self) -> Step<Value> {
        // Values below an open mark must not be popped.
        if self.marks.last().is_some_and(|mark| *mark >= self.stack.len()) {
            return Err("the stack is empty above its mark".into());
        }
        self.stack.pop().ok_or_else(|| "the stack is empty".into())
    }

    fn top(&self) -> Step<Value> {
        self.stack.last().copied().ok_or_else(|| "the stack is empty".into())
    }

    fn pop_mark(&mut self) -> Step<Vec<Value>> {
        let mark = self.marks.pop().ok_or("there is no mark")?;
        if mark > self.stack.len() {
            return Err("the stack is below its mark".into());
        }
        Ok(self.stack.split_off(mark))
    }

    fn tuple(&mut self, count: usize) -> Step<()> {
        let mut items = Vec::with_capacity(count);
        for _ in 0..count {
            items.push(self.pop()?);
        }
        items.reverse();
        let id = self.heap.add_sequence(items);
        self.stack.push(Value::Tuple(id));
        Ok(())
    }

    fn long(&mut self, len: usize) -> Step<()> {
        let bytes = self.input.take(len)?;
        let mut wide = [if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 }; 8];
        let value = match wide.get_mut(..len) {
            Some(low) => {
                low.copy_from_slice(bytes);
                Value::Int(i64::from_le_bytes(wide))
            }
            None => Value::Opaque,
        };
        self.stack.push(value);
        Ok(())
    }

    fn text(&mut self, len: u64) -> Step<()> {
        let bytes = self.input.take(usize::try_from(len).unwrap_or(usize::MAX))?;
        let text = self.heap.add_text(String::from_utf8_lossy(bytes));
        self.stack.push(text);
        Ok(())
    }

    fn skip_bytes(&mut self, len: u64) -> Step<()> {
        self.input.take(usize::try_from(len).unwrap_or(usize::MAX))?;
        self.stack.push(Value::Opaque);
        Ok(())
    }

    fn append(&mut self, items: &[Value]) -> Step<()> {
        let list = self.top()?;
        self.heap.extend_list(list, items);
        Ok(())
    }

    fn set_items(&mut self, dict: Value, items: &[Value]) -> Step<()> {
        let (pairs, rest) = items.as_chunks::<2>();
        if !rest.is_empty() {
            return Err("a key without a value".into());
        }
        self.heap.extend_dict(dict, pairs);
        Ok(())
    }

    /// Fills a dict from Python 2's `OrderedDict([[key, value], ...])`, which empties the list.
    fn set_pairs(&mut self, dict: Value, list: u32) -> Step<()> {
        let pairs = self.heap.sequences.get_mut(list as usize).map(std::mem::take);
        for pair in pairs.unwrap_or_default() {
            if let Some(&[key, value]) = self.heap.items(pair) {
                self.set_items(dict, &[key, value])?;
            }
        }
        Ok(())
    }

    fn put(&mut self, key: u64) -> Step<()> {
        let top = self.top()?;
        let index = usize::try_from(key).ok().filter(|index| *index <= self.input.at);
        let index = index.ok_or_else(|| format!("{key} is not a memo index"))?;
        if index >= self.memo.len() {
            self.memo.resize(index + 1, None);
        }
        if let Some(slot) = self.memo.get_mut(index) {
            self.memoized += usize::from(slot.is_none());
            *slot = Some(top);
        }
        Ok(())
    }

    fn get(&mut self, key: u64) -> Step<()> {
        let value = usize::try_from(key).ok().and_then(|index| *self.memo.get(index)?);
        self.stack.push(value.ok_or_else(|| format!("the memo has no entry {key}"))?);
        Ok(())
    }

    /// Resolves a class or function; only these names are supported.
    fn global(&mut self, module: &str, name: &str) -> Value {
        let global = match (module, name) {
            ("collections", "OrderedDict" | "defaultdict")
            | ("builtins" | "__builtin__", "dict")
            | ("torch.nn.modules.container", "ParameterDict") => Global::Dict,
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2" | "_rebuild_tensor_v3") => {
                Global::RebuildTensor
            }
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => {
                Global::RebuildParameter
            }
            ("torch._tensor", "_rebuild_from_type_v2") => Global::RebuildFromType,
            ("torch", "Size") => Global::Size,
            ("torch" | "torch.storage", "UntypedStorage") => Global::UntypedStorage,
            ("torch" | "torch.cuda", name) => match element_type(name) {
                Some(Ok(element)) => Global::DType(element),
                Some(Err(Some(element))) => Global::Storage(element),
                Some(Err(None)) => Global::OddStorage,
                None => Global::Foreign,
            },
            _ => Global::Foreign,
        };
        if global == Global::Foreign && self.heap.foreign.len() < MOST_FOREIGN {
            self.heap.foreign.insert(format!("{module}.{name}"));
        }
        Value::Global(global)
    }

    /// Calls a supported constructor. Any other callee gives [`Value::Opaque`].
    fn call(&mut self, callee: Value, arguments: Value, depth: usize) -> Step<Value> {
        let Value::Global(global) = callee else { return Ok(Value::Opaque) };
        let arguments = self.heap.items(arguments).unwrap_or_default();
        let arguments: Vec<Value> = arguments.iter().take(MOST_ARGUMENTS).copied().collect();
        Ok(match global {
            Global::Dict => {
                let dict = self.heap.add_dict();
                if let Some(Value::List(id)) = arguments.first() {
                    self.set_pairs(dict, *id)?;
                }
                dict
            }
            Global::RebuildTensor => self.tensor(&arguments)?,
            Global::RebuildParameter | Global::Size => {
                arguments.first().copied().unwrap_or(Value::Opaque)
            }
            Global::RebuildFromType if depth < DEEPEST_CALL => match arguments[..] {
                [callee, _, arguments, ..] => self.call(callee, arguments, depth + 1)?,
                _ => Value::Opaque,
            },
            _ => Value::Opaque,
        })
    }

    /// Builds a tensor from `(storage, offset, shape, strides, requires_grad, hooks, [dtype, metadata])`.
    fn tensor(&mut self, arguments: &[Value]) -> Step<Value> {
        let [storage, Value::Int(offset), shape, strides, rest @ ..] = arguments else {
            return Err("a tensor is rebuilt from something that is not a tensor".into());
        };
        let Value::Storage(id) = storage else {
            // A storage of an unsupported type, so not a weight.
            return Ok(Value::Opaque);
        };
        let sizes = |value: Value| -> Option<Vec<usize>> {
            let items = self.heap.items(value).filter(|items| items.len() <= MOST_DIMENSIONS)?;
            items
                .iter()
                .map(|i| if let Value::Int(i) = i { usize::try_from(*i).ok() } else { None })
                .collect()
        };
        let parts = (usize::try_from(*offset), sizes(*shape), sizes(*strides));
        let (Ok(offset), Some(shape), Some(strides)) = parts else {
            return Err("a tensor has an impossible shape, stride or offset".into());
        };
        let stored = self.heap.storages.get(*id as usize).and_then(|storage| storage.element);
        let named = rest.iter().find_map(|value| match value {
            Value::Global(Global::DType(element)) => Some(*element),
            _ => None,
        });
        let Some(element) = named.or(stored) else { return Ok(Value::Opaque) };
        let view = View { offset, strides };
        Ok(self.heap.add_tensor(TensorRef { storage: *id, element, shape, view }))
    }

    /// Builds a storage from `("storage", type, key, device, count, [view])`.
    fn persistent(&mut self, id: Value) -> Step<Value> {
        let Some(&[kind, Value::Global(global), key, _, Value::Int(count), ref rest @ ..]) =
            self.heap.items(id)
        else {
            return Ok(Value::Opaque);
        };
        let element = match global {
            Global::Storage(element) => Some(element),
            Global::UntypedStorage => None,
            _ => return Ok(Value::Opaque),
        };
        let (Some("storage"), Some(word)) = (self.heap.text(kind), self.heap.text(key)) else {
            return Ok(Value::Opaque);
        };
        if rest.first().is_some_and(|view| *view != Value::None) {
            return Err(format!("storage {} is a view of another", quoted(word)));
        }
        let count = usize::try_from(count)
            .map_err(|_| format!("storage {} has {count} elements", quoted(word)))?;
        Ok(self.heap.add_storage(Storage { key, element, count }))
    }
}

/// Returns `Ok` for a dtype, `Err` for a storage class (`Err(None)` if unsupported), `None` for any other name.
fn element_type(name: &str) -> Option<Result<ElementType, Option<ElementType>>> {
    Some(match name {
        "float16" | "half" => Ok(ElementType::F16),
        "bfloat16" => Ok(ElementType::BF16),
        "float32" | "float" => Ok(ElementType::F32),
        "float64" | "double" => Ok(ElementType::F64),
        "float8_e4m3fn" => Ok(ElementType::F8E4M3),
        "float8_e5m2" => Ok(ElementType::F8E5M2),
        "bool" => Ok(ElementType::Bool),
        "uint8" => Ok(ElementType::U8),
        "int8" => Ok(ElementType::I8),
        "uint16" => Ok(ElementType::U16),
        "int16" | "short" => Ok(ElementType::I16),
        "uint32" => Ok(ElementType::U32),
        "int32" | "int" => Ok(ElementType::I32),
        "uint64" => Ok(ElementType::U64),
        "int64" | "long" => Ok(ElementType::I64),
        _ => Err(match name.strip_suffix("Storage")? {
            "Half" => Some(ElementType::F16),
            "BFloat16" => Some(ElementType::BF16),
            "Float" => Some(ElementType::F32),
            "Double" => Some(ElementType::F64),
            "Bool" => Some(ElementType::Bool),
            "Byte" => Some(ElementType::U8),
            "Char" => Some(ElementType::I8),
            "Short" => Some(ElementType::I16),
            "Int" => Some(ElementType::I32),
            "Long" => Some(ElementType::I64),
            _ => None,
        }),
    })
}

struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Input<'a> {
    fn take(&mut self, len: usize) -> Step<&'a [u8]> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let taken =
            rest.get(..len).ok_or_else(|| format!("{len} bytes wanted, {} left", rest.len()))?;
        self.at += len;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Step<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn byte(&mut self) -> Step<u8> {
        self.array().map(|[byte]| byte)
    }

    fn line(&mut self) -> Step<&'a str> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let len = rest.iter().position(|b| *b == b'\n').ok_or("a line without an end")?;
        let line = self.take(len + 1)?;
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        std::str::from_utf8(line).map_err(|_| "a line that is not text".into())
    }

    fn number(&mut self) -> Step<u64> {
        self.line()?.parse().map_err(|_| "a memo key that is not a number".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A protocol 2 pickle of `{"w": tensor}` that runs `before` first and stores its result in the dict.
    fn with_a_tensor(before: &[u8]) -> Vec<u8> {
        let mut p = b"\x80\x02}(".to_vec();
        p.extend(b"X\x01\x00\x00\x00x");
        p.extend(before);
        p.extend(b"X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n((");
        p.extend(b"X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000");
        p.extend(b"X\x03\x00\x00\x00cpuK\x06tQK\x00K\x02K\x03\x86K\x03K\x01\x86\x89");
        p.extend(b"ccollections\nOrderedDict\n)RtRu.");
        p
    }

    fn tensor_names(pickle: &[u8]) -> Vec<String> {
        let (heap, root, taken) = run(pickle).unwrap();
        assert_eq!(taken, pickle.len());
        heap.tensors_of(root).map(|(name, _)| name.to_owned()).collect()
    }

    #[test]
    fn a_tensor_is_described() {
        let pickle = with_a_tensor(b"N");
        let (heap, root, _) = run(&pickle).unwrap();
        let (name, tensor) = heap.tensors_of(root).next().unwrap();
        assert_eq!(
            (name, &tensor.shape[..], &tensor.view.strides[..]),
            ("w", &[2, 3][..], &[3, 1][..])
        );
        assert_eq!(tensor.element, ElementType::F32);
        assert_eq!(heap.storages[0].count, 6);
    }

    #[test]
    fn calls_of_foreign_functions_have_no_effect() {
        let attacks: [&[u8]; 6] = [
            b"cposix\nsystem\n(X\x05\x00\x00\x00touchtR",
            b"\x8c\x02os\x8c\x06system\x93\x8c\x05touch\x85R",
            b"c__builtin__\neval\n(S'1'\ntR",
            b"(S'touch'\nios\nsystem\n",
            b"(cos\nsystem\nS'touch'\no",
            b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'f8'\nK\x00K\x01tR}bC\x0812345678tR",
        ];
        for attack in attacks {
            let pickle = with_a_tensor(attack);
            assert_eq!(tensor_names(&pickle), ["w"]);
            assert!(run(&pickle).unwrap().0.foreign().count() > 0);
        }
    }

    #[test]
    fn every_opcode_of_newer_protocols_passes() {
        let odd: [&[u8]; 12] = [
            b"\x95\x00\x00\x00\x00\x00\x00\x00\x00N",
            b"\x8f(K\x01K\x02\x90",
            b"(K\x01\x91",
            b"\x96\x02\x00\x00\x00\x00\x00\x00\x00ab",
            b"C\x02ab\x94",
            b"B\x02\x00\x00\x00ab",
            b"G\x3f\xf0\x00\x00\x00\x00\x00\x00",
            b"F1.5\n",
            b"\x8a\x02\xff\xff",
            b"\x8b\x0a\x00\x00\x000123456789",
            b"](K\x01K\x02eN\x30",
            b"(lp7\ng7\na",
        ];
        for part in odd {
            assert_eq!(tensor_names(&with_a_tensor(part)), ["w"], "{part:?}");
        }
    }

    #[test]
    fn long_integers_keep_their_sign() {
        let int = |bytes: &[u8]| run(bytes).unwrap().1;
        assert_eq!(int(b"\x8a\x02\xff\xff."), Value::Int(-1));
        assert_eq!(int(b"\x8a\x00."), Value::Int(0));
        assert_eq!(int(b"\x8a\x02\xff\x00."), Value::Int(255));
        assert_eq!(int(b"I-12\n."), Value::Int(-12));
        assert_eq!(int(b"L12L\n."), Value::Int(12));
    }

    #[test]
    fn damaged_pickles_are_refused_and_nothing_worse_happens() {
        let sound = with_a_tensor(b"N");
        for cut in 0..sound.len() {
            assert!(run(&sound[..cut]).is_err(), "cut at {cut}");
        }
        let damaged: [&[u8]; 10] = [
            b"\xf7.",                // no such opcode
            b"\x80\x09.",            // no such protocol
            b"R.",                   // nothing to call
            b"h\x05.",               // empty memo
            b"t.",                   // no mark
            b"K\x01(.",              // the result lies below a mark
            b"X\xff\xff\xff\xffabc", // text beyond the end
            b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffabc",
            b"}(K\x01u.",  // a key without a value
            b"K\x01\x86.", // too few for a pair
        ];
        for pickle in damaged {
            assert!(run(pickle).is_err(), "{pickle:?}");
        }
    }

    #[test]
    fn nested_tuples_neither_recurse_nor_hang() {
        let nested = |count| {
            let mut pickle = b"\x80\x02)".to_vec();
            pickle.extend(std::iter::repeat_n(0x85, count));
            pickle.push(b'.');
            pickle
        };
        assert!(matches!(run(&nested(20_000)).unwrap().1, Value::Tuple(_)));
        assert!(run(&nested(1_000_000)).unwrap_err().contains("not a list of tensors"));
    }

    #[test]
    fn what_is_made_stays_in_proportion_to_the_pickle() {
        let tensor = {
            let mut p = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nq\x01((U\x07storage".to_vec();
            p.extend(b"ctorch\nFloatStorage\nU\x010U\x03cpuK\x01tQK\x00(K\x01K\x01K\x01K\x01t");
            p.extend(b"(K\x01K\x01K\x01K\x01t\x89Ntq\x02");
            p
        };
        let storage =
            b"\x80\x02(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x01tq\x01".to_vec();
        let length = 1 << 19;
        for (start, again, is_refused) in [
            (b"\x80\x02".to_vec(), &b"}"[..], true),
            (b"\x80\x02".to_vec(), b"]", true),
            (b"\x80\x02)".to_vec(), b"\x85", true),
            (b"\x80\x02".to_vec(), b"U\x01\xff", false),
            (tensor, b"h\x01h\x02R", true),
            // These cost no more than the stack, the memo and a small record.
            (storage, b"h\x01Q", false),
            (b"\x80\x02".to_vec(), b")", false),
            (b"\x80\x02N".to_vec(), b"\x94", false),
            (b"\x80\x02N".to_vec(), b"2", false),
            (b"\x80\x02".to_vec(), b"U\x00", false),
        ] {
            let mut pickle = start;
            while pickle.len() < length {
                pickle.extend(again);
            }
            pickle.push(b'.');
            let started = std::time::Instant::now();
            let made = run(&pickle);
            assert_eq!(made.is_err(), is_refused, "{again:?}: {:?}", made.err());
            assert!(started.elapsed().as_millis() < 500, "{again:?}: {:?}", started.elapsed());
        }
    }

    #[test]
    fn numbers_of_the_memo_are_no_larger_than_the_pickle() {
        assert!(run(b"Nr\xff\xff\xff\x7f.").unwrap_err().contains("not a memo index"));
        assert!(run(b"Np99999999999999999999\n.").is_err());
        assert!(run(b"Np18446744073709551615\n.").is_err());
        // MEMOIZE continues after the occupied entries, as in Python.
        assert_eq!(run(b"K\x05q\x00K\x06\x940h\x01.").unwrap().1, Value::Int(6));
        assert_eq!(run(b"K\x05q\x03K\x06\x940h\x01.").unwrap().1, Value::Int(6));
    }

    #[test]
    fn naming_large_things_again_and_again_costs_nothing() {
        // A list of 30 000 pairs that is made into an OrderedDict 30 000 times, and a text of that length that is used
        // as a class name as often.
        let mut pickle = b"\x80\x02ccollections\nOrderedDict\nq\x00K\x01K\x02\x86q\x01](".to_vec();
        for _ in 0..30_000 {
            pickle.extend(b"h\x01");
        }
        pickle.extend(b"e\x85q\x03");
        for _ in 0..30_000 {
            pickle.extend(b"h\x00h\x03R0");
        }
        pickle.extend(b"N.");
        let start = std::time::Instant::now();
        let (heap, _, _) = run(&pickle).unwrap();
        assert_eq!(heap.dicts.iter().map(Vec::len).sum::<usize>(), 30_000);
        assert!(start.elapsed().as_secs() < 10);

        let mut pickle = b"\x80\x04X\x40\x42\x0f\x00".to_vec();
        pickle.resize(pickle.len() + 1_000_000, b'a');
        pickle.extend(b"q\x00h\x00\x93.");
        assert!(run(&pickle).unwrap_err().contains("proper name"));
    }

    #[test]
    fn a_tensor_with_a_negative_size_is_refused() {
        let pickle = with_a_tensor(b"N");
        let at = pickle.windows(4).position(|w| w == b"K\x02K\x03").unwrap();
        let mut bad = pickle[..at].to_vec();
        bad.extend(b"J\xff\xff\xff\xffK\x03");
        bad.extend(&pickle[at + 4..]);
        assert!(run(&bad).unwrap_err().contains("impossible"));
    }
}
