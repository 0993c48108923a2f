use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

/// The same that `cargo fuzz` runs.
#[allow(unreachable_pub, reason = "the fuzz crate has binaries that use it")]
#[path = "../../fuzz/targets/mod.rs"]
mod targets;

/// Set in the process that executes a target: the folder for the input at hand.
const CHILD: &str = "ANIMATELCM_FUZZ_FOLDER";

/// Longer than a target takes on a slow machine by far; an input on which it hangs never ends.
const PATIENCE: Duration = Duration::from_secs(120);

/// No mutated input is longer.
const LONGEST: usize = 1 << 14;

/// A test for each target, with a number of mutated inputs that takes about half a second.
macro_rules! targets {
    ($($name:ident: $executions:literal,)*) => {
        $(#[test]
        fn $name() {
            print!("{}", check(stringify!($name), targets::$name::run, $executions));
        })*

        #[test]
        fn every_target_is_tested_and_has_a_corpus() {
            let tested = [$(stringify!($name)),*];
            assert_eq!(targets::ALL.map(|(name, _)| name), tested);
            assert!(tested.iter().all(|name| !inputs("corpus", name).is_empty()));
        }
    };
}

targets! {
    batch: 1000,
    bmp: 2000,
    clip_metadata: 10000,
    config_json: 10000,
    configs: 200,
    flags: 10000,
    foreign_request: 5000,
    gif: 2000,
    index_json: 8000,
    inversion: 3000,
    jpeg: 2000,
    lora: 1500,
    manifest: 5000,
    mp4: 2000,
    pickle: 6000,
    png: 2000,
    prompt: 3000,
    request: 5000,
    safetensors_file: 8000,
    tiff: 2000,
    tokenizer_files: 4000,
    tokenizer_json: 3000,
    torch_legacy: 8000,
    torch_zip: 5000,
    train_plan: 2000,
    webp: 2000,
    y4m: 5000,
}

/// Executes a target over its corpus and `executions` mutations of it, in a process of limited memory; what was done.
#[track_caller]
fn check(name: &str, run: targets::Run, executions: usize) -> String {
    let (corpus, bombs) = (inputs("corpus", name), inputs("bombs", name));
    if let Some(folder) = std::env::var_os(CHILD) {
        return execute(Path::new(&folder), run, &corpus, &bombs, executions);
    }
    let folder = scratch();
    let longest = corpus.iter().chain(&bombs).map(Vec::len).max().unwrap_or(0).max(LONGEST);
    let limit = own_space() + targets::allowance(longest);
    run_again(name, Some(limit), folder.path()).unwrap_or_else(|said| {
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{name}"));
        fs::copy(folder.path().join("input"), &kept).unwrap();
        panic!("{name} fails on {}:\n{said}", kept.display());
    })
}

/// Gives a target the bombs and the corpus, then mutations of the corpus. Each input is in a file before it is
/// executed.
fn execute(
    folder: &Path,
    run: targets::Run,
    corpus: &[Vec<u8>],
    bombs: &[Vec<u8>],
    executions: usize,
) -> String {
    let file = folder.join("input");
    let give = |input: &[u8]| {
        fs::write(&file, input).unwrap();
        run(input);
    };
    let start = Instant::now();
    bombs.iter().chain(corpus).for_each(|input| give(input));
    let mut random = Random(0x0a01_1ca7);
    for _ in 0..executions {
        give(&mutated(corpus, &mut random));
    }
    let count = bombs.len() + corpus.len() + executions;
    format!(
        "{count} inputs in {:.2} s
",
        start.elapsed().as_secs_f64()
    )
}

