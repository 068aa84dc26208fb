//! What a hostile program tries, in a step and in an instance: each attempt is refused.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
};

use epiniod::runtime::{Step, StepImage, StepNetwork, StepUser};
use libc::{EACCES, ECONNREFUSED, EINVAL, ENOENT, ENOSYS, EPERM, EROFS, ESRCH, ETIMEDOUT};

use super::house::{House, as_root, ask, step, text};
use crate::support::{Daemon, Packages, RunBy};

/// Attempts that need nothing around them, and the errors that keep a program from them. The arguments are valid: without
/// what is in the way, most would succeed. Where there is no number, the guest itself says what it missed.
pub const ATTEMPTS: &[(&str, &[i32])] = &[
    ("foreign-processes", &[]),
    ("ptrace", &[EPERM]),
    ("traceme", &[EPERM]),
    ("mount", &[EPERM]),
    ("remount", &[EPERM]),
    ("umount", &[EPERM]),
    ("open-tree", &[EPERM]),
    ("pivot-root", &[EPERM]),
    ("chroot", &[EPERM]),
    ("mknod", &[EPERM]),
    ("mknod-null", &[EPERM]),
    ("user-namespace", &[EPERM]),
    ("clone-user-namespace", &[EPERM]),
    ("clone3", &[ENOSYS]),
    ("x32", &[ENOSYS]),
    ("setns", &[EPERM]),
    ("keyctl", &[EPERM]),
    ("bpf", &[EPERM]),
    ("perf", &[EPERM]),
    ("userfaultfd", &[EPERM]),
    ("io-uring", &[EPERM]),
    ("pidfd-getfd", &[EPERM]),
    ("open-by-handle", &[EPERM]),
    ("name-to-handle", &[EPERM]),
    ("reboot", &[EPERM]),
    ("sethostname", &[EPERM]),
    ("become-root", &[EPERM, EINVAL]),
    // Packets as they are, the firewall's netlink, those of sockets' owners, virtual machines, the kernel's ciphers.
    ("socket 17 3 768", &[EPERM]),
    ("socket 16 3 12", &[EPERM]),
    ("socket 16 3 4", &[EPERM]),
    ("socket 40 1 0", &[EPERM]),
    ("socket 38 5 0", &[EPERM]),
    ("socket 2 3 255", &[EPERM]),
    ("read /proc/kcore", &[ENOENT]),
    ("read /proc/keys", &[ENOENT]),
    ("read /proc/timer_list", &[ENOENT]),
    ("read /proc/kmsg", &[ENOENT]),
    ("read /sys", &[ENOENT]),
    ("read /proc/1/root/etc/shadow", &[EACCES, ENOENT]),
    ("write /proc/sysrq-trigger", &[EACCES, EROFS, ENOENT]),
    ("write /proc/sys/kernel/core_pattern", &[EACCES, EROFS]),
    ("write /proc/sys/vm/drop_caches", &[EACCES, EROFS]),
    ("write /dev/mem", &[ENOENT]),
    ("read /dev/sda", &[ENOENT]),
    ("read /dev/vda", &[ENOENT]),
    ("create /file-in-the-root", &[EACCES]),
    ("create /etc/file", &[EACCES]),
    ("create /proc/self/root/file", &[EACCES]),
    ("create /dev/file", &[EACCES]),
];

/// Was an attempt refused, and for one of these reasons? What it said instead, otherwise.
pub fn check(attempt: &str, said: &str, errors: &[i32]) -> Result<(), String> {
    let number = said.rsplit_once("(os error ").and_then(|(_, rest)| rest.split(')').next()?.parse().ok());
    let expected = number.is_none_or(|number: i32| errors.contains(&number));
    if said.contains("refused") && expected { Ok(()) } else { Err(format!("{attempt}: {}", said.trim())) }
}

