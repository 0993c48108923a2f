//! Compiles the CUDA kernels to PTX, for builds with the feature `cuda`.
//!
//! PTX of compute capability 8.0 runs on that and everything newer; the driver translates it. `nvcc` is taken from
//! `NVCC`, else from the toolkit's folder in `CUDA_HOME`, `CUDA_PATH` or `CUDA_ROOT`, else from the `PATH`, else from
//! `/usr/local/cuda`.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

const SOURCES: [&str; 3] = ["attention", "elementwise", "norm"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo::rerun-if-changed=src/cuda");
    for name in ["NVCC", "CUDA_HOME", "CUDA_PATH", "CUDA_ROOT"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let nvcc = nvcc();
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    for name in SOURCES {
        let mut command = Command::new(&nvcc);
        command.args(["--ptx", "-arch=compute_80", "-O3", "-std=c++17", "-o"]);
        command.arg(out.join(format!("{name}.ptx")));
        command.arg(format!("src/cuda/{name}.cu"));
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
