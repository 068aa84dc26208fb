//! What a step gets, and what comes of it.

use std::{fs, time::Duration};

use epiniod::runtime::{
    Access, Ended, LogStream, OWN_BINARY, StepBlob, StepFile, StepImage, StepNetwork, StepUser, Trust, VolumeMount,
};
use tokio_util::sync::CancellationToken;

use super::house::{House, as_root, put, step, text};
use crate::support::not_run;

#[test]
fn output_comes_line_by_line_and_the_exit_code_is_kept() {
    as_root(async {
        let house = House::open().await;
        let (outcome, lines) = house.run(step(StepImage::Own, ["say", "hello\nyou"])).await;
        assert_eq!(outcome.ended, Ended::Exit(0), "{lines:?}");
        assert_eq!(text(&lines), "hello\nyou\n");
        assert!(lines.iter().all(|line| line.stream == LogStream::Stdout && line.origin == "build"));
        let (outcome, lines) = house.run(step(StepImage::Own, ["complain", "oh no", "7"])).await;
        assert_eq!((outcome.ended, lines[0].stream), (Ended::Exit(7), LogStream::Stderr));
        house.close().await;
    });
}

#[test]
fn a_job_ends_with_the_first_step_that_fails() {
    as_root(async {
        let house = House::open().await;
        let steps = vec![
            step(StepImage::Own, ["say", "one"]),
            step(StepImage::Own, ["complain", "two", "3"]),
            step(StepImage::Own, ["say", "three"]),
        ];
        let (outcomes, lines) = house.run_all(steps, CancellationToken::new()).await;
        let ended: Vec<_> = outcomes.iter().map(|outcome| outcome.ended).collect();
        assert_eq!(ended, [Ended::Exit(0), Ended::Exit(3)]);
        assert_eq!(text(&lines), "one\ntwo\n");
        house.close().await;
    });
}

#[test]
fn volumes_are_shared_by_the_steps_of_a_job_and_belong_to_the_cnb_user() {
    as_root(async {
        let house = House::open().await;
        let volume = |access| VolumeMount { volume: "layers".to_owned(), path: "/layers".to_owned(), access };
        let with = |mut step: epiniod::runtime::Step, access| {
            step.volumes = vec![volume(access)];
            step
        };
        let (read_write, read_only) = (Access::ReadWrite, Access::ReadOnly);
        let steps = vec![
            with(step(StepImage::Own, ["write", "/layers/file", "kept"]), read_write),
            with(step(StepImage::Image(house.image.clone()), ["print", "/layers/file"]), read_only),
            with(step(StepImage::Own, ["owner", "/layers/file"]), read_only),
        ];
        let (outcomes, lines) = house.run_all(steps, CancellationToken::new()).await;
        assert_eq!(text(&lines), "kept\n1000:1000\n");
        assert_eq!(outcomes.len(), 3);
        house.attempt(with(step(StepImage::Own, ["attempt", "create", "/layers/other"]), read_only)).await;
        let mut as_root = with(step(StepImage::Own, ["write", "/layers/by-root", "x"]), read_write);
        as_root.user = StepUser::Root;
        assert_eq!(house.run(as_root).await.0.ended, Ended::Exit(0));
        house.discard().await;
        let jobs = house.dir.path().join("jobs");
        assert_eq!(fs::read_dir(jobs).unwrap().count(), 0, "discarded jobs leave nothing");
        house.close().await;
    });
}

#[test]
fn files_and_blobs_are_there_and_for_the_user_of_the_step_only() {
    as_root(async {
        let house = House::open().await;
        let digest = put(&house.blobs, b"a blob".to_vec()).await;
        let mut read = step(StepImage::Own, ["print", "/run/epiniod/source"]);
        read.blobs = vec![StepBlob { digest, path: "/run/epiniod/source".to_owned(), token: String::new() }];
        assert_eq!(text(&house.run(read.clone()).await.1), "a blob\n");
        read.args = ["attempt", "write", "/run/epiniod/source"].map(str::to_owned).to_vec();
        read.user = StepUser::Root;
        house.attempt(read).await;
        let file = StepFile { path: "/run/epiniod/token".to_owned(), contents: b"secret".to_vec(), secret: true };
        let mut read = step(StepImage::Own, ["print", "/run/epiniod/token"]);
        read.files = vec![file];
        assert_eq!(text(&house.run(read.clone()).await.1), "secret\n");
        read.args = ["owner", "/run/epiniod/token"].map(str::to_owned).to_vec();
        assert_eq!(text(&house.run(read).await.1), "1000:1000\n");
        house.close().await;
    });
}

#[test]
fn the_secrets_of_a_step_are_not_left_on_disk() {
    as_root(async {
        let house = House::open().await;
        let mut read = step(StepImage::Own, ["print", "/run/epiniod/token"]);
        let contents = b"secret".to_vec();
        read.files = vec![StepFile { path: "/run/epiniod/token".to_owned(), contents, secret: true }];
        assert_eq!(text(&house.run(read).await.1), "secret\n");
        let spec = house.dir.path().join("jobs/0123456789abcdef/step-build/spec.json");
        assert!(spec.parent().unwrap().exists() && !spec.exists());
        house.close().await;
    });
}