/// Tries everything in an instance.
pub fn attempt_all<'a>(address: SocketAddr, attempts: impl IntoIterator<Item = &'a (&'a str, &'a [i32])>) {
    let refused =
        |(attempt, errors): &(&str, &[i32])| check(attempt, &ask(address, &format!("attempt {attempt}")), errors);
    let wrong: Vec<_> = attempts.into_iter().filter_map(|attempt| refused(attempt).err()).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Tries everything in a step, each in one of its own.
pub async fn attempt_all_in_steps<'a>(
    house: &House,
    like: &Step,
    attempts: impl IntoIterator<Item = &'a (&'a str, &'a [i32])>,
) {
    let mut wrong = Vec::new();
    for (attempt, errors) in attempts {
        let mut step = like.clone();
        step.args = ["attempt"].into_iter().chain(attempt.split(' ')).map(str::to_owned).collect();
        let (_, lines) = house.run(step).await;
        wrong.extend(check(attempt, &text(&lines), errors).err());
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A step that may use the network.
fn online<const N: usize>(args: [&str; N]) -> Step {
    Step { network: StepNetwork::Outbound, ..step(StepImage::Own, args) }
}

#[test]
fn an_instance_is_kept_from_what_it_may_not_do() {
    as_root(async {
        let house = House::open().await;
        let address = house.start(&house.workload("hostile", 1)).await[0];
        let of_the_image: [(&str, &[i32]); 2] =
            [("set-uid-program /set-uid-guest", &[]), ("read /etc/secret", &[EACCES])];
        attempt_all(address, ATTEMPTS.iter().chain(&of_the_image));
        let identity = ask(address, "identity");
        assert!(identity.contains("Uid: 1000 1000 1000 1000"), "{identity}");
        for none in ["CapEff: ", "CapPrm: ", "CapBnd: ", "CapAmb: "] {
            assert!(identity.contains(&format!("{none}0000000000000000")), "{identity}");
        }
        assert!(identity.contains("NoNewPrivs: 1") && identity.contains("Seccomp: 2"), "{identity}");
        house.close().await;
    });
}

/// Of another instance: its processes, by the pids that the machine has for them, and its files.
pub async fn reach_for_a_neighbour() {
    let house = House::open().await;
    let victim = house.start(&house.workload("victim", 1)).await[0];
    let address = house.start(&house.workload("curious", 1)).await[0];
    let folder = house.dir.path().join("workloads/workspace_victim_1/0");
    let state = fs::read_to_string(folder.join("state")).unwrap();
    // MONITOR RESTARTS running PROGRAM …
    let words: Vec<&str> = state.split(' ').collect();
    let signals = [words[0], words[3]].map(|pid| (format!("signal {pid}"), ESRCH));
    let files = [folder.join("spec.json"), house.dir.path().join("layers"), house.dir.path().join("logs")];
    let files = files.map(|path| (format!("read {}", path.display()), ENOENT));
    for (attempt, error) in signals.into_iter().chain(files) {
        check(&attempt, &ask(address, &format!("attempt {attempt}")), &[error, EACCES]).unwrap();
        let mut build = step(StepImage::Image(house.image.clone()), ["attempt"]);
        build.args.extend(attempt.split(' ').map(str::to_owned));
        check(&attempt, &house.attempt(build).await, &[error, EACCES]).unwrap();
    }
    assert_eq!(ask(victim, "hello"), "you said hello\n");
    house.close().await;
}

#[test]
fn the_processes_and_files_of_others_are_out_of_reach() {
    as_root(reach_for_a_neighbour());
}

#[test]
fn a_build_is_kept_from_what_it_may_not_do() {
    as_root(async {
        let house = House::open().await;
        let build = step(StepImage::Image(house.image.clone()), []);
        attempt_all_in_steps(&house, &build, ATTEMPTS).await;
        house.close().await;
    });
}

#[test]
fn root_of_a_sandbox_is_not_root_of_the_machine() {
    as_root(async {
        let house = House::open().await;
        let mut as_root = step(StepImage::Image(house.image.clone()), []);
        as_root.user = StepUser::Root;
        let may = |attempt: &str| attempt.starts_with("create") || attempt == "become-root";
        attempt_all_in_steps(&house, &as_root, ATTEMPTS.iter().filter(|(attempt, _)| !may(attempt))).await;
        house.close().await;
    });
}

#[test]
fn the_data_directory_is_out_of_reach() {
    as_root(async {
        let house = House::open().await;
        let address = house.start(&house.workload("curious", 1)).await[0];
        let data = house.dir.path().display().to_string();
        for path in [data.clone(), format!("{data}/blobs"), "/proc/1/cwd/../var".to_owned(), "/root".to_owned()] {
            let answer = ask(address, &format!("attempt read {path}"));
            assert!(answer.contains("refused"), "{answer}");
            let read = step(StepImage::Own, ["attempt", "read", &path]);
            house.attempt(read).await;
        }
        use std::os::unix::fs::PermissionsExt as _;
        for name in ["jobs", "layers", "workloads", "run", "logs"] {
            let mode = fs::metadata(house.dir.path().join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o700, "{name}: layers have set-uid programs in them");
        }
        house.close().await;
    });
}

#[test]
fn the_machine_and_link_local_addresses_are_out_of_reach() {
    as_root(async {
        let house = House::open().await;
        let everywhere = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let loopback = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = house.start(&house.workload("curious", 1)).await[0];
        let std::net::IpAddr::V4(own) = address.ip() else { panic!("an IPv4 address") };
        let gateway = Ipv4Addr::from_bits((own.to_bits() & 0xffff_fc00) + 1);
        let mut hosts: Vec<_> = nix::ifaddrs::getifaddrs()
            .unwrap()
            .filter_map(|interface| interface.address?.as_sockaddr_in().map(|address| address.ip()))
            .collect();
        assert!(hosts.contains(&gateway), "{hosts:?}");
        hosts.push(Ipv4Addr::LOCALHOST);
        let (open, hidden) = (everywhere.local_addr().unwrap().port(), loopback.local_addr().unwrap().port());
        for target in hosts.iter().map(|host| format!("{host}:{open}")).chain([
            format!("127.0.0.1:{hidden}"),
            format!("{gateway}:{hidden}"),
            "169.254.169.254:80".to_owned(),
        ]) {
            let answer = ask(address, &format!("attempt connect {target}"));
            assert!(answer.contains("refused"), "{answer}");
        }
        house.attempt(online(["attempt", "connect", &format!("{gateway}:{open}")])).await;
        house.attempt(online(["attempt", "connect", "169.254.169.254:80"])).await;
        house.close().await;
    });
}

#[test]
fn other_instances_are_out_of_reach() {
    as_root(async {
        let (house, neighbour) = (House::open().await, House::open().await);
        let first = house.start(&house.workload("one", 1)).await[0];
        let second = house.start(&house.workload("two", 1)).await[0];
        let third = neighbour.start(&neighbour.workload("three", 1)).await[0];
        assert_eq!(ask(second, "hello"), "you said hello\n");
        assert_eq!(ask(third, "hello"), "you said hello\n");
        for target in [second, third] {
            let answer = ask(first, &format!("attempt connect {target}"));
            assert!(answer.contains("refused"), "{answer}");
            house.attempt(online(["attempt", "connect", &target.to_string()])).await;
        }
        house.close().await;
        assert_eq!(ask(third, "hello"), "you said hello\n", "daemons of one machine do not share anything");
        neighbour.close().await;
    });
}

#[test]
fn the_api_and_the_registry_are_out_of_reach() {
    as_root(async {
        let daemon = Daemon::start_with(Packages::Shared, RunBy::Caller);
        let house = House::open().await;
        let address = house.start(&house.workload("curious", 1)).await[0];
        let std::net::IpAddr::V4(own) = address.ip() else { panic!("an IPv4 address") };
        let gateway = Ipv4Addr::from_bits((own.to_bits() & 0xffff_fc00) + 1);
        for host in ["127.0.0.1".to_owned(), gateway.to_string()] {
            for (port, path) in private(&daemon) {
                let said = ask(address, &format!("attempt fetch {host}:{port} {path}"));
                check("fetch", &said, &[ECONNREFUSED, ETIMEDOUT]).or_else(|_| timed_out(&said)).unwrap();
                let said = house.attempt(online(["attempt", "fetch", &format!("{host}:{port}"), path])).await;
                check("fetch", &said, &[ECONNREFUSED]).or_else(|_| timed_out(&said)).unwrap();
            }
        }
        house.close().await;
    });
}

/// What only who has a credential may ask a daemon for: ports and paths.
pub fn private(daemon: &Daemon) -> [(u16, &'static str); 3] {
    [
        (daemon.port, "/api/v1/namespaces"),
        (daemon.registry_port, "/v2/"),
        (daemon.registry_port, "/v2/workspace/app/tags/list"),
    ]
}

/// Dropped packets are answered by nobody.
fn timed_out(said: &str) -> Result<(), String> {
    if said.contains("refused: connection timed out") { Ok(()) } else { Err(said.to_owned()) }
}
