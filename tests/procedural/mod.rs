//! Clips whose captions are the whole truth.

/// What the oracle sees of them.
mod oracle;
