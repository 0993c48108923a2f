//! Version, features and licences of the program: `--version` and `animatelcm licenses`.

use std::sync::LazyLock;

use super::print;
use crate::Result;
use crate::kernels::cpu::isa::Isa;

/// Version, commit if it is known, features, and processor.
pub(super) static VERSION: LazyLock<String> = LazyLock::new(|| {
    let commit = option_env!("ANIMATELCM_COMMIT").map(|commit| format!(" ({commit})"));
    format!(
        "{}{}\nfeatures: {}\nprocessor: {}{}",
        env!("CARGO_PKG_VERSION"),
        commit.unwrap_or_default(),
        features().join(", "),
        std::env::consts::ARCH,
        vector_units()
    )
});

/// Prints the licences of everything that the program contains.
pub(super) fn licenses() -> Result<()> {
    print(include_str!("../../THIRD_PARTY_NOTICES.md"))
}

/// The features of this build, as `Cargo.toml` names them.
fn features() -> Vec<&'static str> {
    macro_rules! features {
        ($($name:literal)*) => { [$(($name, cfg!(feature = $name))),*] };
    }
    let all = features!(
        "hub" "gif" "png" "apng" "webp" "mp4" "train" "server" "nats" "cuda" "cudnn" "flash-attn" "metal"
    );
    all.into_iter().filter(|(_, is_there)| *is_there).map(|(name, _)| name).collect()
}

/// The vector instructions that kernels use, behind the name of the processor.
pub(super) fn vector_units() -> &'static str {
    match Isa::current() {
        Isa::Portable => "",
        Isa::Neon => ", NEON",
        Isa::Avx2 => ", AVX2",
        Isa::Avx512 => ", AVX-512",
        Isa::Avx512Vnni => ", AVX-512 VNNI",
        Isa::Avx512Bf16 => ", AVX-512 BF16",
        Isa::Amx => ", AMX",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_feature_of_the_manifest_is_known() {
        let manifest = include_str!("../../Cargo.toml");
        let section = manifest.split("[features]\n").nth(1).unwrap();
        let section = section.split("\n[").next().unwrap();
        let names = section.lines().filter_map(|line| line.split_once(" = ")).map(|(name, _)| name);
        let source = include_str!("about.rs");
        for name in
            names.filter(|name| !["default", "cli"].contains(name) && !name.starts_with('#'))
        {
            assert!(source.contains(&format!("\"{name}\"")), "{name}");
        }
        assert!(VERSION.starts_with(env!("CARGO_PKG_VERSION")), "{}", *VERSION);
    }
}
