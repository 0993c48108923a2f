//! Servers that are killed: every job ends once, with the clip that it would have had.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::client::{Server, small};
use crate::support::program::{Folder, names};

/// The hashes of all files of a folder of a store.
fn stored(folder: &Path) -> Vec<String> {
    let inside = |name: &String| names(&folder.join(name));
    names(folder).iter().flat_map(inside).collect()
}

/// Submits so many jobs to a server that is killed again and again, and checks what came of them.
fn killed(jobs: usize, kills: usize) {
    let folder = Folder::new();
    let args = ["--queue", "1000"];
    let mut server = Server::start(&folder, &args);
    let mut ids: BTreeMap<String, u64> = BTreeMap::new();
    for seed in 0..jobs as u64 {
        let record = server.submit(&small(seed));
        ids.insert(record["id"].as_str().unwrap().to_owned(), seed);
    }
    // A pattern of pauses that is the same in every run, and hits jobs at different points.
    let mut state = 0x9e37_79b9_u64;
    for _ in 0..kills {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        std::thread::sleep(Duration::from_millis(100 + (state >> 33) % 900));
        server.kill();
        server = Server::start(&folder, &args);
    }
    let mut hashes = BTreeMap::new();
    for (id, seed) in &ids {
        let record = server.ended(id);
        // A job that was killed twice while it ran is given up, and says so.
        if record["status"] == "failed" {
            assert_eq!(record["error"]["code"], "worker_lost", "{record}");
            assert_eq!(record["attempt"], 2, "{record}");
            continue;
        }
        assert_eq!(record["status"], "completed", "{record}");
        let path = format!("/v1/jobs/{id}/content");
        let clip = server.get(&path);
        assert_eq!(clip.status, 200);
        hashes.insert(*seed, (record["output"]["sha256"].as_str().unwrap().to_owned(), clip.body));
    }
    assert!(hashes.len() * 10 >= jobs * 8, "{} of {jobs} jobs were completed", hashes.len());
    let list = server.json("/v1/jobs?limit=100");
    assert_eq!(list["has_more"], json!(jobs > 100));
    // The clips are those of a run that nobody disturbs.
    let wanted: Vec<u64> = hashes.keys().copied().step_by((hashes.len() / 5).max(1)).collect();
    let lines: Vec<String> = wanted.iter().map(|seed| small(*seed).to_string()).collect();
    std::fs::create_dir(folder.path("made")).unwrap();
    folder.write("jobs.jsonl", lines.join("\n") + "\n");
    folder.run(&["generate", "--request", "jobs.jsonl", "-o", "made/clip.gif", "-q"]).ok();
    let mut same = 0;
    for name in names(&folder.path("made")) {
        let bytes = folder.read(&format!("made/{name}"));
        same += usize::from(hashes.values().any(|(_, clip)| *clip == bytes));
    }
    assert_eq!(same, wanted.len());
    // No file is nobody's, and none is half made.
    let mut known: Vec<String> = hashes.values().map(|(hash, _)| hash.clone()).collect();
    known.sort_unstable();
    known.dedup();
    assert_eq!(stored(&folder.path("data/clips")), known);
    assert_eq!(names(&folder.path("data/tmp")), [""; 0]);
    let failed: Value = server.json("/v1/jobs?status=running");
    assert_eq!(failed["data"], json!([]));
}

#[test]
fn jobs_survive_a_server_that_is_killed() {
    killed(6, 2);
}

/// Minutes: `cargo test --release -- --ignored two_hundred_jobs`.
#[test]
#[ignore = "minutes"]
fn two_hundred_jobs_survive_a_server_that_is_killed_at_any_time() {
    killed(200, 40);
}
