//! A bounded shelf of records: found by id, by whose they are, and by who is named in them as an approver.

use std::collections::BTreeSet;
use std::hash::Hash;
use std::ops::Bound;
use std::sync::Arc;

use hashbrown::HashMap;
use loomflow_core::{Namespace, Owner, Scope, Timestamp, UserId};

/// A record and what it is found by.
#[derive(Debug)]
pub(super) struct Filed<R> {
    pub(super) owner: Owner,
    /// When it was made; they are listed in this order.
    pub(super) at: Timestamp,
    pub(super) approvers: Arc<[UserId]>,
    pub(super) record: R,
}

/// Which bound a further record would pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    OfUser,
    Altogether,
}

#[derive(Debug)]
pub(super) struct Shelf<K, R> {
    records: HashMap<K, Filed<R>>,
    by_owner: HashMap<Owner, BTreeSet<(Timestamp, K)>>,
    /// Whom a record names as an approver, within its namespace.
    by_approver: HashMap<(Namespace, UserId), BTreeSet<(Timestamp, K)>>,
    /// Until when a sweep over everything is known to find nothing, so that a full shelf is not swept for each refusal.
    swept_until: Timestamp,
}

impl<K: Copy + Ord + Hash, R> Shelf<K, R> {
    pub(super) fn new() -> Self {
        Self {
            records: HashMap::new(),
            by_owner: HashMap::new(),
            by_approver: HashMap::new(),
            swept_until: Timestamp::MIN,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    pub(super) fn get(&self, id: K) -> Option<&Filed<R>> {
        self.records.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: K) -> Option<&mut Filed<R>> {
        self.records.get_mut(&id)
    }

    pub(super) fn insert(&mut self, id: K, filed: Filed<R>) {
        let place = (filed.at, id);
        self.by_owner.entry(filed.owner.clone()).or_default().insert(place);
        for approver in filed.approvers.iter() {
            let key = (filed.owner.namespace().clone(), approver.clone());
            self.by_approver.entry(key).or_default().insert(place);
        }
        self.records.insert(id, filed);
    }

    /// Files a record that says it is somebody else's under the key of `filed_under`.
    pub(super) fn misfile(&mut self, filed_under: &Owner, id: K, filed: Filed<R>) {
        self.by_owner.entry(filed_under.clone()).or_default().insert((filed.at, id));
        self.records.insert(id, filed);
    }

    pub(super) fn remove(&mut self, id: K) -> Option<Filed<R>> {
        let filed = self.records.remove(&id)?;
        let place = (filed.at, id);
        if let Some(places) = self.by_owner.get_mut(&filed.owner) {
            places.remove(&place);
            if places.is_empty() {
                self.by_owner.remove(&filed.owner);
            }
        }
        for approver in filed.approvers.iter() {
            let key = (filed.owner.namespace().clone(), approver.clone());
            if let Some(places) = self.by_approver.get_mut(&key) {
                places.remove(&place);
                if places.is_empty() {
                    self.by_approver.remove(&key);
                }
            }
        }
        Some(filed)
    }

    /// What is filed under the owner, oldest first.
    pub(super) fn own(&self, owner: &Owner) -> impl Iterator<Item = (K, &Filed<R>)> {
        let places = self.by_owner.get(owner).into_iter().flatten();
        places.filter_map(|(_, id)| Some((*id, self.records.get(id)?)))
    }

    /// What is filed under the scope's owner, or names the scope's user as an approver, after a place, oldest first.
    pub(super) fn known_to(
        &self,
        scope: &Scope,
        after: Option<(Timestamp, K)>,
    ) -> impl Iterator<Item = (K, &Filed<R>)> {
        let own = self.by_owner.get(scope.owner());
        let asked =
            scope.user_id().and_then(|user| self.by_approver.get(&(scope.namespace().clone(), user.clone())));
        let mut own = places(own, after).peekable();
        let mut asked = places(asked, after).peekable();
        let next = move || match (own.peek(), asked.peek()) {
            (Some(mine), Some(theirs)) if mine == theirs => {
                asked.next();
                own.next()
            }
            (Some(mine), Some(theirs)) if theirs < mine => asked.next(),
            (None, _) => asked.next(),
            _ => own.next(),
        };
        std::iter::from_fn(next).filter_map(|(_, id)| Some((*id, self.records.get(id)?)))
    }

    /// Something ended before its time: a sweep may find it.
    pub(super) fn sweep_again(&mut self) {
        self.swept_until = Timestamp::MIN;
    }

    /// Makes room for one more record of `owner` out of what is over; the ids of what went. A sweep frees everything it
    /// can, so that its cost is shared by the records that follow. `ends` says when a record is over by itself.
    pub(super) fn make_room(
        &mut self,
        owner: &Owner,
        (most, most_of_user): (usize, usize),
        now: Timestamp,
        is_over: impl Fn(&R) -> bool,
        ends: impl Fn(&R) -> Timestamp,
    ) -> (Vec<Filed<R>>, Result<(), Full>) {
        let mut gone = Vec::new();
        let held = |shelf: &Self| shelf.by_owner.get(owner).map_or(0, BTreeSet::len);
        if held(self) >= most_of_user {
            let over = self.own(owner).filter(|(_, filed)| is_over(&filed.record)).map(|(id, _)| id);
            for id in over.collect::<Vec<_>>() {
                gone.extend(self.remove(id));
            }
            if held(self) >= most_of_user {
                return (gone, Err(Full::OfUser));
            }
        }
        if self.len() >= most && now >= self.swept_until {
            let over = self.records.iter().filter(|(_, filed)| is_over(&filed.record)).map(|(id, _)| *id);
            for id in over.collect::<Vec<_>>() {
                gone.extend(self.remove(id));
            }
            self.swept_until =
                self.records.values().map(|filed| ends(&filed.record)).min().unwrap_or_default();
        }
        if self.len() >= most { (gone, Err(Full::Altogether)) } else { (gone, Ok(())) }
    }
}

fn places<K: Copy + Ord>(
    set: Option<&BTreeSet<(Timestamp, K)>>,
    after: Option<(Timestamp, K)>,
) -> impl Iterator<Item = &(Timestamp, K)> {
    let from = after.map_or(Bound::Unbounded, Bound::Excluded);
    set.into_iter().flat_map(move |set| set.range((from, Bound::Unbounded)))
}
