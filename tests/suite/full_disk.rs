//! A disk that is full: what users are told, and that what was there goes on when there is room again.

use std::{fs, io::Write as _, path::PathBuf, time::Duration};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};

use crate::support::{Daemon, Internet, Manner, Packages, Response, RunBy, request, wait_until};

const SOON: Duration = Duration::from_secs(90);

struct Site {
    daemon: Daemon,
    internet: Internet,
    trusted: PathBuf,
}

impl Site {
    /// On a small disk of its own, in the network of the test.
    fn start(internet: Internet) -> Self {
        let trusted = internet.trusted();
        let mut daemon = Daemon::idle_in(internet.surroundings(&[]), Packages::Own, RunBy::Caller);
        fs::create_dir_all(daemon.data_dir()).expect("a folder");
        mount(Some("tmpfs"), &daemon.data_dir(), Some("tmpfs"), MsFlags::empty(), Some("size=24m,mode=700")).unwrap();
        daemon.resume();
        Self { daemon, internet, trusted }
    }

    fn ballast(&self) -> PathBuf {
        self.daemon.data_dir().join("ballast")
    }

    fn fill(&self) {
        let mut file = fs::File::create(self.ballast()).expect("a file");
        let mut size = 1 << 20;
        while size > 0 {
            // To the last byte.
            if file.write_all(&vec![0; size]).is_err() {
                size /= 2;
            }
        }
    }

    fn make_room(&self) {
        fs::remove_file(self.ballast()).expect("the ballast");
    }

    fn api(&self, more: &[&str], path: &str) -> Response {
        let credential = format!("admin:{}", self.daemon.password);
        let url = format!("http://127.0.0.1:{}{path}", self.daemon.port);
        request(&[&["-u", &credential, "--max-time", "20"], more, &[&*url]].concat()).expect("an answer")
    }

    fn create(&self, app: &str) -> Response {
        let body = json!({"name": app, "configuration": {}}).to_string();
        self.api(&["-d", &body], "/api/v1/namespaces/workspace/applications")
    }

    fn lines(&self) -> Value {
        serde_json::from_str(&self.daemon.run(["routes", "--output", "json"])).expect("JSON")
    }

    fn message(&self, host: &str) -> String {
        let lines = self.lines();
        let line = lines.as_array().expect("lines").iter().find(|line| line["host"] == host);
        line.and_then(|line| line["certificate"]["message"].as_str()).unwrap_or_default().to_owned()
    }

    fn is_trusted(&self, host: &str) -> bool {
        let trusted = self.trusted.to_str().expect("a path");
        request(&["--max-time", "10", "--cacert", trusted, &format!("https://{host}/")]).is_ok()
    }
}

impl Drop for Site {
    /// The folder of a disk cannot be taken away while the disk is there.
    fn drop(&mut self) {
        let _ = self.daemon.output(["stop", "--all"]);
        let _ = umount2(&self.daemon.data_dir(), MntFlags::MNT_DETACH);
    }
}

#[test]
fn what_does_not_fit_is_refused_and_what_is_there_goes_on_when_there_is_room_again() {
    let Some(internet) = Internet::enter("a disk that is full", Manner::default()) else { return };
    let mut site = Site::start(internet);
    let (api, shop) = ("epinio.paas.test", "shop.paas.test");
    wait_until("there is a certificate", SOON, || site.is_trusted(api));
    // A host that has to wait for its authority until the disk is full.
    site.internet.stop_authority();
    assert_eq!(site.create("shop").status, 201);
    wait_until("users are told that the authority is away", SOON, || site.message(shop).contains("127.0.0.1:14000"));
    site.fill();
    site.internet.start_authority();
    site.trusted = site.internet.trusted();

    // What fits into the last page of a file is taken still, and then it holds.
    let mut kept = vec!["shop".to_owned()];
    let refused = (0..20).find_map(|number| {
        let name = format!("kept{number}");
        let made = site.create(&name);
        (made.status != 201).then_some(made).or_else(|| {
            kept.push(name);
            None
        })
    });
    let refused = refused.expect("nothing fits any more");
    assert!(refused.status == 507 && refused.body.contains("disk"), "{refused:?}");
    let archive = site.daemon.dir().join("late.tar");
    fs::write(&archive, vec![0; 4 << 20]).expect("a file");
    let pushed = site.api(&["-H", "Expect:", "-T", archive.to_str().expect("a path")], "/push/workspace/late");
    assert!(pushed.status == 507 && pushed.body.contains("disk"), "{pushed:?}");
    wait_until("users are told that the disk is full", SOON, || site.message(shop).contains("No space left"));
    assert!(
        site.api(&[], "/api/v1/namespaces/workspace/applications").body.contains("shop"),
        "it answers all the same"
    );
    println!("{}", site.daemon.run(["routes"]));

    site.make_room();
    assert_eq!(site.create("late").status, 201, "at once, without another start");
    for host in [shop, "late.paas.test"] {
        wait_until("there is a certificate", SOON, || site.is_trusted(host));
    }
    site.daemon.kill();
    site.daemon.resume();
    let applications = site.api(&[], "/api/v1/namespaces/workspace/applications").body;
    for name in kept.iter().map(String::as_str).chain(["late"]) {
        assert!(applications.contains(&format!("\"{name}\"")), "{name} was acknowledged: {applications}");
    }
    for host in [shop, "late.paas.test"] {
        assert!(site.is_trusted(host), "{host}");
    }
}
