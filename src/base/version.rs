//! The order of Debian versions (Debian policy §5.6.12): `[epoch:]upstream[-revision]`.

use std::cmp::Ordering;

/// Compares two version texts.
pub(super) fn compare(a: &str, b: &str) -> Ordering {
    let (a, b) = (Parts::of(a), Parts::of(b));
    a.epoch
        .cmp(&b.epoch)
        .then_with(|| compare_part(a.upstream, b.upstream))
        .then_with(|| compare_part(a.revision, b.revision))
}

struct Parts<'a> {
    epoch: u64,
    upstream: &'a str,
    revision: &'a str,
}

impl<'a> Parts<'a> {
    fn of(version: &'a str) -> Self {
        let (epoch, rest) = version.split_once(':').unwrap_or(("0", version));
        let (upstream, revision) = rest.rsplit_once('-').unwrap_or((rest, "0"));
        Self { epoch: epoch.parse().unwrap_or(0), upstream, revision }
    }
}

/// Runs of other characters and runs of digits in turn: the first compare by [`weight`], the second as numbers.
fn compare_part(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    while !a.is_empty() || !b.is_empty() {
        let (text_a, text_b) = (take(&mut a, |c| !c.is_ascii_digit()), take(&mut b, |c| !c.is_ascii_digit()));
        let longest = text_a.len().max(text_b.len());
        let text = (0..longest).map(|i| weight(text_a.get(i)).cmp(&weight(text_b.get(i)))).find(|o| o.is_ne());
        if let Some(order) = text {
            return order;
        }
        let numbers = number(take(&mut a, u8::is_ascii_digit), take(&mut b, u8::is_ascii_digit));
        if numbers.is_ne() {
            return numbers;
        }
    }
    Ordering::Equal
}

/// `~` sorts before the end of a part, the end before letters, letters before all else.
fn weight(character: Option<&u8>) -> i32 {
    match character {
        Some(b'~') => -1,
        None => 0,
        Some(c) if c.is_ascii_alphabetic() => i32::from(*c),
        Some(c) => i32::from(*c) + 256,
    }
}

fn number(a: &[u8], b: &[u8]) -> Ordering {
    let significant = |digits: &[u8]| digits.iter().position(|c| *c != b'0').unwrap_or(digits.len());
    let (a, b) = (&a[significant(a)..], &b[significant(b)..]);
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

fn take<'a>(bytes: &mut &'a [u8], belongs: impl Fn(&u8) -> bool) -> &'a [u8] {
    let end = bytes.iter().position(|c| !belongs(c)).unwrap_or(bytes.len());
    let (taken, rest) = bytes.split_at(end);
    *bytes = rest;
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_in_the_order_of_the_policy() {
        let ascending = [
            "0~~",
            "0~~a",
            "0~",
            "0",
            "0.1~rc1-1",
            "0.1-1",
            "0.1-1+b1",
            "0.1-1.1",
            "0.1-2",
            "0.1a",
            "0.1b",
            "0.1+dfsg",
            "0.2",
            "0.10",
            "1.0-1~deb13u1",
            "1.0-1",
            "1.0-1+deb13u1",
            "1.0-1+deb13u10",
            "1:0.1",
            "2:0",
        ];
        for (i, a) in ascending.iter().enumerate() {
            for (j, b) in ascending.iter().enumerate() {
                assert_eq!(compare(a, b), i.cmp(&j), "{a} and {b}");
            }
        }
    }

    #[test]
    fn leading_zeros_and_a_missing_revision_make_no_difference() {
        for (a, b) in [("1.02", "1.2"), ("1.0", "1.0-0"), ("0:1", "1"), ("1.0-00", "1.0"), ("", "0")] {
            assert_eq!(compare(a, b), Ordering::Equal, "{a} and {b}");
        }
    }
}
