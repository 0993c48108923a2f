//! Requests of other programs: texts of AUTOMATIC1111's web UI and graphs of ComfyUI, alone or in images.

use animatelcm::cli::read_request;

use super::support::file;

/// Reads the request; what it becomes must survive being written.
pub fn run(data: &[u8]) {
    let Ok(job) = read_request(&file("request", data)) else { return };
    let _ = job.request.validate();
    super::request::read(&serde_json::to_string(&job).expect("a job can be written"));
}
