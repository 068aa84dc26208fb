//! `/etc/ld.so.cache`, written without ldconfig.
//!
//! The dynamic linker finds libraries in its default folders without it; what needs it is who asks
//! which libraries there are, as Python's `ctypes.util.find_library` does. The format is glibc's
//! `cache_file_new` (`sysdeps/generic/dl-cache.h`, glibc 2.32 and later), entries in descending order of
//! `_dl_cache_libcmp`. Packages ship a link named as each library's soname, so that paths are enough to
//! go by: no ELF file is parsed.

use std::{cmp::Ordering, collections::BTreeMap};

/// The cache for these libraries: absolute paths by file name. None for an architecture whose flags are not known.
pub(super) fn write(libraries: &BTreeMap<String, String>, architecture: &str) -> Option<Vec<u8>> {
    // FLAG_ELF_LIBC6 (3) with FLAG_X8664_LIB64 or FLAG_AARCH64_LIB64.
    let flags: u32 = match architecture {
        "amd64" => 0x0303,
        "arm64" => 0x0a03,
        _ => return None,
    };
    let mut entries: Vec<(&String, &String)> = libraries.iter().collect();
    entries.sort_by(|(a, _), (b, _)| compare(b.as_bytes(), a.as_bytes()));
    let strings_start = HEADER_BYTES + ENTRY_BYTES * entries.len();
    let (mut table, mut strings) = (Vec::new(), Vec::new());
    for (name, path) in &entries {
        let key = u32::try_from(strings_start + strings.len()).ok()?;
        strings.extend_from_slice(name.as_bytes());
        strings.push(0);
        let value = u32::try_from(strings_start + strings.len()).ok()?;
        strings.extend_from_slice(path.as_bytes());
        strings.push(0);
        // The last three words are the unused version of the system and the hardware capabilities.
        for word in [flags, key, value, 0, 0, 0] {
            table.extend_from_slice(&word.to_le_bytes());
        }
    }
    let mut cache = b"glibc-ld.so.cache1.1".to_vec();
    const LITTLE_ENDIAN: u32 = 2;
    let counts = [u32::try_from(entries.len()).ok()?, u32::try_from(strings.len()).ok()?];
    for word in [counts[0], counts[1], LITTLE_ENDIAN, 0, 0, 0, 0] {
        cache.extend_from_slice(&word.to_le_bytes());
    }
    Some([cache, table, strings].concat())
}

/// The name under which the linker may look up a file of this path, when it is in a default folder.
pub(super) fn library_name<'a>(path: &'a str, triplet: &str) -> Option<&'a str> {
    let (folder, name) = path.rsplit_once('/')?;
    let default = folder == "usr/lib" || folder.strip_prefix("usr/lib/") == Some(triplet);
    let library = (name.starts_with("lib") || name.starts_with("ld-")) && name.contains(".so");
    (default && library).then_some(name)
}

const HEADER_BYTES: usize = 48;
const ENTRY_BYTES: usize = 24;

/// `_dl_cache_libcmp`: as bytes, but runs of digits as numbers, and a digit after anything else.
fn compare(mut a: &[u8], mut b: &[u8]) -> Ordering {
    loop {
        match (a.first(), b.first()) {
            (None, None) => return Ordering::Equal,
            (Some(x), Some(y)) if x.is_ascii_digit() && y.is_ascii_digit() => {
                let order = number(&mut a).cmp(&number(&mut b));
                if order.is_ne() {
                    return order;
                }
            }
            (Some(x), _) if x.is_ascii_digit() => return Ordering::Greater,
            (_, Some(y)) if y.is_ascii_digit() => return Ordering::Less,
            (x, y) if x != y => return x.cmp(&y),
            _ => (a, b) = (&a[1..], &b[1..]),
        }
    }
}

fn number(text: &mut &[u8]) -> u64 {
    let end = text.iter().position(|c| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    *text = rest;
    digits.iter().fold(0, |number: u64, digit| number.wrapping_mul(10).wrapping_add(u64::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_in_the_order_of_the_linker() {
        let ascending = ["libc.so", "libc.so.6", "libc.so.10", "libc9.so", "libz.so.1"];
        for pair in ascending.windows(2) {
            assert_eq!(compare(pair[0].as_bytes(), pair[1].as_bytes()), Ordering::Less, "{pair:?}");
        }
    }

    #[test]
    fn the_layout_is_that_of_glibc() {
        let libraries = [("libz.so.1", "/lib/t/libz.so.1"), ("libc.so.6", "/lib/t/libc.so.6")];
        let libraries = libraries.map(|(name, path)| (name.to_owned(), path.to_owned())).into();
        let cache = write(&libraries, "amd64").unwrap();
        assert_eq!(&cache[..20], b"glibc-ld.so.cache1.1");
        let word = |at: usize| u32::from_le_bytes(cache[at..at + 4].try_into().unwrap()) as usize;
        assert_eq!((word(20), word(24), word(28)), (2, cache.len() - 48 - 48, 2));
        assert_eq!(word(48), 0x0303);
        assert!(cache[word(52)..].starts_with(b"libz.so.1\0") && cache[word(56)..].starts_with(b"/lib/t/libz.so.1\0"));
        assert!(write(&libraries, "s390x").is_none());
    }

    #[test]
    fn only_libraries_in_default_folders_count() {
        let triplet = "x86_64-linux-gnu";
        for (path, name) in [
            ("usr/lib/x86_64-linux-gnu/libz.so.1", Some("libz.so.1")),
            ("usr/lib/libx.so", Some("libx.so")),
            ("usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", Some("ld-linux-x86-64.so.2")),
            ("usr/lib/x86_64-linux-gnu/gconv/libJIS.so", None),
            ("usr/lib/x86_64-linux-gnu/libz.a", None),
            ("usr/bin/libx.so", None),
        ] {
            assert_eq!(library_name(path, triplet), name, "{path}");
        }
    }
}
