//! What our objects are called in a cluster, and the labels that they are found by.

use std::fmt;

use crate::{
    model::{AppName, Namespace, ReleaseId},
    runtime::JobId,
};

/// Who writes: the field manager of server-side apply, and the value of `app.kubernetes.io/managed-by`.
pub(super) const MANAGER: &str = "epiniod";
pub(super) const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// The namespace of the daemon: there may be several in a cluster.
pub(super) const SYSTEM: &str = "epiniod.dev/system";
pub(super) const APP: &str = "epiniod.dev/app";
pub(super) const RELEASE: &str = "epiniod.dev/release";
pub(super) const STAGING: &str = "epiniod.dev/staging";
/// What an object was made from, in an annotation: equal text, equal object.
pub(super) const APPLIED: &str = "epiniod.dev/applied";

/// The pods of a daemon that is in its cluster.
pub(super) const DAEMON_PODS: &str = "app.kubernetes.io/name=epiniod,app.kubernetes.io/component=daemon";
/// Of these the one that the services lead to.
pub(super) const LEADER: &str = "epiniod.dev/leader";

/// The secret with which the kubelet pulls, one in each namespace.
pub(super) const PULL_SECRET: &str = "epiniod-pull";
/// Certificate authorities that builds trust.
pub(super) const BUILD_CA: &str = "epiniod-build-ca";

pub(super) fn job(id: &JobId) -> String {
    format!("build-{id}")
}

/// The environment of a release.
pub(super) fn environment(id: &ReleaseId) -> String {
    format!("{}-env-{}", id.app, id.number)
}

/// All of this installation that have this label.
pub(super) fn ours_with(system: &str, label: &str) -> String {
    format!("{MANAGED_BY}={MANAGER},{SYSTEM}={system},{label}")
}

pub(super) fn of_staging(id: &JobId) -> String {
    format!("{STAGING}={id}")
}

/// An instance is called after its pod, in the way of the other runtime: `APP-RELEASE-SUFFIX`.
pub(super) struct InstanceName<'a> {
    pub app: &'a str,
    pub release: &'a str,
    pub pod: &'a str,
}

impl fmt::Display for InstanceName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let suffix = self.pod.rsplit_once('-').map_or(self.pod, |(_, suffix)| suffix);
        write!(f, "{}-{}-{suffix}", self.app, self.release)
    }
}

/// The release that labels speak of.
pub(super) fn release_id(namespace: Option<&str>, app: Option<&String>, release: Option<&String>) -> Option<ReleaseId> {
    let namespace: Namespace = namespace?.parse().ok()?;
    let app: AppName = app?.parse().ok()?;
    Some(ReleaseId { namespace, app, number: release?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_is_called_after_its_release_and_the_end_of_its_pod() {
        let name = InstanceName { app: "shop", release: "3", pod: "shop-7d9c5b8f4-x7k2p" };
        assert_eq!(name.to_string(), "shop-3-x7k2p");
    }
}
