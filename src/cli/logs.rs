//! Logs, followed or not.

use serde_json::Value;

use super::{
    client::Client,
    error::Error,
    ui::{Ui, print},
};
use crate::model::{AppName, Namespace};

/// Which log.
pub enum Log<'a> {
    App(&'a AppName),
    Staging(&'a str),
}

/// Prints a log to stdout; with `follow` until it ends or Ctrl-C is pressed.
pub async fn show(
    client: &Client,
    namespace: &Namespace,
    log: Log<'_>,
    follow: bool,
    tail: Option<u32>,
) -> Result<(), Error> {
    let path = match log {
        Log::App(name) => format!("/namespaces/{namespace}/applications/{name}/logs"),
        Log::Staging(id) => format!("/namespaces/{namespace}/staging/{id}/logs"),
    };
    let tail = tail.map(|tail| format!("&tail={tail}")).unwrap_or_default();
    client.websocket(&format!("{path}?follow={follow}{tail}"), |text| print(&line(text))).await
}

/// Follows the log of an application on stderr, until Ctrl-C.
pub async fn follow(client: &Client, ui: &Ui, namespace: &Namespace, name: &AppName) -> Result<(), Error> {
    let path = format!("/namespaces/{namespace}/applications/{name}/logs?follow=true");
    client.websocket(&path, |text| ui.log(&line(text))).await
}

/// `[INSTANCE] TEXT`
fn line(text: &str) -> String {
    let Ok(line) = serde_json::from_str::<Value>(text) else { return text.to_owned() };
    let field = |name: &str| line.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    format!("[{}] {}", field("PodName"), field("Message"))
}
