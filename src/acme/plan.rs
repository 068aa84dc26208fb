//! What is to be done about certificates, at a moment. Nothing here asks or keeps anything.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use jiff::Timestamp;

use super::kept::{Issued, Kept};

/// What is to be done now, and when to look again.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Each is the names of one order.
    pub orders: Vec<Vec<String>>,
    pub next: Option<Timestamp>,
}

/// From this many new names below one domain on they are ordered together: authorities limit the number of certificates
/// for a domain (Let's Encrypt: 50 a week).
const MANY: usize = 5;
/// The names of one order; Let's Encrypt takes 100.
const MOST: usize = 50;

/// The names that certificates are wanted for: hosts, but one name for all that are right below `wildcard`.
pub(super) fn names(hosts: impl IntoIterator<Item = String>, wildcard: Option<&str>) -> BTreeSet<String> {
    let name = |host: String| match host.split_once('.') {
        Some((_, parent)) if wildcard == Some(parent) => format!("*.{parent}"),
        _ => host,
    };
    hosts.into_iter().filter(|host| is_public(host)).map(name).collect()
}

/// Whether an authority of the public could sign for it.
pub(super) fn is_public(host: &str) -> bool {
    let private = ["localhost", "local", "internal", "home.arpa"];
    let below = |end: &str| host.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    host.contains('.') && host.parse::<std::net::IpAddr>().is_err() && !private.into_iter().any(below)
}

impl Plan {
    /// `busy` are the names of orders that are under way.
    pub fn new(wanted: &BTreeSet<String>, kept: &[Kept], busy: &HashSet<String>, now: Timestamp) -> Self {
        let mut next: Option<Timestamp> = None;
        let mut soonest = |at: Timestamp| next = Some(next.map_or(at, |next| next.min(at)));
        // Those of one certificate are renewed together.
        let mut due: BTreeMap<Option<&[String]>, Vec<String>> = BTreeMap::new();
        for name in wanted.iter().filter(|name| !busy.contains(*name)) {
            let of_name = || kept.iter().filter(|kept| kept.has(name));
            let best = of_name().filter_map(|kept| Some((kept, kept.issued.as_ref()?)));
            let best = best.max_by_key(|(_, issued)| issued.not_after);
            if let Some(issued) = best.map(|(_, issued)| issued).filter(|issued| now < issued.renewal) {
                soonest(issued.renewal);
                continue;
            }
            let troubled = of_name().filter_map(|kept| Some(kept.trouble.as_ref()?.next)).max();
            if let Some(next) = troubled.filter(|next| now < *next) {
                soonest(next);
                continue;
            }
            let together = best.map(|(kept, _)| kept.names.as_slice()).filter(|names| names.len() > 1);
            due.entry(together).or_default().push(name.clone());
        }
        let alone = due.remove(&None).unwrap_or_default();
        let orders = due.into_values().chain(grouped(alone)).collect();
        Self { orders, next }
    }
}

/// One order for each name, but for many below one domain.
fn grouped(names: Vec<String>) -> Vec<Vec<String>> {
    let mut of_parent: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for name in names {
        let parent = name.split_once('.').map_or(name.as_str(), |(_, parent)| parent).to_owned();
        of_parent.entry(parent).or_default().push(name);
    }
    let split = |names: Vec<String>| -> Vec<Vec<String>> {
        let size = if names.len() >= MANY { MOST } else { 1 };
        names.chunks(size).map(<[String]>::to_vec).collect()
    };
    of_parent.into_values().flat_map(split).collect()
}

/// Whether nothing needs what is kept any more.
pub(super) fn is_over(kept: &Kept, wanted: &BTreeSet<String>, others: [&[Kept]; 2], now: Timestamp) -> bool {
    let others = || others.into_iter().flatten();
    let is_wanted = |name: &&String| wanted.contains(*name);
    let Some(own) = &kept.issued else {
        // What is left of trouble with names that are gone, or that have their certificate by now.
        let has_one = |name: &String| others().any(|other| other.has(name) && is_good(other.issued.as_ref(), now));
        return kept.names.iter().filter(is_wanted).all(has_one);
    };
    // A name that went may come back, and would cost another one.
    let newer = |name: &String| {
        others().any(|other| {
            other.has(name) && other.issued.as_ref().is_some_and(|issued| issued.not_after > own.not_after)
        })
    };
    own.not_after < now && kept.names.iter().filter(is_wanted).all(newer) || kept.names.iter().all(newer)
}

