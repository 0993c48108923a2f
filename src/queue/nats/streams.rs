//! Streams and buckets by their names.

use std::time::Duration;

use async_nats::jetstream::context::PublishError;
use async_nats::jetstream::kv::{self, Store};
use async_nats::jetstream::object_store;
use async_nats::jetstream::stream::{
    Config, DiscardPolicy, LastRawMessageErrorKind, RetentionPolicy, Stream,
};

use super::consumers::{Consumers, level, token};
use super::link::{Link, NatsSettings, away};
use crate::Result;
use crate::queue::{JobId, Record};

/// The stream of waiting and running jobs; messages hold names only.
pub(super) const JOBS: &str = "ANIM_JOBS";
/// The stream of events.
const EVENTS: &str = "ANIM_EVENTS";
/// The bucket of records.
const STATE: &str = "ANIM_STATE";
/// The bucket of clients' names for submissions.
const NAMES: &str = "ANIM_NAMES";
/// The bucket of workers that are there.
const WORKERS: &str = "ANIM_WORKERS";
/// The buckets of files.
pub(super) const CLIPS: &str = "ANIM_CLIPS";
pub(super) const INPUTS: &str = "ANIM_INPUTS";

/// Bytes of a message of jobs and events.
const MOST_BYTES: i32 = 256 << 10;
/// Events of a job, and how long they are kept.
const EVENTS_OF_A_JOB: i64 = 512;
const HOUR: Duration = Duration::from_secs(3600);
/// How long a name of a submission counts.
const DAY: Duration = Duration::from_secs(86_400);
/// How long a worker counts as there after its last word.
pub(super) const PRESENCE: Duration = Duration::from_secs(30);
/// Code of the error for a stream that is full, or has a message of the subject.
const NOT_STORED: u64 = 10077;

/// What is on the server.
#[derive(Debug)]
pub(super) struct Streams {
    pub(super) jobs: Stream,
    pub(super) events: Stream,
    pub(super) state: Store,
    /// `None` for workers.
    pub(super) names: Option<Store>,
    pub(super) workers: Store,
    pub(super) consumers: Consumers,
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// It is there.
    There,
    /// There is no place for it.
    Full,
}

impl Streams {
    /// Finds everything; makes what is not there if `makes`.
    pub(super) async fn open(link: &Link, settings: &NatsSettings, makes: bool) -> Result<Self> {
        let jobs = Config {
            name: JOBS.into(),
            subjects: vec!["anim.jobs.>".into()],
            retention: RetentionPolicy::WorkQueue,
            discard: DiscardPolicy::New,
            // A message for each job, however often one is sent.
            max_messages_per_subject: 1,
            discard_new_per_subject: true,
            max_messages: i64::try_from(settings.most_jobs).unwrap_or(i64::MAX),
            max_message_size: MOST_BYTES,
            ..Config::default()
        };
        // In files, so that their numbers go on after a restart of the server.
        let events = Config {
            name: EVENTS.into(),
            subjects: vec!["anim.events.>".into()],
            max_messages_per_subject: EVENTS_OF_A_JOB,
            max_age: HOUR,
            max_message_size: MOST_BYTES,
            ..Config::default()
        };
        let bucket = |bucket: &str, max_age: Duration| kv::Config {
            bucket: bucket.into(),
            history: 1,
            max_age,
            ..kv::Config::default()
        };
        let names = if makes { Some(store(link, bucket(NAMES, DAY), makes).await?) } else { None };
        let streams = Self {
            jobs: stream(link, jobs, makes).await?,
            events: stream(link, events, makes).await?,
            state: store(link, bucket(STATE, Duration::ZERO), makes).await?,
            names,
            workers: store(link, bucket(WORKERS, PRESENCE), makes).await?,
            consumers: Consumers::new(settings.lease),
        };
        for name in [CLIPS, INPUTS] {
            if makes && link.context.get_object_store(name).await.is_err() {
                let config = object_store::Config { bucket: name.into(), ..Default::default() };
                let made = link.context.create_object_store(config).await;
                made.map_err(|error| absent(name, &error))?;
            }
        }
        Ok(streams)
    }

