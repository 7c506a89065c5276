use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode, header};
use serde_json::{Value, json};
use tempfile::TempDir;
use tower::ServiceExt;

use super::*;
use crate::verify::tests::marketplace;

/// An import whose entries are never ready: it is at work until somebody cancels it.
const NEVER_READY: Duration = Duration::from_secs(3600);

/// The routes over a small database: `a`, a composite with `b` as its child, and `c`, in one source.
struct Site {
    shop: Arc<Shop>,
    router: Router,
    _dir: TempDir,
}

async fn site(work: Duration) -> Site {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (marketplace, connection) = marketplace(dir.path());
    drop(connection);
    let writer = SoleWriter::open(&dir.path().join("marketplace.db"), work).await.expect("it opens");
    let shop = Shop::new(writer, &marketplace);
    let operations = http::router(shop.writer.database.clone());
    Site { router: router(Arc::clone(&shop), operations), shop, _dir: dir }
}

impl Site {
    async fn send(&self, request: Request<Body>) -> (StatusCode, Value) {
        let answer = self.router.clone().oneshot(request).await.expect("it never fails");
        let status = answer.status();
        let body = to_bytes(answer.into_body(), usize::MAX).await.expect("a body");
        (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    async fn get(&self, uri: &str) -> (StatusCode, Value) {
        self.send(Request::get(uri).body(Body::empty()).expect("a request")).await
    }

    async fn post(&self, uri: &str, body: Value) -> (StatusCode, Value) {
        let request = Request::post(uri).header(header::CONTENT_TYPE, "application/json");
        self.send(request.body(Body::from(body.to_string())).expect("a request")).await
    }

    async fn id_of(&self, name: &str) -> String {
        let (_, listed) = self.get("/entries?source=shelf-1").await;
        let entries = listed["entries"].as_array().expect("entries").iter();
        let mut ids = entries.filter(|entry| entry["name"] == name).map(|entry| &entry["id"]);
        ids.next().and_then(Value::as_str).expect("it is listed").to_owned()
    }

    async fn start(&self) -> (StatusCode, String) {
        let (status, body) = self.post("/imports", json!({ "source": "shelf-1" })).await;
        (status, body["id"].as_str().unwrap_or_default().to_owned())
    }
}

#[tokio::test]
async fn a_source_is_listed_page_by_page() {
    let site = site(Duration::ZERO).await;
    let (status, listed) = site.get("/entries?source=shelf-1").await;
    let entries = listed["entries"].as_array().expect("entries").iter();
    let names: Vec<_> = entries.filter_map(|entry| entry["name"].as_str()).collect();
    assert_eq!((status, names), (StatusCode::OK, vec!["a", "b", "c"]));
    let by_id = format!("/entries?page=2&source={}", site.shop.sources[0].id);
    assert_eq!(site.get(&by_id).await.1["entries"], json!([]));
    for (uri, status) in [
        ("/entries?source=no-such", StatusCode::NOT_FOUND),
        ("/entries", StatusCode::BAD_REQUEST),
        ("/entries?source=shelf-1&page=0", StatusCode::BAD_REQUEST),
        ("/entries?source=shelf-1&page=4294967295", StatusCode::OK),
    ] {
        assert_eq!(site.get(uri).await.0, status, "{uri}");
    }
}

#[tokio::test]
async fn words_are_found_and_no_text_is_an_error_of_ours() {
    let site = site(Duration::ZERO).await;
    let (status, found) = site.get("/entries/search?q=c%20X").await;
    assert_eq!((status, &found[0]["name"]), (StatusCode::OK, &json!("c")));
    assert_eq!(found[0]["source"], json!(site.shop.sources[0].id));
    assert_eq!(site.get("/entries/search?q=zebra").await, (StatusCode::OK, json!([])));
    for (q, status) in [
        ("%22", StatusCode::BAD_REQUEST),
        ("", StatusCode::BAD_REQUEST),
        ("a%00b", StatusCode::BAD_REQUEST),
        ("x%22y", StatusCode::OK),
        ("nope:a", StatusCode::OK),
        ("AND", StatusCode::OK),
        ("(a", StatusCode::OK),
        ("a*)%20NOT", StatusCode::OK),
        ("%5Ea%20%2B%20-b%20NEAR(", StatusCode::OK),
    ] {
        assert_eq!(site.get(&format!("/entries/search?q={q}")).await.0, status, "{q}");
    }
    // The longest there may be, all of it words.
    let longest = format!("/entries/search?q={}", "a+".repeat(100));
    assert_eq!(site.get(&longest).await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_rename_keeps_the_rules() {
    let site = site(Duration::ZERO).await;
    let id = site.id_of("c").await;
    let uri = format!("/entries/{id}/rename");
    let renamed = site.post(&uri, json!({ "source": "shelf-1", "name": "  sea " })).await;
    assert_eq!(renamed, (StatusCode::OK, json!({ "id": id, "name": "sea", "status": "new" })));
    assert_eq!(site.id_of("sea").await, id);
    for name in ["", "   ", "a/b", "a\\b", &"x".repeat(101)] {
        let (status, body) = site.post(&uri, json!({ "source": "shelf-1", "name": name })).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{name:?}");
        assert!(body["error"].is_string());
    }
    let wrong = site.post(&uri, json!({ "source": "shelf-2", "name": "sea" })).await;
    assert_eq!(wrong.0, StatusCode::BAD_REQUEST);
    let absent = site.post("/entries/none/rename", json!({ "source": "shelf-1", "name": "sea" })).await;
    assert_eq!(absent.0, StatusCode::NOT_FOUND);
    assert_eq!(site.post(&uri, json!("sea")).await.0, StatusCode::UNPROCESSABLE_ENTITY);
}

#[tokio::test]
async fn an_import_goes_on_in_the_background_and_is_written_down() {
    let site = site(Duration::ZERO).await;
    let (status, id) = site.start().await;
    assert_eq!(status, StatusCode::ACCEPTED);
    site.shop.imports.ended().await;
    let (status, import) = site.get(&format!("/imports/{id}")).await;
    assert_eq!((status, &import["running"]), (StatusCode::OK, &Value::Null));
    // The composite and its child are one entry of the import.
    assert_eq!((&import["record"]["state"], &import["record"]["accepted"]), (&json!("complete"), &json!(2)));
    let (_, listed) = site.get("/entries?source=shelf-1").await;
    let entries = listed["entries"].as_array().expect("entries");
    assert!(entries.iter().all(|entry| entry["status"] == "imported"), "{listed}");
    assert_eq!(site.get("/imports").await.1["records"][0]["id"], json!(id));
    let ended = site.post(&format!("/imports/{id}/pause"), Value::Null).await;
    assert_eq!(ended.0, StatusCode::CONFLICT);
}

#[tokio::test]
async fn an_import_is_controlled_by_its_id_and_one_of_a_source_runs_at_a_time() {
    let site = site(NEVER_READY).await;
    let (status, id) = site.start().await;
    assert_eq!(status, StatusCode::ACCEPTED);
    assert_eq!(site.start().await.0, StatusCode::CONFLICT);
    let uri = format!("/imports/{id}");
    assert_eq!(site.get(&uri).await.0, StatusCode::OK);
    assert_eq!(site.post(&format!("{uri}/pause"), Value::Null).await.0, StatusCode::NO_CONTENT);
    while site.get(&uri).await.1["running"]["state"] != "paused" {
        tokio::task::yield_now().await;
    }
    assert_eq!(site.post(&format!("{uri}/resume"), Value::Null).await.0, StatusCode::NO_CONTENT);
    assert_eq!(site.get("/imports").await.1["running"][0]["state"], "running");
    assert_eq!(site.post(&format!("{uri}/cancel"), Value::Null).await.0, StatusCode::NO_CONTENT);
    site.shop.imports.ended().await;
    assert_eq!(site.get(&uri).await.1["record"]["state"], "cancelled");
    assert_eq!(site.start().await.0, StatusCode::ACCEPTED);
    site.shop.imports.cancel_all().await;

    assert_eq!(site.post("/imports", json!({ "source": "none" })).await.0, StatusCode::NOT_FOUND);
    assert_eq!(site.get("/imports/none").await.0, StatusCode::NOT_FOUND);
    assert_eq!(site.post("/imports/none/cancel", Value::Null).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn the_index_and_the_dashboard_are_there() {
    let site = site(Duration::ZERO).await;
    assert_eq!(site.get("/").await.0, StatusCode::OK);
    assert_eq!(site.get("/ops/").await.0, StatusCode::OK);
    assert_eq!(site.get("/ops/health").await.1["state"], "healthy");
}
