//! What people type: dashes, commas, colons, and many of everything.

use serde_json::{Value, json};

use crate::support::program::Folder;
use crate::support::requests::{dumped, png};

#[test]
fn texts_and_seeds_may_begin_with_a_dash() {
    let folder = Folder::new();
    let request = dumped(&folder, &["-p", "-x", "-n", "-blurry", "--seed", "-1"]);
    let prompt = &request["prompt"];
    assert_eq!((&prompt["text"], &prompt["negative"]), (&json!("-x"), &json!("-blurry")));
    assert_eq!(request["sampling"]["seed"], Value::Null);
    folder.write("r.json", r#"{"schema":"animatelcm/v1","prompt":"a","sampling":{"seed":7}}"#);
    let again = dumped(&folder, &["--request", "r.json", "--seed=-1"]);
    assert_eq!(again["sampling"]["seed"], Value::Null, "the request's seed stayed");
    let done = folder.run(&["generate", "x", "--frames=1", "--steps=1", "-s", "-1", "-o", "a.gif"]);
    assert!(done.ok().stderr.contains("seed "));

    let wrong = folder.run(&["generate", "x", "-W", "-64"]);
    assert!(wrong.fails(2).contains("'-64'"), "{}", wrong.stderr);
    let wrong = folder.run(&["generate", "x", "-s", "-2"]);
    assert!(wrong.fails(2).contains("-1 for a random one"), "{}", wrong.stderr);
    let wrong = folder.run(&["generate", "x", "-n", "--seed", "4"]);
    assert!(wrong.fails(2).contains("`-n` has no value"), "{}", wrong.stderr);
    assert_eq!(wrong.hint(), "-n=--seed takes it as the value");
    let wrong = folder.run(&["generate", "-blurry"]);
    wrong.fails(2);
    assert!(wrong.hint().contains("-p"), "{}", wrong.stderr);
}

#[test]
fn paths_may_have_commas_and_colons() {
    let folder = Folder::new();
    let odd = "00012-1-a cat, masterpiece.png";
    folder.write(odd, png("a", "b"));
    folder.write("a:0.5", "");
    let control = |text: &str| {
        let request = dumped(&folder, &["x", "--control", text]);
        request["controls"][0].clone()
    };
    let there = control(&format!("canny={odd},model=m,end=0.5"));
    assert_eq!((&there["hint"], &there["model"]), (&json!(odd), &json!("m")));
    let quoted = control("canny=\"not, there=\"\"1\"\".png\",model=\"m,n\",scale=0:1,8:0");
    assert_eq!(quoted["hint"], "not, there=\"1\".png");
    assert_eq!((&quoted["model"], &quoted["scale"]), (&json!("m,n"), &json!("0:1,8:0")));
    let missing = folder.run(&["generate", "x", "--control", "canny=not, there.png,model=m"]);
    assert!(missing.fails(2).contains("` there.png`"), "{}", missing.stderr);
    assert!(missing.hint().contains("double quotes"), "{}", missing.stderr);

    let request = dumped(&folder, &["x", "--ip-adapter", &format!("{odd},model=m,mask=\"a,b\"")]);
    let adapter = &request["ip_adapters"][0];
    assert_eq!(adapter["images"][0]["file"], odd);
    assert_eq!(adapter["masks"][0]["file"], "a,b");

    let models = |args: &[&str]| dumped(&folder, &[&["x"], args].concat())["models"].clone();
    let loras = models(&["--lora", "a:0.5", "--lora", "\"b:0.5\":2", "--lora", "c:0.5"]);
    let files: Vec<_> = loras["loras"].as_array().unwrap().iter().collect();
    assert_eq!(files[0], &json!({"file": "a:0.5", "scale": 1.0}));
    assert_eq!(files[1], &json!({"file": "b:0.5", "scale": 2.0}));
    assert_eq!(files[2], &json!({"file": "c", "scale": 0.5}));
    let embeddings = models(&["--embedding", "\"x:y.pt\":\"a: b\"", "--embedding", "a:0.5"]);
    assert_eq!(embeddings["embeddings"][0], json!({"file": "x:y.pt", "word": "a: b"}));
    assert_eq!(embeddings["embeddings"][1], json!({"file": "a:0.5"}));
    assert_eq!(models(&["--lcm-lora", "\"a:1\""])["lcm_lora"]["file"], "a:1");
    let help = folder.run(&["generate", "--help"]).ok();
    let words: Vec<&str> = help.stdout().split_whitespace().collect();
    assert!(words.join(" ").contains("double quotes"));
}

#[test]
fn a_request_of_many_frames_is_refused_at_once() {
    let folder = Folder::new();
    let frames: Vec<String> = (0..200_000).map(|frame| frame.to_string()).collect();
    let adapters: Vec<String> = (0..50_000)
        .map(|i| format!(r#"{{"name":"n{i}","images":[{{"file":"a"}}],"model":"m"}}"#))
        .collect();
    let request = format!(
        r#"{{"schema":"animatelcm/v1","prompt":"a","size":{{"frames":200000}},
            "controls":[{{"name":"a","hint":"none.png","model":"m","frames":[{}]}}],
            "ip_adapters":[{}]}}"#,
        frames.join(","),
        adapters.join(","),
    );
    folder.write("r.json", request);
    let start = std::time::Instant::now();
    let refused = folder.run(&["generate", "--request", "r.json", "-o", "a.gif"]);
    assert_ne!(refused.code, Some(0));
    assert!(start.elapsed().as_secs_f64() < 10.0, "{:?}", start.elapsed());
}
