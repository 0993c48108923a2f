//! Names of preprocessors, also in the spelling of other programs, and of those that are not here.

use super::FIELD;
use crate::spelling::{bare, find, nearest};
use crate::{Error, Result};

/// The names of all kinds.
pub(super) const KINDS: [&str; 9] =
    ["canny", "softedge", "lineart", "scribble", "blur", "tile", "gray", "invert", "depth"];

/// Bare names, and the kind that each means.
const KNOWN: [(&str, &str); 24] = [
    ("canny", "canny"),
    ("cannyedge", "canny"),
    ("softedge", "softedge"),
    ("sobel", "softedge"),
    ("lineart", "lineart"),
    ("lineartstandard", "lineart"),
    ("standardlineart", "lineart"),
    ("scribble", "scribble"),
    ("scribblexdog", "scribble"),
    ("xdog", "scribble"),
    ("sketch", "scribble"),
    ("blur", "blur"),
    ("blurgaussian", "blur"),
    ("gaussianblur", "blur"),
    ("tile", "tile"),
    ("tileresample", "tile"),
    ("gray", "gray"),
    ("grey", "gray"),
    ("grayscale", "gray"),
    ("invert", "invert"),
    ("inverted", "invert"),
    ("depth", "depth"),
    ("depthanything", "depth"),
    ("depthanythingv2", "depth"),
];

/// Beginnings of the bare names of preprocessors that need a network; why they are not here, and what to do.
const ELSEWHERE: [(&[&str], &str, &str); 6] = [
    (
        &["depth", "midas", "zoe", "leres"],
        "needs a network that is not here",
        "depth is made by Depth Anything V2",
    ),
    (
        &["openpose", "pose", "dwpose", "dwopenpose", "animalpose", "densepose", "mediapipe"],
        "needs a network that finds people, which is not here",
        "draw the poses with another program, such as DWPose, and give them as the hint",
    ),
    (
        &["normal", "bae", "seg", "oneformer", "uniformer", "ofade", "ofcoco"],
        "needs a network that is not here",
        "make the maps with another program, and give them as the hint",
    ),
    (
        &["mlsd"],
        "needs a network that is not here",
        "canny finds edges without one, curved ones too",
    ),
    (
        &["hed", "pidi", "teed", "softedgehed", "softedgepidi", "softedgeteed"],
        "needs a network that is not here",
        "softedge finds soft edges without one",
    ),
    (
        &["lineartanime", "lineartrealistic", "lineartcoarse", "scribblehed", "scribblepidi"],
        "needs a network that is not here",
        "lineart and scribble draw lines without one",
    ),
];

/// The kind that a name means.
///
/// # Errors
///
/// [`Error::Request`] for an unknown name, or for one that needs a network, with what to do instead.
pub(super) fn kind(name: &str) -> Result<&'static str> {
    if let Some(kind) = find(name, &KNOWN) {
        return Ok(kind);
    }
    let short = bare(name);
    let elsewhere =
        ELSEWHERE.iter().find(|(starts, ..)| starts.iter().any(|start| short.starts_with(*start)));
    if let Some((_, reason, hint)) = elsewhere {
        return Err(Error::request(FIELD, format!("`{name}` {reason}")).with_hint(*hint));
    }
    let known = KINDS.map(|kind| format!("`{kind}`")).join(", ");
    let error = Error::request(FIELD, format!("`{name}` is none of {known}"));
    Err(match nearest(&short, KINDS) {
        Some(near) => error.with_hint(format!("did you mean `{near}`?")),
        None => error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_programs_names_are_known_and_networks_refused_by_name() {
        for (name, want) in [
            ("canny", "canny"),
            ("Soft-Edge", "softedge"),
            ("scribble_xdog", "scribble"),
            ("lineart_standard (from white bg & black line)", ""),
            ("lineart_standard", "lineart"),
            ("tile_resample", "tile"),
            ("blur_gaussian", "blur"),
            ("GREY", "gray"),
            ("depth_anything_v2", "depth"),
        ] {
            assert_eq!(kind(name).unwrap_or_default(), want, "{name}");
        }
        for (name, reason, hint) in [
            ("depth_midas", "needs a network", "Depth Anything V2"),
            ("zoe", "needs a network", "Depth Anything V2"),
            ("openpose_full", "finds people", "DWPose"),
            ("normal_bae", "needs a network", "another program"),
            ("seg_ofade20k", "needs a network", "another program"),
            ("mlsd", "needs a network", "canny"),
            ("softedge_pidinet", "needs a network", "softedge"),
            ("hed", "needs a network", "softedge"),
            ("lineart_anime", "needs a network", "lineart and scribble"),
            ("cany", "is none of `canny`, `softedge`", "did you mean `canny`?"),
            ("", "is none of", ""),
        ] {
            let error = kind(name).unwrap_err();
            assert!(error.to_string().contains(reason), "{name}: {error}");
            assert!(error.hint().unwrap_or_default().contains(hint), "{name}: {error:?}");
        }
    }

    #[test]
    fn every_name_leads_to_a_kind() {
        for (name, kind) in KNOWN {
            assert!(bare(name) == name && KINDS.contains(&kind), "{name}");
        }
    }
}
