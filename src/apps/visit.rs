//! Into an application that runs: which instance is meant, and what a command finds there.

use super::{Apps, Error};
use crate::{
    model::{App, Release},
    runtime::{Command, Connection, Instance, InstanceState, Session, Terminal},
};

/// What sets the environment of a built image up, which its own processes have from it.
const LAUNCHER: &str = "/cnb/lifecycle/launcher";
/// What runs where nobody says what to run: the best shell there is.
const SHELL: &str =
    "TERM=${TERM:-xterm-256color}; export TERM; [ ! -x /bin/bash ] || exec /bin/bash -i; exec /bin/sh -i";
/// What a shell does with a command; it knows how to say that there is none.
const PLAIN: [&str; 4] = ["/bin/sh", "-c", "exec \"$@\"", "sh"];

impl Apps {
    /// Runs a command (without words a shell) in the instance that is named, or in the first one that is ready.
    pub async fn exec(
        &self,
        app: &App,
        instance: Option<&str>,
        words: Vec<String>,
        terminal: Terminal,
    ) -> Result<Session, Error> {
        let (release, instance) = self.instance(app, instance).await?;
        let command = Command { words: command(&release, words), terminal };
        Ok(self.runtime.exec(&release.id, &instance.name, command).await?)
    }

    /// Connects to a port of such an instance; without one to the port that its traffic goes to.
    pub async fn forward(&self, app: &App, instance: Option<&str>, port: Option<u16>) -> Result<Connection, Error> {
        let (release, instance) = self.instance(app, instance).await?;
        let port = match (port, &instance.state) {
            (Some(port), _) => port,
            (None, InstanceState::Ready { address }) => address.port(),
            (None, _) => return Err(Error::NotReady(instance.name)),
        };
        Ok(self.runtime.forward(&release.id, &instance.name, port).await?)
    }

    async fn instance(&self, app: &App, name: Option<&str>) -> Result<(Release, Instance), Error> {
        let status = self.status(app).await?;
        let release = status.release.ok_or_else(|| Error::NeverDeployed(app.name.clone()))?;
        let names = || status.instances.iter().map(|instance| instance.name.clone()).collect::<Vec<_>>().join(", ");
        if status.instances.is_empty() {
            return Err(Error::NotRunning(app.name.clone()));
        }
        let Some(name) = name else {
            // One that does not answer yet is better than none: this may be how to find out why.
            let found = status.instances.iter().min_by_key(|instance| rank(&instance.state));
            return found.cloned().map(|found| (release, found)).ok_or_else(|| Error::NotRunning(app.name.clone()));
        };
        match status.instances.iter().find(|instance| instance.name == name) {
            Some(found) => Ok((release, found.clone())),
            None => Err(Error::NoSuchInstance { app: app.name.clone(), name: name.to_owned(), there: names() }),
        }
    }
}

/// The best first.
fn rank(state: &InstanceState) -> u8 {
    match state {
        InstanceState::Ready { .. } => 0,
        InstanceState::Starting => 1,
        InstanceState::BackOff { .. } => 2,
        InstanceState::Stopping { .. } => 3,
        InstanceState::Held { .. } => 4,
    }
}

fn command(release: &Release, words: Vec<String>) -> Vec<String> {
    let built = release.stage_id.is_some();
    let launcher: &[&str] = if built { &[LAUNCHER, "--"] } else { &[] };
    let fixed: &[&str] = match (words.is_empty(), built) {
        (true, _) => &["/bin/sh", "-c", SHELL],
        (false, true) => &PLAIN,
        (false, false) => &[],
    };
    launcher.iter().chain(fixed).map(|word| (*word).to_owned()).chain(words).collect()
}
