//! The scripts: one exchange each, and atomic each.

use std::sync::LazyLock;

use loomflow_support_redis::Script;

macro_rules! scripts {
    ($($name:ident = $file:literal;)*) => {
        $(pub(crate) static $name: LazyLock<Script> =
            LazyLock::new(|| Script::new(concat!(include_str!("lua/prelude.lua"), include_str!($file))));)*
    };
}

scripts! {
    BELIEVED = "lua/believed.lua";
    COMMIT = "lua/commit.lua";
    FETCH = "lua/fetch.lua";
    LATEST = "lua/latest.lua";
    OWNERS = "lua/owners.lua";
    SCAN = "lua/scan.lua";
    STAT = "lua/stat.lua";
    SWEEP = "lua/sweep.lua";
    WIPE = "lua/wipe.lua";
}
