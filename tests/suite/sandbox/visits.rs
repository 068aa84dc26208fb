//! Commands beside the program of an instance, and connections to its ports, where the runtime makes them.

use std::{fs, time::Instant};

use epiniod::runtime::{Command, Exit, Runtime as _, Session, Terminal, TerminalSize, Workload};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{
    hostile::{ATTEMPTS, check},
    house::{House, PATIENCE, as_root, ask, image},
};

/// A command, as words with spaces between them.
pub async fn exec(house: &House, workload: &Workload, command: &str, terminal: Terminal) -> Session {
    let name = format!("{}-{}-0", workload.id.app, workload.id.number);
    let command = Command { words: command.split(' ').map(str::to_owned).collect(), terminal };
    house.runtime.exec(&workload.id, &name, command).await.expect("it can be started")
}

/// What a command says to an input, and how it ends.
pub async fn run(house: &House, workload: &Workload, command: &str, input: &str) -> (String, Exit) {
    let Session { mut stdin, mut stdout, mut stderr, ended, .. } = exec(house, workload, command, Terminal::None).await;
    let (mut out, mut err) = (String::new(), String::new());
    let write = async {
        // Who does not read it may be gone.
        let _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
    };
    let all = async { tokio::join!(write, stdout.read_to_string(&mut out), stderr.read_to_string(&mut err), ended) };
    let (.., ended) = tokio::time::timeout(PATIENCE, all).await.expect("it ends in time");
    (out + &err, ended.expect("it is known how it ended"))
}

fn code(code: i32) -> Exit {
    Exit { code, message: None }
}

/// Processes of sandboxes with these arguments.
fn processes(arguments: &str) -> usize {
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let commands = all.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
    commands.filter(|command| String::from_utf8_lossy(command).replace('\0', " ").trim() == arguments).count()
}

