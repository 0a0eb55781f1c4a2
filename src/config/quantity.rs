//! Sizes, durations and erasure shapes as operators write them: `2GiB`, `30s`, `4+2`.
//!
//! One type each with one parser, used alike by flags, environment and file, so that a value means the same
//! wherever it is written.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, Deserialize, Deserializer, Visitor};

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// A length of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// Data and parity columns of an erasure set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub data: u8,
    pub parity: u8,
}

/// Why a quantity was not understood; prints as a sentence with the text that was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QuantityError {
    NotASize(String),
    NotASpan(String),
    NotAShape(String),
    TooLarge(String),
}

impl fmt::Display for QuantityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotASize(text) => {
                write!(f, "{text:?} is not a size; write for example 512MiB, 2GiB or 10GB")
            }
            Self::NotASpan(text) => {
                write!(f, "{text:?} is not a duration; write for example 500ms, 30s or 2m")
            }
            Self::NotAShape(text) => {
                write!(f, "{text:?} is not an erasure shape; write data+parity, for example 4+2")
            }
            Self::TooLarge(text) => write!(f, "{text:?} is too large"),
        }
    }
}

impl std::error::Error for QuantityError {}

impl FromStr for Size {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (number, unit) = split_unit(text);
        let number: u64 = number.parse().map_err(|_| QuantityError::NotASize(text.to_owned()))?;
        let factor: u64 = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "kib" | "k" => 1 << 10,
            "mib" | "m" => 1 << 20,
            "gib" | "g" => 1 << 30,
            "tib" | "t" => 1 << 40,
            "kb" => 1_000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            "tb" => 1_000_000_000_000,
            _ => return Err(QuantityError::NotASize(text.to_owned())),
        };
        number.checked_mul(factor).map(Size).ok_or_else(|| QuantityError::TooLarge(text.to_owned()))
    }
}

impl FromStr for Span {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (number, unit) = split_unit(text);
        let number: u64 = number.parse().map_err(|_| QuantityError::NotASpan(text.to_owned()))?;
        let millis: u64 = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            _ => return Err(QuantityError::NotASpan(text.to_owned())),
        };
        let millis = number.checked_mul(millis).ok_or_else(|| QuantityError::TooLarge(text.to_owned()))?;
        Ok(Span(Duration::from_millis(millis)))
    }
}

impl FromStr for Shape {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || QuantityError::NotAShape(text.to_owned());
        let (data, parity) = text.split_once('+').ok_or_else(wrong)?;
        let data: u8 = data.trim().parse().map_err(|_| wrong())?;
        let parity: u8 = parity.trim().parse().map_err(|_| wrong())?;
        if data == 0 {
            return Err(wrong());
        }
        Ok(Shape { data, parity })
    }
}

fn split_unit(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    (&text[..end], text[end..].trim())
}

macro_rules! deserialize_as_text {
    ($($quantity:ty => $what:literal),*) => {$(
        impl<'de> Deserialize<'de> for $quantity {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;

                impl Visitor<'_> for Text {
                    type Value = $quantity;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($what)
                    }

                    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                        text.parse().map_err(E::custom)
                    }

                    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Self::Value, E> {
                        self.visit_str(&number.to_string())
                    }
                }

                deserializer.deserialize_any(Text)
            }
        }
    )*};
}

deserialize_as_text! {
    Size => "a size such as \"2GiB\"",
    Span => "a duration such as \"30s\"",
    Shape => "an erasure shape such as \"4+2\""
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.data, self.parity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_binary_and_decimal_units() {
        assert_eq!("4096".parse(), Ok(Size(4096)));
        assert_eq!("2GiB".parse(), Ok(Size(2 << 30)));
        assert_eq!("2 gib".parse(), Ok(Size(2 << 30)));
        assert_eq!("10GB".parse(), Ok(Size(10_000_000_000)));
        for wrong in ["", "GiB", "-1", "1.5GiB", "2GiBs", "0x10"] {
            assert_eq!(wrong.parse::<Size>(), Err(QuantityError::NotASize(wrong.to_owned())));
        }
        assert!(matches!("99999999999TiB".parse::<Size>(), Err(QuantityError::TooLarge(_))));
    }

    #[test]
    fn a_duration_must_name_its_unit() {
        assert_eq!("500ms".parse(), Ok(Span(Duration::from_millis(500))));
        assert_eq!("2m".parse(), Ok(Span(Duration::from_secs(120))));
        for wrong in ["", "30", "s", "3d"] {
            assert_eq!(wrong.parse::<Span>(), Err(QuantityError::NotASpan(wrong.to_owned())));
        }
    }

    #[test]
    fn a_shape_needs_at_least_one_data_column() {
        assert_eq!("4+2".parse(), Ok(Shape { data: 4, parity: 2 }));
        assert_eq!("1+0".parse(), Ok(Shape { data: 1, parity: 0 }));
        for wrong in ["", "4", "0+2", "4+2+1", "4-2", "300+1"] {
            assert_eq!(wrong.parse::<Shape>(), Err(QuantityError::NotAShape(wrong.to_owned())));
        }
    }
}
