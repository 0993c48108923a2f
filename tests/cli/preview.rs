//! Clips that are shown in a file while they are made.

use serde_json::Value;

use crate::support::program::Folder;

const CLIP: [&str; 6] = ["generate", "a green ring", "--frames=2", "--steps=2", "--seed=5", "-q"];

fn clip<'a>(more: &[&'a str]) -> Vec<&'a str> {
    CLIP.iter().chain(more).copied().collect()
}

#[test]
fn a_preview_is_written_after_every_step_and_changes_no_byte_of_the_clip() {
    let folder = Folder::new();
    folder.run(&clip(&["-o", "plain.gif"])).ok();
    let shown = folder.run(&clip(&["-o", "a.gif", "--preview", "p.webp", "--progress=json"]));
    assert_eq!(shown.code, Some(0), "{}", shown.stderr);
    assert_eq!(folder.read("a.gif"), folder.read("plain.gif"));
    assert_eq!(folder.names(), ["a.gif", "p.webp", "plain.gif"]);
    let events = shown.events();
    let previews: Vec<&Value> = events.iter().filter(|event| event["event"] == "preview").collect();
    assert_eq!(previews.len(), 2);
    assert_eq!(previews[1]["path"], "p.webp");
    assert_eq!((&previews[1]["step"], &previews[1]["frames"]), (&2.into(), &2.into()));
    // Small frames are enlarged.
    let bytes = folder.read("p.webp");
    let decoder = image::codecs::webp::WebPDecoder::new(std::io::Cursor::new(bytes)).unwrap();
    assert_eq!(image::ImageDecoder::dimensions(&decoder), (256, 256));
    let frames = image::AnimationDecoder::into_frames(decoder).collect_frames().unwrap();
    assert_eq!(frames.len(), 2);
    // Another run writes over it when it may.
    let again = clip(&["-o", "b.gif", "--preview=p.webp"]);
    assert!(folder.run(&again).fails(2).contains("preview: `p.webp` exists"));
    folder.run(&[&again[..], &["-y"]].concat()).ok();
    folder.run(&clip(&["-o", "c.gif", "--count=2", "--preview=q.gif"])).ok();
    assert!(folder.read("q.gif").starts_with(b"GIF89a"));
}

#[test]
fn a_preview_is_an_animation_and_not_the_clip() {
    let folder = Folder::new();
    let tensors = ["-o", "a.gif", "--tensors-out=t.gif", "--preview=t.gif"];
    for (args, reason) in [
        (&["-o", "a.gif", "--preview", "a.gif"][..], "preview: `a.gif` is where the clip goes"),
        (&["-o", "./a.gif", "--preview=a.gif"], "preview: `a.gif` is where the clip goes"),
        (&["-o", "a.gif", "--count=2", "--preview=a-2.gif"], "is where the clip goes"),
        (&["-o", "f_%02d.png", "--preview", "f_03.png"], "is where the clip goes"),
        (&tensors, "preview: `t.gif` is where the tensors go"),
        (&["-o", "a.gif", "--preview=p.mp4"], "preview: `p.mp4` is none of .gif, .webp and .png"),
        (&["-o", "a.gif", "--preview=p_%02d.png"], "is none of .gif, .webp and .png"),
        (&["-o", "a.gif", "--preview=none/p.gif"], "preview: the folder `none` does not exist"),
        (&["-o", "a.gif", "--preview=kity"], "neither a file (.gif, .webp, .png) nor"),
    ] {
        let refused = folder.run(&clip(args));
        assert!(refused.fails(2).contains(reason), "{args:?}: {}", refused.stderr);
        assert!(folder.names().is_empty(), "{args:?}: {:?}", folder.names());
    }
}
