//! epiniod: from source code to a running URL.

pub mod api;
pub mod apps;
pub mod auth;
pub mod base;
pub mod blob;
pub mod buildpacks;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod edge;
pub mod launcher;
pub mod lifecycle;
pub mod model;
pub mod oci;
pub mod runtime;
pub mod source;
pub mod staging;
pub mod store;
pub mod telemetry;
