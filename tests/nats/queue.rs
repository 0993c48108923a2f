//! Lost messages, redeliveries, restarts, other processes, files.

use std::time::{Duration, Instant};

use animatelcm::queue::{
    Accepted, DirStore, Failure, Filter, Go, NatsQueue, NatsSettings, NatsStore, Present, Queue,
    Status, Store,
};

use crate::broker::Broker;
use crate::contract::{self, output, submission, submit};

const NOW: Duration = Duration::ZERO;
const SOON: Duration = Duration::from_secs(20);

/// Waits until a condition holds.
#[track_caller]
fn until(mut is_met: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_met() {
        assert!(started.elapsed() < SOON, "nothing came of it");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What is left of a stream or bucket, asked as a stranger would.
pub(crate) fn messages(broker: &Broker, stream: &str) -> u64 {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let client = async_nats::connect(broker.url()).await.unwrap();
        let context = async_nats::jetstream::new(client);
        let stream = context.get_stream(stream).await.unwrap();
        stream.get_info().await.unwrap().state.messages
    })
}

fn purge(broker: &Broker, stream: &str) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let client = async_nats::connect(broker.url()).await.unwrap();
        let context = async_nats::jetstream::new(client);
        context.get_stream(stream).await.unwrap().purge().await.unwrap();
    });
}

#[test]
fn the_nats_queue_keeps_the_contract() {
    let mut brokers = Vec::new();
    if Broker::start().is_none() {
        return;
    }
    contract::all(&mut || {
        brokers.clear();
        let broker = Broker::start().unwrap();
        let queue = NatsQueue::open(&broker.settings()).unwrap();
        brokers.push(broker);
        Box::new(queue)
    });
}

#[test]
fn an_ended_job_leaves_no_message() {
    let Some(broker) = Broker::start() else { return };
    let queue = NatsQueue::open(&broker.settings()).unwrap();
    let ids: Vec<_> = ["a", "b", "c", "d"].map(|key| submit(&queue, key).id).into();
    queue.cancel(&ids[3]).unwrap();
    assert_eq!(messages(&broker, "ANIM_JOBS"), 3);
    let claim = || queue.claim("w", &[], NOW).unwrap().unwrap();
    claim().complete(output("1")).unwrap();
    claim().fail(Failure::worker_lost()).unwrap();
    let mut third = claim();
    queue.cancel(&ids[2]).unwrap();
    assert_eq!(third.beat(None, 0.0).unwrap(), Go::Cancelled);
    third.give_back().unwrap();
    assert_eq!(messages(&broker, "ANIM_JOBS"), 0);
    assert_eq!(queue.get(&ids[2]).unwrap().unwrap().status, Status::Cancelled);
    assert!(queue.remove(&ids[0]).unwrap());
    assert_eq!(messages(&broker, "KV_ANIM_STATE"), 4, "three records and a marker");
}

#[test]
fn a_message_of_an_ended_job_is_acknowledged_at_once() {
    let Some(broker) = Broker::start() else { return };
    let queue = NatsQueue::open(&broker.settings()).unwrap();
    let id = submit(&queue, "a").id;
    let late = queue.claim("w", &[], NOW).unwrap().unwrap();
    let second = queue.claim("w", &[], SOON).unwrap().unwrap();
    assert!(late.complete(output("1")).unwrap());
    // The message is the second holder's now; it comes again when that one is silent, and is never made a third time.
    std::mem::forget(second);
    std::thread::sleep(Duration::from_millis(1200));
    assert!(queue.claim("w", &[], NOW).unwrap().is_none());
    assert_eq!(messages(&broker, "ANIM_JOBS"), 0);
    assert_eq!(queue.get(&id).unwrap().unwrap().status, Status::Completed);
}

#[test]
fn a_job_without_a_message_is_sent_again() {
    let Some(broker) = Broker::start() else { return };
    let patience = Duration::from_secs(1);
    let queue = NatsQueue::open(&NatsSettings { patience, ..broker.settings() }).unwrap();
    let id = submit(&queue, "a").id;
    purge(&broker, "ANIM_JOBS");
    assert!(queue.claim("w", &[], NOW).unwrap().is_none());
    let lease = queue.claim("w", &[], SOON).unwrap().unwrap();
    assert_eq!((lease.record().id.clone(), lease.record().attempt), (id, 1));
    assert!(lease.complete(output("1")).unwrap());
    assert_eq!(messages(&broker, "ANIM_JOBS"), 0);
}

#[test]
fn a_full_stream_takes_none() {
    let Some(broker) = Broker::start() else { return };
    let queue = NatsQueue::open(&NatsSettings { most_jobs: 2, ..broker.settings() }).unwrap();
    let first = submit(&queue, "a").id;
    submit(&queue, "b");
    let third = || {
        let mut third = submission("c");
        third.idempotency = Some(("n".into(), "x".into()));
        queue.submit(third).unwrap()
    };
    assert_eq!(third(), Accepted::Full(2));
    assert_eq!(queue.list(&Filter::default()).unwrap().len(), 2);
    // The name of a submission that was refused is free.
    queue.cancel(&first).unwrap();
    assert!(matches!(third(), Accepted::New(_)));
    // What an operator gives, or another start, counts from then on.
    let queue = NatsQueue::open(&NatsSettings { most_jobs: 3, ..broker.settings() }).unwrap();
    submit(&queue, "d");
    assert_eq!(queue.submit(submission("e")).unwrap(), Accepted::Full(3));
}

