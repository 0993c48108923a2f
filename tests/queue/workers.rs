//! Workers with the model inside.

use std::sync::Arc;
use std::time::{Duration, Instant};

use animatelcm::job::{Listed, ListedInputs, Names};
use animatelcm::queue::{Accepted, JobId, Places, Record, Shop, Status, Submission, Worker};
use animatelcm::{DeviceChoice, Library, Stop};
use serde_json::{Value, json};

struct Place {
    _folder: tempfile::TempDir,
    places: Places,
    stop: Stop,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let places = Places::open(folder.path()).unwrap();
        Self { _folder: folder, places, stop: Stop::default() }
    }

    fn worker(&self, grace: Duration) -> Worker {
        self.worker_of(1, DeviceChoice::Cpu, grace)
    }

    /// One of so many workers.
    fn worker_of(&self, workers: usize, device: DeviceChoice, grace: Duration) -> Worker {
        let uploads = self.places.uploads.clone();
        let inputs = ListedInputs::new(move |name| {
            uploads.open(name.strip_prefix("upload:")?).ok().flatten()
        });
        let listed = Listed { inputs, ..Listed::default() };
        let shop = Shop {
            queue: self.places.queue.clone(),
            clips: self.places.clips.clone(),
            drafts: self.places.drafts.clone(),
            names: Arc::new(Names::new(true).unwrap().with_list(listed)),
            library: Arc::new(Library::new(u64::MAX)),
            hidden: vec![(self.places.folder.to_string_lossy().into_owned(), "data".into())],
            stop: self.stop.clone(),
            grace,
            workers,
            is_watched: Box::new(|| false),
            checks: None,
            most_faults: 0,
            told: Box::new(|_, _| ()),
            ended: Box::new(|_, _, _| ()),
        };
        Worker { shop: Arc::new(shop), name: "w".into(), device }
    }

    fn submit(&self, job: Value) -> JobId {
        let id = JobId::new().unwrap();
        let key = id.to_string();
        let record = Record::new(id, key, job, "gif");
        let new = Submission { record, limit: 100, share: 100, idempotency: None };
        match self.places.queue.submit(new).unwrap() {
            Accepted::New(record) => record.id,
            other => panic!("{other:?}"),
        }
    }

    fn get(&self, id: &JobId) -> Record {
        self.places.queue.get(id).unwrap().unwrap()
    }

    /// Works until a condition holds.
    fn work_until(&self, grace: Duration, is_met: impl Fn() -> bool) {
        let worker = self.worker(grace);
        std::thread::scope(|scope| {
            scope.spawn(|| worker.run().unwrap());
            let started = Instant::now();
            while !is_met() {
                assert!(started.elapsed() < Duration::from_secs(120), "nothing came of it");
                std::thread::sleep(Duration::from_millis(10));
            }
            self.stop.request();
        });
    }
}

fn small(steps: usize) -> Value {
    json!({
        "schema": "animatelcm/v1", "prompt": "a red circle", "size": {"frames": 2},
        "sampling": {"seed": 3, "steps": steps, "sampler": "euler"},
    })
}

