//! The answers are those that the server's own document describes.

use serde_json::{Value, json};

use super::client::{Server, small};
use crate::support::program::Folder;

/// What is wrong with a value by a schema: the part of JSON Schema that the document uses.
fn faults(value: &Value, schema: &Value, document: &Value, at: &str) -> Vec<String> {
    if let Some(reference) = schema["$ref"].as_str() {
        let inner = document.pointer(reference.trim_start_matches('#'));
        return match inner {
            Some(inner) => faults(value, inner, document, at),
            None => vec![format!("{reference} is not in the document")],
        };
    }
    if let Some(options) = schema["anyOf"].as_array() {
        let fits = |option: &Value| faults(value, option, document, at).is_empty();
        return if options.iter().any(fits) {
            vec![]
        } else {
            vec![format!("{at}: {value} is none")]
        };
    }
    let mut found = Vec::new();
    let kinds = match &schema["type"] {
        Value::String(kind) => vec![kind.as_str()],
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        _ => vec![],
    };
    let is_kind = |kind: &&str| match *kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        _ => value.is_null(),
    };
    if !kinds.is_empty() && !kinds.iter().any(is_kind) {
        found.push(format!("{at}: {value} is not {kinds:?}"));
    }
    if schema.get("const").is_some_and(|only| only != value) {
        found.push(format!("{at}: {value} is not {}", schema["const"]));
    }
    if schema["enum"].as_array().is_some_and(|all| !all.contains(value)) {
        found.push(format!("{at}: {value} is not of {}", schema["enum"]));
    }
    if let (Some(items), Some(schema)) = (value.as_array(), schema.get("items")) {
        for item in items {
            found.extend(faults(item, schema, document, at));
        }
    }
    if let Some(fields) = value.as_object() {
        for name in schema["required"].as_array().into_iter().flatten() {
            if !fields.contains_key(name.as_str().unwrap()) {
                found.push(format!("{at}: {name} is missing"));
            }
        }
        for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
            if let Some(field) = fields.get(name) {
                found.extend(faults(field, schema, document, &format!("{at}.{name}")));
            }
        }
    }
    found
}

#[test]
fn answers_are_those_of_the_document() {
    let folder = Folder::new();
    let server = Server::start(&folder, &[]);
    let document = server.json("/openapi.json");
    let check = |method: &str, route: &str, status: u16, value: &Value| {
        let call = &document["paths"][route][method];
        let responses = &call["responses"];
        let status = status.to_string();
        let described = responses.get(&status).unwrap_or(&responses["default"]);
        let schema = &described["content"]["application/json"]["schema"];
        assert!(schema.is_object(), "{method} {route} {status} is not described");
        let found = faults(value, schema, &document, route);
        assert!(found.is_empty(), "{found:#?}");
    };
    let get = |route: &str, path: &str| {
        let answer = server.get(path);
        check("get", route, answer.status, &answer.json());
    };
    let picture = super::client::picture();
    let upload = server.request("POST", "/v1/uploads").form(&[], &[("file", "a.png", &picture)]);
    let upload = upload.send();
    check("post", "/v1/uploads", upload.status, &upload.json());
    let made = server.request("POST", "/v1/jobs?format=gif").json(&small(1)).send();
    check("post", "/v1/jobs", made.status, &made.json());
    let id = made.json()["id"].as_str().unwrap().to_owned();
    get("/v1/jobs/{id}", &format!("/v1/jobs/{id}"));
    get("/v1/videos/{id}", &format!("/v1/videos/{id}"));
    server.ended(&id);
    get("/v1/jobs/{id}", &format!("/v1/jobs/{id}"));
    get("/v1/videos/{id}", &format!("/v1/videos/{id}"));
    get("/v1/jobs/{id}", "/v1/jobs/none");
    for route in [
        "/v1/jobs",
        "/v1/videos",
        "/v1/models",
        "/v1/workers",
        "/v1/capabilities",
        "/health",
        "/ready",
        "/openapi.json",
    ] {
        get(route, route);
    }
    get("/v1/models/{id}", "/v1/models/pocket");
    let clip = server.get(&format!("/v1/jobs/{id}/content")).body;
    let inspected = server.request("POST", "/v1/inspect").form(&[], &[("file", "a.gif", &clip)]);
    let inspected = inspected.send();
    check("post", "/v1/inspect", inspected.status, &inspected.json());
    let post = |route: &str, path: &str, body: Value| {
        let answer = server.request("POST", path).json(&body).send();
        check("post", route, answer.status, &answer.json());
    };
    post("/v1/videos", "/v1/videos", json!({"prompt": "a red circle", "num_frames": 2}));
    post("/v1/videos", "/v1/videos", json!({"prompt": ""}));
    post("/v1/jobs", "/v1/jobs", json!({"schema": "x"}));
    post("/v1/videos/edits", "/v1/videos/edits", json!({}));
    post("/v1/login", "/v1/login", json!({"key": "x"}));
    let remix = format!("/v1/videos/{id}/remix");
    post("/v1/videos/{id}/remix", &remix, json!({"prompt": "a blue ring"}));
    post("/v1/videos/{id}/cancel", &format!("/v1/videos/{id}/cancel"), json!({}));
    post("/v1/jobs/{id}/cancel", &format!("/v1/jobs/{id}/cancel"), json!({}));
    let gone = server.send("DELETE", &format!("/v1/videos/{id}"));
    check("delete", "/v1/videos/{id}", gone.status, &gone.json());
}
