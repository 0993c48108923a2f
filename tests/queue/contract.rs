//! What every queue does, whatever it is made of.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use animatelcm::queue::{
    Accepted, Failure, Filter, Go, JobId, Lease, Output, Priority, Queue, Record, Status,
    Submission,
};
use serde_json::{Value, json};

const NOW: Duration = Duration::ZERO;

/// A new job of a key.
pub(super) fn submission(key: &str) -> Submission {
    let job = json!({"schema": "animatelcm/v1", "sampling": {"seed": 7}, "name": key});
    let record = Record::new(JobId::new().unwrap(), key.into(), job, "gif");
    Submission { record, limit: 1000, share: 1000, idempotency: None }
}

#[track_caller]
pub(super) fn submit(queue: &dyn Queue, key: &str) -> Record {
    accepted(queue, submission(key))
}

#[track_caller]
fn accepted(queue: &dyn Queue, submission: Submission) -> Record {
    match queue.submit(submission).unwrap() {
        Accepted::New(record) => record,
        other => panic!("{other:?}"),
    }
}

pub(super) fn output(sha256: &str) -> Output {
    Output {
        format: "gif".into(),
        bytes: 3,
        sha256: sha256.into(),
        width: 64,
        height: 48,
        frames: 8,
        fps: 8.0,
        seconds: 1.0,
        job_seconds: 0.5,
        step_seconds: vec![0.1],
        device: "cpu".into(),
    }
}

#[track_caller]
fn claim(queue: &dyn Queue) -> Box<dyn Lease> {
    queue.claim("worker", &[], NOW).unwrap().expect("no job")
}

fn status(queue: &dyn Queue, id: &JobId) -> Status {
    queue.get(id).unwrap().unwrap().status
}

fn names(queue: &dyn Queue, id: &JobId) -> Vec<String> {
    let events = queue.events(0, Some(id)).unwrap();
    let name = |json: &str| {
        let value: Value = serde_json::from_str(json).unwrap();
        assert_eq!(value["job"], id.as_str());
        value["event"].as_str().unwrap().to_owned()
    };
    events.iter().map(|event| name(&event.json)).collect()
}

/// Every rule, on an empty queue each; leases last a second.
pub(super) fn all(open: &mut dyn FnMut() -> Box<dyn Queue>) {
    let rules: &[fn(&dyn Queue)] = &[
        jobs_come_in_order_and_high_ones_first,
        a_full_queue_takes_none,
        two_claimers_never_get_one_job,
        a_claim_waits_for_a_job,
        classes_choose,
        a_lost_lease_brings_the_job_back_once,
        beats_keep_a_lease,
        a_late_clip_counts_if_the_job_has_not_ended,
        giving_back_does_not_count,
        a_dropped_lease_counts,
        cancelling_works_in_every_state,
        the_same_key_is_done_already,
        a_name_of_a_submission_counts_once,
        events_resume_where_they_stopped,
        lists_have_pages,
        only_ended_jobs_are_removed,
        what_is_used_is_known,
    ];
    for rule in rules {
        rule(&*open());
    }
}

fn jobs_come_in_order_and_high_ones_first(queue: &dyn Queue) {
    let first = submit(queue, "1");
    let second = submit(queue, "2");
    let mut third = submission("3");
    third.record.priority = Priority::High;
    let third = accepted(queue, third);
    let places = [&first, &second, &third].map(|r| queue.position(&r.id).unwrap().unwrap());
    assert_eq!(places, [2, 3, 1]);
    for expected in [&third, &first, &second] {
        let lease = claim(queue);
        assert_eq!(lease.record().id, expected.id);
        assert_eq!(lease.record().attempt, 1);
        assert_eq!(queue.position(&expected.id).unwrap(), None);
        assert_eq!(status(queue, &expected.id), Status::Running);
        assert!(lease.complete(output(&expected.key)).unwrap());
    }
    assert!(queue.claim("worker", &[], NOW).unwrap().is_none());
    let done = queue.get(&first.id).unwrap().unwrap();
    assert_eq!((done.status, done.progress, done.cached), (Status::Completed, 1.0, false));
    assert_eq!(done.worker.as_deref(), Some("worker"));
    assert_eq!(done.output, Some(output("1")));
    assert_eq!(names(queue, &first.id), ["queued", "done"]);
}

