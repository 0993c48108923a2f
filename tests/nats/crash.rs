//! Front end, workers and server that are killed: every job ends once, with the clip that it would have had.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use animatelcm::queue::{DirStore, NatsQueue, NatsSettings, NatsStore, Queue, Status, Store};
use serde_json::{Value, json};

use crate::broker::Broker;
use crate::client::Server;
use crate::fleet::{Hand, front};
use crate::support::program::{Folder, names};

/// The smallest job of the model inside.
fn tiny(seed: u64) -> Value {
    json!({
        "schema": "animatelcm/v1", "prompt": "a red circle moving left on a white background",
        "size": {"frames": 2}, "sampling": {"seed": seed, "steps": 1},
    })
}

/// The record of a job when it has ended.
fn ended(server: &Server, id: &str, until: Instant) -> Value {
    loop {
        let record = server.json(&format!("/v1/jobs/{id}"));
        if !["queued", "running"].contains(&record["status"].as_str().unwrap()) {
            return record;
        }
        assert!(Instant::now() < until, "{record}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Submits so many jobs to a fleet of which something is killed again and again, and checks what came of them.
fn killed(jobs: u64, kills: u64) {
    let Some(mut broker) = Broker::start() else { return };
    let folder = Folder::new();
    let url = broker.url();
    let mut server = front(&folder, &url);
    let mut hands = ["one", "two"].map(|name| Hand::start(&folder, &url, name));
    let mut ids: BTreeMap<String, u64> = BTreeMap::new();
    for seed in 0..jobs {
        let record = server.submit(&tiny(seed));
        ids.insert(record["id"].as_str().unwrap().to_owned(), seed);
    }
    // A pattern of pauses that is the same in every run, and hits jobs at different points.
    let mut state = 0x9e37_79b9_u64;
    for kill in 0..kills {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        std::thread::sleep(Duration::from_millis(100 + (state >> 33) % 1500));
        match kill % 4 {
            0 => {
                hands[0].kill();
                hands[0] = Hand::start(&folder, &url, "one");
            }
            1 => {
                broker.kill();
                std::thread::sleep(Duration::from_millis((state >> 40) % 500));
                broker.restart();
            }
            2 => {
                server.kill();
                server = front(&folder, &url);
            }
            _ => {
                hands[1].kill();
                hands[1] = Hand::start(&folder, &url, "two");
            }
        }
    }
    let until = Instant::now() + Duration::from_secs(120 + 4 * jobs);
    let (mut hashes, mut lost) = (BTreeMap::new(), 0);
    for (id, seed) in &ids {
        let record = ended(&server, id, until);
        // A job whose worker was killed twice is given up, and says so.
        if record["status"] == "failed" {
            assert_eq!(record["error"]["code"], "worker_lost", "{record}");
            assert_eq!(record["attempt"], 2, "{record}");
            lost += 1;
            continue;
        }
        assert_eq!(record["status"], "completed", "{record}");
        let clip = server.get(&format!("/v1/jobs/{id}/content"));
        assert_eq!(clip.status, 200);
        hashes.insert(*seed, (record["output"]["sha256"].as_str().unwrap().to_owned(), clip.body));
    }
    eprintln!("{} of {jobs} jobs were completed, {lost} given up", hashes.len());
    assert!(hashes.len() as u64 * 10 >= jobs * 8);
    // The clips are those of a run that nobody disturbs.
    let wanted: Vec<u64> = hashes.keys().copied().step_by((hashes.len() / 8).max(1)).collect();
    let lines: Vec<String> = wanted.iter().map(|seed| tiny(*seed).to_string()).collect();
    std::fs::create_dir(folder.path("made")).unwrap();
    folder.write("jobs.jsonl", lines.join("\n") + "\n");
    folder.run(&["generate", "--request", "jobs.jsonl", "-o", "made/clip.gif", "-q"]).ok();
    let made: BTreeSet<Vec<u8>> = names(&folder.path("made"))
        .into_iter()
        .map(|name| folder.read(&format!("made/{name}")))
        .collect();
    let wanted: BTreeSet<Vec<u8>> = wanted.iter().map(|seed| hashes[seed].1.clone()).collect();
    assert!(made == wanted, "clips differ from those of `generate`");
    // Every job is there once and has ended, and nothing waits or is nobody's.
    let queue = NatsQueue::open(&NatsSettings::new(&url)).unwrap();
    let all = queue.list(&animatelcm::queue::Filter::default()).unwrap();
    assert_eq!(all.len() as u64, jobs);
    assert_eq!(queue.count(Status::Completed).unwrap(), hashes.len());
    let known: BTreeSet<String> = hashes.values().map(|(hash, _)| hash.clone()).collect();
    let copies = DirStore::new(folder.path("copies"), folder.path("drafts")).unwrap();
    let store = NatsStore::open(&queue, NatsStore::CLIPS, copies).unwrap();
    let stored: BTreeSet<String> = store.older(Duration::ZERO).unwrap().into_iter().collect();
    assert!(stored.is_superset(&known));
    // A worker that is killed behind its clip's back leaves that of a job that is given up.
    assert!(stored.len() <= known.len() + lost, "{} of {}", stored.len(), known.len());
    let started = Instant::now();
    let drafts = || ["data/tmp", "one/tmp", "two/tmp"].map(|tmp| names(&folder.path(tmp)).len());
    let messages = || crate::queue::messages(&broker, "ANIM_JOBS");
    while (drafts(), messages()) != ([0; 3], 0) {
        let is_late = started.elapsed() > Duration::from_secs(20);
        assert!(!is_late, "{:?} drafts, {} messages", drafts(), messages());
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn jobs_survive_whatever_is_killed() {
    killed(12, 8);
}

/// Minutes: `cargo test --release --features nats --test nats -- --ignored three_hundred_jobs`.
#[test]
#[ignore = "minutes"]
fn three_hundred_jobs_survive_whatever_is_killed_at_any_time() {
    killed(300, 80);
}
