//! A headless Chromium that a test drives.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fantoccini::actions::{InputSource, KeyAction, KeyActions};
use fantoccini::wd::WebDriverCompatibleCommand;
use fantoccini::{Client, ClientBuilder, key::Key};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::HANG;

/// Set to `required`, a browser that is not there is a failure; else the test is skipped.
const BROWSER: &str = "SOLEWRITER_BROWSER";

/// A browser with a profile of its own; it ends with this, also when the test has failed.
pub(crate) struct Browser {
    pub(crate) client: Client,
    session: String,
    driver: Driver,
    _profile: TempDir,
}

struct Driver {
    process: Child,
    port: u16,
}

impl Browser {
    pub(crate) async fn open() -> Option<Self> {
        let driver = Driver::start()?;
        let profile = tempfile::tempdir().unwrap();
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            &format!("--user-data-dir={}", profile.path().display()),
        ];
        let capabilities = json!({
            "goog:chromeOptions": { "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL", "performance": "ALL" },
        });
        let client = ClientBuilder::new(HttpConnector::new())
            .capabilities(serde_json::from_value(capabilities).unwrap())
            .connect(&format!("http://127.0.0.1:{}", driver.port))
            .await
            .expect("a browser starts");
        let session = client.session_id().await.unwrap().expect("a session");
        Some(Self { client, session, driver, _profile: profile })
    }

    pub(crate) async fn run(&self, script: &str) -> Value {
        self.client.execute(script, Vec::new()).await.unwrap()
    }

    /// What the page shows in an element.
    pub(crate) async fn text(&self, id: &str) -> String {
        let script = format!("return document.getElementById('{id}').innerText");
        self.run(&script).await.as_str().unwrap_or_default().into()
    }

    /// Waits until a script answers true.
    pub(crate) async fn until(&self, script: &str) {
        let limit = Instant::now() + HANG;
        while self.run(&format!("return Boolean({script})")).await != json!(true) {
            let shown = self.run("return document.body.innerText").await;
            assert!(Instant::now() < limit, "never: {script}\n{}", shown.as_str().unwrap_or_default());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub(crate) async fn press(&self, key: Key) {
        let value = key.into();
        let keys = KeyActions::new("keys".into());
        let keys = keys.then(KeyAction::Down { value }).then(KeyAction::Up { value });
        self.client.perform_actions(keys).await.unwrap();
    }

    /// Sends a command of the Chrome DevTools Protocol.
    pub(crate) async fn devtools(&self, command: &str, parameters: Value) -> Value {
        let body = json!({ "cmd": command, "params": parameters });
        self.client.issue_cmd(Vendor { path: "goog/cdp/execute", body }).await.unwrap()
    }

    pub(crate) async fn set_size(&self, width: u32, height: u32) {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.devtools("Emulation.setDeviceMetricsOverride", size).await;
    }

    pub(crate) async fn prefer(&self, scheme: &str) {
        let feature = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.devtools("Emulation.setEmulatedMedia", feature).await;
    }

    async fn log(&self, kind: &str) -> Vec<Value> {
        let log =
            self.client.issue_cmd(Vendor { path: "se/log", body: json!({ "type": kind }) }).await.unwrap();
        log.as_array().unwrap().clone()
    }

    /// What the console has said since it was asked last.
    pub(crate) async fn console(&self) -> Vec<Value> {
        self.log("browser").await
    }

    /// How often the page has asked which host.
    pub(crate) async fn hosts(&self) -> BTreeMap<String, usize> {
        let mut hosts = BTreeMap::new();
        for entry in self.log("performance").await {
            let entry: Value = serde_json::from_str(entry["message"].as_str().unwrap()).unwrap();
            let event = &entry["message"];
            let is_request = ["Network.requestWillBeSent", "Network.webSocketCreated"]
                .contains(&event["method"].as_str().unwrap());
            let request = &event["params"];
            let address = request["request"]["url"].as_str().or(request["url"].as_str());
            // The page that every browser begins with is its own.
            let is_inside = |address: &str| address.starts_with("chrome:") || address.starts_with("data:");
            if let Some(address) = address.filter(|address| is_request && !is_inside(address)) {
                let host = address.split('/').nth(2).unwrap_or(address);
                *hosts.entry(host.to_owned()).or_default() += 1;
            }
        }
        hosts
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The driver ends its browser when it is told to, not when it is killed.
        if let Err(error) = self.driver.end_session(&self.session) {
            eprintln!("the browser may be left: {error}");
        }
    }
}

impl Driver {
    fn start() -> Option<Self> {
        let mut command = Command::new("chromedriver");
        command.arg("--port=0").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = match command.spawn() {
            Ok(process) => process,
            Err(error) => {
                let is_required = std::env::var(BROWSER).is_ok_and(|value| value == "required");
                assert!(!is_required, "chromedriver does not start: {error}");
                println!("skipped: chromedriver does not start: {error}");
                return None;
            }
        };
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let port = lines.map_while(Result::ok).find_map(|line| {
            line.strip_suffix('.')?.rsplit_once("started successfully on port ")?.1.parse().ok()
        });
        Some(Self { process, port: port.expect("the driver says where it listens") })
    }

    fn end_session(&self, session: &str) -> std::io::Result<()> {
        let mut driver = TcpStream::connect(("127.0.0.1", self.port))?;
        driver.set_read_timeout(Some(HANG))?;
        write!(driver, "DELETE /session/{session} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")?;
        driver.read(&mut [0; 256]).map(drop)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// A command beyond the standard, within the session.
#[derive(Debug)]
struct Vendor {
    path: &'static str,
    body: Value,
}

impl WebDriverCompatibleCommand for Vendor {
    fn endpoint(&self, base: &url::Url, session: Option<&str>) -> Result<url::Url, url::ParseError> {
        base.join(&format!("session/{}/{}", session.unwrap_or_default(), self.path))
    }

    fn method_and_body(&self, _: &url::Url) -> (http::Method, Option<String>) {
        (http::Method::POST, Some(self.body.to_string()))
    }
}
