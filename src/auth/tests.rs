use std::time::Instant;

use super::*;
use crate::{
    model::{AfterStaging, Builder, Digest, Environment, Staging, StagingState, Timestamp},
    store::DiskStore,
};

const REPOSITORY: &str = "workspace/shop";

/// A store that outlives who opens it.
struct House {
    objects: Objects,
    _dir: tempfile::TempDir,
}

impl House {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { objects: Objects::new(DiskStore::open(dir.path()).unwrap()), _dir: dir }
    }

    async fn auth(&self) -> Arc<Auth> {
        Auth::open(self.objects.clone()).await.unwrap()
    }

    async fn staging(&self) -> Staging {
        let staging = Staging {
            id: "0123456789abcdef".parse().unwrap(),
            namespace: "workspace".parse().unwrap(),
            app: "shop".parse().unwrap(),
            source: Digest::of(b"source"),
            blob_uid: String::new(),
            environment: Environment::new(),
            builder: Builder::Embedded,
            created_at: Timestamp::now(),
            state: StagingState::Building,
            image: None,
            timings: Vec::new(),
            basis: None,
            log: Vec::new(),
            then: AfterStaging::Nothing,
        };
        self.objects.create(&staging).await.unwrap();
        staging
    }
}

fn claims(staging: &Staging, seconds: i64) -> BuildClaims {
    BuildClaims {
        namespace: staging.namespace.clone(),
        staging: staging.id.clone(),
        grants: vec![Grant { repository: REPOSITORY.to_owned(), actions: vec![Action::Pull, Action::Push] }],
        expires_at: Timestamp::from_second(Timestamp::now().as_second() + seconds),
    }
}

#[tokio::test]
async fn passwords_are_kept_as_argon2id_and_checked() {
    let house = House::new();
    let auth = house.auth().await;
    assert!(!auth.has_users().await.unwrap());
    auth.create_admin("right".to_owned()).await.unwrap();
    assert!(auth.has_users().await.unwrap());
    let stored = house.objects.list::<User>(None).await.unwrap().remove(0).value;
    assert!(stored.hash.starts_with("$argon2id$v=19$"), "{}", stored.hash);
    let principal = auth.check("admin", "right").await.unwrap().unwrap();
    assert_eq!((principal.name.as_str(), principal.role), ("admin", Role::Admin));
    // Remembered, and only that.
    assert!(auth.check("admin", "right").await.unwrap().is_some());
    for (user, password) in [("admin", "wrong"), ("nobody", "right"), ("not a name", "right")] {
        let started = Instant::now();
        assert_eq!(auth.check(user, password).await.unwrap(), None, "{user}");
        assert!(started.elapsed() >= WRONG, "{user}: who guesses has to wait");
    }
    assert!(house.auth().await.check("admin", "right").await.unwrap().is_some());
}

#[tokio::test]
async fn who_cannot_be_checked_soon_is_sent_away() {
    let auth = House::new().auth().await;
    let _all = Arc::clone(&auth.checks).acquire_many_owned(CHECKS_AT_ONCE as u32).await.unwrap();
    assert!(matches!(auth.check("admin", "x").await, Err(Error::Busy)));
}

#[tokio::test]
async fn a_token_is_good_for_its_staging_and_repository() {
    let house = House::new();
    let auth = house.auth().await;
    let staging = house.staging().await;
    let token = auth.sign(&claims(&staging, 60));
    let header = format!("Bearer {token}");
    let may = |repository, action| auth.permits(Some(&header), repository, action);
    assert!(matches!(may(Some(REPOSITORY), Action::Push).await, Verdict::Allowed));
    assert!(matches!(may(Some("workspace/other"), Action::Pull).await, Verdict::Denied));
    // A daemon that was started again knows it.
    assert!(house.auth().await.verify(&token).await.unwrap().is_some());
    // It is revoked by the end of its staging.
    let key = store::Key::staging(&staging.namespace, &staging.id);
    house.objects.modify::<Staging>(&key, |staging| staging.state = StagingState::Done).await.unwrap();
    assert!(matches!(may(Some(REPOSITORY), Action::Push).await, Verdict::Unknown));
    assert_eq!(auth.verify(&token).await.unwrap(), None);
}

#[tokio::test]
async fn a_token_that_was_changed_or_has_expired_is_none() {
    let house = House::new();
    let auth = house.auth().await;
    let staging = house.staging().await;
    let token = auth.sign(&claims(&staging, 60));
    for place in 0..token.len() {
        let mut changed = token.clone().into_bytes();
        changed[place] = if changed[place] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(changed).unwrap();
        assert_eq!(auth.verify(&changed).await.unwrap(), None, "the change at {place} was not seen");
    }
    for wrong in ["", ".", "e30.", &token[..token.len() - 4]] {
        assert_eq!(auth.verify(wrong).await.unwrap(), None, "{wrong}");
    }
    assert_eq!(auth.verify(&auth.sign(&claims(&staging, -1))).await.unwrap(), None, "it has expired");
    // Another installation has another key.
    assert_eq!(House::new().auth().await.verify(&token).await.unwrap(), None);
}

#[tokio::test]
async fn a_token_of_one_kind_is_none_of_the_other() {
    let house = House::new();
    let auth = house.auth().await;
    let user: UserName = "admin".parse().unwrap();
    let websocket = auth.websocket_token(&user);
    assert_eq!(auth.verify_websocket(&websocket), Some(user));
    assert_eq!(auth.verify(&websocket).await.unwrap(), None);
    let build = auth.sign(&claims(&house.staging().await, 60));
    assert_eq!(auth.verify_websocket(&build), None);
}
