//! `animatelcm bench`, through the program itself.

use std::process::{Command, Output};

use serde_json::Value;

use crate::support::control::save;
use crate::support::golden;
use crate::support::i2v::tensors;

fn bench(flags: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_animatelcm")).arg("bench").args(flags).output().unwrap()
}

/// Two small clips of the embedded model.
const SMALL: [&str; 10] =
    ["-W", "32", "-H", "32", "--frames", "2", "--steps", "2", "--repeats", "2"];

fn small(more: &[&str]) -> Output {
    bench(&[&SMALL, more].concat())
}

#[test]
fn the_json_has_times_memory_and_what_they_were_measured_on() {
    let output = small(&["--json", "--quiet"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stderr.is_empty());
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();

    let settings = &report["settings"];
    for (field, wanted) in [("width", 32), ("height", 32), ("frames", 2), ("steps", 2)] {
        assert_eq!(settings[field], wanted, "{field}");
    }
    assert_eq!(settings["dtype"], "f32");
    assert!(settings["threads"].as_u64().unwrap() > 0);
    assert_eq!(report["versions"]["animatelcm"], env!("CARGO_PKG_VERSION"));
    assert!(report["device"].as_str().unwrap().len() > 2);

    for (part, count) in [("text_encode", 2), ("unet_step", 4), ("decode", 2), ("clip", 2)] {
        let seconds = &report[part]["seconds"];
        assert_eq!(seconds["n"], count, "{part}");
        let [p10, median, p90] = ["p10", "median", "p90"].map(|q| seconds[q].as_f64().unwrap());
        assert!(0.0 < p10 && p10 <= median && median <= p90, "{part}: {p10} {median} {p90}");
        let rate = report[part]["gflop_per_second"].as_f64().unwrap();
        let wanted = report[part]["gflop"].as_f64().unwrap() / median;
        assert!(rate > 0.0 && (rate / wanted - 1.0).abs() < 1e-9, "{part}");
    }
    for part in ["unet_step", "decode"] {
        let shares = report[part]["shares"].as_object().unwrap();
        let sum: f64 = shares.values().map(|share| share.as_f64().unwrap()).sum();
        assert!((sum - 1.0).abs() < 1e-9, "{part}: {shares:?}");
        let frames = shares["temporal attention"].as_f64().unwrap();
        assert_eq!(frames > 0.0, part == "unet_step");
        for kind in ["convolution", "linear", "attention", "norm"] {
            assert!(shares[kind].as_f64().unwrap() > 0.0, "{part}: {kind}");
        }
        assert!(shares["other"].as_f64().unwrap() < 0.9);
    }
    let median = |part: &str| report[part]["seconds"]["median"].as_f64().unwrap();
    let parts = median("text_encode") + 2.0 * median("unet_step") + median("decode");
    assert!(parts < 2.0 * median("clip"), "the parts are those of the clip");
    assert!(report["cold_start_seconds"].as_f64().unwrap() > 0.0);
    assert!(report["limit_gflop_per_second"].as_f64().unwrap() > 0.0);
    assert!(report["parameters"]["unet"].as_u64().unwrap() > 100_000);
    if cfg!(target_os = "linux") {
        assert!(report["peak_memory_bytes"].as_u64().unwrap() > 1 << 20);
    }
}

#[test]
fn guidance_doubles_the_work_of_a_step() {
    let work = |scale| {
        let output = small(&["--json", "--quiet", "--no-cold-start", "--cfg-scale", scale]);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(report["cold_start_seconds"].is_null());
        report["unet_step"]["gflop"].as_f64().unwrap()
    };
    // Both halves share the embedding of the timestep, and nothing else.
    let ratio = work("7.5") / work("1");
    assert!(ratio > 1.99 && ratio < 2.0, "{ratio}");
}

#[test]
fn controls_add_their_work_to_steps_or_to_the_clip() {
    let folder = tempfile::tempdir().unwrap();
    let hint = folder.path().join("hint.png");
    image::RgbImage::from_pixel(32, 32, image::Rgb([200, 40, 90])).save(&hint).unwrap();
    let model = golden::path("tiny/model");
    let model = model.to_str().unwrap();
    let work = |network: Option<&str>| {
        let control = network.map(|network| {
            let network = golden::path(network);
            format!("c={},model={}", hint.display(), network.display())
        });
        let mut flags = vec!["--model", model, "--json", "--quiet", "--no-cold-start"];
        if let Some(control) = &control {
            flags.extend(["--control", control.as_str()]);
        }
        let output = small(&flags);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["settings"]["controls"].as_array().unwrap().len(), flags.len() / 7);
        ["unet_step", "clip"].map(|part| report[part]["gflop"].as_f64().unwrap())
    };
    let [step, clip] = work(None);
    for network in ["tiny/extras/controlnet", "sparse_ctrl/rgb"] {
        let [with, _] = work(Some(network));
        assert!(with > 1.2 * step && with < 2.0 * step, "{network}: {with} and {step}");
    }
    let [with, whole] = work(Some("t2i_adapter/full"));
    assert!(with == step && whole > clip, "{with}, {step}, {whole}, {clip}");
}

