//! Versions that replace each other, and what a visitor notices of it: nothing.

use std::{
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use epiniod::{
    apps::Error,
    model::{AppChange, Namespace, Release, ReleaseId, ReleaseState, Timestamp},
};

use super::{
    client::{Answer, Client},
    site::{Site, app},
};
use crate::sandbox::house::{as_root, rootless};

const VERSIONS: usize = 6;

/// Asks again and again until told to stop; the versions that answered.
fn visit(mut client: Client, stop: &AtomicBool, ask: impl Fn(&mut Client) -> std::io::Result<Answer>) -> Vec<String> {
    let mut seen: Vec<String> = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let answer = ask(&mut client).expect("the connection is kept");
        assert_eq!(answer.status, 200, "after {seen:?}: {answer:?}");
        let version = answer.body.lines().next().unwrap_or_default().to_owned();
        if !seen.contains(&version) {
            seen.push(version);
        }
    }
    seen
}

async fn replace_under_load() {
    let site = Site::open().await;
    site.create("busy", AppChange { instances: Some(2), ..AppChange::default() }).await;
    site.deploy("busy", "http 0").await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let visitors: Vec<_> = (0..4)
        .map(|number| {
            let (stop, client) = (Arc::clone(&stop), site.client());
            std::thread::spawn(move || {
                visit(client, &stop, |client| match number % 2 {
                    0 => client.get("busy.localhost", "/"),
                    _ => client.post("busy.localhost", "/", "some words"),
                })
            })
        })
        .collect();
    for version in 1..=VERSIONS {
        site.deploy("busy", &format!("http {version}")).await.unwrap();
    }
    // The last one answers everybody before they stop.
    site.ask(|mut client| {
        let answer = client.get("busy.localhost", "/").unwrap();
        assert!(answer.body.starts_with(&format!("version {VERSIONS}\n")), "{answer:?}");
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    for visitor in visitors {
        let seen =
            tokio::task::spawn_blocking(move || visitor.join()).await.unwrap().expect("every request was answered");
        assert!(seen.len() >= VERSIONS, "the versions were seen one after the other: {seen:?}");
    }
    site.close().await;
}

#[test]
fn no_request_is_dropped_while_versions_replace_each_other() {
    as_root(replace_under_load());
}

#[test]
fn no_request_is_dropped_while_versions_replace_each_other_rootless() {
    rootless("edge::replacing::no_request_is_dropped_while_versions_replace_each_other_rootless", replace_under_load());
}

#[test]
fn who_made_way_for_a_version_that_fails_serves_again() {
    rootless("edge::replacing::who_made_way_for_a_version_that_fails_serves_again", async {
        let site = Site::open().await;
        site.create("fixed", AppChange::default()).await;
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        site.deploy("fixed", &format!("serve 127.0.0.1 {port}")).await.unwrap();
        let failed = site.deploy("fixed", "crash-after-serving").await;
        assert!(matches!(failed, Err(Error::NotHealthy { number: 2, .. })), "{failed:?}");
        let (namespace, name) = (Namespace::default(), app("fixed"));
        let mut serving = site.house.workload("fixed", 1);
        serving.id = ReleaseId { namespace: namespace.clone(), app: name.clone(), number: 1 };
        let address = site.house.ready(&serving).await[0];
        assert_eq!(address.port(), port);
        assert_eq!(site.apps.get(&namespace, &name).await.unwrap().release, Some(1));
        site.close().await;
    });
}

#[test]
fn releases_of_an_application_that_is_gone_are_forgotten() {
    as_root(async {
        let site = Site::open().await;
        let id = ReleaseId { namespace: Namespace::default(), app: app("gone"), number: 1 };
        let release = Release {
            id: id.clone(),
            image: site.house.image.clone(),
            stage_id: None,
            environment: Default::default(),
            change: AppChange::default(),
            routes: Vec::new(),
            instances: 1,
            created_at: Timestamp::now(),
            state: ReleaseState::Active,
        };
        // As if the daemon had been killed in the middle of a deletion.
        site.objects.create(&release).await.unwrap();
        let workload = site.house.workload("gone", 1);
        site.house.start(&workload).await;
        site.apps.recover().await.unwrap();
        assert_eq!(site.objects.list::<Release>(None).await.unwrap().len(), 0);
        let left = epiniod::runtime::Runtime::workloads(&*site.house.runtime).await.unwrap();
        assert_eq!(left, [], "nor does anything of it run");
        site.close().await;
    });
}
