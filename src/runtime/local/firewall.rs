//! The rules of the sandboxes' network, by messages to nf_tables: no tool is needed.
//!
//! One table for each data directory:
//!
//! - what comes from the bridge to this machine is dropped, unless it answers;
//! - what comes from the bridge may go out, but not to link-local addresses;
//! - nobody reaches a sandbox from outside, unless it asked;
//! - what goes out has the address of this machine.

use std::{io, net::Ipv4Addr};

use super::netlink::{Attributes, Message, NLM_F_APPEND, NLM_F_CREATE, Netlink};

const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 16;
const NFNL_MSG_BATCH_END: u16 = 17;
const NFT_MSG_NEWTABLE: u16 = 0;
const NFT_MSG_DELTABLE: u16 = 2;
const NFT_MSG_NEWCHAIN: u16 = 3;
const NFT_MSG_NEWRULE: u16 = 6;
const NFT_MSG_DELRULE: u16 = 8;
const NFPROTO_IPV4: u8 = 2;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_RULE_EXPRESSIONS: u16 = 4;

const HOOK_INPUT: u32 = 1;
const HOOK_FORWARD: u32 = 2;
const HOOK_POSTROUTING: u32 = 4;

const REGISTER: u32 = 1;
const VERDICT: u32 = 0;
pub(super) const DROP: u32 = 0;
pub(super) const ACCEPT: u32 = 1;
pub(super) const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;
pub(super) const META_IIFNAME: u32 = 6;
pub(super) const META_OIFNAME: u32 = 7;
const CT_STATE: u32 = 0;
const CT_STATE_ESTABLISHED: u32 = 2;
const CT_STATE_RELATED: u32 = 4;
const CT_STATE_NEW: u32 = 8;
/// Offsets in the IPv4 header.
const SOURCE: u32 = 12;
const DESTINATION: u32 = 16;

/// The subnet of a bridge.
#[derive(Debug, Clone, Copy)]
pub(super) struct Subnet {
    pub first: Ipv4Addr,
    pub prefix: u8,
}

/// Puts the rules of a bridge in place; what was there under this name is replaced.
pub(super) fn install(table: &str, bridge: &str, subnet: Subnet) -> io::Result<()> {
    let mut batch = Batch::new();
    batch.table(NFT_MSG_NEWTABLE, table, NLM_F_CREATE);
    batch.table(NFT_MSG_DELTABLE, table, 0);
    batch.table(NFT_MSG_NEWTABLE, table, NLM_F_CREATE);
    batch.chain(table, "input", "filter", HOOK_INPUT, -10);
    batch.chain(table, "forward", "filter", HOOK_FORWARD, -10);
    batch.chain(table, "postrouting", "nat", HOOK_POSTROUTING, 100);

    let answers = CT_STATE_ESTABLISHED | CT_STATE_RELATED;
    batch.rule(
        table,
        "input",
        Rule::default().interface(META_IIFNAME, EQUAL, bridge).connection(answers).verdict(ACCEPT),
    );
    batch.rule(table, "input", Rule::default().interface(META_IIFNAME, EQUAL, bridge).verdict(DROP));

    let link_local = Subnet { first: Ipv4Addr::new(169, 254, 0, 0), prefix: 16 };
    let to_link_local = Rule::default().interface(META_IIFNAME, EQUAL, bridge).address(DESTINATION, link_local);
    batch.rule(table, "forward", to_link_local.verdict(DROP));
    let unasked = Rule::default().interface(META_OIFNAME, EQUAL, bridge).connection(CT_STATE_NEW);
    batch.rule(table, "forward", unasked.verdict(DROP));

    let out = Rule::default().address(SOURCE, subnet).interface(META_OIFNAME, NOT_EQUAL, bridge);
    batch.rule(table, "postrouting", out.masquerade());
    batch.send()
}

/// Takes the rules away.
pub(super) fn remove(table: &str) -> io::Result<()> {
    let mut batch = Batch::new();
    batch.table(NFT_MSG_DELTABLE, table, 0);
    batch.send()
}

/// Messages that are taken together or not at all.
pub(super) struct Batch {
    bytes: Vec<u8>,
    sequence: u32,
    acknowledged: usize,
}

impl Batch {
    pub fn new() -> Self {
        let mut batch = Self { bytes: Vec::new(), sequence: 0, acknowledged: 0 };
        batch.push(Message::new(NFNL_MSG_BATCH_BEGIN, 0, &header(0, NFNL_SUBSYS_NFTABLES)), false);
        batch
    }

