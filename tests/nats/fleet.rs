//! Front ends and workers as processes of their own.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use animatelcm::job::Names;
use animatelcm::output::Format;
use animatelcm::queue::{
    Accepted, DirStore, JobId, NatsQueue, NatsSettings, NatsStore, Queue, Record, Shop, Status,
    Submission, WeightHashes, Worker,
};
use animatelcm::{DeviceChoice, Library, Stop};
use serde_json::{Value, json};

use crate::broker::Broker;
use crate::client::{Server, long, small};
use crate::support::program::Folder;

/// A process of workers.
pub(crate) struct Hand(Child);

impl Hand {
    /// Starts one that has a folder of its name.
    pub(crate) fn start(folder: &Folder, url: &str, name: &str) -> Self {
        let mut args = vec!["worker", "--nats", url, "--name", name, "--data", name];
        args.extend(["--grace", "1s"]);
        let mut child =
            folder.command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        if line != format!("animatelcm works as {name}\n") {
            let output = child.wait_with_output().unwrap();
            panic!("no worker: {line}{}", String::from_utf8_lossy(&output.stderr));
        }
        Self(child)
    }

    /// Ends it as a power failure would.
    pub(crate) fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    #[cfg(unix)]
    fn terminate(&self) {
        let id = self.0.id().to_string();
        assert!(std::process::Command::new("kill").arg(id).status().unwrap().success());
    }

    /// Its exit code and what it said, as soon as it has ended.
    fn ended(mut self) -> (Option<i32>, String) {
        let started = Instant::now();
        while self.0.try_wait().unwrap().is_none() {
            assert!(started.elapsed() < Duration::from_secs(60), "the worker goes on");
            std::thread::sleep(Duration::from_millis(50));
        }
        let mut said = String::new();
        std::io::Read::read_to_string(&mut self.0.stderr.take().unwrap(), &mut said).unwrap();
        (self.0.wait().unwrap().code(), said)
    }
}

