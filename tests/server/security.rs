//! Strangers: other sites, other people, names that are paths, files that are bombs.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};

use super::client::{Events, Server, raw, small};
use crate::support::program::Folder;

#[test]
fn only_names_of_this_machine_are_answered() {
    let folder = Folder::new();
    let server = Server::start(&folder, &["--allow-host", "clips.example"]);
    let port = server.address.port();
    let with = |host: &str| server.request("GET", "/v1/jobs").header("Host", host).send();
    for host in [
        format!("localhost:{port}"),
        format!("127.0.0.1:{port}"),
        "10.1.2.3".into(),
        "[::1]:80".into(),
        "CLIPS.example".into(),
    ] {
        assert_eq!(with(&host).status, 200, "{host}");
    }
    for host in ["rebind.test", "rebind.test:7870", "localhost.rebind.test", "localhost:x"] {
        with(host).fails(403, "forbidden_origin");
    }
    let lines = |lines: &str| {
        let text = format!("GET /v1/jobs HTTP/1.1\r\n{lines}Connection: close\r\n\r\n");
        raw(server.address, text.as_bytes()).status
    };
    assert_eq!(lines("Host: localhost\r\n"), 200);
    assert!([400, 403].contains(&lines("")));
    assert!([400, 403].contains(&lines("Host:\r\n")));
    assert!([400, 403].contains(&lines("Host: localhost\r\nHost: rebind.test\r\n")));
    let absolute = |uri: &str, host: &str| {
        let text = format!("GET {uri} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        raw(server.address, text.as_bytes()).status
    };
    assert_eq!(absolute("http://localhost/v1/jobs", "localhost"), 200);
    assert_eq!(absolute("http://rebind.test/v1/jobs", "localhost"), 403);
    assert_eq!(absolute("http://rebind.test/v1/jobs", "rebind.test"), 403);
    assert!([400, 403].contains(&raw(server.address, b"GET /v1/jobs HTTP/1.0\r\n\r\n").status));
}

#[test]
fn pages_of_other_sites_can_do_nothing() {
    let folder = Folder::new();
    let server = Server::start(&folder, &[]);
    let own = format!("http://{}", server.address);
    let job = small(1).to_string();
    let from = |origin: &str| {
        let form = server.request("POST", "/v1/jobs?format=gif").form(&[("job", &job)], &[]);
        form.header("Origin", origin).send()
    };
    let other_port = format!("http://127.0.0.1:{}", server.address.port() ^ 1);
    for origin in ["null", "http://evil.test", "https://localhost", &other_port] {
        let answer = from(origin);
        answer.fails(403, "forbidden_origin");
        assert_eq!(answer.header("access-control-allow-origin"), None);
    }
    assert_eq!(server.json("/v1/jobs")["data"], json!([]));
    let answer = from(&own);
    assert_eq!(answer.status, 202, "{}", answer.text());
    assert_eq!(answer.header("access-control-allow-origin"), None);
    for header in
        ["content-security-policy", "cross-origin-resource-policy", "x-content-type-options"]
    {
        assert!(answer.header(header).is_some(), "{header}");
    }
    let asked = server.request("OPTIONS", "/v1/jobs").header("Origin", "http://evil.test").send();
    asked.fails(403, "forbidden_origin");
}

#[test]
fn keys_open_and_removed_ones_do_not() {
    let folder = Folder::new();
    let new = |name: &str| {
        let made = folder.run(&["keys", "new", name, "--file", "keys.toml"]).ok();
        made.stdout().trim().to_owned()
    };
    let (ann, bob) = (new("ann"), new("bob"));
    assert!(folder.run(&["keys", "new", "ann", "--file", "keys.toml"]).fails(2).contains("ann"));
    let mut server = Server::start(&folder, &["--api-keys", "keys.toml"]);
    for path in ["/v1/jobs", "/v1/models", "/v1/events", "/metrics", "/v1/capabilities", "/nothing"]
    {
        let answer = server.get(path);
        answer.fails(401, "invalid_api_key");
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
    }
    // What a page needs to ask for a key is open.
    for path in ["/", "/ui/app.js", "/ui/style.css", "/health", "/ready", "/openapi.json"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
    let with = |name: &str, value: &str| {
        server.request("GET", "/v1/jobs").header(name, value).send().status
    };
    assert_eq!(with("Authorization", &format!("Bearer {ann}")), 200);
    assert_eq!(with("Authorization", &format!("bearer {bob}")), 200);
    assert_eq!(with("X-Api-Key", &ann), 200);
    for wrong in ["", "alcm_", &ann[..ann.len() - 1], &format!("{ann}0"), "Bearer"] {
        assert_eq!(with("Authorization", &format!("Bearer {wrong}")), 401, "{wrong}");
    }
    assert_eq!(with("Authorization", &format!("Basic {ann}")), 401);
    // Never in an address, where logs have it.
    assert_eq!(server.get(&format!("/v1/jobs?key={ann}")).status, 401);
    // A cookie stands for a key.
    let log_in = |key: &str| server.request("POST", "/v1/login").json(&json!({"key": key})).send();
    log_in("alcm_0").fails(401, "invalid_api_key");
    let answer = log_in(&ann);
    assert_eq!((answer.status, &answer.json()["owner"]), (200, &json!("ann")));
    let cookie = answer.header("set-cookie").unwrap().to_owned();
    for part in ["HttpOnly", "SameSite=Strict", "Path=/"] {
        assert!(cookie.contains(part), "{cookie}");
    }
    assert!(!cookie.contains(&ann) && !cookie.contains("Secure"));
    let secure = server.request("POST", "/v1/login").json(&json!({"key": ann}));
    let secure = secure.header("X-Forwarded-Proto", "https").send();
    assert!(secure.header("set-cookie").unwrap().contains("Secure"));
    let pair = cookie.split(';').next().unwrap();
    assert_eq!(with("Cookie", &format!("a=b; {pair}; c=d")), 200);
    assert_eq!(with("Cookie", "animatelcm=0"), 401);
    let out = server.request("DELETE", "/v1/login").header("Cookie", pair).send();
    assert_eq!(out.status, 204);
    assert_eq!(with("Cookie", pair), 401);
    // A key that is removed opens nothing, nor do its cookies.
    let again = log_in(&ann);
    let pair = again.header("set-cookie").unwrap().split(';').next().unwrap();
    assert_eq!(with("Cookie", pair), 200);
    let text = String::from_utf8(folder.read("keys.toml")).unwrap();
    folder.write("keys.toml", &text[text.rfind("[[key]]").unwrap()..]);
    assert_eq!(with("Authorization", &format!("Bearer {ann}")), 401);
    assert_eq!(with("Cookie", pair), 401);
    assert_eq!(with("Authorization", &format!("Bearer {bob}")), 200);
    server.key = Some(bob);
    let id = server.submit(&small(1))["id"].as_str().unwrap().to_owned();
    assert_eq!(server.ended(&id)["status"], "completed");
}

#[test]
fn one_key_cannot_take_all_places() {
    let folder = Folder::new();
    let key = |name: &str| {
        let made = folder.run(&["keys", "new", name, "--file", "keys.toml"]).ok();
        Some(made.stdout().trim().to_owned())
    };
    let (ann, bob) = (key("ann"), key("bob"));
    let mut server = Server::start(&folder, &["--api-keys", "keys.toml", "--share", "2"]);
    server.key = ann;
    let first = server.submit(&super::client::long(0));
    server.until(first["id"].as_str().unwrap(), |record| record["status"] == "running");
    for seed in 1..3 {
        server.submit(&super::client::long(seed));
    }
    let fourth = server.request("POST", "/v1/jobs").json(&super::client::long(3)).send();
    fourth.fails(429, "queue_full");
    server.key = bob;
    server.submit(&super::client::long(4));
}

/// Everything in a job that could be a path, set to one.
fn paths(path: &str) -> Vec<Value> {
    let weighted = json!({"file": path});
    let control = json!({"name": "c", "hint": path, "model": "pocket-canny"});
    let of_model = json!({"name": "c", "hint": "upload:0", "model": path});
    let adapter = json!({"images": [{"file": path}], "model": "x"});
    let of_adapter = json!({"images": [], "model": path});
    let sections = [
        json!({"models": {"model": path}}),
        json!({"models": {"model_config": path}}),
        json!({"models": {"checkpoint": path}}),
        json!({"models": {"vae": path}}),
        json!({"models": {"motion": path}}),
        json!({"models": {"lcm_lora": weighted}}),
        json!({"models": {"loras": [weighted]}}),
        json!({"models": {"embeddings": [weighted]}}),
        json!({"models": {"image_encoder": path}}),
        json!({"tensors_in": weighted}),
        json!({"source": {"image": path}}),
        json!({"source": {"video": path}}),
        json!({"source": {"image": path, "mask": weighted}}),
        json!({"controls": [control]}),
        json!({"controls": [of_model]}),
        json!({"ip_adapters": [adapter]}),
        json!({"ip_adapters": [of_adapter]}),
        json!({"prompt": format!("a red circle <lora:{path}:1>")}),
    ];
    let whole = |section: Value| {
        let mut job = small(1);
        for (name, value) in section.as_object().unwrap() {
            job[name] = value.clone();
        }
        job
    };
    sections.into_iter().map(whole).collect()
}

#[test]
fn no_name_is_a_path() {
    let folder = Folder::new();
    folder.write("a.png", super::client::picture());
    folder.write("a.safetensors", "");
    #[cfg(unix)]
    std::os::unix::fs::symlink(folder.path("a.png"), folder.path("link.png")).unwrap();
    let server = Server::start(&folder, &[]);
    let own = folder.path("a.png");
    let data = folder.path("data/queue.sqlite");
    for path in [
        "/etc/passwd",
        "../a.png",
        "a.png",
        "link.png",
        "a.safetensors",
        "file:///etc/passwd",
        "\\\\server\\share\\a.png",
        "C:\\a.png",
        "upload:../queue.sqlite",
        "upload:/etc/passwd",
        "http://169.254.169.254/latest",
        "a\0b",
        "",
        own.to_str().unwrap(),
        data.to_str().unwrap(),
    ] {
        for job in paths(path) {
            // A tag without a name is none.
            if path.is_empty() && job["prompt"].to_string().contains("<lora:") {
                continue;
            }
            let answer = server.request("POST", "/v1/jobs?format=gif").json(&job).send();
            assert!([400, 404].contains(&answer.status), "{path}: {job}: {}", answer.text());
        }
    }
    assert_eq!(server.json("/v1/jobs")["data"], json!([]));
}

#[test]
fn the_device_is_the_servers() {
    let folder = Folder::new();
    let server = Server::start(&folder, &[]);
    for (field, value) in
        [("device", "cuda:7"), ("dtype", "f16"), ("quantize", "int8"), ("kernels", "experimental")]
    {
        let mut job = small(1);
        job["models"] = json!({field: value});
        let answer = server.request("POST", "/v1/jobs").json(&job).send();
        assert_eq!(answer.fails(400, "unsupported")["param"], field);
        job["models"] = json!({field: if field == "quantize" { "none" } else { "auto" }});
        if field != "kernels" {
            let answer = server.request("POST", "/v1/jobs").json(&job).send();
            assert_eq!(answer.status, 202, "{}", answer.text());
        }
    }
}

#[test]
fn names_in_addresses_are_never_paths() {
    let folder = Folder::new();
    let server = Server::start(&folder, &[]);
    let digits = "0123456789abcdef0123456789abcdef";
    let long = "a".repeat(20_000);
    for id in [
        "..%2f..%2fetc%2fpasswd",
        "%2e%2e%2fqueue.sqlite",
        "video_%00",
        &format!("video_{digits}"),
        &format!("VIDEO_{digits}"),
        &format!("video_{digits}%00"),
        &format!("video_{digits}.gif"),
        &long,
    ] {
        for of in ["jobs", "videos"] {
            for rest in ["", "/content"] {
                let answer = server.get(&format!("/v1/{of}/{id}{rest}"));
                assert!([404, 414, 431].contains(&answer.status), "{id}: {}", answer.status);
            }
        }
    }
}

#[test]
fn no_path_of_this_machine_is_told() {
    let folder = Folder::new();
    folder.write("models/loras/ink.safetensors", "no weights");
    folder.write("models/checkpoints/toon.safetensors", "no weights");
    let server = Server::start(&folder, &["--catalog", "models"]);
    let picture = super::client::picture();
    let upload = server.request("POST", "/v1/uploads").form(&[], &[("file", "a.png", &picture)]);
    let upload = upload.send().json()["id"].clone();
    let mut jobs = vec![small(1); 4];
    jobs[1]["models"] = json!({"loras": [{"file": "ink"}]});
    jobs[2]["models"] = json!({"model": "toon"});
    jobs[3]["source"] = json!({"image": upload});
    let mut said = Vec::new();
    for job in &jobs {
        let record = server.submit(job);
        let id = record["id"].as_str().unwrap();
        said.push(server.ended(id).to_string());
        for event in Events::open(&server, &format!("/v1/jobs/{id}/events"), None) {
            said.push(event.data.to_string());
        }
        let clip = server.get(&format!("/v1/jobs/{id}/content"));
        said.push(String::from_utf8_lossy(&clip.body).into_owned());
    }
    for path in ["/v1/models", "/v1/workers", "/v1/capabilities", "/metrics", "/v1/jobs"] {
        said.push(server.get(path).text());
    }
    let outside = folder.path("").canonicalize().unwrap();
    let outside = outside.to_str().unwrap().trim_end_matches('/').to_owned();
    for text in &said {
        assert!(!text.contains(&outside), "{text}");
    }
    assert!(said.iter().any(|text| text.contains("\"weights\"") && text.contains("ink")));
}

/// The check sum of PNG's chunks.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |sum: u32, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            if sum & 1 == 1 { (sum >> 1) ^ 0xedb8_8320 } else { sum >> 1 }
        })
    })
}

