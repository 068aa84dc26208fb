use super::*;
use crate::{
    model::{AfterStaging, Builder, Digest, Environment, Staging, StagingState, Timestamp},
    oci::registry::{Action, Authenticator as _, Credential, Verdict},
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
        Auth::open(self.objects.clone(), Audit::nowhere()).await.unwrap()
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

fn from(address: &str) -> ClientAddress {
    ClientAddress::direct(address.parse().unwrap())
}

fn here() -> ClientAddress {
    from("127.0.0.1")
}

fn chosen(password: &str) -> Password {
    Password::Chosen(password.to_owned())
}

#[tokio::test]
async fn passwords_are_kept_as_argon2id_and_checked() {
    let house = House::new();
    let auth = house.auth().await;
    assert!(!auth.has_users().await.unwrap());
    auth.create_admin(chosen("right")).await.unwrap();
    assert!(auth.has_users().await.unwrap());
    let stored = house.objects.list::<User>(None).await.unwrap().remove(0).value;
    assert!(stored.hash.starts_with("$argon2id$v=19$") && stored.digest.is_none(), "{}", stored.hash);
    let principal = auth.check("admin", "right", here()).await.unwrap();
    assert_eq!((principal.name.as_str(), principal.role), ("admin", Role::Admin));
    // Remembered, and only that.
    assert!(auth.check("admin", "right", here()).await.is_ok());
    for (user, password) in [("admin", "wrong"), ("nobody", "right"), ("not a name", "right")] {
        let said = auth.check(user, password, here()).await.unwrap_err();
        assert!(matches!(said, Error::Wrong), "{user}: {said}");
    }
    assert!(house.auth().await.check("admin", "right", here()).await.is_ok());
}

#[tokio::test]
async fn who_guesses_is_not_told_the_right_password_and_nobody_else_waits() {
    let auth = House::new().auth().await;
    auth.create_admin(chosen("right")).await.unwrap();
    let (guesser, other) = (from("192.0.2.1"), from("198.51.100.1"));
    auth.check("admin", "right", guesser).await.unwrap();
    for guess in 0..5 {
        assert!(matches!(auth.check("admin", &guess.to_string(), guesser).await, Err(Error::Wrong)));
    }
    for (user, password) in [("admin", "right"), ("admin", "wrong")] {
        let said = auth.check(user, password, guesser).await;
        assert!(matches!(said, Err(Error::Wait { seconds: 1 })), "{password}: {said:?}");
    }
    assert!(auth.check("admin", "right", other).await.is_ok());
    // Somebody who does not exist is nobody else.
    for guess in 0..5 {
        assert!(matches!(auth.check("nobody", &guess.to_string(), guesser).await, Err(Error::Wrong)));
    }
    assert!(matches!(auth.check("nobody", "right", guesser).await, Err(Error::Wait { .. })));
}

#[tokio::test]
async fn many_guesses_at_once_are_no_more_than_one_after_the_other() {
    let auth = House::new().auth().await;
    auth.create_admin(chosen("right")).await.unwrap();
    let guesses = (0..40).map(|guess| {
        let auth = Arc::clone(&auth);
        tokio::spawn(async move { auth.check("admin", &guess.to_string(), from("192.0.2.1")).await })
    });
    let mut looked_at = 0;
    for guess in futures::future::join_all(guesses.collect::<Vec<_>>()).await {
        looked_at += usize::from(matches!(guess.unwrap(), Err(Error::Wrong)));
    }
    // Those that are checked at once do not know of each other; after a second there may be one more.
    assert!((5..=5 + CHECKS_AT_ONCE + 2).contains(&looked_at), "{looked_at} were looked at");
}

#[tokio::test]
async fn a_password_that_was_made_here_is_right_in_spite_of_guesses() {
    let house = House::new();
    let auth = house.auth().await;
    let password = new_password();
    auth.create_admin(Password::Made(password.clone())).await.unwrap();
    let auth = house.auth().await;
    for guess in 0..6 {
        let _ = auth.check("admin", &guess.to_string(), here()).await;
    }
    assert!(matches!(auth.check("admin", "wrong", here()).await, Err(Error::Wait { .. })));
    assert!(auth.check("admin", &password, here()).await.is_ok());
    let stored = house.objects.list::<User>(None).await.unwrap().remove(0).value;
    assert!(!serde_json::to_string(&stored).unwrap().contains(&password));
}

#[tokio::test]
async fn who_cannot_be_checked_soon_is_sent_away() {
    let auth = House::new().auth().await;
    let _all = Arc::clone(&auth.checks).acquire_many_owned(CHECKS_AT_ONCE as u32).await.unwrap();
    let said = auth.check("admin", "x", here()).await.unwrap_err();
    assert!(matches!(said, Error::Busy) && said.retry_after() == Some(2), "{said:?}");
}

/// A token with this scope, good for so many seconds.
async fn token(auth: &Auth, name: &str, scope: Scope, seconds: i64) -> String {
    let admin = Principal { name: ADMIN.parse().unwrap(), role: Role::Admin, token: None };
    let expires_at = Some(Timestamp::from_second(Timestamp::now().as_second() + seconds));
    let name = name.parse().unwrap();
    let wanted = Wanted { name, scopes: vec![scope], namespaces: vec!["workspace".parse().unwrap()], expires_at };
    auth.create_token(wanted, &admin).await.unwrap().1
}

fn basic_header(name: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{name}:{password}")))
}

#[tokio::test]
async fn api_tokens_are_good_as_bearers_and_as_passwords_until_they_end() {
    let house = House::new();
    let auth = house.auth().await;
    let secret = token(&auth, "ci", Scope::Push, 60).await;
    let stored = serde_json::to_string(&house.objects.list::<ApiToken>(None).await.unwrap()[0].value).unwrap();
    assert!(!stored.contains(&secret), "{stored}");
    // The next daemon knows it as well.
    for auth in [&auth, &house.auth().await] {
        for header in [format!("Bearer {secret}"), basic_header("token", &secret), basic_header("admin", &secret)] {
            let principal = auth.identify(Some(&header), here()).await.unwrap();
            assert_eq!(principal.token.unwrap().name.as_str(), "ci", "{header}");
        }
    }
    assert!(auth.tokens()[0].last_used_at.is_some());
    let bearer = |token: &str| format!("Bearer {token}");
    let identify = async |header: String| auth.identify(Some(&header), here()).await.map(|_| ()).unwrap_err();
    let expired = token(&auth, "old", Scope::Push, -1).await;
    assert!(identify(bearer(&expired)).await.to_string().starts_with("token 'old' expired at 20"));
    assert!(matches!(identify(bearer(&secret[..secret.len() - 1])).await, Error::TokenDamaged));
    assert!(matches!(identify(basic_header("token", "epiniod_")).await, Error::TokenDamaged));
    auth.delete_token(&"ci".parse().unwrap()).await.unwrap();
    assert!(matches!(identify(bearer(&secret)).await, Error::TokenUnknown));
    assert!(house.objects.list::<ApiToken>(None).await.unwrap().len() == 1);
    assert!(matches!(identify("Digest x".to_owned()).await, Error::Unsupported));
}

#[tokio::test]
async fn a_websocket_of_a_token_reaches_as_far_and_ends_with_it() {
    let auth = House::new().auth().await;
    let secret = token(&auth, "ci", Scope::Read, 60).await;
    let principal = auth.identify(Some(&format!("Bearer {secret}")), here()).await.unwrap();
    let websocket = auth.websocket_token(&principal);
    assert_eq!(auth.verify_websocket(&websocket, here()).unwrap(), principal);
    auth.delete_token(&"ci".parse().unwrap()).await.unwrap();
    assert!(matches!(auth.verify_websocket(&websocket, here()), Err(Error::TokenUnknown)));
}

#[tokio::test]
async fn wrong_tokens_wait_and_right_ones_do_not() {
    let auth = House::new().auth().await;
    let secret = token(&auth, "ci", Scope::Read, 60).await;
    for _ in 0..5 {
        assert!(matches!(auth.verify_websocket("x.y", here()), Err(Error::WebsocketToken)));
    }
    assert!(matches!(auth.verify_websocket("x.y", here()), Err(Error::Wait { .. })));
    assert!(matches!(auth.identify(Some("Bearer x"), here()).await, Err(Error::Wait { .. })));
    assert!(auth.identify(Some(&format!("Bearer {secret}")), here()).await.is_ok());
}

fn credential(header: &str) -> Credential<'_> {
    Credential { header: Some(header), from: here().address }
}

