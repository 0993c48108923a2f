//! Consumers: one for each class and priority hands out the messages of its jobs.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::pull::Config;
use async_nats::jetstream::consumer::{AckPolicy, Consumer};
use async_nats::jetstream::stream::Stream;
use futures_util::StreamExt;

use super::link::away;
use crate::Result;
use crate::queue::{Priority, Record};

/// Deliveries of a message after which the front end looks at it. Records count attempts; this is a net below them.
const MOST_DELIVERIES: i64 = 10;

/// How long the list of consumers counts as known.
const FRESH: Duration = Duration::from_secs(2);

pub(super) type Pull = Consumer<Config>;

/// The consumers that are known.
#[derive(Debug)]
pub(super) struct Consumers {
    /// Time after which a message that nobody answers is given to another.
    lease: Duration,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// When the server was asked last.
    at: Option<Instant>,
    by_name: HashMap<String, Pull>,
}

impl Consumers {
    pub(super) fn new(lease: Duration) -> Self {
        Self { lease, known: Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the consumer of a job, unless it is there.
    pub(super) async fn make(&self, jobs: &Stream, record: &Record) -> Result<()> {
        let (class, level) = (token(&record.class), level(record.priority));
        let name = format!("{class}-{level}");
        if self.known().by_name.contains_key(&name) {
            return Ok(());
        }
        let config = Config {
            durable_name: Some(name.clone()),
            ack_policy: AckPolicy::Explicit,
            ack_wait: self.lease,
            max_deliver: MOST_DELIVERIES,
            max_ack_pending: -1,
            filter_subject: format!("anim.jobs.{class}.{level}.*"),
            ..Config::default()
        };
        let made = jobs.create_consumer(config).await.map_err(away)?;
        self.known().by_name.insert(name, made);
        Ok(())
    }

    /// The consumers of the classes, of all if there are none, those of high priority first. Which class is the first
    /// goes by `turn`.
    pub(super) async fn of(
        &self,
        jobs: &Stream,
        classes: &[String],
        turn: usize,
    ) -> Result<Vec<Pull>> {
        let is_fresh = self.known().at.is_some_and(|at| at.elapsed() < FRESH);
        if !is_fresh {
            let mut found = Vec::new();
            let mut names = jobs.consumer_names();
            while let Some(name) = names.next().await {
                found.push(name.map_err(away)?);
            }
            let missing: Vec<_> = found
                .iter()
                .filter(|name| !self.known().by_name.contains_key(*name))
                .cloned()
                .collect();
            for name in missing {
                let consumer = jobs.get_consumer(&name).await.map_err(away)?;
                self.known().by_name.insert(name, consumer);
            }
            let mut known = self.known();
            known.by_name.retain(|name, _| found.contains(name));
            known.at = Some(Instant::now());
        }
        let classes: Vec<_> = classes.iter().map(|class| token(class)).collect();
        let known = self.known();
        let wanted = known.by_name.iter().filter(|(name, _)| {
            let class = name.rsplit_once('-').map_or("", |(class, _)| class);
            classes.is_empty() || classes.iter().any(|wanted| wanted == class)
        });
        let mut wanted: Vec<_> = wanted.collect();
        wanted.sort_by_key(|(name, _)| *name);
        let (mut high, mut normal): (Vec<_>, Vec<_>) =
            wanted.into_iter().partition(|(name, _)| name.ends_with("-high"));
        for level in [&mut high, &mut normal] {
            let count = level.len().max(1);
            level.rotate_left(turn % count);
        }
        Ok(high.into_iter().chain(normal).map(|(_, consumer)| consumer.clone()).collect())
    }

    /// Looks for consumers the next time, known or not.
    pub(super) fn stale(&self) {
        self.known().at = None;
    }

    /// Forgets a consumer that is no longer there.
    pub(super) fn gone(&self, consumer: &Pull) {
        let mut known = self.known();
        known.by_name.remove(&consumer.cached_info().name);
        known.at = None;
    }
}

/// A priority as part of a subject.
pub(super) fn level(priority: Priority) -> &'static str {
    match priority {
        Priority::High => "high",
        Priority::Normal => "normal",
    }
}

/// A class as part of a subject.
pub(super) fn token(class: &str) -> String {
    let token: String = class.chars().filter(char::is_ascii_alphanumeric).collect();
    if token.is_empty() { "any".into() } else { token }
}
