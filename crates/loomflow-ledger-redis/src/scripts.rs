//! The scripts: one exchange each, and atomic each.

use std::sync::LazyLock;

use loomflow_support_redis::Script;

macro_rules! scripts {
    ($($name:ident = $($file:literal)+;)*) => {
        $(pub(crate) static $name: LazyLock<Script> =
            LazyLock::new(|| Script::new(concat!(include_str!("lua/prelude.lua"), $(include_str!($file)),+)));)*
    };
}

scripts! {
    BOOK = "lua/book.lua";
    CLOSE = "lua/close.lua";
    END_RUN = "lua/end_run.lua";
    ESTIMATES = "lua/estimates.lua";
    EXTEND = "lua/extend.lua";
    FORGET = "lua/forget.lua";
    RESERVE = "lua/money.lua" "lua/reserve.lua";
    SENT = "lua/sent.lua";
    USAGE = "lua/usage.lua";
}
