//! From a message to a job in a worker's hands.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use async_nats::jetstream::{AckKind, Message};
use futures_util::StreamExt;

use super::Shared;
use super::consumers::Pull;
use super::lease::NatsLease;
use super::link::away;
use crate::Result;
use crate::queue::{JobId, Status, random};

/// How long the server may take to say that nothing waits.
const ANSWER: Duration = Duration::from_secs(2);

/// The longest pause between two looks: messages of lost workers come without a word.
const LOOK: Duration = Duration::from_millis(500);

/// How long a worker lets jobs of a class be after one that it could not make.
const REST: Duration = Duration::from_secs(30);

/// Claims after which another class is asked first: who changes the weights less often is faster, but none may starve.
const STREAK: usize = 8;

/// How a job was met.
enum Met {
    Waiting,
    /// Its worker was lost.
    Lost,
    /// Its worker was lost for the second time: it has failed.
    Over,
}

impl Shared {
    /// The next job of one of the classes, of any if there are none; waits so long for one.
    pub(super) async fn claim(
        self: &Arc<Self>,
        worker: &str,
        classes: &[String],
        wait: Duration,
    ) -> Result<Option<NatsLease>> {
        let until = Instant::now() + wait;
        let mut woken = self.woken.subscribe();
        loop {
            woken.mark_unchanged();
            if self.link.is_connected() {
                let turn = self.claims.fetch_add(1, Ordering::Relaxed) / STREAK;
                for consumer in self.streams.consumers.of(&self.streams.jobs, classes, turn).await?
                {
                    if self.rests(&consumer) {
                        continue;
                    }
                    while let Some(message) = self.fetch(&consumer).await? {
                        if let Some(lease) = self.take(worker, &consumer, message).await? {
                            return Ok(Some(lease));
                        }
                    }
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            if tokio::time::timeout(left.min(LOOK), woken.changed()).await.is_ok() {
                self.streams.consumers.stale();
            }
        }
    }

    /// A message of a consumer, if one waits.
    async fn fetch(&self, consumer: &Pull) -> Result<Option<Message>> {
        let fetched = tokio::time::timeout(ANSWER, async {
            let mut messages = consumer.fetch().max_messages(1).messages().await.ok()?;
            messages.next().await?.ok().map(Some).or(Some(None))
        });
        match fetched.await {
            Ok(Some(Some(message))) => Ok(Some(message)),
            Ok(Some(None)) => {
                // The consumer is gone with its stream, or is made just now.
                self.streams.consumers.gone(consumer);
                Ok(None)
            }
            Ok(None) => Ok(None),
            Err(_) => Err(away("no answer")),
        }
    }

    /// Takes the job of a message; `None` if there is nothing to do.
    async fn take(
        self: &Arc<Self>,
        worker: &str,
        consumer: &Pull,
        message: Message,
    ) -> Result<Option<NatsLease>> {
        let Some(id) = JobId::parse(&String::from_utf8_lossy(&message.payload)) else {
            let _ = message.double_ack_with(AckKind::Term).await;
            return Ok(None);
        };
        let lease = random::<16>()?;
        let taken = self.change(&id, ANSWER, |stored| {
            if stored.is_leased(&lease) {
                return Some(Met::Waiting);
            }
            let met = match stored.record.status {
                Status::Queued => Met::Waiting,
                Status::Running => {
                    if stored.lose() == Status::Failed {
                        return Some(Met::Over);
                    }
                    Met::Lost
                }
                _ => return None,
            };
            stored.record.start(worker);
            stored.lease = Some(lease.clone());
            Some(met)
        });
        match taken.await? {
            // It has ended, or is gone.
            None => {
                let _ = message.double_ack().await;
                Ok(None)
            }
            Some((Met::Over, _, stored)) => {
                self.tell_lost(&stored.record).await;
                let _ = message.double_ack_with(AckKind::Term).await;
                Ok(None)
            }
            Some((met, _, stored)) => {
                if matches!(met, Met::Lost) {
                    self.tell_lost(&stored.record).await;
                }
                let time = consumer.cached_info().config.ack_wait;
                Ok(Some(NatsLease::new(Arc::clone(self), stored.record, lease, message, time)))
            }
        }
    }

    fn resting(&self) -> std::sync::MutexGuard<'_, std::collections::HashMap<String, Instant>> {
        self.resting.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Lets the jobs of a message's consumer be for a while.
    pub(super) fn rest(&self, message: &Message) {
        if let Ok(info) = message.info() {
            self.resting().insert(info.consumer.to_owned(), Instant::now());
        }
    }

    fn rests(&self, consumer: &Pull) -> bool {
        let name = &consumer.cached_info().name;
        self.resting().get(name).is_some_and(|since| since.elapsed() < REST)
    }
}
