//! The lifecycle: the cases are those of the real lifecycle 0.21.17, run with platform API 0.14.

mod building;
mod detecting;
mod exporting;
mod house;
mod restoring;

/// The version of the platform API is the first thing that is looked at.
#[test]
fn other_platform_apis_are_refused() {
    assert!(epiniod::lifecycle::check_platform_api(Some("0.14")).is_ok());
    for given in [None, Some(""), Some("0.6"), Some("0.16")] {
        assert_eq!(epiniod::lifecycle::check_platform_api(given).unwrap_err().code, 11, "{given:?}");
    }
}
