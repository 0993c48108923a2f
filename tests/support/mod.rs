//! What the tests share.

pub(crate) mod close;
pub(crate) mod golden;
#[cfg(feature = "hub")]
pub(crate) mod hub_server;
pub(crate) mod isa;
#[cfg(feature = "cli")]
pub(crate) mod program;
pub(crate) mod random;
pub(crate) mod run;
pub(crate) mod tiny;