    fn table(&mut self, kind: u16, name: &str, flags: u16) {
        const NFTA_TABLE_NAME: u16 = 1;
        self.push(message(kind, flags).text(NFTA_TABLE_NAME, name), true);
    }

    fn chain(&mut self, table: &str, name: &str, kind: &str, hook: u32, priority: i32) {
        let hook = self::hook(hook, priority);
        let message = chain_message(table, name).nested(NFTA_CHAIN_HOOK, &hook).text(NFTA_CHAIN_TYPE, kind);
        self.push(message, true);
    }

    fn rule(&mut self, table: &str, chain: &str, rule: Rule) {
        let message = rule_message(NFPROTO_IPV4, NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, table, chain);
        self.push(message.nested(NFTA_RULE_EXPRESSIONS, &rule.expressions), true);
    }

    /// Puts a rule in front of those in somebody else's chain, with a mark.
    pub fn insert(&mut self, family: u8, table: &str, chain: &str, rule: Rule, mark: &str) {
        const NFTA_RULE_USERDATA: u16 = 7;
        let message = rule_message(family, NFT_MSG_NEWRULE, NLM_F_CREATE, table, chain);
        let message = message.nested(NFTA_RULE_EXPRESSIONS, &rule.expressions);
        self.push(message.attribute(NFTA_RULE_USERDATA, &comment(mark)), true);
    }

    pub fn delete_rule(&mut self, family: u8, table: &str, chain: &str, handle: u64) {
        const NFTA_RULE_HANDLE: u16 = 3;
        let message = rule_message(family, NFT_MSG_DELRULE, 0, table, chain);
        self.push(message.attribute(NFTA_RULE_HANDLE, &handle.to_be_bytes()), true);
    }

    /// A message that asks, of a family or (0) of all.
    pub fn question(kind: u16, family: u8) -> Message {
        Message::new((NFNL_SUBSYS_NFTABLES << 8) | kind, 0, &header(family, 0))
    }

    /// A table as others have it: a chain that drops what is forwarded, and chains beside it.
    #[cfg(test)]
    pub fn foreign_table(&mut self, table: &str, dropping: &str, chains: &[&str]) {
        const NFTA_CHAIN_POLICY: u16 = 5;
        self.table(NFT_MSG_NEWTABLE, table, NLM_F_CREATE);
        let hook = hook(HOOK_FORWARD, 0);
        let message = chain_message(table, dropping).nested(NFTA_CHAIN_HOOK, &hook);
        let message = message.text(NFTA_CHAIN_TYPE, "filter").attribute(NFTA_CHAIN_POLICY, &DROP.to_be_bytes());
        self.push(message, true);
        for chain in chains {
            self.push(chain_message(table, chain), true);
        }
    }

    pub fn send(mut self) -> io::Result<()> {
        self.push(Message::new(NFNL_MSG_BATCH_END, 0, &header(0, NFNL_SUBSYS_NFTABLES)), false);
        Netlink::netfilter()?.send(&self.bytes, self.acknowledged)
    }

    fn push(&mut self, message: Message, acknowledge: bool) {
        self.sequence += 1;
        self.acknowledged += usize::from(acknowledge);
        self.bytes.extend(message.with_sequence(self.sequence, acknowledge));
    }
}

/// What a rule looks at, one expression after the other, and what it does.
#[derive(Default)]
pub(super) struct Rule {
    expressions: Attributes,
}

impl Rule {
    pub fn interface(self, key: u32, comparison: u32, name: &str) -> Self {
        let mut padded = [0; 16];
        padded[..name.len()].copy_from_slice(name.as_bytes());
        let load = Attributes::default().attribute(2, &key.to_be_bytes()).attribute(1, &REGISTER.to_be_bytes());
        self.expression("meta", &load).compare(comparison, &padded)
    }

    /// Some of these states.
    fn connection(self, states: u32) -> Self {
        let load = Attributes::default().attribute(2, &CT_STATE.to_be_bytes()).attribute(1, &REGISTER.to_be_bytes());
        self.expression("ct", &load).mask(&states.to_ne_bytes()).compare(NOT_EQUAL, &[0; 4])
    }

