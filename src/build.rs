//! Compiles the CUDA kernels to PTX, for builds with the feature `cuda`, and finds the commit that `--version` shows.
//!
//! PTX of compute capability 8.0 runs on that and everything newer; the driver translates it. `nvcc` is taken from
//! `NVCC`, else from the toolkit's folder in `CUDA_HOME`, `CUDA_PATH` or `CUDA_ROOT`, else from the `PATH`, else from
//! `/usr/local/cuda`.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

const SOURCES: [&str; 3] = ["attention", "elementwise", "norm"];

fn main() {
    println!("cargo::rerun-if-changed=src/build.rs");
    commit();
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo::rerun-if-changed=src/kernels/cuda");
    for name in ["NVCC", "CUDA_HOME", "CUDA_PATH", "CUDA_ROOT"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let nvcc = nvcc();
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    for name in SOURCES {
        let mut command = Command::new(&nvcc);
        command.args(["--ptx", "-arch=compute_80", "-O3", "-std=c++17", "-o"]);
        command.arg(out.join(format!("{name}.ptx")));
        command.arg(format!("src/kernels/cuda/{name}.cu"));
        match command.status() {
            Ok(status) if status.success() => {}
            Ok(status) => stop(&format!("nvcc could not compile {name}.cu: {status}")),
            Err(error) => stop(&format!(
                "the feature `cuda` needs NVIDIA's compiler; `{}`: {error}. Install the CUDA toolkit, or set CUDA_HOME",
                nvcc.display()
            )),
        }
    }
}

/// Sets `ANIMATELCM_COMMIT` for builds with optimisation, which others compile anew with every commit.
fn commit() {
    if env::var("PROFILE").is_ok_and(|profile| profile != "release") {
        return;
    }
    // A package of the registry has the commit in a file.
    let packaged = std::fs::read_to_string(".cargo_vcs_info.json").unwrap_or_default();
    let packaged = packaged.split("\"sha1\": \"").nth(1).and_then(|rest| rest.get(..10));
    let found = packaged.map(str::to_owned).or_else(|| {
        // Not that of a repository around this one.
        git(&["rev-parse", "--show-prefix"]).filter(String::is_empty)?;
        if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
            println!("cargo::rerun-if-changed={log}");
        }
        git(&["rev-parse", "--short=10", "HEAD"])
    });
    if let Some(commit) = found {
        println!("cargo::rustc-env=ANIMATELCM_COMMIT={commit}");
    }
}

fn git(words: &[&str]) -> Option<String> {
    let output = Command::new("git").args(words).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

fn nvcc() -> PathBuf {
    if let Some(nvcc) = env::var_os("NVCC") {
        return nvcc.into();
    }
    let homes = ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT"].map(env::var_os);
    let program = format!("nvcc{}", env::consts::EXE_SUFFIX);
    let mut folders: Vec<PathBuf> =
        homes.into_iter().flatten().map(|home| Path::new(&home).join("bin")).collect();
    folders.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    folders.push("/usr/local/cuda/bin".into());
    let found = folders.iter().map(|folder| folder.join(&program)).find(|nvcc| nvcc.is_file());
    found.unwrap_or_else(|| program.into())
}

fn stop(why: &str) -> ! {
    println!("cargo::error={why}");
    exit(1)
}
