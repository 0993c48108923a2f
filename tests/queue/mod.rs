//! Jobs that wait, leases, and what workers make of them.

mod contract;
mod workers;

use std::time::Duration;

use animatelcm::queue::{
    Accepted, DirStore, Filter, Output, Places, Queue, Record, Retention, SqliteQueue, Status,
    Store, unix_time,
};

use contract::{output, submission, submit};

const LEASE: Duration = Duration::from_secs(1);

#[test]
fn the_sqlite_queue_keeps_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    let mut number = 0;
    contract::all(&mut || {
        number += 1;
        let path = folder.path().join(format!("{number}.sqlite"));
        Box::new(SqliteQueue::with_lease(&path, LEASE).unwrap())
    });
}

#[test]
fn a_restart_keeps_every_job_and_runs_again_what_ran() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("queue.sqlite");
    let open = || SqliteQueue::open(&path).unwrap();
    let queue = open();
    let ids: Vec<_> = ["a", "b", "c"].iter().map(|key| submit(&queue, key).id).collect();
    let lease = queue.claim("w", &[], Duration::ZERO).unwrap().unwrap();
    assert_eq!(lease.record().id, ids[0]);
    let before = queue.events(0, None).unwrap();
    // A process that is killed says nothing.
    std::mem::forget(lease);
    drop(queue);
    let queue = open();
    let again = queue.get(&ids[0]).unwrap().unwrap();
    assert_eq!((again.status, again.attempt), (Status::Queued, 1));
    assert_eq!(queue.position(&ids[0]).unwrap(), Some(1));
    assert_eq!(queue.position(&ids[2]).unwrap(), Some(3));
    let newest = before.last().unwrap().revision;
    let after = queue.events(newest, None).unwrap();
    assert!(after.len() == 1 && after[0].json.contains("queued"), "{after:?}");
    // The second death is the job's last.
    std::mem::forget(queue.claim("w", &[], Duration::ZERO).unwrap().unwrap());
    drop(queue);
    let queue = open();
    let lost = queue.get(&ids[0]).unwrap().unwrap();
    assert_eq!((lost.status, lost.error.unwrap().code.as_str()), (Status::Failed, "worker_lost"));
    assert_eq!(queue.claim("w", &[], Duration::ZERO).unwrap().unwrap().record().id, ids[1]);
}

#[test]
fn revisions_never_come_twice_though_some_are_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("queue.sqlite");
    let queue = SqliteQueue::open(&path).unwrap();
    submit(&queue, "a");
    let mut lease = queue.claim("w", &[], Duration::ZERO).unwrap().unwrap();
    lease.beat(Some("{\"event\":\"ready\"}".into()), 0.5).unwrap();
    let told = queue.events(0, None).unwrap().last().unwrap().revision;
    std::mem::forget(lease);
    drop(queue);
    let queue = SqliteQueue::open(&path).unwrap();
    assert!(queue.events(told, None).unwrap().iter().all(|event| event.revision > told));
    assert_eq!(queue.events(told, None).unwrap().len(), 1);
}

#[test]
fn tables_of_a_newer_program_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("queue.sqlite");
    std::fs::write(&path, "this is no database, whatever its name says").unwrap();
    assert!(SqliteQueue::open(&path).is_err());
}

#[test]
fn a_store_has_files_by_their_hash_only() {
    let folder = tempfile::tempdir().unwrap();
    let store = DirStore::new(folder.path().join("clips"), folder.path().join("tmp")).unwrap();
    let stored = store.put(&mut &b"abc"[..], 3).unwrap();
    let hash = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!((stored.sha256.as_str(), stored.bytes), (hash, 3));
    assert_eq!(store.put(&mut &b"abc"[..], 3).unwrap(), stored);
    assert_eq!(std::fs::read(store.open(hash).unwrap().unwrap()).unwrap(), b"abc");
    let error = store.put(&mut &b"abcd"[..], 3).unwrap_err();
    assert_eq!(error.kind().exit_code(), 2);
    // Nothing of a file that was too long is left.
    assert_eq!(std::fs::read_dir(folder.path().join("tmp")).unwrap().count(), 0);
    let upper = hash.to_uppercase();
    let long = format!("{hash}0");
    for wrong in ["", "..", "../tmp", "ba/../..", &hash[1..], &upper, &long] {
        assert_eq!(store.open(wrong).unwrap(), None, "{wrong}");
        store.remove(wrong).unwrap();
    }
    assert_eq!(store.older(Duration::ZERO).unwrap(), [hash]);
    assert!(store.older(Duration::from_secs(60)).unwrap().is_empty());
    store.remove(hash).unwrap();
    assert_eq!(store.open(hash).unwrap(), None);
}

/// A completed job whose clip is in the store, finished so many seconds ago.
fn completed(places: &Places, key: &str, clip: &[u8], age: f64) -> Record {
    let stored = places.clips.put(&mut &*clip, 1 << 20).unwrap();
    let mut done = submission(key);
    done.record.status = Status::Completed;
    done.record.finished_at = Some(unix_time() - age);
    done.record.output = Some(Output { sha256: stored.sha256, bytes: stored.bytes, ..output("0") });
    // As a job that another one of the same key was completed by.
    match places.queue.submit(done).unwrap() {
        Accepted::New(record) => record,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_oldest_clips_go_first_and_none_that_another_job_has() {
    use Status::{Completed, Expired};
    let folder = tempfile::tempdir().unwrap();
    let places = Places::open(folder.path()).unwrap();
    let old = completed(&places, "old", b"old clip", 100.0);
    let shared = completed(&places, "shared", b"a clip", 100.0);
    let first = completed(&places, "first", b"12345678", 30.0);
    let young = completed(&places, "young", b"a clip", 10.0);
    let waiting = submit(&*places.queue, "waiting");
    let sweep = |keep: u64, keep_bytes| {
        let retention = Retention { keep: Duration::from_secs(keep), keep_bytes };
        retention.sweep(&*places.queue, &*places.clips, &*places.uploads).unwrap();
    };
    let status = |record: &Record| places.queue.get(&record.id).unwrap().map(|r| r.status);
    let clip = |record: &Record| {
        let sha256 = record.output.as_ref().unwrap().sha256.clone();
        places.clips.open(&sha256).unwrap().is_some()
    };
    sweep(60, u64::MAX);
    let all = [&old, &shared, &first, &young].map(|record| (status(record).unwrap(), clip(record)));
    assert_eq!(all, [(Expired, false), (Expired, true), (Completed, true), (Completed, true)]);
    sweep(60, 8);
    assert_eq!((status(&first).unwrap(), clip(&first)), (Expired, false));
    assert_eq!((status(&young).unwrap(), clip(&young)), (Completed, true));
    // In the end the records go as well, but never a job that waits.
    sweep(0, 0);
    sweep(0, 0);
    assert_eq!([&old, &shared, &first, &young].map(status), [None; 4]);
    assert_eq!(status(&waiting), Some(Status::Queued));
    assert_eq!(places.queue.list(&Filter::default()).unwrap().len(), 1);
}
