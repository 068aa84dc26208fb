//! What runs in the sandboxes of tests: `guest COMMAND ARGUMENT…`. Compiled by plain rustc.
//!
//! Outside, as the program that sets sandboxes up, it is epiniod: a link beside it says where that is. Inside it tries what a hostile program
//! would: `attempt NAME` says how it went, and ends with 0 when it was kept from it.

use std::{
    env,
    ffi::{c_char, c_int, c_long, c_void},
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpListener, TcpStream, ToSocketAddrs, UdpSocket},
    os::{linux::net::SocketAddrExt, unix::process::CommandExt},
    path::Path,
    process::{Command, exit},
    time::{Duration, Instant},
};

#[path = "guest/http.rs"]
mod http;

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
    fn fork() -> c_int;
    fn pause() -> c_int;
    fn ioctl(fd: c_int, request: u64, ...) -> c_int;
    fn signal(number: c_int, handler: usize) -> usize;
    fn getuid() -> u32;
    fn geteuid() -> u32;
}

fn main() {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["sandbox-init", "probe", _] => {}
        ["sandbox-init", ..] => {
            let own = env::current_exe().unwrap_or_else(|error| fail(error));
            fail(Command::new(own.with_extension("epiniod")).args(&args).exec());
        }
        ["say", text] => println!("{text}"),
        ["complain", text, code] => {
            eprintln!("{text}");
            exit(code.parse().expect("a code"));
        }
        ["write", path, text] => fs::write(path, text).unwrap_or_else(|error| fail(error)),
        ["print", path] => print!("{}", fs::read_to_string(path).unwrap_or_else(|error| fail(error))),
        ["owner", path] => {
            use std::os::unix::fs::MetadataExt;
            let metadata = fs::metadata(path).unwrap_or_else(|error| fail(error));
            println!("{}:{}", metadata.uid(), metadata.gid());
        }
        ["identity"] => print!("{}", identity()),
        ["forever"] => wait_for_the_end(),
        ["deaf"] => {
            // SAFETY: SIG_IGN for SIGTERM.
            unsafe { signal(15, 1) };
            serve(&listen("0.0.0.0", &env::var("PORT").expect("PORT")));
        }
        ["crash-after-serving"] => {
            println!("about to crash");
            exit(3);
        }
        ["serve"] => serve(&listen("0.0.0.0", &env::var("PORT").expect("PORT"))),
        ["serve", address, port] => serve(&listen(address, port)),
        ["serve-late", port, seconds] => {
            let early = listen("0.0.0.0", port);
            std::thread::spawn(move || serve(&early));
            std::thread::sleep(Duration::from_secs(seconds.parse().expect("a number")));
            serve(&listen("0.0.0.0", &env::var("PORT").expect("PORT")));
        }
        ["serve-both", inner] => {
            let inner = listen("127.0.0.1", inner);
            std::thread::spawn(move || serve(&inner));
            serve(&listen("0.0.0.0", &env::var("PORT").expect("PORT")));
        }
        ["terminal"] => println!("{}", terminal().unwrap_or_else(|error| fail(error))),
        ["http", version] => http::serve(version),
        ["attempt", name, arguments @ ..] => match attempt(name, arguments) {
            Ok(done) => {
                println!("{name}: it could: {done}");
                exit(1);
            }
            Err(error) => println!("{name}: refused: {error}"),
        },
        ["eat-memory"] => eat_memory(),
        ["hold-memory"] => {
            hold_memory();
            wait_for_the_end();
        }
        ["fork-bomb"] => print!("{}", fork_bomb()),
        ["bad-report", trick, path] => bad_report(trick, path).unwrap_or_else(|error| fail(error)),
        ["fill", folder] => {
            println!("{}", fill(Path::new(folder)));
            if *folder != "/tmp" {
                // The disk stays full until somebody does something about it.
                wait_for_the_end();
            }
        }
        _ => {
            eprintln!("what is {args:?}?");
            exit(2);
        }
    }
}

fn fail(error: io::Error) -> ! {
    eprintln!("{error}");
    exit(1)
}