#[test]
fn waiting_without_workers_is_told_once() {
    let Some(broker) = Broker::start() else { return };
    let patience = Duration::from_millis(200);
    let queue = NatsQueue::open(&NatsSettings { patience, ..broker.settings() }).unwrap();
    let id = submit(&queue, "a").id;
    let warnings = || {
        let events = queue.events(0, Some(&id)).unwrap();
        events.iter().filter(|event| event.json.contains("no worker is there")).count()
    };
    until(|| warnings() == 1);
    std::thread::sleep(3 * patience);
    assert_eq!((warnings(), messages(&broker, "ANIM_JOBS")), (1, 1));
}

#[test]
fn giving_back_is_not_counted_however_often() {
    let Some(broker) = Broker::start() else { return };
    let queue = NatsQueue::open(&broker.settings()).unwrap();
    let id = submit(&queue, "a").id;
    // More often than the server delivers a message.
    for _ in 0..25 {
        let lease = queue.claim("w", &[], SOON).unwrap().unwrap();
        assert_eq!((lease.record().id.clone(), lease.record().attempt), (id.clone(), 1));
        lease.give_back().unwrap();
    }
    assert_eq!(queue.position(&id).unwrap(), Some(1));
}

#[test]
fn a_failing_device_costs_a_job_one_attempt() {
    let Some(broker) = Broker::start() else { return };
    let queue = NatsQueue::open(&broker.settings()).unwrap();
    let id = submit(&queue, "a").id;
    let failure = Failure { code: "device".into(), exit_code: 4, ..Failure::worker_lost() };
    queue.claim("sick", &[], NOW).unwrap().unwrap().fail(failure.clone()).unwrap();
    assert_eq!(queue.get(&id).unwrap().unwrap().status, Status::Queued);
    let second = queue.claim("well", &[], SOON).unwrap().unwrap();
    assert_eq!(second.record().attempt, 2);
    second.fail(failure.clone()).unwrap();
    let record = queue.get(&id).unwrap().unwrap();
    assert_eq!((record.status, record.error), (Status::Failed, Some(failure)));
}

#[test]
fn what_a_worker_has_not_is_left_to_others() {
    let Some(broker) = Broker::start() else { return };
    let queue = NatsQueue::open(&broker.settings()).unwrap();
    let poor = NatsQueue::join(&broker.settings()).unwrap();
    let mut other = submission("b");
    other.record.class = "other".into();
    let id = submit(&queue, "a").id;
    poor.claim("poor", &[], NOW).unwrap().unwrap().pass_on("poor has no such weights").unwrap();
    let record = queue.get(&id).unwrap().unwrap();
    assert_eq!((record.status, record.attempt), (Status::Queued, 0));
    assert!(poor.claim("poor", &[], Duration::from_secs(3)).unwrap().is_none());
    // What is of another class it takes.
    assert!(matches!(queue.submit(other).unwrap(), Accepted::New(_)));
    assert_eq!(poor.claim("poor", &[], SOON).unwrap().unwrap().record().class, "other");
    assert_eq!(queue.claim("rich", &[], SOON).unwrap().unwrap().record().id, id);
    let events = queue.events(0, Some(&id)).unwrap();
    assert!(events.iter().any(|event| event.json.contains("no such weights")), "{events:?}");
}

#[test]
fn front_ends_see_the_same_jobs() {
    let Some(broker) = Broker::start() else { return };
    let open = || NatsQueue::open(&broker.settings()).unwrap();
    let (one, two) = (open(), open());
    let named = |queue: &NatsQueue, key: &str, body: &str| {
        let mut new = submission(key);
        new.idempotency = Some(("n".into(), body.into()));
        queue.submit(new).unwrap()
    };
    let Accepted::New(record) = named(&one, "1", "x") else { panic!("not new") };
    assert!(matches!(named(&two, "1", "x"), Accepted::Same(same) if same.id == record.id));
    assert_eq!(named(&two, "1", "y"), Accepted::Mismatch);
    until(|| two.list(&Filter::default()).unwrap().len() == 1);
    let worker = NatsQueue::join(&broker.settings()).unwrap();
    let present =
        Present { id: "node-cuda:0-1".into(), device: "cuda:0".into(), version: "1".into() };
    worker.announce(&present).unwrap();
    let mut lease = worker.claim(&present.id, &[], SOON).unwrap().unwrap();
    let event = r#"{"event":"step","progress":0.5}"#.to_owned();
    assert_eq!(lease.beat(Some(event), 0.5).unwrap(), Go::On);
    for queue in [&one, &two] {
        until(|| queue.get(&record.id).unwrap().unwrap().progress == 0.5);
        until(|| queue.workers().unwrap() == [present.clone()]);
    }
    assert_eq!(two.cancel(&record.id).unwrap(), Some(Status::Cancelled));
    assert_eq!(lease.beat(None, 0.6).unwrap(), Go::Cancelled);
    lease.give_back().unwrap();
    assert!(two.remove(&record.id).unwrap());
    until(|| one.list(&Filter::default()).unwrap().is_empty());
    // One that starts later knows no removed job either.
    assert!(open().list(&Filter::default()).unwrap().is_empty());
}