async fn wait_for_processes(arguments: &str, count: usize) {
    let until = Instant::now() + PATIENCE;
    while processes(arguments) != count {
        assert!(Instant::now() < until, "waited until {count} processes '{arguments}' run");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// What holds for every instance, whoever the daemon is.
pub async fn is_a_good_visit(house: &House) {
    let mut workload = house.workload("visited", 1);
    workload.env.insert("FROM_RELEASE".to_owned(), "yes".to_owned());
    let address = house.start(&workload).await[0];
    let (identity, ended) = run(house, &workload, "/guest identity", "").await;
    assert_eq!((identity.as_str(), ended), (ask(address, "identity").as_str(), code(0)), "as the program itself");
    let (said, _) = run(house, &workload, "/guest print /dev/stdin", "typed").await;
    assert_eq!(said, "typed", "the pipe can be opened by its name, too");
    let (said, ended) = run(house, &workload, "/guest complain aside 7", "").await;
    assert_eq!((said.as_str(), ended), ("aside\n", code(7)));
    for (command, expected) in [("no-such-program", 127), ("/no/such/program", 127), ("/etc/passwd", 126)] {
        let (said, ended) = run(house, &workload, command, "").await;
        assert_eq!(ended, code(expected), "{command}: {said}");
        assert!(said.contains(&format!("starting {command}")), "{said}");
    }
    let (environment, _) = run(house, &workload, "/guest print /proc/self/environ", "").await;
    let environment: Vec<&str> = environment.split('\0').collect();
    for expected in ["FROM_IMAGE=yes", "FROM_RELEASE=yes", "HOME=/home/cnb"] {
        assert!(environment.contains(&expected), "{expected} is not in {environment:?}");
    }
    assert!(environment.contains(&format!("PORT={}", address.port()).as_str()), "{environment:?}");
}

/// Attempts that are made from the command, each in one of its own.
pub async fn is_kept_from<'a>(house: &House, attempts: impl IntoIterator<Item = &'a (&'a str, &'a [i32])>) {
    let workload = house.workload("hostile", 1);
    house.start(&workload).await;
    let mut wrong = Vec::new();
    for (attempt, errors) in attempts {
        let (said, _) = run(house, &workload, &format!("/guest attempt {attempt}"), "").await;
        wrong.extend(check(attempt, &said, errors).err());
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_command_is_what_the_program_is() {
    as_root(async {
        let house = House::open().await;
        is_a_good_visit(&house).await;
        house.close().await;
    });
}

#[test]
fn a_command_is_kept_from_what_it_may_not_do() {
    as_root(async {
        let house = House::open().await;
        let of_the_image: [(&str, &[i32]); 2] =
            [("set-uid-program /set-uid-guest", &[]), ("read /etc/secret", &[libc::EACCES])];
        is_kept_from(&house, ATTEMPTS.iter().chain(&of_the_image)).await;
        house.close().await;
    });
}

#[test]
fn a_command_shares_the_limits_of_the_instance() {
    as_root(async {
        let house = House::open().await;
        let workload = house.workload("limited", 1);
        house.start(&workload).await;
        let (said, ended) = run(&house, &workload, "/guest eat-memory", "").await;
        assert_eq!(ended, code(137), "the kernel ends who eats more than there is: {said}");
        house.close().await;
    });
}

#[test]
fn who_goes_takes_the_command_along() {
    as_root(async {
        let house = House::open().await;
        let workload = house.workload("left", 1);
        house.start(&workload).await;
        for terminal in [Terminal::None, Terminal::Own] {
            let session = exec(&house, &workload, "/guest forever", terminal).await;
            wait_for_processes("/guest forever", 1).await;
            drop(session);
            wait_for_processes("/guest forever", 0).await;
        }
        house.close().await;
    });
}

#[test]
fn a_command_ends_with_its_instance() {
    as_root(async {
        let house = House::open().await;
        let workload = house.workload("ending", 1);
        house.start(&workload).await;
        let session = exec(&house, &workload, "/guest forever", Terminal::None).await;
        wait_for_processes("/guest forever", 1).await;
        house.runtime.remove(&workload.id, PATIENCE).await.unwrap();
        let ended = tokio::time::timeout(PATIENCE, session.ended).await.expect("it ends in time").unwrap();
        assert_eq!(ended.code, 137);
        let command = Command { words: vec!["/guest".to_owned()], terminal: Terminal::None };
        let late = house.runtime.exec(&workload.id, "ending-1-0", command).await.err().expect("nothing runs");
        assert_eq!(late.to_string(), "instance ending-1-0 does not run right now");
        house.close().await;
    });
}

#[test]
fn a_terminal_is_the_instances_own() {
    as_root(async {
        let house = House::open().await;
        let workload = house.workload("seen", 1);
        house.start(&workload).await;
        let mut session = exec(&house, &workload, "/guest terminal", Terminal::Own).await;
        (session.resize)(TerminalSize { columns: 91, rows: 33 });
        session.stdin.write_all(b"go\n").await.unwrap();
        let mut said = String::new();
        let all = async { tokio::join!(session.stdout.read_to_string(&mut said), session.ended) };
        let (_, ended) = tokio::time::timeout(PATIENCE, all).await.expect("it ends in time");
        assert!(said.contains("/dev/pts/0 33 91"), "{said}");
        assert_eq!(ended.unwrap(), code(0));
        house.close().await;
    });
}

#[test]
fn ports_are_reached_that_only_the_instance_reaches() {
    as_root(async {
        let house = House::open().await;
        let mut workload = house.workload("inward", 1);
        workload.image = image(&house.blobs, "serve-both 9229").await;
        house.start(&workload).await;
        for port in [8080, 9229] {
            let mut connection = house.runtime.forward(&workload.id, "inward-1-0", port).await.unwrap();
            connection.write_all(b"hello\n").await.unwrap();
            let mut answer = String::new();
            connection.read_to_string(&mut answer).await.unwrap();
            assert_eq!(answer, "you said hello\n", "{port}");
        }
        let refused = house.runtime.forward(&workload.id, "inward-1-0", 22).await.err().expect("nobody listens");
        assert!(refused.to_string().contains("does not listen there, but on 8080, 9229"), "{refused}");
        house.close().await;
    });
}
