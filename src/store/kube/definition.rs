//! The definition of applications (`apps.epiniod.dev`), which a cluster has to be given before there can be any.

use std::time::Duration;

use kube::{
    Api,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{Cluster, call::call};
use crate::store::Error;

/// The manifest, for who applies it in another way.
pub fn definition() -> &'static str {
    include_str!("../../../embedded/kubernetes/crd.yaml")
}

/// What the service account `epiniod` of the namespace `epiniod` may do for the sake of the store.
pub fn rights() -> &'static str {
    include_str!("../../../embedded/kubernetes/store-rights.yaml")
}

/// Defines applications in the cluster, or brings their definition up to date, and waits until it is in force.
pub async fn install_definition(cluster: &Cluster) -> Result<(), Error> {
    const DOING: &str = "defining applications in the cluster";
    let failed = |cause: String| Error::Backend { doing: DOING.to_owned(), cause };
    let manifest: Value = serde_yaml_ng::from_str(definition()).map_err(|error| failed(error.to_string()))?;
    let name = manifest["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let resource = ApiResource {
        group: "apiextensions.k8s.io".to_owned(),
        version: "v1".to_owned(),
        api_version: "apiextensions.k8s.io/v1".to_owned(),
        kind: "CustomResourceDefinition".to_owned(),
        plural: "customresourcedefinitions".to_owned(),
    };
    let api: Api<DynamicObject> = Api::all_with(cluster.calls.clone(), &resource);
    let (params, patch) = (PatchParams::apply("epiniod").force(), Patch::Apply(&manifest));
    let applied = call(|| api.patch(&name, &params, &patch)).await;
    applied.map_err(|failure| failure.into_error(DOING))?;
    let give_up = Instant::now() + IN_FORCE;
    loop {
        let found = call(|| api.get(&name)).await.map_err(|failure| failure.into_error(DOING))?;
        if is_in_force(&found) {
            return Ok(());
        }
        if Instant::now() > give_up {
            return Err(failed(format!(
                "it is not in force after {} s; see `kubectl describe crd {name}`",
                IN_FORCE.as_secs()
            )));
        }
        sleep(LOOK_AGAIN).await;
    }
}

fn is_in_force(found: &DynamicObject) -> bool {
    let conditions = found.data["status"]["conditions"].as_array();
    conditions.is_some_and(|all| {
        all.iter().any(|condition| condition["type"] == json!("Established") && condition["status"] == json!("True"))
    })
}

const IN_FORCE: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::App,
        store::kube::places::{Form, GROUP},
    };

    #[test]
    fn the_manifest_defines_what_the_store_uses_and_every_field_of_an_application() {
        let manifest: Value = serde_yaml_ng::from_str(definition()).unwrap();
        let resource = Form::App.resource();
        assert_eq!(manifest["metadata"]["name"], format!("{}.{GROUP}", resource.plural));
        assert_eq!(manifest["spec"]["names"]["kind"], resource.kind);
        assert_eq!(manifest["spec"]["group"], GROUP);
        let schema = &manifest["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"];
        let app = App::new("workspace".parse().unwrap(), "web".parse().unwrap(), "admin".to_owned());
        for (field, value) in serde_json::to_value(app).unwrap().as_object().unwrap() {
            assert!(schema[field].is_object(), "the schema does not know '{field}'");
            assert!(!value.is_null() || schema[field]["nullable"] == true, "'{field}' may be null");
        }
    }
}
