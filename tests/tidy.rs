//! The tidiness of the whole project, as far as a program can see it.
//!
//! Promises: each complaint names its file. Refuses: taste; what is judged here is only what a person should not have
//! to remember.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use pgcairn_tests::source;

/// What may stand at the top, besides files whose name begins with a dot.
const TOP: [&str; 9] = [
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "benches",
    "cli",
    "engine",
    "index-tools",
    "tests",
];

/// The most lines a file may have, its tests not counted. Split by meaning long before.
const LONGEST_FILE: usize = 600;

/// Marks of unfinished work, written so that this file does not find itself.
const UNFINISHED: [&str; 4] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("X", "XX"),
    concat!("ig", "nore"),
];

fn assert_none(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn every_file_opens_with_what_it_promises() {
    let opens = |path: &Path| source::read(path).starts_with("//! ");
    let files = source::rust_files(&source::root());
    let silent = files
        .iter()
        .filter(|path| !opens(path))
        .map(|path| format!("{} does not open with `//!`", source::name(path)));
    assert_none(&silent.collect::<Vec<_>>());
}

#[test]
fn nothing_is_left_unfinished() {
    let mut complaints = Vec::new();
    for path in source::rust_files(&source::root()) {
        let text = source::read(&path);
        for mark in UNFINISHED {
            // The last one is an attribute, not a word.
            let counts = |at: &usize| mark != UNFINISHED[3] || text[..*at].ends_with("#[");
            let places = source::words(&text, mark).filter(counts);
            complaints.extend(places.map(|at| {
                format!(
                    "{}:{}: {mark}",
                    source::name(&path),
                    source::line(&text, at)
                )
            }));
        }
    }
    assert_none(&complaints);
}

#[test]
fn no_file_is_too_long_to_read() {
    for path in source::rust_files(&source::root()) {
        let lines = source::production_lines(&path, &source::read(&path));
        assert!(
            lines <= LONGEST_FILE,
            "{} has {lines} lines without its tests",
            source::name(&path)
        );
    }
}

/// The packages of the workspace, as its manifest lists them.
fn members() -> Vec<String> {
    let manifest = source::read(&source::root().join("Cargo.toml"));
    let (_, list) = manifest
        .split_once("members = [")
        .expect("the workspace lists its members");
    let (list, _) = list.split_once(']').expect("the list of members ends");
    list.split(',')
        .map(|member| member.trim().trim_matches('"').to_owned())
        .filter(|member| !member.is_empty())
        .collect()
}

#[test]
fn every_package_has_the_lints_of_the_workspace() {
    for member in members() {
        let manifest = source::read(&source::root().join(&member).join("Cargo.toml"));
        let inherits = manifest.contains("[lints]\nworkspace = true\n")
            || manifest.contains("lints.workspace = true\n");
        assert!(
            inherits,
            "{member}/Cargo.toml does not inherit the lint table"
        );
    }
}

#[test]
fn the_top_level_holds_what_belongs_there() {
    let entries = fs::read_dir(source::root()).expect("the workspace can be listed");
    let names = entries.map(|entry| {
        entry
            .expect("an entry")
            .file_name()
            .into_string()
            .expect("names are UTF-8")
    });
    // Build output is not part of the project.
    let names: BTreeSet<String> = names
        .filter(|name| !name.starts_with('.') && name != "target")
        .collect();
    assert_eq!(names, TOP.map(str::to_owned).into());
}

/// The words of a document that look like files or folders of the project: `name.rs`, `folder/` and the like.
fn named_files(document: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut fenced = false;
    for line in document.lines() {
        if line.starts_with("```") {
            fenced = !fenced;
        }
        let quoted = line.split('`').skip(1).step_by(2);
        let first = line.split_whitespace().take(1).filter(|_| fenced);
        for word in quoted
            .chain(first)
            .filter(|word| !word.starts_with(['/', '-', '.', '$', '<']))
        {
            let plain = word
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._-/".contains(&b));
            let file = [".rs", ".md", ".sh", ".toml"]
                .iter()
                .any(|ending| word.ends_with(ending));
            if plain && (file || (fenced && word.ends_with('/'))) {
                names.insert(word.trim_end_matches('/').to_owned());
            }
        }
    }
    names
}

#[test]
fn documents_name_only_files_that_exist() {
    let root = source::root();
    let mut known = BTreeSet::new();
    for file in source::files(&root) {
        let name = file.strip_prefix(&root).expect("listed below it");
        known.extend(name.ancestors().map(|path| format!("/{}", path.display())));
    }
    let exists = |name: &str| known.iter().any(|path| path.ends_with(&format!("/{name}")));
    let is_document =
        |path: &&std::path::PathBuf| path.extension().is_some_and(|extension| extension == "md");
    for document in source::files(&root).iter().filter(is_document) {
        for name in named_files(&source::read(document)) {
            assert!(
                exists(&name),
                "{} names {name}, which does not exist",
                source::name(document)
            );
        }
    }
}

/// The places where a document says that a function lies in a file: "`name` in `file.rs`".
fn named_functions(document: &str) -> Vec<(String, String)> {
    let text: Vec<&str> = document.split_whitespace().collect();
    let text = text.join(" ");
    let pieces: Vec<&str> = text.split('`').collect();
    let is_name = |name: &str| {
        name.bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_:".contains(&b))
    };
    let quoted = pieces.iter().enumerate().skip(1).step_by(2);
    let in_file = quoted.filter_map(|(at, name)| {
        let file = pieces.get(at + 2)?;
        let is_rust = Path::new(file)
            .extension()
            .is_some_and(|ending| ending == "rs");
        let named = pieces[at + 1] == " in " && is_rust && is_name(name);
        named.then(|| ((*name).to_owned(), (*file).to_owned()))
    });
    in_file.collect()
}

#[test]
fn documents_find_functions_where_they_say() {
    let sources = source::rust_files(&source::root());
    let is_document =
        |path: &&std::path::PathBuf| path.extension().is_some_and(|extension| extension == "md");
    let mut found = 0;
    for document in source::files(&source::root()).iter().filter(is_document) {
        for (name, file) in named_functions(&source::read(document)) {
            let function = name.rsplit("::").next().unwrap_or(&name).to_owned();
            let has = |path: &&std::path::PathBuf| {
                let code = source::code(&source::read(path));
                source::name(path).ends_with(&file)
                    && source::words(&code, &function).any(|at| code[..at].ends_with("fn "))
            };
            assert!(
                sources.iter().any(|path| has(&path)),
                "{} says that {name} is in {file}, which it is not",
                source::name(document)
            );
            found += 1;
        }
    }
    assert!(found > 10, "the documents name functions: {found}");
}

/// The modules that a file declares.
fn declared(list: &Path) -> BTreeSet<String> {
    let text = source::code(&source::read(list));
    let modules = text
        .lines()
        .filter_map(|line| line.trim().trim_start_matches("pub ").strip_prefix("mod "));
    modules
        .filter_map(|module| module.strip_suffix(';'))
        .map(str::to_owned)
        .collect()
}

fn modules_beside(list: &Path) -> BTreeSet<String> {
    let folder = list.parent().expect("a file lies in a folder");
    let beside = source::rust_files(folder)
        .into_iter()
        .filter(|path| path.parent() == Some(folder) && path != list);
    beside
        .filter_map(|path| {
            path.file_stem()
                .map(|stem| stem.to_string_lossy().into_owned())
        })
        .collect()
}

#[test]
fn every_test_file_is_run() {
    for list in ["tests/suite.rs", "tests/support/lib.rs"] {
        let list = source::root().join(list);
        assert_eq!(
            declared(&list),
            modules_beside(&list),
            "{} does not list what lies beside it",
            source::name(&list)
        );
    }
}

#[test]
fn scripts_can_be_run() {
    let mut scripts = source::files(&source::root());
    scripts.extend(source::files(&source::root().join(".ci")));
    scripts.retain(|path| fs::read(path).is_ok_and(|bytes| bytes.starts_with(b"#!/")));
    assert!(
        scripts.len() >= 4,
        "the set-up, test, check and quickstart scripts are among {scripts:?}"
    );
    for script in scripts {
        let mode = fs::metadata(&script)
            .expect("a script that was read has a mode")
            .permissions()
            .mode();
        assert!(
            mode & 0o111 == 0o111,
            "{} is not executable",
            source::name(&script)
        );
    }
}
