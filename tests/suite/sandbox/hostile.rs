//! What a hostile program tries, in a step and in an instance: each attempt is refused.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
};

use epiniod::runtime::{
    Access, Ended, InstanceState, Limits, Runtime as _, Step, StepImage, StepNetwork, StepUser, VolumeMount,
};

use super::house::{House, as_root, ask, image, step, text};

/// Attempts that need nothing around them.
pub const ATTEMPTS: &[&str] = &[
    "foreign-processes",
    "ptrace",
    "traceme",
    "mount",
    "remount",
    "umount",
    "open-tree",
    "pivot-root",
    "chroot",
    "mknod",
    "mknod-null",
    "user-namespace",
    "clone-user-namespace",
    "clone3",
    "x32",
    "setns",
    "keyctl",
    "bpf",
    "perf",
    "userfaultfd",
    "io-uring",
    "pidfd-getfd",
    "open-by-handle",
    "reboot",
    "sethostname",
    "become-root",
    // Packets as they are, the firewall's netlink, those of sockets' owners, virtual machines, the kernel's ciphers.
    "socket 17 3 768",
    "socket 16 3 12",
    "socket 16 3 4",
    "socket 40 1 0",
    "socket 38 5 0",
    "socket 2 3 255",
    "read /proc/kcore",
    "read /proc/keys",
    "read /proc/timer_list",
    "read /proc/kmsg",
    "read /sys",
    "read /proc/1/root/etc/shadow",
    "write /proc/sysrq-trigger",
    "write /proc/sys/kernel/core_pattern",
    "write /proc/sys/vm/drop_caches",
    "write /dev/mem",
    "read /dev/sda",
    "read /dev/vda",
    "create /file-in-the-root",
    "create /etc/file",
    "create /proc/self/root/file",
    "create /dev/file",
];

/// A step that may use the network.
fn online<const N: usize>(args: [&str; N]) -> Step {
    Step { network: StepNetwork::Outbound, ..step(StepImage::Own, args) }
}

#[test]
fn an_instance_is_kept_from_what_it_may_not_do() {
    as_root(async {
        let house = House::open().await;
        let address = house.start(&house.workload("hostile", 1)).await[0];
        for attempt in ATTEMPTS.iter().chain(&["set-uid-program /set-uid-guest", "read /etc/secret"]) {
            let answer = ask(address, &format!("attempt {attempt}"));
            assert!(answer.contains("refused"), "{attempt}: {answer}");
        }
        let identity = ask(address, "identity");
        assert!(identity.contains("Uid: 1000 1000 1000 1000"), "{identity}");
        for none in ["CapEff: ", "CapPrm: ", "CapBnd: ", "CapAmb: "] {
            assert!(identity.contains(&format!("{none}0000000000000000")), "{identity}");
        }
        assert!(identity.contains("NoNewPrivs: 1") && identity.contains("Seccomp: 2"), "{identity}");
        house.close().await;
    });
}

#[test]
fn a_build_is_kept_from_what_it_may_not_do() {
    as_root(async {
        let house = House::open().await;
        for attempt in ATTEMPTS {
            let mut step = step(StepImage::Image(house.image.clone()), ["attempt"]);
            step.args.extend(attempt.split(' ').map(str::to_owned));
            house.attempt(step).await;
        }
        house.close().await;
    });
}

#[test]
fn root_of_a_sandbox_is_not_root_of_the_machine() {
    as_root(async {
        let house = House::open().await;
        for attempt in ATTEMPTS.iter().filter(|attempt| !attempt.starts_with("create") && **attempt != "become-root") {
            let mut step = step(StepImage::Image(house.image.clone()), ["attempt"]);
            step.args.extend(attempt.split(' ').map(str::to_owned));
            step.user = StepUser::Root;
            house.attempt(step).await;
        }
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
fn a_memory_bomb_ends_by_itself() {
    as_root(async {
        let house = House::open().await;
        let mut bomb = step(StepImage::Own, ["eat-memory"]);
        bomb.limits.memory_bytes = Some(64 << 20);
        let (outcome, lines) = house.run(bomb).await;
        assert_eq!(outcome.ended, Ended::OutOfMemory, "{}", text(&lines));
        house.close().await;
    });
}

#[test]
fn a_fork_bomb_has_few_children() {
    as_root(async {
        let house = House::open().await;
        let mut bomb = step(StepImage::Own, ["fork-bomb"]);
        bomb.limits.pids = Some(32);
        let (outcome, lines) = house.run(bomb).await;
        let said = text(&lines);
        let children: u32 = said.trim().trim_end_matches(" children").parse().expect("a number");
        assert!(outcome.ended == Ended::Exit(0) && (1..32).contains(&children), "{said}");
        house.close().await;
    });
}

#[test]
fn what_is_written_outside_of_volumes_is_limited() {
    as_root(async {
        let house = House::open().await;
        let mut fill = step(StepImage::Image(house.image.clone()), ["fill", "/tmp"]);
        fill.limits = Limits { scratch_bytes: Some(16 << 20), ..Limits::default() };
        let (outcome, lines) = house.run(fill).await;
        let said = text(&lines);
        assert!(outcome.ended == Ended::Exit(0) && said.contains("No space left"), "{said}");
        house.close().await;
    });
}

#[test]
fn a_step_that_fills_the_disk_is_stopped() {
    as_root(async {
        // A disk of its own, as nobody wants to see the machine's full.
        let place = tempfile::Builder::new().prefix("epiniod-test-").tempdir_in("/var/tmp").unwrap();
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("tmpfs"), place.path(), Some("tmpfs"), flags, Some("size=128m,mode=755")).unwrap();
        let mounted = place.path().to_owned();
        {
            let dir = tempfile::Builder::new().tempdir_in(place.path()).unwrap();
            let house = House::open_in(dir).await;
            let mut fill = step(StepImage::Own, ["fill", "/workspace"]);
            fill.volumes = vec![VolumeMount {
                volume: "workspace".to_owned(),
                path: "/workspace".to_owned(),
                access: Access::ReadWrite,
            }];
            let (outcome, lines) = house.run(fill).await;
            assert_eq!(outcome.ended, Ended::Signal(9));
            assert!(text(&lines).contains("nearly full"), "{}", text(&lines));
            house.close().await;
        }
        nix::mount::umount(&mounted).unwrap();
    });
}

#[test]
fn an_instance_that_eats_memory_says_so_and_is_started_again() {
    as_root(async {
        let house = House::open().await;
        let mut workload = house.workload("hungry", 1);
        workload.image = image(&house.blobs, "eat-memory").await;
        workload.limits.memory_bytes = Some(64 << 20);
        house.runtime.apply(&workload).await.unwrap();
        let out_of_memory = |states: &[InstanceState]| {
            states.iter().find_map(|state| match state {
                InstanceState::BackOff { ended, .. } => Some(*ended),
                _ => None,
            })
        };
        assert_eq!(house.wait(&workload, "it ran out of memory", out_of_memory).await, Ended::OutOfMemory);
        house.close().await;
    });
}
