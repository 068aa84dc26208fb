//! Wrong keys, a bucket that is not there, an endpoint that is down, that lies, or that breaks off.

use std::time::{Duration, Instant};

use epiniod::blob::{Blobs as _, Claim, Error, KeySource, S3Blobs, S3Settings};
use nix::sys::signal::Signal;

use super::{PART, content, put, read};
use crate::support::{ACCESS, Bucket, Proxy, SECRET, files, keys, open, send, wait_until};

async fn refusal(bucket: &Bucket, settings: S3Settings) -> String {
    match open(settings, &bucket.copies()).await {
        Ok(_) => panic!("the bucket is taken"),
        Err(error) => error.to_string(),
    }
}

#[tokio::test]
async fn a_bucket_that_cannot_be_used_is_refused_and_the_flag_is_named() {
    let Some(bucket) = Bucket::start() else { return };
    let with_keys =
        |access: &str, secret: &str| S3Settings { keys: KeySource::Fixed(keys(access, secret)), ..bucket.settings() };
    let wrong = refusal(&bucket, with_keys("nobody", SECRET)).await;
    assert!(wrong.contains("does not know the access key") && wrong.contains("--s3-credentials-file"), "{wrong}");
    let wrong = refusal(&bucket, with_keys(ACCESS, "wrong")).await;
    assert!(wrong.contains("the secret key does not belong to the access key"), "{wrong}");
    assert!(!wrong.contains(SECRET), "{wrong}");
    let wrong = refusal(&bucket, S3Settings { bucket: "nowhere".to_owned(), ..bucket.settings() }).await;
    assert!(wrong.contains("there is no bucket 'nowhere'") && wrong.contains("--s3-bucket"), "{wrong}");
    let wrong = refusal(&bucket, S3Settings { region: "eu-north-1".to_owned(), ..bucket.settings() }).await;
    assert!(wrong.contains("--s3-region"), "{wrong}");
}

#[tokio::test]
async fn what_is_no_s3_is_refused() {
    let Some(bucket) = Bucket::start() else { return };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let page = axum::Router::new().fallback(|| async { (axum::http::StatusCode::NOT_FOUND, "<html>no</html>") });
    tokio::spawn(async move { axum::serve(listener, page).await });
    let wrong = refusal(&bucket, S3Settings { endpoint, ..bucket.settings() }).await;
    assert!(wrong.contains("does not answer as S3 does") && wrong.contains("--s3-endpoint"), "{wrong}");
}

/// AWS refuses what does not say how long it is, and does not take chunks; versitygw is more lenient.
#[tokio::test]
async fn every_request_with_a_body_says_how_long_it_is() {
    let Some(bucket) = Bucket::start() else { return };
    let proxy = Proxy::to(bucket.port);
    let settings = S3Settings { endpoint: format!("http://127.0.0.1:{}", proxy.port), ..bucket.settings() };
    let blobs = open(settings, &bucket.copies()).await.unwrap();
    let digest = put(&blobs, &content(PART + 1)).await.unwrap();
    assert!(blobs.touch(&digest).await.unwrap());
    let heads = proxy.requests();
    let bodies = || heads.iter().filter(|head| head.starts_with("PUT ") || head.starts_with("POST "));
    assert!(bodies().count() >= 6, "{heads:#?}");
    for head in bodies() {
        let head = head.to_ascii_lowercase();
        assert!(head.contains("\r\ncontent-length: ") && !head.contains("transfer-encoding"), "{head}");
        assert!(head.contains("\r\nx-amz-content-sha256: ") && !head.contains("unsigned"), "{head}");
    }
}

#[tokio::test]
async fn a_bucket_belongs_to_one_daemon() {
    let Some(bucket) = Bucket::start() else { return };
    let missing = S3Blobs::open(bucket.settings(), "tests", Claim::Existing, &bucket.copies()).await.err().unwrap();
    assert!(missing.to_string().contains("does not have what this data directory refers to"), "{missing}");
    drop(bucket.open().await);
    let foreign = S3Blobs::open(bucket.settings(), "another", Claim::New, &bucket.copies()).await.err().unwrap();
    assert!(foreign.to_string().contains("belongs to another daemon"), "{foreign}");
    assert!(S3Blobs::open(bucket.settings(), "tests", Claim::Existing, &bucket.copies()).await.is_ok());
}

#[tokio::test]
async fn tls_needs_an_authority_that_is_trusted() {
    let Some(bucket) = Bucket::start_tls() else { return };
    let blobs = bucket.open().await;
    let digest = put(&blobs, &content(PART + 1)).await.unwrap();
    assert_eq!(blobs.size(&digest).await.unwrap(), Some(PART as u64 + 1));
    let wrong = refusal(&bucket, S3Settings { ca_file: None, ..bucket.settings() }).await;
    assert!(wrong.contains("not trusted") && wrong.contains("--s3-ca-file"), "{wrong}");
}

#[tokio::test]
async fn keys_in_a_file_may_be_replaced_under_a_running_daemon() {
    let Some(bucket) = Bucket::start() else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("credentials");
    let write = |secret: &str| {
        let text = format!("[default]\naws_access_key_id = {ACCESS}\naws_secret_access_key = {secret}\n");
        std::fs::write(&path, text).unwrap();
    };
    write(SECRET);
    let settings = S3Settings { keys: KeySource::File(path.clone()), ..bucket.settings() };
    let blobs = open(settings.clone(), &bucket.copies()).await.unwrap();
    let digest = put(&blobs, &content(100)).await.unwrap();
    write("old");
    let wrong = open(settings, &bucket.copies()).await.err().unwrap();
    assert!(wrong.to_string().contains("secret key"), "{wrong}");
    write(SECRET);
    assert_eq!(blobs.size(&digest).await.unwrap(), Some(100));
}

