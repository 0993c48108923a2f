//! Many clients at once.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::client::{Server, small};
use crate::support::program::Folder;

/// Sixteen clients that send a thousand jobs: each is taken or told to come again, and health is answered at once.
///
/// `cargo test --release -- --ignored a_thousand_jobs`
#[test]
#[ignore = "a minute, and a machine with little else to do"]
fn a_thousand_jobs_of_sixteen_clients_are_taken_or_told_to_come_again() {
    const CLIENTS: u64 = 16;
    const JOBS: u64 = 1000;
    let folder = Folder::new();
    let server = Server::start(&folder, &["--queue", "64"]);
    let (taken, full, ended) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let mut slowest = Duration::ZERO;
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (server, taken, full, ended) = (&server, &taken, &full, &ended);
            scope.spawn(move || {
                for seed in (client..JOBS).step_by(CLIENTS as usize) {
                    let request = server.request("POST", "/v1/jobs?format=gif");
                    match request.json(&small(seed)).send().status {
                        202 => taken.fetch_add(1, Ordering::Relaxed),
                        429 => full.fetch_add(1, Ordering::Relaxed),
                        other => panic!("{other}"),
                    };
                }
                ended.fetch_add(1, Ordering::Relaxed);
            });
        }
        while ended.load(Ordering::Relaxed) < CLIENTS as usize {
            let started = Instant::now();
            assert_eq!(server.get("/health").status, 200);
            slowest = slowest.max(started.elapsed());
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let (taken, full) = (taken.into_inner(), full.into_inner());
    assert_eq!(taken + full, JOBS as usize);
    assert!(taken >= 64 && full > 0, "{taken} taken, {full} not");
    assert!(slowest < Duration::from_millis(50), "health took {slowest:?}");
}
