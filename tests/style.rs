//! Rules of the house that no lint knows: lengths, file headers, and where `unsafe` may be.
//!
//! The rulers are rough on purpose: they blank out strings and comments and count braces.

use std::fs;
use std::path::{Path, PathBuf};

const COLUMNS: usize = 100;
const FILE_LINES: usize = 500;
const FUNCTION_LINES: usize = 70;

/// Where `unsafe` may be, and why.
const UNSAFE_ROOMS: [(&str, &str); 2] = [
    ("reactors/", "the crate made for it"),
    ("examples/prefill_decode/kernel.rs", "vector instructions"),
];

/// Functions that may be longer than the rule, each with its reason.
const LONG_FUNCTIONS: [(&str, &str, &str); 0] = [];

#[test]
fn lines_fit_in_100_columns() {
    let long = sources().into_iter().flat_map(|(path, text)| {
        let wide = |(_, line): &(usize, &str)| line.chars().count() > COLUMNS;
        let found: Vec<_> = text.lines().enumerate().filter(wide).map(|(k, _)| k + 1).collect();
        found.into_iter().map(move |line| format!("{path}:{line} is over {COLUMNS} columns"))
    });
    none(long);
}

#[test]
fn files_have_at_most_500_lines() {
    let lengths = sources().into_iter().map(|(path, text)| (path, text.lines().count()));
    let long = lengths.filter(|(_, lines)| *lines > FILE_LINES);
    none(long.map(|(path, lines)| format!("{path} has {lines} lines: split it by subject")));
}

#[test]
fn functions_have_at_most_70_lines() {
    let excepted = |path: &str, name: &str| {
        LONG_FUNCTIONS.iter().any(|(file, function, _)| *file == path && *function == name)
    };
    let long = sources().into_iter().flat_map(|(path, text)| {
        let functions = functions(&blanked(&text)).into_iter();
        functions.filter_map(move |(name, line, lines)| {
            let fine = lines <= FUNCTION_LINES || excepted(&path, &name);
            (!fine).then(|| format!("{path}:{line} fn {name} has {lines} lines"))
        })
    });
    none(long);
}

#[test]
fn files_open_with_what_they_are_for() {
    let headless = sources().into_iter().filter(|(_, text)| {
        let first = text.lines().find(|line| !line.starts_with("#!["));
        first.is_none_or(|line| !line.starts_with("//!"))
    });
    none(headless.map(|(path, _)| format!("{path} does not open with `//!`")));
}

#[test]
fn unsafe_stays_in_its_rooms() {
    let outside = sources()
        .into_iter()
        .filter(|(path, _)| UNSAFE_ROOMS.iter().all(|(room, _)| !path.starts_with(room)));
    let found = outside.flat_map(|(path, text)| {
        let code = blanked(&text);
        let lines = code.lines().enumerate().filter(|(_, line)| has_word(line, "unsafe"));
        lines.map(|(k, _)| format!("{path}:{} says unsafe", k + 1)).collect::<Vec<_>>()
    });
    none(found);
}

#[test]
fn the_rulers_measure() {
    let text = [
        "fn a() {",
        "    let b = '{'; // }",
        "}",
        "/* unsafe */",
        "fn c(d: &'static [u8; 4]) {",
        "    \"}\\\"}\";",
        "    r#\"unsafe \" }\"#;",
        "}",
        "trait E {",
        "    fn f();",
        "}",
    ];
    let text = &text.join("\n");
    let code = blanked(text);
    assert_eq!(code.lines().count(), text.lines().count());
    assert!(!has_word(&code, "unsafe"), "{code}");
    let measured = functions(&code);
    assert_eq!(measured, [("a".to_owned(), 1, 3), ("c".to_owned(), 5, 4)]);
    assert!(has_word("x = unsafe { y }", "unsafe") && !has_word("unsafe_code", "unsafe"));
}

/// Fails with every finding, not only the first.
fn none(findings: impl Iterator<Item = String>) {
    let findings: Vec<_> = findings.collect();
    assert!(findings.is_empty(), "\n{}\n", findings.join("\n"));
}

