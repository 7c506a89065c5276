//! `solewriter dashboard`: the page is there while the stress run goes on, and the run ends as one without it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Stdio;

use crate::{json, solewriter, text};

/// The status and the body of an answer.
fn get(address: &str, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

#[test]
fn the_page_is_served_while_the_run_goes_on() {
    let load = ["--listen", "127.0.0.1:0", "--duration", "2s", "--writers", "4", "--foreign-writers", "0"];
    let mut command = solewriter(["dashboard", "--json", "-"]);
    let mut child = command.args(load).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let address = lines.by_ref().find_map(|line| {
        let line = line.unwrap();
        let (_, rest) = line.split_once("http://")?;
        Some(rest.split_once('/').unwrap().0.to_owned())
    });
    let address = address.expect("it says where it listens");
    let (status, page) = get(&address, "/");
    assert!(status.contains("200") && page.contains("<html"), "{status}");
    let (status, health) = get(&address, "/health");
    assert!(status.contains("200") && health.contains(r#""state":"#), "{status} {health}");
    assert!(get(&address, "/metrics").1.contains(r#"solewriter_commands_total{database="stress""#));
    drop(lines.by_ref().map(Result::unwrap).collect::<Vec<_>>());
    let report = json(&child.wait_with_output().unwrap(), 0);
    assert!(report["acknowledged"].as_u64().unwrap() > 0);
    assert_eq!(report["acknowledged"], report["verified"]);
}

#[test]
fn a_port_that_is_taken_is_refused_with_status_2() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for listen in [address.as_str(), "nowhere"] {
        let output = solewriter(["dashboard", "--listen", listen, "--duration", "1s"]).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).contains("--listen"), "{}", text(&output.stderr));
    }
}
