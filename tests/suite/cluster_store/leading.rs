//! Several daemons: one leads.

use std::time::{Duration, Instant};

use epiniod::store::kube::{Election, Leadership, Terms};

use super::{
    outages::{Line, Way},
    place::Place,
    within,
};

const TERMS: Terms =
    Terms { valid: Duration::from_secs(6), give_up: Duration::from_secs(4), retry: Duration::from_millis(500) };

async fn contend(place: &Place, name: &str) -> tokio::task::JoinHandle<Leadership> {
    let election = Election::new(&place.connect().await, &place.system, name, TERMS);
    tokio::spawn(async move { election.win().await.unwrap() })
}

#[tokio::test(flavor = "multi_thread")]
async fn one_leads_and_the_next_one_when_that_one_is_dead_or_goes() {
    let Some(place) = Place::make("leadership").await else { return };
    let holder = || {
        let path = "jsonpath={.spec.holderIdentity}";
        place.kubectl(&["get", "lease", "epiniod", "-n", &place.system, "-o", path])
    };
    let first = within("the first leads", contend(&place, "first").await).await.unwrap();
    assert_eq!(holder(), "first");
    let second = contend(&place, "second").await;
    tokio::time::sleep(TERMS.valid * 2).await;
    assert!(!second.is_finished() && !first.lost().is_cancelled(), "as long as it renews, the first one leads");

    let lost = first.lost();
    // As a process that was killed: nothing is renewed, nothing released.
    drop(first);
    assert!(lost.is_cancelled());
    let killed = Instant::now();
    let second = within("the second leads", second).await.unwrap();
    let took = killed.elapsed();
    assert!(took >= TERMS.valid - TERMS.retry * 2, "the lease ran for {took:?} only");
    assert!(took < TERMS.valid + Duration::from_secs(3), "it took {took:?}");
    assert_eq!(holder(), "second");

    let third = contend(&place, "third").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let released = Instant::now();
    second.release().await;
    let third = within("the third leads", third).await.unwrap();
    assert!(released.elapsed() < Duration::from_secs(2), "it took {:?}", released.elapsed());
    assert_eq!(holder(), "third");
    third.release().await;
    assert_eq!(holder(), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_cut_off_stops_before_another_begins() {
    let Some(place) = Place::make("a leader that is cut off").await else { return };
    let line = Line::to(&place.server()).await;
    let kubeconfig = place.kubeconfig_by(line.address);
    let cluster = epiniod::store::kube::connect(Some(kubeconfig.path())).await.unwrap();
    let cut_off = within("it leads", Election::new(&cluster, &place.system, "cut-off", TERMS).win()).await.unwrap();
    let other = contend(&place, "other").await;
    tokio::time::sleep(TERMS.retry * 3).await;
    line.set(Way::Silent);
    let lost = cut_off.lost();
    within("it knows that it does not lead", lost.cancelled()).await;
    assert!(!other.is_finished(), "the other one led already");
    within("the other leads", other).await.unwrap().release().await;
    line.set(Way::Open);
}
