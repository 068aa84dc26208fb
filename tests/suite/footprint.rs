//! What a daemon costs: memory does not grow with what is uploaded. Figures beside a peer are in `tests/bench/`.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use crate::support::{Daemon, request};

/// Of the file in the archive.
const CONTENT: u64 = 2 << 30;
/// What an upload may add to the resident memory of the daemon, in KiB.
const MOST_KIB: u64 = 32 << 10;
const DEADLINE: Duration = Duration::from_secs(300);

#[test]
fn an_upload_of_two_gibibytes_adds_little_memory() {
    let daemon = Daemon::start();
    let credential = format!("admin:{}", daemon.password);
    let body = r#"{"name":"big"}"#;
    let created =
        request(&["-u", &credential, "-d", body, &daemon.api("/api/v1/namespaces/workspace/applications")]).unwrap();
    assert_eq!(created.status, 201, "{created:?}");
    // The first upload brings what every later one needs as well.
    assert!(upload(&daemon, 1 << 20).starts_with("HTTP/1.1 200"));
    let before = memory_kib(&daemon, "VmRSS");
    reset_peak(&daemon);
    let answer = upload(&daemon, CONTENT);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let added = memory_kib(&daemon, "VmHWM").saturating_sub(before);
    assert!(added <= MOST_KIB, "the upload added {added} KiB to {before} KiB; at most {MOST_KIB} KiB are allowed");
}

/// Uploads a tar with one file of zeros, as `epinio push` does; the answer.
pub fn upload(daemon: &Daemon, content: u64) -> String {
    let mut header = tar::Header::new_ustar();
    header.set_path("zeros").unwrap();
    header.set_size(content);
    header.set_mode(0o644);
    header.set_cksum();
    let head = "--edge\r\nContent-Disposition: form-data; name=\"file\"; filename=\"blob.tar\"\r\n\r\n";
    let tail = "\r\n--edge--\r\n";
    let length = head.len() as u64 + 512 + content + 1024 + tail.len() as u64;
    let mut stream = TcpStream::connect(("127.0.0.1", daemon.port)).expect("the daemon listens");
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let credential = base64(&format!("admin:{}", daemon.password));
    write!(
        stream,
        "POST /api/v1/namespaces/workspace/applications/big/store HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         Authorization: Basic {credential}\r\nContent-Type: multipart/form-data; boundary=edge\r\n\
         Content-Length: {length}\r\n\r\n{head}"
    )
    .expect("the head is taken");
    stream.write_all(header.as_bytes()).expect("the header is taken");
    let zeros = vec![0; 1 << 20];
    for _ in 0..content / zeros.len() as u64 {
        stream.write_all(&zeros).expect("the content is taken");
    }
    stream.write_all(&zeros[..1024]).and_then(|()| stream.write_all(tail.as_bytes())).expect("the end is taken");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

pub fn reset_peak(daemon: &Daemon) {
    fs::write(format!("/proc/{}/clear_refs", daemon.pid()), "5").expect("the peak can be set back");
}

pub fn memory_kib(daemon: &Daemon, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).expect("the daemon runs");
    let line = status.lines().find(|line| line.starts_with(field)).expect("the field");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
}

fn base64(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}
