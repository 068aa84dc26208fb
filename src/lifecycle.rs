//! The platform side of Cloud Native Buildpacks: analyze, detect, restore, build, export.
//!
//! Each phase is a step of a job: a process of its own, in a sandbox, told by one JSON file what to
//! do. The types of those files and of the reports that steps leave are in [`phase`].

pub mod phase;