#[test]
fn sources_are_parts_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("i.png");
    image::RgbImage::from_pixel(32, 32, image::Rgb([200, 40, 90])).save(&image).unwrap();
    let image = image.to_str().unwrap();
    let run = |more: &[&str]| {
        let output = small(&[&["--json", "--quiet", "--no-cold-start"][..], more].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let of = |report: &Value, part: &str| report[part]["gflop"].as_f64().unwrap();
    let plain = run(&["--warmup=0"]);
    assert!(plain.get("source_encode").is_none() && plain["settings"].get("source").is_none());
    let from = run(&["--image", image, "--strength=0.5", "--warmup=0"]);
    assert_eq!(from["settings"]["source"], image);
    assert_eq!(from["settings"]["strength"], 0.5);
    assert_eq!(from["source_encode"]["seconds"]["n"], 2);
    assert!(from.get("i2v_encode").is_none());
    // One of the two steps is made.
    assert_eq!(from["unet_step"]["seconds"]["n"], 2);
    assert!((of(&from, "unet_step") / of(&plain, "unet_step") - 1.0).abs() < 1e-9);
    assert_eq!(of(&from, "text_encode"), of(&plain, "text_encode"));
    assert!(of(&from, "source_encode") > 0.0);
    let parts = of(&from, "source_encode") + of(&from, "text_encode") + of(&from, "decode");
    let clip = parts + of(&from, "unet_step");
    assert!((of(&from, "clip") / clip - 1.0).abs() < 1e-9);
    let memory = |report: &Value| report["estimated_memory_bytes"].as_u64().unwrap();
    assert!(memory(&from) > memory(&plain), "{} {}", memory(&from), memory(&plain));

    // A video: each frame is encoded.
    let frames = folder.path().join("v");
    std::fs::create_dir(&frames).unwrap();
    for i in 0..2 {
        std::fs::copy(image, frames.join(format!("{i}.png"))).unwrap();
    }
    let video = run(&["--video", frames.to_str().unwrap(), "--strength=0.5"]);
    let twice = of(&video, "source_encode") / of(&from, "source_encode");
    assert!((twice - 2.0).abs() < 1e-6, "{twice}");

    // AnimateLCM-I2V has an encoder more, and the step more work of the clip.
    let model = golden::path("tiny/model");
    let motion = folder.path().join("i2v.safetensors");
    save(&tensors(), &motion);
    let i2v = ["--model", model.to_str().unwrap(), "--motion", motion.to_str().unwrap()];
    let made = run(&[&i2v[..], &["--image", image]].concat());
    for part in ["source_encode", "i2v_encode"] {
        assert_eq!(made[part]["seconds"]["n"], 2, "{part}");
        assert!(of(&made, part) > 0.0, "{part}");
    }
    let table = small(&[&["--no-cold-start", "--image", image][..], &i2v].concat());
    let table = String::from_utf8(table.stdout).unwrap();
    for part in ["source encode", "I2V encode"] {
        assert!(table.lines().any(|line| line.starts_with(part)), "{part}: {table}");
    }
    assert!(table.contains(&format!(", from {image}\n")), "{table}");
    let csv = small(&["--no-cold-start", "--image", image, "--format", "csv"]);
    let csv = String::from_utf8(csv.stdout).unwrap();
    assert!(csv.contains(",source_encode_seconds,") && !csv.contains("i2v"), "{csv}");
}

#[test]
fn the_table_has_a_row_for_every_part() {
    let output = small(&["--no-cold-start", "--warmup", "0"]);
    assert!(output.status.success());
    let table = String::from_utf8(output.stdout).unwrap();
    for row in ["text encode ", "UNet step ", "decode ", "clip ", "load ", "limit ", "throughput "]
    {
        assert!(table.lines().any(|line| line.starts_with(row)), "{row} is not in\n{table}");
    }
    let notes = String::from_utf8(output.stderr).unwrap();
    let warning = "warning: size: 32x32 is far from the 64x64 of the model";
    assert_eq!(notes, format!("opening\n{warning}\nloading\nclip 1/2\nclip 2/2\n"));
    assert!(table.contains("2 clips timed, without a warm-up"), "{table}");
}

/// One small clip for each of two numbers of steps.
const SWEEP: [&str; 14] = [
    "-W",
    "32",
    "-H",
    "32",
    "--frames",
    "2",
    "--steps",
    "1,3",
    "--repeats",
    "1",
    "--warmup",
    "0",
    "--no-cold-start",
    "-q",
];

#[test]
fn several_numbers_of_steps_are_measured_in_one_run() {
    let run = |more: &[&str]| {
        let output = bench(&[&SWEEP, more].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let reports: Value = serde_json::from_str(&run(&["--json"])).unwrap();
    let reports = reports.as_array().unwrap();
    assert_eq!(reports.len(), 2);
    for (report, steps) in reports.iter().zip([1, 3]) {
        assert_eq!(report["settings"]["steps"], steps);
        assert_eq!(report["unet_step"]["seconds"]["n"], steps);
    }
    // A clip's work is that of its steps, and of what comes before and after them.
    let work = |report: &Value, part: &str| report[part]["gflop"].as_f64().unwrap();
    let rest = |report: &Value, steps| work(report, "clip") - steps * work(report, "unet_step");
    let (few, many) = (rest(&reports[0], 1.0), rest(&reports[1], 3.0));
    assert!((few / many - 1.0).abs() < 1e-3, "{few} and {many}");

    let table = run(&[]);
    let first = |text: &str, mark: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| line.starts_with(mark));
        lines.map(|line| line.trim_start_matches(['|', ' ']).chars().take(2).collect()).collect()
    };
    assert_eq!(first(&table, "1 ").concat() + &first(&table, "3 ").concat(), "1 1 3 ", "{table}");
    let document = run(&["--format", "markdown"]);
    assert_eq!(first(&document, "|"), ["st", "--", "1 ", "3 "], "{document}");
    let lines = run(&["--format", "csv"]);
    assert_eq!(lines.lines().count(), 3, "{lines}");
    assert!(lines.starts_with("model,width,height,frames,steps,"), "{lines}");
    assert!(lines.lines().nth(2).unwrap().starts_with("embedded,32,32,2,3,lcm,"), "{lines}");
}

#[test]
fn sampler_seed_and_threads_are_those_asked_for() {
    let output = bench(
        &[&SMALL[..6], &["--steps", "2", "--repeats", "1", "--no-cold-start", "-q", "--json"]]
            .concat()
            .into_iter()
            .chain(["--sampler", "DPM++ 2M Karras", "--seed", "11", "--threads", "1"])
            .collect::<Vec<_>>(),
    );
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let settings = &report["settings"];
    assert_eq!(settings["sampler"], "dpmpp-2m");
    assert_eq!((&settings["seed"], &settings["threads"]), (&11.into(), &1.into()));
}

#[test]
fn impossible_benchmarks_are_refused_in_one_line() {
    for (flags, says) in [
        (&["--repeats", "0"][..], "at least 1"),
        (&["--random-weights", "sdxl"], "sd15"),
        (&["--random-weights", "sd15", "--model", "x"], "cannot be used with"),
        (&["--random-weights", "sd15", "--motion", "x.ckpt"], "cannot be mixed"),
        (&["--frames", "0"], "frames"),
        (&["--width", "9"], "width"),
        (&["--strength", "0.5"], "there is no image or video"),
        (&["--image", "nothing.png"], "nothing.png"),
        (&["--image", "a.png", "--video", "b.gif"], "cannot be used with"),
        (&["--steps", "1,0"], "at least 1"),
        (&["--steps", "1,,2"], "--steps"),
        (&["--sampler", "fast"], "sampler"),
        (&["--threads", "0"], "at least 1"),
        (&["--threads", "100000"], "at most 1024"),
        (&["--format", "xml"], "markdown"),
        (&["--format", "csv", "--json"], "cannot be used with"),
    ] {
        let output = bench(flags);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{flags:?}: {said}");
        assert!(said.contains(says), "{flags:?}: {said}");
        assert!(output.stdout.is_empty());
    }
}

#[cfg(unix)]
#[test]
fn an_interrupt_ends_it_with_its_own_exit_code() {
    use std::io::Read;
    let mut child = Command::new(env!("CARGO_BIN_EXE_animatelcm"))
        .args(["bench", "--no-cold-start", "--repeats", "100000", "-W", "32", "-H", "32"])
        .args(["--frames", "2", "--steps", "2"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // The first line is said when the handler is in place.
    let mut said = [0; 1];
    child.stderr.as_mut().unwrap().read_exact(&mut said).unwrap();
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(output.stdout.is_empty());
    assert!(String::from_utf8_lossy(&output.stderr).contains("error: interrupted"));
}