fn identity() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let wanted = ["Uid:", "Gid:", "CapEff:", "CapPrm:", "CapBnd:", "CapAmb:", "NoNewPrivs:", "Seccomp:"];
    let lines = status.lines().filter(|line| wanted.iter().any(|name| line.starts_with(name)));
    lines.map(|line| format!("{}\n", line.split_whitespace().collect::<Vec<_>>().join(" "))).collect()
}

/// Which terminal this has, and its rows and columns, when somebody has typed a line.
fn terminal() -> io::Result<String> {
    const GET_WINDOW_SIZE: u64 = 0x5413;
    io::stdin().read_line(&mut String::new())?;
    let mut size = [0_u16; 4];
    // SAFETY: the call fills the array, which is as large as the struct that it knows.
    if unsafe { ioctl(0, GET_WINDOW_SIZE, size.as_mut_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(format!("{} {} {}", fs::read_link("/proc/self/fd/1")?.display(), size[0], size[1]))
}

fn listen(address: &str, port: &str) -> TcpListener {
    let listener = TcpListener::bind(format!("{address}:{port}")).unwrap_or_else(|error| fail(error));
    println!("listening on {address}:{port}");
    listener
}

/// One line in, the answer out: `attempt …` and `identity` as above, anything else comes back.
fn serve(listener: &TcpListener) -> ! {
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        let mut line = String::new();
        if BufReader::new(&stream).read_line(&mut line).is_err() {
            continue;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = match words.as_slice() {
            ["attempt", name, arguments @ ..] => match attempt(name, arguments) {
                Ok(done) => format!("{name}: it could: {done}\n"),
                Err(error) => format!("{name}: refused: {error}\n"),
            },
            ["identity"] => identity(),
            ["variable", name] => format!("{}\n", env::var(name).unwrap_or_default()),
            ["crash"] => exit(7),
            ["shout", text] => {
                println!("{text}");
                String::new()
            }
            ["shout-to-dev-stdout", text] => {
                let opened = fs::OpenOptions::new().append(true).open("/dev/stdout");
                format!("{:?}\n", opened.and_then(|mut out| out.write_all(format!("{text}\n").as_bytes())))
            }
            ["orphans"] => orphans(),
            ["fork-bomb"] => fork_bomb(),
            ["fill", folder] => fill(Path::new(folder)),
            ["hold-memory"] => {
                hold_memory();
                String::new()
            }
            _ => format!("you said {line}"),
        };
        let _ = stream.write_all(answer.as_bytes());
        // Children may have it open as well.
        let _ = stream.shutdown(Shutdown::Both);
    }
    exit(0)
}

/// Leaves a child of a child behind; afterwards, how many processes there are that ended and nobody collected.
fn orphans() -> String {
    // SAFETY: this program has one thread.
    match unsafe { fork() } {
        0 => {
            // SAFETY: as above.
            unsafe { fork() };
            exit(0);
        }
        child => {
            // SAFETY: wait4 with no place for results.
            unsafe { syscall(nr::WAIT4, child, 0, 0, 0) };
            let until = Instant::now() + Duration::from_secs(5);
            let mut left = zombies();
            while left > 0 && Instant::now() < until {
                std::thread::yield_now();
                left = zombies();
            }
            format!("{left} zombies\n")
        }
    }
}

fn zombies() -> usize {
    let stats = processes().into_iter().filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/stat")).ok());
    stats.filter(|stat| stat.contains(") Z ")).count()
}

fn processes() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Numbers of system calls.
#[cfg(target_arch = "x86_64")]
mod nr {
    pub const WAIT4: i64 = 61;
    pub const PTRACE: i64 = 101;
    pub const MKNODAT: i64 = 259;
    pub const MOUNT: i64 = 165;
    pub const UMOUNT2: i64 = 166;
    pub const PIVOT_ROOT: i64 = 155;
    pub const CHROOT: i64 = 161;
    pub const UNSHARE: i64 = 272;
    pub const CLONE: i64 = 56;
    pub const SETNS: i64 = 308;
    pub const KEYCTL: i64 = 250;
    pub const BPF: i64 = 321;
    pub const PERF_EVENT_OPEN: i64 = 298;
    pub const USERFAULTFD: i64 = 323;
    pub const OPEN_BY_HANDLE_AT: i64 = 304;
    pub const NAME_TO_HANDLE_AT: i64 = 303;
    pub const REBOOT: i64 = 169;
    pub const SETHOSTNAME: i64 = 170;
    pub const SOCKET: i64 = 41;
    pub const SETUID: i64 = 105;
    pub const KILL: i64 = 62;
}
#[cfg(target_arch = "aarch64")]
mod nr {
    pub const WAIT4: i64 = 260;
    pub const PTRACE: i64 = 117;
    pub const MKNODAT: i64 = 33;
    pub const MOUNT: i64 = 40;
    pub const UMOUNT2: i64 = 39;
    pub const PIVOT_ROOT: i64 = 41;
    pub const CHROOT: i64 = 51;
    pub const UNSHARE: i64 = 97;
    pub const CLONE: i64 = 220;
    pub const SETNS: i64 = 268;
    pub const KEYCTL: i64 = 219;
    pub const BPF: i64 = 280;
    pub const PERF_EVENT_OPEN: i64 = 241;
    pub const USERFAULTFD: i64 = 282;
    pub const OPEN_BY_HANDLE_AT: i64 = 265;
    pub const NAME_TO_HANDLE_AT: i64 = 264;
    pub const REBOOT: i64 = 142;
    pub const SETHOSTNAME: i64 = 161;
    pub const SOCKET: i64 = 198;
    pub const SETUID: i64 = 146;
    pub const KILL: i64 = 129;
}
/// The same everywhere.
const IO_URING_SETUP: i64 = 425;
const CLONE3: i64 = 435;
const PIDFD_GETFD: i64 = 438;
const PIDFD_OPEN: i64 = 434;
const OPEN_TREE: i64 = 428;
const AT_FDCWD: c_long = -100;
const CLONE_NEWUSER: c_long = 0x1000_0000;

/// What came of a system call.
fn call(result: c_long) -> io::Result<String> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(format!("the call returned {result}")) }
}

