//! What all users of a namespace used together: one counter for each namespace.

use hashbrown::HashMap;
use loomflow_core::rules::quota::Cell;
use loomflow_core::{Error, ErrorKind, Namespace, Result};

/// How many namespaces are counted. A namespace is an application, so that this is far more than one process serves.
pub(super) const MAX_NAMESPACES: usize = 1_024;

/// Counters by namespace. A counter keeps its place for as long as the process lives, so that a hold can name it by
/// number, and a late close still finds it.
#[derive(Debug, Default)]
pub(super) struct Globals {
    places: HashMap<Namespace, u32>,
    cells: Vec<Cell>,
}

impl Globals {
    /// The place of a namespace's counter, and `None` for a namespace that may get one.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Capacity`] for a namespace that has no counter, when there is no room for one more: uncounted, it
    /// would have no cap.
    pub(super) fn find(&self, namespace: &Namespace) -> Result<Option<u32>> {
        let place = self.places.get(namespace).copied();
        if place.is_none() && self.cells.len() >= MAX_NAMESPACES {
            return Err(Error::new(
                ErrorKind::Capacity,
                format!("caps of all users together are kept for {MAX_NAMESPACES} namespaces, and no more"),
            ));
        }
        Ok(place)
    }

    /// Gives a namespace that has none a counter.
    pub(super) fn add(&mut self, namespace: &Namespace, window: i64) -> u32 {
        let place = u32::try_from(self.cells.len()).expect("there are at most MAX_NAMESPACES");
        self.cells.push(Cell::new(window));
        self.places.insert(namespace.clone(), place);
        place
    }

    pub(super) fn cell(&mut self, place: u32) -> &mut Cell {
        &mut self.cells[place as usize]
    }
}
