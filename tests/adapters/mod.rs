//! What changes a model or stands beside it: LoRA, controls, image prompts.

/// Everything at once.
#[cfg(feature = "cli")]
mod composition;
/// ControlNets.
mod control_net;
/// AnimateLCM-I2V.
mod i2v;
/// IP-Adapters and the image encoder.
mod ip_adapter;
/// Every spelling of a LoRA.
mod lora;
/// A trained adapter of every kind.
#[cfg(feature = "cli")]
mod pocket;
/// Adapters in a running pipeline.
mod running;
/// SparseCtrl.
mod sparse_ctrl;
/// T2I-Adapters.
mod t2i_adapter;