fn a_full_queue_takes_none(queue: &dyn Queue) {
    let owned = |key: &str, owner: &str| {
        let mut new = submission(key);
        (new.limit, new.share, new.record.owner) = (3, 2, owner.into());
        queue.submit(new).unwrap()
    };
    assert!(matches!(owned("1", "ann"), Accepted::New(_)));
    assert!(matches!(owned("2", "ann"), Accepted::New(_)));
    assert_eq!(owned("3", "ann"), Accepted::Full(2));
    assert!(matches!(owned("4", "bob"), Accepted::New(_)));
    assert_eq!(owned("5", "cy"), Accepted::Full(3));
    let _running = claim(queue);
    assert!(matches!(owned("6", "cy"), Accepted::New(_)));
}

fn two_claimers_never_get_one_job(queue: &dyn Queue) {
    const JOBS: usize = 60;
    for number in 0..JOBS {
        submit(queue, &number.to_string());
    }
    let claimed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some(lease) = queue.claim("w", &[], NOW).unwrap() {
                    claimed.lock().unwrap().push(lease.record().id.clone());
                    let hash = lease.record().key.clone();
                    assert!(lease.complete(output(&hash)).unwrap());
                }
            });
        }
    });
    let claimed = claimed.into_inner().unwrap();
    let different: BTreeSet<_> = claimed.iter().collect();
    assert_eq!((claimed.len(), different.len()), (JOBS, JOBS));
}

fn a_claim_waits_for_a_job(queue: &dyn Queue) {
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let lease = queue.claim("w", &[], Duration::from_secs(20)).unwrap();
            lease.map(|lease| lease.record().id.clone())
        });
        std::thread::sleep(Duration::from_millis(50));
        let started = Instant::now();
        let record = submit(queue, "1");
        assert_eq!(waiting.join().unwrap(), Some(record.id));
        assert!(started.elapsed() < Duration::from_secs(10));
    });
}

fn classes_choose(queue: &dyn Queue) {
    for class in ["a", "b"] {
        let mut new = submission(class);
        new.record.class = class.into();
        accepted(queue, new);
    }
    let of = |classes: &[&str]| {
        let classes: Vec<String> = classes.iter().map(ToString::to_string).collect();
        queue.claim("w", &classes, NOW).unwrap()
    };
    assert!(of(&["c"]).is_none());
    let b = of(&["c", "b"]).unwrap();
    assert_eq!(b.record().class, "b");
    assert!(of(&["b"]).is_none());
    assert_eq!(of(&[]).unwrap().record().class, "a");
}

fn a_lost_lease_brings_the_job_back_once(queue: &dyn Queue) {
    let id = submit(queue, "1").id;
    let mut first = claim(queue);
    let second = queue.claim("other", &[], Duration::from_secs(20)).unwrap().unwrap();
    assert_eq!((second.record().id.clone(), second.record().attempt), (id.clone(), 2));
    // The first holder learns of it, and cannot fail what is not its own.
    assert_eq!(first.beat(Some("{}".into()), 0.5).unwrap(), Go::Lost);
    first.fail(Failure::worker_lost()).unwrap();
    assert_eq!(status(queue, &id), Status::Running);
    std::thread::sleep(Duration::from_millis(1100));
    assert!(queue.claim("third", &[], NOW).unwrap().is_none());
    let lost = queue.get(&id).unwrap().unwrap();
    assert_eq!((lost.status, lost.error), (Status::Failed, Some(Failure::worker_lost())));
    assert_eq!(names(queue, &id), ["queued", "queued", "error"]);
    // A clip after the end is one too many.
    assert!(!second.complete(output("1")).unwrap());
    assert_eq!(status(queue, &id), Status::Failed);
}

fn beats_keep_a_lease(queue: &dyn Queue) {
    let id = submit(queue, "1").id;
    let mut lease = claim(queue);
    for beat in 0..8 {
        std::thread::sleep(Duration::from_millis(250));
        assert_eq!(lease.beat(None, beat as f32 / 8.0).unwrap(), Go::On);
        assert!(queue.claim("other", &[], NOW).unwrap().is_none());
    }
    assert_eq!(queue.get(&id).unwrap().unwrap().progress, 7.0 / 8.0);
}

