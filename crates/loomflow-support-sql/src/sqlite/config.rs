//! What the configurations of all stores in a SQLite file have in common, so that it is written once: the setters of their
//! fields, what they are when a configuration leaves them out, and how they become a [`SqliteFile`](super::SqliteFile).

/// The setters of a configuration with the fields `migrate`, `connect_timeout`, `operation_timeout`, `max_connections`,
/// `durability` and `max_bytes`, and the `file` that they and `path` make. For use inside its `impl`; see
/// [`postgres_setters!`](crate::postgres_setters) for why it is no type.
#[macro_export]
macro_rules! sqlite_setters {
    () => {
        /// Sets whether connecting brings the schema up to date.
        #[must_use]
        pub fn with_migrate(mut self, migrate: bool) -> Self {
            self.migrate = migrate;
            self
        }

        /// Sets how long connecting may take.
        #[must_use]
        pub fn with_connect_timeout(mut self, limit: ::std::time::Duration) -> Self {
            self.connect_timeout = limit;
            self
        }

        /// Sets how long an operation may take.
        #[must_use]
        pub fn with_operation_timeout(mut self, limit: ::std::time::Duration) -> Self {
            self.operation_timeout = limit;
            self
        }

        /// Sets the most reads at once; less than 1 counts as 1.
        #[must_use]
        pub fn with_max_connections(mut self, reads: u32) -> Self {
            self.max_connections = reads.max(1);
            self
        }

        /// Sets when a write is acknowledged.
        #[must_use]
        pub fn with_durability(mut self, durability: $crate::sqlite::Durability) -> Self {
            self.durability = durability;
            self
        }

        /// Sets the most bytes that the database may take.
        #[must_use]
        pub fn with_max_bytes(mut self, bytes: impl Into<Option<u64>>) -> Self {
            self.max_bytes = bytes.into();
            self
        }

        pub(crate) fn file(&self) -> $crate::sqlite::SqliteFile {
            $crate::sqlite::SqliteFile::new(&self.path)
                .with_connect_timeout(self.connect_timeout)
                .with_operation_timeout(self.operation_timeout)
                .with_max_readers(self.max_connections)
                .with_durability(self.durability)
                .with_max_bytes(self.max_bytes)
        }
    };
}

/// What is so when nobody says otherwise.
pub mod defaults {
    use std::time::Duration;

    /// True.
    #[must_use]
    pub fn migrate() -> bool {
        true
    }

    /// 10 s.
    #[must_use]
    pub fn connect_timeout() -> Duration {
        Duration::from_secs(10)
    }

    /// 5 s.
    #[must_use]
    pub fn operation_timeout() -> Duration {
        Duration::from_secs(5)
    }

    /// 4.
    #[must_use]
    pub fn max_connections() -> u32 {
        4
    }
}
