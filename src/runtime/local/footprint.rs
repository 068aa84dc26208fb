//! Memory of the daemon itself that it does not need: what was freed, and pages of the program that are not used now.

use std::{fs, io, ops::Range};

/// Gives it back. Pages of the program come again from the file, or what the kernel keeps of it, when they are used.
pub fn give_back() -> io::Result<()> {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes a number, and locks what it looks at.
    unsafe {
        libc::malloc_trim(0);
    }
    for range in unchanged(&fs::read_to_string("/proc/self/smaps")?) {
        // SAFETY: all of it is mapped from a file, cannot be written to, and no page of it is another one than in the file, so what
        // is read there afterwards is what was there before. Nobody maps anything else there: programs stay as they are.
        if unsafe { libc::madvise(range.start as *mut libc::c_void, range.len(), libc::MADV_DONTNEED) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Addresses of what is mapped from files, only to be read or run, and not changed since (proc_pid_smaps(5)).
fn unchanged(smaps: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut current = None;
    for line in smaps.lines() {
        if let Some(begun) = mapping(line) {
            current = begun;
        } else if line.split_whitespace().eq(["Anonymous:", "0", "kB"]) {
            found.extend(current.take());
        }
    }
    found
}

/// Of the first line of a mapping: its addresses, if it is from a file and cannot be written to.
fn mapping(line: &str) -> Option<Option<Range<usize>>> {
    let mut fields = line.split_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let range = usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?;
    let is_fixed = matches!(fields.next()?, "r-xp" | "r--p");
    let is_file = fields.nth(3).is_some_and(|path| path.starts_with('/'));
    Some((is_fixed && is_file).then_some(range))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_as_in_its_file_is_given_back() {
        let smaps = "\
7f00-7f10 r--p 00000000 fe:00 5 /usr/bin/epiniod
Rss:                2688 kB
Anonymous:             0 kB
7f10-7f30 r-xp 0057e000 fe:00 5 /usr/bin/epiniod
Anonymous:             0 kB
7f30-7f40 r--p 01828000 fe:00 5 /usr/bin/epiniod
Anonymous:           556 kB
7f40-7f50 rw-p 00000000 fe:00 5 /usr/bin/epiniod
Anonymous:             0 kB
7f50-7f60 r--p 00000000 00:00 0
Anonymous:             0 kB
7f60-7f70 r--s 00000000 fe:00 6 /var/lib/x
Anonymous:             0 kB
7f70-7f80 r-xp 00000000 00:00 0 [vdso]
Anonymous:             0 kB
";
        assert_eq!(unchanged(smaps), [0x7f00..0x7f10, 0x7f10..0x7f30]);
    }

    #[test]
    fn a_program_goes_on_without_its_pages() {
        give_back().unwrap();
        assert!(!unchanged(&fs::read_to_string("/proc/self/smaps").unwrap()).is_empty());
    }
}
