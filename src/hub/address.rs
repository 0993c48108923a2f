//! URLs: redirect targets, and the origin that a token is sent to.

use ureq::http::Uri;

/// Origin of a URL: scheme, host and port. A token is only sent to one origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    is_secure: bool,
    host: String,
    port: u16,
}

impl Origin {
    /// The origin of a URL; `None` if it is not an http or https URL.
    pub(super) fn of(uri: &Uri) -> Option<Self> {
        let (is_secure, usual) = match uri.scheme_str() {
            Some("http") => (false, 80),
            Some("https") => (true, 443),
            _ => return None,
        };
        let host = uri.host().filter(|host| !host.is_empty())?;
        let authority = uri.authority()?.as_str();
        let place = authority.rsplit_once('@').map_or(authority, |(_, place)| place);
        let port = match uri.port_u16() {
            Some(port) => port,
            None if place == host => usual,
            // The port is not a number.
            None => return None,
        };
        Some(Self { is_secure, host: host.to_ascii_lowercase(), port })
    }
}

/// Target URL of a redirect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) uri: Uri,
    /// Whether the redirect contains a host, even if it is the same one.
    pub(super) is_absolute: bool,
}

/// Resolves a `Location` header against `base`: RFC 3986, section 5.2, except for dots in paths, which servers
/// resolve.
pub(super) fn follow(base: &Uri, location: &str) -> Result<Target, &'static str> {
    const NO_ADDRESS: &str = "it redirects to something that is not a web address";
    let from = Origin::of(base).ok_or(NO_ADDRESS)?;
    let (Some(scheme), Some(authority)) = (base.scheme_str(), base.authority()) else {
        return Err(NO_ADDRESS);
    };
    let location = location.split('#').next().unwrap_or_default();
    let is_absolute = has_scheme(location) || location.starts_with("//");
    let text = if location.is_empty() {
        return Err("it redirects without saying where to");
    } else if has_scheme(location) {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else if location.starts_with('?') {
        format!("{scheme}://{authority}{}{location}", base.path())
    } else {
        let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{location}")
    };
    let uri: Uri = text.parse().map_err(|_| NO_ADDRESS)?;
    let to = Origin::of(&uri).ok_or(NO_ADDRESS)?;
    if from.is_secure && !to.is_secure {
        return Err("it redirects from https to http");
    }
    Ok(Target { uri, is_absolute })
}

fn has_scheme(text: &str) -> bool {
    let Some((scheme, _)) = text.split_once(':') else { return false };
    scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(text: &str) -> Option<Origin> {
        Origin::of(&text.parse().ok()?)
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let hub = origin("https://hub.example/a/b").unwrap();
        for same in ["https://hub.example", "https://HUB.example:443/x?y", "HTTPS://hub.example"] {
            assert_eq!(origin(same).as_ref(), Some(&hub), "{same}");
        }
        for other in [
            "http://hub.example/",
            "http://hub.example:443/",
            "https://hub.example:444/",
            "https://hub.example./",
            "https://cdn.hub.example/",
            "https://hub.example.evil/",
            "https://hub.example@evil/",
            "https://evil/hub.example",
        ] {
            assert_ne!(origin(other).unwrap(), hub, "{other}");
        }
        assert_ne!(origin("http://127.0.0.1:8080"), origin("http://127.0.0.2:8080"));
        assert_ne!(origin("http://127.0.0.1:8080"), origin("http://127.0.0.1:8081"));
        assert_ne!(origin("http://[::1]:8080"), origin("http://[::1]:8081"));
        for none in ["file:///etc/passwd", "ftp://hub.example", "/a", "https://hub.example:99999"] {
            assert_eq!(origin(none), None, "{none}");
        }
    }

    #[test]
    fn a_redirect_leads_where_its_location_says() {
        let base: Uri = "https://hub.example:8443/a/b?c".parse().unwrap();
        for (location, target, is_absolute) in [
            ("https://cdn.example/x?y=1#z", "https://cdn.example/x?y=1", true),
            ("//cdn.example/x", "https://cdn.example/x", true),
            ("https://hub.example:8443/x", "https://hub.example:8443/x", true),
            ("/x/y?z", "https://hub.example:8443/x/y?z", false),
            ("?z", "https://hub.example:8443/a/b?z", false),
            ("x:y/z", "", true),
            ("z", "https://hub.example:8443/a/z", false),
            ("1:2/z", "https://hub.example:8443/a/1:2/z", false),
        ] {
            match follow(&base, location) {
                Ok(found) => {
                    assert_eq!(
                        (found.uri.to_string().as_str(), found.is_absolute),
                        (target, is_absolute)
                    );
                }
                Err(_) => assert_eq!(target, "", "{location}"),
            }
        }
        for (wrong, words) in [
            ("", "without saying where"),
            ("#a", "without saying where"),
            ("http://hub.example:8443/x", "from https to http"),
            ("file:///etc/passwd", "not a web address"),
            ("data:text/plain,x", "not a web address"),
            ("https://", "not a web address"),
            ("https://a b/", "not a web address"),
        ] {
            let reason = follow(&base, wrong).unwrap_err();
            assert!(reason.contains(words), "{wrong}: {reason}");
        }
        // A redirect from http to https is allowed.
        let plain: Uri = "http://hub.example/a".parse().unwrap();
        assert!(follow(&plain, "https://hub.example/a").is_ok());
    }
}
