//! Whom an image runs as: by numbers, or by the names in its own files.

use std::{
    fs::File,
    io::Read as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use super::spec::{RANGE, User};
use crate::{oci::ImageUser, runtime::CNB_ID};

/// Larger files of users are nobody's, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// A group that is not named is the user's own; who is nobody in the image is the CNB user.
pub(super) fn resolve(user: Option<&str>, layers: &[PathBuf]) -> User {
    let user = ImageUser::parse(user.unwrap_or_default());
    let (passwd, groups) = match user.numbers() {
        Some(_) => Default::default(),
        None => (file(layers, "etc/passwd").unwrap_or_default(), file(layers, "etc/group").unwrap_or_default()),
    };
    let uid = user.uid(&passwd).unwrap_or(CNB_ID);
    let gid = user.named_group(&groups).or_else(|| user.own_group(&passwd)).unwrap_or(uid);
    if uid < RANGE && gid < RANGE { User { uid, gid } } else { User::of(CNB_ID) }
}

/// A file of the highest layer that has it. Links of the image are not followed: they may lead anywhere.
fn file(layers: &[PathBuf], name: &str) -> Option<String> {
    layers.iter().rev().find_map(|layer| read(&layer.join(name)))
}

fn read(path: &Path) -> Option<String> {
    if !path.parent()?.symlink_metadata().ok()?.is_dir() {
        return None;
    }
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = File::options().read(true).custom_flags(flags).open(path).ok()?;
    let mut text = String::new();
    let is_file = file.metadata().ok()?.is_file();
    file.take(MAX_BYTES).read_to_string(&mut text).ok().filter(|_| is_file)?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_numbers_or_names_of_the_image() {
        let dir = tempfile::tempdir().unwrap();
        let layers = ["low", "high"].map(|name| dir.path().join(name));
        for layer in &layers {
            std::fs::create_dir_all(layer.join("etc")).unwrap();
        }
        let passwd = "root:x:0:0::/root:/bin/sh\nweb:x:1002:1003::/:/bin/sh\nlarge:x:70000:70000::/:/\n";
        std::fs::write(layers[0].join("etc/passwd"), passwd).unwrap();
        std::fs::write(layers[1].join("etc/group"), "staff:x:50:\n").unwrap();
        for (text, uid, gid) in [
            (None, 1000, 1000),
            (Some(""), 1000, 1000),
            (Some("7"), 7, 7),
            (Some("7:8"), 7, 8),
            (Some("web"), 1002, 1003),
            (Some("1002"), 1002, 1003),
            (Some("web:staff"), 1002, 50),
            (Some("0"), 0, 0),
            (Some("nobody-here"), 1000, 1000),
            (Some("large"), 1000, 1000),
        ] {
            assert_eq!(resolve(text, &layers), User { uid, gid }, "{text:?}");
        }
    }

    #[test]
    fn files_of_images_are_not_followed_out_of_them() {
        let dir = tempfile::tempdir().unwrap();
        let (layer, outside) = (dir.path().join("layer"), dir.path().join("outside"));
        std::fs::create_dir_all(&outside).unwrap();
        std::fs::create_dir_all(layer.join("etc")).unwrap();
        std::fs::write(outside.join("passwd"), "web:x:5:5::/:/\n").unwrap();
        std::os::unix::fs::symlink(outside.join("passwd"), layer.join("etc/passwd")).unwrap();
        assert_eq!(resolve(Some("web"), std::slice::from_ref(&layer)), User::of(1000));
        std::fs::remove_dir_all(layer.join("etc")).unwrap();
        std::os::unix::fs::symlink(&outside, layer.join("etc")).unwrap();
        assert_eq!(resolve(Some("web"), &[layer]), User::of(1000));
    }
}
