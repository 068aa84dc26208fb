//! Who is calling, and how far that reaches.

use serde::{Deserialize, Serialize};

use crate::model::{Namespace, TokenName, UserName};

/// What a user may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Admin,
    User,
}

/// What a token may be used for. None of them is part of another but of `admin`, so that who pushes reads no environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// List and show, environments and logs included
    Read,
    /// Create, change, build and deploy applications
    Push,
    /// Everything: delete, exec, port-forward; without a namespace also namespaces, tokens and the daemon itself
    Admin,
}

/// Somebody whose credential was right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    pub name: UserName,
    pub role: Role,
    /// The token that was shown in place of a password.
    pub token: Option<Pass>,
}

/// How far a token reaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pass {
    pub name: TokenName,
    pub scopes: Vec<Scope>,
    /// None named is all.
    pub namespaces: Vec<Namespace>,
}

/// What something is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place<'a> {
    /// A namespace, which a token may be limited to.
    Namespace(&'a str),
    /// The daemon, or all namespaces.
    Everywhere,
    /// Nothing that belongs to a namespace, or a list that shows what the caller may see.
    Anywhere,
}

impl Principal {
    /// Whether this may be done by who has one of these scopes.
    pub fn may(&self, any_of: &[Scope], place: Place<'_>) -> bool {
        match &self.token {
            Some(pass) => pass.reaches(any_of, place),
            None => self.role == Role::Admin || any_of != [Scope::Admin],
        }
    }

    /// Whether lists show what is in this namespace.
    pub fn sees(&self, namespace: &Namespace) -> bool {
        self.token.as_ref().is_none_or(|pass| pass.is_in(Place::Namespace(namespace.as_str())))
    }
}

impl Pass {
    fn reaches(&self, any_of: &[Scope], place: Place<'_>) -> bool {
        let has_scope = self.scopes.iter().any(|scope| *scope == Scope::Admin || any_of.contains(scope));
        has_scope && self.is_in(place)
    }

    fn is_in(&self, place: Place<'_>) -> bool {
        match place {
            _ if self.namespaces.is_empty() => true,
            Place::Namespace(name) => self.namespaces.iter().any(|namespace| namespace.as_str() == name),
            Place::Everywhere => false,
            Place::Anywhere => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(scopes: &[Scope], namespaces: &[&str]) -> Principal {
        let namespaces = namespaces.iter().map(|name| name.parse().unwrap()).collect();
        let token = Some(Pass { name: "ci".parse().unwrap(), scopes: scopes.to_vec(), namespaces });
        Principal { name: "admin".parse().unwrap(), role: Role::Admin, token }
    }

    #[test]
    fn a_token_reaches_as_far_as_its_scopes_and_namespaces() {
        let (shop, blog) = (Place::Namespace("shop"), Place::Namespace("blog"));
        for (principal, needed, place, may) in [
            (with(&[Scope::Push], &["shop"]), &[Scope::Push][..], shop, true),
            (with(&[Scope::Push], &["shop"]), &[Scope::Push], blog, false),
            (with(&[Scope::Push], &["shop"]), &[Scope::Read], shop, false),
            (with(&[Scope::Push], &["shop"]), &[Scope::Read, Scope::Push], shop, true),
            (with(&[Scope::Push], &[]), &[Scope::Push], blog, true),
            (with(&[Scope::Read, Scope::Push], &[]), &[Scope::Admin], Place::Everywhere, false),
            (with(&[Scope::Read], &["shop"]), &[Scope::Read], Place::Anywhere, true),
            (with(&[Scope::Read], &["shop"]), &[Scope::Read], Place::Everywhere, false),
            (with(&[Scope::Admin], &["shop"]), &[Scope::Push], shop, true),
            (with(&[Scope::Admin], &["shop"]), &[Scope::Admin], Place::Everywhere, false),
            (with(&[Scope::Admin], &[]), &[Scope::Admin], Place::Everywhere, true),
            (with(&[], &[]), &[Scope::Read], Place::Anywhere, false),
        ] {
            assert_eq!(principal.may(needed, place), may, "{principal:?} {needed:?} {place:?}");
        }
        assert!(with(&[Scope::Read], &["shop"]).sees(&"shop".parse().unwrap()));
        assert!(!with(&[Scope::Read], &["shop"]).sees(&"blog".parse().unwrap()));
    }
}
