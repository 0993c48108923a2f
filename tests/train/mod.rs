//! Making models.

/// Adaptation of control networks.
mod adapt;
/// Motion modules that start from an image.
mod image_to_video;
/// Losses, distillation, stages.
mod parts;
/// Whole trainings of a tiny model.
mod trainings;
