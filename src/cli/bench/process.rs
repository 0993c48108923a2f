//! Measurements by the operating system: peak memory, and the time of a fresh process.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::request::Job;
use crate::{Error, Result, Stop};

/// The most bytes that this process has had in memory since [`reset_peak`]. Linux tells it, others do not.
pub(super) fn peak() -> Option<u64> {
    high_water(&std::fs::read_to_string("/proc/self/status").ok()?)
}

/// Makes [`peak`] begin anew. Where the system does not allow it, the peak stays that of the whole process.
pub(super) fn reset_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// `VmHWM` of Linux's `/proc/self/status`.
fn high_water(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// A run of `generate` in a process of its own.
pub(super) struct Command<'a> {
    pub(super) job: &'a Job,
    pub(super) offline: bool,
    /// Folders of models that are found by name.
    pub(super) models_dir: &'a [PathBuf],
    pub(super) stop: &'a Stop,
}

impl Command<'_> {
    /// Seconds from the start of the process to its end, with the clip in a file.
    pub(super) fn seconds_to_first_clip(&self) -> Result<f64> {
        let here = Path::new("a temporary folder");
        let folder = tempfile::tempdir().map_err(Error::file(here))?;
        let request = folder.path().join("request.json");
        let json = super::to_json(self.job)?;
        std::fs::write(&request, json).map_err(Error::file(&request))?;
        let program = std::env::current_exe().map_err(Error::file("animatelcm"))?;

        let mut arguments: Vec<OsString> = vec!["generate".into(), "--request".into()];
        arguments.push(request.into());
        arguments.push("--output".into());
        // The one format that every build has; its encoder hardly takes time.
        arguments.push(folder.path().join("clip.y4m").into());
        arguments.extend(["--quiet".into(), "--progress".into(), "none".into()]);
        if self.offline {
            arguments.push("--offline".into());
        }
        for folder in self.models_dir {
            arguments.extend(["--models-dir".into(), folder.into()]);
        }
        let started = Instant::now();
        // The request is complete: defaults of the user's have no say.
        let mut process = std::process::Command::new(&program)
            .args(arguments)
            .env("ANIMATELCM_CONFIG", "")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(Error::file(&program))?;
        // Its output fits into a pipe. A signal may have reached this process alone.
        while process.try_wait().map_err(Error::file(&program))?.is_none() {
            if self.stop.is_requested() {
                let _ = process.kill();
                let _ = process.wait();
                return Err(Error::Cancelled);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let seconds = started.elapsed().as_secs_f64();
        let output = process.wait_with_output().map_err(Error::file(&program))?;
        self.stop.check()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let reason = said.lines().next().unwrap_or("it said nothing").to_owned();
            return Err(Error::Missing { name: "cold start".into(), reason });
        }
        Ok(seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_high_water_mark_is_read_in_bytes() {
        assert_eq!(high_water("VmPeak:\t 9 kB\nVmHWM:\t   2048 kB\nVmRSS: 1 kB\n"), Some(2 << 20));
        assert_eq!(high_water("VmHWM: much kB"), None);
        assert_eq!(high_water(""), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_peak_grows_with_use_and_falls_after_a_reset() {
        let big = vec![1u8; 512 << 20];
        assert!(big.iter().all(|b| *b == 1));
        let high = peak().unwrap();
        assert!(high > (512 << 20));
        drop(big);
        // The system counts pages by processor and reads the sum only roughly.
        let slack = 16 << 20;
        assert!(peak().unwrap() >= high - slack, "a peak outlives its cause");
        reset_peak();
        // Containers may forbid it; then nothing changes.
        let after = peak().unwrap();
        assert!(after < high - (256 << 20) || after >= high - slack, "{after} after {high}");
    }
}
