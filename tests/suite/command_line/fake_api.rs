//! An API that answers what a test tells it to: for what a real daemon does not do on demand.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
};

use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// One request, as it came.
#[derive(Debug, Clone)]
pub struct Request {
    /// `GET /path?query`
    pub line: String,
    pub authorization: String,
    pub body: Vec<u8>,
    key: String,
}

/// What is answered.
pub enum Answer {
    Json(u16, &'static str),
    /// Chunks of text; a body that is cut off has no end.
    Text(&'static [&'static str], End),
    /// Without waiting for the body of the request.
    Early(u16, &'static str),
    /// Texts of a websocket.
    WebSocket(&'static [&'static str]),
}

#[derive(PartialEq, Eq)]
pub enum End {
    Whole,
    CutOff,
}

pub struct FakeApi {
    pub url: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl FakeApi {
    /// Serves until the process ends; `answer` is asked with `GET /path`.
    pub fn start(answer: impl Fn(&str) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://epinio.localhost:{}", listener.local_addr().expect("an address").port());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (seen, answer) = (Arc::clone(&requests), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (seen, answer) = (Arc::clone(&seen), Arc::clone(&answer));
                // A client that goes away ends its connection, and nothing else.
                std::thread::spawn(move || serve(stream, &*answer, &seen));
            }
        });
        Self { url, requests }
    }

    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().expect("no test panics with it").clone()
    }
}

fn serve(stream: TcpStream, answer: &dyn Fn(&str) -> Answer, seen: &Mutex<Vec<Request>>) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut stream = stream;
    loop {
        let (mut request, length) = read_head(&mut reader)?;
        let path = request.line.split('?').next().unwrap_or_default().to_owned();
        let answer = answer(&path);
        if !matches!(answer, Answer::Early(..)) {
            request.body = read_body(&mut reader, length)?;
        }
        let key = request.key.clone();
        seen.lock().ok()?.push(request);
        match answer {
            Answer::Json(status, text) => {
                let head = format!("HTTP/1.1 {status} x\r\nContent-Length: {}\r\n\r\n", text.len());
                stream.write_all(format!("{head}{text}").as_bytes()).ok()?;
            }
            Answer::Early(status, text) => {
                let head =
                    format!("HTTP/1.1 {status} x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", text.len());
                stream.write_all(format!("{head}{text}").as_bytes()).ok()?;
                return None;
            }
            Answer::Text(parts, end) => {
                stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").ok()?;
                for part in parts {
                    stream.write_all(format!("{:x}\r\n{part}\r\n", part.len()).as_bytes()).ok()?;
                }
                if end == End::CutOff {
                    return None;
                }
                stream.write_all(b"0\r\n\r\n").ok()?;
            }
            Answer::WebSocket(texts) => {
                let accept = derive_accept_key(key.as_bytes());
                let head = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket";
                stream.write_all(format!("{head}\r\nSec-WebSocket-Accept: {accept}\r\n\r\n").as_bytes()).ok()?;
                for text in texts {
                    // RFC 6455, 5.2: a whole text, not masked, shorter than 126 bytes.
                    stream.write_all(&[0x81, u8::try_from(text.len()).ok()?]).ok()?;
                    stream.write_all(text.as_bytes()).ok()?;
                }
                // Close, 1000.
                stream.write_all(&[0x88, 2, 0x03, 0xe8]).ok()?;
                return None;
            }
        }
    }
}

/// The head, and the length of the body: none for chunks.
fn read_head(reader: &mut BufReader<TcpStream>) -> Option<(Request, Option<usize>)> {
    let line = read_line(reader)?;
    let line = line.rsplit_once(' ')?.0.to_owned();
    let mut request = Request { line, authorization: String::new(), body: Vec::new(), key: String::new() };
    let mut length = Some(0);
    loop {
        let header = read_line(reader)?;
        if header.is_empty() {
            return Some((request, length));
        }
        let (name, value) = header.split_once(": ")?;
        match name.to_ascii_lowercase().as_str() {
            "authorization" => request.authorization = value.to_owned(),
            "sec-websocket-key" => request.key = value.to_owned(),
            "content-length" => length = value.parse().ok(),
            "transfer-encoding" => length = None,
            _ => {}
        }
    }
}

fn read_body(reader: &mut BufReader<TcpStream>, length: Option<usize>) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    if let Some(length) = length {
        body.resize(length, 0);
        reader.read_exact(&mut body).ok()?;
        return Some(body);
    }
    loop {
        let size = usize::from_str_radix(&read_line(reader)?, 16).ok()?;
        let start = body.len();
        body.resize(start + size, 0);
        reader.read_exact(&mut body[start..]).ok()?;
        read_line(reader)?;
        if size == 0 {
            return Some(body);
        }
    }
}

fn read_line(reader: &mut BufReader<TcpStream>) -> Option<String> {
    let mut line = String::new();
    match reader.read_line(&mut line).ok()? {
        0 => None,
        _ => Some(line.trim_end_matches(['\r', '\n']).to_owned()),
    }
}
