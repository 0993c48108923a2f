//! `/v1/jobs`: from a request to a clip, with all that may happen between.

use std::time::Duration;

use serde_json::{Value, json};

use super::client::{Events, Server, long, small};
use crate::support::program::{Folder, names};

#[test]
fn a_clip_is_the_one_that_generate_makes() {
    let folder = Folder::new();
    let server = Server::start(&folder, &[]);
    let answer = server.request("POST", "/v1/jobs?format=gif").json(&small(5)).send();
    assert_eq!(answer.status, 202, "{}", answer.text());
    let record = answer.json();
    let id = record["id"].as_str().unwrap();
    assert_eq!(answer.header("location"), Some(format!("/v1/jobs/{id}").as_str()));
    let record = server.ended(id);
    assert_eq!(record["status"], "completed", "{record}");
    assert_eq!((&record["progress"], &record["output"]["frames"]), (&json!(1.0), &json!(4)));
    let clip = server.get(&format!("/v1/jobs/{id}/content"));
    assert_eq!((clip.status, clip.header("content-type")), (200, Some("image/gif")));
    folder.write("job.json", small(5).to_string());
    folder.run(&["generate", "--request", "job.json", "-o", "clip.gif", "-q"]).ok();
    assert!(clip.body == folder.read("clip.gif"), "the bytes differ");
    // The same again is there already.
    let again = server.submit(&small(5));
    assert_eq!((&again["status"], &again["cached"]), (&json!("completed"), &json!(true)));
    assert_eq!(again["output"]["sha256"], record["output"]["sha256"]);
    // The request in the clip is the one that was sent, and makes the same.
    let inspected =
        server.request("POST", "/v1/inspect").form(&[], &[("file", "x.gif", &clip.body)]);
    let job = inspected.send().json()["job"].clone();
    assert_eq!(job["sampling"]["seed"], 5);
    let third = server.submit(&job);
    assert_eq!((&third["cached"], &third["key"]), (&json!(true), &again["key"]));
    assert_eq!(std::fs::read_dir(folder.path("data/tmp")).unwrap().count(), 0);
}

#[test]
fn parts_of_a_clip_and_pictures_of_it_can_be_asked_for() {
    let folder = Folder::new();
    let server = Server::start(&folder, &[]);
    let id = server.submit(&small(6))["id"].as_str().unwrap().to_owned();
    let early = server.submit(&long(1))["id"].as_str().unwrap().to_owned();
    server.ended(&id);
    let path = format!("/v1/jobs/{id}/content");
    let whole = server.get(&path);
    let tag = whole.header("etag").unwrap().to_owned();
    assert_eq!(whole.header("x-content-type-options"), Some("nosniff"));
    let named = format!("inline; filename=\"{id}.gif\"");
    assert_eq!(whole.header("content-disposition"), Some(named.as_str()));
    let part = server.request("GET", &path).header("Range", "bytes=3-9").send();
    assert_eq!((part.status, &part.body[..]), (206, &whole.body[3..10]));
    let length = whole.body.len();
    let range = format!("bytes 3-9/{length}");
    assert_eq!(part.header("content-range"), Some(range.as_str()));
    let beyond = format!("bytes={length}-");
    assert_eq!(server.request("GET", &path).header("Range", &beyond).send().status, 416);
    let other = server.request("GET", &path).header("Range", "bytes=3-9");
    assert_eq!(other.header("If-Range", "\"other\"").send().body, whole.body);
    let known = server.request("GET", &path).header("If-None-Match", &tag).send();
    assert_eq!((known.status, known.body.len()), (304, 0));
    let picture = server.get(&format!("{path}?variant=thumbnail"));
    assert_eq!(picture.header("content-type"), Some("image/webp"));
    let size = |bytes: &[u8]| {
        let image = image::load_from_memory(bytes).unwrap();
        (image.width(), image.height())
    };
    assert_eq!(size(&picture.body), (64, 64));
    let sheet = server.get(&format!("{path}?variant=spritesheet"));
    assert_eq!(size(&sheet.body), (256, 64));
    server.get(&format!("{path}?variant=sound")).fails(400, "invalid_request");
    let answer = server.get(&format!("/v1/jobs/{early}/content"));
    answer.fails(409, "not_ready");
    assert!(answer.header("retry-after").is_some());
}

