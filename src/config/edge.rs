//! `[edge]` and `[[edge.route]]` of the settings file: what is chosen about listeners, and about the routes of single hosts.

use std::{collections::HashMap, net::IpAddr, time::Duration};

use ipnet::IpNet;
use toml::Table;

use super::section::Section;
use crate::{
    edge::{AccessLog, Compression, Patience, RouteSettings, Settings},
    model::Route,
};

pub(super) fn read(table: Table, problems: &mut Vec<String>) -> Settings {
    let mut section = Section::new("edge.", table, problems);
    let networks: Vec<String> = section.take("load_balancers").unwrap_or_default();
    let mut load_balancers = Vec::new();
    for text in networks {
        match text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)) {
            Ok(network) => load_balancers.push(network),
            Err(_) => section.wrong("load_balancers", &format!("'{text}' is no address or network such as 10.0.0.0/8")),
        }
    }
    let settings = Settings {
        strict_transport: section.at_least("hsts_seconds", 1).map(Duration::from_secs),
        access_log: if section.take("access_log") == Some(true) { AccessLog::On } else { AccessLog::Off },
        load_balancers,
        max_body_bytes: section.at_least("max_body_bytes", 1),
        connections_per_address: section.at_least("connections_per_address", 1),
        patience: read_patience(&mut section),
        compression: read_compression(&mut section).unwrap_or_default(),
        routes: HashMap::new(),
    };
    let routes: Vec<Table> = section.take("route").unwrap_or_default();
    section.finish();
    let routes = routes.into_iter().filter_map(|table| read_route(table, problems)).collect();
    Settings { routes, ..settings }
}

fn read_patience(section: &mut Section<'_>) -> Patience {
    let default = Patience::default();
    let mut seconds = |key, default| section.at_least(key, 1).map_or(default, Duration::from_secs);
    Patience {
        head: seconds("head_seconds", default.head),
        body: seconds("body_seconds", default.body),
        idle: seconds("idle_seconds", default.idle),
    }
}

fn read_compression(section: &mut Section<'_>) -> Option<Compression> {
    let wanted = section.take::<bool>("compression")?;
    Some(if wanted { Compression::On } else { Compression::Off })
}

fn read_route(table: Table, problems: &mut Vec<String>) -> Option<(String, RouteSettings)> {
    let mut section = Section::new("edge.route.", table, problems);
    let host: Option<String> = section.take("host");
    let settings = RouteSettings {
        max_body_bytes: section.at_least("max_body_bytes", 1),
        response: section.at_least("response_seconds", 1).map(Duration::from_secs),
        requests_in_flight: section.at_least("requests_in_flight", 1),
        compression: read_compression(&mut section),
    };
    match host.as_deref().map(str::parse::<Route>) {
        Some(Ok(route)) if route.path().is_empty() => {
            section.finish();
            return Some((route.host().to_owned(), settings));
        }
        Some(_) => section.wrong("host", "it is no name such as shop.example.com"),
        None => section.wrong("host", "it is missing"),
    }
    section.finish();
    None
}
