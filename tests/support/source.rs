//! The project's own source text, for tests about its shape.
//!
//! Promises: [`code`] keeps every line break, so that positions in it are positions in the file. Refuses: to understand
//! Rust beyond comments, literals and brackets; the tests that use it forbid what would fool it.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::{fs, iter};

/// The folder that holds the workspace.
pub fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests
        .parent()
        .expect("the package's folder lies in the workspace")
        .to_path_buf()
}

/// All files below a folder, sorted; build output and folders whose name begins with a dot are left out.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).unwrap_or_else(|e| unreadable(&folder, &e));
        for entry in entries.map(|entry| entry.expect("a folder of the project can be listed")) {
            let name = entry
                .file_name()
                .into_string()
                .expect("names in the project are UTF-8");
            let kind = entry.file_type().expect("a file of the project has a type");
            if !kind.is_dir() {
                found.push(entry.path());
            } else if name != "target" && !name.starts_with('.') {
                folders.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

/// All Rust files below a folder, sorted.
pub fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let is_rust = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "rs");
    files(folder).into_iter().filter(is_rust).collect()
}

/// The text of a file.
pub fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| unreadable(path, &e))
}

fn unreadable<T>(path: &Path, error: &std::io::Error) -> T {
    panic!("{}: {error}", path.display())
}

/// The path of a file below the workspace's folder, with `/` between its components.
pub fn name(path: &Path) -> String {
    path.strip_prefix(root())
        .unwrap_or(path)
        .display()
        .to_string()
}

/// The number of the line in which a byte offset lies, from 1.
pub fn line(text: &str, offset: usize) -> usize {
    text.bytes()
        .take(offset)
        .filter(|&byte| byte == b'\n')
        .count()
        + 1
}

/// Rust source with all comments, and the insides of all literals, turned into spaces; same length, same lines.
pub fn code(source: &str) -> String {
    let bytes = source.as_bytes();
    let mut out = String::with_capacity(source.len());
    let mut at = 0;
    while at < bytes.len() {
        let (end, kept) = token(source, at);
        let text = &source[at..end];
        if kept {
            out.push_str(text);
        } else {
            out.extend(
                text.bytes()
                    .map(|byte| if byte == b'\n' { '\n' } else { ' ' }),
            );
        }
        at = end;
    }
    out
}

/// The end of what begins at `at`, and whether it is code (and not a comment or a literal).
fn token(source: &str, at: usize) -> (usize, bool) {
    let rest = &source[at..];
    if rest.starts_with("//") {
        return (at + rest.find('\n').unwrap_or(rest.len()), false);
    }
    if rest.starts_with("/*") {
        return (at + block_comment(rest), false);
    }
    if let Some(length) = raw_string(rest) {
        return (at + length, false);
    }
    match rest.as_bytes().first() {
        Some(b'"') => (at + quoted(rest, b'"'), false),
        Some(b'\'') => match char_literal(rest) {
            Some(length) => (at + length, false),
            None => (at + 1, true),
        },
        // A whole word at once, so that the `r` of `for"` is not taken for the start of a raw string.
        Some(byte) if byte.is_ascii_alphanumeric() || *byte == b'_' => {
            let word = rest
                .bytes()
                .take_while(|b| b.is_ascii_alphanumeric() || *b == b'_')
                .count();
            (at + word, true)
        }
        _ => (at + rest.chars().next().map_or(1, char::len_utf8), true),
    }
}