#[test]
fn events_go_on_after_a_break_where_they_stopped() {
    let folder = Folder::new();
    let server = Server::start(&folder, &[]);
    let now = server.json("/v1/jobs");
    assert_eq!(now["data"], json!([]));
    let all = Events::open(&server, "/v1/events", None);
    let id = server.submit(&small(7))["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/jobs/{id}/events");
    // A stream of one job ends with the job.
    let told: Vec<_> = Events::open(&server, &path, None).collect();
    let names: Vec<&str> = told.iter().map(|message| message.name.as_str()).collect();
    assert_eq!((names[0], *names.last().unwrap()), ("queued", "done"), "{names:?}");
    for name in ["start", "load", "ready", "step", "decode", "encode"] {
        assert!(names.contains(&name), "{name}: {names:?}");
    }
    assert!(told.iter().all(|message| message.data["event"] == message.name));
    assert!(told.iter().all(|message| message.data["job"] == id));
    assert!(told.is_sorted_by(|a, b| a.id < b.id));
    let done = &told.last().unwrap().data;
    assert_eq!(done["url"], format!("/v1/jobs/{id}/content"));
    assert!(done.get("path").is_none(), "{done}");
    let step = told.iter().find(|message| message.name == "step").unwrap();
    assert!(step.data["progress"].as_f64().unwrap() > 0.0);
    let rest: Vec<_> = Events::open(&server, &path, Some(step.id)).collect();
    let after: Vec<_> = told.iter().filter(|message| message.id > step.id).collect();
    assert_eq!(rest.len(), after.len());
    assert_eq!(rest[0].id, after[0].id);
    // Who has heard all is told not to come again.
    let end = told.last().unwrap().id.to_string();
    let ended = server.request("GET", &path).header("Last-Event-ID", &end).send();
    assert_eq!(ended.status, 204);
    let heard: Vec<_> = all.take(told.len()).map(|message| message.id).collect();
    assert_eq!(heard, told.iter().map(|message| message.id).collect::<Vec<_>>());
}

#[test]
fn a_running_job_shows_what_it_makes_to_whoever_listens() {
    let folder = Folder::new();
    let server = Server::start(&folder, &[]);
    let unwatched = server.submit(&long(1))["id"].as_str().unwrap().to_owned();
    let path = |id: &str, rest: &str| format!("/v1/jobs/{id}{rest}");
    server.until(&unwatched, |record| record["progress"].as_f64().unwrap() > 0.0);
    // One would be due after half a second.
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(server.json(&path(&unwatched, ""))["preview"], Value::Null);
    server.get(&path(&unwatched, "/preview")).fails(404, "not_found");
    server.send("POST", &path(&unwatched, "/cancel"));

    let events = Events::open(&server, "/v1/events", None);
    let id = server.submit(&long(2))["id"].as_str().unwrap().to_owned();
    let mut told = events.filter(|message| message.name == "preview");
    let (first, second) = (told.next().unwrap(), told.next().unwrap());
    assert!(first.data["step"].as_u64() < second.data["step"].as_u64());
    let shown = |event: &Value| {
        ["url", "frames", "columns", "width", "height"].map(|field| event[field].clone())
    };
    let url = path(&id, "/preview");
    assert_eq!(shown(&second.data), [json!(url), json!(16), json!(16), json!(64), json!(64)]);
    assert_eq!(shown(&server.json(&path(&id, ""))["preview"]), shown(&second.data));
    let picture = server.get(&url);
    assert_eq!((picture.status, picture.header("content-type")), (200, Some("image/jpeg")));
    assert_eq!(picture.header("cache-control"), Some("private, no-store"));
    let row = image::load_from_memory(&picture.body).unwrap();
    assert_eq!((row.width(), row.height()), (16 * 64, 64));

    server.send("POST", &path(&id, "/cancel"));
    server.ended(&id);
    server.until(&id, |record| record["preview"].is_null());
    server.get(&url).fails(404, "not_found");
}