fn a_late_clip_counts_if_the_job_has_not_ended(queue: &dyn Queue) {
    let id = submit(queue, "1").id;
    let late = claim(queue);
    let mut second = queue.claim("other", &[], Duration::from_secs(20)).unwrap().unwrap();
    assert!(late.complete(output("1")).unwrap());
    assert_eq!(status(queue, &id), Status::Completed);
    assert_eq!(second.beat(None, 0.0).unwrap(), Go::Lost);
    assert!(!second.complete(output("2")).unwrap());
    assert_eq!(queue.get(&id).unwrap().unwrap().output, Some(output("1")));
}

fn giving_back_does_not_count(queue: &dyn Queue) {
    let id = submit(queue, "1").id;
    let next = submit(queue, "2").id;
    for _ in 0..3 {
        let lease = claim(queue);
        assert_eq!((lease.record().id.clone(), lease.record().attempt), (id.clone(), 1));
        lease.give_back().unwrap();
        assert_eq!(queue.position(&id).unwrap(), Some(1));
        assert_eq!(queue.position(&next).unwrap(), Some(2));
    }
}

fn a_dropped_lease_counts(queue: &dyn Queue) {
    let id = submit(queue, "1").id;
    drop(claim(queue));
    assert_eq!(status(queue, &id), Status::Queued);
    drop(claim(queue));
    assert_eq!(status(queue, &id), Status::Failed);
}

fn cancelling_works_in_every_state(queue: &dyn Queue) {
    let (waiting, running, done, failed) =
        (submit(queue, "1"), submit(queue, "2"), submit(queue, "3"), submit(queue, "4"));
    assert_eq!(queue.cancel(&waiting.id).unwrap(), Some(Status::Cancelled));
    let mut lease = claim(queue);
    assert_eq!(lease.record().id, running.id);
    assert!(claim(queue).complete(output("3")).unwrap());
    claim(queue).fail(Failure::worker_lost()).unwrap();
    assert_eq!(queue.cancel(&running.id).unwrap(), Some(Status::Cancelled));
    assert_eq!(lease.beat(None, 0.1).unwrap(), Go::Cancelled);
    assert!(!lease.complete(output("2")).unwrap());
    assert_eq!(queue.cancel(&done.id).unwrap(), Some(Status::Completed));
    assert_eq!(queue.cancel(&failed.id).unwrap(), Some(Status::Failed));
    assert_eq!(queue.cancel(&waiting.id).unwrap(), Some(Status::Cancelled));
    assert_eq!(queue.cancel(&JobId::new().unwrap()).unwrap(), None);
    for id in [&waiting.id, &running.id] {
        assert_eq!(names(queue, id), ["queued", "cancelled"]);
        assert_eq!(queue.get(id).unwrap().unwrap().error, Some(Failure::cancelled()));
    }
    assert!(queue.claim("w", &[], NOW).unwrap().is_none());
}

fn the_same_key_is_done_already(queue: &dyn Queue) {
    let first = submit(queue, "same");
    let second = submit(queue, "same");
    assert_eq!(second.status, Status::Queued);
    assert!(claim(queue).complete(output("1")).unwrap());
    let mut third = submission("same");
    // There is always place for what is done.
    third.limit = 0;
    let third = accepted(queue, third);
    assert_eq!((third.status, third.cached, third.progress), (Status::Completed, true, 1.0));
    assert_eq!(third.output, Some(output("1")));
    assert_eq!(names(queue, &third.id), ["done"]);
    assert_ne!(third.id, first.id);
    // A clip that is no longer kept is made again.
    assert!(queue.expire(&first.id).unwrap() && queue.expire(&third.id).unwrap());
    assert!(!queue.expire(&third.id).unwrap());
    assert_eq!(submit(queue, "same").status, Status::Queued);
}

