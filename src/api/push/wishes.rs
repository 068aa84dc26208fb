//! What the query of a push asks for.

use crate::{
    api::{ApiError, models},
    model::{AppChange, Environment, Origin, Restart},
};

/// What `?instances=2&env=A=b&route=x.example.com&path=/home/me/app` asks for.
#[derive(Debug, Default)]
pub(super) struct Wishes {
    pub change: AppChange,
    pub origin: Option<Origin>,
}

pub(super) fn wishes(query: &str) -> Result<Wishes, ApiError> {
    // The new environment comes with the new version: no restart for it alone.
    let mut wishes =
        Wishes { change: AppChange { restart: Restart::Later, ..AppChange::default() }, ..Wishes::default() };
    let mut environment = Environment::new();
    let mut routes = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value =
            decode(value).ok_or_else(|| ApiError::bad_request(format!("query parameter '{name}' is not valid")))?;
        match name {
            "instances" => {
                let number = value
                    .parse()
                    .map_err(|_| ApiError::bad_request(format!("'{value}' is not a number of instances")))?;
                wishes.change.instances = Some(number);
            }
            "env" => {
                let wrong = || ApiError::bad_request(format!("'{value}' is not NAME=VALUE"));
                let (name, value) = value.split_once('=').ok_or_else(wrong)?;
                let (name, value) = models::variable(name, value)?;
                environment.insert(name, value);
            }
            "route" => routes.push(models::parse_route(&value)?),
            "builder" => wishes.change.builder = Some(value.parse()?),
            "path" => wishes.origin = Some(Origin::Path { path: value, archive: false }),
            other => {
                let title = format!(
                    "query parameter '{other}' is not known; there are instances, env, route, builder and path"
                );
                return Err(ApiError::bad_request(title));
            }
        }
    }
    wishes.change.environment = (!environment.is_empty()).then_some(environment);
    wishes.change.routes = (!routes.is_empty()).then_some(routes);
    Ok(wishes)
}

/// Percent and plus, as forms have them.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_are_read_from_the_query() {
        let wishes =
            wishes("instances=2&env=A=b%20c&env=B=&route=x.example.com&path=%2Fhome&builder=heroku/builder:24")
                .unwrap();
        let change = wishes.change;
        let environment = change.environment.unwrap();
        assert_eq!(environment[&"A".parse().unwrap()], "b c");
        assert_eq!(environment[&"B".parse().unwrap()], "");
        assert_eq!(change.builder.unwrap().to_string(), "heroku/builder:24");
        assert_eq!((change.instances, change.routes.unwrap().len()), (Some(2), 1));
        assert_eq!(wishes.origin, Some(Origin::Path { path: "/home".to_owned(), archive: false }));
        for wrong in ["instances=x", "env=A", "env=1=x", "env=A=%00", "nonsense=1", "route=%zz", "builder=A"] {
            assert!(super::wishes(wrong).is_err(), "{wrong}");
        }
    }
}
