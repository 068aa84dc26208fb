//! Patience with a registry that is away: its daemon starts again, or another one takes its place, and what was built
//! should not be lost by that.

use std::time::{Duration, Instant};

use crate::{oci::ClientError, telemetry};

/// How long a registry may be away, from when that was first noticed. A daemon that died without a word is replaced by then.
const AWAY: Duration = Duration::from_secs(150);
const PAUSE: Duration = Duration::from_secs(1);

/// Asks again while the registry does not answer. What is asked may be done twice.
pub(super) async fn patiently<T>(ask: impl AsyncFn() -> Result<T, ClientError>) -> Result<T, ClientError> {
    let mut away = None;
    loop {
        match ask().await {
            Err(error) if error.is_away() && away.is_none_or(|since: Instant| since.elapsed() < AWAY) => {
                if away.is_none() {
                    println!("waiting for the registry: {}", telemetry::chain(&error));
                    away = Some(Instant::now());
                }
                tokio::time::sleep(PAUSE).await;
            }
            answered => return answered,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;
    use crate::oci::{Client, Compression};

    #[tokio::test]
    async fn a_layer_whose_upload_is_cut_off_is_sent_again() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            let mut cut = 0;
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut part = vec![0; 1 << 20];
                let mut read = stream.read(&mut part).await.unwrap();
                let is_patch = part.starts_with(b"PATCH");
                if is_patch && cut < 2 {
                    cut += 1;
                    continue;
                }
                // The end of a chunked body.
                while is_patch && read > 0 && !part[..read].ends_with(b"0\r\n\r\n") {
                    read = stream.read(&mut part).await.unwrap();
                }
                let status = if is_patch { "202 Accepted" } else { "201 Created" };
                let headers = "Location: /session\r\nContent-Length: 0\r\nConnection: close";
                stream.write_all(format!("HTTP/1.1 {status}\r\n{headers}\r\n\r\n").as_bytes()).await.unwrap();
            }
        });
        let client = Client::new(&address, "token").unwrap();
        let layer =
            patiently(async || client.push_layer("a/b", Compression::Zstd, |out| out.write_all(&[7; 100_000])).await);
        assert_eq!(layer.await.unwrap().tar_size, 100_000);
    }

    #[tokio::test]
    async fn an_answer_is_an_answer() {
        let refuse = async || {
            Err::<(), _>(ClientError::Refused { doing: "asking".to_owned(), status: 403, text: "no".to_owned() })
        };
        assert!(patiently(refuse).await.is_err());
    }
}
