//! Whom applications run as on a run image, in numbers.
//!
//! A run image may name its user (`heroku`). A kubelet that has to see that nobody runs as root does not look into files of
//! images, and refuses it; so the numbers are looked up here, once, and applications' images have these. Root, and
//! who is nobody in the image, are refused before anything is built.

use std::sync::PoisonError;

use super::{Builders, Error, copy::Copied};
use crate::oci::ImageUser;

/// Sandboxes have so many ids.
const IDS: u32 = 65_536;

impl Builders {
    /// `UID:GID`. A group that is not named is the user's own.
    pub(super) async fn run_user(&self, image: &Copied) -> Result<String, Error> {
        let known = self.users.lock().unwrap_or_else(PoisonError::into_inner).get(&image.image.digest).cloned();
        if let Some(known) = known {
            return Ok(known);
        }
        let text = image.config.config.user.as_deref().unwrap_or_default();
        let (uid, gid) = self.look_up(image, text).await?;
        let refused = |why: String| Err(Error::malformed(&image.name, format!("{why}; {ANOTHER}")));
        if uid == 0 {
            return refused(format!("applications would run as root on it, as its User is '{text}'"));
        }
        if uid >= IDS || gid >= IDS {
            return refused(format!("its User is '{text}', which is {uid}:{gid}, and users go up to {}", IDS - 1));
        }
        let user = format!("{uid}:{gid}");
        self.users.lock().unwrap_or_else(PoisonError::into_inner).insert(image.image.digest, user.clone());
        Ok(user)
    }

    async fn look_up(&self, image: &Copied, text: &str) -> Result<(u32, u32), Error> {
        let user = ImageUser::parse(text);
        // No user is root (image-spec, "config.User").
        if user.name.is_empty() {
            return Ok((0, 0));
        }
        if let Some(numbers) = user.numbers() {
            return Ok(numbers);
        }
        let nobody = |file: &str, name: &str| {
            Error::malformed(&image.name, format!("its User is '{text}', and its {file} has no '{name}'; {ANOTHER}"))
        };
        let passwd = self.file_of(image, "etc/passwd").await?.unwrap_or_default();
        let uid = user.uid(&passwd).ok_or_else(|| nobody("/etc/passwd", user.name))?;
        let Some(group) = user.group else { return Ok((uid, user.own_group(&passwd).unwrap_or(uid))) };
        let groups = self.file_of(image, "etc/group").await?.unwrap_or_default();
        Ok((uid, user.named_group(&groups).ok_or_else(|| nobody("/etc/group", group))?))
    }
}

const ANOTHER: &str = "choose a builder with another run image";
