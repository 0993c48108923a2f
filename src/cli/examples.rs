//! Examples at the end of each command's help.

/// The last line of a short help.
pub(super) const MORE: &str = "--help lists every flag and shows examples.";

pub(super) const PROGRAM: &str = "\
Examples:
  animatelcm generate \"a red circle moving down on a white background\"
  animatelcm models pull animatelcm
  animatelcm generate -m animatelcm \"a corgi running on a beach\" -o corgi.mp4
  animatelcm inspect corgi.mp4
  animatelcm help generate

Exit codes: 0 ok, 1 internal or I/O error, 2 usage or request, 3 weights missing or incompatible,
4 memory or device, 5 hash or licence refused, 6 part of a batch failed, 130 interrupted.";

pub(super) const GENERATE: &str = "\
Examples:
  animatelcm generate \"a red circle moving down on a white background\" -o circle.gif
  animatelcm generate -m animatelcm \"a corgi on a beach\" --seed 7 -o corgi.mp4
  animatelcm generate -m real.safetensors --lora hat.safetensors:0.8 \"a corgi\"
  animatelcm generate -m animatelcm --video dog.mp4 --strength 0.6 \"an oil painting\"
  animatelcm generate --request jobs.jsonl -o clip.gif";

pub(super) const BATCH: &str = "\
Examples:
  animatelcm batch clips.jsonl -o out
  animatelcm batch clips.csv -o out --format webp --name \"{number}-{slug}\"
  animatelcm batch sweep.toml -o out --dry-run
  animatelcm batch clips.jsonl -o out --check
  srun animatelcm batch clips.jsonl -o out --shard auto";

pub(super) const INSPECT: &str = "\
Examples:
  animatelcm inspect clip.gif
  animatelcm inspect --json clip.gif
  animatelcm inspect style.safetensors
  animatelcm inspect stable-diffusion-v1-5
  animatelcm inspect ComfyUI_00001_.png";

pub(super) const REPLAY: &str = "\
Examples:
  animatelcm replay clip.gif
  animatelcm replay clip.gif -o again.gif
  animatelcm replay clip.gif --check
  animatelcm replay --progress none clip.mp4
  animatelcm replay frame_000.png -o frames_%03d.png";

pub(super) const PREPROCESS: &str = "\
Examples:
  animatelcm preprocess canny dog.jpg -o edges.png
  animatelcm preprocess canny dance.mp4 --low 50 --high 150 -o edges.mp4
  animatelcm preprocess lineart frames/ -W 512 -H 512 --fit crop -o lines.gif
  animatelcm preprocess softedge dance.gif --from 8 --count 16 -o edges_%03d.png
  animatelcm preprocess blur dog.jpg --sigma 4 --json -o blurred.png";

pub(super) const EVAL: &str = "\
Examples:
  animatelcm eval --procedural
  animatelcm eval --procedural --prompts 256 --json
  animatelcm eval --procedural --steps 8 --sheet sheet.png
  animatelcm eval --procedural --ground-truth
  animatelcm eval --procedural -m out/model --seed 1";

#[cfg(feature = "train")]
pub(super) const TRAIN: &str = "\
Examples:
  animatelcm train --preset pocket --print-config
  animatelcm train --preset pocket --out run
  animatelcm train --preset pocket --scale 0.01 --out trial
  animatelcm train --config plan.toml --out run --device cuda --dtype bf16
  animatelcm train --config plan.toml --out run --stage lcm --restart";

pub(super) const BENCH: &str = "\
Examples:
  animatelcm bench
  animatelcm bench --json --repeats 10
  animatelcm bench -m animatelcm -W 512 -H 512
  animatelcm bench --random-weights sd15 -W 256 -H 256
  animatelcm bench --random-weights sd15 --dtype bf16 --quantize int8";

#[cfg(feature = "hub")]
pub(super) const MODELS: &str = "\
Examples:
  animatelcm models list
  animatelcm models pull animatelcm
  animatelcm models path sd15
  animatelcm models verify sd15
  animatelcm models rm taesd";

#[cfg(feature = "hub")]
pub(super) const LIST: &str = "\
Examples:
  animatelcm models list
  animatelcm models list --json
  animatelcm models list | grep ^animatelcm
  animatelcm models list --json | jq -r .[].name
  HF_HOME=/data/hf animatelcm models list";

#[cfg(feature = "hub")]
pub(super) const PULL: &str = "\
Examples:
  animatelcm models pull animatelcm
  animatelcm models pull animatelcm --dry-run
  animatelcm models pull sd15 --variant fp32
  animatelcm models pull taesd sd-vae-ft-mse -q
  animatelcm models pull mine.toml --json";

#[cfg(feature = "hub")]
pub(super) const VERIFY: &str = "\
Examples:
  animatelcm models verify sd15
  animatelcm models verify animatelcm
  animatelcm models verify sd15 --variant fp32
  animatelcm models verify taesd --json
  animatelcm models verify taesd sd15 -q";

#[cfg(feature = "hub")]
pub(super) const PATH: &str = "\
Examples:
  animatelcm models path sd15
  animatelcm models path animatelcm
  animatelcm models path taesd --json
  animatelcm models path sd15 --variant fp32
  animatelcm inspect \"$(animatelcm models path taesd)\"";