#[test]
fn cancelled_jobs_end_and_ended_ones_can_be_removed() {
    let folder = Folder::new();
    let server = Server::start(&folder, &[]);
    let id = |record: Value| record["id"].as_str().unwrap().to_owned();
    let running = id(server.submit(&long(1)));
    let waiting = id(server.submit(&long(2)));
    let next = id(server.submit(&small(3)));
    server.until(&running, |record| record["progress"].as_f64().unwrap() > 0.0);
    assert_eq!(server.json(&format!("/v1/jobs/{next}"))["position"], 2);
    let path = |id: &str, rest: &str| format!("/v1/jobs/{id}{rest}");
    server.send("DELETE", &path(&running, "")).fails(409, "not_ended");
    for id in [&waiting, &running] {
        let answer = server.send("POST", &path(id, "/cancel"));
        assert_eq!((answer.status, &answer.json()["status"]), (200, &json!("cancelled")));
    }
    let done = server.ended(&next);
    assert_eq!(done["status"], "completed", "{done}");
    let unchanged = server.send("POST", &path(&next, "/cancel")).json();
    assert_eq!(unchanged["status"], "completed");
    let sha256 = done["output"]["sha256"].as_str().unwrap().to_owned();
    let file = folder.path(&format!("data/clips/{}/{sha256}", &sha256[..2]));
    assert!(file.is_file());
    assert_eq!(server.send("DELETE", &path(&next, "")).status, 204);
    assert!(!file.exists());
    server.get(&path(&next, "")).fails(404, "not_found");
    server.get(&path(&next, "/content")).fails(404, "not_found");
    let last = id(server.submit(&long(4)));
    assert_eq!(server.send("DELETE", &path(&last, "?cancel=true")).status, 204);
    assert_eq!(server.json("/v1/jobs")["data"].as_array().unwrap().len(), 2);
}

#[test]
fn lists_have_pages() {
    let folder = Folder::new();
    let server = Server::start(&folder, &[]);
    let mut ids: Vec<String> =
        (0..5).map(|seed| server.submit(&long(seed))["id"].as_str().unwrap().to_owned()).collect();
    ids.reverse();
    let mut found = Vec::new();
    let mut path = "/v1/jobs?limit=2".to_owned();
    loop {
        let page = server.json(&path);
        let data = page["data"].as_array().unwrap();
        found.extend(data.iter().map(|record| record["id"].as_str().unwrap().to_owned()));
        assert_eq!(page["last_id"], found.last().unwrap().as_str());
        if page["has_more"] == false {
            break;
        }
        path = format!("/v1/jobs?limit=2&after={}", found.last().unwrap());
    }
    assert_eq!(found, ids);
    let oldest = server.json("/v1/jobs?order=asc&limit=1");
    assert_eq!(oldest["first_id"], ids[4].as_str());
    assert_eq!(server.json("/v1/jobs?status=completed")["data"], json!([]));
    for wrong in ["limit=101", "order=up", "status=lost", "after=x", "colour=red", "limit=x"] {
        server.get(&format!("/v1/jobs?{wrong}")).fails(400, "invalid_request");
    }
}

#[test]
fn a_full_queue_says_when_to_come_again() {
    let folder = Folder::new();
    let server = Server::start(&folder, &["--queue", "2"]);
    let first = server.submit(&long(0));
    server.until(first["id"].as_str().unwrap(), |record| record["status"] == "running");
    for seed in 1..3 {
        server.submit(&long(seed));
    }
    let full = server.request("POST", "/v1/jobs?format=gif").json(&long(3)).send();
    full.fails(429, "queue_full");
    let seconds: u64 = full.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=120).contains(&seconds), "{seconds}");
}

#[test]
fn a_request_sent_twice_under_one_name_is_one_job() {
    let folder = Folder::new();
    let server = Server::start(&folder, &[]);
    let send = |name: &str, job: &Value| {
        let request = server.request("POST", "/v1/jobs?format=gif").json(job);
        request.header("Idempotency-Key", name).send()
    };
    // Without a seed each would be another job.
    let mut job = long(1);
    job["sampling"]["seed"] = Value::Null;
    let first = send("one", &job);
    let second = send("one", &job);
    assert_eq!((first.status, second.status), (202, 200));
    assert_eq!(first.json()["id"], second.json()["id"]);
    assert!(first.json()["job"]["sampling"]["seed"].is_u64());
    assert_ne!(send("two", &job).json()["id"], first.json()["id"]);
    send("one", &long(2)).fails(422, "idempotency_mismatch");
}