fn attempt(name: &str, arguments: &[&str]) -> io::Result<String> {
    let none = std::ptr::null::<c_void>();
    let root: *const c_char = c"/".as_ptr();
    let tmp: *const c_char = c"/tmp".as_ptr();
    // SAFETY (all calls): pointers are to constants that live for ever, or null; the kernel checks what it is given.
    match (name, arguments) {
        ("read", [path]) => match fs::metadata(path)?.is_dir() {
            true => Ok(format!("{:?}", fs::read_dir(path)?.flatten().map(|entry| entry.path()).collect::<Vec<_>>())),
            false => {
                let mut bytes = [0; 64];
                match fs::File::open(path)?.read(&mut bytes)? {
                    0 => Err(io::Error::other("it is empty")),
                    read => Ok(format!("{read} bytes")),
                }
            }
        },
        ("write", [path]) => fs::OpenOptions::new().write(true).open(path)?.write_all(b"1").map(|()| (*path).to_owned()),
        ("create", [path]) => fs::write(path, "x").map(|()| (*path).to_owned()),
        ("foreign-processes", []) => {
            let own = ["guest", "init", "epiniod"];
            let names = processes().into_iter().filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).ok());
            let foreign: Vec<_> = names.filter(|name| !own.iter().any(|own| name.trim().starts_with(own))).collect();
            if foreign.is_empty() { Err(io::Error::other("only our own are seen")) } else { Ok(format!("{foreign:?}")) }
        }
        ("ptrace", []) => call(unsafe { syscall(nr::PTRACE, 16 as c_long, 1 as c_long, none, none) }),
        ("traceme", []) => call(unsafe { syscall(nr::PTRACE, 0 as c_long, 0 as c_long, none, none) }),
        ("mount", []) => call(unsafe { syscall(nr::MOUNT, c"x".as_ptr(), tmp, c"tmpfs".as_ptr(), 0 as c_long, none) }),
        ("remount", []) => call(unsafe { syscall(nr::MOUNT, none, root, none, (32 | 4096) as c_long, none) }),
        ("umount", []) => call(unsafe { syscall(nr::UMOUNT2, c"/proc/keys".as_ptr(), 2 as c_long) }),
        ("open-tree", []) => call(unsafe { syscall(OPEN_TREE, AT_FDCWD, root, 1 as c_long) }),
        ("pivot-root", []) => call(unsafe { syscall(nr::PIVOT_ROOT, root, root) }),
        ("chroot", []) => call(unsafe { syscall(nr::CHROOT, tmp) }),
        ("mknod", []) => call(unsafe { syscall(nr::MKNODAT, AT_FDCWD, c"/tmp/sda".as_ptr(), 0o060_666 as c_long, 0x800 as c_long) }),
        ("mknod-null", []) => call(unsafe { syscall(nr::MKNODAT, AT_FDCWD, c"/tmp/null".as_ptr(), 0o020_666 as c_long, 0x103 as c_long) }),
        ("user-namespace", []) => call(unsafe { syscall(nr::UNSHARE, CLONE_NEWUSER) }),
        ("clone-user-namespace", []) => match unsafe { syscall(nr::CLONE, CLONE_NEWUSER | 17, none, none, none, none) } {
            0 => exit(0),
            result => call(result),
        },
        ("clone3", []) => {
            // `struct clone_args`: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls.
            let arguments: [u64; 8] = [CLONE_NEWUSER as u64, 0, 0, 0, 17, 0, 0, 0];
            match unsafe { syscall(CLONE3, arguments.as_ptr(), size_of_val(&arguments)) } {
                0 => exit(0),
                result => call(result),
            }
        }
        ("x32", []) => call(unsafe { syscall(0x4000_0000 | nr::UNSHARE, CLONE_NEWUSER) }),
        ("setns", []) => {
            use std::os::fd::AsRawFd;
            let namespace = fs::File::open("/proc/self/ns/user")?;
            call(unsafe { syscall(nr::SETNS, namespace.as_raw_fd() as c_long, 0 as c_long) })
        }
        ("keyctl", []) => call(unsafe { syscall(nr::KEYCTL, 0 as c_long, -3 as c_long, 0 as c_long) }),
        ("bpf", []) => {
            // A map: an array of one element, with keys and values of 4 bytes.
            let attributes: [u32; 5] = [2, 4, 4, 1, 0];
            call(unsafe { syscall(nr::BPF, 0 as c_long, attributes.as_ptr(), size_of_val(&attributes)) })
        }
        ("perf", []) => {
            // The clock of a processor, of this process, without the kernel (`struct perf_event_attr`, version 0).
            let mut attributes = [0u64; 8];
            attributes[0] = 1 | 64 << 32;
            attributes[5] = 1 << 5;
            call(unsafe { syscall(nr::PERF_EVENT_OPEN, attributes.as_ptr(), 0 as c_long, -1 as c_long, -1 as c_long, 0 as c_long) })
        }
        ("userfaultfd", []) => call(unsafe { syscall(nr::USERFAULTFD, 1 as c_long) }),
        ("io-uring", []) => call(unsafe { syscall(IO_URING_SETUP, 1 as c_long, [0u8; 256].as_mut_ptr()) }),
        ("pidfd-getfd", []) => {
            // Of this process itself: nothing but the filter is against it.
            let own = unsafe { syscall(PIDFD_OPEN, std::process::id() as c_long, 0 as c_long) };
            call(own)?;
            call(unsafe { syscall(PIDFD_GETFD, own, 0 as c_long, 0 as c_long) })
        }
        ("open-by-handle", []) => {
            // `struct file_handle`: length, kind, and inode 2 of generation 0: the root of many a file system.
            let handle: [u32; 4] = [8, 1, 2, 0];
            call(unsafe { syscall(nr::OPEN_BY_HANDLE_AT, AT_FDCWD, handle.as_ptr(), 0 as c_long) })
        }
        ("name-to-handle", []) => {
            let (mut handle, mut mount) = ([128u32; 34], 0i32);
            call(unsafe { syscall(nr::NAME_TO_HANDLE_AT, AT_FDCWD, root, handle.as_mut_ptr(), &mut mount as *mut i32, 0 as c_long) })
        }
        ("reboot", []) => call(unsafe { syscall(nr::REBOOT, 0xfee1_dead_u32 as c_long, 672_274_793 as c_long, 0 as c_long, none) }),
        ("sethostname", []) => call(unsafe { syscall(nr::SETHOSTNAME, c"x".as_ptr(), 1 as c_long) }),
        ("become-root", []) => call(unsafe { syscall(nr::SETUID, 0 as c_long) }),
        ("socket", [family, kind, protocol]) => {
            let number = |text: &str| text.parse::<c_long>().expect("a number");
            call(unsafe { syscall(nr::SOCKET, number(family), number(kind), number(protocol)) })
        }
        ("signal", [pid]) => call(unsafe { syscall(nr::KILL, pid.parse::<c_long>().expect("a pid"), 9 as c_long) }),
        ("set-uid-program", [path]) => {
            let said = Command::new(path).arg("identity").output()?;
            let said = String::from_utf8_lossy(&said.stdout).into_owned();
            let uids = said.lines().find(|line| line.starts_with("Uid:")).unwrap_or_default().to_owned();
            // SAFETY: no arguments.
            let own = format!("Uid: {0} {1} {1} {1}", unsafe { getuid() }, unsafe { geteuid() });
            if uids == own { Err(io::Error::other("it stayed who it was")) } else { Ok(uids) }
        }
        ("connect", [address]) => {
            let address = address.to_socket_addrs()?.next().ok_or_else(|| io::Error::other("no address"))?;
            TcpStream::connect_timeout(&address, Duration::from_secs(2)).map(|_| address.to_string())
        }
        // What a server of HTTP answers to who has no credential.
        ("fetch", [address, path]) => {
            let to = address.to_socket_addrs()?.next().ok_or_else(|| io::Error::other("no address"))?;
            let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(2))?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes())?;
            let mut status = String::new();
            BufReader::new(stream).read_line(&mut status)?;
            if status.contains(" 401 ") { Err(io::Error::other("401")) } else { Ok(status) }
        }
        ("abstract-socket", [name]) => {
            let address = std::os::unix::net::SocketAddr::from_abstract_name(name.as_bytes())?;
            std::os::unix::net::UnixStream::connect_addr(&address).map(|_| (*name).to_owned())
        }
        // Not hostile: this one is to succeed.
        ("resolve", [server]) => {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.set_read_timeout(Some(Duration::from_secs(5)))?;
            // A question for the name servers of the root.
            socket.send_to(b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x01", (*server, 53))?;
            let mut answer = [0; 512];
            Ok(format!("{} bytes", socket.recv(&mut answer)?))
        }
        _ => panic!("what is {name} {arguments:?}?"),
    }
}

