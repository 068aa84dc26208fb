//! Steps and instances of a user who is not root: no ids but their own, the network of the machine, perhaps no limits.

#![allow(
    clippy::unwrap_used,
    reason = "clippy's own exception is for functions marked as tests, not for what they call"
)]

use std::{
    net::{Ipv4Addr, TcpListener},
    os::{linux::net::SocketAddrExt as _, unix::net},
    time::Duration,
};

use epiniod::runtime::{Access, Ended, LogStream, Runtime as _, Step, StepImage, StepNetwork, StepUser, VolumeMount};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

use crate::{
    sandbox::{
        hostile::{ATTEMPTS, attempt_all, attempt_all_in_steps, private, reach_for_a_neighbour},
        house::{House, ask, image, rootless, rootless_with, step, text},
        visits::{is_a_good_visit, is_kept_from},
    },
    support::{Daemon, Packages, RunBy},
};

#[test]
fn steps_share_volumes_and_leave_nothing() {
    rootless("sandbox_rootless::steps_share_volumes_and_leave_nothing", async {
        let house = House::open().await;
        assert_eq!(house.runtime.properties()["user"], "rootless");
        let volume = VolumeMount { volume: "layers".to_owned(), path: "/layers".to_owned(), access: Access::ReadWrite };
        let with = |step: Step| Step { volumes: vec![volume.clone()], ..step };
        let mut print = with(step(StepImage::Image(house.image.clone()), ["print", "/layers/file"]));
        print.user = StepUser::Root;
        print.report = Some("/run/epiniod/out/report.json".to_owned());
        let steps = vec![with(step(StepImage::Own, ["write", "/layers/file", "kept"])), print];
        let (outcomes, lines) = house.run_all(steps, CancellationToken::new()).await;
        assert_eq!((text(&lines).as_str(), outcomes.len()), ("kept\n", 2));
        let mut identity = step(StepImage::Own, ["identity"]);
        identity.user = StepUser::Root;
        let said = text(&house.run(identity).await.1);
        assert!(said.contains("Uid: 1000 1000 1000 1000") && said.contains("CapEff: 0000000000000000"), "{said}");
        house.close().await;
    });
}

#[test]
fn a_deadline_ends_a_step() {
    rootless("sandbox_rootless::a_deadline_ends_a_step", async {
        let house = House::open().await;
        let forever = Step { deadline: Duration::from_millis(200), ..step(StepImage::Own, ["forever"]) };
        assert_eq!(house.run(forever).await.0.ended, Ended::Deadline);
        house.close().await;
    });
}

#[test]
fn instances_have_ports_of_their_own_and_outlive_the_daemon() {
    rootless("sandbox_rootless::instances_have_ports_of_their_own_and_outlive_the_daemon", async {
        let house = House::open().await;
        let mut workload = house.workload("pair", 1);
        workload.instances = 2;
        let addresses = house.start(&workload).await;
        assert_ne!(addresses[0].port(), addresses[1].port());
        for address in &addresses {
            assert_eq!(ask(*address, "variable PORT").trim(), address.port().to_string());
        }
        let house = house.reopen().await;
        assert_eq!(house.ready(&workload).await, addresses);
        house.close().await;
    });
}

#[test]
fn an_instance_that_listens_elsewhere_gets_its_traffic_there() {
    rootless("sandbox_rootless::an_instance_that_listens_elsewhere_gets_its_traffic_there", async {
        let house = House::open().await;
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let mut workload = house.workload("stubborn", 1);
        workload.image = image(&house.blobs, &format!("serve 127.0.0.1 {port}")).await;
        let address = house.start(&workload).await[0];
        assert_eq!((address.port(), ask(address, "hello").as_str()), (port, "you said hello\n"));
        let notes = house.logs(&workload).await.into_iter().filter(|line| line.stream == LogStream::Note);
        assert!(notes.map(|line| line.text).any(|note| note.contains("instead of PORT=")));
        // The next release wants the same port: the one before makes way.
        let mut next = workload.clone();
        next.id.number = 2;
        assert_eq!(house.start(&next).await, [address]);
        assert_eq!(ask(address, "hello"), "you said hello\n");
        assert!(text(&house.logs(&workload).await).contains("stopped before"), "the log says why");
        house.runtime.apply(&workload).await.unwrap();
        assert_eq!(house.ready(&next).await, [address], "what made way does not come back while the next is there");
        house.close().await;
    });
}

