//! `animatelcm inspect`: what a file is.

use super::args::InspectArgs;
use crate::Result;

pub(super) fn run(args: &InspectArgs) -> Result<()> {
    let _ = args;
    Ok(())
}