#[test]
fn bombs_are_refused_before_they_go_off() {
    let folder = Folder::new();
    let server = Server::start(&folder, &["--max-upload", "1MiB"]);
    // 30 000 by 30 000 pixels, as the header says.
    let mut bomb = super::client::picture();
    bomb[16..20].copy_from_slice(&30_000_u32.to_be_bytes());
    bomb[20..24].copy_from_slice(&30_000_u32.to_be_bytes());
    let sum = crc32(&bomb[12..29]);
    bomb[29..33].copy_from_slice(&sum.to_be_bytes());
    let upload = |bytes: &[u8]| {
        server.request("POST", "/v1/uploads").form(&[], &[("file", "a.png", bytes)]).send()
    };
    upload(&bomb).fails(400, "invalid_request");
    upload(&vec![0; (1 << 20) + 1]).fails(413, "too_large");
    let deep = format!("{}{}", "[".repeat(100), "]".repeat(100));
    let send = |body: String| {
        server.request("POST", "/v1/jobs").body("application/json", body.into_bytes()).send()
    };
    send(deep).fails(400, "invalid_request");
    send("[".repeat(1 << 20)).fails(400, "invalid_request");
    send(" ".repeat((1 << 20) + 1)).fails(413, "too_large");
    let mut job = small(1);
    job["prompt"] = json!("x".repeat(32_001));
    let answer = server.request("POST", "/v1/jobs").json(&job).send();
    assert_eq!(answer.fails(400, "invalid_request")["param"], "prompt");
    // A body without an end: the server hangs up, or answers.
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let head = "POST /v1/uploads HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\
                Content-Type: multipart/form-data; boundary=b\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let chunk = [b"10000\r\n".as_slice(), &vec![b'x'; 65_536], b"\r\n"].concat();
    let sent = (0..2000).take_while(|_| stream.write_all(&chunk).is_ok()).count();
    assert!(sent < 2000, "a body of 128 MiB was taken");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert_eq!(server.get("/health").status, 200);
    // Sixty-five fields are one too many.
    let fields: Vec<String> = (0..65).map(|n| format!("f{n}")).collect();
    let texts: Vec<_> = fields.iter().map(|field| (field.as_str(), "x")).collect();
    server.request("POST", "/v1/jobs").form(&texts, &[]).send().fails(400, "invalid_request");
}

#[test]
fn event_streams_are_counted() {
    let folder = Folder::new();
    let server = Server::start(&folder, &[]);
    let open: Vec<_> = (0..64).map(|_| Events::open(&server, "/v1/events", None)).collect();
    server.get("/v1/events").fails(429, "too_many_streams");
    drop(open);
    let started = std::time::Instant::now();
    loop {
        let mut stream = TcpStream::connect(server.address).unwrap();
        let head = "GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n";
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        if answer.ends_with(b"200") {
            break;
        }
        assert!(started.elapsed() < Duration::from_secs(30), "no place was free again");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn texts_of_clients_stay_texts() {
    let folder = Folder::new();
    let server = Server::start(&folder, &[]);
    let mut job = small(1);
    job["prompt"] = json!("<img src=x onerror=alert(1)> a red circle");
    let record = server.submit(&job);
    let answer = server.get(&format!("/v1/jobs/{}", record["id"].as_str().unwrap()));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
}