#[test]
fn a_report_is_a_plain_file_or_nothing() {
    as_root(async {
        let house = House::open().await;
        let mut writes = step(StepImage::Own, ["write", "/run/epiniod/out/report.json", "{}"]);
        writes.report = Some("/run/epiniod/out/report.json".to_owned());
        assert_eq!(house.run(writes.clone()).await.0.report.as_deref(), Some(&b"{}"[..]));
        writes.args = ["say", "nothing"].map(str::to_owned).to_vec();
        assert_eq!(house.run(writes.clone()).await.0.report, None);
        for trick in ["link", "fifo", "socket", "large"] {
            writes.args = ["bad-report", trick, "/run/epiniod/out/report.json"].map(str::to_owned).to_vec();
            let (outcome, lines) = house.run(writes.clone()).await;
            assert_eq!((outcome.ended, outcome.report), (Ended::Exit(0), None), "{trick}: {}", text(&lines));
        }
        house.close().await;
    });
}

#[test]
fn a_deadline_and_a_cancellation_end_a_step_and_all_its_processes() {
    as_root(async {
        let house = House::open().await;
        let mut forever = step(StepImage::Own, ["forever"]);
        let cancel = CancellationToken::new();
        let (cancelled, ()) = tokio::join!(house.run_cancelled(forever.clone(), cancel.clone()), async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            cancel.cancel();
        });
        assert_eq!(cancelled.0.ended, Ended::Cancelled);
        forever.deadline = Duration::from_millis(200);
        assert_eq!(house.run(forever).await.0.ended, Ended::Deadline);
        house.close().await;
    });
}

#[test]
fn a_step_whose_daemon_forgets_it_dies() {
    as_root(async {
        let house = House::open().await;
        let running = house.run(step(StepImage::Own, ["forever"]));
        assert!(tokio::time::timeout(Duration::from_millis(300), running).await.is_err(), "it runs for ever");
        house.close().await;
    });
}

#[test]
fn the_authorities_for_builds_are_over_the_bundle_of_the_image() {
    as_root(async {
        let mut house = House::open().await;
        let bundle = house.dir.path().join("authorities.pem");
        fs::write(&bundle, "those for builds\n").unwrap();
        let image = StepImage::Image(house.image.clone());
        let mut read = step(image, ["print", "/etc/ssl/certs/ca-certificates.crt"]);
        assert_eq!(text(&house.run(read.clone()).await.1), "those of the image\n");
        house = house.reopen_with_authorities(bundle).await;
        assert_eq!(text(&house.run(read.clone()).await.1), "those of the image\n");
        read.trust = Trust::BuildCa;
        assert_eq!(text(&house.run(read.clone()).await.1), "those for builds\n");
        read.args[1] = "/etc/ssl/cert.pem".to_owned();
        assert_eq!(text(&house.run(read).await.1), "those for builds\n");
        house.close().await;
    });
}

#[test]
fn a_step_with_network_reaches_the_outside_and_one_without_does_not() {
    as_root(async {
        let conf = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        let server = conf.lines().find_map(|line| line.strip_prefix("nameserver ")).unwrap_or_default().trim();
        if server.is_empty() || server.starts_with("127.") || server.contains(':') {
            return not_run("networks of steps: this machine has no name server on another one");
        }
        let house = House::open().await;
        let mut ask = step(StepImage::Own, ["attempt", "resolve", server]);
        let (_, lines) = house.run(ask.clone()).await;
        assert!(text(&lines).contains("refused"), "without network: {}", text(&lines));
        ask.network = StepNetwork::Outbound;
        let (_, lines) = house.run(ask).await;
        assert!(text(&lines).contains("it could"), "through the bridge: {}", text(&lines));
        let mut conf_inside = step(StepImage::Own, ["print", "/etc/resolv.conf"]);
        conf_inside.network = StepNetwork::Outbound;
        assert!(text(&house.run(conf_inside).await.1).contains(server));
        house.close().await;
    });
}

#[test]
fn what_an_image_step_changes_is_thrown_away() {
    as_root(async {
        let house = House::open().await;
        let image = StepImage::Image(house.image.clone());
        let mut write = step(image.clone(), ["write", "/etc/passwd", "changed"]);
        write.user = StepUser::Root;
        assert_eq!(house.run(write).await.0.ended, Ended::Exit(0));
        let (_, lines) = house.run(step(image, ["print", "/etc/passwd"])).await;
        assert!(text(&lines).contains("/home/cnb"), "{}", text(&lines));
        house.close().await;
    });
}

#[test]
fn our_own_program_cannot_be_changed_from_inside() {
    as_root(async {
        let house = House::open().await;
        let mut write = step(StepImage::Own, ["attempt", "write", OWN_BINARY]);
        house.attempt(write.clone()).await;
        write.user = StepUser::Root;
        house.attempt(write).await;
        house.close().await;
    });
}
