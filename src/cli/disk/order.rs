//! `basalt disk remove`, `return`, `replace` and `add`.

use std::path::PathBuf;

use serde_json::Value;

use super::super::offline::Outcome;
use super::call::Server;
use crate::config::disks::expand;

/// Take a disk out; it stays out, also across restarts, until it is returned or replaced
///
/// Refused when too few disks would be left that hold all they should.
#[derive(clap::Args)]
pub(super) struct Remove {
    /// Its place, its path, or the beginning of its uuid, as `basalt disk list` shows them
    #[arg(value_name = "DISK")]
    disk: String,
    #[command(flatten)]
    server: Server,
}

/// Let a disk in again that was removed or failed: at once if it is there, or when it turns up
#[derive(clap::Args)]
pub(super) struct Return {
    /// Its place, its path, or the beginning of its uuid, as `basalt disk list` shows them
    #[arg(value_name = "DISK")]
    disk: String,
    #[command(flatten)]
    server: Server,
}

/// Give a disk's place to an empty directory, and rebuild it there; the disk is taken out first
///
/// The next start needs the new path in its list of disks, in place of the old one.
#[derive(clap::Args)]
pub(super) struct Replace {
    /// Its place, its path, or the beginning of its uuid, as `basalt disk list` shows them
    #[arg(value_name = "DISK")]
    disk: String,
    /// An empty directory, as the server sees it
    #[arg(value_name = "NEWPATH")]
    path: PathBuf,
    #[command(flatten)]
    server: Server,
}

/// Make empty directories a further set: as many as each set has disks
///
/// New data goes to all sets by what is free on them. The next start needs the new paths in its list of disks.
#[derive(clap::Args)]
pub(super) struct Add {
    /// Empty directories, as the server sees them; {1...4} expands
    #[arg(value_name = "NEWPATH", required = true)]
    paths: Vec<String>,
    #[command(flatten)]
    server: Server,
}

impl Remove {
    pub(super) fn run(self) -> Result<Outcome, String> {
        let (report, place) = find(&self.server, &self.disk)?;
        self.server.order(&report, "remove", &[("disk", &place)])?;
        println!("disk {place} is out, and stays out until it is returned or replaced");
        Ok(Outcome::Clean)
    }
}

impl Return {
    pub(super) fn run(self) -> Result<Outcome, String> {
        let (report, place) = find(&self.server, &self.disk)?;
        self.server.order(&report, "return", &[("disk", &place)])?;
        println!("disk {place} is welcome: `basalt disk list` shows how far it is rebuilt");
        Ok(Outcome::Clean)
    }
}

impl Replace {
    pub(super) fn run(self) -> Result<Outcome, String> {
        let (report, place) = find(&self.server, &self.disk)?;
        let path = std::path::absolute(&self.path).map_err(|error| error.to_string())?;
        let path = path.to_str().ok_or("the new path is not UTF-8")?;
        self.server.order(&report, "replace", &[("disk", &place), ("path", path)])?;
        println!(
            "{path} is disk {place} now, and is rebuilt; name it in the server's list of disks before the next start"
        );
        Ok(Outcome::Clean)
    }
}

impl Add {
    pub(super) fn run(self) -> Result<Outcome, String> {
        let report = self.server.list()?;
        let mut paths = Vec::new();
        for path in expand(&self.paths).map_err(|error| error.to_string())? {
            let path = std::path::absolute(path).map_err(|error| error.to_string())?;
            paths.push(path.into_os_string().into_string().map_err(|_| "a new path is not UTF-8")?);
        }
        if paths.iter().any(|path| path.contains('\n')) {
            return Err("a new path has a line break in it".to_owned());
        }
        self.server.order(&report, "add", &[("paths", &paths.join("\n"))])?;
        println!(
            "{} disks were added; name them in the server's list of disks before the next start",
            paths.len()
        );
        Ok(Outcome::Clean)
    }
}

/// What the server says, and the place of the disk that is meant.
fn find(server: &Server, name: &str) -> Result<(Value, String), String> {
    let report = server.list()?;
    let place = place_of(&report, name)?;
    Ok((report, place))
}

fn place_of(report: &Value, name: &str) -> Result<String, String> {
    let absolute = std::path::absolute(name).ok();
    let is_meant = |disk: &&Value| {
        let path = disk["path"].as_str();
        let uuid = disk["uuid"].as_str().unwrap_or_default();
        disk["disk"].as_u64().is_some_and(|place| place.to_string() == name)
            || path.is_some_and(|path| absolute.as_deref() == Some(std::path::Path::new(path)))
            || (name.len() >= 8 && uuid.starts_with(&name.to_ascii_lowercase()))
    };
    let meant: Vec<&Value> = report["disks"].as_array().into_iter().flatten().filter(is_meant).collect();
    match meant.as_slice() {
        [disk] => Ok(disk["disk"].to_string()),
        [] => Err(format!("{name} is no disk of this deployment; see `basalt disk list`")),
        _ => Err(format!("{name} may be one of several disks; give its place")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_disk_is_known_by_place_path_and_uuid() {
        let report = json!({ "disks": [
            { "disk": 0, "path": "/mnt/a", "uuid": "00112233445566778899aabbccddeeff" },
            { "disk": 1, "path": null, "uuid": "0011223344ffffffffffffffffffffff" },
        ] });
        for (name, wanted) in [("0", "0"), ("1", "1"), ("/mnt/a", "0"), ("0011223344FF", "1")] {
            assert_eq!(place_of(&report, name).as_deref(), Ok(wanted), "{name}");
        }
        for name in ["2", "/mnt/b", "00112233", "0011"] {
            assert!(place_of(&report, name).is_err(), "{name}");
        }
    }
}
