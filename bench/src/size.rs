//! Sizes and size distributions as they are written on the command line.
//!
//! `4KiB`, `1MiB-8MiB` (uniform) or a weighted list `4KiB:70,1MiB-2MiB:30`. A distribution is drawn by a
//! number that comes from the object's identity, so the size of an object is never stored.

use std::fmt;
use std::str::FromStr;

use crate::content::mix64;

/// More items than this in one list are a mistake.
const ITEMS_MAX: usize = 64;

/// The largest object that S3 knows: 5 TiB.
pub(crate) const OBJECT_BYTES_MAX: u64 = 5 << 40;

/// Why a size or a distribution was not understood.
#[derive(Debug, PartialEq, Eq)]
pub enum SizeError {
    /// No digits, or a number that does not fit.
    Number(String),
    /// A unit other than B, K, KB, KiB and so on up to T.
    Unit(String),
    /// Beyond [`OBJECT_BYTES_MAX`].
    TooLarge(u64),
    /// A range whose end lies before its start.
    EmptyRange { low: u64, high: u64 },
    /// A weight that is no positive number, or a list whose weights are missing here and there.
    Weight(String),
    /// More than [`ITEMS_MAX`] items, or none.
    ItemCount(usize),
}

impl fmt::Display for SizeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(text) => write!(f, "{text:?} is not a size: write 4096, 4KiB, 1MiB or 1.5GB"),
            Self::Unit(unit) => {
                write!(f, "unknown unit {unit:?}: use B, KB, KiB, MB, MiB, GB, GiB, TB or TiB")
            }
            Self::TooLarge(bytes) => write!(f, "{bytes} bytes is more than an object may have (5 TiB)"),
            Self::EmptyRange { low, high } => write!(f, "the range {low}-{high} ends before it starts"),
            Self::Weight(text) => write!(f, "{text:?} is not a weight: write a positive whole number"),
            Self::ItemCount(count) => {
                write!(f, "{count} sizes in a list: between 1 and {ITEMS_MAX} are possible")
            }
        }
    }
}

impl std::error::Error for SizeError {}

/// Parses one size into bytes. Units without an `i` are decimal, a bare `K`, `M`, `G` or `T` is binary.
pub(crate) fn parse_size(text: &str) -> Result<u64, SizeError> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit_bytes: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "kb" => 1_000,
        "m" | "mib" => 1 << 20,
        "mb" => 1_000_000,
        "g" | "gib" => 1 << 30,
        "gb" => 1_000_000_000,
        "t" | "tib" => 1 << 40,
        "tb" => 1_000_000_000_000,
        other => return Err(SizeError::Unit(other.to_owned())),
    };
    let not_a_number = || SizeError::Number(text.to_owned());
    let bytes = match number.split_once('.') {
        None => {
            let count = number.parse::<u64>().map_err(|_| not_a_number())?;
            count.checked_mul(unit_bytes).ok_or_else(not_a_number)?
        }
        Some(_) => {
            let bytes = number.parse::<f64>().map_err(|_| not_a_number())? * unit_bytes as f64;
            // The cast saturates, and the check below refuses what it saturated to.
            bytes.round() as u64
        }
    };
    if bytes > OBJECT_BYTES_MAX { Err(SizeError::TooLarge(bytes)) } else { Ok(bytes) }
}

