//! The layers of the engine: a folder of `engine/src` imports only what stands below it in the listing.
//!
//! Promises: an import that points up, and a heavy dependency outside its one file, fail with file and line. Refuses
//! the forms that would hide an import from it: `use crate::{…}`, `use crate::*`, `super` out of a folder, `#[path]`.

use std::path::Path;

use pgcairn_tests::source;

/// What each folder may import, besides the loose files beside the folders, which all may import.
const LAYERS: [(&str, &[&str]); 6] = [
    (
        "actions",
        &["cluster", "dedup", "pack", "repository", "storage"],
    ),
    ("cluster", &[]),
    ("dedup", &["pack", "repository"]),
    ("pack", &["repository"]),
    ("repository", &["storage"]),
    ("storage", &[]),
];

/// The one file in which each heavy dependency is named.
const HOMES: [(&str, &str); 14] = [
    ("aws_config", "storage/s3/"),
    ("aws_sdk_s3", "storage/s3/"),
    ("aws_smithy_http_client", "storage/s3/"),
    ("bincode", "codec.rs"),
    ("blake3", "ids.rs"),
    ("crossbeam_channel", "actions/pipeline.rs"),
    ("fastcdc", "dedup/chunker.rs"),
    ("nix", "cluster/owner.rs"),
    ("postgres", "cluster/server.rs"),
    ("rayon", "actions/pipeline.rs"),
    ("rocksdb", "dedup/index.rs"),
    ("rustls", "storage/s3/bucket.rs"),
    ("tokio", "storage/s3/"),
    ("zstd", "pack/compress.rs"),
];

/// What only a program may do: speak to a terminal, read options.
const NOT_IN_THE_ENGINE: [&str; 6] = ["clap", "dbg", "eprint", "eprintln", "print", "println"];

/// Forms by which an import could escape the rules below.
const HIDDEN: [&str; 4] = ["crate::*", "crate::{", "super::super", "#[path"];

struct File {
    /// Path below `engine/src`.
    name: String,
    /// The production code; white space around `::` removed, lines kept.
    text: String,
}

impl File {
    /// The folder the file lies in; `None` for a loose file.
    fn layer(&self) -> Option<&str> {
        self.name.split_once('/').map(|(folder, _)| folder)
    }

    fn complain(&self, at: usize, what: &str) -> String {
        format!(
            "engine/src/{}:{}: {what}",
            self.name,
            source::line(&self.text, at)
        )
    }
}

fn engine() -> Vec<File> {
    let folder = source::root().join("engine/src");
    let below = |path: &Path| {
        path.strip_prefix(&folder)
            .expect("listed below it")
            .display()
            .to_string()
    };
    let read = |path: &Path| File {
        name: below(path),
        text: source::production_code(path, &source::read(path)),
    };
    source::rust_files(&folder)
        .iter()
        .map(|path| read(path))
        .collect()
}

/// The imports of a file that the table does not allow.
fn forbidden_imports(file: &File, loose: &[&str]) -> Vec<String> {
    let allowed = |target: &str| {
        let layer = file.layer();
        let below = LAYERS
            .iter()
            .find(|(folder, _)| Some(*folder) == layer)
            .map_or(&[][..], |(_, below)| *below);
        loose.contains(&target) || layer == Some(target) || below.contains(&target)
    };
    let mut complaints = Vec::new();
    for (at, marker) in file.text.match_indices("crate::") {
        let tail = &file.text[at + marker.len()..];
        let target: String = tail
            .chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect();
        let is_macro = tail[target.len()..].starts_with('!');
        // Without a name it is one of the hidden forms below.
        let named = !target.is_empty() && !is_macro;
        if named && file.name != "lib.rs" && !allowed(&target) {
            complaints.push(file.complain(at, &format!("may not import crate::{target}")));
        }
    }
    for form in HIDDEN {
        complaints.extend(
            file.text
                .match_indices(form)
                .map(|(at, _)| file.complain(at, &format!("hides imports: {form}"))),
        );
    }
    // Above a folder's mod.rs, and above a loose file, stands the crate's root.
    if file.layer().is_none() || file.name.split('/').skip(1).eq(["mod.rs"]) {
        complaints.extend(
            source::words(&file.text, "super")
                .map(|at| file.complain(at, "`super` leaves the folder")),
        );
    }
    complaints
}

/// The places where a crate is named: before `::`, or as what `use` or `extern crate` brings in.
fn crate_uses<'a>(text: &'a str, krate: &'a str) -> impl Iterator<Item = usize> + 'a {
    source::words(text, krate).filter(move |&at| {
        let before = text[..at].trim_end();
        let inner = before.ends_with("::")
            && before
                .trim_end_matches("::")
                .ends_with(|c: char| c.is_alphanumeric());
        let brought = ["use", "crate", "use ::"]
            .iter()
            .any(|word| before.ends_with(word));
        !inner && (text[at + krate.len()..].starts_with("::") || brought)
    })
}

