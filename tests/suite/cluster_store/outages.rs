//! An API server that is away, and answers that are lost: by a line to it that can be cut.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use epiniod::store::{Error, Event, Key, Kind, Object, SharedStore};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, tcp},
    sync::watch,
};

use super::{place::Place, within};

/// What a line does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Open,
    /// Ends what there is and takes nothing new.
    Cut,
    /// Connections stay; nothing goes through.
    Silent,
    /// Requests go through; after so many of them, instead of an answer the connection ends.
    Deaf {
        after: usize,
    },
}

/// A line to the API server.
pub struct Line {
    pub address: SocketAddr,
    way: watch::Sender<Way>,
    requests: Requests,
}

/// How many there were since the way was set.
type Requests = Arc<AtomicUsize>;

impl Line {
    pub async fn to(server: &(String, u16)) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (way, ways) = watch::channel(Way::Open);
        let (server, requests) = (server.clone(), Requests::default());
        let counted = Arc::clone(&requests);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (server, ways) = (server.clone(), ways.clone());
                if *ways.borrow() != Way::Cut {
                    tokio::spawn(carry(client, server, ways, Arc::clone(&counted)));
                }
            }
        });
        Self { address, way, requests }
    }

    pub fn set(&self, way: Way) {
        self.requests.store(0, Ordering::SeqCst);
        self.way.send_replace(way);
    }
}

async fn carry(client: TcpStream, server: (String, u16), mut ways: watch::Receiver<Way>, requests: Requests) {
    let Ok(server) = TcpStream::connect(server).await else { return };
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let asking = pump(from_client, to_server, ways.clone(), |_| {
        requests.fetch_add(1, Ordering::SeqCst);
        true
    });
    let answering = pump(from_server, to_client, ways.clone(), |way| match way {
        Way::Deaf { after } => requests.load(Ordering::SeqCst) <= after,
        _ => true,
    });
    tokio::select! {
        () = asking => {}
        () = answering => {}
        _ = ways.wait_for(|way| *way == Way::Cut) => {}
    }
}

async fn pump(
    mut from: tcp::OwnedReadHalf,
    mut to: tcp::OwnedWriteHalf,
    mut ways: watch::Receiver<Way>,
    mut passes: impl FnMut(Way) -> bool,
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if ways.wait_for(|way| *way != Way::Silent).await.is_err() {
            return;
        }
        let way = *ways.borrow();
        if !passes(way) || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

fn object(name: &str) -> Object {
    let key = Key { kind: Kind::Source, namespace: "ns".to_owned(), name: name.to_owned() };
    Object { key, uid: String::new(), version: 0, schema: 1, body: json!({ "name": name }) }
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_and_watches_outlive_an_api_server_that_is_away() {
    let Some(place) = Place::make("an API server that is away").await else { return };
    let direct: SharedStore = place.open().await;
    let line = Line::to(&place.server()).await;
    let kubeconfig = place.kubeconfig_by(line.address);
    let store: SharedStore = place.try_open(kubeconfig.path()).await.unwrap();
    let mut changes = store.watch(Kind::Source);
    let kept = store.put(object("kept")).await.unwrap();
    let deleted = store.put(object("deleted")).await.unwrap();
    for _ in 0..2 {
        within("a change", changes.recv()).await.unwrap();
    }
    line.set(Way::Cut);
    let writing = {
        let store = Arc::clone(&store);
        tokio::spawn(async move { store.put(object("in-between")).await })
    };
    let changed = direct.put(Object { body: json!({ "changed": true }), ..kept.clone() }).await.unwrap();
    direct.delete(&deleted.key, None).await.unwrap();
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(!writing.is_finished(), "the API server is away");
    line.set(Way::Open);
    let written = within("the write ends well", writing).await.unwrap().unwrap();
    assert_eq!(direct.get(&written.key).await.unwrap(), Some(written.clone()));
    let mut told = std::collections::BTreeSet::new();
    while told.len() < 3 {
        told.insert(match within("a change", changes.recv()).await.unwrap() {
            Event::Put(object) => (object.key.name, Some(object.version)),
            Event::Deleted(key) => (key.name, None),
        });
    }
    let expected = [
        ("deleted".to_owned(), None),
        ("in-between".to_owned(), Some(written.version)),
        ("kept".to_owned(), Some(changed.version)),
    ];
    assert_eq!(told, expected.into(), "what changed meanwhile is told");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_whose_answer_is_lost_is_done_once() {
    let Some(place) = Place::make("answers that are lost").await else { return };
    let direct: SharedStore = place.open().await;
    let line = Line::to(&place.server()).await;
    let kubeconfig = place.kubeconfig_by(line.address);
    let store: SharedStore = place.try_open(kubeconfig.path()).await.unwrap();
    let other = object("other").key;

    store.get(&other).await.unwrap();
    let created = deaf_for_a_moment(&line, 0, store.put(object("a"))).await.unwrap();
    assert_eq!(direct.get(&created.key).await.unwrap().as_ref(), Some(&created), "it was created once, by us");
    assert!(matches!(store.put(object("a")).await, Err(Error::Conflict(_))), "twice is still refused");

    // The first request reads, the second writes.
    store.get(&other).await.unwrap();
    let changed = Object { body: json!({ "changed": true }), ..created.clone() };
    let changed = deaf_for_a_moment(&line, 1, store.put(changed)).await.unwrap();
    assert_eq!(direct.get(&changed.key).await.unwrap().as_ref(), Some(&changed));

    store.get(&other).await.unwrap();
    deaf_for_a_moment(&line, 1, store.delete(&created.key, Some(changed.version))).await.unwrap();
    assert_eq!(direct.get(&created.key).await.unwrap(), None);
}

/// Loses answers of the API server for a while, after so many requests.
async fn deaf_for_a_moment<T>(line: &Line, after: usize, request: impl Future<Output = T>) -> T {
    line.set(Way::Deaf { after });
    let heal = async {
        let lost = async {
            while line.requests.load(Ordering::SeqCst) <= after {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        within("the request is sent", lost).await;
        // The answer comes within this, and is lost.
        tokio::time::sleep(Duration::from_millis(500)).await;
        line.set(Way::Open);
    };
    let (answer, ()) = within("the request ends", async { tokio::join!(request, heal) }).await;
    answer
}
