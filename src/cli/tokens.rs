//! `epiniod tokens …`: credentials for programs.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{
    Output, OutputFlag, Target,
    apps::{pretty, text},
    error::{self, Error},
    ui::{Ui, print, table},
};
use crate::{
    auth::Scope,
    model::{Namespace, TokenName},
};

#[derive(Debug, Subcommand)]
pub enum Tokens {
    /// List tokens, with what they are good for and when they were last used
    List {
        #[command(flatten)]
        output: OutputFlag,
        #[command(flatten)]
        target: Target,
    },
    /// Create a token, and print it: it is not shown again
    ///
    /// A program shows it as 'Authorization: Bearer TOKEN', or as the password of any user:
    /// curl -u token:TOKEN -T app.tar.gz `http://epinio.localhost:8080/push/workspace/shop`
    #[command(verbatim_doc_comment)]
    Create(Create),
    /// Delete a token; who has it is refused from then on
    Delete {
        /// Name of the token
        name: TokenName,
        #[command(flatten)]
        target: Target,
    },
}

#[derive(Debug, Args)]
pub struct Create {
    /// Name of the token: what it is for
    name: TokenName,
    /// What it may be used for; may be given more than once. The epinio CLI needs 'read' and 'push' for a push
    #[arg(long = "scope", value_enum, value_name = "SCOPE", default_values_t = [Scope::Push])]
    scopes: Vec<Scope>,
    /// Namespace that it is limited to; may be given more than once [default: all]
    #[arg(long = "namespace", short, value_name = "NAME")]
    namespaces: Vec<Namespace>,
    /// How long it is good, such as 12h, 90d or 2w; 'never' for one without an end
    #[arg(long, value_name = "TIME", default_value = "90d")]
    expires: Life,
    #[command(flatten)]
    output: OutputFlag,
    #[command(flatten)]
    target: Target,
}

/// How long a token is good, in seconds; none is for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Life(Option<u64>);

impl std::str::FromStr for Life {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "never" {
            return Ok(Self(None));
        }
        let wrong = || format!("'{text}' is not a time such as 12h, 90d or 2w, or 'never'");
        let unit = text.chars().next_back().ok_or_else(wrong)?;
        let seconds: u64 = match unit {
            'm' => 60,
            'h' => 3600,
            'd' => 24 * 3600,
            'w' => 7 * 24 * 3600,
            _ => return Err(wrong()),
        };
        let number: u64 = text[..text.len() - unit.len_utf8()].parse().map_err(|_| wrong())?;
        number.checked_mul(seconds).filter(|seconds| *seconds > 0).map(|seconds| Self(Some(seconds))).ok_or_else(wrong)
    }
}

impl Tokens {
    pub async fn run(self, ui: &Ui) -> Result<ExitCode, Error> {
        match self {
            Self::List { output, target } => {
                let all = target.client()?.get("/daemon/tokens").await?;
                if output.output == Output::Json {
                    print(&pretty(&all));
                } else {
                    let rows: Vec<_> = all.as_array().into_iter().flatten().map(row).collect();
                    table(&["NAME", "SCOPES", "NAMESPACES", "EXPIRES", "LAST USED"], &rows);
                }
            }
            Self::Create(create) => create.run(ui).await?,
            Self::Delete { name, target } => {
                target.client()?.delete(&format!("/daemon/tokens/{name}"), &Value::Null).await?;
                ui.say(&format!("deleted token {name}"));
            }
        }
        Ok(ExitCode::from(error::OK))
    }
}

impl Create {
    async fn run(self, ui: &Ui) -> Result<(), Error> {
        let request = json!({
            "name": self.name,
            "scopes": self.scopes,
            "namespaces": self.namespaces,
            "expires_in_seconds": self.expires.0,
        });
        let created = self.target.client()?.post("/daemon/tokens", &request).await?;
        if self.output.output == Output::Json {
            print(&pretty(&created));
        } else {
            print(&text(&created, "/token"));
        }
        let until = match created["expiresAt"].as_str() {
            Some(at) => format!("is good until {at}"),
            None => "has no end".to_owned(),
        };
        ui.say(&format!("token {} {until}; keep it now, as it is not shown again", self.name));
        Ok(())
    }
}

fn row(token: &Value) -> Vec<String> {
    let list = |name: &str, none: &str| {
        let all: Vec<&str> = token[name].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if all.is_empty() { none.to_owned() } else { all.join(",") }
    };
    let time = |name: &str| token[name].as_str().unwrap_or("never").to_owned();
    let expires = if token["expired"] == true { "expired".to_owned() } else { time("expiresAt") };
    vec![text(token, "/name"), list("scopes", ""), list("namespaces", "all"), expires, time("lastUsedAt")]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_is_a_number_and_a_unit() {
        for (text, seconds) in [("5m", 300), ("12h", 43_200), ("90d", 7_776_000), ("2w", 1_209_600)] {
            assert_eq!(text.parse(), Ok(Life(Some(seconds))), "{text}");
        }
        assert_eq!("never".parse(), Ok(Life(None)));
        for wrong in ["", "d", "90", "-1d", "0d", "1y", "9é", "99999999999999999999d"] {
            assert!(wrong.parse::<Life>().is_err(), "{wrong}");
        }
    }
}