    fn address(self, offset: u32, subnet: Subnet) -> Self {
        const NETWORK_HEADER: u32 = 1;
        let load = Attributes::default()
            .attribute(1, &REGISTER.to_be_bytes())
            .attribute(2, &NETWORK_HEADER.to_be_bytes())
            .attribute(3, &offset.to_be_bytes())
            .attribute(4, &4u32.to_be_bytes());
        let mask = u32::MAX << (32 - u32::from(subnet.prefix));
        self.expression("payload", &load).mask(&mask.to_be_bytes()).compare(EQUAL, &subnet.first.octets())
    }

    fn mask(self, mask: &[u8]) -> Self {
        let length = u32::try_from(mask.len()).expect("a mask is small");
        let zero = vec![0; mask.len()];
        let bitwise = Attributes::default()
            .attribute(1, &REGISTER.to_be_bytes())
            .attribute(2, &REGISTER.to_be_bytes())
            .attribute(3, &length.to_be_bytes())
            .nested(4, &data(mask))
            .nested(5, &data(&zero));
        self.expression("bitwise", &bitwise)
    }

    fn compare(self, comparison: u32, value: &[u8]) -> Self {
        let compare = Attributes::default()
            .attribute(1, &REGISTER.to_be_bytes())
            .attribute(2, &comparison.to_be_bytes())
            .nested(3, &data(value));
        self.expression("cmp", &compare)
    }

    pub fn verdict(self, verdict: u32) -> Self {
        const NFTA_DATA_VERDICT: u16 = 2;
        const NFTA_VERDICT_CODE: u16 = 1;
        let code = Attributes::default().attribute(NFTA_VERDICT_CODE, &verdict.to_be_bytes());
        let value = Attributes::default().nested(NFTA_DATA_VERDICT, &code);
        let immediate = Attributes::default().attribute(1, &VERDICT.to_be_bytes()).nested(2, &value);
        self.expression("immediate", &immediate)
    }

    fn masquerade(self) -> Self {
        self.expression("masq", &Attributes::default())
    }

    fn expression(mut self, name: &str, attributes: &Attributes) -> Self {
        const NFTA_LIST_ELEM: u16 = 1;
        const NFTA_EXPR_NAME: u16 = 1;
        const NFTA_EXPR_DATA: u16 = 2;
        let expression = Attributes::default().text(NFTA_EXPR_NAME, name).nested(NFTA_EXPR_DATA, attributes);
        self.expressions = self.expressions.nested(NFTA_LIST_ELEM, &expression);
        self
    }
}

fn data(value: &[u8]) -> Attributes {
    const NFTA_DATA_VALUE: u16 = 1;
    Attributes::default().attribute(NFTA_DATA_VALUE, value)
}

fn message(kind: u16, flags: u16) -> Message {
    Message::new((NFNL_SUBSYS_NFTABLES << 8) | kind, flags, &header(NFPROTO_IPV4, 0))
}

fn chain_message(table: &str, name: &str) -> Message {
    const NFTA_CHAIN_TABLE: u16 = 1;
    const NFTA_CHAIN_NAME: u16 = 3;
    message(NFT_MSG_NEWCHAIN, NLM_F_CREATE).text(NFTA_CHAIN_TABLE, table).text(NFTA_CHAIN_NAME, name)
}

fn hook(number: u32, priority: i32) -> Attributes {
    const NFTA_HOOK_HOOKNUM: u16 = 1;
    const NFTA_HOOK_PRIORITY: u16 = 2;
    Attributes::default()
        .attribute(NFTA_HOOK_HOOKNUM, &number.to_be_bytes())
        .attribute(NFTA_HOOK_PRIORITY, &priority.to_be_bytes())
}

fn rule_message(family: u8, kind: u16, flags: u16, table: &str, chain: &str) -> Message {
    const NFTA_RULE_TABLE: u16 = 1;
    const NFTA_RULE_CHAIN: u16 = 2;
    let message = Message::new((NFNL_SUBSYS_NFTABLES << 8) | kind, flags, &header(family, 0));
    message.text(NFTA_RULE_TABLE, table).text(NFTA_RULE_CHAIN, chain)
}

/// A comment of a rule, as the tools write and show it: kind, length, text.
pub(super) fn comment(text: &str) -> Vec<u8> {
    const COMMENT: u8 = 0;
    let length = u8::try_from(text.len() + 1).expect("a mark is short");
    [&[COMMENT, length], text.as_bytes(), &[0]].concat()
}

/// `struct nfgenmsg`; the resource is in network byte order.
fn header(family: u8, resource: u16) -> [u8; 4] {
    let resource = resource.to_be_bytes();
    [family, 0, resource[0], resource[1]]
}
