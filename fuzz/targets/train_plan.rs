//! Plans of trainings.

use animatelcm::train::{Plan, Stage, memory};
use candle_core::Device;

/// Reads a plan, estimates its memory, and reads back what it is written as.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(plan) = Plan::from_toml("plan.toml", text) else { return };
    for stage in Stage::ALL {
        let _ = memory(stage, &plan, &Device::Cpu);
    }
    let written = plan.to_toml().expect("a plan that was read can be written");
    let again = Plan::from_toml("again.toml", &written).expect("a written plan can be read");
    // NaN is not equal to itself.
    assert_eq!(format!("{again:?}"), format!("{plan:?}"), "{written}");
}
