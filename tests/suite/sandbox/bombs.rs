//! Programs that take everything they can get: memory, processes, disk. In a step and in an instance, as root and rootless.

use epiniod::runtime::{
    Access, Ended, InstanceState, Limits, Runtime as _, Step, StepImage, Trust, VolumeMount, Workload,
};

use super::house::{House, PATIENCE, SmallDisk, as_root, ask, image, rootless, rootless_on_a_small_disk, step, text};

const MEMORY: u64 = 64 << 20;
const PROCESSES: u32 = 32;
const SCRATCH: u64 = 16 << 20;

fn limited(step: Step) -> Step {
    let limits =
        Limits { memory_bytes: Some(MEMORY), pids: Some(PROCESSES), scratch_bytes: Some(SCRATCH), ..Limits::default() };
    Step { limits, deadline: PATIENCE, trust: Trust::Image, ..step }
}

fn limited_workload(house: &House, app: &str) -> Workload {
    let limits = limited(step(StepImage::Own, [])).limits;
    Workload { limits, ..house.workload(app, 1) }
}

/// How many children there were.
fn children(said: &str) -> u32 {
    said.trim().trim_end_matches(" children").parse().unwrap_or_else(|_| panic!("{said}"))
}

async fn bombs_in_steps() {
    let house = House::open().await;
    let (outcome, lines) = house.run(limited(step(StepImage::Own, ["hold-memory"]))).await;
    assert_eq!(outcome.ended, Ended::OutOfMemory, "{}", text(&lines));
    let mut forks = limited(step(StepImage::Own, ["fork-bomb"]));
    forks.limits.memory_bytes = Some(256 << 20);
    let (outcome, lines) = house.run(forks).await;
    assert_eq!(outcome.ended, Ended::Exit(0), "{}", text(&lines));
    assert!((1..=PROCESSES).contains(&children(&text(&lines))), "{}", text(&lines));
    let (_, lines) = house.run(limited(step(StepImage::Image(house.image.clone()), ["fill", "/tmp"]))).await;
    assert!(text(&lines).contains("No space left"), "what is outside of volumes is limited: {}", text(&lines));
    house.close().await;
}

async fn bombs_in_instances() {
    let house = House::open().await;
    let workload = limited_workload(&house, "forks");
    let address = house.start(&workload).await[0];
    assert!((1..=PROCESSES).contains(&children(&ask(address, "fork-bomb"))));
    house.runtime.remove(&workload.id, PATIENCE).await.unwrap();

    let address = house.start(&limited_workload(&house, "fills")).await[0];
    let said = ask(address, "fill /tmp");
    assert!(said.contains("No space left"), "{said}");

    let mut hungry = limited_workload(&house, "hungry");
    hungry.image = image(&house.blobs, "hold-memory").await;
    house.runtime.apply(&hungry).await.unwrap();
    let ended = |states: &[InstanceState]| {
        states.iter().find_map(|state| match state {
            InstanceState::BackOff { ended, .. } => Some(*ended),
            _ => None,
        })
    };
    assert_eq!(house.wait(&hungry, "it ran out of memory", ended).await, Ended::OutOfMemory);
    assert_eq!(ask(address, "hello"), "you said hello\n", "its neighbour did not notice");
    house.close().await;
}

/// On a small disk: nobody wants to see the machine's full.
async fn fill_the_disk(house: &House) {
    let mut fill = step(StepImage::Own, ["fill", "/workspace"]);
    let (volume, path) = ("workspace".to_owned(), "/workspace".to_owned());
    fill.volumes = vec![VolumeMount { volume, path, access: Access::ReadWrite }];
    let (outcome, lines) = house.run(fill).await;
    assert_eq!(outcome.ended, Ended::Signal(9));
    assert!(text(&lines).contains("nearly full"), "{}", text(&lines));
}

#[test]
fn bombs_in_steps_hurt_nobody_else() {
    as_root(bombs_in_steps());
}

#[test]
fn bombs_in_steps_hurt_nobody_else_rootless() {
    rootless("sandbox::bombs::bombs_in_steps_hurt_nobody_else_rootless", bombs_in_steps());
}

#[test]
fn bombs_in_instances_hurt_nobody_else() {
    as_root(bombs_in_instances());
}

#[test]
fn bombs_in_instances_hurt_nobody_else_rootless() {
    rootless("sandbox::bombs::bombs_in_instances_hurt_nobody_else_rootless", bombs_in_instances());
}

#[test]
fn a_step_that_fills_the_disk_is_stopped() {
    as_root(async {
        let place = tempfile::Builder::new().prefix("epiniod-test-").tempdir_in("/var/tmp").unwrap();
        let disk = SmallDisk::on(place.path());
        let house = House::open_in(tempfile::Builder::new().tempdir_in(place.path()).unwrap()).await;
        fill_the_disk(&house).await;
        house.close().await;
        drop(disk);
    });
}

#[test]
fn a_step_that_fills_the_disk_is_stopped_rootless() {
    rootless_on_a_small_disk("sandbox::bombs::a_step_that_fills_the_disk_is_stopped_rootless", async {
        let house = House::open().await;
        fill_the_disk(&house).await;
        house.close().await;
    });
}
