//! `basalt durability`: how likely a layout is to lose data, by a formula that is printed with the answer.
//!
//! A calculator, not a promise: the model knows independent disk failures alone. No fire, no firmware that fails all disks
//! of one batch at once, no operator who removes the wrong one.

mod chain;

use std::process::ExitCode;

use basalt_engine::deployment::{default_parity, set_width};
use basalt_engine::format::superblock::SET_WIDTH_MAX;
use serde_json::json;

use self::chain::{Chain, HOURS_PER_YEAR, failure_rate, unreadable};
use crate::config::Shape;
use crate::config::quantity::Size;
use crate::server::Exit;

/// Most disks that are calculated with.
const DISK_COUNT_MAX: u32 = 1_000_000;

/// Expected durability of a layout: mean time to data loss, annual probability of loss, nines; with the formula
#[derive(clap::Args)]
pub(super) struct Durability {
    /// Number of disks
    #[arg(long, value_name = "N")]
    disks: u32,
    /// Data and parity columns of an erasure set; several sets when there are more disks [default: as the server chooses]
    #[arg(long, value_name = "K+M")]
    erasure: Option<Shape>,
    /// Percentage of disks that fail within a year
    #[arg(long, value_name = "PERCENT", default_value_t = 1.0)]
    afr: f64,
    /// Hours until a failed disk is replaced and rebuilt
    #[arg(long, value_name = "H", default_value_t = 24.0)]
    rebuild_hours: f64,
    /// Bytes on a disk; with it sectors that cannot be read during the last possible rebuild are counted too
    #[arg(long, value_name = "SIZE")]
    disk_size: Option<Size>,
    /// Bits read per sector that cannot be read, as the drive's data sheet says; goes with --disk-size
    #[arg(long, value_name = "BITS", default_value_t = 1e15)]
    bits_per_error: f64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A layout that can be calculated with, and what it comes to.
#[derive(Debug)]
struct Answer {
    chain: Chain,
    sets: u32,
    mttdl_hours: f64,
    loss_per_year: f64,
    nines: f64,
}

impl Durability {
    pub(super) fn run(self) -> ExitCode {
        match self.answer() {
            Ok(answer) => {
                print!("{}", if self.json { answer.json() } else { answer.text(&self) });
                Exit::Ok.into()
            }
            Err(reason) => {
                eprintln!("basalt durability: {reason}");
                Exit::Usage.into()
            }
        }
    }

    fn answer(&self) -> Result<Answer, String> {
        if self.disks == 0 || self.disks > DISK_COUNT_MAX {
            return Err(format!("{} disks; 1 to {DISK_COUNT_MAX} can be calculated with", self.disks));
        }
        if !(self.afr > 0.0 && self.afr < 100.0) {
            return Err(format!("--afr {}; it is a percentage above 0 and below 100", self.afr));
        }
        if !(self.rebuild_hours > 0.0 && self.rebuild_hours.is_finite()) {
            return Err(format!("--rebuild-hours {}; it is a time above 0", self.rebuild_hours));
        }
        if !(self.bits_per_error >= 1.0 && self.bits_per_error.is_finite()) {
            return Err(format!("--bits-per-error {}; it is at least 1", self.bits_per_error));
        }
        let (data, parity) = self.shape()?;
        let disks = data + parity;
        if disks > SET_WIDTH_MAX as u32 {
            return Err(format!("an erasure set has at most {SET_WIDTH_MAX} disks, not {disks}"));
        }
        if !self.disks.is_multiple_of(disks) {
            return Err(format!("{} disks are not whole sets of {data}+{parity}", self.disks));
        }
        let unreadable = match self.disk_size {
            // Without redundancy there is no rebuild that a sector could spoil.
            Some(Size(len)) if parity > 0 => unreadable(f64::from(data) * len as f64, self.bits_per_error),
            _ => 0.0,
        };
        let chain = Chain {
            disks,
            parity,
            failure_rate: failure_rate(self.afr / 100.0),
            rebuild_rate: 1.0 / self.rebuild_hours,
            unreadable,
        };
        let sets = self.disks / disks;
        let loss_per_year = chain.loss_per_year(sets);
        let mttdl_hours = chain.hours_to_loss() / f64::from(sets);
        Ok(Answer { chain, sets, mttdl_hours, loss_per_year, nines: -loss_per_year.log10() })
    }

    fn shape(&self) -> Result<(u32, u32), String> {
        if let Some(shape) = self.erasure {
            return Ok((shape.data.into(), shape.parity.into()));
        }
        let width = set_width(self.disks as usize)?;
        let parity = default_parity(width).ok_or_else(|| format!("no set has {width} disks"))?;
        Ok((u32::try_from(width).expect("at most 20") - u32::from(parity), parity.into()))
    }
}

impl Answer {
    fn data(&self) -> u32 {
        self.chain.disks - self.chain.parity
    }

    fn years(&self) -> f64 {
        self.mttdl_hours / HOURS_PER_YEAR
    }

