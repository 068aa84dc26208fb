//! A relay between a client and a server of the test's own.

use tokio::task::JoinHandle;

use super::*;

const SOON: Duration = Duration::from_secs(10);

struct House {
    relay: SocketAddr,
    server: TcpListener,
    stop: CancellationToken,
    ended: JoinHandle<()>,
}

impl House {
    async fn make(terms: Terms) -> Self {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (relay, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let name = format!("localhost:{}", server.local_addr().unwrap().port());
        let target = Arc::new(Target { name, last: Mutex::new(None) });
        let ended = tokio::spawn(carry_all(listener, target, terms, stop.clone()));
        Self { relay, server, stop, ended }
    }

    /// Both ends of a connection, and what the client said first.
    async fn pair(&self) -> (TcpStream, TcpStream) {
        let mut client = TcpStream::connect(self.relay).await.unwrap();
        client.write_all(b"hello").await.unwrap();
        let mut server = timeout(SOON, self.server.accept()).await.unwrap().unwrap().0;
        assert_eq!(read(&mut server, 5).await, b"hello");
        (client, server)
    }

    async fn ends(self) {
        timeout(SOON, self.ended).await.expect("the relay ends").unwrap();
    }
}

async fn read(stream: &mut TcpStream, bytes: usize) -> Vec<u8> {
    let mut buffer = vec![0; bytes];
    timeout(SOON, stream.read_exact(&mut buffer)).await.unwrap().unwrap();
    buffer
}

async fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut buffer = Vec::new();
    timeout(SOON, stream.read_to_end(&mut buffer)).await.expect("its end").unwrap();
    buffer
}

#[tokio::test]
async fn an_end_of_one_direction_is_passed_on_and_the_other_goes_on() {
    let house = House::make(Terms::default()).await;
    let (mut client, mut server) = house.pair().await;
    client.shutdown().await.unwrap();
    assert_eq!(rest(&mut server).await, b"");
    let much = vec![7; 3 << 20];
    let writing = tokio::spawn(async move { server.write_all(&much).await });
    assert_eq!(rest(&mut client).await.len(), 3 << 20);
    writing.await.unwrap().unwrap();
}

#[tokio::test]
async fn nobody_is_called_before_a_client_says_something() {
    let house = House::make(Terms::default()).await;
    let mut looks = TcpStream::connect(house.relay).await.unwrap();
    looks.shutdown().await.unwrap();
    assert_eq!(rest(&mut looks).await, b"");
    let waiting = timeout(Duration::from_millis(200), house.server.accept()).await;
    assert!(waiting.is_err(), "somebody was called");
}

#[tokio::test]
async fn a_connection_that_is_silent_for_too_long_ends_and_one_that_speaks_does_not() {
    let house = House::make(Terms { idle: Duration::from_millis(400), ..Terms::default() }).await;
    let (mut client, mut server) = house.pair().await;
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        server.write_all(b"x").await.unwrap();
        read(&mut client, 1).await;
    }
    assert_eq!(rest(&mut client).await, b"");
    let mut says_nothing = TcpStream::connect(house.relay).await.unwrap();
    assert_eq!(rest(&mut says_nothing).await, b"");
}

#[tokio::test]
async fn more_than_it_carries_wait_for_their_turn() {
    let house = House::make(Terms { most: 1, ..Terms::default() }).await;
    let (first, first_server) = house.pair().await;
    let mut second = TcpStream::connect(house.relay).await.unwrap();
    second.write_all(b"hello").await.unwrap();
    assert!(timeout(Duration::from_millis(200), house.server.accept()).await.is_err(), "two at once");
    drop((first, first_server));
    let mut server = timeout(SOON, house.server.accept()).await.unwrap().unwrap().0;
    assert_eq!(read(&mut server, 5).await, b"hello");
}

#[tokio::test]
async fn a_registry_that_is_away_ends_the_connection_in_time_and_is_found_when_it_is_back() {
    let house = House::make(Terms { connect: Duration::from_secs(2), ..Terms::default() }).await;
    let (relay, address) = (house.relay, house.server.local_addr().unwrap());
    drop(house.server);
    let mut client = TcpStream::connect(relay).await.unwrap();
    client.write_all(b"hello").await.unwrap();
    let mut end = Vec::new();
    // Closed, with what nobody took: a reset is an end as well.
    let _ = timeout(SOON, client.read_to_end(&mut end)).await.expect("its end");
    let mut client = TcpStream::connect(relay).await.unwrap();
    client.write_all(b"hello").await.unwrap();
    let back = TcpListener::bind(address).await.unwrap();
    let mut server = timeout(SOON, back.accept()).await.unwrap().unwrap().0;
    assert_eq!(read(&mut server, 5).await, b"hello");
}

#[tokio::test]
async fn it_stops_after_the_last_that_speaks_and_never_waits_for_long() {
    let house =
        House::make(Terms { last: Duration::from_millis(300), stop: Duration::from_secs(2), ..Terms::default() }).await;
    let (mut client, mut server) = house.pair().await;
    let (_silent, _silent_server) = house.pair().await;
    house.stop.cancel();
    server.write_all(b"the last words").await.unwrap();
    drop(server);
    assert_eq!(rest(&mut client).await, b"the last words");
    drop(client);
    house.ends().await;

    let house =
        House::make(Terms { last: Duration::from_secs(60), stop: Duration::from_millis(300), ..Terms::default() })
            .await;
    let _pair = house.pair().await;
    house.stop.cancel();
    house.ends().await;
}

#[tokio::test]
async fn it_listens_on_loopback_only_and_says_when_somebody_else_does() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let serve =
        |listen: SocketAddr| relay(listen, "127.0.0.1:9".to_owned(), Terms::default(), CancellationToken::new());
    let error = serve(taken.local_addr().unwrap()).await.unwrap_err();
    assert!(crate::telemetry::chain(&error).contains("in use"), "{error}");
    let error = serve("0.0.0.0:0".parse().unwrap()).await.unwrap_err();
    assert!(error.to_string().contains("0.0.0.0:0 is not an address of the node's loopback"), "{error}");
}
