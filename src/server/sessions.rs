//! Cookies that stand for keys, in memory only.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a cookie counts.
pub(super) const LASTS: Duration = Duration::from_secs(12 * 3600);

/// Most cookies that are known; the oldest go first.
const MOST: usize = 1000;

/// Cookies by token.
#[derive(Debug, Default)]
pub(super) struct Sessions(Mutex<HashMap<String, (String, Instant)>>);

impl Sessions {
    pub(super) fn add(&self, token: String, owner: String) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, (_, since)| since.elapsed() < LASTS);
        if known.len() >= MOST
            && let Some(oldest) = known.iter().min_by_key(|(_, (_, since))| *since)
        {
            let oldest = oldest.0.clone();
            known.remove(&oldest);
        }
        known.insert(token, (owner, Instant::now()));
    }

    pub(super) fn owner(&self, token: &str) -> Option<String> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known
            .get(token)
            .filter(|(_, since)| since.elapsed() < LASTS)
            .map(|(owner, _)| owner.clone())
    }

    pub(super) fn remove(&self, token: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(token);
    }
}
