//! The queue on a NATS server, and fleets of real processes over it.
//!
//! `ANIMATELCM_NATS` names a `nats-server` program, 2.10 or newer; each test starts its own. `tests/nats/server.sh`
//! fetches one.

// Clippy takes functions that tests share for ordinary code.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

/// A server of a test.
mod broker;
/// A client of the HTTP server.
#[allow(dead_code)]
#[path = "../server/client.rs"]
mod client;
/// What every queue does.
#[allow(dead_code)]
#[path = "../queue/contract.rs"]
mod contract;
/// Processes that are killed.
mod crash;
/// Front ends and workers.
mod fleet;
/// What is special about this queue.
mod queue;
/// What the program is run with.
#[allow(dead_code)]
#[path = "../support"]
mod support {
    pub(crate) mod program;
}
