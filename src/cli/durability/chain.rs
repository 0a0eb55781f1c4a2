//! The Markov chain behind the calculator: how long a set of disks lasts that fail and are rebuilt one at a time.
//!
//! State i has i disks failed. Disks fail independently at a constant rate λ each, so i rises at rate (n − i) λ; one disk
//! is rebuilt at a time, so i falls at rate μ. m + 1 failed disks are the loss. From the mean times T(i) to get from i to
//! i + 1 for the first time the mean time to loss follows by adding positive terms alone, so nothing cancels out.
//!
//! Sources: D. Patterson, G. Gibson, R. Katz, "A Case for Redundant Arrays of Inexpensive Disks (RAID)", SIGMOD 1988 (the
//! chain for m = 1); J. E. Angus, "On Computing MTBF for a k-out-of-n:G Repairable System", IEEE Trans. Reliability 37(3),
//! 1988 (any m); K. K. Rao, J. L. Hafner, R. A. Golding, "Reliability for Networked Storage Nodes", DSN 2006 (a sector that
//! cannot be read while the last redundancy is gone).

/// Hours of a year of 365 days.
pub(super) const HOURS_PER_YEAR: f64 = 8760.0;

/// One erasure set as the chain sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chain {
    /// Disks of the set.
    pub(super) disks: u32,
    /// Failed disks that it survives.
    pub(super) parity: u32,
    /// Failures of one disk per hour: λ.
    pub(super) failure_rate: f64,
    /// Rebuilds per hour: μ.
    pub(super) rebuild_rate: f64,
    /// Probability that the disks that are left, read whole with `parity` disks failed, do not give every byte.
    pub(super) unreadable: f64,
}

impl Chain {
    /// Mean hours until bytes of the set are lost.
    pub(super) fn hours_to_loss(&self) -> f64 {
        let mut sum = 0.0;
        // T(i − 1), and the probability that what leads from i − 1 to i is a loss.
        let (mut before, mut lost_before) = (0.0, 0.0);
        for failed in 0..=self.parity {
            let fails = f64::from(self.disks - failed) * self.failure_rate;
            let rebuilds = if failed == 0 { 0.0 } else { self.rebuild_rate };
            // One visit lasts 1 / (fails + rebuilds) and ends with a rebuild as often as rebuilds / (fails + rebuilds);
            // then T(i − 1) passes until i is reached again, unless that way ended in a loss.
            let time = (1.0 + rebuilds * before) / (fails + rebuilds * lost_before);
            sum += (1.0 - lost_before) * time;
            before = time;
            // With the last tolerated failure everything that is left must be readable.
            lost_before = if failed + 1 == self.parity { self.unreadable } else { 0.0 };
        }
        sum
    }

    /// Probability that bytes of at least one of `sets` such sets are lost within a year: 1 − exp(−year / MTTDL). The time
    /// to the loss is very nearly exponential, since a set is whole again long before it fails once more.
    pub(super) fn loss_per_year(&self, sets: u32) -> f64 {
        -f64::exp_m1(-HOURS_PER_YEAR * f64::from(sets) / self.hours_to_loss())
    }
}

/// The constant rate per hour at which a disk fails that fails within a year with probability `afr`.
pub(super) fn failure_rate(afr: f64) -> f64 {
    -f64::ln_1p(-afr) / HOURS_PER_YEAR
}

