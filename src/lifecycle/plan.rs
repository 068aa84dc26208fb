//! Which buildpacks of a group take part: requires have to be met, and provides to be used.

use super::types::{Alternative, BuildPlan, GroupElement, Plan, PlanEntry, Provider};

/// A buildpack that passed detection, with what it offers and wants.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    pub element: GroupElement,
    pub optional: bool,
    /// At least one; the first that works is taken.
    pub alternatives: Vec<Alternative>,
}

impl Candidate {
    pub fn new(element: GroupElement, optional: bool, plan: BuildPlan) -> Self {
        let mut alternatives = vec![Alternative { provides: plan.provides, requires: plan.requires }];
        alternatives.extend(plan.or);
        Self { element, optional, alternatives }
    }
}

/// Tries all combinations of alternatives, the first element varying slowest.
pub(super) fn resolve(candidates: &[Candidate]) -> Option<(Vec<GroupElement>, Plan)> {
    let mut chosen = vec![0; candidates.len()];
    loop {
        if let Some(found) = attempt(candidates, &chosen) {
            return Some(found);
        }
        // The next combination: count up, with the last element as the lowest digit.
        let next =
            (0..candidates.len()).rev().find(|index| chosen[*index] + 1 < candidates[*index].alternatives.len())?;
        chosen[next] += 1;
        chosen[next + 1..].fill(0);
    }
}

/// One combination. An element is optional only when its last alternative is chosen.
fn attempt(candidates: &[Candidate], chosen: &[usize]) -> Option<(Vec<GroupElement>, Plan)> {
    let mut left: Vec<usize> = (0..candidates.len()).collect();
    let alternative = |index: usize| &candidates[index].alternatives[chosen[index]];
    let may_go = |index: usize| candidates[index].optional && chosen[index] + 1 == candidates[index].alternatives.len();
    loop {
        let wrong = left.iter().copied().find(|index| {
            let place = left.iter().position(|other| other == index).unwrap_or(0);
            let unmet = alternative(*index).requires.iter().any(|require| {
                !left[..=place]
                    .iter()
                    .any(|earlier| alternative(*earlier).provides.iter().any(|p| p.name == require.name))
            });
            let unused = alternative(*index).provides.iter().any(|provide| {
                !left[place..].iter().any(|later| alternative(*later).requires.iter().any(|r| r.name == provide.name))
            });
            unmet || unused
        });
        match wrong {
            None => break,
            Some(index) if may_go(index) => left.retain(|other| *other != index),
            Some(_) => return None,
        }
    }
    if left.is_empty() {
        return None;
    }
    let mut plan = Plan::default();
    for index in &left {
        for require in &alternative(*index).requires {
            let known = plan.entries.iter_mut().find(|entry| entry.requires[0].name == require.name);
            match known {
                Some(entry) => entry.requires.push(require.clone()),
                None => plan.entries.push(PlanEntry {
                    providers: left
                        .iter()
                        .filter(|provider| alternative(**provider).provides.iter().any(|p| p.name == require.name))
                        .map(|provider| &candidates[*provider].element)
                        .map(|element| Provider { id: element.id.clone(), version: element.version.clone() })
                        .collect(),
                    requires: vec![require.clone()],
                }),
            }
        }
    }
    Some((left.into_iter().map(|index| candidates[index].element.clone()).collect(), plan))
}
