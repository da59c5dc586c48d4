//! Choices that can be made again: a small generator of the driver's own, so that a seed means the same for ever.

/// SplitMix64. Not for secrets.
#[derive(Clone, Debug)]
pub struct Draw(u64);

impl Draw {
    /// The choices of `seed` for one place, such as a tenant and a turn.
    #[must_use]
    pub fn at(seed: u64, place: [u64; 2]) -> Self {
        let mut draw = Self(seed);
        for part in place {
            draw.0 = draw.next_u64() ^ part.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
        draw
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// A number below `bound`, which must be above zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next_u64() % bound.max(1)
    }

    /// True once in `n` times.
    pub fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_place_draws_the_same_and_another_does_not() {
        let three = |place| {
            let mut draw = Draw::at(7, place);
            [draw.next_u64(), draw.next_u64(), draw.next_u64()]
        };
        assert_eq!(three([1, 2]), three([1, 2]));
        assert_ne!(three([1, 2]), three([2, 1]));
        assert!((0..1_000).all(|n| Draw::at(n, [0, 0]).below(7) < 7));
    }
}
