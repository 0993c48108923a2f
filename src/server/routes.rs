//! All routes.

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::middleware::{from_fn_with_state, map_response_with_state};
use axum::response::Response;
use axum::routing::{MethodRouter, delete, get, post};

use super::answer::Problem;
use super::state::{App, Shared};
use super::{auth, content, events, guard, info, jobs, page, uploads, videos};

/// Bytes of a form beside its files.
const MARGIN: usize = 2 << 20;

/// Every path with its methods and handlers.
fn table() -> Vec<(&'static str, &'static str, MethodRouter<Shared>)> {
    vec![
        ("get", "/", get(page::index)),
        ("get", "/ui/{file}", get(page::file)),
        ("get", "/health", get(info::health)),
        ("get", "/ready", get(info::ready)),
        ("get", "/metrics", get(info::metrics)),
        ("get", "/openapi.json", get(info::document)),
        ("get", "/v1/models", get(info::models)),
        ("get", "/v1/models/{id}", get(info::model)),
        ("get", "/v1/capabilities", get(info::capabilities)),
        ("get", "/v1/workers", get(info::workers)),
        ("post", "/v1/login", post(auth::log_in)),
        ("delete", "/v1/login", delete(auth::log_out)),
        ("post", "/v1/uploads", post(uploads::create)),
        ("post", "/v1/inspect", post(uploads::inspect)),
        ("post", "/v1/jobs", post(jobs::create)),
        ("get", "/v1/jobs", get(jobs::list)),
        ("get", "/v1/jobs/{id}", get(jobs::get)),
        ("delete", "/v1/jobs/{id}", delete(jobs::delete)),
        ("post", "/v1/jobs/{id}/cancel", post(jobs::cancel)),
        ("get", "/v1/jobs/{id}/events", get(events::of_job)),
        ("get", "/v1/jobs/{id}/content", get(content::get)),
        ("get", "/v1/jobs/{id}/preview", get(content::preview)),
        ("get", "/v1/events", get(events::all)),
        ("post", "/v1/videos", post(videos::create)),
        ("get", "/v1/videos", get(videos::list)),
        ("post", "/v1/videos/edits", post(videos::unsupported)),
        ("post", "/v1/videos/extensions", post(videos::unsupported)),
        ("post", "/v1/videos/characters", post(videos::unsupported)),
        ("get", "/v1/videos/{id}", get(videos::get)),
        ("delete", "/v1/videos/{id}", delete(videos::delete)),
        ("post", "/v1/videos/{id}/cancel", post(videos::cancel)),
        ("post", "/v1/videos/{id}/remix", post(videos::remix)),
        ("get", "/v1/videos/{id}/content", get(videos::content)),
    ]
}

async fn no_route() -> Problem {
    Problem::not_found("route")
}

async fn no_method() -> Problem {
    let message = "the route has no such method";
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
}

/// Asks connections to close when the server is being stopped.
async fn closing(
    axum::extract::State(app): axum::extract::State<Shared>,
    mut answer: Response,
) -> Response {
    if app.stop.is_requested() {
        let close = axum::http::HeaderValue::from_static("close");
        answer.headers_mut().insert(axum::http::header::CONNECTION, close);
    }
    answer
}

/// All routes behind the guard.
pub(super) fn router(app: &Shared) -> Router {
    let mut router = Router::new();
    for (_, path, handler) in table() {
        router = router.route(path, handler);
    }
    let limit = usize::try_from(app.limits.upload).unwrap_or(usize::MAX).saturating_add(MARGIN);
    let app: Arc<App> = Arc::clone(app);
    router
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(DefaultBodyLimit::max(limit))
        .layer(from_fn_with_state(Arc::clone(&app), auth::authenticate))
        .layer(from_fn_with_state(Arc::clone(&app), guard::guard))
        .layer(map_response_with_state(Arc::clone(&app), closing))
        .with_state(app)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::openapi;
    use super::table;

    #[test]
    fn the_document_has_every_route_and_no_other() {
        let document = openapi::document();
        let documented: BTreeSet<(String, String)> = document["paths"]
            .as_object()
            .unwrap()
            .iter()
            .flat_map(|(path, methods)| {
                let methods = methods.as_object().unwrap().keys();
                methods.map(move |method| (method.clone(), path.clone()))
            })
            .collect();
        let routed: BTreeSet<(String, String)> =
            table().iter().map(|(method, path, _)| ((*method).into(), (*path).into())).collect();
        assert_eq!(documented, routed);
    }
}
