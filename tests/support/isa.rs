//! Every set of instructions.

use animatelcm::kernels::cpu::isa::Isa;
use candle_core::{Result, Tensor};

/// The results on every set that is there; the portable one always is.
pub(crate) fn results(run: impl Fn() -> Result<Tensor>) -> Vec<Tensor> {
    Isa::ALL.iter().filter_map(|isa| isa.force(&run)).map(Result::unwrap).collect()
}
