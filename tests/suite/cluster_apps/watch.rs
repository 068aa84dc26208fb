//! Everything that objects of a kind were while a test did something, by `kubectl get --watch`.

use std::{
    io::BufReader,
    process::{Child, Stdio},
    sync::{Arc, Mutex},
};

use serde_json::Value;

use crate::support::Driven;

pub struct Watch {
    kubectl: Child,
    seen: Arc<Mutex<Vec<Value>>>,
}

impl Watch {
    /// Of what builds are made of.
    pub fn of_builds(driven: &Driven, kind: &str) -> Self {
        let mut kubectl = driven.cluster.kubectl();
        kubectl.args(["get", kind, "-n", &driven.builds(), "-l", "epiniod.dev/staging", "--watch", "-o", "json"]);
        let mut kubectl = kubectl.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("kubectl runs");
        let (seen, stdout) = (Arc::new(Mutex::new(Vec::new())), kubectl.stdout.take().expect("a pipe"));
        let objects = Arc::clone(&seen);
        std::thread::spawn(move || {
            for object in serde_json::Deserializer::from_reader(BufReader::new(stdout)).into_iter() {
                let Ok(object) = object else { return };
                objects.lock().expect("objects").push(object);
            }
        });
        Self { kubectl, seen }
    }

    /// All states of all objects, in order.
    pub fn seen(&self) -> Vec<Value> {
        self.seen.lock().expect("objects").clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.kubectl.kill();
        let _ = self.kubectl.wait();
    }
}
