//! A job as the cluster gets it: one pod, in which every step but the last is an init container.
//!
//! The pod asks for nothing that the Pod Security level `restricted` refuses. Each container mounts its own
//! specification and nothing of the others'; no container has a service account's token.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::{
    Settings, names,
    step::{Fetch, ROLE, SPECIFICATION, Specification, Tool},
};
use crate::runtime::{Access, CNB_ID, Error, Job, Limits, OWN_BINARY, Step, StepImage, StepUser, TRUST_BUNDLES, Trust};

/// How long the daemon may take to look at a job that ended, in seconds: later the cluster throws it away.
const KEPT: u64 = 3600;
/// What a job may take beyond the deadlines of its steps, for images to be pulled and a node to be found, in seconds.
const SLACK: u64 = 1800;
/// What our own program is called in its own image.
const IN_OWN_IMAGE: &str = "/epiniod";

/// The job and the secret with its specifications.
pub(super) struct Manifests {
    pub job: Value,
    pub secret: Value,
}

/// What the containers of a job are called is what its steps are called.
pub(super) fn manifests(settings: &Settings, job: &Job) -> Result<Manifests, Error> {
    let name = names::job(&job.id);
    let labels = json!({
        names::MANAGED_BY: names::MANAGER,
        names::SYSTEM: settings.namespace,
        names::STAGING: job.id.to_string(),
    });
    // One user for all: volumes are nobody's in particular, and what one step wrote the next one changes.
    let of_image = job.steps.iter().find_map(|step| match step.user {
        StepUser::Image { uid, gid } => Some((uid, gid)),
        StepUser::Root | StepUser::Cnb => None,
    });
    let user = of_image.unwrap_or((CNB_ID, CNB_ID));
    let mut texts = BTreeMap::new();
    let mut containers = Vec::new();
    for (number, step) in job.steps.iter().enumerate() {
        let tool = if number == 0 { Tool::Provide } else { Tool::Use };
        let specification = specification(settings, step, tool)?;
        let text = serde_json::to_string(&specification).map_err(|error| Error::Failed {
            doing: format!("writing down step {}", step.name),
            cause: error.to_string(),
        })?;
        texts.insert(step.name, text);
        containers.push(container(settings, step, tool, user));
    }
    let last = containers.pop();
    let deadline: u64 = job.steps.iter().map(|step| step.deadline.as_secs()).sum();
    let pod = json!({
        "restartPolicy": "Never",
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "terminationGracePeriodSeconds": 1,
        "imagePullSecrets": [{ "name": names::PULL_SECRET }],
        "nodeSelector": { "kubernetes.io/os": "linux", "kubernetes.io/arch": crate::oci::architecture() },
        "securityContext": { "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" } },
        "initContainers": containers,
        "containers": last.into_iter().collect::<Vec<_>>(),
        "volumes": volumes(job, &name),
    });
    Ok(Manifests {
        job: json!({
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": { "name": name, "namespace": settings.builds_namespace, "labels": labels },
            "spec": {
                "backoffLimit": 0,
                "activeDeadlineSeconds": deadline + SLACK,
                "ttlSecondsAfterFinished": KEPT,
                "template": { "metadata": { "labels": labels }, "spec": pod },
            },
        }),
        secret: json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": { "name": name, "namespace": settings.builds_namespace, "labels": labels },
            "stringData": texts,
        }),
    })
}

/// The images of the containers, in order: what makes a job another one.
pub(super) fn images(settings: &Settings, job: &Job) -> Vec<String> {
    job.steps.iter().map(|step| image(settings, step)).collect()
}

fn specification(settings: &Settings, step: &Step, tool: Tool) -> Result<Specification, Error> {
    let mut files = BTreeMap::new();
    for file in &step.files {
        let text = String::from_utf8(file.contents.clone()).map_err(|_| Error::Failed {
            doing: format!("preparing step {}", step.name),
            cause: format!("{} is not text", file.path),
        })?;
        files.insert(file.path.clone(), text);
    }
    let fetch = |blob: &crate::runtime::StepBlob| Fetch {
        from: settings.daemon.clone(),
        resource: format!("/blobs/{}", blob.digest),
        token: blob.token.clone(),
        path: blob.path.clone(),
    };
    Ok(Specification {
        args: step.args.clone(),
        env: step.env.clone(),
        files,
        blobs: step.blobs.iter().map(fetch).collect(),
        report: step.report.clone(),
        deadline_seconds: step.deadline.as_secs(),
        tool,
    })
}

