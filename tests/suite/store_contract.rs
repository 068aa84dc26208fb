//! What every store does (the one of a cluster: `cluster_store`), and what the one on disk survives.

use std::{fs, path::Path, sync::Arc};

use epiniod::store::{DiskStore, Error, Event, Key, Kind, Object, Page, SharedStore};
use serde_json::json;

/// A store that is to do what every store does, and two namespaces that are empty.
pub struct Subject {
    pub store: SharedStore,
    pub namespaces: [String; 2],
}

impl Subject {
    fn key(&self, name: &str) -> Key {
        Key { kind: Kind::App, namespace: self.namespaces[0].clone(), name: name.to_owned() }
    }

    fn object(&self, name: &str, value: u32) -> Object {
        let body = json!({ "value": value });
        Object { key: self.key(name), uid: String::new(), version: 0, schema: 1, body }
    }
}

pub async fn objects_are_created_once_and_changed_by_who_saw_them_last(subject: Subject) {
    let (store, key) = (&subject.store, subject.key("a"));
    let mut changes = store.watch(Kind::App);
    let first = store.put(subject.object("a", 1)).await.unwrap();
    assert!(first.version > 0 && !first.uid.is_empty());
    assert!(matches!(store.put(subject.object("a", 2)).await, Err(Error::Conflict(_))), "creating twice");
    let second = store.put(Object { body: json!({ "value": 2 }), ..first.clone() }).await.unwrap();
    assert!(second.version > first.version && second.uid == first.uid);
    assert!(matches!(store.put(first.clone()).await, Err(Error::Conflict(_))), "writing what is old");
    assert_eq!(store.get(&key).await.unwrap(), Some(second.clone()));
    let same = store.put(second.clone()).await.unwrap();
    assert!(same.version > second.version, "a write of the same is a write");
    assert!(matches!(store.delete(&key, Some(first.version)).await, Err(Error::Conflict(_))));
    store.delete(&key, Some(same.version)).await.unwrap();
    assert!(matches!(store.delete(&key, None).await, Err(Error::NotFound(_))));
    assert!(matches!(store.put(same.clone()).await, Err(Error::NotFound(_))), "writing what is gone");
    assert_eq!(store.get(&key).await.unwrap(), None);
    let again = store.put(subject.object("a", 3)).await.unwrap();
    assert_ne!(again.uid, first.uid, "a uid is never used twice");
    assert!(matches!(store.put(same).await, Err(Error::Conflict(_))), "writing over what took its place");
    for expected in [Some(1), Some(2), Some(2), None, Some(3)] {
        let told = match changes.recv().await.unwrap() {
            Event::Put(object) => object.body["value"].as_u64(),
            Event::Deleted(deleted) => {
                assert_eq!(deleted, key);
                None
            }
        };
        assert_eq!(told, expected, "changes are told in their order");
    }
    let large = Object { body: json!({ "value": "x".repeat(300_000) }), ..subject.object("large", 0) };
    assert!(matches!(store.put(large).await, Err(Error::TooLarge { .. })));
    let fits = Object { body: json!({ "value": "x".repeat(260_000) }), ..subject.object("fits", 0) };
    let fits = store.put(fits).await.unwrap();
    assert_eq!(store.get(&fits.key).await.unwrap().as_ref(), Some(&fits));
}

pub async fn lists_come_in_pages_and_in_order(subject: Subject) {
    let store = &subject.store;
    for name in ["c", "a", "b"] {
        store.put(subject.object(name, 0)).await.unwrap();
    }
    let other = Key { namespace: subject.namespaces[1].clone(), ..subject.key("z") };
    store.put(Object { key: other, ..subject.object("z", 0) }).await.unwrap();
    let mut page = Page { namespace: Some(subject.namespaces[0].clone()), after: None, limit: 2 };
    let first = store.list(Kind::App, &page).await.unwrap();
    page.after = first.next.clone();
    let second = store.list(Kind::App, &page).await.unwrap();
    let names: Vec<_> = first.objects.iter().chain(&second.objects).map(|object| object.key.name.as_str()).collect();
    assert_eq!((names, second.next), (vec!["a", "b", "c"], None));
    store.put(subject.object("bb", 0)).await.unwrap();
    let second = store.list(Kind::App, &page).await.unwrap();
    let names: Vec<_> = second.objects.iter().map(|object| object.key.name.as_str()).collect();
    assert_eq!(names, ["bb", "c"], "what was written is there");
    page = Page { namespace: None, after: None, limit: 100 };
    let all = store.list(Kind::App, &page).await.unwrap().objects;
    let names: Vec<_> = all.iter().map(|object| (&object.key.namespace, object.key.name.as_str())).collect();
    let [one, two] = &subject.namespaces;
    assert_eq!(names, [(one, "a"), (one, "b"), (one, "bb"), (one, "c"), (two, "z")]);
}