#[test]
fn a_restart_of_the_server_loses_nothing() {
    let Some(mut broker) = Broker::start() else { return };
    let settings = NatsSettings { lease: Duration::from_secs(5), ..broker.settings() };
    let queue = NatsQueue::open(&settings).unwrap();
    let worker = NatsQueue::join(&settings).unwrap();
    let (first, second) = (submit(&queue, "a").id, submit(&queue, "b").id);
    let mut lease = worker.claim("w", &[], NOW).unwrap().unwrap();
    let newest = queue.events(0, None).unwrap().last().unwrap().revision;
    broker.kill();
    // Without a server the work goes on.
    assert_eq!(lease.beat(Some("{}".into()), 0.5).unwrap(), Go::On);
    assert!(queue.get(&first).is_err());
    broker.restart();
    assert!(lease.complete(output("1")).unwrap());
    until(|| {
        let events = queue.events(newest, Some(&first)).unwrap();
        events.iter().any(|event| event.json.contains("\"done\""))
    });
    assert_eq!(worker.claim("w", &[], SOON).unwrap().unwrap().record().id, second);
    drop(queue);
    let queue = NatsQueue::open(&settings).unwrap();
    assert_eq!(queue.get(&first).unwrap().unwrap().status, Status::Completed);
    assert!(queue.wait(u64::MAX, NOW) > newest);
    assert!(queue.events(0, Some(&second)).unwrap().iter().all(|event| event.revision > 0));
}

#[test]
fn a_server_that_is_not_there_is_an_error_of_the_environment() {
    let error = NatsQueue::open(&NatsSettings::new("nats://ann:secret@127.0.0.1:1")).unwrap_err();
    assert_eq!(error.kind().exit_code(), 4);
    assert!(!error.to_string().contains("secret"), "{error}");
    let error = NatsQueue::open(&NatsSettings::new("http://127.0.0.1")).unwrap_err();
    assert_eq!(error.kind().exit_code(), 2);
}

#[test]
fn a_worker_needs_what_a_front_end_makes() {
    let Some(broker) = Broker::start() else { return };
    let error = NatsQueue::join(&broker.settings()).unwrap_err();
    assert_eq!(error.kind().exit_code(), 4);
    assert!(error.hint().unwrap().contains("serve --nats"), "{error:?}");
}

#[test]
fn files_are_there_for_every_machine() {
    let Some(broker) = Broker::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let open = |queue: &NatsQueue, name: &str| {
        let place = |kind: &str| folder.path().join(format!("{name}-{kind}"));
        let copies = DirStore::new(place("clips"), place("tmp")).unwrap();
        NatsStore::open(queue, NatsStore::CLIPS, copies).unwrap()
    };
    let front = NatsQueue::open(&broker.settings()).unwrap();
    let (one, two) =
        (open(&front, "one"), open(&NatsQueue::join(&broker.settings()).unwrap(), "two"));
    // More than a message of the server may have.
    let clip: Vec<u8> =
        (0..3_000_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let stored = two.put(&mut clip.as_slice(), u64::MAX).unwrap();
    assert_eq!(two.put(&mut clip.as_slice(), u64::MAX).unwrap(), stored);
    let path = one.open(&stored.sha256).unwrap().unwrap();
    assert_eq!(std::fs::read(path).unwrap(), clip);
    assert_eq!(one.older(NOW).unwrap(), std::slice::from_ref(&stored.sha256));
    assert!(one.older(Duration::from_secs(60)).unwrap().is_empty());
    assert_eq!(one.put(&mut &b"abcd"[..], 3).unwrap_err().kind().exit_code(), 2);
    for wrong in ["", "..", &stored.sha256[1..], &stored.sha256.to_uppercase()] {
        assert_eq!(one.open(wrong).unwrap(), None, "{wrong}");
        one.remove(wrong).unwrap();
    }
    one.remove(&stored.sha256).unwrap();
    one.remove(&stored.sha256).unwrap();
    assert!(one.older(NOW).unwrap().is_empty());
    let three = open(&front, "three");
    assert_eq!(three.open(&stored.sha256).unwrap(), None);
    // What was removed can be put again.
    one.put(&mut clip.as_slice(), u64::MAX).unwrap();
    assert!(three.open(&stored.sha256).unwrap().is_some());
    let empty = two.put(&mut &b""[..], 0).unwrap();
    assert_eq!(std::fs::read(three.open(&empty.sha256).unwrap().unwrap()).unwrap(), b"");
}
