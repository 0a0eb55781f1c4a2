//! CPU lists as the kernel writes them: `0-3,8`.

/// CPU numbers beyond this are a mistake; the kernel's own limit.
const CPUS_MAX: usize = 8_192;

/// The CPUs of a list, ascending, each once. The error is a sentence for the command line.
pub(crate) fn parse_list(text: &str) -> Result<Vec<usize>, String> {
    let refuse = || format!("{text:?} is not a list of CPUs such as 1 or 2-3,6");
    let mut cpus = Vec::new();
    for item in text.trim().split(',') {
        let (low, high) = item.split_once('-').unwrap_or((item, item));
        let low: usize = low.trim().parse().map_err(|_| refuse())?;
        let high: usize = high.trim().parse().map_err(|_| refuse())?;
        if low > high || high >= CPUS_MAX {
            return Err(refuse());
        }
        cpus.extend(low..=high);
        if cpus.len() > CPUS_MAX {
            return Err(refuse());
        }
    }
    cpus.sort_unstable();
    cpus.dedup();
    Ok(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        assert_eq!(parse_list("1"), Ok(vec![1]));
        assert_eq!(parse_list("2-3,6\n"), Ok(vec![2, 3, 6]));
        assert_eq!(parse_list("3,0-3"), Ok(vec![0, 1, 2, 3]));
        for text in ["", "x", "3-1", "1,", "0-8192", "-1"] {
            assert!(parse_list(text).is_err(), "{text}");
        }
    }
}
