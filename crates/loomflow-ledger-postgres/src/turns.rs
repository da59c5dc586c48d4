//! In what order operations that wait are taken: users take turns, and one whose lock is stuck holds nobody up.
//!
//! Operations of one user are taken in the order in which they came. Namespaces take turns, and within one the users: a
//! group has one operation of each, then a second of each, until it is full. So a user who asks a thousand times fills up
//! what the others leave.

use std::collections::{BTreeMap, HashMap, VecDeque};

use loomflow_core::Namespace;
use tokio::time::Instant;

use crate::schema::Partition;

/// Whose turn is when, and what each has waiting.
#[derive(Debug)]
pub(crate) struct Turns<T> {
    namespaces: VecDeque<Namespace>,
    spaces: HashMap<Namespace, Space<T>>,
    /// Whose lock was stuck: they are tried by themselves.
    aside: BTreeMap<Partition, Aside<T>>,
    /// Whether the last that was taken was one of those. Then the others come first.
    was_aside: bool,
    waiting: usize,
}

#[derive(Debug)]
struct Space<T> {
    users: VecDeque<Partition>,
    of: HashMap<Partition, VecDeque<T>>,
}

#[derive(Debug)]
struct Aside<T> {
    namespace: Namespace,
    items: VecDeque<T>,
    tried_at: Instant,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next<T> {
    /// These, of one namespace.
    Group(Namespace, Vec<T>),
    /// Nothing before that moment.
    Later(Instant),
    Nothing,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self {
            namespaces: VecDeque::new(),
            spaces: HashMap::new(),
            aside: BTreeMap::new(),
            was_aside: false,
            waiting: 0,
        }
    }
}

