//! What epiniod does, seen from outside: one module per behaviour.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod api;
mod applications;
mod architecture;
mod auth;
mod base_images;
mod blob_contract;
mod builders;
mod buildpacks;
mod built_images;
mod certificates;
mod cli_reference;
mod cluster;
mod cluster_apps;
mod cluster_install;
mod cluster_store;
mod command_line;
mod crashes;
mod daemon_life;
mod edge;
mod footprint;
mod launcher;
mod lifecycle;
mod own_image;
mod quickstarts;
mod registry;
mod s3;
mod sandbox;
mod sandbox_rootless;
mod secrets;
mod source_archives;
mod store_contract;
mod support;
mod visits;