/// Takes memory and uses it until there is no more.
fn eat_memory() {
    let mut eaten: Vec<Vec<u8>> = Vec::new();
    while eaten.len() < 64 {
        eaten.push(vec![1; 32 << 20]);
    }
    println!("ate {} MiB", eaten.len() * 32);
}

/// Memory that is never given back.
fn hold_memory() {
    let held = vec![1u8; 512 << 20];
    println!("holding {} bytes", held.len());
    std::mem::forget(held);
}

fn wait_for_the_end() -> ! {
    loop {
        // SAFETY: no arguments.
        unsafe { pause() };
    }
}

/// Children that have children, as many as there can be.
fn fork_bomb() -> String {
    let mut children = 0;
    while children < 20_000 {
        // SAFETY: this program has one thread.
        match unsafe { fork() } {
            -1 => break,
            0 => wait_for_the_end(),
            _ => children += 1,
        }
    }
    format!("{children} children\n")
}

/// What is not a report, in the place of one.
fn bad_report(trick: &str, path: &str) -> io::Result<()> {
    match trick {
        "link" => std::os::unix::fs::symlink("/etc/shadow", path),
        "fifo" => {
            let path = std::ffi::CString::new(path)?;
            // SAFETY: the path lives through the call.
            call(unsafe { syscall(nr::MKNODAT, AT_FDCWD, path.as_ptr(), 0o010_666 as c_long, 0 as c_long) }).map(drop)
        }
        "socket" => std::os::unix::net::UnixListener::bind(path).map(drop),
        _ => fs::write(path, vec![b' '; 300 << 10]),
    }
}

fn fill(folder: &Path) -> String {
    let block = vec![1; 1 << 20];
    let mut file = fs::File::create(folder.join("filled")).unwrap_or_else(|error| fail(error));
    for written in 0..4096 {
        if let Err(error) = file.write_all(&block) {
            return format!("after {written} MiB: {error}");
        }
        if folder == Path::new("/tmp") && written > 256 {
            break;
        }
    }
    "no limit".to_owned()
}
