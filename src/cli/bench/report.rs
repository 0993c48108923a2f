//! The results of a benchmark, as a table and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use candle_core::Device;
use serde::Serialize;

use super::super::about::vector_units;
use super::Kinds;
use super::summary::Summary;
use crate::Quantize;
use crate::device::KernelChoice;
use crate::error::Bytes;
use crate::kernels::clock::Kind;

/// Everything that was measured, and under which circumstances.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) settings: Settings,
    pub(super) versions: Versions,
    pub(super) device: String,
    /// 10⁹ additions and multiplications a second in a matrix product that fits the caches, in the format of the UNet;
    /// only of a CPU. Parts may exceed it: their work is counted as if every convolution were multiplied out.
    pub(super) limit_gflop_per_second: Option<f64>,
    pub(super) parameters: Parameters,
    /// Seconds from the start of a process to its first finished file; none without files.
    pub(super) cold_start_seconds: Option<f64>,
    pub(super) load_seconds: f64,
    pub(super) text_encode: Part,
    /// The source by the autoencoder's encoder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) source_encode: Option<Part>,
    /// The source by AnimateLCM-I2V's encoder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) i2v_encode: Option<Part>,
    pub(super) unet_step: Part,
    pub(super) decode: Part,
    pub(super) clip: Part,
    /// Peak memory of the process, with all parts in memory; none where the system does not report it.
    pub(super) peak_memory_bytes: Option<u64>,
    /// The memory that the check before a run estimates.
    pub(super) estimated_memory_bytes: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct Settings {
    pub(super) model: String,
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) frames: usize,
    pub(super) steps: usize,
    pub(super) cfg_scale: f64,
    pub(super) sampler: String,
    pub(super) seed: u64,
    /// The image or video that clips start from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) source: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) strength: Option<f64>,
    /// Networks beside the UNet.
    pub(super) controls: Vec<String>,
    pub(super) dtype: &'static str,
    pub(super) vae_dtype: &'static str,
    pub(super) quantize: Quantize,
    pub(super) kernels: KernelChoice,
    pub(super) repeats: usize,
    pub(super) warmup: usize,
    pub(super) threads: usize,
}

#[derive(Debug, Serialize)]
pub(super) struct Versions {
    pub(super) animatelcm: &'static str,
    pub(super) candle: &'static str,
    /// Operating system and processor family of the build.
    pub(super) target: String,
    /// Whether the program was built with optimisation for speed and without checks.
    pub(super) profile: &'static str,
}

impl Versions {
    pub(super) fn current() -> Self {
        Self {
            animatelcm: env!("CARGO_PKG_VERSION"),
            candle: CANDLE,
            target: format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
            profile: if cfg!(debug_assertions) { "debug" } else { "release" },
        }
    }
}

/// The version in `Cargo.toml`; cargo does not tell a crate the versions of its dependencies.
const CANDLE: &str = "0.11.1";

/// Number of parameters of each network.
#[derive(Debug, Serialize)]
pub(super) struct Parameters {
    pub(super) text: u64,
    pub(super) unet: u64,
    pub(super) vae: u64,
}

/// A part of the work.
#[derive(Debug, Serialize)]
pub(super) struct Part {
    pub(super) seconds: Summary,
    /// 10⁹ additions and multiplications in convolutions, linear layers and attention.
    pub(super) gflop: f64,
    /// `gflop` for each second of the median.
    pub(super) gflop_per_second: f64,
    /// Peak of the process's memory during this part.
    pub(super) peak_memory_bytes: Option<u64>,
    /// Shares of the time by kind of kernel; only for networks on a CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) shares: Option<Shares>,
}

/// Parts of the time by kind of operation, which make 1 together.
#[derive(Debug, Serialize)]
pub(super) struct Shares {
    #[serde(flatten)]
    kinds: BTreeMap<&'static str, f64>,
    other: f64,
}

impl Shares {
    /// The shares of `seconds`.
    pub(super) fn new(times: &Kinds, seconds: f64) -> Self {
        let seconds = seconds.max(f64::MIN_POSITIVE);
        let share = |(kind, time): (Kind, &Duration)| (kind.name(), time.as_secs_f64() / seconds);
        let kinds: BTreeMap<_, _> = Kind::ALL.into_iter().zip(times).map(share).collect();
        let other = (1.0 - kinds.values().sum::<f64>()).max(0.0);
        Self { kinds, other }
    }
}

