//! The collections on disk, and the lock that makes every update of one wait for the one before.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use qdrant_edge::{EdgeConfig, EdgeShard, OperationError, UpdateOperation, WalOptions};
use tonic::Status;

/// All collections of a directory.
#[derive(Debug)]
pub(crate) struct Engine {
    dir: PathBuf,
    collections: Mutex<BTreeMap<String, Arc<Collection>>>,
}

/// One collection: one shard.
#[derive(Debug)]
pub(crate) struct Collection {
    /// Held for the whole of an update.
    updates: Mutex<()>,
    /// `None` once it was deleted: the engine's files must not be taken away under a reader.
    shard: RwLock<Option<EdgeShard>>,
}

impl Engine {
    pub(crate) fn open(dir: &Path) -> Result<Self, String> {
        std::fs::create_dir_all(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        let mut collections = BTreeMap::new();
        for entry in std::fs::read_dir(dir).map_err(|e| e.to_string())? {
            let path = entry.map_err(|e| e.to_string())?.path();
            let Some(name) = path.file_name().and_then(|n| n.to_str()).and_then(decode) else { continue };
            if path.join("ready").exists() {
                let shard = EdgeShard::load(&path, None).map_err(|e| format!("collection {name}: {e}"))?;
                collections.insert(name, Arc::new(Collection::new(shard)));
            } else {
                // Its creation was cut short, and nobody was told that it is there.
                std::fs::remove_dir_all(&path).map_err(|e| e.to_string())?;
            }
        }
        Ok(Self { dir: dir.to_owned(), collections: Mutex::new(collections) })
    }

    pub(crate) fn names(&self) -> Vec<String> {
        lock(&self.collections).keys().cloned().collect()
    }

    pub(crate) fn get(&self, name: &str) -> Result<Arc<Collection>, Status> {
        lock(&self.collections).get(name).cloned().ok_or_else(|| missing(name))
    }

    pub(crate) fn create(&self, name: &str, mut config: EdgeConfig) -> Result<(), Status> {
        let mut collections = lock(&self.collections);
        if collections.contains_key(name) {
            return Err(Status::already_exists(format!("Wrong input: Collection `{name}` already exists!")));
        }
        if name.is_empty() || name.len() > 100 {
            return Err(Status::invalid_argument("Validation error in body: [collection_name: length]"));
        }
        config.wal_options = Some(WalOptions {
            segment_capacity: 1024 * 1024,
            segment_queue_len: 0,
            retain_closed: NonZeroUsize::MIN,
        });
        let path = self.dir.join(encode(name));
        std::fs::create_dir_all(&path).map_err(|e| Status::internal(e.to_string()))?;
        let shard = EdgeShard::new(&path, config).map_err(status)?;
        shard.flush();
        std::fs::write(path.join("ready"), []).map_err(|e| Status::internal(e.to_string()))?;
        collections.insert(name.to_owned(), Arc::new(Collection::new(shard)));
        Ok(())
    }

    /// Whether there was one.
    pub(crate) fn delete(&self, name: &str) -> Result<bool, Status> {
        let Some(collection) = lock(&self.collections).remove(name) else { return Ok(false) };
        let path = self.dir.join(encode(name));
        drop(collection.shard.write().unwrap_or_else(PoisonError::into_inner).take());
        std::fs::remove_file(path.join("ready")).map_err(|e| Status::internal(e.to_string()))?;
        std::fs::remove_dir_all(&path).map_err(|e| Status::internal(e.to_string()))?;
        Ok(true)
    }
}

impl Collection {
    fn new(shard: EdgeShard) -> Self {
        Self { updates: Mutex::new(()), shard: RwLock::new(Some(shard)) }
    }

    pub(crate) fn read<T>(
        &self,
        read: impl FnOnce(&EdgeShard) -> Result<T, OperationError>,
    ) -> Result<T, Status> {
        let shard = self.shard.read().unwrap_or_else(PoisonError::into_inner);
        read(shard.as_ref().ok_or_else(|| missing(""))?).map_err(status)
    }

    /// Applies updates one after the other, and is done when they are on disk: the engine writes its log ahead, but
    /// does not play it back when it is opened again.
    pub(crate) fn update(&self, operations: Vec<UpdateOperation>) -> Result<(), Status> {
        let _turn = lock(&self.updates);
        self.read(|shard| {
            for operation in operations {
                shard.update(operation)?;
            }
            shard.flush();
            Ok(())
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn missing(name: &str) -> Status {
    Status::not_found(format!("Not found: Collection `{name}` doesn't exist!"))
}

/// The code that the server gives the same error.
fn status(error: OperationError) -> Status {
    let text = error.to_string();
    match error {
        OperationError::PointIdError { .. } => Status::not_found(text),
        OperationError::ServiceError { .. }
        | OperationError::InconsistentStorage { .. }
        | OperationError::OutOfMemory { .. } => Status::internal(text),
        OperationError::Cancelled { .. } => Status::cancelled(text),
        OperationError::Timeout { .. } => Status::deadline_exceeded(text),
        _ => Status::invalid_argument(format!("Wrong input: {text}")),
    }
}

/// A collection's directory: its name in hex, whatever is in it.
fn encode(name: &str) -> String {
    name.bytes().fold("c".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

fn decode(name: &str) -> Option<String> {
    let hex = name.strip_prefix('c')?;
    let byte = |at: usize| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok();
    String::from_utf8((0..hex.len()).step_by(2).map(byte).collect::<Option<Vec<_>>>()?).ok()
}
