//! Networks.

/// The text encoder.
mod blip;
mod clip;
/// What estimates depth.
mod depth_anything;
/// Published sizes: names lists always, whole passes when asked.
mod full_size;
/// What names actions in videos.
mod i3d;
/// The denoising network and its motion modules.
mod unet;
/// The autoencoders.
mod vae;
