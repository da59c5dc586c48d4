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
    BOOK = "lua/marker.lua" "lua/book.lua";
    CLOSE = "lua/marker.lua" "lua/close.lua";
    END_RUN = "lua/end_run.lua";
    ESTIMATES = "lua/estimates.lua";
    EXTEND = "lua/extend.lua";
    FORGET = "lua/forget.lua";
    RESERVE = "lua/money.lua" "lua/reserve.lua";
    SENT = "lua/sent.lua";
    USAGE = "lua/usage.lua";
}

#[cfg(test)]
mod tests {
    //! The arithmetic of the scripts, asked on a server, against the same in 128 bits.
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use std::fmt::Write as _;
    use std::time::Duration;

    use loomflow_core::rules::quota::{Ask, Periods};
    use loomflow_core::{Hold, HoldKey, Price, RunId, Timestamp, Window};
    use rand::RngExt as _;
    use redis::Value;

    const SAMPLES: usize = 5_000;

    /// Runs `code` after the prelude for every line of `samples`, and returns what it said to each.
    async fn ask(terms: [&str; 4], code: &str, samples: &str) -> Vec<String> {
        let body = format!(
            "{}{}local out = {{}}\nfor line in string.gmatch(ARGV[7], '[^\\n]+') do\nlocal n = {{}}\n\
             for d in string.gmatch(line, '%S+') do n[#n + 1] = tonumber(d) end\n{code}\nend\nreturn out",
            include_str!("lua/prelude.lua"),
            include_str!("lua/money.lua")
        );
        let client = redis::Client::open(loomflow_tests::services::url("redis-plain")).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let mut call = redis::cmd("EVAL");
        call.arg(body).arg(1).arg("k").arg(terms[0]).arg(&terms[1..]).arg("").arg("").arg(samples);
        let said: Vec<Value> = call.query_async(&mut connection).await.unwrap();
        said.into_iter().map(|value| redis::from_redis_value(value).unwrap()).collect()
    }

    /// Numbers of every size, the largest included.
    fn any(below: u64) -> u64 {
        let bits = rand::rng().random_range(0..64_u32);
        let n = rand::random::<u64>() >> bits;
        if rand::random::<u8>() < 8 { below } else { n % (below + 1) }
    }

    #[tokio::test]
    async fn money_is_what_it_is_in_128_bits() {
        let (mut samples, mut expected) = (String::new(), Vec::new());
        while expected.len() < SAMPLES {
            let (input, rate, output) = (any(1 << 30), any(1 << 33), any(8_999_999_999_999));
            let (wanted, room) = (any(1 << 40), any((1 << 53) - 1));
            let price = Price::per_token(rate, output);
            let hold =
                Hold::tokens(HoldKey::new(RunId::from_u128(1), 0), input, wanted).with_price(Some(price));
            let exact = Ask::new(&hold);
            let base = u128::from(input) * u128::from(rate);
            if base / 1_000 >= 1 << 53 {
                continue;
            }
            writeln!(samples, "{} {} {output} {wanted} {room}", base / 1_000, base % 1_000).unwrap();
            let cost = (base + u128::from(wanted) * u128::from(output)).div_ceil(1_000);
            let cost = if cost < 1 << 53 { cost.to_string() } else { "false".to_owned() };
            // What costs nothing fits always; of the rest nothing does where the prompt alone does not.
            let fits = if output > 0 && base.div_ceil(1_000) > u128::from(room) {
                0
            } else {
                exact.affordable(room)
            };
            let fits = fits.min(wanted);
            expected.push(format!("{fits} {cost}"));
        }
        let code = "local p = { n[1], n[2], n[3] }\nlocal c = cost(p, n[4])\n\
                    out[#out + 1] = text(affordable(p, n[5], n[4])) .. ' ' .. (c and text(c) or 'false')";
        let said = ask(["0", "l", "1", "0"], code, &samples).await;
        for ((said, expected), sample) in said.iter().zip(&expected).zip(samples.lines()) {
            assert_eq!(said, expected, "{sample}");
        }
        assert_eq!(said.len(), SAMPLES);
    }

    #[tokio::test]
    async fn windows_are_numbered_as_everywhere() {
        let windows = [
            (Window::Hour, "h"),
            (Window::Day, "d"),
            (Window::Month, "m"),
            (Window::Rolling(Duration::from_secs(61)), "r"),
            (Window::Rolling(Duration::from_secs(86_400)), "r"),
        ];
        for (window, kind) in windows {
            let periods = Periods::new(window);
            let size = if kind == "m" { 86_400_000_000 } else { periods.size() };
            let (mut samples, mut expected) = (String::new(), Vec::new());
            for i in 0..SAMPLES {
                // From the year 1770 to 2170, and the borders of days, to the microsecond.
                let at = i64::try_from(any(12_623_000_000_000_000)).unwrap() - 6_311_500_000_000_000;
                let at = if i % 2 == 0 {
                    at
                } else {
                    at.div_euclid(86_400_000_000) * 86_400_000_000 - i64::from(i % 4 == 1)
                };
                let number = periods.number(Timestamp::from_micros(at));
                let ends =
                    if kind == "r" { periods.leaves_at(number) } else { periods.starts_at(number + 1) };
                writeln!(samples, "{at}").unwrap();
                expected.push(format!("{number} {}", ends.as_micros()));
            }
            let code = "out[#out + 1] = text(number(n[1])) .. ' ' .. text(ends(number(n[1])))";
            let said = ask(["0", kind, &size.to_string(), "0"], code, &samples).await;
            for ((said, expected), sample) in said.iter().zip(&expected).zip(samples.lines()) {
                assert_eq!(said, expected, "{window} {sample}");
            }
            assert_eq!(said.len(), SAMPLES);
        }
    }
}
