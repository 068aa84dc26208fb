//! The other firewalls of this machine: a chain that drops what is forwarded, as Docker and firewalld set one, gets two rules
//! that let packets of our bridge through. They carry our mark, and are taken away with the bridge.
//!
//! The tables of the old iptables are no part of nf_tables, and cannot be seen from here: where there are any, it is said.

use std::{fs, io, sync::Once};

use super::{
    firewall::{ACCEPT, Batch, DROP, EQUAL, META_IIFNAME, META_OIFNAME, Rule, comment},
    netlink::{Netlink, attributes},
};

const NFT_MSG_GETCHAIN: u16 = 4;
const NFT_MSG_GETRULE: u16 = 7;
const NFPROTO_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;
const HOOK_FORWARD: u32 = 2;
const POLICY_DROP: u32 = 0;
/// Where Docker wants the rules of others.
const DOCKER_USER: &str = "DOCKER-USER";

/// A chain of somebody's.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Chain {
    family: u8,
    table: String,
    name: String,
    /// What is forwarded comes by here.
    forwards: bool,
    drops_forwarded: bool,
}

/// Lets packets of a bridge through every chain that drops. `mark` is how the rules are known again.
pub(super) fn open(bridge: &str, mark: &str) -> io::Result<()> {
    warn_of_old_tables(bridge);
    let mut netlink = Netlink::netfilter()?;
    let mut chains = chains(&mut netlink)?;
    for chain in chains.iter_mut().filter(|chain| chain.forwards && chain.table != mark) {
        chain.drops_forwarded |= ends_with_a_drop(&rules(&mut netlink, chain)?);
    }
    for chain in places(&chains, mark) {
        if !handles(&mut netlink, chain, mark)?.is_empty() {
            continue;
        }
        let mut batch = Batch::new();
        // Each is put in front: in any order they say the same. They are as plain as that, as the tools of these tables know few
        // expressions; what nobody in a sandbox asked for is dropped by our own table, before these are looked at.
        let back = Rule::default().interface(META_OIFNAME, EQUAL, bridge).verdict(ACCEPT);
        let out = Rule::default().interface(META_IIFNAME, EQUAL, bridge).verdict(ACCEPT);
        for rule in [back, out] {
            batch.insert(chain.family, &chain.table, &chain.name, rule, mark);
        }
        batch.send().map_err(|error| {
            let text = format!("chain {} of table {} drops what is forwarded: {error}", chain.name, chain.table);
            io::Error::new(error.kind(), text)
        })?;
        tracing::info!(
            table = chain.table,
            chain = chain.name,
            "sandboxes are let through the firewall of this machine"
        );
    }
    Ok(())
}

/// Takes the rules away.
pub(super) fn close(mark: &str) -> io::Result<()> {
    let mut netlink = Netlink::netfilter()?;
    for chain in chains(&mut netlink)? {
        let handles = handles(&mut netlink, &chain, mark)?;
        if handles.is_empty() {
            continue;
        }
        let mut batch = Batch::new();
        for handle in handles {
            batch.delete_rule(chain.family, &chain.table, &chain.name, handle);
        }
        batch.send()?;
    }
    Ok(())
}

/// Where rules have to be: in a chain that drops, or where its owner wants them. Our own table lets through by itself.
fn places<'a>(chains: &'a [Chain], own_table: &str) -> Vec<&'a Chain> {
    let dropping = chains.iter().filter(|chain| chain.drops_forwarded && chain.table != own_table);
    dropping
        .map(|chain| {
            let users = |other: &&Chain| {
                (other.family, &other.table, other.name.as_str()) == (chain.family, &chain.table, DOCKER_USER)
            };
            chains.iter().find(users).unwrap_or(chain)
        })
        .collect()
}

fn chains(netlink: &mut Netlink) -> io::Result<Vec<Chain>> {
    const TABLE: u16 = 1;
    const NAME: u16 = 3;
    const HOOK: u16 = 4;
    const POLICY: u16 = 5;
    const HOOK_NUMBER: u16 = 1;
    let answers = netlink.dump(Batch::question(NFT_MSG_GETCHAIN, 0))?;
    let chain = |(family, body): &(u8, Vec<u8>)| {
        let hook = attribute(body, HOOK).and_then(|hook| attribute(hook, HOOK_NUMBER));
        let forward = hook.is_some_and(|number| number == HOOK_FORWARD.to_be_bytes());
        let drops = attribute(body, POLICY).is_some_and(|policy| policy == POLICY_DROP.to_be_bytes());
        let (table, name) = (text(attribute(body, TABLE)?), text(attribute(body, NAME)?));
        matches!(*family, NFPROTO_INET | NFPROTO_IPV4).then_some(Chain {
            family: *family,
            table,
            name,
            forwards: forward,
            drops_forwarded: forward && drops,
        })
    };
    Ok(answers.iter().filter_map(chain).collect())
}

/// The rules of a chain that carry our mark.
fn handles(netlink: &mut Netlink, chain: &Chain, mark: &str) -> io::Result<Vec<u64>> {
    const HANDLE: u16 = 3;
    const USER_DATA: u16 = 7;
    let handle = |rule: &Vec<u8>| {
        let ours = attribute(rule, USER_DATA)? == comment(mark);
        ours.then(|| attribute(rule, HANDLE)?.try_into().ok().map(u64::from_be_bytes))?
    };
    Ok(rules(netlink, chain)?.iter().filter_map(handle).collect())
}

