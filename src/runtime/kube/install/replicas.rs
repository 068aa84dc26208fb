//! Several daemons in one installation: one works, and the others take its place when it goes.
//!
//! They are of use only where each finds what the one before left, and can be reached in its place. On a volume of one
//! pod, and on a port of one node, they cannot.

use serde_json::{Value, json};

use super::{Bucket, Entrance, Error, Exposure, Installation, Storage, Wishes};

/// How many there are to be; several only with a bucket.
pub(super) fn wanted(wishes: &Wishes, before: Option<&Installation>, bucket: Option<&Bucket>) -> Result<u32, Error> {
    let replicas = wishes.replicas.or(before.map(|before| before.replicas)).unwrap_or(1);
    if replicas > 1 && bucket.is_none() {
        return Err(Error::undecided(
            format!(
                "{replicas} replicas cannot share the daemon's volume: images and sources would be one pod's alone"
            ),
            "keep them in a bucket with --s3-bucket, from the first install on, as they do not move; or leave --replicas out",
        ));
    }
    Ok(replicas)
}

/// Refuses what several cannot share.
pub(super) fn check(installation: &Installation) -> Result<(), Error> {
    let replicas = installation.replicas;
    if replicas == 1 {
        return Ok(());
    }
    if installation.storage != Storage::Ephemeral {
        return Err(Error::undecided(
            format!("{replicas} replicas cannot share the daemon's volume, which one pod has at a time"),
            "leave the storage flags out: what is durable is in the bucket. An installation that has a volume begins anew: \
             epiniod uninstall, then epiniod install",
        ));
    }
    if installation.entrance == Entrance::Edge(Exposure::HostPorts) {
        return Err(Error::undecided(
            format!(
                "{replicas} replicas cannot have ports 80 and 443 of one node, by which the daemon's own edge would be reached"
            ),
            "put a load balancer in front of them with --expose load-balancer, choose the class of an ingress controller with \
             --ingress-class, or bring one along with --ingress traefik",
        ));
    }
    Ok(())
}

/// How pods of one version make way for those of another, and why so.
pub(super) fn strategy(installation: &Installation) -> (Value, &'static str) {
    let volume = installation.storage != Storage::Ephemeral || installation.bucket.is_none();
    if volume {
        return (json!({ "type": "Recreate" }), "The data is one pod's at a time.");
    }
    if installation.entrance == Entrance::Edge(Exposure::HostPorts) {
        return (json!({ "type": "Recreate" }), "Two pods cannot have the same port of a node.");
    }
    let rolling = json!({ "maxSurge": 1, "maxUnavailable": 0 });
    let why = "Nothing durable is in a pod: the next one waits already when the one that leads goes.";
    (json!({ "type": "RollingUpdate", "rollingUpdate": rolling }), why)
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Brought, settle},
        *,
    };

    fn wishes() -> Wishes {
        Wishes {
            namespace: "epiniod".to_owned(),
            system_domain: Some("apps.example.com".to_owned()),
            s3_bucket: Some("images".to_owned()),
            expose: Some(Exposure::LoadBalancer),
            replicas: Some(2),
            ..Wishes::default()
        }
    }

    fn refused(wishes: &Wishes) -> (String, String) {
        match settle(wishes, "localhost/epiniod:1", None) {
            Err(Error::Undecided { problem, choices }) => (problem, choices),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn several_share_a_bucket_and_nothing_else() {
        let settled = settle(&wishes(), "localhost/epiniod:1", None).unwrap().installation;
        assert_eq!((settled.replicas, &settled.storage), (2, &Storage::Ephemeral), "no volume is needed");
        assert_eq!(settled.bucket, Some(Bucket { name: "images".to_owned(), endpoint: None, region: None }));
        let (problem, choices) = refused(&Wishes { s3_bucket: None, ..wishes() });
        assert!(problem.contains("one pod's alone") && choices.contains("--s3-bucket"), "{problem}: {choices}");
        let (problem, choices) = refused(&Wishes { storage_class: Some("fast".to_owned()), ..wishes() });
        assert!(problem.contains("at a time") && choices.contains("storage flags"), "{problem}: {choices}");
        let alone = settle(&Wishes { replicas: None, s3_bucket: None, ..wishes() }, "localhost/epiniod:1", None);
        assert_eq!(alone.unwrap().installation.replicas, 1);
    }

    #[test]
    fn several_cannot_have_one_port_of_a_node_but_traefik_can_be_there_for_them() {
        let host_ports = Wishes { expose: Some(Exposure::HostPorts), ..wishes() };
        let (problem, choices) = refused(&host_ports);
        assert!(problem.contains("ports 80 and 443 of one node"), "{problem}");
        assert!(
            ["--expose load-balancer", "--ingress-class", "--ingress traefik"]
                .iter()
                .all(|flag| choices.contains(flag))
        );
        let traefik = Wishes { ingress: Some(Brought::Traefik), ..host_ports };
        assert_eq!(settle(&traefik, "localhost/epiniod:1", None).unwrap().installation.replicas, 2);
    }
}
