//! `/v1/videos`: OpenAI's shape. The official client itself is run by `openai_client.py`.

use std::path::Path;
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::client::{Server, long, small};
use crate::support::program::Folder;

/// The video of an id when it has ended.
fn ended(server: &Server, id: &str) -> Value {
    server.ended(id);
    server.json(&format!("/v1/videos/{id}"))
}

#[test]
fn a_video_is_the_clip_of_the_same_request() {
    let folder = Folder::new();
    let server = Server::start(&folder, &[]);
    let fields = [
        ("prompt", "a red circle moving left on a white background"),
        ("model", "pocket"),
        ("seconds", "0.5"),
        ("num_inference_steps", "1"),
        ("seed", "5"),
        ("output_format", "gif"),
    ];
    let made = server.request("POST", "/v1/videos").form(&fields, &[]).send();
    assert_eq!(made.status, 200, "{}", made.text());
    assert!(made.header("openai-poll-after-ms").is_some());
    let video = made.json();
    assert_eq!((&video["object"], &video["model"]), (&json!("video"), &json!("pocket")));
    assert_eq!((&video["size"], &video["seconds"]), (&json!("64x64"), &json!("0.5")));
    let id = video["id"].as_str().unwrap();
    let video = ended(&server, id);
    assert_eq!((&video["status"], &video["progress"]), (&json!("completed"), &json!(100)));
    assert!(video["completed_at"].is_u64() && video["expires_at"].is_u64(), "{video}");
    // The same as a job has the same key.
    let job = server.submit(&small(5));
    assert_eq!(job["cached"], true, "{job}");
    assert_eq!(job["output"]["sha256"], video["sha256"]);
    let clip = server.get(&format!("/v1/videos/{id}/content"));
    assert!(clip.body.starts_with(b"GIF89a"));
    let list = server.json("/v1/videos?limit=1");
    assert_eq!(list["has_more"], true);
    let path = format!("/v1/videos/{id}/remix");
    let remix = server.request("POST", &path);
    let remix = remix.json(&json!({"prompt": "a blue ring"})).send().json();
    assert_eq!((&remix["remixed_from_video_id"], &remix["seed"]), (&json!(id), &json!(5)));
    let gone = server.send("DELETE", &format!("/v1/videos/{id}")).json();
    assert_eq!(gone, json!({"id": id, "object": "video.deleted", "deleted": true}));
    server.get(&format!("/v1/videos/{id}")).fails(404, "not_found");
}

#[test]
fn bodies_are_forms_or_json() {
    let folder = Folder::new();
    let server = Server::start(&folder, &[]);
    let made = server.request("POST", "/v1/videos").json(&json!({
        "prompt": "a red circle", "width": 64, "height": 64, "num_frames": 3, "fps": 4, "seed": 1,
        "guidance_scale": 1.5, "negative_prompt": "blur", "output_format": "png",
        "request": {"sampling": {"sampler": "euler", "steps": 2}},
    }));
    let id = made.send().json()["id"].as_str().unwrap().to_owned();
    let record = server.ended(&id);
    assert_eq!(record["status"], "completed", "{record}");
    assert_eq!(record["format"], "apng");
    let sampling = &record["job"]["sampling"];
    assert_eq!((&sampling["sampler"], &sampling["steps"]), (&json!("euler"), &json!(2)));
    assert_eq!((&sampling["cfg_scale"], &record["output"]["frames"]), (&json!(1.5), &json!(3)));
    let clip = server.get(&format!("/v1/videos/{id}/content"));
    assert_eq!(clip.header("content-type"), Some("image/png"));
}

