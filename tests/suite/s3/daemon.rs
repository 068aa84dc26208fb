//! A daemon whose blobs are in a bucket: pushes, restarts, and what it says when the bucket is away or another one.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crate::{
    footprint::{memory_kib, reset_peak, upload},
    support::{Bucket, Daemon, Packages, RunBy, SECRET, Surroundings, get, request, sample, wait_until},
};

const DEADLINE: Duration = Duration::from_secs(60);
/// Of the file in the archive. The other end copies what is larger than 1 GiB in parts.
const CONTENT: u64 = (1 << 30) + (1 << 20);
/// What an upload may add to the resident memory of the daemon, in KiB.
const MOST_KIB: u64 = 64 << 10;

fn start(bucket: &Bucket) -> Daemon {
    let surroundings = Surroundings { environment: bucket.environment(), ..Surroundings::default() };
    Daemon::start_in(surroundings, Packages::Shared, RunBy::Caller)
}

fn answers(daemon: &Daemon, app: &str) -> bool {
    get(&daemon.url(app)).is_ok_and(|response| response.status == 200)
}

#[test]
fn a_push_and_everything_after_it_needs_nothing_but_the_bucket() {
    let Some(bucket) = Bucket::start() else { return };
    let mut daemon = start(&bucket);
    let watch = Watch::start(daemon.pid());
    daemon.push("shop", &sample("procfile"));
    assert!(answers(&daemon, "shop"));
    assert_eq!(watch.found(), BTreeSet::new(), "processes with the key of S3");
    assert!(!daemon.data_dir().join("blobs").exists(), "blobs are kept twice");
    assert!(bucket.files("blobs").len() > 10);
    assert_eq!(with_secret(&daemon.data_dir()), Vec::<String>::new());

    daemon.kill();
    daemon.resume();
    assert!(answers(&daemon, "shop"), "it runs on");
    let log = daemon.run(["apps", "logs", "--staging", "shop"]);
    assert!(log.contains("EXPORTING"), "the log of the staging is read from the bucket: {log}");

    // Nothing of it is on this machine any more.
    daemon.stop();
    for folder in ["layers", "cache/blobs"] {
        fs::remove_dir_all(daemon.data_dir().join(folder)).expect("a folder of the daemon");
    }
    daemon.resume();
    wait_until("the application is back", DEADLINE, || answers(&daemon, "shop"));
}

#[test]
fn a_zip_is_checked_before_it_is_in_the_bucket() {
    let Some(bucket) = Bucket::start() else { return };
    let daemon = start(&bucket);
    let archive = daemon.dir().join("site.zip");
    let mut zip = zip::ZipWriter::new(fs::File::create(&archive).unwrap());
    zip.start_file("index.html", zip::write::SimpleFileOptions::default()).unwrap();
    std::io::Write::write_all(&mut zip, b"<p>hello").unwrap();
    zip.finish().unwrap();
    let push = |path: &Path| {
        let credential = format!("admin:{}", daemon.password);
        request(&["-u", &credential, "-T", path.to_str().unwrap(), &daemon.api("/push/workspace/site")]).unwrap()
    };
    let before = bucket.files("blobs").len();
    let whole = fs::read(&archive).unwrap();
    let broken = daemon.dir().join("broken.zip");
    fs::write(&broken, &whole[..whole.len() - 10]).unwrap();
    assert_eq!(push(&broken).status, 422);
    assert_eq!(bucket.files("blobs").len(), before, "a broken archive is kept");
    let answer = push(&archive);
    assert!(answer.body.trim().ends_with(&daemon.url("site")), "{answer:?}");
    assert_eq!(get(&daemon.url("site")).unwrap().body, "<p>hello");
}

#[test]
fn while_the_bucket_is_away_requests_say_so_and_applications_answer() {
    let Some(mut bucket) = Bucket::start() else { return };
    let daemon = start(&bucket);
    daemon.push("shop", &sample("procfile"));
    bucket.stop();
    let push = daemon.output(["push", "--name", "late", "--path", sample("static").to_str().unwrap()]);
    let said = String::from_utf8_lossy(&push.stderr).into_owned();
    assert!(!push.status.success() && said.contains("object storage"), "{said}");
    assert!(answers(&daemon, "shop"), "what runs does not need the bucket");
    let image = format!("http://127.0.0.1:{}/v2/workspace/shop/tags/list", daemon.registry_port);
    assert_eq!(request(&["-u", &format!("admin:{}", daemon.password), &image]).unwrap().status, 200);
    bucket.resume();
    daemon.push("late", &sample("static"));
    assert!(answers(&daemon, "late") && answers(&daemon, "shop"));
}