fn a_name_of_a_submission_counts_once(queue: &dyn Queue) {
    let named = |key: &str, owner: &str, body: &str| {
        let mut new = submission(key);
        (new.record.owner, new.idempotency) = (owner.into(), Some(("n".into(), body.into())));
        queue.submit(new).unwrap()
    };
    let Accepted::New(first) = named("1", "ann", "x") else { panic!("not new") };
    assert_eq!(named("2", "ann", "x"), Accepted::Same(first));
    assert_eq!(named("2", "ann", "y"), Accepted::Mismatch);
    assert!(matches!(named("2", "bob", "y"), Accepted::New(_)));
    assert_eq!(queue.count(Status::Queued).unwrap(), 2);
}

fn events_resume_where_they_stopped(queue: &dyn Queue) {
    let id = submit(queue, "1").id;
    let other = submit(queue, "2").id;
    let mut lease = claim(queue);
    for step in 1..=3 {
        let json = json!({"event": "step", "step": step, "job": id}).to_string();
        lease.beat(Some(json), 0.1).unwrap();
    }
    let all = queue.events(0, None).unwrap();
    let revisions: Vec<u64> = all.iter().map(|event| event.revision).collect();
    assert!(revisions.is_sorted_by(|a, b| a < b), "{revisions:?}");
    assert_eq!(names(queue, &id), ["queued", "step", "step", "step"]);
    assert_eq!(names(queue, &other), ["queued"]);
    let newest = *revisions.last().unwrap();
    assert_eq!(queue.wait(0, Duration::from_secs(5)), newest);
    assert_eq!(queue.wait(newest, Duration::from_millis(20)), newest);
    assert!(lease.complete(output("1")).unwrap());
    // What was in memory is written with the transition, once.
    assert_eq!(queue.events(0, None).unwrap()[..all.len()], all[..]);
    let rest = queue.events(newest, Some(&id)).unwrap();
    assert!(rest.len() == 1 && rest[0].json.contains("\"done\""), "{rest:?}");
    assert_eq!(queue.wait(newest, Duration::from_secs(5)), rest[0].revision);
    assert!(queue.events(u64::MAX, None).unwrap().is_empty());
}

fn lists_have_pages(queue: &dyn Queue) {
    let ids: Vec<JobId> = (0..5).map(|key| submit(queue, &key.to_string()).id).collect();
    let list = |filter: Filter| -> Vec<JobId> {
        queue.list(&filter).unwrap().into_iter().map(|record| record.id).collect()
    };
    let newest = list(Filter { limit: 2, ..Filter::default() });
    assert_eq!(newest, [ids[4].clone(), ids[3].clone()]);
    let after = Some(ids[3].clone());
    let next = list(Filter { limit: 2, after, ..Filter::default() });
    assert_eq!(next, [ids[2].clone(), ids[1].clone()]);
    let after = Some(ids[3].clone());
    assert_eq!(list(Filter { after, is_ascending: true, ..Filter::default() }), [ids[4].clone()]);
    let running = claim(queue);
    let status = Some(Status::Running);
    assert_eq!(list(Filter { status, ..Filter::default() }), [ids[0].clone()]);
    drop(running);
}

fn only_ended_jobs_are_removed(queue: &dyn Queue) {
    let id = submit(queue, "1").id;
    assert!(!queue.remove(&id).unwrap());
    let lease = claim(queue);
    assert!(!queue.remove(&id).unwrap());
    lease.complete(output("1")).unwrap();
    assert!(queue.remove(&id).unwrap());
    assert_eq!(queue.get(&id).unwrap(), None);
    // Whoever listens hears of it.
    assert_eq!(names(queue, &id), ["deleted"]);
    assert!(!queue.remove(&id).unwrap());
    // The key is free again.
    assert_eq!(submit(queue, "1").status, Status::Queued);
}

fn what_is_used_is_known(queue: &dyn Queue) {
    let (clip, upload) = ("a".repeat(64), "b".repeat(64));
    let mut new = submission("1");
    new.record.job = json!({"source": {"image": format!("upload:{upload}")}});
    let id = accepted(queue, new).id;
    assert!(queue.is_used(&upload).unwrap() && !queue.is_used(&clip).unwrap());
    claim(queue).complete(output(&clip)).unwrap();
    assert!(!queue.is_used(&upload).unwrap() && queue.is_used(&clip).unwrap());
    queue.expire(&id).unwrap();
    assert!(!queue.is_used(&clip).unwrap());
}