pub async fn of_many_writers_of_one_object_each_change_counts(subject: Subject) {
    let key = subject.key("counter");
    subject.store.put(subject.object("counter", 0)).await.unwrap();
    add_by_many(&[Arc::clone(&subject.store)], &key).await;
    assert_eq!(subject.store.get(&key).await.unwrap().unwrap().body["value"], 20);
}

/// Twenty writers add one each, by these stores in turn.
pub async fn add_by_many(stores: &[SharedStore], key: &Key) {
    let adds = (0..20).map(|writer| {
        let (store, key) = (Arc::clone(&stores[writer % stores.len()]), key.clone());
        tokio::spawn(async move {
            loop {
                let mut found = store.get(&key).await.unwrap().unwrap();
                found.body["value"] = json!(found.body["value"].as_u64().unwrap() + 1);
                match store.put(found).await {
                    Err(Error::Conflict(_)) => tokio::task::yield_now().await,
                    result => return drop(result.unwrap()),
                }
            }
        })
    });
    for add in adds.collect::<Vec<_>>() {
        add.await.unwrap();
    }
}

/// Names as users, tags and repositories have them; some differ in what a backend may not keep apart.
pub async fn objects_of_every_kind_are_found_by_their_names(subject: Subject) {
    let store = &subject.store;
    let mut written = Vec::new();
    for kind in Kind::ALL.into_iter().filter(|kind| !matches!(kind, Kind::App | Kind::Namespace)) {
        for (namespace, name) in [
            ("", "Some.One+tag@example.com"),
            ("", "some.one+tag@example.com"),
            ("workspace/web", "tag.V1_0"),
            ("workspace/web", "tag.v1_0"),
            ("workspace", "web-tag.v1_0"),
            ("workspace", "web.0000000001"),
        ] {
            let key = Key { kind, namespace: namespace.to_owned(), name: name.to_owned() };
            let body = json!({ "of": [namespace, name], "text": "\"quoted\"\n\u{0}ü", "none": null });
            written.push(store.put(Object { key, body, ..subject.object("", 0) }).await.unwrap());
        }
    }
    for object in &written {
        assert_eq!(store.get(&object.key).await.unwrap().as_ref(), Some(object));
    }
    for kind in written.iter().map(|object| object.key.kind) {
        let page = Page { namespace: Some("workspace/web".to_owned()), after: None, limit: 10 };
        let found = store.list(kind, &page).await.unwrap().objects;
        let expected = written.iter().filter(|object| object.key.kind == kind);
        let mut expected: Vec<_> = expected.filter(|object| object.key.namespace == "workspace/web").collect();
        expected.sort_by(|a, b| a.key.cmp(&b.key));
        assert_eq!(found.iter().collect::<Vec<_>>(), expected);
    }
    for object in &written {
        store.delete(&object.key, Some(object.version)).await.unwrap();
        assert_eq!(store.get(&object.key).await.unwrap(), None);
    }
}

fn on_disk(dir: &Path) -> Subject {
    Subject { store: open(dir), namespaces: ["ns".to_owned(), "other".to_owned()] }
}

#[tokio::test]
async fn on_disk_objects_are_created_once_and_changed_by_who_saw_them_last() {
    let dir = tempfile::tempdir().unwrap();
    objects_are_created_once_and_changed_by_who_saw_them_last(on_disk(dir.path())).await;
}

#[tokio::test]
async fn on_disk_lists_come_in_pages_and_in_order() {
    let dir = tempfile::tempdir().unwrap();
    lists_come_in_pages_and_in_order(on_disk(dir.path())).await;
}

#[tokio::test]
async fn on_disk_of_many_writers_of_one_object_each_change_counts() {
    let dir = tempfile::tempdir().unwrap();
    of_many_writers_of_one_object_each_change_counts(on_disk(dir.path())).await;
}