#[tokio::test]
async fn an_endpoint_that_is_down_is_told_soon_and_used_again_when_it_is_back() {
    let Some(mut bucket) = Bucket::start() else { return };
    let blobs = bucket.open().await;
    let kept = put(&blobs, &content(PART + 7)).await.unwrap();
    let mut interrupted = blobs.writer().await.unwrap();
    interrupted.write(content(PART + 9)).await.unwrap();
    bucket.stop();
    let begun = Instant::now();
    let down = put(&blobs, &content(20)).await.unwrap_err();
    assert!(matches!(down, Error::Unavailable { .. }), "{down:?}");
    assert!(down.to_string().contains("--s3-endpoint"), "{down}");
    assert!(blobs.open(&kept, None).await.is_err() && blobs.size(&kept).await.is_err(), "it is not said to be gone");
    assert!(interrupted.finish(None).await.unwrap_err().is_temporary());
    assert!(begun.elapsed() < Duration::from_secs(60), "it took {:?}", begun.elapsed());
    bucket.resume();
    assert!(read(&blobs, &kept).await.unwrap() == content(PART + 7), "what was acknowledged is there");
    put(&blobs, &content(20)).await.unwrap();
}

#[tokio::test]
async fn an_endpoint_that_is_away_for_a_moment_is_not_noticed() {
    let Some(mut bucket) = Bucket::start() else { return };
    let blobs = bucket.open().await;
    bucket.stop();
    let content = content(PART + 7);
    let writing = put(&blobs, &content);
    let back = tokio::task::spawn_blocking(move || {
        bucket.resume();
        bucket
    });
    let (written, bucket) = tokio::join!(writing, back);
    assert!(read(&blobs, &written.unwrap()).await.unwrap() == content);
    drop(bucket);
}

#[tokio::test]
async fn an_endpoint_that_says_nothing_is_given_up() {
    let Some(bucket) = Bucket::start() else { return };
    let blobs = bucket.open().await;
    let digest = put(&blobs, &content(20)).await.unwrap();
    send(bucket.process(), Signal::SIGSTOP);
    let stat = format!("/proc/{}/stat", bucket.process().id());
    wait_until("the server stands still", Duration::from_secs(10), || {
        std::fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") T "))
    });
    let begun = Instant::now();
    let silent = blobs.size(&digest).await;
    send(bucket.process(), Signal::SIGCONT);
    let silent = silent.unwrap_err();
    assert!(silent.is_temporary() && silent.to_string().contains("nothing came for"), "{silent}");
    assert!(begun.elapsed() < Duration::from_secs(90), "it took {:?}", begun.elapsed());
    assert_eq!(blobs.size(&digest).await.unwrap(), Some(20));
}

#[tokio::test]
async fn what_is_damaged_on_the_way_in_is_sent_again() {
    let Some(bucket) = Bucket::start() else { return };
    let proxy = Proxy::to(bucket.port);
    let settings = S3Settings { endpoint: format!("http://127.0.0.1:{}", proxy.port), ..bucket.settings() };
    let blobs = open(settings, &bucket.copies()).await.unwrap();
    let content = bytes::Bytes::from_static(b"the quick brown fox");
    proxy.replace("quick brown", "quick green", 1);
    let digest = put(&blobs, &content).await.unwrap();
    assert_eq!(proxy.done(), 1);
    assert_eq!(read(&blobs, &digest).await.unwrap(), content);
    proxy.replace("quick black", "quick green", 100);
    let damaged = put(&blobs, &bytes::Bytes::from_static(b"the quick black fox")).await;
    assert!(matches!(damaged, Err(Error::Unavailable { .. })), "{damaged:?}");
    assert_eq!(bucket.files("blobs").len(), 1, "nothing that is damaged is kept");
}

#[tokio::test]
async fn what_is_damaged_on_the_way_out_is_noticed() {
    let Some(bucket) = Bucket::start() else { return };
    let proxy = Proxy::to(bucket.port);
    let settings = S3Settings { endpoint: format!("http://127.0.0.1:{}", proxy.port), ..bucket.settings() };
    let blobs = open(settings, &bucket.copies()).await.unwrap();
    let digest = put(&blobs, &bytes::Bytes::from_static(b"the quick brown fox")).await.unwrap();
    proxy.replace("quick brown", "quick green", 2);
    let damaged = read(&blobs, &digest).await.unwrap_err();
    assert!(damaged.to_string().contains("has something else"), "{damaged}");
    assert!(blobs.local_file(&digest).await.is_err());
    assert_eq!(files(&bucket.copies()).len(), 0, "nothing that is damaged is kept");
    assert_eq!(read(&blobs, &digest).await.unwrap(), b"the quick brown fox");
}

#[tokio::test]
async fn reading_goes_on_where_a_connection_broke() {
    let Some(bucket) = Bucket::start() else { return };
    let proxy = Proxy::to(bucket.port);
    let settings = S3Settings { endpoint: format!("http://127.0.0.1:{}", proxy.port), ..bucket.settings() };
    let blobs = open(settings, &bucket.copies()).await.unwrap();
    let content = content(3 * PART);
    let digest = put(&blobs, &content).await.unwrap();
    proxy.cut_answers(PART, 2);
    assert!(read(&blobs, &digest).await.unwrap() == content);
    assert_eq!(proxy.done(), 2);
}