#[tokio::test]
async fn the_registry_knows_tokens_and_waits_as_well() {
    let auth = House::new().auth().await;
    auth.create_admin(chosen("right")).await.unwrap();
    let reader = basic_header("token", &token(&auth, "reader", Scope::Read, 60).await);
    let admin = basic_header("admin", "right");
    for (header, repository, action, expected) in [
        (&reader, Some(REPOSITORY), Action::Pull, Verdict::Allowed),
        (&reader, Some(REPOSITORY), Action::Push, Verdict::Denied),
        (&reader, Some("other/shop"), Action::Pull, Verdict::Denied),
        (&reader, None, Action::Pull, Verdict::Allowed),
        (&reader, None, Action::Catalog, Verdict::Denied),
        (&admin, Some(REPOSITORY), Action::Delete, Verdict::Allowed),
        (&admin, None, Action::Catalog, Verdict::Allowed),
    ] {
        assert_eq!(auth.permits(credential(header), repository, action).await, expected, "{repository:?} {action:?}");
    }
    let wrong = basic_header("admin", "wrong");
    for _ in 0..5 {
        assert_eq!(auth.permits(credential(&wrong), None, Action::Pull).await, Verdict::Unknown);
    }
    assert_eq!(auth.permits(credential(&wrong), None, Action::Pull).await, Verdict::Wait { seconds: 1 });
}

#[tokio::test]
async fn a_token_is_good_for_its_staging_and_repository() {
    let house = House::new();
    let auth = house.auth().await;
    let staging = house.staging().await;
    let token = auth.sign(&claims(&staging, 60));
    let header = format!("Bearer {token}");
    let may = |repository, action| auth.permits(credential(&header), repository, action);
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
    let admin = Principal { name: ADMIN.parse().unwrap(), role: Role::Admin, token: None };
    let websocket = auth.websocket_token(&admin);
    assert_eq!(auth.verify_websocket(&websocket, here()).unwrap(), admin);
    assert_eq!(auth.verify(&websocket).await.unwrap(), None);
    let build = auth.sign(&claims(&house.staging().await, 60));
    assert!(matches!(auth.verify_websocket(&build, here()), Err(Error::WebsocketToken)));
}