    /// Puts the message of a job into the stream, with the consumer that hands it out; once if it is sent more often.
    ///
    /// One that is sent `again` counts although the server knows the first, which is lost: for two minutes it would
    /// take it for the same, and keep neither.
    pub(super) async fn send(&self, link: &Link, record: &Record, again: bool) -> Result<Sent> {
        self.consumers.make(&self.jobs, record).await?;
        let mut headers = async_nats::HeaderMap::new();
        if !again {
            headers.insert("Nats-Msg-Id", record.id.as_str());
        }
        let (subject, payload) = (subject(record), record.id.to_string());
        let sent = link.context.publish_with_headers(subject, headers, payload.into());
        let sent = match sent.await {
            Ok(sent) => sent.await.map(|_| ()),
            Err(error) => Err(error),
        };
        let sent = match sent {
            Ok(()) => Sent::There,
            Err(error) => match refusal(&error) {
                Some(reason) if reason.contains("per subject") => Sent::There,
                Some(_) => Sent::Full,
                None => return Err(away(error)),
            },
        };
        link.wake().await;
        Ok(sent)
    }

    /// Removes the message of a job, if there is one.
    pub(super) async fn forget(&self, record: &Record) -> Result<()> {
        self.jobs.purge().filter(subject(record)).await.map(|_| ()).map_err(away)
    }

    /// Whether the stream has a message of a job.
    pub(super) async fn has(&self, record: &Record) -> Result<bool> {
        match self.jobs.get_last_raw_message_by_subject(&subject(record)).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(false),
            Err(error) => Err(away(error)),
        }
    }
}

/// The subject of the message of a job.
fn subject(record: &Record) -> String {
    let (class, level) = (token(&record.class), level(record.priority));
    format!("anim.jobs.{class}.{level}.{}", record.id)
}

/// The subject of the events of a job.
pub(super) fn events_of(id: &JobId) -> String {
    format!("anim.events.{id}")
}

/// Why a message was refused, if it was because of the stream's limits.
fn refusal(error: &PublishError) -> Option<String> {
    let source = std::error::Error::source(error)?;
    let error = source.downcast_ref::<async_nats::jetstream::Error>()?;
    (error.error_code().0 == NOT_STORED).then(|| error.to_string())
}

async fn stream(link: &Link, config: Config, makes: bool) -> Result<Stream> {
    let name = config.name.clone();
    if !makes {
        return link.context.get_stream(&name).await.map_err(|error| absent(&name, &error));
    }
    let wanted = config.max_messages;
    let found = link.context.get_or_create_stream(config).await;
    let found = found.map_err(|error| absent(&name, &error))?;
    let mut there = found.cached_info().config.clone();
    if wanted > 0 && there.max_messages != wanted {
        // What else an operator has set, such as replicas, stays.
        there.max_messages = wanted;
        link.context.update_stream(there).await.map_err(|error| absent(&name, &error))?;
    }
    Ok(found)
}

async fn store(link: &Link, config: kv::Config, makes: bool) -> Result<Store> {
    let name = config.bucket.clone();
    let there = link.context.get_key_value(&name).await;
    match there {
        Ok(there) => Ok(there),
        Err(_) if makes => {
            link.context.create_key_value(config).await.map_err(|error| absent(&name, &error))
        }
        Err(error) => Err(absent(&name, &error)),
    }
}

/// The error of something that is not there, or that this user may not have.
pub(super) fn absent(name: &str, error: &dyn std::fmt::Display) -> crate::Error {
    away(format!("{name}: {error}")).with_hint(
        "`animatelcm serve --nats` makes it; JetStream must be on, and the user have the right",
    )
}
