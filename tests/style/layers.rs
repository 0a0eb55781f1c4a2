//! The layer table: a lower layer never imports an upper one.
//!
//! From the top: `cli` and `server` wire everything; `service` decides what an operation does; `http` speaks the wire
//! and `router` finds the shard, and neither knows the other; `s3` is the protocol and does no I/O. Below the server
//! stand the engine, which knows no HTTP and no S3, and the reactor and the vector kernels, which know nobody.

use super::rules::{Finding, has_word};
use super::source::Source;

/// A part of the source tree and the names it may not reach for.
struct Layer {
    path: &'static str,
    /// Modules of the server's crate that stand above it or beside it.
    modules: &'static [&'static str],
    /// Crates, or paths in `std`, that belong to another layer.
    crates: &'static [&'static str],
}

const WEB_CRATES: &[&str] = &[
    "hyper",
    "hyper_util",
    "http",
    "http_body",
    "http_body_util",
    "quick_xml",
    "rustls",
    "tokio",
    "toml",
    "basalt",
];

const TABLE: &[Layer] = &[
    Layer {
        path: "src/s3",
        modules: &["cli", "server", "service", "http", "router", "config", "metrics", "logging"],
        crates: &[
            "basalt_reactor",
            "basalt_engine",
            "basalt_tuning",
            "basalt_bench",
            "hyper",
            "hyper_util",
            "http_body",
            "http_body_util",
            "tokio",
            "std::fs",
            "std::net",
            "std::io",
            "std::thread",
        ],
    },
    Layer {
        path: "src/http",
        modules: &["cli", "server", "service", "router"],
        crates: &["basalt_engine", "basalt_bench", "tokio"],
    },
    Layer {
        path: "src/router",
        modules: &["cli", "server", "service", "http"],
        crates: &["hyper", "hyper_util", "http_body", "quick_xml", "tokio"],
    },
    Layer {
        path: "src/service",
        modules: &["cli", "server"],
        crates: &["hyper", "hyper_util", "tokio", "basalt_bench"],
    },
    Layer {
        path: "src/metrics",
        modules: &["cli", "server", "service", "http", "router", "s3"],
        crates: &["hyper", "basalt_engine"],
    },
    Layer { path: "shards/engine/src", modules: &[], crates: WEB_CRATES },
    Layer {
        path: "shards/reactor/src",
        modules: &[],
        crates: &[
            "basalt",
            "basalt_engine",
            "basalt_bench",
            "basalt_tuning",
            "quick_xml",
            "rustls",
            "tokio",
            "toml",
        ],
    },
    Layer {
        path: "shards/md5/src",
        modules: &[],
        crates: &[
            "basalt",
            "basalt_engine",
            "basalt_reactor",
            "std::fs",
            "std::io",
            "std::net",
            "std::thread",
        ],
    },
    Layer { path: "tuning/src", modules: &[], crates: &["basalt", "basalt_engine", "hyper", "tokio"] },
    Layer { path: "bench/src", modules: &[], crates: &["basalt", "basalt_engine"] },
];

/// A crate's manifest and the dependencies it may not name.
const MANIFESTS: &[(&str, &[&str])] = &[
    (
        "shards/reactor/Cargo.toml",
        &["basalt", "basalt-engine", "basalt-bench", "basalt-tuning", "tokio", "quick-xml"],
    ),
    ("shards/md5/Cargo.toml", &["basalt", "basalt-engine", "basalt-reactor", "bytes", "tokio"]),
    (
        "shards/engine/Cargo.toml",
        &[
            "basalt",
            "basalt-bench",
            "basalt-tuning",
            "http",
            "hyper",
            "hyper-util",
            "tokio",
            "quick-xml",
            "rustls",
        ],
    ),
];

/// Paths and import trees in the shipped code that reach above their layer.
pub(crate) fn lower_layers_import_no_upper_one(source: &Source) -> Vec<Finding> {
    let Some(layer) = TABLE.iter().find(|layer| belongs(&source.path, layer.path)) else { return Vec::new() };
    let mut findings = Vec::new();
    for (index, line) in source.shipped_code().lines().enumerate() {
        for module in layer.modules {
            if reaches_module(line, module) {
                findings.push(Finding::new(
                    source,
                    index + 1,
                    format!("{} does not import crate::{module}", layer.path),
                ));
            }
        }
        for name in layer.crates {
            if reaches_crate(line, name) {
                findings.push(Finding::new(
                    source,
                    index + 1,
                    format!("{} does not import {name}", layer.path),
                ));
            }
        }
    }
    findings
}

