//! What the tests share.

#[cfg(feature = "hub")]
pub(crate) mod hub_server;
