//! What the tests share.

pub(crate) mod close;
pub(crate) mod golden;
#[cfg(feature = "hub")]
pub(crate) mod hub_server;
pub(crate) mod tiny;
