//! An API server that is away, and answers that are lost: by a line to it that can be cut.

use std::{net::SocketAddr, sync::Arc, time::Duration};

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
    /// Requests go through; instead of an answer the connection ends.
    Deaf,
}

/// A line to the API server.
pub struct Line {
    pub address: SocketAddr,
    way: watch::Sender<Way>,
}

impl Line {
    pub async fn to(server: &(String, u16)) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (way, ways) = watch::channel(Way::Open);
        let server = server.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (server, ways) = (server.clone(), ways.clone());
                if *ways.borrow() != Way::Cut {
                    tokio::spawn(carry(client, server, ways));
                }
            }
        });
        Self { address, way }
    }

    pub fn set(&self, way: Way) {
        self.way.send_replace(way);
    }
}

async fn carry(client: TcpStream, server: (String, u16), mut ways: watch::Receiver<Way>) {
    let Ok(server) = TcpStream::connect(server).await else { return };
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let requests = pump(from_client, to_server, ways.clone(), &[Way::Open, Way::Deaf]);
    let answers = pump(from_server, to_client, ways.clone(), &[Way::Open]);
    tokio::select! {
        () = requests => {}
        () = answers => {}
        _ = ways.wait_for(|way| *way == Way::Cut) => {}
    }
}

async fn pump(mut from: tcp::OwnedReadHalf, mut to: tcp::OwnedWriteHalf, mut ways: watch::Receiver<Way>, open: &[Way]) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let way = *ways.borrow();
        if way == Way::Silent && ways.wait_for(|way| *way != Way::Silent).await.is_err() {
            return;
        }
        if way == Way::Deaf && !open.contains(&way) {
            return;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
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
    let warm = object("warm").key;

    store.get(&warm).await.unwrap();
    let created = deaf_for_a_moment(&line, &direct, "a", true, store.put(object("a"))).await.unwrap();
    assert_eq!(direct.get(&created.key).await.unwrap().as_ref(), Some(&created), "it was created once, by us");
    assert!(matches!(store.put(object("a")).await, Err(Error::Conflict(_))), "twice is still refused");

    // One request for each put of this kind reads before: what is lost is the answer to either.
    let changed = Object { body: json!({ "changed": true }), ..created.clone() };
    let changed = deaf_for_a_moment(&line, &direct, "a", true, store.put(changed)).await.unwrap();
    assert_eq!(direct.get(&changed.key).await.unwrap().as_ref(), Some(&changed));

    store.get(&warm).await.unwrap();
    deaf_for_a_moment(&line, &direct, "a", false, store.delete(&created.key, Some(changed.version))).await.unwrap();
    assert_eq!(direct.get(&created.key).await.unwrap(), None);
}

/// Loses answers of the API server until the object is there (or not), or for two seconds.
async fn deaf_for_a_moment<T>(
    line: &Line,
    direct: &SharedStore,
    name: &str,
    there: bool,
    request: impl Future<Output = T>,
) -> T {
    line.set(Way::Deaf);
    let heal = async {
        let done = async {
            while direct.get(&object(name).key).await.unwrap().is_some() != there {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        };
        let _ = tokio::time::timeout(Duration::from_secs(2), done).await;
        line.set(Way::Open);
    };
    let (answer, ()) = within("the request ends", async { tokio::join!(request, heal) }).await;
    answer
}
