//! What can happen, and under which caps.

use std::time::Duration;

use loomflow_core::{BudgetConfig, Caps, NanoUsd, Window};
use proptest::prelude::*;

/// Of two namespaces, whose users together have counters of their own.
pub(super) const USERS: [(&str, &str); 6] = [
    ("app", "user_1"),
    ("app", "user_10"),
    ("app", "User_1"),
    ("app", "us\u{435}r_1"),
    ("ap", "puser_1"),
    ("ap", "user_1"),
];

/// One step. `which` is a hold, by its number.
#[derive(Clone, Debug)]
pub(super) enum Op {
    Reserve {
        user: usize,
        run: u128,
        seq: u32,
        ask: [u64; 3],
        price: u8,
        wall: u64,
        lease: u64,
    },
    Sent(usize),
    Extend(usize, u64),
    Close {
        which: usize,
        kind: u8,
        used: [u64; 2],
    },
    Reconcile {
        which: usize,
        used: [u64; 2],
    },
    Foreign {
        which: usize,
        by: usize,
    },
    /// Time passes, in seconds.
    Wait(u64),
    /// The clock is set, by so many seconds.
    Jump(i64),
    EndRun {
        user: usize,
        run: u128,
    },
    /// The ledger is closed and opened again, where it is kept.
    Reopen,
    /// Delivered twice.
    Twice(Box<Op>),
}

fn ledger_op() -> impl Strategy<Value = Op> + Clone {
    let ask = (0_u64..40, 0_u64..60, 0_u64..10).prop_map(|(a, b, c)| [a, b, c]);
    let wall = prop_oneof![4 => Just(0), 1 => 1_u64..40];
    let used = || (0_u64..40, 0_u64..60).prop_map(|(a, b)| [a, b]);
    prop_oneof![
        8 => (0..USERS.len(), 0_u128..3, 0_u32..4, ask, 0_u8..4, wall, 0_u64..60)
            .prop_map(|(user, run, seq, ask, price, wall, lease)| Op::Reserve { user, run, seq, ask, price, wall, lease }),
        3 => any::<usize>().prop_map(Op::Sent),
        1 => (any::<usize>(), 0_u64..60).prop_map(|(which, lease)| Op::Extend(which, lease)),
        7 => (any::<usize>(), 0_u8..8, used()).prop_map(|(which, kind, used)| Op::Close { which, kind, used }),
        2 => (any::<usize>(), used()).prop_map(|(which, used)| Op::Reconcile { which, used }),
    ]
}

pub(super) fn op() -> impl Strategy<Value = Op> {
    let wait = prop_oneof![4 => 0_u64..30, 2 => Just(60), 4 => 0_u64..4_000, 2 => 80_000_u64..90_000, 1 => 0_u64..260_000];
    prop_oneof![
        18 => ledger_op(),
        3 => ledger_op().prop_map(|op| Op::Twice(Box::new(op))),
        1 => (any::<usize>(), 0..USERS.len()).prop_map(|(which, by)| Op::Foreign { which, by }),
        3 => wait.prop_map(Op::Wait),
        1 => prop_oneof![-5_000_i64..5_000, -60_i64..60].prop_map(Op::Jump),
        1 => (0..USERS.len(), 0_u128..3).prop_map(|(user, run)| Op::EndRun { user, run }),
        1 => Just(Op::Reopen),
    ]
}

fn caps() -> impl Strategy<Value = Caps> {
    let cap = || prop::option::weighted(0.4, 0_u64..250);
    (cap(), cap(), cap(), cap(), prop::option::weighted(0.3, 0_u64..100)).prop_map(|(a, b, c, d, e)| {
        let mut caps = Caps::default();
        (caps.tokens, caps.input_tokens, caps.output_tokens) = (a, b, c);
        caps.cost = d.map(|n| NanoUsd(n * 10));
        caps.wall_clock = e.map(Duration::from_secs);
        caps
    })
}

fn window() -> impl Strategy<Value = Window> {
    prop_oneof![
        Just(Window::Lifetime),
        Just(Window::Hour),
        Just(Window::Day),
        Just(Window::Month),
        Just(Window::Rolling(Duration::from_secs(60))),
        Just(Window::Rolling(Duration::from_secs(3_601))),
    ]
}

pub(super) fn config() -> impl Strategy<Value = BudgetConfig> {
    (caps(), caps(), caps(), window()).prop_map(|(global, per_user, per_run, window)| {
        let mut config = BudgetConfig::new().window(window);
        (config.global, config.per_user, config.per_run) = (global, per_user, per_run);
        config.global.tokens = config.global.tokens.map(|n| n * 3);
        config
    })
}
