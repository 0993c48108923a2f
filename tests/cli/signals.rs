//! Signals: the work ends within a layer, says so, and leaves nothing behind.

use std::time::{Duration, Instant};

use animatelcm::kernels::{self, ConvArgs, Weights};
use animatelcm::models::motion::MotionNorm;
use animatelcm::models::unet::{Injection, UNetInput};
use animatelcm::models::vae::{AutoencoderKl, VaeConfig};
use animatelcm::{Error, Stop};
use candle_core::{DType, Device, Tensor};

use crate::support::tiny;

fn ones(shape: &[usize]) -> Tensor {
    Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap()
}

#[track_caller]
fn is_cancelled<T>(result: candle_core::Result<T>) {
    let error = result.err().map(Error::from).expect("it went on");
    assert!(matches!(error, Error::Cancelled), "{error:?}");
    assert_eq!(error.kind().exit_code(), 130);
}

#[test]
fn no_kernel_starts_after_a_stop() {
    let stop = Stop::default();
    let args = ConvArgs { padding: (1, 1), stop: Some(&stop), ..ConvArgs::default() };
    // One convolution that is transformed, and one that is not.
    let convolutions = [(64, 64, 12), (3, 8, 9)].map(|(inputs, outputs, side)| {
        let weights = Weights::new(&ones(&[outputs, inputs, 3, 3]), None).unwrap();
        (ones(&[2, inputs, side, side]), weights)
    });
    let linear = Weights::new(&ones(&[40, 24]), None).unwrap();
    let (tokens, heads) = (ones(&[2, 300, 24]), ones(&[2, 300, 3, 8]));
    let attend = || kernels::attention_until(&heads, &heads, &heads, 0.3, Some(&stop));
    let multiply = || kernels::linear_until(&tokens, &linear, None, Some(&stop));
    for (x, weights) in &convolutions {
        assert!(kernels::conv2d(x, weights, &args).is_ok());
    }
    assert!(attend().is_ok() && multiply().is_ok());
    stop.request();
    for (x, weights) in &convolutions {
        is_cancelled(kernels::conv2d(x, weights, &args));
    }
    is_cancelled(attend());
    is_cancelled(multiply());
}

/// Requests a stop after a while.
fn later(stop: &Stop, wait: Duration) -> std::thread::JoinHandle<()> {
    let stop = stop.clone();
    std::thread::spawn(move || {
        std::thread::sleep(wait);
        stop.request();
    })
}

#[test]
fn a_pass_of_the_unet_ends_before_its_next_layer() {
    let unet = tiny::unet(DType::F32);
    let x = ones(&[8, 4, 64, 64]);
    let pass = |stop: &Stop| {
        let started = Instant::now();
        let input = UNetInput {
            timestep: 1.0,
            frames: 8,
            context: &ones(&[1, 77, 12]),
            motion_norm: MotionNorm::PerFrame,
            injection: &Injection::default(),
            stop,
        };
        (unet.forward(&x, &input).map(|_| ()), started.elapsed())
    };
    let (whole, takes) = pass(&Stop::default());
    whole.unwrap();
    let stop = Stop::default();
    let asks = later(&stop, takes / 10);
    let (ended, took) = pass(&stop);
    asks.join().unwrap();
    assert!(matches!(ended, Err(Error::Cancelled)), "{ended:?}");
    assert!(took < takes / 2, "{took:?} of {takes:?}");
    let (at_once, took) = pass(&stop);
    assert!(matches!(at_once, Err(Error::Cancelled)) && took < takes / 4, "{took:?}");
}

#[test]
fn the_autoencoder_ends_within_a_frame() {
    let config: VaeConfig = tiny::config("tiny/model/vae/config.json");
    let file = "tiny/model/vae/diffusion_pytorch_model.safetensors";
    let vae = AutoencoderKl::new(&config, &tiny::vb(&[file], DType::F32)).unwrap();
    let stop = Stop::default();
    let z = ones(&[1, 4, 8, 8]);
    assert!(vae.decode(&z, &stop).is_ok());
    stop.request();
    assert!(matches!(vae.decode(&z, &stop), Err(Error::Cancelled)));
    let error = vae.encode(&ones(&[1, 3, 16, 16]), &stop).unwrap_err();
    assert!(matches!(error, Error::Cancelled), "{error:?}");
}

