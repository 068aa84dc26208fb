//! A small web server, as applications have one: `guest http VERSION`. It says what it was asked, streams both ways,
//! tunnels, and fails on purpose.

use std::{
    env, fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::exit,
    time::Duration,
};

/// Made by `POST /go`; `GET /events` waits for it.
const GO: &str = "/tmp/go";

struct Request {
    method: String,
    path: String,
    headers: Vec<(String, String)>,
}

pub fn serve(version: &str) -> ! {
    let port = env::var("PORT").expect("PORT");
    let listener = TcpListener::bind(format!("0.0.0.0:{port}")).expect("the port is free");
    println!("version {version} listens on {port}");
    for stream in listener.incoming().flatten() {
        let version = version.to_owned();
        std::thread::spawn(move || {
            // Whoever asked may be gone.
            let _ = converse(stream, &version);
        });
    }
    exit(0)
}

fn converse(mut out: TcpStream, version: &str) -> io::Result<()> {
    let mut reader = BufReader::new(out.try_clone()?);
    while let Some(request) = Request::read(&mut reader)? {
        if request.header("upgrade").is_some() {
            out.write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")?;
            return echo(&mut reader, &mut out);
        }
        match request.path.as_str() {
            "/crash" => exit(7),
            "/hang-up" => return Ok(()),
            "/events" => events(&mut out)?,
            "/stream" => stream(&mut reader, &mut out)?,
            _ => {
                let sent = request.body(&mut reader)?;
                if request.path == "/go" {
                    fs::write(GO, "go")?;
                }
                answer(&mut out, &request.says(version, sent.len()))?;
            }
        }
    }
    Ok(())
}

impl Request {
    fn read(reader: &mut impl BufRead) -> io::Result<Option<Self>> {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let mut words = line.split_whitespace().map(str::to_owned);
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            headers.push((name.to_ascii_lowercase(), value.to_owned()));
        }
        Ok(Some(Self { method, path, headers }))
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    fn body(&self, reader: &mut impl BufRead) -> io::Result<Vec<u8>> {
        let mut body = vec![0; self.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0)];
        reader.read_exact(&mut body)?;
        Ok(body)
    }

    /// What the server understood.
    fn says(&self, version: &str, sent: usize) -> String {
        let headers: String = self.headers.iter().map(|(name, value)| format!("{name}: {value}\n")).collect();
        format!("version {version}\n{} {}\nbody of {sent}\n{headers}", self.method, self.path)
    }
}

fn answer(out: &mut TcpStream, text: &str) -> io::Result<()> {
    out.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len()).as_bytes())
}

fn echo(reader: &mut impl Read, out: &mut TcpStream) -> io::Result<()> {
    let mut bytes = [0; 1024];
    loop {
        match reader.read(&mut bytes)? {
            0 => return Ok(()),
            read => out.write_all(&bytes[..read])?,
        }
    }
}

/// Two server-sent events: the second comes when somebody says so.
fn events(out: &mut TcpStream) -> io::Result<()> {
    out.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")?;
    chunk(out, b"data: first\n\n")?;
    while !Path::new(GO).exists() {
        std::thread::sleep(Duration::from_millis(10));
    }
    chunk(out, b"data: second\n\n")?;
    chunk(out, b"")
}

/// Gives each chunk back as it comes.
fn stream(reader: &mut impl BufRead, out: &mut TcpStream) -> io::Result<()> {
    out.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let length = usize::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
        let mut bytes = vec![0; length + 2];
        reader.read_exact(&mut bytes)?;
        chunk(out, &bytes[..length])?;
        if length == 0 {
            return Ok(());
        }
    }
}

fn chunk(out: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    let framed = [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat();
    out.write_all(&framed)
}