impl Part {
    pub(super) fn new(seconds: Summary, flops: u64, peak: Option<u64>) -> Self {
        let gflop = flops as f64 / 1e9;
        let rate = if seconds.median > 0.0 { gflop / seconds.median } else { 0.0 };
        let peak_memory_bytes = peak;
        Self { seconds, gflop, gflop_per_second: rate, peak_memory_bytes, shares: None }
    }
}

/// The device's kind and, where it can be told, its name.
pub(super) fn device_name(device: &Device) -> String {
    match device {
        Device::Cpu => {
            let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
            match processor(&info) {
                Some(name) => format!("cpu, {name}{}", vector_units()),
                None => format!("cpu{}", vector_units()),
            }
        }
        Device::Cuda(_) => "cuda".into(),
        Device::Metal(_) => "metal".into(),
    }
}

/// The first processor's name in Linux's `/proc/cpuinfo`.
fn processor(info: &str) -> Option<&str> {
    let line = info.lines().find_map(|line| line.strip_prefix("model name"))?;
    let name = line.trim_start().strip_prefix(':')?.trim();
    (!name.is_empty()).then_some(name)
}

/// Lines that describe what all runs of a sweep share, with the number of steps of a single run.
fn heading(reports: &[Report]) -> Vec<String> {
    let Some(Report { settings, versions, device, .. }) = reports.first() else { return vec![] };
    let Settings { model, width, height, frames, cfg_scale, sampler, seed, .. } = settings;
    let Settings { dtype, threads, repeats, warmup, .. } = settings;
    let controls = settings.controls.iter();
    let controls = controls.fold(String::new(), |all, control| all + ", " + control.as_str());
    let strength = settings.strength.map(|strength| format!(" at strength {strength}"));
    let source = settings.source.iter();
    let source =
        source.map(|file| format!(", from {file}{}", strength.as_deref().unwrap_or_default()));
    let controls = source.collect::<String>() + &controls;
    let how = [settings.quantize.words(), settings.kernels.words()].concat();
    let Versions { animatelcm, candle, target, profile } = versions;
    let steps = match reports {
        [_] => format!("{} of {sampler}", counted(settings.steps, "step")),
        _ => sampler.clone(),
    };
    let warm_up = match warmup {
        0 => "without a warm-up".into(),
        _ => format!("after {} to warm up", counted(*warmup, "clip")),
    };
    let each = if reports.len() > 1 { " each" } else { "" };
    vec![
        format!("animatelcm {animatelcm}, candle {candle}, {target}, {profile}"),
        format!("{device}, {}", counted(*threads, "thread")),
        format!(
            "{model}: {} of {width}x{height}, {steps}, cfg {cfg_scale}, seed {seed}, {dtype}{how}{controls}",
            counted(*frames, "frame")
        ),
        format!("{} timed{each}, {warm_up}", counted(*repeats, "clip")),
    ]
}

/// `1 step`, `2 steps`.
fn counted(count: usize, word: &str) -> String {
    if count == 1 { format!("1 {word}") } else { format!("{count} {word}s") }
}

/// The columns of a sweep.
const SWEEP: [&str; 8] =
    ["steps", "UNet step", "decode", "clip", "p10", "p90", "frames/s", "peak memory"];

impl Report {
    /// The cells below [`SWEEP`].
    fn sweep_row(&self) -> [String; SWEEP.len()] {
        let Settings { steps, frames, .. } = self.settings;
        let clip = &self.clip.seconds;
        let rate = if clip.median > 0.0 { frames as f64 / clip.median } else { 0.0 };
        [
            steps.to_string(),
            time(self.unet_step.seconds.median),
            time(self.decode.seconds.median),
            time(clip.median),
            time(clip.p10),
            time(clip.p90),
            significant(rate),
            memory(self.peak_memory_bytes),
        ]
    }