#[test]
fn wrong_requests_name_their_field() {
    let folder = Folder::new();
    let server = Server::start(&folder, &[]);
    let send = |job: &Value| server.request("POST", "/v1/jobs?format=gif").json(job).send();
    let with = |section: &str, field: &str, value: Value| {
        let mut job = small(1);
        job[section][field] = value;
        job
    };
    for (job, param) in [
        (with("size", "frames", json!(0)), "frames"),
        (with("size", "frames", json!(5000)), "frames"),
        (with("sampling", "steps", json!(0)), "steps"),
        (with("sampling", "steps", json!(1_000_000)), "steps"),
        (with("size", "width", json!(8192)), "size"),
        (with("output", "fps", json!(0)), "fps"),
        (with("sampling", "colour", json!(0)), "job"),
        (json!({"schema": "animatelcm/v9"}), "job"),
        (json!([]), "job"),
    ] {
        let mut job = job;
        if param == "size" {
            job["size"]["height"] = json!(8192);
        }
        let error = send(&job).fails(400, "invalid_request");
        assert_eq!(error["param"], param, "{error}");
    }
    let post = |path: &str| server.request("POST", path).json(&small(1)).send();
    post("/v1/jobs?format=avi").fails(400, "invalid_request");
    post("/v1/jobs?priority=low").fails(400, "invalid_request");
    post("/v1/jobs?colour=red").fails(400, "invalid_request");
    let text = server.request("POST", "/v1/jobs").body("text/plain", b"{}".to_vec()).send();
    text.fails(415, "unsupported_media_type");
    let cut = server.request("POST", "/v1/jobs").body("application/json", b"{".to_vec()).send();
    cut.fails(400, "invalid_request");
    server.get("/v1/nothing").fails(404, "not_found");
    server.send("PUT", "/v1/jobs").fails(405, "method_not_allowed");
    let plain = with("sampling", "seed", json!(null));
    assert_eq!(send(&plain).status, 202);
}

#[test]
fn uploads_are_named_by_their_hash() {
    let folder = Folder::new();
    let server = Server::start(&folder, &[]);
    let picture = super::client::picture();
    let upload =
        server.request("POST", "/v1/uploads").form(&[], &[("file", "a.png", &picture)]).send();
    assert_eq!(upload.status, 201, "{}", upload.text());
    let name = upload.json()["id"].as_str().unwrap().to_owned();
    assert!(name.starts_with("upload:") && name.len() == 71, "{name}");
    let mut job = small(4);
    job["source"] = json!({"image": name, "strength": 0.5});
    job["sampling"]["steps"] = json!(2);
    let record = server.submit(&job);
    let done = server.ended(record["id"].as_str().unwrap());
    assert_eq!(done["status"], "completed", "{done}");
    // A form may bring the picture along.
    job["source"]["image"] = json!("upload:start");
    let text = job.to_string();
    let form = server.request("POST", "/v1/jobs?format=gif");
    let sent = form.form(&[("job", &text)], &[("start", "../../b.png", &picture)]).send();
    assert_eq!(sent.status, 202, "{}", sent.text());
    assert_eq!(sent.json()["cached"], true, "{}", sent.text());
    // What is no picture is refused by the name that the client has for it, and not kept.
    let wrong =
        server.request("POST", "/v1/uploads").form(&[], &[("file", "a/song.mp3", b"ID3 la")]);
    let error = wrong.send().fails(400, "invalid_request");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("song.mp3") && !message.contains("a/song"), "{message}");
    let folders = names(&folder.path("data/uploads"));
    let count = |name: &String| names(&folder.path(&format!("data/uploads/{name}"))).len();
    assert_eq!(folders.iter().map(count).sum::<usize>(), 1);
    let missing = format!("upload:{}", "0".repeat(64));
    job["source"]["image"] = json!(missing);
    let answer = server.request("POST", "/v1/jobs").json(&job).send();
    assert_eq!(answer.fails(400, "invalid_request")["param"], "source");
}

