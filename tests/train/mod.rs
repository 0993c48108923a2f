//! Making models.

/// Losses, distillation, stages.
mod parts;
/// Whole trainings of a tiny model.
mod trainings;