impl<T> Turns<T> {
    /// How many wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    pub(crate) fn push(&mut self, namespace: &Namespace, user: Partition, item: T) {
        self.waiting += 1;
        if let Some(aside) = self.aside.get_mut(&user) {
            aside.items.push_back(item);
            return;
        }
        let space = self.spaces.entry(namespace.clone()).or_insert_with(|| {
            self.namespaces.push_back(namespace.clone());
            Space { users: VecDeque::new(), of: HashMap::new() }
        });
        space.of.entry(user).or_insert_with(|| {
            space.users.push_back(user);
            VecDeque::new()
        });
        space.of.entry(user).or_default().push_back(item);
    }

    /// The next operations, at most `most`: those of a user who was put aside by themselves, and never twice in a row while
    /// others wait.
    pub(crate) fn next(&mut self, most: usize, now: Instant) -> Next<T> {
        let others_wait = !self.namespaces.is_empty();
        if !(self.was_aside && others_wait)
            && let Some(group) = self.next_aside(most, now)
        {
            self.was_aside = true;
            return group;
        }
        self.was_aside = false;
        if let Some(group) = self.next_space(most) {
            return group;
        }
        self.aside.values().map(|aside| aside.tried_at).min().map_or(Next::Nothing, Next::Later)
    }

    fn next_aside(&mut self, most: usize, now: Instant) -> Option<Next<T>> {
        let due = self.aside.iter().filter(|(_, aside)| aside.tried_at <= now);
        let user = due.min_by_key(|(_, aside)| aside.tried_at).map(|(user, _)| *user)?;
        let mut aside = self.aside.remove(&user)?;
        let rest = aside.items.split_off(most.min(aside.items.len()));
        self.waiting -= aside.items.len() + rest.len();
        for item in rest {
            self.push(&aside.namespace, user, item);
        }
        Some(Next::Group(aside.namespace, aside.items.into()))
    }

    fn next_space(&mut self, most: usize) -> Option<Next<T>> {
        let namespace = self.namespaces.pop_front()?;
        let mut space = self.spaces.remove(&namespace)?;
        let mut group = Vec::new();
        while group.len() < most
            && let Some(user) = space.users.pop_front()
        {
            let Some(items) = space.of.get_mut(&user) else { continue };
            group.extend(items.pop_front());
            if items.is_empty() {
                space.of.remove(&user);
            } else {
                space.users.push_back(user);
            }
        }
        self.waiting -= group.len();
        if !space.users.is_empty() {
            self.namespaces.push_back(namespace.clone());
            self.spaces.insert(namespace.clone(), space);
        }
        Some(Next::Group(namespace, group))
    }

    /// Puts back what was taken of a user whose lock is stuck, before all else that this user has waiting, and tries them by
    /// themselves from `at` on.
    pub(crate) fn put_aside(&mut self, namespace: &Namespace, user: Partition, items: Vec<T>, at: Instant) {
        self.waiting += items.len();
        let mut items = VecDeque::from(items);
        let aside = self.aside.remove(&user).map(|aside| aside.items);
        items.extend(aside.unwrap_or_default());
        if let Some(space) = self.spaces.get_mut(namespace)
            && let Some(waiting) = space.of.remove(&user)
        {
            space.users.retain(|other| *other != user);
            items.extend(waiting);
            if space.users.is_empty() {
                self.spaces.remove(namespace);
                self.namespaces.retain(|other| other != namespace);
            }
        }
        if !items.is_empty() {
            self.aside.insert(user, Aside { namespace: namespace.clone(), items, tried_at: at });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn space(name: &str) -> Namespace {
        Namespace::new(name).unwrap()
    }

    fn group<T>(next: Next<T>) -> Vec<T> {
        match next {
            Next::Group(_, items) => items,
            _ => Vec::new(),
        }
    }

    #[test]
    fn who_asks_a_thousand_times_leaves_room_for_who_asks_once() {
        let (mut turns, app, now) = (Turns::default(), space("app"), Instant::now());
        (0..1_000).for_each(|n| turns.push(&app, [1; 32], (1, n)));
        turns.push(&app, [2; 32], (2, 0));
        turns.push(&app, [3; 32], (3, 0));
        let first = group(turns.next(64, now));
        assert_eq!(first[..4], [(1, 0), (2, 0), (3, 0), (1, 1)], "users take turns");
        assert_eq!((first.len(), first[63]), (64, (1, 61)), "what others leave is filled up, in order");
        assert_eq!(group(turns.next(64, now))[0], (1, 62));
        turns.push(&app, [2; 32], (2, 1));
        assert!(group(turns.next(64, now)).contains(&(2, 1)));
        assert_eq!(turns.waiting(), 1_003 - 3 * 64);
    }

    #[test]
    fn namespaces_take_turns() {
        let (mut turns, now) = (Turns::default(), Instant::now());
        (0..9).for_each(|n| turns.push(&space("busy"), [1; 32], n));
        turns.push(&space("quiet"), [2; 32], 100);
        let taken: Vec<Vec<i32>> = (0..4).map(|_| group(turns.next(4, now))).collect();
        assert_eq!(taken, [vec![0, 1, 2, 3], vec![100], vec![4, 5, 6, 7], vec![8]]);
        assert_eq!(turns.next(4, now), Next::Nothing);
    }

    #[test]
    fn who_is_put_aside_keeps_their_order_and_holds_nobody_up() {
        let (mut turns, app, now) = (Turns::default(), space("app"), Instant::now());
        let later = now + Duration::from_secs(1);
        for n in 0..3 {
            turns.push(&app, [1; 32], (1, n));
        }
        turns.push(&app, [2; 32], (2, 0));
        assert_eq!(group(turns.next(2, now)), [(1, 0), (2, 0)]);
        turns.put_aside(&app, [1; 32], vec![(1, 0)], later);
        assert_eq!(turns.next(2, now), Next::Later(later));
        turns.push(&app, [1; 32], (1, 3));
        turns.push(&app, [2; 32], (2, 1));
        assert_eq!(group(turns.next(2, now)), [(2, 1)]);
        turns.push(&app, [2; 32], (2, 2));
        assert_eq!(group(turns.next(3, later)), [(1, 0), (1, 1), (1, 2)], "by themselves");
        turns.put_aside(&app, [1; 32], vec![(1, 0), (1, 1), (1, 2)], later);
        assert_eq!(group(turns.next(3, later)), [(2, 2)], "never twice in a row while others wait");
        assert_eq!(group(turns.next(3, later)), [(1, 0), (1, 1), (1, 2)]);
        assert_eq!(group(turns.next(3, later)), [(1, 3)], "the rest has its turn again");
        assert_eq!((turns.next(3, later), turns.waiting()), (Next::Nothing, 0));
    }
}