fn image(settings: &Settings, step: &Step) -> String {
    match &step.image {
        StepImage::Own => settings.own_image.clone(),
        StepImage::Image(image) => image.to_string(),
    }
}

fn container(settings: &Settings, step: &Step, tool: Tool, (user, group): (u32, u32)) -> Value {
    let program = match step.image {
        StepImage::Own => IN_OWN_IMAGE,
        StepImage::Image(_) => OWN_BINARY,
    };
    let mut mounts = vec![
        json!({ "name": format!("step-{}", step.name), "mountPath": folder(SPECIFICATION), "readOnly": true }),
        json!({ "name": format!("run-{}", step.name), "mountPath": "/run/epiniod" }),
        json!({ "name": "tool", "mountPath": folder(OWN_BINARY), "readOnly": tool == Tool::Use }),
    ];
    for volume in &step.volumes {
        let read_only = volume.access == Access::ReadOnly;
        mounts.push(json!({ "name": volume.volume, "mountPath": volume.path, "readOnly": read_only }));
    }
    if step.trust == Trust::BuildCa && settings.build_ca.is_some() {
        let bundle = |path: &&str| json!({ "name": "trust", "mountPath": path, "subPath": "ca.crt", "readOnly": true });
        mounts.extend(TRUST_BUNDLES.iter().map(bundle));
    }
    json!({
        "name": step.name,
        "image": image(settings, step),
        "imagePullPolicy": "IfNotPresent",
        "command": [program, ROLE, SPECIFICATION],
        "volumeMounts": mounts,
        "resources": resources(&step.limits),
        "securityContext": {
            "runAsUser": user,
            "runAsGroup": group,
            "allowPrivilegeEscalation": false,
            "capabilities": { "drop": ["ALL"] },
        },
    })
}

/// What a container may use, and what a node has to have free for it: less, as most never use what they may.
pub(super) fn resources(limits: &Limits) -> Value {
    let mut most = BTreeMap::new();
    let mut least = BTreeMap::from([("cpu", "50m".to_owned()), ("memory", "64Mi".to_owned())]);
    if let Some(bytes) = limits.memory_bytes {
        most.insert("memory", bytes.to_string());
        least.insert("memory", bytes.min(64 << 20).to_string());
    }
    if let Some(millis) = limits.millicpus {
        most.insert("cpu", format!("{millis}m"));
        least.insert("cpu", format!("{}m", millis.min(50)));
    }
    if let Some(bytes) = limits.scratch_bytes {
        most.insert("ephemeral-storage", bytes.to_string());
    }
    json!({ "limits": most, "requests": least })
}

fn volumes(job: &Job, secret: &str) -> Vec<Value> {
    let mut volumes = vec![json!({ "name": "tool", "emptyDir": {} })];
    let shared: BTreeSet<&str> =
        job.steps.iter().flat_map(|step| &step.volumes).map(|volume| volume.volume.as_str()).collect();
    volumes.extend(shared.into_iter().map(|name| json!({ "name": name, "emptyDir": {} })));
    for step in &job.steps {
        volumes.push(json!({ "name": format!("run-{}", step.name), "emptyDir": {} }));
        volumes.push(json!({
            "name": format!("step-{}", step.name),
            // Mounted into this one container only, whose user is none of the volume's.
            "secret": { "secretName": secret, "defaultMode": 0o444, "items": [{ "key": step.name, "path": "step.json" }] },
        }));
    }
    if job.steps.iter().any(|step| step.trust == Trust::BuildCa) {
        volumes.push(json!({ "name": "trust", "configMap": { "name": names::BUILD_CA, "optional": true } }));
    }
    volumes
}

fn folder(path: &str) -> &str {
    path.rsplit_once('/').map_or("/", |(folder, _)| folder)
}
