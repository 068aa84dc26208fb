//! `epiniod apps port-forward`: ports of an application, as if it ran here.

use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::Arc,
};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use super::{
    client::{Client, query},
    error::Error,
    ui::Ui,
};
use crate::model::{AppName, Namespace};

/// A port here, and the one that it stands for: `[LOCAL:]REMOTE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// 0 is any that is free.
    pub local: u16,
    pub remote: u16,
}

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let port = |text: &str| text.parse().map_err(|_| format!("'{text}' is not a port; write [LOCAL:]REMOTE"));
        let (local, remote) = match text.split_once(':') {
            Some(("", remote)) => (0, port(remote)?),
            Some((local, remote)) => (port(local)?, port(remote)?),
            None => (port(text)?, port(text)?),
        };
        if remote == 0 { Err("no application listens on port 0".to_owned()) } else { Ok(Self { local, remote }) }
    }
}

/// What is forwarded.
pub struct Forward {
    pub client: Client,
    pub namespace: Namespace,
    pub name: AppName,
    pub instance: Option<String>,
}

impl Forward {
    /// Listens on all of the ports, until it is interrupted.
    pub async fn run(self, ui: &Ui, address: IpAddr, ports: &[Ports]) -> Result<(), Error> {
        // An application that is not there is told of now, not with the first connection.
        self.client.get(&format!("/api/v1/namespaces/{}/applications/{}", self.namespace, self.name)).await?;
        let forward = Arc::new(self);
        let mut listeners = Vec::new();
        for ports in ports {
            let wanted = SocketAddr::new(address, ports.local);
            let cannot = |error: std::io::Error| Error::Usage(format!("cannot listen on {wanted}: {error}"));
            let listener = TcpListener::bind(wanted).await.map_err(cannot)?;
            let here = listener.local_addr().map_err(Error::Runtime)?;
            ui.say(&format!("forwarding {here} to port {} of application {}", ports.remote, forward.name));
            listeners.push((listener, ports.remote));
        }
        let served = listeners.iter().map(|(listener, remote)| Arc::clone(&forward).serve(ui, listener, *remote));
        futures::future::try_join_all(served).await?;
        Ok(())
    }

    async fn serve(self: Arc<Self>, ui: &Ui, listener: &TcpListener, remote: u16) -> Result<(), Error> {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    let (stream, _) = accepted.map_err(Error::Runtime)?;
                    connections.spawn(Arc::clone(&self).carry(stream, remote));
                }
                Some(Ok(Err(error))) = connections.join_next() => ui.fail(&error),
            }
        }
    }

    /// One connection from its begin to its end.
    async fn carry(self: Arc<Self>, mut here: TcpStream, remote: u16) -> Result<(), Error> {
        let port = remote.to_string();
        let mut parameters = vec![("port", port.as_str())];
        parameters.extend(self.instance.as_deref().map(|instance| ("instance", instance)));
        let path =
            format!("/namespaces/{}/applications/{}/portforward?{}", self.namespace, self.name, query(&parameters));
        let mut there = self.client.open_stream(&path).await?;
        // How one connection ends is the affair of its two ends.
        let _ = copy_bidirectional(&mut here, &mut there).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_written_as_elsewhere() {
        let ports = |text: &str| text.parse::<Ports>().map(|Ports { local, remote }| (local, remote));
        assert_eq!(ports("8080"), Ok((8080, 8080)));
        assert_eq!(ports("9000:8080"), Ok((9000, 8080)));
        assert_eq!(ports(":8080"), Ok((0, 8080)));
        for wrong in ["", "http", "0", "1:0", "1:", "70000", "1:2:3", "-1"] {
            assert!(ports(wrong).is_err(), "{wrong}");
        }
    }
}
