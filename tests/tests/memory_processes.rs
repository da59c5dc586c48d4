//! Several processes on one store: what one writes the others see, what was acknowledged survives SIGKILL of any of them,
//! and of the server, and nothing is ever half there.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test")]
#![allow(clippy::disallowed_methods, reason = "what waits here is a test with threads of its own")]

#[path = "memory_processes/erasure.rs"]
mod erasure;
#[path = "memory_processes/sharing.rs"]
mod sharing;

use std::path::Path;

use loomflow_tests::killing;
use loomflow_tests::own::{OwnPostgres, OwnRedis, OwnServer};
use loomflow_tests::place::{OwnPlace, Place};

const CLIENT_ROUNDS: u64 = 25;
const SERVER_ROUNDS: u64 = 6;

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_memory_worker"))
}

fn service(name: &str, prefix: &str) -> Place {
    Place::service(program(), name, prefix)
}

/// The same tests on each store: `shared` is where others are, too.
macro_rules! stores {
    ($($name:ident: $shared:expr;)*) => {
        $(
            mod $name {
                use crate::{erasure, sharing};

                #[test]
                fn what_one_process_writes_the_other_sees_at_once() {
                    sharing::sees_at_once(&$shared);
                }

                #[test]
                fn many_processes_open_it_at_once() {
                    sharing::opens_for_many_at_once(|| $shared);
                }

                #[test]
                fn everything_survives_the_process_that_wrote_it() {
                    sharing::survives_a_restart(&$shared);
                }

                #[test]
                fn of_a_value_that_two_processes_supersede_one_is_current() {
                    sharing::one_value_is_current(&$shared);
                }

                #[test]
                fn a_client_killed_in_mid_write_loses_nothing_and_leaves_nothing_half() {
                    let place = $shared;
                    let toll = crate::killing::the_client(&|| place.worker(), &|round| round < crate::CLIENT_ROUNDS);
                    toll.assert_none();
                }

                #[test]
                fn a_stale_write_of_another_process_brings_nothing_back() {
                    erasure::stale_writes_race(&$shared);
                }
            }
        )*
    };
}

stores! {
    postgres: crate::service("postgres", "");
    qdrant: crate::service("qdrant", "qdrant:");
    redis: crate::service("redis", "");
    redis_plain: crate::service("redis-plain", "");
    sqlite: crate::Place::sqlite(crate::program());
}

fn kill_the_server(server: impl Future<Output = OwnServer>) {
    let mut place = OwnPlace::start(program(), server);
    killing::the_server(&mut place, &|round| round < SERVER_ROUNDS).assert_none();
}

#[test]
fn a_postgres_killed_in_mid_write_loses_nothing_and_leaves_nothing_half() {
    kill_the_server(OwnPostgres::start());
}

#[test]
fn a_redis_killed_in_mid_write_loses_nothing_and_leaves_nothing_half() {
    kill_the_server(OwnRedis::start(true));
}

#[test]
fn a_redis_without_search_killed_in_mid_write_loses_nothing_and_leaves_nothing_half() {
    kill_the_server(OwnRedis::start(false));
}