#[test]
fn a_reference_is_what_the_clip_starts_from() {
    let folder = Folder::new();
    let server = Server::start(&folder, &[]);
    let picture = super::client::picture();
    let fields = [("prompt", "a red circle"), ("seed", "1"), ("num_frames", "2")];
    let form = server.request("POST", "/v1/videos");
    let made = form.form(&fields, &[("input_reference", "a.png", &picture)]).send();
    assert_eq!(made.status, 200, "{}", made.text());
    let id = made.json()["id"].as_str().unwrap().to_owned();
    let record = server.ended(&id);
    assert_eq!(record["status"], "completed", "{record}");
    let upload = record["job"]["source"]["image"].as_str().unwrap().to_owned();
    let with = |reference: Value| {
        let body = json!({
            "prompt": "a red circle", "seed": 1, "num_frames": 2, "input_reference": reference,
        });
        server.request("POST", "/v1/videos").json(&body).send()
    };
    let data = format!("data:image/png;base64,{}", STANDARD.encode(&picture));
    assert_eq!(with(json!({"image_url": data})).json()["cached"], true);
    assert_eq!(with(json!({"file_id": upload})).json()["cached"], true);
    with(json!({"image_url": "http://127.0.0.1/a.png"})).fails(400, "unsupported");
    with(json!({"file_id": "file-1"})).fails(400, "invalid_request");
    with(json!("a.png")).fails(400, "invalid_request");
    let gif = crate::support::media::gif(16, 3);
    let form = server.request("POST", "/v1/videos");
    let made = form.form(&fields, &[("input_reference", "a.gif", &gif)]).send();
    let id = made.json()["id"].as_str().unwrap().to_owned();
    let video = &server.json(&format!("/v1/jobs/{id}"))["job"]["source"]["video"];
    assert!(video.is_string(), "{video}");
}

#[test]
fn what_is_not_offered_says_so() {
    let folder = Folder::new();
    let server = Server::start(&folder, &[]);
    let with = |fields: &[(&str, &str)]| {
        let all = [&[("prompt", "a red circle")], fields].concat();
        server.request("POST", "/v1/videos").form(&all, &[]).send()
    };
    for (field, value, code, param) in [
        ("lora[][file]", "x", "unsupported", "lora[][file]"),
        ("colour", "red", "invalid_request", "colour"),
        ("size", "64", "invalid_request", "size"),
        ("seconds", "0", "invalid_request", "seconds"),
        ("seconds", "soon", "invalid_request", "seconds"),
        ("seed", "-2", "invalid_request", "seed"),
        ("lora", "{\"path\": \"/etc/passwd\"}", "unsupported", "lora"),
        ("request", "{\"colour\": 1}", "invalid_request", "request"),
        ("output_format", "avi", "invalid_request", "format"),
    ] {
        let error = with(&[(field, value)]).fails(400, code);
        assert_eq!(error["param"], param, "{error}");
    }
    with(&[("model", "sora-2")]).fails(404, "model_not_found");
    with(&[("lora", "[{\"name\": \"ink\", \"scale\": 0.5}]")]).fails(404, "model_not_found");
    let none = server.request("POST", "/v1/videos").form(&[("model", "pocket")], &[]).send();
    assert_eq!(none.fails(400, "invalid_request")["param"], "prompt");
    for path in ["edits", "extensions", "characters"] {
        let path = format!("/v1/videos/{path}");
        server.request("POST", &path).json(&json!({})).send().fails(400, "unsupported");
    }
    let id = server.submit(&long(1))["id"].as_str().unwrap().to_owned();
    server.get(&format!("/v1/videos/{id}/content")).fails(404, "not_ready");
    // A client that polls ends at no other word.
    let video = server.send("POST", &format!("/v1/videos/{id}/cancel")).json();
    assert_eq!(
        (&video["status"], &video["error"]["code"]),
        (&json!("failed"), &json!("cancelled"))
    );
}

/// Runs the official client, where Python has it: `ANIMATELCM_PYTHON=python3 cargo test -- --ignored openai_client`.
#[test]
#[ignore = "needs Python with openai 3.57.0"]
fn the_official_openai_client_works() {
    let folder = Folder::new();
    folder.run(&["keys", "new", "ann", "--file", "keys.toml"]).ok();
    let made = folder.run(&["keys", "new", "bob", "--file", "keys.toml"]).ok();
    let server = Server::start(&folder, &["--api-keys", "keys.toml", "--queue", "3"]);
    let python = std::env::var("ANIMATELCM_PYTHON").unwrap_or_else(|_| "python3".into());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/server/openai_client.py");
    let address = format!("http://{}/v1", server.address);
    let output =
        Command::new(python).arg(script).args([&address, made.stdout().trim()]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}{said}", String::from_utf8_lossy(&output.stdout));
}
