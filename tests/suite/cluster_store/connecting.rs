//! The way to a cluster: what is wrong is named.

use std::path::Path;

use epiniod::store::kube::connect;
use serde_json::json;

use super::place::{Place, file};

async fn refusal(kubeconfig: &Path) -> String {
    connect(Some(kubeconfig)).await.expect_err("it cannot be used").to_string()
}

fn kubeconfig(server: &str) -> serde_json::Value {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [{ "name": "here", "context": { "cluster": "c", "user": "u" } }],
        "clusters": [{ "name": "c", "cluster": { "server": server } }],
        "users": [{ "name": "u", "user": {} }],
    })
}

#[tokio::test]
async fn a_kubeconfig_that_cannot_be_used_is_told_apart() {
    let missing = refusal(Path::new("/nowhere/kubeconfig")).await;
    assert!(missing.contains("/nowhere/kubeconfig") && missing.contains("no such file"), "{missing}");
    for nonsense in ["clusters: 7", "{", "- a"] {
        let refused = refusal(file(nonsense).path()).await;
        assert!(refused.contains("not a kubeconfig"), "{nonsense}: {refused}");
    }
    let mut unknown = kubeconfig("https://127.0.0.1:1");
    unknown["current-context"] = json!("elsewhere");
    let refused = refusal(file(&unknown.to_string()).path()).await;
    assert!(refused.contains("'elsewhere' is not in it") && refused.contains("use-context"), "{refused}");
    unknown.as_object_mut().unwrap().remove("current-context");
    let refused = refusal(file(&unknown.to_string()).path()).await;
    assert!(refused.contains("no current context"), "{refused}");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let refused = refusal(file(&kubeconfig(&closed).to_string()).path()).await;
    assert!(refused.contains("cannot be reached") && refused.contains(&closed), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_is_not_the_one_of_the_kubeconfig_is_not_trusted() {
    let Some(place) = Place::make("certificates and credentials").await else { return };
    let text = std::fs::read_to_string(&place.kubeconfig).unwrap();
    let known: serde_json::Value = serde_yaml_ng::from_str(&text).unwrap();
    let mut stranger = known.clone();
    let authority = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/stranger-ca.pem")).unwrap();
    stranger["clusters"][0]["cluster"]["certificate-authority-data"] = json!(base64_of(&authority));
    let refused = refusal(file(&stranger.to_string()).path()).await;
    assert!(refused.contains("cannot be trusted") && refused.contains("certificate"), "{refused}");
    let mut expired = known;
    expired["users"][0]["user"] = json!({ "token": "of-yesterday" });
    let refused = refusal(file(&expired.to_string()).path()).await;
    assert!(refused.contains("401") && refused.contains("credential"), "{refused}");
}

fn base64_of(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
