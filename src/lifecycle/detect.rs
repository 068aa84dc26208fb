//! Detect: the buildpacks are asked, group by group.

use std::{collections::BTreeMap, path::Path};

use super::{
    Context as _, Dirs, Error, Result,
    buildpack::{Answer, Buildpack},
    env::Variables,
    phase::{BuildpackRef, Detect, Detected, PackageRequest, Target},
    plan::{Candidate, resolve},
    read_foreign, read_toml,
    types::{Group, GroupElement, Order, OrderElement, OrderGroup, Plan},
    write_toml,
};

/// Exit codes of the phase.
const NOBODY_DETECTED: i32 = 20;
const BUILDPACK_FAILED: i32 = 21;
const DETECT_FAILED: i32 = 22;
/// So deep may composite buildpacks be in each other.
const MAX_DEPTH: usize = 16;
/// The name under which Debian packages are required.
const DEBIAN: &str = "debian";
const OS_RELEASE: &str = "/etc/os-release";

/// A group that takes part, and its plan.
type Found = (Vec<GroupElement>, Plan);
/// A buildpack by id and version.
type Key = (String, String);

/// Finds the first group whose buildpacks take part; leaves `group.toml` and `plan.toml`.
pub fn detect(dirs: &Dirs, input: &Detect, variables: &Variables) -> Result<Detected> {
    println!("===> DETECTING");
    let order = read_order(dirs, input)?;
    let input = &Detect { target: complete(input.target.clone(), Path::new(OS_RELEASE)), ..input.clone() };
    let mut buildpacks = BTreeMap::new();
    open_all(dirs, &order.order, &mut buildpacks)?;
    let mut walk = Walk { dirs, input, variables, buildpacks, asked: BTreeMap::new(), failed: None, unresolved: None };
    match walk.order(&order.order, &[], &[], 0)? {
        Some((group, plan)) => found(dirs, group, &plan),
        None => Err(walk.nobody()),
    }
}

/// The builder's own order; where its image has no such file, that of its label.
fn read_order(dirs: &Dirs, input: &Detect) -> Result<Order> {
    let path = dirs.cnb.join("order.toml");
    if let Some(order) = read_toml(&path, DETECT_FAILED)? {
        return Ok(order);
    }
    let Some(label) = &input.order else {
        let builder = input.builder.as_deref().unwrap_or("embedded");
        let cause = format!("builder {builder} says nowhere which buildpacks it has: {} is not there", path.display());
        return Err(Error::new(DETECT_FAILED, cause));
    };
    let order = serde_json::from_value(label.clone());
    order.map(|order| Order { order }).context(DETECT_FAILED, || "reading the order in the builder's label".to_owned())
}

/// What the labels of a builder do not say of its distribution the image itself does.
fn complete(target: Target, os_release: &Path) -> Target {
    if !target.distro_name.is_empty() {
        return target;
    }
    let text = read_foreign_link(os_release).unwrap_or_default();
    let value = |key: &str| {
        let mut lines = text.lines().filter_map(|line| line.split_once('='));
        lines.find(|(name, _)| *name == key).map(|(_, value)| value.trim_matches(['"', '\'']).to_owned())
    };
    let (name, version) = (value("ID").unwrap_or_default(), value("VERSION_ID").unwrap_or_default());
    Target { distro_name: name, distro_version: version, ..target }
}

/// `/etc/os-release` is a link in most distributions.
fn read_foreign_link(path: &Path) -> Option<String> {
    let path = path.canonicalize().ok()?;
    read_foreign(&path, DETECT_FAILED).ok().flatten()
}

/// Opens every buildpack that an order refers to, before any is asked.
fn open_all(dirs: &Dirs, order: &[OrderGroup], opened: &mut BTreeMap<Key, Buildpack>) -> Result<()> {
    for element in order.iter().flat_map(|group| &group.group) {
        if opened.contains_key(&key(element)) {
            continue;
        }
        let buildpack = Buildpack::open(dirs, &element.id, &element.version)?;
        let inner = buildpack.descriptor.order.clone();
        opened.insert(key(element), buildpack);
        open_all(dirs, &inner, opened)?;
    }
    Ok(())
}

fn found(dirs: &Dirs, group: Vec<GroupElement>, plan: &Plan) -> Result<Detected> {
    for element in &group {
        println!("{} {}", element.id, element.version);
    }
    let buildpacks =
        group.iter().map(|element| BuildpackRef { id: element.id.clone(), version: element.version.clone() }).collect();
    write_toml(&dirs.layers.join("group.toml"), &Group { group })?;
    write_toml(&dirs.layers.join("plan.toml"), plan)?;
    Ok(Detected { buildpacks, packages: packages(plan) })
}

/// The Debian packages that a plan requires.
fn packages(plan: &Plan) -> Vec<PackageRequest> {
    let mut found: Vec<PackageRequest> = Vec::new();
    let requires = plan.entries.iter().flat_map(|entry| &entry.requires).filter(|require| require.name == DEBIAN);
    for require in requires {
        let flag = |name: &str| require.metadata.get(name).and_then(toml::Value::as_bool).unwrap_or(true);
        let names = require.metadata.get("packages").and_then(toml::Value::as_array).into_iter().flatten();
        for name in names.filter_map(toml::Value::as_str) {
            let request = PackageRequest { name: name.to_owned(), build: flag("build"), launch: flag("launch") };
            match found.iter_mut().find(|known| known.name == request.name) {
                Some(known) => {
                    known.build |= request.build;
                    known.launch |= request.launch;
                }
                None => found.push(request),
            }
        }
    }
    found.sort();
    found
}

