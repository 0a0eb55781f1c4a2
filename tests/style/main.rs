//! The mechanical rules of this codebase, held by a test so that nobody has to remember them.
//!
//! Each rule prints every finding with its file and line.

mod layers;
mod metrics;
mod promises;
mod rules;
mod source;

use std::fs;
use std::path::{Path, PathBuf};

use rules::Finding;
use source::Source;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs one rule over every source file and fails with all its findings.
#[track_caller]
fn hold(rule: fn(&Source) -> Vec<Finding>) {
    let sources = source::load(root());
    assert!(sources.len() > 50, "the walk found only {} files", sources.len());
    let findings: Vec<Finding> = sources.iter().flat_map(rule).collect();
    let listing: String = findings.iter().map(|f| format!("\n  {}:{}: {}", f.path, f.line, f.what)).collect();
    assert!(findings.is_empty(), "{listing}");
}

#[test]
fn modules_open_with_what_they_are() {
    hold(rules::opens_with_module_doc);
}

#[test]
fn modules_have_names_of_their_own() {
    hold(rules::names_mean_something);
}

#[test]
fn files_are_short() {
    hold(rules::files_are_short);
}

#[test]
fn nothing_is_unfinished() {
    hold(rules::nothing_is_unfinished);
}

#[test]
fn lints_are_expected_with_reason() {
    hold(rules::lints_are_expected_with_reason);
}

#[test]
fn unsafe_stays_at_home_and_says_why() {
    hold(rules::unsafe_stays_at_home);
}

#[test]
fn the_engine_is_repeatable_from_a_seed() {
    hold(rules::engine_is_repeatable);
}

#[test]
fn metrics_are_named_in_one_file() {
    hold(rules::metrics_are_named_once);
}

#[test]
fn every_metric_is_set_somewhere() {
    assert_eq!(metrics::never_set(&source::load(root())), Vec::<String>::new());
}

#[test]
fn lower_layers_import_no_upper_one() {
    hold(layers::lower_layers_import_no_upper_one);
    let mut found = Vec::new();
    for path in layers::manifest_paths() {
        let manifest = fs::read_to_string(root().join(path)).expect("the manifest exists");
        found.extend(layers::manifest_names_no_upper_layer(path, &manifest));
    }
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn promises_name_their_tests() {
    let semantics =
        fs::read_to_string(root().join("docs/SEMANTICS.md")).expect("the promises are written down");
    let broken =
        promises::broken_promises(&semantics, &source::load(root()), &python_tests(&root().join("tests")));
    assert!(broken.is_empty(), "{broken:#?}");
}

/// Every Python file below `folder`, as its path from the root and its text.
fn python_tests(folder: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::from(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "py") {
                let relative = path.strip_prefix(root()).expect("the walk stays below the root");
                let text = fs::read_to_string(&path).expect("a test file is readable UTF-8");
                found.push((relative.to_string_lossy().into_owned(), text));
            }
        }
    }
    found
}
