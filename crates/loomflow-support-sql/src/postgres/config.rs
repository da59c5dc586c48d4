//! What the configurations of all stores on PostgreSQL have in common, so that it is written once: the setters of their
//! fields, what they are when a file leaves them out, and how they become [`PgSettings`](super::PgSettings).

/// The setters of a configuration with the fields `schema`, `app_role`, `migrate`, `max_connections`, `connect_timeout` and
/// `operation_timeout`, and the `settings` that they and `url` make. For use inside its `impl`.
///
/// A field of this crate's type would be less code still. It would hide the names that a file has, and serde cannot refuse
/// unknown names in a struct that has another one flattened into it.
#[macro_export]
macro_rules! postgres_setters {
    () => {
        /// Sets the schema that holds the tables: at most 63 of `a-z 0-9 _`.
        #[must_use]
        pub fn with_schema(mut self, schema: impl Into<String>) -> Self {
            self.schema = schema.into();
            self
        }

        /// Sets the role that the application acts as: at most 63 of `a-z 0-9 _`.
        #[must_use]
        pub fn with_app_role(mut self, role: impl Into<String>) -> Self {
            self.app_role = role.into();
            self
        }

        /// Sets whether connecting brings the schema up to date.
        #[must_use]
        pub fn with_migrate(mut self, yes: bool) -> Self {
            self.migrate = yes;
            self
        }

        /// Sets the most connections at once; less than 1 counts as 1.
        #[must_use]
        pub fn with_max_connections(mut self, connections: usize) -> Self {
            self.max_connections = connections;
            self
        }

        /// Sets how long to wait for a connection.
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

        pub(crate) fn settings(&self) -> $crate::postgres::PgSettings {
            let mut settings = $crate::postgres::PgSettings::new(self.url.clone());
            settings.schema.clone_from(&self.schema);
            settings.role.clone_from(&self.app_role);
            settings.max_connections = self.max_connections;
            settings.connect_timeout = self.connect_timeout;
            settings.statement_timeout = self.operation_timeout;
            settings
        }
    };
}

/// What is so when nobody says otherwise.
pub mod defaults {
    use std::time::Duration;

    /// `loomflow`.
    #[must_use]
    pub fn schema() -> String {
        "loomflow".to_owned()
    }

    /// `loomflow_app`.
    #[must_use]
    pub fn app_role() -> String {
        "loomflow_app".to_owned()
    }

    /// True.
    #[must_use]
    pub fn migrate() -> bool {
        true
    }

    /// 16.
    #[must_use]
    pub fn max_connections() -> usize {
        16
    }

    /// 5 s.
    #[must_use]
    pub fn connect_timeout() -> Duration {
        Duration::from_secs(5)
    }

    /// 30 s.
    #[must_use]
    pub fn operation_timeout() -> Duration {
        Duration::from_secs(30)
    }
}