/// A walk through an order. Every buildpack is asked once at most.
struct Walk<'a> {
    dirs: &'a Dirs,
    input: &'a Detect,
    variables: &'a Variables,
    buildpacks: BTreeMap<Key, Buildpack>,
    asked: BTreeMap<Key, Answer>,
    /// The first buildpack whose error ended a group.
    failed: Option<OrderElement>,
    /// The first group that passed, but for its plan.
    unresolved: Option<String>,
}

impl Walk<'_> {
    /// Tries groups with what follows them.
    fn order(
        &mut self,
        order: &[OrderGroup],
        done: &[OrderElement],
        next: &[OrderElement],
        depth: usize,
    ) -> Result<Option<Found>> {
        if depth > MAX_DEPTH {
            let cause = "composite buildpacks of the builder are in each other more than 16 deep";
            return Err(Error::new(DETECT_FAILED, cause));
        }
        for group in order {
            let found = self.group(&[&group.group, next].concat(), done, depth)?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// A composite stands for each of its groups in turn: what follows it is carried into each.
    fn group(&mut self, group: &[OrderElement], done: &[OrderElement], depth: usize) -> Result<Option<Found>> {
        let mut done = done.to_vec();
        for (number, element) in group.iter().enumerate() {
            if done.iter().any(|known| known.id == element.id) {
                continue;
            }
            let buildpack = &self.buildpacks[&key(element)];
            let (inner, rest) = (buildpack.descriptor.order.clone(), &group[number + 1..]);
            if !inner.is_empty() {
                let found = self.order(&inner, &done, rest, depth + 1)?;
                if found.is_some() || !element.optional {
                    return Ok(found);
                }
                return self.group(rest, &done, depth);
            }
            self.ask(element)?;
            done.push(element.clone());
        }
        Ok(self.resolve(&done))
    }

    fn ask(&mut self, element: &OrderElement) -> Result<()> {
        if self.asked.contains_key(&key(element)) {
            return Ok(());
        }
        let buildpack = &self.buildpacks[&key(element)];
        let target = &self.input.target;
        // An optional one is run all the same, as the real detector does.
        let answer = if buildpack.is_for(target) || element.optional {
            buildpack.ask(self.dirs, target, &element.id, self.variables)?
        } else {
            let wanted = format!("{}/{} {} {}", target.os, target.arch, target.distro_name, target.distro_version);
            Answer::failure(format!("none of its targets is {wanted}"))
        };
        if let Some(error) = answer.error() {
            println!("{} {}: {error}", element.id, element.version);
        }
        self.asked.insert(key(element), answer);
        Ok(())
    }

    fn resolve(&mut self, group: &[OrderElement]) -> Option<Found> {
        let answer = |element: &OrderElement| &self.asked[&key(element)];
        let passed: Vec<_> = group.iter().filter(|element| answer(element).has_passed()).collect();
        if passed.is_empty() || group.iter().any(|element| !element.optional && !answer(element).has_passed()) {
            let error = group.iter().find(|element| answer(element).error().is_some());
            self.failed = self.failed.take().or(error.cloned());
            return None;
        }
        let candidate = |element: &&OrderElement| {
            let descriptor = &self.buildpacks[&key(element)].descriptor;
            let known = GroupElement {
                id: element.id.clone(),
                version: element.version.clone(),
                api: descriptor.api.clone(),
                homepage: descriptor.buildpack.homepage.clone(),
            };
            Candidate::new(known, element.optional, answer(element).plan.clone())
        };
        let candidates: Vec<_> = passed.iter().map(candidate).collect();
        let found = resolve(&candidates);
        if found.is_none() && self.unresolved.is_none() {
            let names: Vec<_> = passed.iter().map(|element| element.id.as_str()).collect();
            self.unresolved = Some(names.join(", "));
        }
        found
    }

    fn nobody(self) -> Error {
        if let Some(element) = self.failed {
            let error = self.asked[&key(&element)].error().unwrap_or_default();
            let cause = format!("detection by buildpack {} failed: {error}", element.id);
            let buildpack = Some(BuildpackRef { id: element.id, version: element.version });
            return Error { code: BUILDPACK_FAILED, cause, buildpack };
        }
        let said = self.asked.values().filter(|answer| answer.error().is_none());
        said.filter(|answer| !answer.output.is_empty()).for_each(|answer| println!("{}", answer.output));
        if let Some(names) = self.unresolved {
            let cause = format!(
                "the buildpacks {names} take this source, but what one of them requires no other provides, or the other way round; \
                 what they print above says what they want"
            );
            return Error::new(NOBODY_DETECTED, cause);
        }
        if let Some(builder) = &self.input.builder {
            let cause = format!(
                "no buildpack of builder {builder} takes this source; push the folder that they look for, or choose another \
                 builder with --builder ('default' is the embedded one)"
            );
            return Error::new(NOBODY_DETECTED, cause);
        }
        let cause = "no buildpack takes this source: there is no requirements.txt, pyproject.toml, package.json, index.html, public/, dist/ or Procfile at its top; \
                     push the folder that has one, or add a Procfile";
        Error::new(NOBODY_DETECTED, cause)
    }
}

fn key(element: &OrderElement) -> Key {
    (element.id.clone(), element.version.clone())
}