    /// Names and values of a line of CSV.
    fn fields(&self) -> Vec<(String, String)> {
        let Settings { model, width, height, frames, steps, cfg_scale, sampler, seed, .. } =
            &self.settings;
        let Settings { dtype, vae_dtype, quantize, kernels, repeats, warmup, threads, .. } =
            &self.settings;
        let Versions { animatelcm, candle, target, profile } = &self.versions;
        let number = |value: Option<f64>| value.map(|v| v.to_string()).unwrap_or_default();
        let count = |value: Option<u64>| value.map(|v| v.to_string()).unwrap_or_default();
        let mut fields: Vec<(String, String)> = [
            ("model", model.clone()),
            ("width", width.to_string()),
            ("height", height.to_string()),
            ("frames", frames.to_string()),
            ("steps", steps.to_string()),
            ("sampler", sampler.clone()),
            ("cfg_scale", cfg_scale.to_string()),
            ("seed", seed.to_string()),
            ("source", self.settings.source.clone().unwrap_or_default()),
            ("strength", number(self.settings.strength)),
            ("controls", self.settings.controls.join(" ")),
            ("dtype", (*dtype).to_owned()),
            ("vae_dtype", (*vae_dtype).to_owned()),
            ("quantize", name(quantize)),
            ("kernels", name(kernels)),
            ("device", self.device.clone()),
            ("threads", threads.to_string()),
            ("repeats", repeats.to_string()),
            ("warmup", warmup.to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        for (name, part) in self.parts() {
            let name = name.to_lowercase().replace(' ', "_");
            let Summary { median, p10, p90, .. } = part.seconds;
            for (of, value) in [("", median), ("_p10", p10), ("_p90", p90)] {
                fields.push((format!("{name}_seconds{of}"), value.to_string()));
            }
            fields.push((format!("{name}_gflop"), part.gflop.to_string()));
        }
        fields.extend(
            [
                ("load_seconds", self.load_seconds.to_string()),
                ("cold_start_seconds", number(self.cold_start_seconds)),
                ("peak_memory_bytes", count(self.peak_memory_bytes)),
                ("limit_gflop_per_second", number(self.limit_gflop_per_second)),
                ("animatelcm", (*animatelcm).to_owned()),
                ("candle", (*candle).to_owned()),
                ("target", target.clone()),
                ("profile", (*profile).to_owned()),
            ]
            .map(|(name, value)| (name.to_owned(), value)),
        );
        fields
    }

    /// The parts of the work, as they are called in tables.
    fn parts(&self) -> impl Iterator<Item = (&'static str, &Part)> {
        [
            ("text encode", Some(&self.text_encode)),
            ("source encode", self.source_encode.as_ref()),
            ("I2V encode", self.i2v_encode.as_ref()),
            ("UNet step", Some(&self.unet_step)),
            ("decode", Some(&self.decode)),
            ("clip", Some(&self.clip)),
        ]
        .into_iter()
        .filter_map(|(name, part)| Some((name, part?)))
    }

    /// The report as a table for people.
    pub(super) fn table(&self) -> String {
        let frames = self.settings.frames;
        let mut text = heading(std::slice::from_ref(self)).join("\n") + "\n\n";
        let header = ["", "median", "p10", "p90", "GFLOP", "GFLOP/s", "peak memory"];
        let mut rows = vec![header.map(str::to_owned)];
        for (name, part) in self.parts() {
            let seconds = &part.seconds;
            rows.push([
                name.to_owned(),
                time(seconds.median),
                time(seconds.p10),
                time(seconds.p90),
                significant(part.gflop),
                significant(part.gflop_per_second),
                memory(part.peak_memory_bytes),
            ]);
        }
        text.push_str(&aligned(&rows));
        text.push_str(&self.shares());
        // Writing to a string cannot fail.
        let _ = writeln!(text, "\nload         {}", time(self.load_seconds));
        if let Some(seconds) = self.cold_start_seconds {
            let _ = writeln!(text, "cold start   {}", time(seconds));
        }
        if let Some(limit) = self.limit_gflop_per_second {
            let _ = writeln!(text, "limit        {} GFLOP/s in products", significant(limit));
        }
        let step = self.unet_step.seconds.median;
        let clip = self.clip.seconds.median;
        if step > 0.0 && clip > 0.0 {
            let (steps, rate) = (1.0 / step, frames as f64 / clip);
            let _ = writeln!(
                text,
                "throughput   {} steps/s, {} frames/s",
                significant(steps),
                significant(rate)
            );
        }
        text
    }

    /// The networks' shares of the time, where they are known.
    fn shares(&self) -> String {
        let row = |name: &str, kinds: [String; Kind::ALL.len()], other: String| -> Vec<String> {
            [name.to_owned()].into_iter().chain(kinds).chain([other]).collect()
        };
        let mut rows = vec![row("", Kind::ALL.map(|kind| kind.name().to_owned()), "other".into())];
        for (name, part) in [("UNet step", &self.unet_step), ("decode", &self.decode)] {
            let Some(Shares { kinds, other }) = &part.shares else { continue };
            let percent = |share: f64| format!("{:.0} %", 100.0 * share);
            let share = |kind: Kind| kinds.get(kind.name()).copied().unwrap_or(0.0);
            rows.push(row(name, Kind::ALL.map(|kind| percent(share(kind))), percent(*other)));
        }
        if rows.len() == 1 { String::new() } else { format!("\n{}", aligned(&rows)) }
    }
}

/// Several numbers of steps as a table for people.
pub(super) fn sweep(reports: &[Report]) -> String {
    let mut rows = vec![SWEEP.map(str::to_owned)];
    rows.extend(reports.iter().map(Report::sweep_row));
    format!("{}\n\n{}", heading(reports).join("\n"), aligned(&rows))
}

/// A table for documents, a row for each number of steps.
pub(super) fn markdown(reports: &[Report]) -> String {
    let row = |cells: &[String]| {
        let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
        format!("| {} |\n", cells.join(" | "))
    };
    let mut text = String::new();
    for line in heading(reports) {
        // Each its own line in what is rendered, too.
        text.push_str(&format!("- {line}\n"));
    }
    text.push('\n');
    text.push_str(&row(&SWEEP.map(str::to_owned)));
    text.push_str(&row(&SWEEP.map(|_| "---:".to_owned())));
    for report in reports {
        text.push_str(&row(&report.sweep_row()));
    }
    text
}

/// Comma-separated values as in RFC 4180, but with lines that end as on Unix: a line of names, and one for each
/// number of steps.
pub(super) fn csv(reports: &[Report]) -> String {
    let line = |cells: Vec<String>| cells.iter().map(|cell| quoted(cell)).collect::<Vec<_>>();
    let mut text = String::new();
    for (i, report) in reports.iter().enumerate() {
        let (names, values): (Vec<String>, Vec<String>) = report.fields().into_iter().unzip();
        if i == 0 {
            text.push_str(&(line(names).join(",") + "\n"));
        }
        text.push_str(&(line(values).join(",") + "\n"));
    }
    text
}

/// A choice by its name in JSON.
fn name(choice: &impl Serialize) -> String {
    match serde_json::to_value(choice) {
        Ok(serde_json::Value::String(name)) => name,
        _ => String::new(),
    }
}

/// A value of CSV, in quotes where it needs them.
fn quoted(cell: &str) -> String {
    if cell.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", cell.replace('"', "\"\""))
    } else {
        cell.to_owned()
    }
}

fn memory(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "unknown".into(), |bytes| Bytes(bytes).to_string())
}

