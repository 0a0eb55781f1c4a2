//! Root credentials: given ones win, else stored ones, else new ones that are stored and shown once.
//!
//! They are stored on every disk of the deployment, readable by their owner alone, so that losing a disk does not lock
//! the operator out. Given credentials never overwrite stored ones: dropping the flag brings the old ones back.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::Credentials;

/// Name of the file in a disk's directory.
pub(super) const FILE_NAME: &str = "root-credentials";
const ACCESS_KEY_LEN: usize = 20;
const SECRET_KEY_LEN: usize = 40;
/// A stored file is tiny; anything longer is not ours.
const FILE_LEN_MAX: u64 = 4096;

/// Where the credentials come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// Flags, environment or configuration file.
    Given,
    Stored(PathBuf),
    Generated,
}

#[derive(Clone, Debug)]
pub(super) struct RootCredentials {
    pub credentials: Credentials,
    pub origin: Origin,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Stored {
    access_key: String,
    secret_key: String,
}

/// A path and what is wrong there.
pub(super) type Problem = (PathBuf, String);

/// Finds or makes the credentials. Nothing is written yet: the disks may still turn out not to be ours.
pub(super) fn resolve(given: Option<&Credentials>, disks: &[PathBuf]) -> Result<RootCredentials, Problem> {
    if let Some(given) = given {
        return Ok(RootCredentials { credentials: given.clone(), origin: Origin::Given });
    }
    let mut first_problem = None;
    for disk in disks {
        let path = disk.join(FILE_NAME);
        match load(&path) {
            Ok(Some(credentials)) => {
                return Ok(RootCredentials { credentials, origin: Origin::Stored(path) });
            }
            Ok(None) => {}
            // Another disk may have them.
            Err(reason) => first_problem = first_problem.or(Some((path, reason))),
        }
    }
    if let Some(problem) = first_problem {
        return Err(problem);
    }
    let generated = || -> Result<Credentials, getrandom::Error> {
        Ok(Credentials {
            access_key: random_text(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", ACCESS_KEY_LEN)?,
            secret_key: random_text(
                b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_",
                SECRET_KEY_LEN,
            )?,
        })
    };
    let credentials =
        generated().map_err(|error| (PathBuf::from(FILE_NAME), format!("no randomness: {error}")))?;
    Ok(RootCredentials { credentials, origin: Origin::Generated })
}

/// What is stored on the disk at `path`, for tools that have no word of their own.
pub fn stored(path: &Path) -> Option<Credentials> {
    load(&path.join(FILE_NAME)).ok().flatten()
}

impl RootCredentials {
    /// Stores generated credentials on every disk, and gives the path on the first. Stored ones are put on disks that
    /// lack them, as new ones do; given ones are left alone.
    pub(super) fn store(&self, disks: &[PathBuf]) -> Result<Option<PathBuf>, Problem> {
        if let Origin::Stored(_) = self.origin {
            for path in disks.iter().filter(|disk| disk.is_dir()).map(|disk| disk.join(FILE_NAME)) {
                if matches!(load(&path), Ok(None))
                    && let Err(error) = store(&path, &self.credentials)
                {
                    tracing::warn!(path = %path.display(), %error, "credentials not stored on this disk too");
                }
            }
        }
        if self.origin != Origin::Generated {
            return Ok(None);
        }
        for disk in disks {
            let path = disk.join(FILE_NAME);
            store(&path, &self.credentials).map_err(|error| (path.clone(), error.to_string()))?;
        }
        Ok(disks.first().map(|disk| disk.join(FILE_NAME)))
    }
}

fn load(path: &Path) -> Result<Option<Credentials>, String> {
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
        Ok(file) if file.len() > FILE_LEN_MAX => return Err("too long to be stored credentials".to_owned()),
        Ok(_) => {}
    }
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    // The error could quote the secret, so it is not shown.
    let stored: Stored = toml::from_str(&text)
        .map_err(|_| "does not hold access-key and secret-key; restore or remove it".to_owned())?;
    Ok(Some(Credentials { access_key: stored.access_key, secret_key: stored.secret_key }))
}

/// Writes beside, syncs, then renames: a crash leaves a whole file or none.
fn store(path: &Path, credentials: &Credentials) -> std::io::Result<()> {
    let stored =
        Stored { access_key: credentials.access_key.clone(), secret_key: credentials.secret_key.clone() };
    let text = toml::to_string(&stored).map_err(std::io::Error::other)?;
    let beside = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&beside, path)?;
    let directory = path.parent().expect("the path was joined to a directory");
    std::fs::File::open(directory)?.sync_all()
}

/// `alphabet` must have a power-of-two length up to 256, so that every character is equally likely.
fn random_text(alphabet: &[u8], len: usize) -> Result<String, getrandom::Error> {
    assert!(alphabet.len().is_power_of_two() && alphabet.len() <= 256, "no bias");
    let mut bytes = vec![0; len];
    getrandom::fill(&mut bytes)?;
    Ok(bytes.iter().map(|byte| char::from(alphabet[usize::from(*byte) % alphabet.len()])).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn disks(name: &str) -> Vec<PathBuf> {
        let root = std::env::temp_dir().join(format!("basalt-credentials-{name}-{}", std::process::id()));
        let disks = vec![root.join("a"), root.join("b")];
        for disk in &disks {
            std::fs::create_dir_all(disk).expect("a temporary directory");
        }
        disks
    }

    #[test]
    fn generated_credentials_come_back_even_without_the_first_disk() {
        let disks = disks("generated");
        let first = resolve(None, &disks).expect("generated");
        assert_eq!(first.origin, Origin::Generated);
        assert_eq!(first.credentials.access_key.len(), ACCESS_KEY_LEN);
        assert_eq!(first.credentials.secret_key.len(), SECRET_KEY_LEN);
        let path = first.store(&disks).expect("stored").expect("new");
        let mode = std::fs::metadata(&path).expect("exists").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::remove_file(&path).expect("ours");
        let again = resolve(None, &disks).expect("stored");
        assert_eq!(again.origin, Origin::Stored(disks[1].join(FILE_NAME)));
        assert_eq!(again.credentials, first.credentials);
        std::fs::remove_dir_all(disks[0].parent().expect("made above")).expect("ours");
    }

    #[test]
    fn given_credentials_win_and_change_nothing() {
        let disks = disks("given");
        let stored = resolve(None, &disks).expect("generated");
        stored.store(&disks).expect("stored");
        let given = Credentials { access_key: "mine".to_owned(), secret_key: "my own secret".to_owned() };
        let root = resolve(Some(&given), &disks).expect("given");
        assert_eq!((&root.credentials, &root.origin), (&given, &Origin::Given));
        assert_eq!(root.store(&disks).expect("nothing to do"), None);
        assert_eq!(resolve(None, &disks).expect("stored").credentials, stored.credentials);
        std::fs::remove_dir_all(disks[0].parent().expect("made above")).expect("ours");
    }

    #[test]
    fn a_damaged_file_is_refused_without_showing_it() {
        let disks = disks("damaged");
        std::fs::write(disks[0].join(FILE_NAME), "access-key = 'a'\nsecret = 'hush'\n").expect("writable");
        let (path, reason) = resolve(None, &disks).expect_err("damaged");
        assert_eq!(path, disks[0].join(FILE_NAME));
        assert!(!reason.contains("hush"), "{reason}");
        std::fs::remove_dir_all(disks[0].parent().expect("made above")).expect("ours");
    }
}