/// The rules of a chain, as the kernel has them.
fn rules(netlink: &mut Netlink, chain: &Chain) -> io::Result<Vec<Vec<u8>>> {
    const TABLE: u16 = 1;
    const CHAIN: u16 = 2;
    let question = Batch::question(NFT_MSG_GETRULE, chain.family).text(TABLE, &chain.table).text(CHAIN, &chain.name);
    let rules = netlink.dump(question)?.into_iter().map(|(_, rule)| rule);
    // Kernels before 3.17 answer with the rules of all chains.
    Ok(rules.filter(|rule| attribute(rule, CHAIN).map(text).as_ref() == Some(&chain.name)).collect())
}

/// Does the last rule take everything that came so far, and drop or reject it? A policy that accepts means nothing then.
fn ends_with_a_drop(rules: &[Vec<u8>]) -> bool {
    const EXPRESSIONS: u16 = 4;
    const NAME: u16 = 1;
    const DATA: u16 = 2;
    let Some(expressions) = rules.last().and_then(|rule| attribute(rule, EXPRESSIONS)) else { return false };
    let mut drops = false;
    for (_, expression) in attributes(expressions) {
        let data = attribute(expression, DATA).unwrap_or_default();
        match attribute(expression, NAME).map(text).unwrap_or_default().as_str() {
            "counter" => {}
            "reject" => drops = true,
            "immediate" => drops = verdict(data) == Some(DROP),
            // As the iptables of nf_tables has some of its targets.
            "target" => drops = attribute(data, NAME).map(text).is_some_and(|name| name == "REJECT" || name == "DROP"),
            // A condition.
            _ => return false,
        }
    }
    drops
}

fn verdict(immediate: &[u8]) -> Option<u32> {
    const DATA: u16 = 2;
    const VERDICT: u16 = 2;
    const CODE: u16 = 1;
    let code = attribute(attribute(attribute(immediate, DATA)?, VERDICT)?, CODE)?;
    code.try_into().ok().map(u32::from_be_bytes)
}

fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

fn warn_of_old_tables(bridge: &str) {
    static SAID: Once = Once::new();
    let tables = fs::read_to_string("/proc/net/ip_tables_names").unwrap_or_default();
    if tables.lines().any(|table| table == "filter") {
        SAID.call_once(|| {
            tracing::warn!(
                "this machine has rules of iptables-legacy, which cannot be looked at; if sandboxes do not reach the internet: \
                 iptables-legacy -I FORWARD -i {bridge} -j ACCEPT; iptables-legacy -I FORWARD -o {bridge} -j ACCEPT"
            );
        });
    }
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::{super::netlink::alone, *};

    const MARK: &str = "epiniod-test";

    fn foreign(chains: &[&str]) {
        let mut batch = Batch::new();
        batch.foreign_table("filter", "FORWARD", chains);
        batch.send().unwrap();
    }

    fn marked() -> Vec<(String, usize)> {
        let mut netlink = Netlink::netfilter().unwrap();
        let chains = chains(&mut netlink).unwrap();
        let count = |chain: &Chain| handles(&mut Netlink::netfilter().unwrap(), chain, MARK).unwrap().len();
        chains.iter().map(|chain| (chain.name.clone(), count(chain))).collect()
    }

    #[test]
    fn a_chain_that_drops_lets_the_bridge_through_once_and_as_long_as_it_is_there() {
        alone(|| {
            foreign(&[]);
            open("evtest", MARK).unwrap();
            open("evtest", MARK).unwrap();
            assert_eq!(marked(), [("FORWARD".to_owned(), 2)]);
            close(MARK).unwrap();
            assert_eq!(marked(), [("FORWARD".to_owned(), 0)]);
        });
    }

    #[test]
    fn docker_gets_the_rules_where_it_wants_them() {
        alone(|| {
            foreign(&[DOCKER_USER]);
            open("evtest", MARK).unwrap();
            assert_eq!(marked(), [("FORWARD".to_owned(), 0), (DOCKER_USER.to_owned(), 2)]);
        });
    }

    #[test]
    fn the_tool_of_a_foreign_table_can_still_list_it() {
        alone(|| {
            let iptables = |args: &[&str]| std::process::Command::new("iptables").args(args).output();
            let Ok(version) = iptables(&["--version"]) else {
                eprintln!("NOT RUN: this test needs iptables");
                return;
            };
            if !String::from_utf8_lossy(&version.stdout).contains("nf_tables") {
                eprintln!("NOT RUN: this test needs the iptables of nf_tables");
                return;
            }
            let set = |args: &[&str]| assert!(iptables(args).unwrap().status.success(), "{args:?}");
            for last in [["-i", "lo", "-j", "DROP"], ["-p", "tcp", "-j", "REJECT"]] {
                set(&[&["-A", "FORWARD"], &last[..]].concat());
                open("evtest", MARK).unwrap();
                assert_eq!(marked(), [("FORWARD".to_owned(), 0)], "{last:?} is not for everybody");
            }
            for last in ["DROP", "REJECT"] {
                set(&["-A", "FORWARD", "-j", last]);
                open("evtest", MARK).unwrap();
                assert_eq!(marked(), [("FORWARD".to_owned(), 2)], "{last}");
                close(MARK).unwrap();
                set(&["-D", "FORWARD", "-j", last]);
            }
            set(&["-P", "FORWARD", "DROP"]);
            open("evtest", MARK).unwrap();
            let listed = iptables(&["-S", "FORWARD"]).unwrap();
            let rules = String::from_utf8_lossy(&listed.stdout).into_owned();
            assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
            for rule in ["-A FORWARD -i evtest", "-A FORWARD -o evtest"] {
                assert!(rules.lines().any(|line| line.starts_with(rule) && line.ends_with("-j ACCEPT")), "{rules}");
            }
            close(MARK).unwrap();
        });
    }

    #[test]
    fn where_nothing_drops_nothing_is_done() {
        alone(|| {
            open("evtest", MARK).unwrap();
            assert_eq!(marked(), []);
        });
    }
}
