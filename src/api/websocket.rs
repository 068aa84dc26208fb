//! The end of a websocket.

use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket};

/// How long a client may take to say that it has read the end.
const GOODBYE: Duration = Duration::from_secs(5);

/// Says that nothing more comes, and waits for the client to agree (RFC 6455, section 7.1.1). A socket that is closed with
/// something unread in it is reset, and then the client loses what it has not read yet.
pub(super) async fn close(mut socket: WebSocket, frame: Option<CloseFrame>) {
    let agreed = async {
        if socket.send(Message::Close(frame)).await.is_ok() {
            while let Some(Ok(_)) = socket.recv().await {}
        }
    };
    // The client may be gone by now.
    let _ = tokio::time::timeout(GOODBYE, agreed).await;
}

#[cfg(test)]
mod tests {
    use axum::{Router, extract::ws::WebSocketUpgrade, routing::get};
    use futures::{SinkExt as _, StreamExt as _};
    use tokio::net::{TcpListener, TcpStream};
    use tokio_tungstenite::tungstenite::Message as Sent;

    use super::*;

    const LINES: usize = 2000;

    async fn talk(mut socket: WebSocket) {
        for number in 0..LINES {
            if socket.send(Message::Text(format!("{number} {}", "x".repeat(500)).into())).await.is_err() {
                return;
            }
        }
        close(socket, None).await;
    }

    #[tokio::test]
    async fn a_client_that_talked_meanwhile_reads_to_the_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = Router::new().route("/", get(|upgrade: WebSocketUpgrade| async { upgrade.on_upgrade(talk) }));
        let server = tokio::spawn(async move { axum::serve(listener, app).await });
        let stream = TcpStream::connect(address).await.unwrap();
        let (mut socket, _) = tokio_tungstenite::client_async(format!("ws://{address}/"), stream).await.unwrap();
        for _ in 0..10 {
            socket.send(Sent::Pong("I live".into())).await.unwrap();
        }
        let mut lines = 0;
        loop {
            match socket.next().await.unwrap() {
                Ok(Sent::Text(_)) => lines += 1,
                Ok(Sent::Close(_)) => break,
                other => panic!("after {lines} lines: {other:?}"),
            }
        }
        assert_eq!(lines, LINES);
        server.abort();
    }
}
