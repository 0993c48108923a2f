//! Fuzzing of every parser that reads a stranger's bytes.
//!
//! What a target does is in [`targets`], which `tests/attacks/fuzz.rs` of the main crate runs as well, over the corpora
//! and a fixed number of mutations. Here are the parts that only libFuzzer needs.

mod memory;
pub mod targets;

/// Prepares the process; called once, before the first input.
pub fn start() {
    // libFuzzer's hook aborts on every panic, also on one that the program catches and turns into an error. One that is
    // not caught ends the process all the same.
    std::panic::set_hook(Box::new(|info| eprintln!("{info}")));
}

/// Gives one input to a target, within the memory that it may take.
pub fn execute(run: fn(&[u8]), data: &[u8]) {
    if !targets::is_slow(data) {
        memory::limited(targets::allowance(data.len()), || run(data));
    }
}

/// The libFuzzer target of that name.
#[macro_export]
macro_rules! target {
    ($name:ident) => {
        libfuzzer_sys::fuzz_target!(
            init: $crate::start(),
            |data: &[u8]| $crate::execute($crate::targets::$name::run, data)
        );
    };
}