#[test]
fn a_worker_makes_clips_and_says_what_fails() {
    let place = Place::new();
    let good = place.submit(small(1));
    let mut wrong = small(1);
    wrong["models"] = json!({"model": "/etc/passwd"});
    let wrong = place.submit(wrong);
    let mut picture = small(1);
    let upload = place.places.uploads.put(&mut &b"no picture"[..], 100).unwrap().sha256;
    picture["source"] = json!({"image": format!("upload:{upload}")});
    let picture = place.submit(picture);
    let last = place.submit(small(2));
    place.work_until(Duration::ZERO, || place.get(&last).status.has_ended());
    let record = place.get(&good);
    assert_eq!(record.status, Status::Completed, "{record:?}");
    let output = record.output.unwrap();
    let clip = place.places.clips.open(&output.sha256).unwrap().unwrap();
    let bytes = std::fs::read(clip).unwrap();
    assert!(bytes.starts_with(b"GIF89a") && bytes.len() as u64 == output.bytes);
    assert_eq!((output.frames, output.step_seconds.len()), (2, 1));
    let events = place.places.queue.events(0, Some(&good)).unwrap();
    let names: Vec<_> = events
        .iter()
        .map(|event| serde_json::from_str::<Value>(&event.json).unwrap()["event"].clone())
        .collect();
    for name in ["queued", "start", "load", "step", "decode", "encode", "done"] {
        assert!(names.contains(&json!(name)), "{name}: {names:?}");
    }
    assert_eq!(names.last(), Some(&json!("done")));
    // No path is a name, and none is told.
    let error = place.get(&wrong).error.unwrap();
    assert_eq!((error.code.as_str(), error.exit_code), ("weights", 3));
    let error = place.get(&picture).error.unwrap();
    assert_eq!(error.code, "invalid_request");
    assert!(error.message.contains(&format!("upload:{upload}")), "{error:?}");
    let folder = place.places.folder.to_string_lossy().into_owned();
    for event in place.places.queue.events(0, None).unwrap() {
        assert!(!event.json.contains(&folder), "{event:?}");
    }
    assert_eq!(place.get(&last).status, Status::Completed);
    assert_eq!(std::fs::read_dir(&place.places.drafts).unwrap().count(), 0);
}

/// A device that no build for tests has.
const ABSENT: DeviceChoice = DeviceChoice::Metal;

#[test]
fn a_job_that_a_device_cannot_do_is_left_to_another_worker_once() {
    let place = Place::new();
    let job = place.submit(small(1));
    let broken = place.worker_of(2, ABSENT, Duration::ZERO);
    let works = place.worker_of(2, DeviceChoice::Cpu, Duration::ZERO);
    std::thread::scope(|scope| {
        scope.spawn(|| broken.run());
        let started = Instant::now();
        let until = |is_met: &dyn Fn(&Record) -> bool| {
            while !is_met(&place.get(&job)) {
                assert!(started.elapsed() < Duration::from_secs(60), "{:?}", place.get(&job));
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        until(&|record| record.status == Status::Queued && record.attempt == 1);
        scope.spawn(|| works.run());
        until(&|record| record.status.has_ended());
        place.stop.request();
    });
    let record = place.get(&job);
    assert_eq!((record.status, record.attempt), (Status::Completed, 2), "{record:?}");
}

#[test]
fn a_job_that_no_device_can_do_fails_with_its_error() {
    for (workers, attempts) in [(1, 1), (2, 2)] {
        let place = Place::new();
        let job = place.submit(small(1));
        let broken = place.worker_of(workers, ABSENT, Duration::ZERO);
        std::thread::scope(|scope| {
            scope.spawn(|| broken.run());
            while !place.get(&job).status.has_ended() {
                std::thread::sleep(Duration::from_millis(5));
            }
            place.stop.request();
        });
        let record = place.get(&job);
        assert_eq!((record.status, record.attempt), (Status::Failed, attempts), "{record:?}");
        assert_eq!(record.error.unwrap().code, "device");
    }
}

#[test]
fn a_cancelled_job_ends_and_the_next_one_starts() {
    let place = Place::new();
    let long = place.submit(small(900));
    let next = place.submit(small(1));
    place.work_until(Duration::ZERO, || {
        if place.get(&long).progress > 0.0 {
            place.places.queue.cancel(&long).unwrap();
        }
        place.get(&next).status.has_ended()
    });
    assert_eq!(place.get(&long).status, Status::Cancelled);
    assert_eq!(place.get(&next).status, Status::Completed);
}

#[test]
fn a_worker_that_stops_gives_its_job_back() {
    let place = Place::new();
    let long = place.submit(small(900));
    place.work_until(Duration::ZERO, || place.get(&long).progress > 0.0);
    let record = place.get(&long);
    assert_eq!((record.status, record.attempt, record.progress), (Status::Queued, 0, 0.0));
    assert!(record.error.is_none());
}

#[test]
fn a_worker_that_stops_finishes_its_job_within_the_grace() {
    let place = Place::new();
    let job = place.submit(small(8));
    place.work_until(Duration::from_secs(100), || place.get(&job).progress > 0.0);
    assert_eq!(place.get(&job).status, Status::Completed);
}