/// The inputs of a target, in the order of their names: those that are mutated (`corpus`), or those that would take
/// much memory or time if there were no limits (`bombs`).
fn inputs(kind: &str, name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(kind).join(name);
    let Ok(entries) = fs::read_dir(folder) else { return vec![] };
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// Runs one test of this file in another process; what it printed, as an error if it fails.
fn run_again(name: &str, limit: Option<usize>, folder: &Path) -> Result<String, String> {
    // Names of tests are without that of the binary.
    let (_, module) = module_path!().split_once("::").unwrap();
    // Other systems do not limit the address space.
    let limit = limit.filter(|_| cfg!(target_os = "linux"));
    let limit = limit.map_or(String::new(), |bytes| format!("ulimit -v {};", bytes >> 10));
    let printed = folder.join("printed");
    let output = fs::File::create(&printed).unwrap();
    let mut child = Command::new("sh")
        .args(["-c", &format!("{limit} exec \"$@\""), "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", &format!("{module}::{name}"), "--nocapture", "--test-threads=1"])
        .env(CHILD, folder)
        .env("TMPDIR", folder)
        // What is measured is what reading takes, not what threads set aside.
        .envs([("MALLOC_ARENA_MAX", "1"), ("RAYON_NUM_THREADS", "1")])
        .stdin(Stdio::null())
        .stdout(output.try_clone().unwrap())
        .stderr(output)
        .spawn()
        .unwrap();
    let start = Instant::now();
    let ended = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break Some(status);
        }
        if start.elapsed() > PATIENCE {
            child.kill().unwrap();
            child.wait().unwrap();
            break None;
        }
        thread::sleep(Duration::from_millis(20));
    };
    let printed = String::from_utf8_lossy(&fs::read(printed).unwrap()).into_owned();
    match ended {
        Some(status) if status.success() => Ok(printed),
        Some(status) => Err(format!("{status}\n{printed}")),
        None => Err(format!("still running after {PATIENCE:?}\n{printed}")),
    }
}

/// A folder for inputs, in memory where there is such a file system.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// Address space of such a process before it reads anything.
fn own_space() -> usize {
    static SPACE: OnceLock<usize> = OnceLock::new();
    *SPACE.get_or_init(|| {
        let folder = scratch();
        run_again("address_space", None, folder.path()).unwrap();
        fs::read_to_string(folder.path().join("space")).unwrap().parse().unwrap()
    })
}

#[test]
fn address_space() {
    let Some(folder) = std::env::var_os(CHILD) else {
        assert!(own_space() < 1 << 30, "{} bytes leave no room for a limit", own_space());
        return;
    };
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = status.lines().find_map(|line| line.strip_prefix("VmSize:"));
    let kib = kib.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<usize>().ok());
    fs::write(Path::new(&folder).join("space"), (kib.unwrap_or(0) << 10).to_string()).unwrap();
}

/// splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// A number below `end`, or 0.
    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

/// Numbers at which sizes and counts go wrong.
const NUMBERS: [u64; 12] = [
    0,
    1,
    7,
    0x7f,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 32,
    i64::MAX as u64,
    u64::MAX,
];

/// An input of the corpus after one to four changes.
fn mutated(corpus: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut input = corpus[random.below(corpus.len())].clone();
    for _ in 0..=random.below(4) {
        let at = random.below(input.len());
        let len = 1 + random.below(16.min(input.len() - at.min(input.len())));
        let end = (at + len).min(input.len());
        match random.below(8) {
            0 if at < end => input[at] ^= 1 << random.below(8),
            1 if at < end => input[at] = random.next() as u8,
            2 => {
                let number = NUMBERS[random.below(NUMBERS.len())];
                let size = [1, 2, 4, 8][random.below(4)];
                let mut bytes = number.to_be_bytes()[8 - size..].to_vec();
                if random.below(2) == 0 {
                    bytes.reverse();
                }
                let end = (at + size).min(input.len());
                input.splice(at.min(end)..end, bytes);
            }
            3 => {
                // In text, a number is changed as a whole.
                let digits = input[at.min(end)..].iter().take_while(|b| b.is_ascii_digit()).count();
                let number = NUMBERS[random.below(NUMBERS.len())].to_string();
                input.splice(at..at + digits, number.into_bytes());
            }
            4 => drop(input.drain(at.min(end)..end)),
            5 => {
                let copy = input[at.min(end)..end].to_vec();
                let to = random.below(input.len());
                input.splice(to..to, copy);
            }
            6 => {
                let other = &corpus[random.below(corpus.len())];
                let from = random.below(other.len());
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            _ => input.truncate(end),
        }
    }
    input.truncate(LONGEST);
    input
}
