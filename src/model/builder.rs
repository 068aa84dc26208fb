//! Which builder makes images of an application.

use std::{fmt, path::PathBuf, str::FromStr};

use oci_distribution::Reference;
use serde::{Deserialize, Serialize};

use super::Digest;

/// What an application is built with. As text: `default`, or the name of an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Builder {
    /// The one that is in this program.
    #[default]
    Embedded,
    Image(BuilderName),
}

/// The name of a builder image: `HOST/REPOSITORY:TAG`, `…@sha256:…`, or `oci:/FOLDER[:TAG]` for an OCI layout on
/// the daemon's machine. It is shown as it was given.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BuilderName {
    text: String,
    place: Box<ImagePlace>,
}

/// Where an image is that is not in the bundled registry.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ImagePlace {
    Registry(Reference),
    Layout { folder: PathBuf, tag: Option<String> },
}

impl Builder {
    /// The word for the embedded builder; an empty text means it as well.
    pub const DEFAULT: &'static str = "default";
}

impl BuilderName {
    pub fn place(&self) -> &ImagePlace {
        &self.place
    }
}

impl ImagePlace {
    /// The digest that the name itself fixes.
    pub fn digest(&self) -> Option<Digest> {
        match self {
            Self::Registry(reference) => reference.digest()?.parse().ok(),
            Self::Layout { .. } => None,
        }
    }
}

/// Not the name of a builder.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("builder '{name}' is not valid: {rule}")]
pub struct InvalidBuilder {
    name: String,
    rule: String,
}

const LAYOUT: &str = "oci:";
const MAX_LENGTH: usize = 512;
const EXAMPLE: &str = "give an image such as docker.io/heroku/builder:24, oci:/FOLDER for an OCI layout on the daemon's \
                       machine, or 'default' for the embedded builder";

impl FromStr for Builder {
    type Err = InvalidBuilder;

    fn from_str(text: &str) -> Result<Self, InvalidBuilder> {
        match text {
            "" | Self::DEFAULT => Ok(Self::Embedded),
            name => name.parse().map(Self::Image),
        }
    }
}

impl FromStr for BuilderName {
    type Err = InvalidBuilder;

    fn from_str(text: &str) -> Result<Self, InvalidBuilder> {
        let invalid = |rule: String| {
            let name = text.chars().map(|c| if c.is_control() { '?' } else { c }).take(200).collect();
            InvalidBuilder { name, rule }
        };
        if text.len() > MAX_LENGTH || text.chars().any(char::is_control) {
            return Err(invalid(format!("it may have {MAX_LENGTH} characters, none of them a control character")));
        }
        let place = text.parse().map_err(invalid)?;
        Ok(Self { text: text.to_owned(), place: Box::new(place) })
    }
}

impl FromStr for ImagePlace {
    /// The rule that was broken.
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix(LAYOUT) {
            Some(layout) => parse_layout(layout),
            None => parse_reference(text).map(Self::Registry),
        }
    }
}

fn parse_layout(text: &str) -> Result<ImagePlace, String> {
    let last = text.rfind('/').unwrap_or(0);
    let (folder, tag) = match text[last..].rfind(':') {
        Some(colon) => (&text[..last + colon], Some(text[last + colon + 1..].to_owned())),
        None => (text, None),
    };
    let folder = PathBuf::from(folder);
    let goes_up = folder.components().any(|part| part == std::path::Component::ParentDir);
    if !folder.is_absolute() || goes_up || tag.as_deref() == Some("") {
        return Err(
            "the folder of an OCI layout is an absolute path without '..', as in oci:/var/lib/builder:24".to_owned()
        );
    }
    Ok(ImagePlace::Layout { folder, tag })
}

fn parse_reference(text: &str) -> Result<Reference, String> {
    let reference: Reference = text.parse().map_err(|_| EXAMPLE.to_owned())?;
    match reference.digest() {
        Some(digest) if digest.parse::<Digest>().is_err() => Err("its digest has to be a sha256 one".to_owned()),
        _ => Ok(reference),
    }
}

impl fmt::Display for BuilderName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Display for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded => f.write_str(Self::DEFAULT),
            Self::Image(name) => name.fmt(f),
        }
    }
}

impl TryFrom<String> for Builder {
    type Error = InvalidBuilder;

    fn try_from(text: String) -> Result<Self, InvalidBuilder> {
        text.parse()
    }
}

impl From<Builder> for String {
    fn from(builder: Builder) -> String {
        builder.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_references_or_layouts() {
        let registry = |text: &str| match *text.parse::<BuilderName>().unwrap().place {
            ImagePlace::Registry(reference) => reference.whole(),
            place => panic!("{place:?}"),
        };
        let digest = format!("sha256:{}", "a".repeat(64));
        assert_eq!(registry("heroku/builder:24"), "docker.io/heroku/builder:24");
        assert_eq!(registry("localhost:5000/b"), "localhost:5000/b:latest");
        assert_eq!(registry(&format!("host.example/a/b@{digest}")), format!("host.example/a/b@{digest}"));
        let layout = |text: &str| match *text.parse::<BuilderName>().unwrap().place {
            ImagePlace::Layout { folder, tag } => (folder, tag),
            place => panic!("{place:?}"),
        };
        assert_eq!(layout("oci:/a/b"), ("/a/b".into(), None));
        assert_eq!(layout("oci:/a:1/b:24"), ("/a:1/b".into(), Some("24".to_owned())));
    }

    #[test]
    fn what_is_neither_is_refused_with_an_example() {
        let long = "a".repeat(600);
        for bad in ["A B", "https://host/x", "oci:a", "oci:/a/../b", "oci:/a:", "x@sha512:aa", "a\nb", &long] {
            let error = bad.parse::<Builder>().unwrap_err().to_string();
            assert!(error.starts_with("builder '") && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn the_embedded_builder_has_a_word() {
        for text in ["", "default"] {
            assert_eq!(text.parse::<Builder>().unwrap(), Builder::Embedded);
        }
        assert_eq!(serde_json::to_string(&Builder::Embedded).unwrap(), "\"default\"");
        let image: Builder = serde_json::from_str("\"heroku/builder:24\"").unwrap();
        assert_eq!(image.to_string(), "heroku/builder:24");
    }
}
