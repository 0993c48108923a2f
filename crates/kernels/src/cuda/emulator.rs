//! Runs kernels on the CPU: their own source, by a C++ compiler and `host.h`, as a program of its own.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use super::plan::{self, Arg, Format, Launch};

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cuda")
}

/// A compiled program with all kernels, and which of them have run.
#[derive(Debug)]
pub(super) struct Emulator {
    folder: tempfile::TempDir,
    names: Vec<String>,
    pub(super) run: BTreeSet<String>,
}

impl Emulator {
    /// Compiles; `defines` are names for the preprocessor. `None` on systems that the program is not written for.
    pub(super) fn new(defines: &[&str]) -> Option<Self> {
        if !cfg!(target_os = "linux") {
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let names = plan::kernels();
        let table: String = names.iter().flat_map(|name| ["runner(", name, "),\n"]).collect();
        fs::write(folder.path().join("kernels.inc"), table).unwrap();
        let compiler = env::var("CXX").unwrap_or_else(|_| "c++".into());
        let compiled = Command::new(&compiler)
            // Misaligned chunks are an error on a GPU.
            .args([
                "-std=c++20",
                "-O1",
                "-fsanitize=alignment",
                "-fsanitize-undefined-trap-on-error",
            ])
            .args(["-Wno-unknown-pragmas", "-I"])
            .arg(folder.path())
            .args(defines.iter().map(|define| format!("-D{define}")))
            .arg(source().join("host.cpp"))
            .arg("-o")
            .arg(folder.path().join("host"))
            .output()
            .unwrap_or_else(|error| panic!("the C++ compiler `{compiler}`: {error}"));
        let said = String::from_utf8_lossy(&compiled.stderr);
        assert!(compiled.status.success(), "{said}");
        Some(Self { folder, names, run: BTreeSet::new() })
    }

    /// Runs a launch on the bytes of its buffers; threads take turns as `seed` has it.
    pub(super) fn launch(
        &mut self,
        launch: &Launch,
        buffers: &mut [Vec<u8>],
        seed: u32,
    ) -> Result<(), String> {
        let number = self.names.iter().position(|name| *name == launch.kernel);
        let number = number.ok_or_else(|| format!("no kernel {}", launch.kernel))?;
        // On a GPU it is looked for in one file.
        let file = fs::read_to_string(source().join(launch.module).with_extension("cu")).unwrap();
        let op = Format::ALL.iter().find_map(|format| {
            launch.kernel.split_once(&format!("_{}", format.name())).map(|(op, _)| op)
        });
        assert!(
            file.contains(&format!(" {}_##", op.unwrap())),
            "no {} in {}",
            launch.kernel,
            launch.module
        );
        let arg = |arg: &Arg| match *arg {
            Arg::Word(word) => [0, word],
            Arg::Buffer(number) => [1, number as u32],
        };
        let args: Vec<_> = launch.args.iter().map(arg).collect();
        let mut words = vec![number as u32, launch.blocks, launch.threads, launch.shared, seed];
        words.push(args.len() as u32);
        words.extend(args.into_iter().flatten());
        words.push(buffers.len() as u32);
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        for buffer in &*buffers {
            bytes.extend((buffer.len() as u32).to_le_bytes());
            bytes.extend(buffer);
        }
        let file = |name: &str| self.folder.path().join(name);
        fs::write(file("in"), bytes).unwrap();
        let mut program = Command::new(file("host"));
        let done = program.args([file("in"), file("out")]).output().unwrap();
        if !done.status.success() {
            let said = String::from_utf8_lossy(&done.stderr);
            return Err(format!("{}: {} {said}", launch.kernel, done.status));
        }
        let out = fs::read(file("out")).unwrap();
        let mut rest = out.as_slice();
        for buffer in buffers {
            let (bytes, after) = rest.split_at(buffer.len());
            buffer.copy_from_slice(bytes);
            rest = after;
        }
        self.run.insert(launch.kernel.clone());
        Ok(())
    }
}
