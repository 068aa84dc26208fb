//! One table of the file of settings, read key by key.

use std::fmt::Display;

use serde::de::DeserializeOwned;
use toml::{Table, Value};

/// Each key is taken once. What is of the wrong kind, or left over at the end, is told with its name.
pub(super) struct Section<'a> {
    /// Before the names of its keys in messages: empty, or `builds.`
    prefix: &'static str,
    table: Table,
    known: Vec<&'static str>,
    problems: &'a mut Vec<String>,
}

impl<'a> Section<'a> {
    pub fn new(prefix: &'static str, table: Table, problems: &'a mut Vec<String>) -> Self {
        Self { prefix, table, known: Vec::new(), problems }
    }

    pub fn take<T: DeserializeOwned>(&mut self, key: &'static str) -> Option<T> {
        self.known.push(key);
        let value = self.table.remove(key)?;
        let found = value.try_into();
        found.map_err(|error| self.wrong(key, error.message())).ok()
    }

    pub fn at_least<T: DeserializeOwned + PartialOrd + Display>(&mut self, key: &'static str, least: T) -> Option<T> {
        let value = self.take::<T>(key)?;
        if value < least {
            self.wrong(key, &format!("{value} is too small; at least {least} is needed"));
            return None;
        }
        Some(value)
    }

    pub fn table(&mut self, key: &'static str) -> Table {
        self.known.push(key);
        match self.table.remove(key) {
            None => Table::new(),
            Some(Value::Table(table)) => table,
            Some(other) => {
                self.wrong(key, &format!("expected a table, [{key}], and not a {}", other.type_str()));
                Table::new()
            }
        }
    }

    pub fn wrong(&mut self, key: &str, what: &str) {
        self.problems.push(format!("{}{key}: {what}", self.prefix));
    }

    pub fn finish(self) {
        for key in self.table.keys() {
            self.problems.push(format!("{}{key} is not known; there are {}", self.prefix, self.known.join(", ")));
        }
    }
}