/// The places where a module of the standard library is named, alone or in a group.
fn std_uses<'a>(text: &'a str, module: &'a str) -> impl Iterator<Item = usize> + 'a {
    source::words(text, module).filter(move |&at| {
        let before = &text[..at];
        let group = before
            .rfind("std::{")
            .is_some_and(|open| !before[open..].contains(';'));
        before.ends_with("std::") || group
    })
}

fn misplaced_dependencies(file: &File) -> Vec<String> {
    let mut complaints = Vec::new();
    for (krate, home) in HOMES
        .iter()
        .filter(|(_, home)| !file.name.starts_with(home))
    {
        let complain = |at| file.complain(at, &format!("only {home} may name {krate}"));
        complaints.extend(crate_uses(&file.text, krate).map(complain));
    }
    for name in NOT_IN_THE_ENGINE {
        let used = |at: &usize| file.text[at + name.len()..].starts_with(['!', ':']);
        complaints.extend(
            source::words(&file.text, name)
                .filter(used)
                .map(|at| file.complain(at, "no place for a terminal")),
        );
    }
    complaints.extend(
        std_uses(&file.text, "env")
            .map(|at| file.complain(at, "the environment is read by cli alone")),
    );
    if file.name != "actions/pipeline.rs" {
        let starts = |at: &usize| !file.text[*at..].starts_with("thread::sleep");
        let threads = std_uses(&file.text, "thread").filter(starts);
        complaints.extend(
            threads.map(|at| file.complain(at, "only actions/pipeline.rs may start threads")),
        );
    }
    complaints
}

fn assert_none(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn imports_point_down_the_listing() {
    let files = engine();
    let loose: Vec<&str> = files
        .iter()
        .filter_map(|file| file.name.strip_suffix(".rs"))
        .filter(|name| !name.contains('/'))
        .collect();
    assert_none(
        &files
            .iter()
            .flat_map(|file| forbidden_imports(file, &loose))
            .collect::<Vec<_>>(),
    );
}

#[test]
fn the_table_of_layers_points_down_the_listing_too() {
    for (layer, below) in LAYERS {
        assert!(
            below.iter().all(|folder| *folder > layer),
            "{layer} may import {below:?}"
        );
    }
}

#[test]
fn every_folder_of_the_engine_is_a_layer() {
    for file in engine() {
        let known = file
            .layer()
            .is_none_or(|layer| LAYERS.iter().any(|(folder, _)| *folder == layer));
        assert!(
            known,
            "engine/src/{} lies in no layer of the table",
            file.name
        );
    }
}

#[test]
fn each_heavy_dependency_is_named_in_one_file() {
    assert_none(
        &engine()
            .iter()
            .flat_map(misplaced_dependencies)
            .collect::<Vec<_>>(),
    );
}

#[test]
fn what_breaks_the_rules_is_found() {
    let complaints = |name: &str, text: &str| {
        let file = File {
            name: name.to_owned(),
            text: text.to_owned(),
        };
        forbidden_imports(&file, &["ids", "lib"]).len() + misplaced_dependencies(&file).len()
    };
    for (name, text) in [
        ("storage/local.rs", "use crate::pack::Pack;"),
        ("cluster/page.rs", "use crate::storage::Key;"),
        ("ids.rs", "use crate::storage::Key;"),
        ("pack/reader.rs", "use crate::{ids, dedup};"),
        ("pack/mod.rs", "use super::dedup;"),
        ("pack/reader.rs", "use super::super::dedup;"),
        ("pack/reader.rs", "use zstd;"),
        ("pack/reader.rs", "let x = zstd::decode();"),
        ("pack/reader.rs", "use ::zstd as z;"),
        ("pack/reader.rs", "std::thread::spawn(f)"),
        ("pack/reader.rs", "use std::{io,\n thread};"),
        ("pack/reader.rs", "std::env::var(a)"),
        ("pack/reader.rs", "println!()"),
    ] {
        assert_eq!(complaints(name, text), 1, "{name}: {text}");
    }
    for (name, text) in [
        (
            "storage/local.rs",
            "use crate::ids::PackId; use super::Key; std::thread::sleep(d); env!(); pub(crate) fn zstd() {}",
        ),
        (
            "actions/backup.rs",
            "use crate::storage::Key; use crate::actions::pipeline; use std::{io, fs}; thread.join()",
        ),
        (
            "pack/compress.rs",
            "use zstd::bulk; crate::pack::postgres::x",
        ),
    ] {
        assert_eq!(complaints(name, text), 0, "{name}: {text}");
    }
}