    fn text(&self, asked: &Durability) -> String {
        let Chain { disks, parity, failure_rate, rebuild_rate, unreadable } = self.chain;
        let mut out = format!(
            "layout                 {} set{} of {}+{parity}; each survives {parity} failed disk{}\n\
             mean time to data loss {} years\n\
             loss within a year     {:.3e}\n\
             expected nines         {:.1}  ({})\n\n",
            self.sets,
            if self.sets == 1 { "" } else { "s" },
            self.data(),
            if parity == 1 { "" } else { "s" },
            readable(self.years()),
            self.loss_per_year,
            self.nines,
            percentage(self.nines),
        );
        out.push_str(&format!(
            "n = {disks} disks of a set, m = {parity} may fail, s = {} sets\n\
             λ = −ln(1 − AFR) / {HOURS_PER_YEAR} h = {failure_rate:.4e} /h    (AFR {} %)\n\
             μ = 1 / rebuild time = {rebuild_rate:.4e} /h    (one disk at a time, {} h)\n",
            self.sets, asked.afr, asked.rebuild_hours,
        ));
        if unreadable > 0.0 {
            out.push_str(&format!(
                "h = 1 − exp(−bits of {} disks / {:e}) = {unreadable:.3e}    (a sector cannot be read in the last possible rebuild)\n\
                 T(i) = (1 + μ T(i−1)) / ((n−i) λ), T(0) = 1 / (n λ), but T(m) = (1 + μ T(m−1)) / ((n−m) λ + μ h)\n\
                 MTTDL = (T(0) + … + T(m−1) + (1−h) T(m)) / s\n",
                self.data(),
                asked.bits_per_error,
            ));
        } else {
            out.push_str(
                "T(i) = (1 + μ T(i−1)) / ((n−i) λ), T(0) = 1 / (n λ)    (mean time from i failed disks to i+1)\n\
                 MTTDL = (T(0) + … + T(m)) / s\n",
            );
        }
        out.push_str(
            "loss within a year = 1 − exp(−1 year / MTTDL), nines = −log10 of it\n\n\
             The birth-death chain of Patterson, Gibson and Katz, SIGMOD 1988, for any m (Angus, IEEE Trans. Reliability 37(3),\n\
             1988); unreadable sectors as in Rao, Hafner and Golding, DSN 2006. Disks fail independently and at a constant rate:\n\
             fires, firmware and hands that fail many disks at once are not in it, and real deployments lose data to those.\n",
        );
        out
    }

    fn json(&self) -> String {
        let value = json!({
            "sets": self.sets,
            "data": self.data(),
            "parity": self.chain.parity,
            "failure_rate_per_hour": self.chain.failure_rate,
            "rebuild_rate_per_hour": self.chain.rebuild_rate,
            "unreadable_probability": self.chain.unreadable,
            "mttdl_hours": self.mttdl_hours,
            "loss_per_year": self.loss_per_year,
            "nines": self.nines,
        });
        format!("{value:#}\n")
    }
}

/// Years, in digits while those are readable.
fn readable(years: f64) -> String {
    if years < 10.0 {
        format!("{years:.2}")
    } else if years < 1e6 {
        format!("{years:.0}")
    } else {
        format!("{years:.2e}")
    }
}

/// Durability as it is advertised: 99.9… % with as many nines as are whole.
fn percentage(nines: f64) -> String {
    let whole = nines.floor().clamp(0.0, 30.0) as usize;
    match whole {
        0 => "less than 90 %".to_owned(),
        1 => "at least 90 %".to_owned(),
        2 => "at least 99 %".to_owned(),
        more => format!("at least 99.{} %", "9".repeat(more - 2)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(disks: u32, erasure: Option<(u8, u8)>) -> Durability {
        let erasure = erasure.map(|(data, parity)| Shape { data, parity });
        Durability {
            disks,
            erasure,
            afr: 1.0,
            rebuild_hours: 24.0,
            disk_size: None,
            bits_per_error: 1e15,
            json: false,
        }
    }

    #[test]
    fn a_mirror_is_as_by_hand() {
        // λ = 1.147298·10⁻⁶, μ = 1/24: (3 λ + μ) / (2 λ²) hours.
        let answer = asked(2, None).answer().expect("a layout");
        assert!((answer.mttdl_hours / 1.582_857e10 - 1.0).abs() < 1e-6, "{answer:?}");
        assert!((answer.loss_per_year / 5.534_295e-7 - 1.0).abs() < 1e-6, "{answer:?}");
        assert_eq!(percentage(answer.nines), "at least 99.9999 %");
    }

    #[test]
    fn layouts_are_the_servers_and_several_sets_are_weaker_than_one() {
        let one = asked(6, None).answer().expect("4+2");
        assert_eq!((one.data(), one.chain.parity, one.sets), (4, 2, 1));
        let ten = asked(60, Some((4, 2))).answer().expect("ten sets of 4+2");
        assert_eq!(ten.sets, 10);
        assert!((ten.loss_per_year / one.loss_per_year - 10.0).abs() < 1e-3);
        let read = Durability { disk_size: Some(Size(16_000_000_000_000)), ..asked(6, None) };
        assert!(read.answer().expect("as before").nines < one.nines);
        assert!(one.text(&asked(6, None)).contains("MTTDL ="), "the formula is said");
        let json: serde_json::Value = serde_json::from_str(&one.json()).expect("it is JSON");
        assert_eq!(json["parity"], 2);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for wrong in [
            asked(0, None),
            asked(23, None),
            asked(7, Some((4, 2))),
            asked(24, Some((20, 4))),
            Durability { afr: 0.0, ..asked(4, None) },
            Durability { afr: f64::NAN, ..asked(4, None) },
            Durability { rebuild_hours: 0.0, ..asked(4, None) },
            Durability { bits_per_error: 0.0, ..asked(4, None) },
        ] {
            assert!(wrong.answer().is_err());
        }
    }
}
