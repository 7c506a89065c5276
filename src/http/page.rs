//! The dashboard: a page and what it is made of, compiled in.

use std::hash::{DefaultHasher, Hash, Hasher};

use axum::extract::OriginalUri;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};

const PAGE: &str = include_str!("page/dashboard.html");
const STYLE: &str = include_str!("page/dashboard.css");
const SCRIPT: &str = include_str!("page/dashboard.js");
const ICON: &str = include_str!("page/icon.svg");

/// Where the page says that its files are.
const BASE: &str = "{base}";

pub(super) async fn page(OriginalUri(uri): OriginalUri) -> Response {
    let page = PAGE.replace(BASE, &base(uri.path()));
    ([(CONTENT_TYPE, "text/html; charset=utf-8")], page).into_response()
}

/// The folder of the page, relative to it, so that it works behind any prefix and behind proxies that cut one
/// off: `./` for `/ops/`, `./ops/` for `/ops`.
fn base(path: &str) -> String {
    let last = path.rsplit('/').next().unwrap_or_default();
    // An address may hold characters that mean something in HTML.
    let last = last.replace('&', "&amp;").replace('"', "&quot;").replace('\'', "&#39;");
    let last = last.replace('<', "&lt;").replace('>', "&gt;");
    if last.is_empty() { "./".into() } else { format!("./{last}/") }
}

pub(super) async fn style(headers: HeaderMap) -> Response {
    file("text/css; charset=utf-8", STYLE, &headers)
}

pub(super) async fn script(headers: HeaderMap) -> Response {
    file("text/javascript; charset=utf-8", SCRIPT, &headers)
}

pub(super) async fn icon(headers: HeaderMap) -> Response {
    file("image/svg+xml", ICON, &headers)
}

/// A file that a browser may keep, and asks for again by its tag, so that it never mixes two versions.
fn file(kind: &'static str, text: &'static str, headers: &HeaderMap) -> Response {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    let tag = format!("\"{:016x}\"", hasher.finish());
    let is_known = headers.get(IF_NONE_MATCH).is_some_and(|known| *known == tag);
    let about = [(ETAG, tag), (CACHE_CONTROL, "private, no-cache".into())];
    if is_known {
        return (StatusCode::NOT_MODIFIED, about).into_response();
    }
    (about, [(CONTENT_TYPE, kind)], text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_base_leads_from_the_page_to_its_folder() {
        for (path, expected) in [("/", "./"), ("/ops/", "./"), ("/ops", "./ops/"), ("/a/b", "./b/")] {
            assert_eq!(base(path), expected, "{path}");
        }
        assert_eq!(base(r#"/"><script>"#), "./&quot;&gt;&lt;script&gt;/");
    }
}
