//! Who may speak to the server at all, and headers of every answer.
//!
//! A page of another site can have its name lead to this machine (DNS rebinding), and browsers send forms anywhere. So
//! the `Host` must be a name of this machine, and an `Origin` that is sent must be the same.

use std::net::IpAddr;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::answer::Problem;
use super::state::Shared;

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; \
                      media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'self'; \
                      frame-ancestors 'none'";

const HEADERS: [(HeaderName, &str); 5] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
];

/// Refuses foreign hosts and origins; sets headers; counts.
pub(super) async fn guard(State(app): State<Shared>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let uri = request.uri().authority().cloned();
    let mut answer = match check(request.headers(), uri.as_ref(), &app.allow_hosts) {
        Ok(()) => next.run(request).await,
        Err(message) => {
            Problem::new(StatusCode::FORBIDDEN, "forbidden_origin", message).into_response()
        }
    };
    for (name, value) in HEADERS {
        answer.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    let route = route.as_deref().unwrap_or("other");
    app.metrics.request(&method, route, answer.status(), started.elapsed());
    answer
}

fn check(headers: &HeaderMap, uri: Option<&Authority>, allowed: &[String]) -> Result<(), String> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (host, more) = (hosts.next(), hosts.next());
    let host = host.filter(|_| more.is_none()).and_then(|host| host.to_str().ok());
    let Some(host) = host else { return Err("a request has one Host header".into()) };
    if uri.is_some_and(|uri| !uri.as_str().eq_ignore_ascii_case(host)) {
        return Err("the request's address and its Host differ".into());
    }
    if !is_known(host, allowed) {
        let name: String = host.chars().take(100).collect();
        return Err(format!("this server is not called `{name}`; --allow-host would add the name"));
    }
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let (origin, more) = (origins.next(), origins.next());
    let Some(origin) = origin else { return Ok(()) };
    let origin = origin.to_str().ok().filter(|_| more.is_none());
    let own = origin.and_then(|origin| {
        let (scheme, rest) = origin.split_once("://")?;
        let port = match scheme {
            "http" => 80,
            "https" => 443,
            _ => return None,
        };
        let (name, of) = parts(rest)?;
        let (own_name, own_port) = parts(host)?;
        Some(name.eq_ignore_ascii_case(own_name) && of.unwrap_or(port) == own_port.unwrap_or(port))
    });
    match own {
        Some(true) => Ok(()),
        _ => Err("the request comes from a page of another site".into()),
    }
}

/// Whether a `Host` is a loopback name, an address, or one of the allowed names.
fn is_known(host: &str, allowed: &[String]) -> bool {
    let Some((name, _)) = parts(host) else { return false };
    let is_address = match name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
        Some(inner) => matches!(inner.parse(), Ok(IpAddr::V6(_))),
        None => matches!(name.parse(), Ok(IpAddr::V4(_))),
    };
    let is_same = |known: &String| known.eq_ignore_ascii_case(name);
    is_address || name.eq_ignore_ascii_case("localhost") || allowed.iter().any(is_same)
}

/// The name and the port of a `Host`.
fn parts(host: &str) -> Option<(&str, Option<u16>)> {
    let end = host.rfind(']').map_or(0, |at| at + 1);
    let (name, port) = match host.get(end..)?.find(':') {
        Some(colon) => {
            let digits = host.get(end + colon + 1..)?;
            let is_number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
            (host.get(..end + colon)?, Some(digits.parse().ok().filter(|_| is_number)?))
        }
        None => (host, None),
    };
    (!name.is_empty()).then_some((name, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(lines: &[(&'static str, &'static str)]) -> bool {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_static(value));
        }
        check(&headers, None, &["Clips.example".to_owned()]).is_ok()
    }

    #[test]
    fn hosts_are_names_of_this_machine() {
        for host in ["localhost", "LOCALHOST:7870", "127.0.0.1:7870", "10.0.0.7", "[::1]:7870"] {
            assert!(checked(&[("host", host)]), "{host}");
        }
        assert!(checked(&[("host", "clips.EXAMPLE:443")]));
        for host in [
            "",
            ":7870",
            "rebind.test",
            "rebind.test:7870",
            "localhost.rebind.test",
            "localhost:",
            "localhost:x",
            "localhost:99999",
            "[::1",
            "::1",
            "[127.0.0.1]",
            "127.0.0.1.rebind.test",
            "localhost, rebind.test",
        ] {
            assert!(!checked(&[("host", host)]), "{host}");
        }
        assert!(!checked(&[]));
        assert!(!checked(&[("host", "localhost"), ("host", "localhost")]));
    }

    #[test]
    fn origins_are_the_same_host_and_port() {
        let from = |origin| checked(&[("host", "localhost:7870"), ("origin", origin)]);
        assert!(from("http://localhost:7870"));
        assert!(checked(&[("host", "clips.example"), ("origin", "https://clips.example")]));
        assert!(checked(&[("host", "clips.example"), ("origin", "https://clips.example:443")]));
        for origin in [
            "null",
            "",
            "http://localhost",
            "http://localhost:8080",
            "http://127.0.0.1:7870",
            "http://evil.test",
            "file://localhost:7870",
            "localhost:7870",
        ] {
            assert!(!from(origin), "{origin}");
        }
    }
}