/// Probability that reading `bytes` meets a sector that cannot be read, when that happens once in `bits_per_error` bits.
pub(super) fn unreadable(bytes: f64, bits_per_error: f64) -> f64 {
    -f64::exp_m1(-8.0 * bytes / bits_per_error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(disks: u32, parity: u32, failure_rate: f64, rebuild_rate: f64) -> Chain {
        Chain { disks, parity, failure_rate, rebuild_rate, unreadable: 0.0 }
    }

    fn assert_close(got: f64, expected: f64) {
        assert!((got / expected - 1.0).abs() < 1e-9, "{got} instead of {expected}");
    }

    #[test]
    fn agrees_with_values_worked_out_by_hand() {
        // Without redundancy the first of n failures is the loss: 1 / (n λ).
        assert_close(chain(4, 0, 1e-6, 0.1).hours_to_loss(), 250_000.0);
        // One parity disk: ((2 n − 1) λ + μ) / (n (n − 1) λ²); for n = 2, λ = 1, μ = 3 that is 6 / 2.
        assert_close(chain(2, 1, 1.0, 3.0).hours_to_loss(), 3.0);
        // n = 5, λ = 10⁻⁵, μ = 0.1: (9·10⁻⁵ + 0.1) / (20·10⁻¹⁰).
        assert_close(chain(5, 1, 1e-5, 0.1).hours_to_loss(), 50_045_000.0);
        // Three disks of which two may fail, λ = μ = 1: T(0) = 1/3, T(1) = (1 + 1/3) / 2 = 2/3, T(2) = (1 + 2/3) / 1 = 5/3.
        assert_close(chain(3, 2, 1.0, 1.0).hours_to_loss(), 8.0 / 3.0);
    }

    #[test]
    fn an_unreadable_sector_shortens_it_as_by_hand() {
        // n = 2, m = 1, λ = 1, μ = 3, h = 1/2: T(0) = 1/2; state 1 is entered half of the time, and T(1) solves
        // T(1) = 1/4 + 3/4 (1/2 + T(1) / 2), so T(1) = 1. MTTDL = 1/2 + 1/2.
        let with_errors = Chain { unreadable: 0.5, ..chain(2, 1, 1.0, 3.0) };
        assert_close(with_errors.hours_to_loss(), 1.0);
        // A rebuild that never succeeds: the first failure is the loss.
        let hopeless = Chain { unreadable: 1.0, ..chain(2, 1, 1.0, 3.0) };
        assert_close(hopeless.hours_to_loss(), 0.5);
    }

    /// Mean times to absorption by elimination from the equations of the chain, with nothing taken from the code above.
    fn solved(chain: &Chain) -> f64 {
        let states = chain.parity as usize + 1;
        let mut rows = vec![vec![0.0; states + 1]; states];
        for (failed, row) in rows.iter_mut().enumerate() {
            let fails = f64::from(chain.disks - failed as u32) * chain.failure_rate;
            let rebuilds = if failed == 0 { 0.0 } else { chain.rebuild_rate };
            row[failed] = fails + rebuilds;
            if failed > 0 {
                row[failed - 1] = -rebuilds;
            }
            if failed + 1 < states {
                let survives = if failed + 2 == states { 1.0 - chain.unreadable } else { 1.0 };
                row[failed + 1] = -fails * survives;
            }
            row[states] = 1.0;
        }
        for pivot in 0..states {
            let leading = rows[pivot].clone();
            for (_, row) in rows.iter_mut().enumerate().filter(|(index, _)| *index != pivot) {
                let factor = row[pivot] / leading[pivot];
                row.iter_mut().zip(&leading).for_each(|(cell, above)| *cell -= factor * above);
            }
        }
        rows[0][states] / rows[0][0]
    }

    #[test]
    fn agrees_with_the_equations_solved_by_elimination() {
        for disks in 2..=20 {
            for parity in 1..disks.min(5) {
                for (rebuild_rate, unreadable) in [(0.5, 0.0), (2.0, 0.1), (20.0, 0.7), (1.0, 1.0)] {
                    let chain = Chain { unreadable, ..chain(disks, parity, 0.3, rebuild_rate) };
                    let (got, expected) = (chain.hours_to_loss(), solved(&chain));
                    assert!((got / expected - 1.0).abs() < 1e-6, "{chain:?}: {got} and {expected}");
                }
            }
        }
    }

    #[test]
    fn rates_follow_from_a_year() {
        // A disk that fails within a year with probability 1 − 1/e fails once a year.
        assert_close(failure_rate(1.0 - (-1.0_f64).exp()), 1.0 / HOURS_PER_YEAR);
        assert_close(failure_rate(0.01), 0.010_050_335_853_501_44 / HOURS_PER_YEAR);
        // 12.5 TB are 10¹⁴ bits: one error is expected, and met with probability 1 − 1/e.
        assert_close(unreadable(12.5e12, 1e14), 1.0 - (-1.0_f64).exp());
        // Small probabilities are not rounded away.
        assert_close(chain(1, 0, 1e-30, 1.0).loss_per_year(2), 2.0 * 8760.0 * 1e-30);
    }
}
