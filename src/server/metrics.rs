//! Counts and times, in the form that Prometheus reads.

use std::time::Duration;

use axum::http::{Method, StatusCode};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::queue::Status;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfStatus {
    status: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfOutcome {
    outcome: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfRequest {
    method: String,
    route: String,
    status: u16,
}

/// All metrics of a server.
#[derive(Debug)]
pub(super) struct Metrics {
    registry: Registry,
    jobs: Family<OfStatus, Gauge>,
    ended: Family<OfOutcome, Counter>,
    wait: Histogram,
    job: Histogram,
    step: Histogram,
    load: Histogram,
    requests: Family<OfRequest, Counter>,
    request: Histogram,
}

fn times(least: f64) -> Histogram {
    Histogram::new(exponential_buckets(least, 2.0, 16))
}

impl Metrics {
    pub(super) fn new() -> Self {
        let mut registry = Registry::with_prefix("animatelcm");
        let (jobs, ended, requests) = (Family::default(), Family::default(), Family::default());
        let (wait, job, step, load) = (times(0.01), times(0.1), times(0.01), times(0.01));
        let request = times(0.0005);
        registry.register("jobs", "Jobs by state", jobs.clone());
        registry.register("jobs_ended", "Jobs that workers ended, by outcome", ended.clone());
        for (name, help, times) in [
            ("queue_wait", "Time from submission to start", &wait),
            ("job", "Time from start to clip", &job),
            ("step", "Time of a denoising step", &step),
            ("load", "Time of loading what a clip needs", &load),
            ("http_request", "Time to the first byte of an answer", &request),
        ] {
            registry.register_with_unit(name, help, Unit::Seconds, times.clone());
        }
        registry.register("http_requests", "Answers by route", requests.clone());
        Self { registry, jobs, ended, wait, job, step, load, requests, request }
    }

    /// Counts an answer, by its route's template.
    pub(super) fn request(&self, method: &Method, route: &str, status: StatusCode, time: Duration) {
        // A client may send any word as a method.
        let method = match *method {
            Method::GET | Method::POST | Method::DELETE | Method::HEAD | Method::OPTIONS => {
                method.as_str()
            }
            _ => "other",
        };
        let (method, route) = (method.to_owned(), route.to_owned());
        let labels = OfRequest { method, route, status: status.as_u16() };
        self.requests.get_or_create(&labels).inc();
        self.request.observe(time.as_secs_f64());
    }

    pub(super) fn started(&self, wait: f64) {
        self.wait.observe(wait.max(0.0));
    }

    pub(super) fn stepped(&self, seconds: f64) {
        self.step.observe(seconds);
    }

    pub(super) fn loaded(&self, seconds: f64) {
        self.load.observe(seconds);
    }

    /// A worker is done with a job; `code` says why there is no clip.
    pub(super) fn ended(&self, code: Option<&str>, time: Duration) {
        let outcome = code.unwrap_or("completed").to_owned();
        self.ended.get_or_create(&OfOutcome { outcome }).inc();
        if code.is_none() {
            self.job.observe(time.as_secs_f64());
        }
    }

    /// Sets how many jobs are in a state.
    pub(super) fn are(&self, status: Status, count: usize) {
        let labels = OfStatus { status: status.name() };
        self.jobs.get_or_create(&labels).set(count as i64);
    }

    /// All of it in OpenMetrics' form.
    pub(super) fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
