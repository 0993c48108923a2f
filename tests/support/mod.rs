//! What the tests share.

pub(crate) mod close;
pub(crate) mod golden;
pub(crate) mod tiny;
