//! `animatelcm models`, through the program itself.

use std::fs;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use animatelcm::hub::manifest::Entry;

use crate::support::hub::{Bench, sound_manifest};
use crate::support::hub_server::COMMIT;

/// The program, with the hub on loopback and nothing of the user's.
fn program(bench: &Bench, typed: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_animatelcm"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("HF_") {
            command.env_remove(name);
        }
    }
    command
        .arg("models")
        .args(typed)
        .env_remove("HUGGING_FACE_HUB_TOKEN")
        .env("ANIMATELCM_CONFIG", "")
        .env("HF_HOME", bench.cache.path().join("home"))
        .env("HF_HUB_CACHE", bench.cache.path())
        .env("HF_ENDPOINT", bench.server.endpoint())
        .stdin(Stdio::null());
    command
}

fn run(bench: &Bench, typed: &[&str]) -> Output {
    program(bench, typed).output().unwrap()
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", stderr(output)))
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

/// `tiny`'s manifest as a file of the user's.
fn own_manifest(bench: &Bench) -> String {
    let Entry::Model(model) = sound_manifest() else { panic!() };
    let file = bench.cache.path().join("mine.toml");
    fs::write(&file, toml::to_string(&model).unwrap()).unwrap();
    file.to_str().unwrap().to_owned()
}

#[test]
fn a_model_of_ones_own_manifest_is_pulled_shown_checked_and_removed() {
    let bench = Bench::published();
    let file = &own_manifest(&bench);

    let pulled = run(&bench, &["pull", file]);
    assert_eq!(code(&pulled), 0, "{}", stderr(&pulled));
    assert_eq!(stdout(&pulled), "");
    assert!(stderr(&pulled).ends_with("vae/config.json: ok\nweights.safetensors: ok\n"));
    assert_eq!(stderr(&run(&bench, &["pull", file, "--quiet"])), "");

    let snapshot = bench.repo("owner/model").join("snapshots").join(COMMIT);
    let path = run(&bench, &["path", file, "--offline"]);
    assert_eq!(stdout(&path), format!("{}\n", snapshot.display()));
    let checked = run(&bench, &["verify", file]);
    assert_eq!(stdout(&checked).lines().count(), 2);
    assert!(stdout(&checked).lines().all(|line| line.starts_with("ok ")));

    fs::write(snapshot.join("vae/config.json"), b"{}").unwrap();
    let wrong = run(&bench, &["verify", file]);
    assert_eq!(code(&wrong), 5);
    assert!(stdout(&wrong).starts_with("WRONG "), "{}", stdout(&wrong));
    assert!(stderr(&wrong).contains("error: tiny: vae/config.json: sha256 is "));
    // Nobody can be asked here.
    let unasked = run(&bench, &["rm", file]);
    assert_eq!(code(&unasked), 2);
    assert!(stderr(&unasked).contains("hint: -y removes"), "{}", stderr(&unasked));
    let removed = run(&bench, &["rm", "-y", file, "--json", "-q"]);
    assert_eq!(code(&removed), 0, "{}", stderr(&removed));
    assert_eq!(json(&removed)[0]["files"], 2);
    let again = run(&bench, &["rm", "-y", file]);
    assert_eq!(code(&again), 3);
    assert!(stderr(&again).contains("hint: `animatelcm models list`"), "{}", stderr(&again));
    assert_eq!(code(&run(&bench, &["path", file])), 3);
}

#[test]
fn the_list_is_a_table_or_json() {
    let bench = Bench::new();
    let table = run(&bench, &["list"]);
    assert!(stdout(&table).starts_with("NAME"), "{}", stdout(&table));
    assert!(stdout(&table).lines().all(|line| line.chars().count() <= 80), "{}", stdout(&table));
    let list = json(&run(&bench, &["list", "--json"]));
    let entries = list.as_array().unwrap();
    let named = stdout(&table).lines().filter(|line| !line.starts_with(' ')).count();
    assert_eq!(entries.len(), named - 1);
    let sd15 = entries.iter().find(|entry| entry["name"] == "sd15").unwrap();
    assert_eq!(sd15["offered"], serde_json::json!(["fp16", "fp32"]));
    assert!(entries.iter().all(|entry| entry["download"] != 0), "unknown sizes are null");
    assert_eq!(entries[0]["name"], "animatelcm");
    assert_eq!(entries[0]["state"], "absent");
}

#[test]
fn a_dry_run_says_what_a_pull_would_take() {
    let bench = Bench::published();
    let file = &own_manifest(&bench);
    let dry = run(&bench, &["pull", file, "--dry-run"]);
    assert_eq!(code(&dry), 0, "{}", stderr(&dry));
    assert!(stdout(&dry).contains("2 of 2 files to download"), "{}", stdout(&dry));
    assert!(stdout(&dry).contains(" in 1 model to "), "{}", stdout(&dry));
    assert!(bench.server.asked().is_empty(), "nothing is asked of the network");
    let plan = json(&run(&bench, &["pull", file, "--dry-run", "--json"]));
    assert_eq!(plan[0]["models"][0]["missing"].as_array().unwrap().len(), 2);

    let pulled = run(&bench, &["pull", file, "--json"]);
    assert!(stderr(&pulled).contains(" in 1 model to "), "{}", stderr(&pulled));
    let parts = json(&pulled);
    assert_eq!(
        (&parts[0]["name"], &parts[0]["parts"][0]["name"]),
        (&"tiny".into(), &"tiny".into())
    );
    assert!(stdout(&run(&bench, &["pull", file, "--dry-run"])).contains("everything is here"));
    let checked = json(&run(&bench, &["verify", file, "--json"]));
    assert_eq!(checked.as_array().unwrap().len(), 2);
    let path = json(&run(&bench, &["path", file, "--json"]));
    assert_eq!(path[0]["files"].as_array().unwrap().len(), 2);
}

#[test]
fn each_failure_has_its_exit_code_one_line_and_a_hint() {
    let bench = Bench::new();
    // The server is at another commit than the pinned one.
    bench.server.small("madebyollin/taesd", "config.json", b"{}");
    let refused = run(&bench, &["pull", "taesd"]);
    assert_eq!(code(&refused), 5, "{}", stderr(&refused));

    let absent = run(&bench, &["pull", "animatelcm-t2v"]);
    assert_eq!(code(&absent), 3, "{}", stderr(&absent));
    let error = "error: animatelcm-t2v: `wangfuyun/AnimateLCM` has no `AnimateLCM_sd15_t2v.ckpt`\n";
    assert!(stderr(&absent).ends_with(error), "{}", stderr(&absent));

    bench.server.answer("wangfuyun/AnimateLCM", 401);
    let closed = run(&bench, &["pull", "animatelcm-t2v"]);
    assert_eq!(code(&closed), 3, "{}", stderr(&closed));
    assert!(stderr(&closed).contains("\nhint: ") && stderr(&closed).contains("HF_TOKEN"));

    let asked = bench.server.asked().len();
    for offline in [
        program(&bench, &["pull", "taesd", "--offline"]).output().unwrap(),
        program(&bench, &["pull", "taesd"]).env("HF_HUB_OFFLINE", "1").output().unwrap(),
    ] {
        assert_eq!(code(&offline), 3);
        assert_eq!(
            stderr(&offline),
            "error: taesd: not downloaded, and this is offline\n\
             hint: without --offline, and with HF_HUB_OFFLINE unset, it is downloaded\n"
        );
    }
    assert_eq!(bench.server.asked().len(), asked);

    let unknown = run(&bench, &["pull", "animatlcm"]);
    assert_eq!(code(&unknown), 2);
    assert!(stderr(&unknown).starts_with("error: model: `animatlcm` is not in the manifest\n"));
}

#[test]
#[cfg(unix)]
fn a_manifest_that_never_ends_is_not_read() {
    let bench = Bench::new();
    let path = |name: &str| bench.cache.path().join(name);
    std::os::unix::fs::symlink("/dev/zero", path("zero.toml")).unwrap();
    assert!(Command::new("mkfifo").arg(path("fifo.toml")).status().unwrap().success());
    for name in ["zero.toml", "fifo.toml"] {
        let pulled = run(&bench, &["pull", path(name).to_str().unwrap()]);
        assert_eq!(code(&pulled), 2, "{}", stderr(&pulled));
        let words = format!("{name}: is not an ordinary file\n");
        assert!(stderr(&pulled).ends_with(&words), "{}", stderr(&pulled));
    }
}

#[test]
fn a_strange_redirect_is_one_line() {
    let bench = Bench::new();
    bench.server.redirect(None);
    let pulled = run(&bench, &["pull", "taesd", "-q"]);
    assert_eq!(code(&pulled), 3);
    assert_eq!(stderr(&pulled).lines().count(), 1, "{}", stderr(&pulled));
    assert!(stderr(&pulled).starts_with("error: taesd: "), "{}", stderr(&pulled));
}

#[test]
fn the_token_of_the_environment_is_sent() {
    let bench = Bench::published();
    let file = &own_manifest(&bench);
    fs::create_dir_all(bench.cache.path().join("home")).unwrap();
    fs::write(bench.cache.path().join("home/token"), "hf_from_file\n").unwrap();
    program(&bench, &["pull", file]).env("HF_TOKEN", "hf_from_variable").output().unwrap();
    assert_eq!(bench.server.asked()[0].token.as_deref(), Some("Bearer hf_from_variable"));
    run(&bench, &["rm", "-y", file]);
    let asked = bench.server.asked().len();
    run(&bench, &["pull", file]);
    assert_eq!(bench.server.asked()[asked].token.as_deref(), Some("Bearer hf_from_file"));
}

#[test]
#[cfg(unix)]
fn ctrl_c_leaves_what_has_arrived_and_the_next_pull_goes_on_there() {
    let bench = Bench::published();
    let file = &own_manifest(&bench);
    bench.server.slow_down();
    let child = program(&bench, &["pull", file])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let arrived = || fs::metadata(bench.partial()).map_or(0, |partial| partial.len());
    for _ in 0..200 {
        if arrived() > 50_000 {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let stopped = child.wait_with_output().unwrap();
    assert_eq!(stopped.status.code(), Some(130), "{}", stderr(&stopped));
    assert!(stderr(&stopped).ends_with("error: interrupted\n"), "{}", stderr(&stopped));
    let kept = arrived();
    assert!((50_000..800_000).contains(&kept), "{kept}");

    assert_eq!(code(&run(&bench, &["pull", file])), 0);
    let last = bench.server.asked().pop().unwrap();
    assert_eq!(last.range, Some(format!("bytes={kept}-")));
}
