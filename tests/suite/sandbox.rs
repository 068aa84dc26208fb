//! Steps and instances in sandboxes of the local runtime, as root.

#![allow(
    clippy::unwrap_used,
    reason = "clippy's own exception is for functions marked as tests, not for what they call"
)]

mod bombs;
mod callers;
mod disks;
pub mod hostile;
pub mod house;
mod instances;
mod steps;
pub mod visits;
