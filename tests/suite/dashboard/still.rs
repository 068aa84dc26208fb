//! A network that does not change. A browser gives up what it is loading when the machine's network changes, and other tests
//! make networks all the time.

use std::{
    collections::HashSet,
    io,
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    process::Command,
    sync::mpsc,
};

use nix::{
    sched::{CloneFlags, unshare},
    unistd::Uid,
};

/// A thread on such a network, where root runs the tests; else on that of the machine.
pub struct Still {
    jobs: mpsc::Sender<Box<dyn FnOnce() + Send>>,
    /// Ports of the machine that are there as well.
    led: HashSet<u16>,
}

impl Still {
    pub fn new() -> Self {
        let (jobs, given) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
        std::thread::spawn(move || {
            if is_apart() {
                unshare(CloneFlags::CLONE_NEWNET).expect("root may unshare");
                let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
                assert!(up.expect("ip").success(), "loopback is up");
            }
            given.into_iter().for_each(|job| job());
        });
        Self { jobs, led: HashSet::new() }
    }

    /// Does something there; what is started there stays there.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        self.jobs.send(Box::new(move || drop(done.send(job())))).expect("the thread lives");
        result.recv().expect("it does not panic")
    }

    /// From there a port leads to the same one of this machine.
    pub fn lead(&mut self, port: u16) {
        if !is_apart() || !self.led.insert(port) {
            return;
        }
        let listener = self.run(move || TcpListener::bind((Ipv4Addr::LOCALHOST, port))).expect("a free port");
        std::thread::spawn(move || {
            for there in listener.incoming().flatten() {
                // Who does not answer here answers nobody there.
                let Ok(here) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else { continue };
                let pair = (there.try_clone().expect("a socket"), here.try_clone().expect("a socket"));
                std::thread::spawn(move || carry(pair.0, pair.1));
                std::thread::spawn(move || carry(here, there));
            }
        });
    }
}

fn is_apart() -> bool {
    Uid::effective().is_root()
}

fn carry(mut from: TcpStream, mut to: TcpStream) {
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}
