//! One binary, several roles: an embedded buildpack (by argv[0]), the set-up of a sandbox, a step of a
//! build in a cluster, and the command line,
//! of which a phase of a build and the daemon are commands.

use std::process::ExitCode;

use epiniod::{buildpacks, cli, runtime};

fn main() -> ExitCode {
    pin_name_services();
    keep_no_free_memory();
    if let Some(code) = buildpacks::run_if_buildpack() {
        return code;
    }
    if let Some(code) = runtime::local::run_role().or_else(runtime::kube::run_role) {
        return code;
    }
    rustls::crypto::ring::default_provider().install_default().expect("no other provider was installed");
    cli::run()
}

/// glibc, linked in, must not load the name service modules of the machine: they bring another glibc with them.
fn pin_name_services() {
    #[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
    {
        use std::ffi::{CStr, c_char, c_int};
        unsafe extern "C" {
            fn __nss_configure_lookup(database: *const c_char, services: *const c_char) -> c_int;
        }
        const SERVICES: [(&CStr, &CStr); 8] = [
            (c"hosts", c"files dns"),
            (c"passwd", c"files"),
            (c"group", c"files"),
            (c"shadow", c"files"),
            (c"initgroups", c"files"),
            (c"services", c"files"),
            (c"protocols", c"files"),
            (c"networks", c"files"),
        ];
        for (database, services) in SERVICES {
            // SAFETY: two C strings that live for ever; nothing was looked up yet, and there is one thread.
            unsafe { __nss_configure_lookup(database.as_ptr(), services.as_ptr()) };
        }
    }
}

/// glibc keeps what was freed, up to the largest block there ever was; a daemon that sits idle should give it back.
fn keep_no_free_memory() {
    #[cfg(target_env = "gnu")]
    {
        const M_TRIM_THRESHOLD: i32 = -1;
        const M_MMAP_THRESHOLD: i32 = -3;
        const M_ARENA_MAX: i32 = -8;
        for (parameter, value) in [(M_TRIM_THRESHOLD, 131_072), (M_MMAP_THRESHOLD, 131_072), (M_ARENA_MAX, 2)] {
            // SAFETY: two integers; there is one thread.
            unsafe { libc::mallopt(parameter, value) };
        }
    }
}
