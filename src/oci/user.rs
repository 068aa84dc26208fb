//! Whom an image runs as: the `User` of its configuration, `USER` or `USER:GROUP`, each a number or a name in the image's
//! own files (image-spec, "config.User").

/// A user as the configuration has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageUser<'a> {
    pub name: &'a str,
    pub group: Option<&'a str>,
}

impl<'a> ImageUser<'a> {
    pub fn parse(text: &'a str) -> Self {
        text.split_once(':').map_or(Self { name: text, group: None }, |(name, group)| Self { name, group: Some(group) })
    }

    /// uid and gid, where both are there as numbers.
    pub fn numbers(&self) -> Option<(u32, u32)> {
        Some((self.name.parse().ok()?, self.group?.parse().ok()?))
    }

    /// By the text of the image's `/etc/passwd`; none when nobody has this name.
    pub fn uid(&self, passwd: &str) -> Option<u32> {
        self.name.parse().ok().or_else(|| self.entry(passwd)?.get(2)?.parse().ok())
    }

    /// The group that is named, by the text of the image's `/etc/group`; none when no group is, or none has this name.
    pub fn named_group(&self, groups: &str) -> Option<u32> {
        let group = self.group?;
        group.parse().ok().or_else(|| line(groups, |fields| fields.first() == Some(&group))?.get(2)?.parse().ok())
    }

    /// The group that the user has by itself.
    pub fn own_group(&self, passwd: &str) -> Option<u32> {
        self.entry(passwd)?.get(3)?.parse().ok()
    }

    fn entry<'b>(&self, passwd: &'b str) -> Option<Vec<&'b str>> {
        if self.name.is_empty() {
            return None;
        }
        line(passwd, |fields| fields.first() == Some(&self.name) || fields.get(2) == Some(&self.name))
    }
}

/// The fields of the first line that is meant.
fn line(text: &str, is_meant: impl Fn(&[&str]) -> bool) -> Option<Vec<&str>> {
    let mut lines = text.lines().map(|line| line.split(':').collect::<Vec<_>>());
    lines.find(|fields| is_meant(fields))
}