#[test]
fn attempts_are_refused() {
    rootless("sandbox_rootless::attempts_are_refused", async {
        let house = House::open().await;
        let address = house.start(&house.workload("hostile", 1)).await[0];
        // What there is belongs to the only user there is: it may be changed, in this sandbox.
        let own_root =
            ["create /file-in-the-root", "create /etc/file", "create /proc/self/root/file", "create /dev/file"];
        let data = format!("read {}", house.dir.path().display());
        let more: [(&str, &[i32]); 2] =
            [("set-uid-program /set-uid-guest", &[]), (&data, &[libc::ENOENT, libc::EACCES])];
        let attempts = || ATTEMPTS.iter().filter(|(attempt, _)| !own_root.contains(attempt)).chain(&more);
        attempt_all(address, attempts());
        let mut build = step(StepImage::Image(house.image.clone()), []);
        build.network = StepNetwork::Outbound;
        attempt_all_in_steps(&house, &build, attempts()).await;
        let identity = ask(address, "identity");
        assert!(identity.contains("NoNewPrivs: 1") && identity.contains("Seccomp: 2"), "{identity}");
        house.close().await;
    });
}

#[test]
fn a_command_is_what_the_program_is() {
    rootless("sandbox_rootless::a_command_is_what_the_program_is", async {
        let house = House::open().await;
        is_a_good_visit(&house).await;
        // What there is belongs to the only user there is.
        let own_root =
            ["create /file-in-the-root", "create /etc/file", "create /proc/self/root/file", "create /dev/file"];
        is_kept_from(&house, ATTEMPTS.iter().filter(|(attempt, _)| !own_root.contains(attempt))).await;
        house.close().await;
    });
}

#[test]
fn a_port_is_one_of_the_instances_or_none() {
    rootless("sandbox_rootless::a_port_is_one_of_the_instances_or_none", async {
        let house = House::open().await;
        let workload = house.workload("forwarded", 1);
        let address = house.start(&workload).await[0];
        let mut connection = house.runtime.forward(&workload.id, "forwarded-1-0", address.port()).await.unwrap();
        connection.write_all(b"hello\n").await.unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "you said hello\n");
        let others = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let other = others.local_addr().unwrap().port();
        let refused = house.runtime.forward(&workload.id, "forwarded-1-0", other).await.err().expect("not its own");
        assert!(refused.to_string().contains("does not listen there"), "{refused}");
        house.close().await;
    });
}

#[test]
fn sockets_of_the_same_user_that_are_no_files_are_out_of_reach() {
    rootless("sandbox_rootless::sockets_of_the_same_user_that_are_no_files_are_out_of_reach", async {
        let house = House::open().await;
        let name = format!("epiniod-test-{}", std::process::id());
        let address = net::SocketAddr::from_abstract_name(&name).unwrap();
        let _listener = net::UnixListener::bind_addr(&address).unwrap();
        let mut connect = step(StepImage::Own, ["attempt", "abstract-socket", &name]);
        house.attempt(connect.clone()).await;
        connect.network = StepNetwork::Outbound;
        let (_, lines) = house.run(connect).await;
        if text(&lines).contains("it could") {
            eprintln!("NOT PROTECTED: this kernel has no Landlock of ABI 6");
        }
        house.close().await;
    });
}

#[test]
fn the_api_and_the_registry_want_a_credential() {
    let listeners = "EPINIOD_TEST_LISTENERS";
    let daemon = std::sync::OnceLock::new();
    let started = || {
        let daemon = daemon.get_or_init(|| Daemon::start_with(Packages::Shared, RunBy::Caller));
        let all = private(daemon).map(|(port, path)| format!("127.0.0.1:{port} {path}"));
        vec![(listeners, all.join(","))]
    };
    rootless_with("sandbox_rootless::the_api_and_the_registry_want_a_credential", started, async {
        let house = House::open().await;
        let address = house.start(&house.workload("curious", 1)).await[0];
        for target in std::env::var(listeners).unwrap().split(',') {
            let answer = ask(address, &format!("attempt fetch {target}"));
            assert!(answer.contains("refused: 401"), "the network is the machine's, and the door is locked: {answer}");
            let mut build = step(StepImage::Own, ["attempt", "fetch"]);
            build.args.extend(target.split(' ').map(str::to_owned));
            build.network = StepNetwork::Outbound;
            assert!(house.attempt(build).await.contains("refused: 401"));
        }
        house.close().await;
    });
}

#[test]
fn the_processes_and_files_of_others_are_out_of_reach() {
    rootless("sandbox_rootless::the_processes_and_files_of_others_are_out_of_reach", reach_for_a_neighbour());
}