/// Every Rust file of the repository: its path from the root, and its text.
fn sources() -> Vec<(String, String)> {
    // xtask compiles this file too, since it is built in a second and the library is not.
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = here.ancestors().find(|folder| folder.join("src/lib.rs").is_file()).unwrap();
    let rooms = ["src", "reactors", "examples", "benches", "fuzz", "tests", "xtask"];
    let mut files = Vec::new();
    rooms.iter().for_each(|room| walk(&root.join(room), &mut files));
    files.sort();
    let read = |path: PathBuf| {
        let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        (name, fs::read_to_string(&path).unwrap())
    };
    files.into_iter().map(read).collect()
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
    // A published crate has fewer rooms than the repository.
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            walk(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// Functions with a body: (name, first line, lines).
fn functions(code: &str) -> Vec<(String, usize, usize)> {
    let starts = code.match_indices("fn ").filter(|(at, _)| {
        let before = code[..*at].chars().next_back();
        before.is_none_or(|c| !is_word(c))
    });
    starts.filter_map(|(at, _)| function(code, at)).collect()
}

fn function(code: &str, at: usize) -> Option<(String, usize, usize)> {
    let name: String = code[at + 3..].chars().take_while(|c| is_word(*c)).collect();
    let mut nested = 0;
    let open = at
        + code[at..].find(|c| {
            nested += i32::from("([".contains(c)) - i32::from(")]".contains(c));
            nested == 0 && "{;".contains(c)
        })?;
    let mut depth = 0;
    let close = code[open..].char_indices().find(|(_, c)| {
        depth += i32::from(*c == '{') - i32::from(*c == '}');
        depth == 0
    });
    let lines = |text: &str| text.matches('\n').count() + 1;
    let body = (!name.is_empty() && code[open..].starts_with('{')).then_some(close?.0)?;
    Some((name, lines(&code[..at]), lines(&code[at..open + body])))
}

fn has_word(line: &str, word: &str) -> bool {
    line.split(|c| !is_word(c)).any(|found| found == word)
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The text with comments, strings and character literals blanked out, line by line as long.
fn blanked(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = opaque(rest, code.chars().next_back());
        let (taken, left) = rest.split_at(length.unwrap_or(first.len_utf8()));
        match length {
            Some(_) => code.extend(taken.chars().map(|c| if c == '\n' { c } else { ' ' })),
            None => code.push(first),
        }
        rest = left;
    }
    code
}

/// The length of the comment or literal that `text` begins with, if it does.
fn opaque(text: &str, before: Option<char>) -> Option<usize> {
    let until = |end: &str, from: usize| {
        text[from..].find(end).map_or(text.len(), |at| from + at + end.len())
    };
    match text.as_bytes() {
        [b'/', b'/', ..] => Some(text.find('\n').unwrap_or(text.len())),
        [b'/', b'*', ..] => Some(until("*/", 2)),
        [b'"', ..] => Some(quoted(text, '"')),
        [b'\'', b'\\', ..] => Some(quoted(text, '\'')),
        [b'\'', ..] => {
            let mut after = text[1..].char_indices().skip(1);
            after.next().filter(|(_, c)| *c == '\'').map(|(at, _)| at + 2)
        }
        [b'r', ..] if before.is_none_or(|c| !is_word(c) || c == 'b') => {
            let hashes = text[1..].chars().take_while(|c| *c == '#').count();
            let raw = text[1 + hashes..].starts_with('"');
            raw.then(|| until(&format!("\"{}", "#".repeat(hashes)), hashes + 2))
        }
        _ => None,
    }
}

/// The length of a literal up to the quote that no backslash takes away.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    let end = text.char_indices().skip(1).find(|(_, c)| {
        let ends = *c == quote && !escaped;
        escaped = *c == '\\' && !escaped;
        ends
    });
    end.map_or(text.len(), |(at, _)| at + 1)
}
