//! A staging: one way of a source to an image.

use serde::{Deserialize, Serialize};

use super::{AppChange, AppName, Builder, Digest, Environment, ImageName, Namespace, Origin, StageId, Timestamp};

/// One attempt to make an image of a source. Never reused: a new attempt is a new staging.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Staging {
    pub id: StageId,
    pub namespace: Namespace,
    pub app: AppName,
    /// The uploaded archive.
    pub source: Digest,
    pub blob_uid: String,
    /// The application's environment when the staging started.
    pub environment: Environment,
    /// The application's builder, likewise.
    #[serde(default)]
    pub builder: Builder,
    pub created_at: Timestamp,
    pub state: StagingState,
    /// The image, from `Exporting` on.
    pub image: Option<ImageName>,
    /// Milliseconds that each finished phase took, in order.
    pub timings: Vec<(Phase, u64)>,
    /// What the image was made with, beside source and environment.
    pub basis: Option<Basis>,
    /// Chunks of the log, in order; each holds JSON lines.
    pub log: Vec<Digest>,
    #[serde(default)]
    pub then: AfterStaging,
}

/// What becomes of the image of a staging by itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "then", rename_all = "lowercase")]
pub enum AfterStaging {
    /// Somebody else deploys it, or has.
    #[default]
    Nothing,
    /// The staging is part of a push: whatever becomes of who pushed, or of the daemon, the image is deployed, and
    /// with it what else the push wants of the application.
    Deploy {
        origin: Option<Origin>,
        #[serde(default)]
        change: AppChange,
    },
}

/// A later staging whose source, environment and basis are the same may take over the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Basis {
    /// The version of the embedded builder.
    pub builder: String,
    pub build_packages: Vec<String>,
    pub run_packages: Vec<String>,
    /// The exact versions of all packages; with a third-party builder the digest of its images.
    pub lock: Digest,
    /// What the name of a third-party builder meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<BuilderImages>,
}

/// The images of a third-party builder, as they were copied into the bundled registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuilderImages {
    pub build: ImageName,
    pub run: ImageName,
}

/// The states of a staging. Only forward.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum StagingState {
    Queued,
    Preparing,
    Building,
    Exporting,
    Done,
    Failed { cause: String },
}

impl StagingState {
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Done | Self::Failed { .. })
    }
}

/// What a staging spends its time on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    Upload,
    Prepare,
    Detect,
    Base,
    /// What a cluster takes to bring up the containers of the job, one after the other, and to tell of them.
    Schedule,
    Build,
    Export,
    Deploy,
}

impl Phase {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Upload => "upload",
            Self::Prepare => "prepare",
            Self::Detect => "detect",
            Self::Base => "base",
            Self::Schedule => "schedule",
            Self::Build => "build",
            Self::Export => "export",
            Self::Deploy => "deploy",
        }
    }
}
