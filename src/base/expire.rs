//! Which bases are kept.

use std::collections::{HashMap, HashSet};

use super::{BaseRecord, Bases, Error};
use crate::{
    model::{Digest, Timestamp},
    store,
};

impl Bases {
    /// Forgets bases that answer nothing any more. Kept are those whose lock is in use, those that were made or given
    /// as an answer since `before`, and the newest answer to every request, for the day when the mirrors are down. Returns the
    /// manifests of the images that nothing here needs any more.
    pub async fn expire(&self, in_use: &HashSet<Digest>, before: Timestamp) -> Result<HashSet<Digest>, Error> {
        // None is being made meanwhile.
        let _work = self.work.lock().await;
        let records = self.objects.list::<BaseRecord>(None).await?.into_iter().map(|stored| stored.value);
        let (kept, old) = sort_out(records.collect(), in_use, before);
        for record in &old {
            match self.objects.delete(&BaseRecord::key_of(&record.id)).await {
                Ok(()) | Err(store::Error::NotFound(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let images = |records: &[BaseRecord]| -> HashSet<Digest> {
            records.iter().flat_map(|record| [record.run.digest, record.build.digest]).collect()
        };
        Ok(images(&old).difference(&images(&kept)).copied().collect())
    }
}

/// Those that are kept, and the others.
fn sort_out(
    records: Vec<BaseRecord>,
    in_use: &HashSet<Digest>,
    before: Timestamp,
) -> (Vec<BaseRecord>, Vec<BaseRecord>) {
    let mut newest: HashMap<String, Timestamp> = HashMap::new();
    for (request, answer) in records.iter().flat_map(|record| &record.requests) {
        let at = newest.entry(request.clone()).or_insert(answer.at);
        *at = answer.at.max(*at);
    }
    records.into_iter().partition(|record| {
        let answers = |request: &String, at: Timestamp| at >= before || newest.get(request) == Some(&at);
        in_use.contains(&record.id)
            || record.made >= before
            || record.requests.iter().any(|(request, answer)| answers(request, answer.at))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{base::Answer, model::ImageName};

    #[test]
    fn the_newest_answer_what_is_in_use_and_what_is_young_stay() {
        let record = |name: &str, made: i64, requests: &[(&str, i64)]| {
            let image = ImageName::new("epiniod/base", Digest::of(name));
            let answer = |at: i64| Answer { snapshot: Digest::of("index"), at: Timestamp::from_second(at) };
            let requests: BTreeMap<_, _> = requests.iter().map(|(id, at)| ((*id).to_owned(), answer(*at))).collect();
            let (id, made) = (Digest::of(name), Timestamp::from_second(made));
            BaseRecord { id, run: image.clone(), build: image, lock: id, layers: Vec::new(), requests, made }
        };
        let records = vec![
            record("old", 10, &[("python", 10), ("node", 10)]),
            record("newest of node", 10, &[("node", 20)]),
            record("newest of python", 10, &[("python", 30)]),
            record("in use", 10, &[("node", 15)]),
            record("young", 60, &[]),
            record("asked for lately", 10, &[("node", 5), ("python", 55)]),
        ];
        let in_use = HashSet::from([Digest::of("in use")]);
        let (kept, old) = sort_out(records, &in_use, Timestamp::from_second(50));
        let names = |records: &[BaseRecord]| records.iter().map(|record| record.id).collect::<Vec<_>>();
        // What was asked for lately is the newest answer to `python`.
        assert_eq!(names(&old), [Digest::of("old"), Digest::of("newest of python")]);
        assert_eq!(kept.len(), 4);
    }
}
