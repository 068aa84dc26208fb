//! The store of a cluster, against a real API server.

mod connecting;
mod leading;
pub mod outages;
mod place;

use std::{sync::Arc, time::Duration};

use epiniod::{
    model::{App, AppName, Namespace},
    store::{
        Error, Event, Key, Kind, Object, Objects, Page, SharedStore, Store as _,
        kube::{Announcement, AppStatus, Severity},
    },
};
use serde_json::json;

use self::place::Place;
use super::{store_contract, support::wait_until};

#[tokio::test(flavor = "multi_thread")]
async fn it_does_what_every_store_does() {
    let Some(place) = Place::make("what every store does").await else { return };
    let subject = place.subject().await;
    store_contract::objects_are_created_once_and_changed_by_who_saw_them_last(subject).await;
    let Some(place) = Place::make("lists of a store").await else { return };
    store_contract::lists_come_in_pages_and_in_order(place.subject().await).await;
    let Some(place) = Place::make("writers of a store").await else { return };
    store_contract::of_many_writers_of_one_object_each_change_counts(place.subject().await).await;
    let Some(place) = Place::make("names of a store").await else { return };
    store_contract::objects_of_every_kind_are_found_by_their_names(place.subject().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_daemons_may_write_the_same_object_and_one_sees_what_the_other_did() {
    let Some(place) = Place::make("two daemons").await else { return };
    let subject = place.subject().await;
    let stores: [SharedStore; 2] = [Arc::clone(&subject.store), place.open().await];
    let key = Key { kind: Kind::Base, namespace: String::new(), name: "counter".to_owned() };
    let mut changes = stores[1].watch(Kind::Base);
    let object = Object { key, uid: String::new(), version: 0, schema: 1, body: json!({ "value": 0 }) };
    assert_eq!(stores[1].get(&object.key).await.unwrap(), None);
    let creations = stores.iter().map(|store| store.put(object.clone()));
    let created = futures::future::join_all(creations).await;
    assert_eq!(created.iter().filter(|created| created.is_ok()).count(), 1, "one creates it: {created:?}");
    store_contract::add_by_many(&stores, &object.key).await;
    for store in &stores {
        assert_eq!(store.get(&object.key).await.unwrap().unwrap().body["value"], 20);
    }
    for value in 0..=20 {
        match within("a change", changes.recv()).await.unwrap() {
            Event::Put(object) => assert_eq!(object.body["value"], value),
            other => panic!("{other:?} instead of {value}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_is_seen_by_kubectl_and_its_environment_is_not() {
    let Some(place) = Place::make("applications as kubectl sees them").await else { return };
    let store = place.open().await;
    let objects = Objects::new(place.subject().await.store);
    let namespace: Namespace = place.namespaces[0].parse().unwrap();
    let name: AppName = "web".parse().unwrap();
    let mut app = App::new(namespace.clone(), name.clone(), "admin".to_owned());
    app.environment.insert("PASSWORD".parse().unwrap(), "hunter2".to_owned());
    let mut stored = objects.create(&app).await.unwrap();
    let key = Key::app(&namespace, &name);
    assert_eq!(objects.require::<App>(&key).await.unwrap(), stored);
    let secrets = || place.kubectl(&["get", "secrets", "-n", &place.system, "-o", "name"]);
    let first = secrets();
    assert_eq!(first.lines().count(), 1, "{first}");
    stored.value.instances = 3;
    stored = objects.update(&stored).await.unwrap();
    assert_eq!(secrets(), first, "the environment is the same, and so is its Secret");
    stored.value.environment.insert("PASSWORD".parse().unwrap(), "swordfish".to_owned());
    stored = objects.update(&stored).await.unwrap();
    assert!(secrets() != first && secrets().lines().count() == 1, "a new environment replaces the old one");
    assert_eq!(objects.list::<App>(None).await.unwrap(), [stored.clone()]);

    let status = AppStatus {
        state: "Running".to_owned(),
        ready: 2,
        routes: vec!["web.example.com".to_owned()],
        message: None,
        observed_release: Some(1),
    };
    store.set_status(&namespace, &name, &status).await.unwrap();
    assert_eq!(objects.update(&stored).await.unwrap().value, stored.value, "a status changes no version");
    let table = place.kubectl(&["get", "apps", "-n", namespace.as_str()]);
    let row: Vec<&str> = table.lines().nth(1).unwrap().split_whitespace().take(5).collect();
    assert_eq!(row, ["web", "Running", "2", "3", "web.example.com"], "{table}");
    let whole = place.kubectl(&["get", "apps.epiniod.dev", "web", "-n", namespace.as_str(), "-o", "yaml"]);
    assert!(!whole.contains("hunter2") && !whole.contains("swordfish") && !whole.contains("PASSWORD"), "{whole}");

    let failed = Announcement {
        severity: Severity::Warning,
        reason: "StagingFailed".to_owned(),
        note: "no buildpack wants it".to_owned(),
    };
    let seen = |times: &str| {
        let text = place.kubectl(&["describe", "app", "web", "-n", namespace.as_str()]);
        text.contains("StagingFailed") && text.contains("no buildpack wants it") && text.contains(times)
    };
    store.announce(&namespace, &name, failed.clone());
    wait_until("kubectl describes the event", Duration::from_secs(20), || seen("StagingFailed"));
    store.announce(&namespace, &name, failed);
    wait_until("the same event is counted", Duration::from_secs(20), || seen("(x2 over"));

    let (known, here) = (secrets(), place.system.as_str());
    let copied = place.kubectl(&["get", "-n", here, known.trim(), "-o", "yaml"]);
    place.kubectl_with(&["create", "-f", "-"], &copied.replace("  name: environment", "  name: left-by-a-crash"));
    place.open().await;
    assert_eq!(secrets().lines().count(), 2, "what is new is left alone");
    store.sweep(Duration::ZERO).await.unwrap();
    assert_eq!(secrets(), known, "what no application names is swept away, and nothing else");
    assert_eq!(objects.require::<App>(&key).await.unwrap().value, stored.value);

    objects.delete(&key).await.unwrap();
    assert_eq!(secrets(), "", "the environment goes with its application");
}

#[tokio::test(flavor = "multi_thread")]
async fn namespaces_of_others_are_left_alone_and_own_ones_come_and_go() {
    let Some(place) = Place::make("namespaces").await else { return };
    let store = place.open().await;
    let [mine, theirs] = &place.namespaces;
    let of = |name: &str| Object {
        key: Key { kind: Kind::Namespace, namespace: String::new(), name: name.to_owned() },
        uid: String::new(),
        version: 0,
        schema: 1,
        body: json!({ "name": name }),
    };
    place.kubectl(&["create", "namespace", theirs]);
    let refused = store.put(of(theirs)).await.unwrap_err().to_string();
    assert!(refused.contains("did not make") && refused.contains(theirs.as_str()), "{refused}");
    assert_eq!(store.get(&of(theirs).key).await.unwrap(), None);
    assert!(matches!(store.delete(&of(theirs).key, None).await, Err(Error::NotFound(_))));
    place.kubectl(&["get", "namespace", theirs]);

    place.kubectl(&["label", "namespace", theirs, "app.kubernetes.io/managed-by=epiniod"]);
    let adopted = store.put(of(theirs)).await.unwrap();
    assert_eq!(store.get(&adopted.key).await.unwrap(), Some(adopted.clone()), "it was handed over");
    assert!(matches!(store.put(of(theirs)).await, Err(Error::Conflict(_))));
    place.kubectl(&["label", "namespace", &place.system, "app.kubernetes.io/managed-by=epiniod"]);
    assert!(store.put(of(&place.system)).await.is_err(), "the daemon's own is for no application");
    store.delete(&adopted.key, None).await.unwrap();

    let app = Object { key: Key { kind: Kind::App, namespace: mine.clone(), name: "web".to_owned() }, ..of("") };
    let missing = store.put(app.clone()).await.unwrap_err().to_string();
    assert!(missing.contains(&format!("no namespace '{mine}'")), "{missing}");

    let mut changes = store.watch(Kind::Namespace);
    let first = store.put(of(mine)).await.unwrap();
    let label = "jsonpath={.metadata.labels.pod-security\\.kubernetes\\.io/enforce}";
    assert_eq!(place.kubectl(&["get", "namespace", mine, "-o", label]), "restricted");
    store.put(app.clone()).await.unwrap();
    store.delete(&first.key, Some(first.version)).await.unwrap();
    assert_eq!(store.get(&first.key).await.unwrap(), None, "it is going, which is as good as gone");
    assert!(store.list(Kind::Namespace, &everything()).await.unwrap().objects.is_empty());
    let again = within("creating it again", store.put(of(mine))).await.unwrap();
    assert_ne!(again.uid, first.uid);
    assert_eq!(store.get(&app.key).await.unwrap(), None, "nothing of the old one is in the new one");
    let mut told = Vec::new();
    for _ in 0..3 {
        told.push(match within("a change", changes.recv()).await.unwrap() {
            Event::Put(object) => Some(object.uid),
            Event::Deleted(_) => None,
        });
    }
    assert_eq!(told, [Some(first.uid), None, Some(again.uid)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_permission_is_told_which() {
    let Some(place) = Place::make("permissions").await else { return };
    let who = place.kubeconfig_as("system:serviceaccount:somewhere:somebody");
    let refused = place.try_open(who.path()).await.err().expect("somebody may do nothing").to_string();
    for part in ["cannot list", "namespaces", "somebody", "epiniod install"] {
        assert!(refused.contains(part), "'{part}' is not in: {refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rights_that_the_manifest_grants_are_enough() {
    let Some(place) = Place::make("the rights of a daemon").await else { return };
    place.grant();
    let who = place.kubeconfig_as(&format!("system:serviceaccount:{}:epiniod", place.system));
    let store = place.try_open(who.path()).await.unwrap();
    let objects = Objects::new(Arc::clone(&store) as SharedStore);
    let namespaces = place.subject_of(Arc::clone(&store) as SharedStore).await.namespaces;
    let namespace: Namespace = namespaces[0].parse().unwrap();
    for kind in Kind::ALL {
        drop(store.watch(kind));
        store.list(kind, &everything()).await.unwrap();
    }
    let mut app = App::new(namespace.clone(), "web".parse().unwrap(), "admin".to_owned());
    app.environment.insert("A".parse().unwrap(), "1".to_owned());
    let mut stored = objects.create(&app).await.unwrap();
    stored.value.environment.clear();
    let stored = objects.update(&stored).await.unwrap();
    let status =
        AppStatus { state: "Stopped".to_owned(), ready: 0, routes: vec![], message: None, observed_release: None };
    store.set_status(&namespace, &app.name, &status).await.unwrap();
    let told = Announcement { severity: Severity::Normal, reason: "Staged".to_owned(), note: "in 3 s".to_owned() };
    store.announce(&namespace, &app.name, told);
    wait_until("the event is there", Duration::from_secs(20), || {
        place.kubectl(&["get", "events", "-n", namespace.as_str()]).contains("Staged")
    });
    objects.delete(&Key::app(&namespace, &stored.value.name)).await.unwrap();
    for name in &namespaces {
        objects.delete(&Key::namespace(&name.parse().unwrap())).await.unwrap();
    }
    let cluster = epiniod::store::kube::connect(Some(who.path())).await.unwrap();
    let election =
        epiniod::store::kube::Election::new(&cluster, &place.system, "daemon", epiniod::store::kube::Terms::default());
    within("it leads", election.win()).await.unwrap().release().await;
}

/// Copies by hand, and what is changed by hand.
#[tokio::test(flavor = "multi_thread")]
async fn what_people_do_by_hand_breaks_nothing_else() {
    let Some(place) = Place::make("changes by hand").await else { return };
    let subject = place.subject().await;
    let namespace = &subject.namespaces[0];
    let key = |name: &str| Key { kind: Kind::App, namespace: namespace.clone(), name: name.to_owned() };
    let mut changes = subject.store.watch(Kind::App);
    let object = Object { key: key("web"), uid: String::new(), version: 0, schema: 1, body: json!({ "instances": 1 }) };
    let stored = subject.store.put(object.clone()).await.unwrap();
    let copied = place.kubectl(&["get", "apps.epiniod.dev", "web", "-n", namespace, "-o", "yaml"]);
    place.kubectl_with(&["create", "-f", "-"], &copied.replace("  name: web\n", "  name: copy\n"));
    let all = subject.store.list(Kind::App, &everything()).await.unwrap().objects;
    assert_eq!(all, std::slice::from_ref(&stored), "a copy is not an application of ours");
    let taken = subject.store.put(Object { key: key("copy"), ..object }).await.unwrap_err().to_string();
    assert!(taken.contains("did not make"), "{taken}");
    let patch = r#"{"spec":{"instances":5}}"#;
    place.kubectl(&["patch", "apps.epiniod.dev", "web", "-n", namespace, "--type", "merge", "-p", patch]);
    let mut instances = Vec::new();
    for _ in 0..2 {
        let Event::Put(told) = within("a change", changes.recv()).await.unwrap() else { panic!("a deletion") };
        instances.push(told.body["instances"].as_u64());
    }
    assert_eq!(instances, [Some(1), Some(5)], "a change by hand is told");
    place.kubectl(&["annotate", "apps.epiniod.dev", "web", "-n", namespace, "epiniod.dev/version-"]);
    let damaged = subject.store.get(&key("web")).await.unwrap_err().to_string();
    assert!(damaged.contains("epiniod.dev/version") && damaged.contains("web"), "{damaged}");
    subject.store.delete(&key("web"), None).await.unwrap();
}

fn everything() -> Page {
    Page { namespace: None, after: None, limit: 100 }
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let limit = Duration::from_secs(60);
    tokio::time::timeout(limit, future).await.unwrap_or_else(|_| panic!("waited {limit:?} for {what}"))
}