/// Bytes in the unit in which they are a short number: `4 KiB`, `1.5 MiB`.
pub(crate) fn format_bytes(bytes: f64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 || value.fract() == 0.0 {
        format!("{value:.0} {}", UNITS[unit])
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Item {
    low: u64,
    /// Inclusive.
    high: u64,
    weight: u64,
}

/// From which sizes are drawn: a weighted list of inclusive ranges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SizeDistribution {
    items: Vec<Item>,
    weight_sum: u64,
    text: String,
}

impl SizeDistribution {
    /// The size that the random number `draw` selects.
    pub fn draw(&self, draw: u64) -> u64 {
        let mut ticket = draw % self.weight_sum;
        for item in &self.items {
            if ticket < item.weight {
                let span = item.high - item.low + 1;
                // A second number, because the first one's remainder already chose the item.
                return item.low + mix64(draw) % span;
            }
            ticket -= item.weight;
        }
        unreachable!("a ticket below the sum of the weights falls into one of them")
    }

    /// The smallest size that can be drawn.
    pub fn min(&self) -> u64 {
        self.items.iter().map(|item| item.low).min().unwrap_or(0)
    }

    /// The largest size that can be drawn.
    pub fn max(&self) -> u64 {
        self.items.iter().map(|item| item.high).max().unwrap_or(0)
    }
}

impl FromStr for SizeDistribution {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let count = text.split(',').count();
        if count > ITEMS_MAX {
            return Err(SizeError::ItemCount(count));
        }
        let mut items = Vec::with_capacity(count);
        for item in text.split(',') {
            let (sizes, weight) = match item.split_once(':') {
                None if count == 1 => (item, 1),
                None => return Err(SizeError::Weight(item.to_owned())),
                Some((sizes, weight)) => {
                    let parsed = weight.trim().parse::<u32>().ok().filter(|weight| *weight > 0);
                    (sizes, u64::from(parsed.ok_or_else(|| SizeError::Weight(weight.to_owned()))?))
                }
            };
            let (low, high) = match sizes.split_once('-') {
                None => {
                    let size = parse_size(sizes)?;
                    (size, size)
                }
                Some((low, high)) => (parse_size(low)?, parse_size(high)?),
            };
            if high < low {
                return Err(SizeError::EmptyRange { low, high });
            }
            items.push(Item { low, high, weight });
        }
        let weight_sum = items.iter().map(|item| item.weight).sum();
        Ok(Self { items, weight_sum, text: text.to_owned() })
    }
}

impl fmt::Display for SizeDistribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("17", 17),
            ("17B", 17),
            ("4KiB", 4096),
            ("4k", 4096),
            ("4 KB", 4000),
            ("1MiB", 1 << 20),
            ("1.5MiB", 3 << 19),
            ("2GB", 2_000_000_000),
            ("5TiB", OBJECT_BYTES_MAX),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn sizes_that_are_none() {
        assert_eq!(parse_size("4XiB"), Err(SizeError::Unit("xib".to_owned())));
        assert_eq!(parse_size("6TiB"), Err(SizeError::TooLarge(6 << 40)));
        for text in ["", "KiB", "-1", "1.2.3MiB", "99999999999999999999", "99999999999999TiB"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn distributions_stay_within_their_items() {
        let distribution: SizeDistribution = "4KiB:70,1MiB-2MiB:30".parse().unwrap();
        let mut small = 0;
        for n in 0..10_000 {
            match distribution.draw(mix64(n)) {
                4096 => small += 1,
                size => assert!((1 << 20..=2 << 20).contains(&size), "{size}"),
            }
        }
        assert!((6_700..7_300).contains(&small), "70 % of the weight drew {small} of 10000");
        assert_eq!((distribution.min(), distribution.max()), (4096, 2 << 20));
    }

    #[test]
    fn one_size_needs_no_weight() {
        let distribution: SizeDistribution = "1-3".parse().unwrap();
        let drawn: std::collections::BTreeSet<u64> = (0..100).map(|n| distribution.draw(n)).collect();
        assert_eq!(drawn, [1, 2, 3].into());
    }

    #[test]
    fn distributions_that_are_none() {
        for text in ["", "4KiB,8KiB", "4KiB:0", "4KiB:x", "8KiB-4KiB", "4KiB:1,", "4KiB:-1"] {
            assert!(text.parse::<SizeDistribution>().is_err(), "{text}");
        }
        let long = vec!["1:1"; ITEMS_MAX + 1].join(",");
        assert_eq!(long.parse::<SizeDistribution>(), Err(SizeError::ItemCount(ITEMS_MAX + 1)));
    }

    #[test]
    fn bytes_for_people() {
        assert_eq!(format_bytes(0.0), "0 B");
        assert_eq!(format_bytes(4096.0), "4 KiB");
        assert_eq!(format_bytes(1.5 * 1024.0 * 1024.0), "1.5 MiB");
    }
}
