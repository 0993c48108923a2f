//! Every spelling of a LoRA changes the right weights by the right amount.

/// Its relatives, against their own packages.
mod families;
/// Names, as other programs write them.
mod namings;
/// What does not fit, is broken, or is something else.
mod refusals;
/// By how much.
mod strengths;
