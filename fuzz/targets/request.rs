//! Requests: files of users, and what clips carry.

use animatelcm::request::Job;

/// Reads a request, and reads back what it is written as.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    read(text);
}

/// What a job is written as must be the same job.
pub(crate) fn read(text: &str) {
    let Ok(job) = Job::from_json(text) else { return };
    let _ = job.request.validate();
    let written = serde_json::to_string(&job).expect("a job that was read can be written");
    let again = Job::from_json(&written).expect("a job that was written can be read");
    assert_eq!(again, job, "{written}");
}
