//! What the configurations of all stores on Redis have in common, so that it is written once: the setters of their fields,
//! what they are when a file leaves them out, and how they become [`LinkOptions`](crate::LinkOptions).

/// The setters of a configuration with the fields `key_prefix`, `connect_timeout`, `operation_timeout` and `max_in_flight`,
/// and the `link_options` that they and `url` make. For use inside its `impl`.
///
/// A field of this crate's type would hide the names that a file has, and serde cannot refuse unknown names in a struct that
/// has another one flattened into it.
#[macro_export]
macro_rules! redis_setters {
    () => {
        /// Sets what the names of all keys begin with.
        #[must_use]
        pub fn with_key_prefix(mut self, prefix: impl Into<String>) -> Self {
            self.key_prefix = prefix.into();
            self
        }

        /// Sets how long a connection may take.
        #[must_use]
        pub fn with_connect_timeout(mut self, timeout: ::std::time::Duration) -> Self {
            self.connect_timeout = timeout;
            self
        }

        /// Sets how long one exchange with the server may take.
        #[must_use]
        pub fn with_operation_timeout(mut self, timeout: ::std::time::Duration) -> Self {
            self.operation_timeout = timeout;
            self
        }

        /// Sets the most exchanges that are under way at once; less than 1 counts as 1.
        #[must_use]
        pub fn with_max_in_flight(mut self, exchanges: usize) -> Self {
            self.max_in_flight = exchanges.max(1);
            self
        }

        pub(crate) fn link_options(&self) -> $crate::LinkOptions {
            let mut options = $crate::LinkOptions::new(self.url.clone());
            options.connect_timeout = self.connect_timeout;
            options.operation_timeout = self.operation_timeout;
            options.max_in_flight = self.max_in_flight.max(1);
            options
        }
    };
}

/// What is so when nobody says otherwise.
pub mod defaults {
    use std::time::Duration;

    /// `lf`.
    #[must_use]
    pub fn key_prefix() -> String {
        "lf".to_owned()
    }

    /// 5 s.
    #[must_use]
    pub fn connect_timeout() -> Duration {
        Duration::from_secs(5)
    }

    /// 256.
    #[must_use]
    pub fn max_in_flight() -> usize {
        256
    }
}