#[cfg(unix)]
mod processes {
    use std::fs::File;
    use std::io::{BufRead, BufReader, Read, Write};
    use std::process::Child;
    use std::time::{Duration, Instant};

    use crate::support::golden;
    use crate::support::program::Folder;

    /// More than the two seconds that are promised: a debug build, and tests that share the caches.
    const SOON: Duration = Duration::from_secs(5);

    /// The clip whose single step and whose single frames take many seconds.
    const LARGE: [&str; 8] =
        ["generate", "a red star", "--steps=1", "-W=1024", "-H=1024", "--frames=12", "-o", "a.gif"];

    fn signal(process: &Child, name: &str) {
        let id = process.id().to_string();
        assert!(std::process::Command::new("kill").args([name, &id]).status().unwrap().success());
    }

    /// Seconds that a process has had of every core, however busy the machine is; `None` where the system does not tell.
    fn worked(process: &Child) -> Option<Duration> {
        const TICKS_PER_SECOND: f64 = 100.0;
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.id())).ok()?;
        // User and system time are the 14th and 15th field; the second one, a name in parentheses, may hold spaces.
        let (_, fields) = stat.rsplit_once(')')?;
        let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<f64>);
        let ticks: f64 = ticks.sum::<Result<f64, _>>().ok()?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Some(Duration::from_secs_f64(ticks / TICKS_PER_SECOND / cores as f64))
    }

    /// Lets the program run until it says `mark` and `wait` more, then interrupts it; what it says after the mark.
    fn interrupted(folder: &Folder, args: &[&str], mark: &str, wait: Duration) -> String {
        let mut process = folder.spawn(args);
        let mut said = BufReader::new(process.stderr.take().unwrap());
        let mut line = String::new();
        while !mark.is_empty() && !line.contains(mark) {
            line.clear();
            assert!(said.read_line(&mut line).unwrap() > 0, "{args:?} never says {mark}");
        }
        std::thread::sleep(wait);
        assert!(process.try_wait().unwrap().is_none(), "{args:?} was too quick");
        let before = worked(&process);
        let asked = Instant::now();
        signal(&process, "-INT");
        let mut after = before;
        let code = loop {
            // While it can be asked: a process that has ended has no time left.
            after = worked(&process).or(after);
            if let Some(status) = process.try_wait().unwrap() {
                break status.code();
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        let mut rest = String::new();
        said.read_to_string(&mut rest).unwrap();
        let took = match (before, after) {
            (Some(before), Some(after)) => after.saturating_sub(before),
            _ => asked.elapsed(),
        };
        assert!(took < SOON, "{args:?} went on for {took:?}");
        assert_eq!(code, Some(130), "{args:?}: {rest}");
        rest
    }

    #[test]
    fn a_long_step_is_left_at_once() {
        let folder = Folder::new();
        let rest = interrupted(&folder, &LARGE, "loading unet", Duration::from_secs(1));
        assert!(rest.contains("stopping; again to end at once\n"), "{rest}");
        assert!(rest.ends_with("error: interrupted\n"), "{rest}");
        assert!(folder.names().is_empty(), "{:?}", folder.names());
    }

    #[test]
    fn a_frame_that_is_decoded_is_left_at_once() {
        let folder = Folder::new();
        let args = ["generate", "x", "--steps=1", "-W=768", "-H=768", "--frames=1", "-o", "a.gif"];
        let wait = Duration::from_millis(300);
        interrupted(
            &folder,
            &[&args[..], &["--progress=json"]].concat(),
            r#""event":"step""#,
            wait,
        );
        assert!(folder.names().is_empty(), "{:?}", folder.names());
    }

    #[test]
    fn a_second_signal_ends_the_program_without_a_word() {
        let folder = Folder::new();
        let mut process = folder.spawn(&LARGE);
        let mut said = BufReader::new(process.stderr.take().unwrap()).lines().map(Result::unwrap);
        assert!(said.by_ref().any(|line| line.contains("loading unet")));
        signal(&process, "-TERM");
        assert!(said.by_ref().any(|line| line == "stopping; again to end at once"));
        signal(&process, "-TERM");
        assert_eq!(process.wait().unwrap().code(), Some(130));
        assert!(folder.names().is_empty(), "{:?}", folder.names());
    }

    #[test]
    fn hashing_evaluation_and_training_are_left_at_once() {
        let folder = Folder::new();
        // A tensor that is there and empty: the file takes no room, reading it takes a minute.
        let bytes = 40u64 << 30;
        let header =
            format!(r#"{{"x":{{"dtype":"U8","shape":[{bytes}],"data_offsets":[0,{bytes}]}}}}"#);
        let mut file = File::create(folder.path("big.safetensors")).unwrap();
        file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
        file.write_all(header.as_bytes()).unwrap();
        file.set_len(8 + header.len() as u64 + bytes).unwrap();
        let second = Duration::from_secs(1);
        interrupted(&folder, &["inspect", "big.safetensors"], "", second);
        // A request may come through a pipe, in which nobody writes yet.
        let made = std::process::Command::new("mkfifo").arg(folder.path("pipe")).status();
        assert!(made.unwrap().success());
        interrupted(&folder, &["generate", "--request=pipe", "-o", "a.gif"], "", second);
        std::fs::remove_file(folder.path("pipe")).unwrap();

        let eval = ["eval", "--procedural", "--prompts=1", "-W=1024", "-H=1024", "--frames=12"];
        interrupted(&folder, &eval, "", 2 * second);
        let random = ["bench", "--random-weights=sd15", "--frames=1", "-W=64", "-H=64"];
        interrupted(&folder, &random, "", second);
        let bench = ["bench", "-W=1024", "-H=1024", "--frames=12", "--steps=1", "--no-cold-start"];
        interrupted(&folder, &bench, "warm-up", second);
        interrupted(&folder, &["train", "--preset=pocket", "--out=run"], "vae:", second);
        assert_eq!(folder.names(), ["big.safetensors", "run"]);
    }

    #[test]
    fn a_system_without_threads_to_spare_is_an_error() {
        use std::os::unix::process::CommandExt;

        let folder = Folder::new();
        let mut command = std::process::Command::new("bash");
        let script = "ulimit -u 1 && exec \"$@\"";
        let program = env!("CARGO_BIN_EXE_animatelcm");
        let clip = golden::path("tiny/cases/unet.safetensors");
        command.args(["-c", script, "bash", program, "inspect"]).arg(clip);
        command.current_dir(folder.path("."));
        // Limits do not hold root, who therefore becomes nobody.
        let is_root = std::process::Command::new("id").arg("-u").output().unwrap().stdout == b"0\n";
        if is_root {
            let mut version = std::process::Command::new(program);
            let ran = version.arg("--version").uid(65534).gid(65534).output();
            if !ran.is_ok_and(|output| output.status.success()) {
                return;
            }
            command.uid(65534).gid(65534).current_dir("/");
        }
        let output = command.output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(4), "{stderr}");
        assert!(
            stderr.starts_with("error: device cpu: the system starts no more threads"),
            "{stderr}"
        );
        assert!(stderr.contains("hint: ") && !stderr.contains("panicked"), "{stderr}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_run_beyond_the_limit_of_addresses_is_refused() {
        let folder = Folder::new();
        let mut command = std::process::Command::new("sh");
        let program = env!("CARGO_BIN_EXE_animatelcm");
        command.args(["-c", "ulimit -v 2000000 && exec \"$@\"", "sh", program]).args(LARGE);
        let output = command.current_dir(folder.path(".")).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(4), "{stderr}");
        assert!(stderr.contains("error: the run needs about"), "{stderr}");
        assert!(folder.names().is_empty(), "{:?}", folder.names());
    }
}