#[test]
fn a_daemon_waits_a_moment_for_the_bucket_and_refuses_another_place() {
    let Some(mut bucket) = Bucket::start() else { return };
    let mut daemon = start(&bucket);
    daemon.stop();
    bucket.stop();
    let log = daemon.dir().join("daemon.log");
    let back = std::thread::spawn(move || {
        wait_until("the daemon has begun to wait", DEADLINE, || {
            fs::read_to_string(&log).is_ok_and(|log| log.contains("waiting for the object storage"))
        });
        bucket.resume();
        bucket
    });
    daemon.resume();
    daemon.stop();
    let bucket = back.join().expect("the server starts");
    fs::create_dir(bucket.folder().with_file_name("other")).unwrap();
    let serve = |changes: &[(&str, &str)]| {
        let mut command = daemon.command(["serve"]);
        command.envs(bucket.environment()).envs(changes.iter().copied());
        let output = command.output().expect("it ends");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(3), "{said}");
        said
    };
    let said = serve(&[("EPINIOD_S3_BUCKET", "other")]);
    assert!(said.contains("does not have what this data directory refers to"), "{said}");
    let said = serve(&[("EPINIOD_S3_BUCKET", "nowhere")]);
    assert!(said.contains("there is no bucket 'nowhere'"), "{said}");
    let disk = daemon.output(["serve"]);
    let said = String::from_utf8_lossy(&disk.stderr).into_owned();
    assert!(!disk.status.success() && said.contains("are in the bucket 'shop'"), "{said}");
}

#[test]
fn a_data_directory_with_blobs_does_not_move_to_a_bucket() {
    let Some(bucket) = Bucket::start() else { return };
    let mut daemon = Daemon::start_with(Packages::Shared, RunBy::Caller);
    daemon.push("shop", &sample("procfile"));
    daemon.stop();
    let output = daemon.command(["serve"]).envs(bucket.environment()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("start without --s3-bucket"), "{said}");
    daemon.resume();
}

#[test]
fn an_upload_of_a_gibibyte_goes_through_little_memory() {
    let Some(bucket) = Bucket::start() else { return };
    let daemon = start(&bucket);
    let credential = format!("admin:{}", daemon.password);
    let applications = daemon.api("/api/v1/namespaces/workspace/applications");
    assert_eq!(request(&["-u", &credential, "-d", r#"{"name":"big"}"#, &applications]).unwrap().status, 201);
    assert!(upload(&daemon, 20 << 20).starts_with("HTTP/1.1 200"));
    let before = memory_kib(&daemon, "VmRSS");
    reset_peak(&daemon);
    let answer = upload(&daemon, CONTENT);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}\n{}", daemon.log_tail());
    let added = memory_kib(&daemon, "VmHWM").saturating_sub(before);
    eprintln!("the upload added {added} KiB to {before} KiB");
    assert!(added <= MOST_KIB, "the upload added {added} KiB to {before} KiB; at most {MOST_KIB} KiB are allowed");
    let largest = bucket.files("blobs").iter().map(|path| path.metadata().unwrap().len()).max();
    assert!(largest.is_some_and(|size| size > CONTENT), "{largest:?}");
    wait_until("nothing is left of the upload", DEADLINE, || bucket.files("uploads").is_empty());
}

/// Files below a folder that have the secret key in them.
fn with_secret(dir: &Path) -> Vec<String> {
    let output = std::process::Command::new("grep").args(["-rlF", SECRET]).arg(dir).output().expect("grep");
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

/// Looks at all processes below a daemon, again and again: is the secret in the environment or the arguments of one?
struct Watch {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<(usize, BTreeSet<String>)>,
}

impl Watch {
    fn start(daemon: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let own = arguments(daemon);
            assert!(own.is_some() && has_secret(daemon), "the daemon itself has it: the search is broken");
            let (mut seen, mut found) = (BTreeSet::new(), BTreeSet::new());
            while !stopped.load(Ordering::SeqCst) {
                for process in below(daemon) {
                    let looks = (has_secret(process), arguments(process), has_secret(process));
                    seen.insert(process);
                    // What is about to become another program is the daemon itself until then.
                    if let (true, Some(arguments), true) = looks
                        && Some(&arguments) != own.as_ref()
                    {
                        found.insert(format!("{process}: {arguments}"));
                    }
                }
            }
            (seen.len(), found)
        });
        Self { stop, thread }
    }

    fn found(self) -> BTreeSet<String> {
        self.stop.store(true, Ordering::SeqCst);
        let (seen, found) = self.thread.join().expect("no panic");
        assert!(seen >= 4, "only {seen} processes were seen during a push: the search is broken");
        found
    }
}

fn arguments(process: u32) -> Option<String> {
    let text = fs::read(format!("/proc/{process}/cmdline")).ok()?;
    Some(String::from_utf8_lossy(&text).replace('\0', " "))
}

fn has_secret(process: u32) -> bool {
    let read = |file: &str| fs::read(format!("/proc/{process}/{file}")).unwrap_or_default();
    let text = [read("environ"), read("cmdline")].concat();
    text.windows(SECRET.len()).any(|window| window == SECRET.as_bytes())
}

/// The processes that a daemon started, and those that they did.
fn below(daemon: u32) -> Vec<u32> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let Some(process) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse::<u32>().ok());
        parents.extend(parent.map(|parent| (process, parent)));
    }
    let mut all = vec![daemon];
    loop {
        let more = parents.iter().filter(|(process, parent)| all.contains(parent) && !all.contains(process));
        let more: Vec<u32> = more.map(|(process, _)| *process).collect();
        if more.is_empty() {
            all.remove(0);
            return all;
        }
        all.extend(more);
    }
}
