//! Advice on flags that do not exist.

use crate::spelling;

/// Flags of other programs that have no counterpart of the same form.
const ELSEWHERE: [(&[&str], &str); 10] = [
    (
        &["--format", "--output-format", "--ext"],
        "the ending of the output says the format: -o clip.mp4",
    ),
    (
        &["--threads", "-t", "--num-threads"],
        "the environment sets the number of threads: RAYON_NUM_THREADS=4",
    ),
    (
        &["--init-image", "--init-video", "--denoise", "--denoising-strength", "-i"],
        "--image FILE or --video FILE, and --strength 0.6 says how much of the run is made from there",
    ),
    (
        &["--control-net", "--controlnet", "--control-image", "--control-strength", "--canny"],
        "a network and its hint are one flag: --control NAME=HINT,model=FILE,scale=0.9",
    ),
    (
        &["--preprocessor", "--preprocess", "--module", "--canny-preprocess"],
        "a preprocessor is a part of its control: --control canny=HINT,model=FILE,preprocess",
    ),
    (
        &["--lora-scale", "--lora-weight", "--lora-strength"],
        "the strength follows the file: --lora style.safetensors:0.8",
    ),
    (
        &["--diffusion-model", "--unet"],
        "--model takes checkpoints and diffusers folders; --checkpoint is laid over it",
    ),
    (&["--size", "--resolution"], "-W 512 -H 512"),
    (&["--half", "--fp16", "--no-half", "--precision"], "--dtype f32, f16 or bf16"),
    (
        &["--upscale-model", "--hires", "--upscale"],
        "no network enlarges clips; --zoom 2 doubles each pixel, ffmpeg interpolates: -vf scale=1024:-1",
    ),
];

/// Advice on a word that was taken for flags.
pub(super) const DASHES: &str = "a prompt that begins with a dash is given with -p, a file as ./-name; see `animatelcm generate --help`";

/// Advice on an unknown flag of a command with these long flags: its counterpart, or the nearest name.
pub(super) fn unknown(known: &[String], word: &str) -> Option<String> {
    let word = word.split_once('=').map_or(word, |(word, _)| word);
    // A prompt such as `-blurry` is taken for a group of short flags, of which the first letter is named.
    let word = match word.strip_prefix("--") {
        Some(name) => format!("--{}", super::typed::spelled(name)),
        None => word.to_owned(),
    };
    // A flag that the command has itself is no other program's.
    let is_own = |flag: &&str| known.iter().any(|own| flag.strip_prefix("--") == Some(own));
    if known.iter().any(|flag| flag == "control")
        && let Some((words, advice)) =
            ELSEWHERE.iter().find(|(words, _)| words.contains(&word.as_str()))
        && !words.iter().any(is_own)
    {
        return Some((*advice).to_owned());
    }
    let Some(name) = word.strip_prefix("--") else {
        return known.iter().any(|flag| flag == "prompt").then(|| DASHES.to_owned());
    };
    let found = spelling::nearest(name, known.iter().map(String::as_str))?;
    Some(format!("did you mean `--{found}`?"))
}
