//! Panics: a defect of this program or of a library is an error like others, in one line.

use std::any::Any;
use std::panic::{self, AssertUnwindSafe, PanicHookInfo};
use std::sync::{Mutex, PoisonError};

use crate::{Error, Result};

/// Message and location of the last panic.
static LAST: Mutex<Option<String>> = Mutex::new(None);

/// Keeps panics from being printed as they are. With `RUST_BACKTRACE` they are, for whoever looks for the defect.
pub(super) fn hide() {
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |panic: &PanicHookInfo<'_>| {
        let place =
            panic.location().map(|place| format!(" ({}:{})", file(place.file()), place.line()));
        let text = format!("{}{}", message(panic.payload()), place.unwrap_or_default());
        *LAST.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
        if std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0") {
            usual(panic);
        }
    }));
}

/// Runs `work`; a panic in it becomes an error.
pub(super) fn caught<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| {
        let last = LAST.lock().unwrap_or_else(PoisonError::into_inner).take();
        let text = last.unwrap_or_else(|| message(payload.as_ref()).to_owned());
        let reason = format!("internal error: {}", text.split_whitespace().collect::<Vec<_>>().join(" "));
        Err(Error::Tensor(candle_core::Error::Msg(reason)).with_hint(
            "this is a defect: please report it with the command line; RUST_BACKTRACE=1 says where it is",
        ))
    })
}

/// A panic's words.
fn message(payload: &dyn Any) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without a message")
}

/// A source file without the folders of the machine that it was compiled on.
fn file(path: &str) -> &str {
    // Sources of this crate are relative; those of libraries lie in `…/registry/src/INDEX/`.
    let library = path.rsplit_once("/registry/src/").and_then(|(_, rest)| rest.split_once('/'));
    library.map_or(path, |(_, path)| path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_internal_error_of_one_line() {
        let panicking = || -> Result<()> { panic!("two\n  lines of {}", 3) };
        let error = caught(panicking).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("internal error: two lines of 3"), "{text}");
        assert_eq!(error.kind().exit_code(), 1);
        assert!(error.hint().unwrap().contains("report"));
        assert_eq!(caught(|| Ok(7)).unwrap(), 7);
    }

    #[test]
    fn libraries_are_named_without_the_machines_folders() {
        assert_eq!(
            file("/a/registry/src/index.crates.io-1/gif-0.14.1/src/x.rs"),
            "gif-0.14.1/src/x.rs"
        );
        assert_eq!(file("src/cli/mod.rs"), "src/cli/mod.rs");
    }
}