/// `src/s3` holds `src/s3.rs` and everything below `src/s3/`.
fn belongs(path: &str, layer: &str) -> bool {
    path.strip_prefix(layer).is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
}

/// `crate::module`, alone or first in a brace list on one line.
fn reaches_module(line: &str, module: &str) -> bool {
    if has_word(line, &format!("crate::{module}")) {
        return true;
    }
    let Some((_, list)) = line.split_once("crate::{") else { return false };
    list.split(',').any(|item| {
        item.trim().split("::").next().is_some_and(|first| first.trim_end_matches(['}', ';']) == module)
    })
}

/// A path that starts at the crate, not a module or a field of the same name.
fn reaches_crate(line: &str, name: &str) -> bool {
    let path = format!("{name}::");
    line.match_indices(&path).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_')
            && (!line[..at].ends_with("::") || line[..at].trim() == "use ::")
    }) || line.trim_start().strip_prefix("use ").is_some_and(|rest| rest.trim_end_matches(';') == name)
}

/// Dependencies that a manifest may not have, in any of its sections.
pub(crate) fn manifest_names_no_upper_layer(path: &str, manifest: &str) -> Vec<String> {
    let Some((_, refused)) = MANIFESTS.iter().find(|(name, _)| *name == path) else { return Vec::new() };
    let mut section = "";
    let mut found = Vec::new();
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            section = line;
        } else if section == "[dependencies]" {
            let name = line.split(['=', '.', ' ']).next().unwrap_or_default();
            if refused.contains(&name) {
                found.push(format!("{path}: depends on {name}"));
            }
        }
    }
    found
}

/// The manifests that the table speaks of.
pub(crate) fn manifest_paths() -> impl Iterator<Item = &'static str> {
    MANIFESTS.iter().map(|(path, _)| *path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(path: &str, text: &str) -> Vec<usize> {
        lower_layers_import_no_upper_one(&Source::new(path, text))
            .into_iter()
            .map(|finding| finding.line)
            .collect()
    }

    #[test]
    fn upward_imports_are_found() {
        assert_eq!(lines("src/s3/xml.rs", "use crate::service::put;\nuse crate::s3::error;\n"), [1]);
        assert_eq!(lines("src/s3.rs", "use crate::{s3::error, http::Body};\n"), [1]);
        assert_eq!(
            lines(
                "src/s3/xml.rs",
                "fn a(b: hyper::Body) {}\nuse basalt_reactor::Disk;\nuse std::net::TcpStream;\n"
            ),
            [1, 2, 3]
        );
        assert_eq!(lines("src/http/conn.rs", "use crate::router::Router;\n"), [1]);
        assert_eq!(lines("src/router.rs", "use crate::http::Response;\n"), [1]);
        assert_eq!(lines("shards/engine/src/log.rs", "use http::Method;\nuse super::http::X;\n"), [1]);
        assert_eq!(lines("shards/reactor/src/ring.rs", "use basalt_engine::log;\n"), [1]);
    }

    #[test]
    fn downward_imports_and_tests_are_fine() {
        assert_eq!(
            lines(
                "src/service/put.rs",
                "use crate::router::Router;\nuse crate::s3::error;\nuse basalt_engine::x;\n"
            ),
            []
        );
        assert_eq!(lines("src/s3/etag.rs", "use http::HeaderMap;\nlet m = self.hyper;\n"), []);
        assert_eq!(lines("src/s3/a.rs", "//! A.\n#[cfg(test)]\nmod tests {\nuse std::fs::File;\n}\n"), []);
    }

    #[test]
    fn a_manifest_that_reaches_up_is_found() {
        let bad = "[dependencies]\nhyper.workspace = true\nbytes.workspace = true\n[dev-dependencies]\ntokio = \"1\"\n";
        assert_eq!(manifest_names_no_upper_layer("shards/engine/Cargo.toml", bad).len(), 1);
        assert!(manifest_names_no_upper_layer("bench/Cargo.toml", bad).is_empty());
    }
}