fn is_good(issued: Option<&Issued>, now: Timestamp) -> bool {
    issued.is_some_and(|issued| now < issued.not_after)
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;
    use crate::acme::kept::{Trouble, renewal};

    fn day(day: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + SignedDuration::from_hours(day * 24)
    }

    fn issued(names: &[&str], from: i64) -> Kept {
        let (not_before, not_after) = (day(from), day(from + 90));
        let (chain, key, directory) = (String::new(), String::new(), String::new());
        let (renewal, look) = (renewal(not_before, not_after, 0.5), not_before);
        let issued = Issued { chain, key, directory, not_before, not_after, renewal, look };
        Kept { issued: Some(issued), ..failed(names, None) }
    }

    fn failed(names: &[&str], next: Option<Timestamp>) -> Kept {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        let trouble = next.map(|next| Trouble { cause: "why".to_owned(), attempts: 1, next, under: 0 });
        Kept { trouble, ..Kept::new(names) }
    }

    fn plan(wanted: &[&str], kept: &[Kept], now: Timestamp) -> (Vec<String>, Option<Timestamp>) {
        let wanted = wanted.iter().map(|name| (*name).to_owned()).collect();
        let plan = Plan::new(&wanted, kept, &HashSet::new(), now);
        (plan.orders.iter().map(|names| names.join(",")).collect(), plan.next)
    }

    #[test]
    fn names_are_hosts_that_the_public_may_have() {
        let hosts = ["b.a.test", "x.b.a.test", "shop.example.com", "app.localhost", "10.0.0.1", "plain", "a.local"];
        let hosts = || hosts.map(str::to_owned);
        let alone: Vec<_> = names(hosts(), None).into_iter().collect();
        assert_eq!(alone, ["b.a.test", "shop.example.com", "x.b.a.test"]);
        let together: Vec<_> = names(hosts(), Some("a.test")).into_iter().collect();
        assert_eq!(together, ["*.a.test", "shop.example.com", "x.b.a.test"], "a wildcard is for one label");
    }

    #[test]
    fn a_certificate_is_renewed_after_two_thirds_of_its_life_also_when_nobody_looked_then() {
        let kept = [issued(&["a.test"], 0)];
        assert_eq!(plan(&["a.test"], &kept, day(10)).0, Vec::<String>::new());
        let next = plan(&["a.test"], &kept, day(10)).1.unwrap();
        assert!(day(57) < next && next < day(63), "{next}");
        assert_eq!(plan(&["a.test"], &kept, next).0, ["a.test"]);
        assert_eq!(plan(&["a.test"], &kept, day(200)).0, ["a.test"], "long expired");
        let renewed = [issued(&["a.test"], 0), issued(&["a.test"], 60)];
        assert_eq!(plan(&["a.test"], &renewed, day(61)).0, Vec::<String>::new());
        let spread: Vec<_> = [0.0, 0.5, 1.0].map(|jitter| renewal(day(0), day(90), jitter)).into();
        assert!(spread.windows(2).all(|pair| pair[0] + SignedDuration::from_hours(48) < pair[1]), "{spread:?}");
    }

    #[test]
    fn what_failed_is_not_tried_before_its_time() {
        let kept = [failed(&["a.test"], Some(day(2)))];
        assert_eq!(plan(&["a.test", "b.test"], &kept, day(1)), (vec!["b.test".to_owned()], Some(day(2))));
        assert_eq!(plan(&["a.test"], &kept, day(2)).0, ["a.test"]);
        let mut kept = issued(&["a.test"], 0);
        kept.trouble = failed(&[], Some(day(80))).trouble;
        assert_eq!(plan(&["a.test"], &[kept], day(70)), (Vec::new(), Some(day(80))), "nor what is to be renewed");
    }

    #[test]
    fn many_new_names_below_a_domain_are_one_order_and_stay_together() {
        let hosts: Vec<String> = (0..60).map(|number| format!("a{number:02}.x.test")).collect();
        let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
        let (orders, _) = plan(&hosts, &[], day(0));
        assert_eq!(orders.len(), 2, "{orders:?}");
        assert_eq!(plan(&hosts[..4], &[], day(0)).0.len(), 4);
        let kept = [issued(&["a.test", "b.test", "gone.test"], 0)];
        assert_eq!(plan(&["a.test", "b.test"], &kept, day(80)).0, ["a.test,b.test"]);
    }

    #[test]
    fn what_nobody_needs_goes_and_what_may_come_back_stays() {
        let wanted = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let (own, trouble) = (issued(&["a.test"], 0), failed(&["a.test"], Some(day(5))));
        assert!(!is_over(&own, &wanted(&[]), [&[], &[]], day(10)), "its route may come back");
        assert!(is_over(&own, &wanted(&[]), [&[], &[]], day(91)));
        assert!(!is_over(&own, &wanted(&["a.test"]), [&[], &[]], day(91)), "better than none");
        assert!(is_over(&own, &wanted(&["a.test"]), [&[issued(&["a.test"], 60)], &[]], day(61)));
        assert!(is_over(&trouble, &wanted(&[]), [&[], &[]], day(1)));
        assert!(!is_over(&trouble, &wanted(&["a.test"]), [&[], &[]], day(1)));
        assert!(is_over(&trouble, &wanted(&["a.test"]), [&[own], &[]], day(1)));
    }
}