#[cfg(feature = "hub")]
pub(super) const RM: &str = "\
Examples:
  animatelcm models rm taesd
  animatelcm models rm taesd -y
  animatelcm models rm sd15 animatelcm-t2v
  animatelcm models rm taesd -y --json
  animatelcm models rm taesd -y -q";

pub(super) const CONFIG: &str = "\
Examples:
  animatelcm config path
  animatelcm config show
  $EDITOR \"$(animatelcm config path)\"
  ANIMATELCM_CONFIG=draft.toml animatelcm generate \"a red star\"
  ANIMATELCM_CONFIG= animatelcm generate \"a red star\"

The file is TOML with flags of generate as keys: steps = 6, lora = [\"a.safetensors:0.8\"].";

pub(super) const COMPLETIONS: &str = "\
Examples:
  animatelcm completions bash > ~/.local/share/bash-completion/completions/animatelcm
  animatelcm completions zsh > ~/.zfunc/_animatelcm
  animatelcm completions fish > ~/.config/fish/completions/animatelcm.fish
  animatelcm completions powershell >> $PROFILE
  animatelcm completions elvish >> ~/.config/elvish/rc.elv";

pub(super) const MAN: &str = "\
Examples:
  animatelcm man > ~/.local/share/man/man1/animatelcm.1
  animatelcm man generate > ~/.local/share/man/man1/animatelcm-generate.1
  animatelcm man generate | man -l -
  animatelcm man replay | man -l -
  animatelcm man inspect > animatelcm-inspect.1";

#[cfg(feature = "server")]
pub(super) const SERVE: &str = "\
Examples:
  animatelcm serve
  animatelcm serve --bind 127.0.0.1:0 --data /tmp/clips
  animatelcm serve --catalog ~/ComfyUI/models --device cuda:0 --device cuda:1
  animatelcm serve --bind 0.0.0.0:7870 --api-keys keys.toml --allow-host clips.lan
  animatelcm serve --keep 30d --keep-bytes 100GiB --queue 500 --no-ui";

#[cfg(feature = "nats")]
pub(super) const WORKER: &str = "\
Examples:
  animatelcm worker --nats nats://broker:4222
  animatelcm worker --nats nats://broker:4222 --catalog models.toml --device cuda:0 --device cuda:1
  animatelcm worker --nats tls://broker:4222 --nats-credentials worker.nk --nats-ca ca.pem
  animatelcm worker --nats nats://a:4222,nats://b:4222 --name node7 --grace 5m
  animatelcm serve --nats nats://broker:4222 --api-keys keys.toml --bind 0.0.0.0:7870";

#[cfg(feature = "server")]
pub(super) const KEYS: &str = "\
Examples:
  animatelcm keys new ann
  animatelcm keys new ann --file keys.toml
  animatelcm keys new \"render farm\" --file /etc/animatelcm/keys.toml
  animatelcm keys new bob --file keys.toml > bob.key
  animatelcm serve --bind 0.0.0.0:7870 --api-keys keys.toml";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::typed;
    use clap::error::ErrorKind;

    /// The words of a line of a shell that quotes with `"` only, up to a redirection or pipe.
    fn words(line: &str) -> Vec<String> {
        let (mut words, mut is_quoted, mut word) = (Vec::new(), false, None::<String>);
        for c in line.chars() {
            match c {
                '"' => {
                    is_quoted = !is_quoted;
                    word.get_or_insert_default();
                }
                ' ' if !is_quoted => words.extend(word.take()),
                c => word.get_or_insert_default().push(c),
            }
        }
        words.extend(word);
        words.into_iter().take_while(|word| !word.starts_with(['>', '|'])).collect()
    }

    #[test]
    fn every_command_has_five_examples_that_can_be_typed() {
        let all = [
            PROGRAM,
            GENERATE,
            BATCH,
            INSPECT,
            REPLAY,
            PREPROCESS,
            EVAL,
            BENCH,
            CONFIG,
            COMPLETIONS,
        ];
        let all = all.into_iter().chain([MAN]);
        let all = all.into_iter().chain([
            #[cfg(feature = "train")]
            TRAIN,
            #[cfg(feature = "server")]
            SERVE,
            #[cfg(feature = "server")]
            KEYS,
            #[cfg(feature = "nats")]
            WORKER,
            #[cfg(feature = "hub")]
            MODELS,
            #[cfg(feature = "hub")]
            LIST,
            #[cfg(feature = "hub")]
            PULL,
            #[cfg(feature = "hub")]
            VERIFY,
            #[cfg(feature = "hub")]
            PATH,
            #[cfg(feature = "hub")]
            RM,
        ]);
        for text in all {
            let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("  ")).collect();
            assert_eq!(lines.len(), 5, "{text}");
            for line in lines {
                let from = line.find("animatelcm ").unwrap();
                let line = line[from..].split(')').next().unwrap();
                match typed::parse(words(line)) {
                    Ok(_) => {}
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::DisplayHelp, "{line}: {error}");
                    }
                }
            }
        }
    }
}
