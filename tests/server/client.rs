//! A server of a test, and a client that sends what it is told.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::program::Folder;

/// A server that is running, in a folder of its own.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    child: Option<Child>,
    pub(super) key: Option<String>,
}

impl Server {
    /// Starts one on a free port.
    pub(super) fn start(folder: &Folder, args: &[&str]) -> Self {
        let usual = ["serve", "--bind", "127.0.0.1:0", "--data", "data"];
        let mut command = folder.command(&[&usual, args].concat());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let Some((_, address)) = line.split_once("http://") else {
            let output = child.wait_with_output().unwrap();
            panic!("no address: {line}{}", String::from_utf8_lossy(&output.stderr));
        };
        let address = address.trim().trim_end_matches('/').parse().unwrap();
        Self { address, child: Some(child), key: None }
    }

    /// Ends it as a power failure would.
    pub(super) fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Waits for its end, and returns its exit code and what it said.
    pub(super) fn stop_after_signal(mut self) -> (Option<i32>, String) {
        let output = self.child.take().unwrap().wait_with_output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    #[cfg(unix)]
    pub(super) fn terminate(&self) {
        let id = self.child.as_ref().unwrap().id().to_string();
        assert!(std::process::Command::new("kill").arg(id).status().unwrap().success());
    }

    pub(super) fn send(&self, method: &str, path: &str) -> Answer {
        self.request(method, path).send()
    }

    pub(super) fn get(&self, path: &str) -> Answer {
        self.send("GET", path)
    }

    pub(super) fn json(&self, path: &str) -> Value {
        let answer = self.get(path);
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        answer.json()
    }

    pub(super) fn request<'a>(&'a self, method: &'a str, path: &'a str) -> Request<'a> {
        let host = self.address.to_string();
        let mut headers = vec![("Host".to_owned(), host)];
        if let Some(key) = &self.key {
            headers.push(("Authorization".into(), format!("Bearer {key}")));
        }
        Request { server: self, method, path, headers, body: vec![] }
    }

    /// Submits a job, which must be taken.
    #[track_caller]
    pub(super) fn submit(&self, job: &Value) -> Value {
        let answer = self.request("POST", "/v1/jobs?format=gif").json(job).send();
        assert_eq!(answer.status, 202, "{}", answer.text());
        answer.json()
    }

    /// The record of a job when it has ended.
    #[track_caller]
    pub(super) fn ended(&self, id: &str) -> Value {
        self.until(id, |record| {
            !["queued", "running"].contains(&record["status"].as_str().unwrap())
        })
    }

    /// The record of a job when a condition holds.
    #[track_caller]
    pub(super) fn until(&self, id: &str, is_met: impl Fn(&Value) -> bool) -> Value {
        let started = Instant::now();
        loop {
            let record = self.json(&format!("/v1/jobs/{id}"));
            if is_met(&record) {
                return record;
            }
            assert!(started.elapsed() < Duration::from_secs(120), "{record}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A request that is being put together.
pub(super) struct Request<'a> {
    server: &'a Server,
    method: &'a str,
    path: &'a str,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Request<'_> {
    /// Sets a header, in place of one of the same name.
    pub(super) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
        self.headers.push((name.into(), value.into()));
        self
    }

    pub(super) fn json(self, body: &Value) -> Self {
        self.body("application/json", body.to_string().into_bytes())
    }

    pub(super) fn body(mut self, kind: &str, body: Vec<u8>) -> Self {
        self.body = body;
        self.header("Content-Type", kind)
    }

    /// A form of texts, and of files with their names.
    pub(super) fn form(self, texts: &[(&str, &str)], files: &[(&str, &str, &[u8])]) -> Self {
        let mut body = Vec::new();
        for (field, text) in texts {
            let head = format!("--b0\r\nContent-Disposition: form-data; name=\"{field}\"\r\n\r\n");
            body.extend([head.as_bytes(), text.as_bytes(), b"\r\n"].concat());
        }
        for (field, name, bytes) in files {
            let head = format!(
                "--b0\r\nContent-Disposition: form-data; name=\"{field}\"; filename=\"{name}\"\r\n\
                 Content-Type: application/octet-stream\r\n\r\n"
            );
            body.extend([head.as_bytes(), bytes, b"\r\n"].concat());
        }
        body.extend(b"--b0--\r\n");
        self.body("multipart/form-data; boundary=b0", body)
    }

    pub(super) fn send(self) -> Answer {
        let Self { server, method, path, headers, body } = self;
        let mut head = format!("{method} {path} HTTP/1.1\r\n");
        for (name, value) in &headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += &format!("Connection: close\r\nContent-Length: {}\r\n\r\n", body.len());
        raw(server.address, &[head.as_bytes(), &body].concat())
    }
}

/// Sends bytes and reads the answer.
pub(super) fn raw(address: SocketAddr, bytes: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    // A server that has seen enough answers before it has read all.
    let _ = stream.write_all(bytes);
    let mut read = Vec::new();
    let _ = stream.read_to_end(&mut read);
    Answer::parse(&read)
}

/// An answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

impl Answer {
    fn parse(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
        let Some(end) = end else {
            panic!("no answer: {}", String::from_utf8_lossy(bytes));
        };
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
            .collect();
        let mut answer = Self { status, headers, body: bytes[end + 4..].to_vec() };
        if answer.header("transfer-encoding") == Some("chunked") {
            answer.body = unchunked(&answer.body);
        }
        answer
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    /// It must be an error of this status and code; returns the error.
    #[track_caller]
    pub(super) fn fails(&self, status: u16, code: &str) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        let error = self.json()["error"].clone();
        assert_eq!(error["code"], code, "{error}");
        for field in ["message", "type", "param", "code"] {
            assert!(error.get(field).is_some(), "{error} has no {field}");
        }
        error
    }
}

fn unchunked(mut bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = bytes.windows(2).position(|window| window == b"\r\n") {
        let length = std::str::from_utf8(&bytes[..end]).unwrap_or("0");
        let length = usize::from_str_radix(length, 16).unwrap_or(0);
        let rest = &bytes[end + 2..];
        if length == 0 || rest.len() < length {
            break;
        }
        body.extend_from_slice(&rest[..length]);
        bytes = rest.get(length + 2..).unwrap_or_default();
    }
    body
}

/// A message of an event stream.
#[derive(Clone, Debug, Default)]
pub(super) struct Message {
    pub(super) id: u64,
    pub(super) name: String,
    pub(super) data: Value,
}

/// A connection that listens to events.
pub(super) struct Events(BufReader<TcpStream>);

impl Events {
    pub(super) fn open(server: &Server, path: &str, after: Option<u64>) -> Self {
        let mut stream = TcpStream::connect(server.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let last = after.map(|id| format!("Last-Event-ID: {id}\r\n")).unwrap_or_default();
        let head = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n{last}\r\n", server.address);
        stream.write_all(head.as_bytes()).unwrap();
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        assert!(line.contains(" 200 "), "{line}");
        while line != "\r\n" {
            line.clear();
            stream.read_line(&mut line).unwrap();
        }
        Self(stream)
    }
}

impl Iterator for Events {
    type Item = Message;

    fn next(&mut self) -> Option<Message> {
        let mut message = Message::default();
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line).ok()? == 0 {
                return None;
            }
            // Lengths of chunks stand between messages.
            match line.trim_end().split_once(": ") {
                Some(("id", id)) => message.id = id.parse().unwrap(),
                Some(("event", name)) => name.clone_into(&mut message.name),
                Some(("data", data)) => message.data = serde_json::from_str(data).unwrap(),
                _ if line == "\n" && !message.name.is_empty() => return Some(message),
                _ if line == "0\r\n" => return None,
                _ => {}
            }
        }
    }
}

/// A job of the model inside that takes a moment.
pub(super) fn small(seed: u64) -> Value {
    json!({
        "schema": "animatelcm/v1", "prompt": "a red circle moving left on a white background",
        "size": {"frames": 4}, "sampling": {"seed": seed, "steps": 1},
    })
}

/// A job that lasts until somebody stops it.
pub(super) fn long(seed: u64) -> Value {
    let mut job = small(seed);
    job["size"]["frames"] = json!(16);
    job["sampling"] = json!({"seed": seed, "steps": 900, "sampler": "euler"});
    job
}

/// A PNG of 48 by 32 pixels.
pub(super) fn picture() -> Vec<u8> {
    let image = image::RgbImage::from_fn(48, 32, |x, y| image::Rgb([x as u8 * 5, y as u8 * 7, 90]));
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}