#[test]
fn the_server_says_what_it_is_and_can_do() {
    let folder = Folder::new();
    folder.write("models/loras/ink.safetensors", "");
    let server = Server::start(&folder, &["--catalog", "models"]);
    assert_eq!(server.json("/health")["status"], "ok");
    assert_eq!(server.json("/ready")["workers"], 1);
    let models = server.json("/v1/models");
    let ids: Vec<_> = models["data"].as_array().unwrap().iter().map(|m| m["id"].clone()).collect();
    assert_eq!(ids, ["pocket", "ink"]);
    assert_eq!(models["data"][0]["embedded"], true);
    assert_eq!(server.json("/v1/models/ink")["kind"], "lora");
    server.get("/v1/models/oil").fails(404, "model_not_found");
    let can = server.json("/v1/capabilities");
    assert!(can["samplers"].as_array().unwrap().contains(&json!("lcm")), "{can}");
    assert!(can["formats"].as_array().unwrap().contains(&json!("mp4")), "{can}");
    assert!(!can["formats"].as_array().unwrap().contains(&json!("png")), "{can}");
    for spacing in can["spacings"].as_array().unwrap() {
        let text =
            format!("{{\"schema\":\"animatelcm/v1\",\"sampling\":{{\"spacing\":{spacing}}}}}");
        assert!(animatelcm::Job::from_json(&text).is_ok(), "{spacing}");
    }
    for (path, kind) in [
        ("/", "text/html; charset=utf-8"),
        ("/ui/app.js", "text/javascript; charset=utf-8"),
        ("/ui/style.css", "text/css; charset=utf-8"),
    ] {
        let file = server.get(path);
        assert_eq!((file.status, file.header("content-type")), (200, Some(kind)));
        assert!(file.header("content-security-policy").unwrap().contains("default-src 'none'"));
    }
    // A LoRA of a prompt is one of the catalog; what is wrong with its file the job says.
    let mut job = small(1);
    job["prompt"] = json!("a red circle <lora:ink:0.5>");
    let record = server.submit(&job);
    assert_eq!(record["job"]["models"]["loras"][0]["file"], "ink");
    let failed = server.ended(record["id"].as_str().unwrap());
    assert_eq!(failed["error"]["code"], "weights", "{failed}");
    job["prompt"] = json!("a red circle <lora:inc:0.5>");
    let error = server.request("POST", "/v1/jobs").json(&job).send().fails(400, "invalid_request");
    assert!(error["hint"].as_str().unwrap().contains("ink"), "{error}");
}

#[test]
fn metrics_count_by_templates_of_routes() {
    let folder = Folder::new();
    let server = Server::start(&folder, &[]);
    let id = server.submit(&small(1))["id"].as_str().unwrap().to_owned();
    server.ended(&id);
    server.get("/v1/jobs/../../etc/passwd");
    let metrics = server.get("/metrics");
    let text = metrics.text();
    for line in [
        "animatelcm_jobs{status=\"completed\"} 1",
        "animatelcm_jobs_ended_total{outcome=\"completed\"} 1",
        "animatelcm_http_requests_total{method=\"POST\",route=\"/v1/jobs\",status=\"202\"} 1",
        "animatelcm_step_seconds_count 1",
        "animatelcm_load_seconds_count 1",
        "animatelcm_queue_wait_seconds_count 1",
        "animatelcm_job_seconds_count 1",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert!(text.ends_with("# EOF\n"));
    assert!(!text.contains(&id) && !text.contains("passwd"), "{text}");
}

#[cfg(unix)]
#[test]
fn a_server_that_is_told_to_stop_gives_its_job_back() {
    use std::time::{Duration, Instant};

    let folder = Folder::new();
    let server = Server::start(&folder, &["--grace", "2s"]);
    let id = server.submit(&long(1))["id"].as_str().unwrap().to_owned();
    server.until(&id, |record| record["progress"].as_f64().unwrap() > 0.0);
    server.terminate();
    let started = Instant::now();
    while server.get("/ready").status == 200 {
        assert!(started.elapsed() < Duration::from_secs(2));
    }
    // Until the end it answers, but takes no job.
    let refused = server.request("POST", "/v1/jobs").json(&small(2)).send();
    refused.fails(503, "draining");
    assert!(refused.header("retry-after").is_some());
    assert_eq!(server.get(&format!("/v1/jobs/{id}")).status, 200);
    let (code, said) = server.stop_after_signal();
    assert_eq!(code, Some(0), "{said}");
    let server = Server::start(&folder, &[]);
    let record = server.until(&id, |record| record["status"] == "running");
    assert_eq!(record["attempt"], 1, "{record}");
}

#[test]
fn a_server_that_cannot_start_says_why() {
    let folder = Folder::new();
    let refused = folder.run(&["serve", "--bind", "0.0.0.0:0", "--data", "data"]);
    assert!(refused.fails(2).contains("bind"));
    assert!(refused.hint().contains("--no-auth"));
    let _server = Server::start(&folder, &[]);
    let second = folder.run(&["serve", "--bind", "127.0.0.1:0", "--data", "data"]);
    assert!(second.fails(4).contains("in use"));
    let keys = folder.run(&["serve", "--api-keys", "none.toml", "--data", "other"]);
    assert!(keys.fails(2).contains("api-keys"));
    assert!(folder.run(&["serve", "--keep", "soon"]).fails(2).contains("keep"));
    folder.write("list.toml", "[[model]]\nname = \"a\"\nkind = \"shoe\"\nfile = \"list.toml\"\n");
    let catalog = ["serve", "--catalog", "list.toml", "--data", "other", "--bind", "127.0.0.1:0"];
    assert!(folder.run(&catalog).fails(2).contains("shoe"));
}