fn block_comment(rest: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < rest.len() {
        if rest.as_bytes()[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest.as_bytes()[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

fn raw_string(rest: &str) -> Option<usize> {
    let prefix = ["r", "br", "cr"].into_iter().find(|prefix| {
        rest.strip_prefix(prefix)
            .is_some_and(|tail| tail.trim_start_matches('#').starts_with('"'))
    })?;
    let hashes = rest[prefix.len()..]
        .bytes()
        .take_while(|&byte| byte == b'#')
        .count();
    let open = prefix.len() + hashes + 1;
    let close: String = iter::once('"').chain(iter::repeat_n('#', hashes)).collect();
    Some(
        rest[open..]
            .find(&close)
            .map_or(rest.len(), |length| open + length + close.len()),
    )
}

fn quoted(rest: &str, quote: u8) -> usize {
    let mut escaped = false;
    for (at, byte) in rest.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            _ if byte == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// The length of a character literal; `None` for a lifetime or a label.
fn char_literal(rest: &str) -> Option<usize> {
    let mut inside = rest.chars().skip(1);
    let first = inside.next()?;
    if first == '\\' {
        return Some(quoted(rest, b'\''));
    }
    (inside.next()? == '\'').then(|| 2 + first.len_utf8())
}

/// [`code`] without the items that are compiled for tests alone: those may use what they like.
pub fn production_code(path: &Path, source: &str) -> String {
    let mut text = code(source);
    for item in test_items(path, &text) {
        let blank = text[item.clone()].replace(|c| c != '\n', " ");
        text.replace_range(item, &blank);
    }
    text
}

/// A Rust file without the items that are compiled for tests alone, comments and literals kept.
pub fn without_tests(path: &Path, source: &str) -> String {
    let mut kept = String::with_capacity(source.len());
    let mut from = 0;
    for item in test_items(path, &code(source)) {
        kept.push_str(&source[from..item.start]);
        from = item.end;
    }
    kept.push_str(&source[from..]);
    kept
}

/// How many lines a file has without the items that are compiled for tests alone.
pub fn production_lines(path: &Path, source: &str) -> usize {
    let text = code(source);
    let tests = test_items(path, &text)
        .into_iter()
        .map(|item| text[item].lines().count());
    text.lines().count() - tests.sum::<usize>()
}

/// Where the items compiled for tests alone stand in a text of [`code`]; a file named `tests.rs` is one such item.
fn test_items(path: &Path, text: &str) -> Vec<Range<usize>> {
    if path.file_name().is_some_and(|name| name == "tests.rs") {
        return iter::once(0..text.len()).collect();
    }
    let mut items: Vec<Range<usize>> = Vec::new();
    for (start, _) in text.match_indices("#[cfg(test)]") {
        if items.last().is_none_or(|item| item.end <= start) {
            items.push(start..item_end(text, start));
        }
    }
    items
}

/// The end of the item at `start`: its closing bracket, or its semicolon if that comes first.
fn item_end(text: &str, start: usize) -> usize {
    let mut depth = 0_usize;
    for (at, byte) in text.bytes().enumerate().skip(start + "#[cfg(test)]".len()) {
        match byte {
            b';' if depth == 0 => return at + 1,
            b'{' => depth += 1,
            b'}' if depth <= 1 => return at + 1,
            b'}' => depth -= 1,
            _ => {}
        }
    }
    text.len()
}

/// Each place where an identifier stands as a whole word.
pub fn words<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let inside = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_');
    text.match_indices(word)
        .map(|(at, _)| at)
        .filter(move |&at| {
            let before = at
                .checked_sub(1)
                .and_then(|before| text.as_bytes().get(before));
            !inside(before) && !inside(text.as_bytes().get(at + word.len()))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_no_code_and_lines_stay() {
        let source = "a /* b /* c */ d\n */ e // f\n\"g\\\"h\" r#\"i\"j\"# b'k' '\\'' 'l: &'m n";
        let stripped = code(source);
        let left: Vec<&str> = stripped.split_whitespace().collect();
        assert_eq!(left, ["a", "e", "b", "'l:", "&'m", "n"]);
        assert_eq!(stripped.matches('\n').count(), source.matches('\n').count());
        assert_eq!(stripped.len(), source.len());
    }

    #[test]
    fn test_modules_are_cut_out_whole() {
        let source = "fn a() {}\n#[cfg(test)]\nmod tests { fn b() { if c {} } }\nfn d() {}\n#[cfg(test)]\nmod x;\nfn e() {}";
        let text = production_code(Path::new("a.rs"), source);
        assert!(!text.contains("tests") && !text.contains('b') && !text.contains('x'));
        assert_eq!(
            (line(&text, text.find('d').unwrap()), text.contains("fn e")),
            (4, true)
        );
        assert_eq!(
            (
                production_lines(Path::new("a.rs"), source),
                production_lines(Path::new("a/tests.rs"), source)
            ),
            (3, 0)
        );
    }

    #[test]
    fn a_word_is_not_found_inside_another() {
        assert_eq!(
            words("nix unix nix_ (nix::x)", "nix").collect::<Vec<_>>(),
            [0, 15]
        );
    }
}