/// Columns as wide as their widest cell: the first to the left, numbers to the right.
fn aligned<R: AsRef<[String]>>(rows: &[R]) -> String {
    let rows: Vec<&[String]> = rows.iter().map(AsRef::as_ref).collect();
    let columns = rows.first().map_or(0, |row| row.len());
    let widths: Vec<usize> = (0..columns)
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            if column == 0 {
                let _ = write!(line, "{cell:<width$}");
            } else {
                let _ = write!(line, "  {cell:>width$}");
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Seconds in the unit that suits them.
fn time(seconds: f64) -> String {
    if seconds < 1.0 {
        format!("{} ms", significant(seconds * 1e3))
    } else {
        format!("{} s", significant(seconds))
    }
}

/// Three digits that count.
fn significant(value: f64) -> String {
    let digits = if value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else if value >= 1.0 {
        2
    } else {
        3
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_candle_is_that_of_the_manifest() {
        let manifest = include_str!("../../../Cargo.toml");
        assert!(manifest.contains(&format!("candle-core = \"{CANDLE}\"")));
    }

    fn report(steps: usize, model: &str) -> Report {
        let part = |seconds: f64| Part::new(Summary::of(&[seconds]), 3_000_000_000, Some(1 << 20));
        Report {
            settings: Settings {
                model: model.into(),
                width: 64,
                height: 32,
                frames: 16,
                steps,
                cfg_scale: 1.5,
                sampler: "lcm".into(),
                seed: 7,
                source: None,
                strength: None,
                controls: vec![],
                dtype: "f32",
                vae_dtype: "f32",
                quantize: Quantize::None,
                kernels: KernelChoice::Default,
                repeats: 1,
                warmup: 0,
                threads: 1,
            },
            versions: Versions::current(),
            device: "cpu, Fast 9000".into(),
            limit_gflop_per_second: None,
            parameters: Parameters { text: 1, unet: 2, vae: 3 },
            cold_start_seconds: None,
            load_seconds: 0.25,
            text_encode: part(0.125),
            source_encode: None,
            i2v_encode: None,
            unet_step: part(0.5),
            decode: part(1.5),
            clip: part(2.0 * steps as f64),
            peak_memory_bytes: Some(1 << 20),
            estimated_memory_bytes: 0,
        }
    }

    #[test]
    fn csv_has_a_line_for_each_number_of_steps_and_quotes_what_needs_it() {
        let text = csv(&[report(1, "a \"b\", c"), report(4, "plain")]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[0].starts_with("model,width,height,frames,steps,sampler,"), "{text}");
        assert!(lines[1].starts_with("\"a \"\"b\"\", c\",64,32,16,1,lcm,1.5,7,"), "{text}");
        assert!(lines[2].starts_with("plain,64,32,16,4,lcm,1.5,7,"), "{text}");
        let column = |name: &str| lines[0].split(',').position(|column| column == name).unwrap();
        // The device has a comma, and so quotes, before it.
        let cells: Vec<&str> = lines[2].split(',').collect();
        assert_eq!(cells[column("clip_seconds") + 1], "8");
        assert_eq!(cells[column("unet_step_gflop") + 1], "3");
        assert_eq!(cells[column("cold_start_seconds") + 1], "");
        assert_eq!(cells.len(), lines[0].split(',').count() + 1);
    }

    #[test]
    fn a_sweep_has_a_row_for_each_number_of_steps() {
        let reports = [report(1, "m|n"), report(8, "m|n")];
        let table = sweep(&reports);
        assert!(table.contains("m|n: 16 frames of 64x32, lcm, cfg 1.5, seed 7, f32"), "{table}");
        assert!(table.contains("1 clip timed each, without a warm-up"), "{table}");
        let last = table.lines().last().unwrap();
        assert_eq!(
            last.split_whitespace().collect::<Vec<_>>()[..9],
            ["8", "500", "ms", "1.50", "s", "16.0", "s", "16.0", "s"]
        );
        let document = markdown(&reports);
        assert!(
            document
                .ends_with("| 8 | 500 ms | 1.50 s | 16.0 s | 16.0 s | 16.0 s | 1.00 | 1.0 MiB |\n"),
            "{document}"
        );
        assert_eq!(document.lines().filter(|line| line.starts_with('|')).count(), 4);
    }

    #[test]
    fn one_is_not_a_plural() {
        assert_eq!([0, 1, 2].map(|n| counted(n, "clip")), ["0 clips", "1 clip", "2 clips"]);
        let text = report(1, "m").table();
        assert!(text.contains("1 step of lcm") && text.contains("1 thread\n"), "{text}");
    }

    #[test]
    fn columns_are_aligned() {
        let rows = [["", "a"], ["long", "10"], ["b", ""]].map(|row| row.map(str::to_owned));
        assert_eq!(aligned(&rows), "       a\nlong  10\nb\n");
    }

    #[test]
    fn times_have_three_digits() {
        assert_eq!(time(0.012_34), "12.3 ms");
        assert_eq!(time(1.234), "1.23 s");
        assert_eq!(time(123.4), "123 s");
    }

    #[test]
    fn a_processor_is_read_from_its_line() {
        assert_eq!(processor("flags : a\nmodel name\t: Fast 9000\n"), Some("Fast 9000"));
        assert_eq!(processor("model name\t:\n"), None);
        assert_eq!(processor(""), None);
    }

    #[test]
    fn a_rate_is_work_over_time() {
        let part = Part::new(Summary::of(&[2.0]), 8_000_000_000, None);
        assert_eq!((part.gflop, part.gflop_per_second), (8.0, 4.0));
    }
}