#[tokio::test]
async fn on_disk_objects_of_every_kind_are_found_by_their_names() {
    let dir = tempfile::tempdir().unwrap();
    objects_of_every_kind_are_found_by_their_names(on_disk(dir.path())).await;
}

fn key(name: &str) -> Key {
    Key { kind: Kind::App, namespace: "ns".to_owned(), name: name.to_owned() }
}

fn object(name: &str, value: u32) -> Object {
    Object { key: key(name), uid: String::new(), version: 0, schema: 1, body: json!({ "value": value }) }
}

fn open(dir: &Path) -> SharedStore {
    DiskStore::open(dir).unwrap()
}

/// Opens again what was just closed: the writer lets the lock go when it has ended.
fn reopen(dir: &Path) -> SharedStore {
    for _ in 0..500 {
        if let Ok(store) = DiskStore::open(dir) {
            return store;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("the store could not be opened again within 5 s")
}

#[tokio::test]
async fn a_torn_line_is_cut_off_and_a_lost_or_broken_index_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let kept = open(dir.path()).put(object("kept", 7)).await.unwrap();
    let journal = dir.path().join("journal");
    type Damage = (&'static str, fn(&Path));
    let damage: [Damage; 4] = [
        ("torn line", |dir| {
            use std::io::Write as _;
            let mut journal = fs::File::options().append(true).open(dir.join("journal")).unwrap();
            journal.write_all(b"{\"seq\":99,\"put\":{\"ki").unwrap();
        }),
        ("lost index", |dir| fs::remove_dir_all(dir.join("index")).unwrap()),
        ("broken index", |dir| fs::write(dir.join("index/db"), "nonsense").unwrap()),
        ("index that is not trusted", |dir| fs::write(dir.join("index.damaged"), "").unwrap()),
    ];
    for (what, break_it) in damage {
        drop(reopen(dir.path()));
        wait_for_lock(dir.path());
        break_it(dir.path());
        let store = reopen(dir.path());
        assert_eq!(store.get(&key("kept")).await.unwrap().as_ref(), Some(&kept), "{what}");
        store.put(object(&what.replace(' ', "-"), 1)).await.unwrap();
    }
    let text = fs::read_to_string(journal).unwrap();
    assert!(text.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()), "{text}");
}

#[tokio::test]
async fn a_journal_that_is_mostly_history_becomes_small_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let kept = store.put(object("kept", 7)).await.unwrap();
    store.put(object("deleted", 7)).await.unwrap();
    store.delete(&key("deleted"), None).await.unwrap();
    let mut large = store.put(object("large", 0)).await.unwrap();
    for round in 0..50 {
        large.body = json!(format!("{round} {}", "x".repeat(200_000)));
        large = store.put(large).await.unwrap();
    }
    let size = fs::metadata(dir.path().join("journal")).unwrap().len();
    assert!(size < 8 << 20, "the journal has {size} bytes");
    drop(store);
    wait_for_lock(dir.path());
    // From the journal alone.
    fs::remove_dir_all(dir.path().join("index")).unwrap();
    let store = reopen(dir.path());
    assert_eq!(store.get(&key("kept")).await.unwrap(), Some(kept));
    assert_eq!(store.get(&key("deleted")).await.unwrap(), None);
    assert_eq!(store.get(&key("large")).await.unwrap().as_ref(), Some(&large));
    let next = store.put(object("next", 1)).await.unwrap();
    assert!(next.version > large.version, "versions go on");
}

/// A store that was dropped ends a moment later.
fn wait_for_lock(dir: &Path) {
    drop(reopen(dir));
    std::thread::sleep(std::time::Duration::from_millis(200));
}

#[tokio::test]
async fn a_store_belongs_to_one_daemon_and_a_newer_format_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let taken = DiskStore::open(dir.path()).err().expect("a second one is refused").to_string();
    assert!(taken.contains("another epiniod uses it"), "{taken}");
    drop(store);
    let newer = tempfile::tempdir().unwrap();
    fs::write(newer.path().join("journal"), "{\"journal\":2,\"generation\":1}\n").unwrap();
    let refused = DiskStore::open(newer.path()).err().expect("a newer format is refused").to_string();
    assert!(refused.contains("newer than this epiniod"), "{refused}");
}
