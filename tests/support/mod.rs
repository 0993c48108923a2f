//! What the tests share.

#[cfg(feature = "cli")]
pub(crate) mod attack;
#[cfg(all(feature = "gif", feature = "png", feature = "apng", feature = "webp", feature = "mp4"))]
pub(crate) mod clips;
pub(crate) mod close;
pub(crate) mod control;
pub(crate) mod golden;
#[cfg(feature = "hub")]
pub(crate) mod hub;
#[cfg(feature = "hub")]
pub(crate) mod hub_server;
pub(crate) mod i2v;
pub(crate) mod ip_adapter;
pub(crate) mod isa;
pub(crate) mod lora;
#[cfg(feature = "mp4")]
pub(crate) mod media;
pub(crate) mod metrics;
#[cfg(feature = "cli")]
pub(crate) mod program;
pub(crate) mod random;
#[cfg(feature = "cli")]
pub(crate) mod requests;
pub(crate) mod run;
pub(crate) mod tiny;
#[cfg(feature = "cli")]
pub(crate) mod tiny_folder;
pub(crate) mod torch;
pub(crate) mod values;
pub(crate) mod weights;