impl Drop for Hand {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A front end without workers.
pub(crate) fn front(folder: &Folder, url: &str) -> Server {
    Server::start(folder, &["--nats", url, "--lease", "2s", "--queue", "1000"])
}

/// The clip that `generate` makes of a request.
fn generated(folder: &Folder, job: &Value) -> Vec<u8> {
    folder.write("job.json", job.to_string());
    folder.run(&["generate", "--request", "job.json", "-o", "made.gif", "-y", "-q"]).ok();
    folder.read("made.gif")
}

#[test]
fn a_worker_elsewhere_makes_the_clip_of_generate() {
    let Some(broker) = Broker::start() else { return };
    let folder = Folder::new();
    let server = front(&folder, &broker.url());
    // Jobs wait for a worker that comes later.
    let record = server.submit(&small(1));
    assert_eq!(record["status"], "queued");
    assert_eq!(server.json("/v1/workers")["data"], json!([]));
    let _hand = Hand::start(&folder, &broker.url(), "node");
    let done = server.ended(record["id"].as_str().unwrap());
    assert_eq!((&done["status"], &done["worker"]), (&json!("completed"), &json!("node-auto-1")));
    let clip = server.get(done["links"]["content"].as_str().unwrap());
    assert_eq!(clip.status, 200);
    assert!(clip.body == generated(&folder, &small(1)));
    let workers = server.json("/v1/workers")["data"].clone();
    assert_eq!(workers[0]["id"], "node-auto-1", "{workers}");
    assert_eq!((&workers[0]["device"], &workers[1]), (&json!("auto"), &Value::Null));
    // What was uploaded to the front end the worker has as well.
    let picture = crate::client::picture();
    let upload =
        server.request("POST", "/v1/uploads").form(&[], &[("file", "a.png", &picture)]).send();
    assert_eq!(upload.status, 201, "{}", upload.text());
    let mut job = small(2);
    job["sampling"]["steps"] = json!(2);
    job["source"] = json!({"image": upload.json()["id"]});
    let done = server.ended(server.submit(&job)["id"].as_str().unwrap());
    assert_eq!(done["status"], "completed", "{done}");
    // The second time the clip is there already.
    let again = server.submit(&job);
    assert_eq!((&again["status"], &again["cached"]), (&json!("completed"), &json!(true)));
}

#[test]
fn jobs_are_followed_and_cancelled_across_machines() {
    let Some(broker) = Broker::start() else { return };
    let folder = Folder::new();
    let server = front(&folder, &broker.url());
    let _hand = Hand::start(&folder, &broker.url(), "node");
    let running = server.submit(&long(1));
    let next = server.submit(&small(2));
    let id = running["id"].as_str().unwrap();
    server.until(id, |record| record["progress"].as_f64() > Some(0.0));
    assert_eq!(server.json("/v1/workers")["data"][0]["job"], id);
    let answer = server.send("POST", &format!("/v1/jobs/{id}/cancel"));
    assert_eq!(answer.json()["status"], "cancelled");
    let names: Vec<_> =
        crate::client::Events::open(&server, &format!("/v1/jobs/{id}/events"), Some(0))
            .map(|message| message.name)
            .collect();
    assert!(names.iter().any(|name| name == "step"), "{names:?}");
    assert_eq!(names.last().map(String::as_str), Some("cancelled"));
    assert_eq!(server.ended(next["id"].as_str().unwrap())["status"], "completed");
}

#[test]
fn a_job_that_kills_its_worker_is_given_up_after_two() {
    let Some(broker) = Broker::start() else { return };
    let folder = Folder::new();
    let server = front(&folder, &broker.url());
    let id = server.submit(&long(1))["id"].as_str().unwrap().to_owned();
    for attempt in 1..=2 {
        let mut hand = Hand::start(&folder, &broker.url(), "node");
        let is_running = |record: &Value| record["attempt"] == attempt && record["progress"] != 0.0;
        server.until(&id, is_running);
        hand.kill();
    }
    // Whoever is next finds it out.
    let _hand = Hand::start(&folder, &broker.url(), "node");
    let record = server.ended(&id);
    assert_eq!((&record["status"], &record["attempt"]), (&json!("failed"), &json!(2)));
    assert_eq!(record["error"]["code"], "worker_lost");
}

#[cfg(unix)]
#[test]
fn a_worker_that_is_told_to_stop_gives_its_job_back() {
    let Some(broker) = Broker::start() else { return };
    let folder = Folder::new();
    let server = front(&folder, &broker.url());
    let hand = Hand::start(&folder, &broker.url(), "one");
    let id = server.submit(&long(1))["id"].as_str().unwrap().to_owned();
    server.until(&id, |record| record["progress"].as_f64() > Some(0.0));
    hand.terminate();
    let (code, said) = hand.ended();
    assert_eq!(code, Some(0), "{said}");
    let record = server.json(&format!("/v1/jobs/{id}"));
    assert_eq!((&record["status"], &record["attempt"]), (&json!("queued"), &json!(0)), "{record}");
    let _hand = Hand::start(&folder, &broker.url(), "two");
    let record = server.until(&id, |record| record["status"] == "running");
    assert_eq!((&record["worker"], &record["attempt"]), (&json!("two-auto-1"), &json!(1)));
}

/// A submission of a job as it stands.
fn submission(job: Value, key: Option<String>) -> Submission {
    let id = JobId::new().unwrap();
    let key = key.unwrap_or_else(|| id.to_string());
    let record = Record::new(id, key, job, "gif");
    Submission { record, limit: 100, share: 100, idempotency: None }
}

fn submit(queue: &NatsQueue, new: Submission) -> JobId {
    match queue.submit(new).unwrap() {
        Accepted::New(record) => record.id,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_worker_whose_device_fails_twice_in_a_row_leaves() {
    let Some(broker) = Broker::start() else { return };
    let folder = Folder::new();
    let queue = NatsQueue::open(&broker.settings()).unwrap();
    let mut huge = small(1);
    huge["size"] = json!({"frames": 4000, "width": 4096, "height": 4096});
    let ids = [1, 2].map(|_| submit(&queue, submission(huge.clone(), None)));
    let (code, said) = Hand::start(&folder, &broker.url(), "node").ended();
    assert_eq!(code, Some(4), "{said}");
    assert!(said.contains("2 jobs in a row failed"), "{said}");
    // Another one may have more memory.
    for id in ids {
        let record = queue.get(&id).unwrap().unwrap();
        assert_eq!((record.status, record.attempt), (Status::Queued, 1), "{record:?}");
    }
}

#[test]
fn a_worker_with_other_weights_leaves_the_job_to_others() {
    let Some(broker) = Broker::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let queue = NatsQueue::open(&broker.settings()).unwrap();
    let mut job: animatelcm::Job = serde_json::from_value(small(3)).unwrap();
    job.request.sampling.seed = Some(3);
    let names = Names::new(true).unwrap();
    let hashes = WeightHashes::default();
    let own = animatelcm::queue::key(&job, Format::Gif, &names, &hashes, &Stop::default()).unwrap();
    let foreign = submit(&queue, submission(small(3), Some("0".repeat(64))));
    let mut right = submission(small(3), Some(own.sha256));
    right.record.class = "right".into();
    let right = submit(&queue, right);
    let stop = Stop::default();
    let copies = DirStore::new(folder.path().join("clips"), folder.path().join("tmp")).unwrap();
    let joined = NatsQueue::join(&broker.settings()).unwrap();
    let shop = Shop {
        clips: Arc::new(NatsStore::open(&joined, NatsStore::CLIPS, copies).unwrap()),
        queue: Arc::new(joined),
        drafts: folder.path().join("tmp"),
        names: Arc::new(names),
        library: Arc::new(Library::new(u64::MAX)),
        hidden: vec![],
        stop: stop.clone(),
        grace: Duration::ZERO,
        workers: 1,
        is_watched: Box::new(|| false),
        checks: Some(hashes),
        most_faults: 2,
        told: Box::new(|_, _| ()),
        ended: Box::new(|_, _, _| ()),
    };
    let worker = Worker { shop: Arc::new(shop), name: "w".into(), device: DeviceChoice::Cpu };
    std::thread::scope(|scope| {
        scope.spawn(|| worker.run().unwrap());
        let started = Instant::now();
        while !queue.get(&right).unwrap().unwrap().status.has_ended() {
            assert!(started.elapsed() < Duration::from_secs(120), "nothing came of it");
            std::thread::sleep(Duration::from_millis(20));
        }
        stop.request();
    });
    assert_eq!(queue.get(&right).unwrap().unwrap().status, Status::Completed);
    let left = queue.get(&foreign).unwrap().unwrap();
    assert_eq!((left.status, left.attempt), (Status::Queued, 0));
    let events = queue.events(0, Some(&foreign)).unwrap();
    assert!(events.iter().any(|event| event.json.contains("w has not what")), "{events:?}");
}

/// The example's configuration, with passwords of this test.
fn guarded() -> Option<Broker> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/fleet/nats.conf");
    Broker::with(&["-c", file])
}

#[test]
fn the_example_gives_workers_the_least_rights() {
    let Some(broker) = guarded() else { return };
    let folder = Folder::new();
    let server = front(&folder, &broker.url_of("front:front-secret"));
    let hand = Hand::start(&folder, &broker.url_of("worker:worker-secret"), "node");
    let done = server.ended(server.submit(&small(1))["id"].as_str().unwrap());
    assert_eq!(done["status"], "completed", "{done}");
    assert_eq!(server.json("/v1/workers")["data"][0]["id"], "node-auto-1");
    let long = server.submit(&long(1));
    let id = long["id"].as_str().unwrap();
    server.until(id, |record| record["progress"].as_f64() > Some(0.0));
    server.send("POST", &format!("/v1/jobs/{id}/cancel"));
    let last = server.ended(server.submit(&small(2))["id"].as_str().unwrap());
    assert_eq!(last["status"], "completed", "{last}");
    // A worker makes clips, and nothing else.
    let url = broker.url_of("worker:worker-secret");
    let queue = NatsQueue::join(&NatsSettings::new(&url)).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let options = async_nats::ConnectOptions::new();
        let options = options.user_and_password("worker".into(), "worker-secret".into());
        let client = options.connect(broker.url()).await.unwrap();
        // What is forbidden is not answered.
        let second = Duration::from_secs(1);
        let context = async_nats::jetstream::context::ContextBuilder::new();
        let context = context.timeout(second).ack_timeout(second).build(client);
        let subject = format!("anim.jobs.any.normal.{}", JobId::new().unwrap());
        let sent = context.publish(subject, "".into()).await.unwrap();
        assert!(sent.await.is_err());
        assert!(context.delete_stream("ANIM_JOBS").await.is_err());
        assert!(context.get_stream("ANIM_JOBS").await.unwrap().purge().await.is_err());
        let inputs = context.get_object_store("ANIM_INPUTS").await.unwrap();
        assert!(inputs.put("a", &mut &b"abc"[..]).await.is_err());
    });
    drop(queue);
    drop(hand);
    // Nobody comes in without a name.
    let error = NatsQueue::open(&NatsSettings::new(broker.url())).unwrap_err();
    assert_eq!(error.kind().exit_code(), 4);
}
