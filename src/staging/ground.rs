//! What a build stands on: the embedded builder and bases of Debian packages, or a third-party builder and its run image.
//!
//! With the embedded builder the buildpacks are asked first, as what they require decides the bases. A
//! third-party builder brings its image; there the buildpacks are asked where they build.

use crate::{
    base::BasePair,
    builders,
    lifecycle::phase::{Buildpacks, CnbUser, Detect, Target},
    model::{Basis, BuilderImages, ImageName},
    runtime::StepUser,
};

/// Images, user and buildpacks of a build.
pub(super) struct Ground {
    pub build: ImageName,
    pub run: ImageName,
    /// What the builder calls its run image.
    pub run_name: Option<String>,
    /// Whom applications run as, where the run image may not say it in numbers.
    pub run_user: Option<String>,
    pub target: Target,
    pub user: CnbUser,
    pub buildpacks: Buildpacks,
    /// What the build step detects first.
    pub detect: Option<Detect>,
    /// What a later staging compares itself with.
    pub basis: Basis,
}

impl Ground {
    /// Bases for what was detected before.
    pub fn embedded(version: &str, bases: BasePair, build_packages: Vec<String>, run_packages: Vec<String>) -> Self {
        Self {
            build: bases.build,
            run: bases.run,
            run_name: None,
            run_user: None,
            target: debian(),
            user: CnbUser::EMBEDDED,
            buildpacks: Buildpacks::Embedded,
            detect: None,
            basis: Basis { builder: version.to_owned(), build_packages, run_packages, lock: bases.lock, images: None },
        }
    }

    /// The images of a third-party builder. `version` is that of the embedded builder, with which our launcher changes.
    pub fn third_party(version: &str, builder: builders::Builder) -> Self {
        let lock = crate::lifecycle::phase::fingerprint(&[
            builder.image.digest.to_string().as_bytes(),
            builder.run_image.digest.to_string().as_bytes(),
            builder.run_user.as_bytes(),
        ]);
        let images = BuilderImages { build: builder.image.clone(), run: builder.run_image.clone() };
        Self {
            build: builder.image,
            run: builder.run_image,
            run_name: Some(builder.run_image_name),
            run_user: Some(builder.run_user),
            detect: Some(Detect {
                target: builder.target.clone(),
                builder: Some(builder.name.to_string()),
                order: builder.order,
            }),
            target: builder.target,
            user: builder.user,
            buildpacks: Buildpacks::OfTheImage,
            basis: Basis {
                builder: version.to_owned(),
                build_packages: Vec::new(),
                run_packages: Vec::new(),
                lock,
                images: Some(images),
            },
        }
    }

    /// The same, for a build that does not find what another step detected.
    pub fn detecting(self) -> Self {
        let detect = Detect { target: self.target.clone(), builder: None, order: None };
        Self { detect: Some(detect), ..self }
    }

    pub fn step_user(&self) -> StepUser {
        match self.buildpacks {
            Buildpacks::Embedded => StepUser::Cnb,
            Buildpacks::OfTheImage => StepUser::Image { uid: self.user.uid, gid: self.user.gid },
        }
    }
}

/// What the embedded builder makes images for.
pub(super) fn debian() -> Target {
    Target {
        os: "linux".to_owned(),
        arch: crate::oci::architecture().to_owned(),
        distro_name: "debian".to_owned(),
        distro_version: "13".to_owned(),
    }
}
