//! Pages of lists.
//!
//! Kubernetes orders by its own names, which for most kinds are not ours, and can only be read from the beginning. So
//! a list is read whole, put in order, and what does not fit in a page waits a moment for who asks for the next one:
//! reading a list page by page costs one list. A write of this daemon makes lists of its kind be read anew.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::store::{Kind, Object, Page, Slice};

/// What is left of lists.
#[derive(Default)]
pub(super) struct Rests(Mutex<HashMap<Mark, (Instant, Vec<Object>)>>);

type Mark = (Kind, Option<String>, (String, String));

impl Rests {
    /// What comes after a page that was handed out a moment ago.
    pub fn take(&self, kind: Kind, page: &Page) -> Option<Vec<Object>> {
        let mark = (kind, page.namespace.clone(), page.after.clone()?);
        let mut rests = self.lock();
        rests.retain(|_, (since, _)| since.elapsed() < KEPT);
        rests.remove(&mark).map(|(_, rest)| rest)
    }

    /// Cuts a page off what is there, and keeps the rest.
    pub fn cut(&self, kind: Kind, page: &Page, mut objects: Vec<Object>) -> Slice {
        if objects.len() <= page.limit {
            return Slice { objects, next: None };
        }
        let rest = objects.split_off(page.limit);
        let next = objects.last().map(|last| (last.key.namespace.clone(), last.key.name.clone()));
        if let Some(next) = &next {
            let mut rests = self.lock();
            rests.retain(|_, (since, _)| since.elapsed() < KEPT);
            if rests.len() < AT_MOST {
                rests.insert((kind, page.namespace.clone(), next.clone()), (Instant::now(), rest));
            }
        }
        Slice { objects, next }
    }

    pub fn forget(&self, kind: Kind) {
        self.lock().retain(|(of, ..), _| *of != kind);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Mark, (Instant, Vec<Object>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const KEPT: Duration = Duration::from_secs(5);
const AT_MOST: usize = 8;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::store::Key;

    fn object(name: &str) -> Object {
        let key = Key { kind: Kind::Base, namespace: String::new(), name: name.to_owned() };
        Object { key, uid: String::new(), version: 1, schema: 1, body: json!({}) }
    }

    #[test]
    fn the_rest_of_a_list_is_there_once_and_not_after_a_write() {
        let rests = Rests::default();
        let mut page = Page { namespace: None, after: None, limit: 2 };
        let all = || ["a", "b", "c"].map(object).to_vec();
        let first = rests.cut(Kind::Base, &page, all());
        assert_eq!((first.objects.len(), first.next.clone()), (2, Some((String::new(), "b".to_owned()))));
        page.after = first.next;
        assert!(rests.take(Kind::App, &page).is_none(), "of another kind");
        assert_eq!(rests.take(Kind::Base, &page), Some(vec![object("c")]));
        assert!(rests.take(Kind::Base, &page).is_none(), "it was taken");
        page.after = None;
        page.after = rests.cut(Kind::Base, &page, all()).next;
        rests.forget(Kind::Base);
        assert!(rests.take(Kind::Base, &page).is_none(), "something was written");
    }
}
