//! docs/promises.md names what shows each promise. Here: that what it names is there; and that the README shows a
//! service that compiles, and docs/dependencies.md has each dependency.
//!
//! In the second column of a table, a name in backticks with a slash or a dot in it is a file or a folder of this repository, and a name
//! without is a test in the file that was named last. A command has a space in it, and is not looked at.

use std::fs;
use std::path::{Path, PathBuf};

#[test]
fn what_the_page_of_promises_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/promises.md")).unwrap();
    let mut missing = Vec::new();
    let mut tests = 0;
    for row in page.lines().filter(|line| line.starts_with("| ")) {
        let Some(shown_by) = row.trim_end_matches(" |").rsplit(" | ").next() else {
            continue;
        };
        let mut file: Option<PathBuf> = None;
        for name in shown_by
            .split('`')
            .skip(1)
            .step_by(2)
            .filter(|name| !name.contains(' '))
        {
            if name.contains(['/', '.']) {
                let path = root.join(name);
                if !path.exists() {
                    missing.push(format!("no file {name}"));
                }
                file = Some(path);
            } else {
                tests += 1;
                let text = file
                    .as_deref()
                    .and_then(|path| fs::read_to_string(path).ok())
                    .unwrap_or_default();
                if !text.contains(&format!("fn {name}")) {
                    missing.push(format!(
                        "no test {name} in {}",
                        file.clone().unwrap_or_default().display()
                    ));
                }
            }
        }
    }
    assert!(
        missing.is_empty(),
        "docs/promises.md:\n{}",
        missing.join("\n")
    );
    assert!(tests > 0, "docs/promises.md names no test at all");
}

fn read(file: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap()
}

/// Without what does not change the meaning.
fn bare(text: &str) -> String {
    let is_code = |line: &&str| !line.trim_start().starts_with('#') || line.contains("#[");
    let code: Vec<&str> = text.lines().filter(is_code).collect();
    let code = code.join("").replace(char::is_whitespace, "");
    // What a formatter adds where it breaks a line.
    code.replace(",)", ")")
}

#[test]
fn the_service_of_the_readme_is_an_example_that_compiles() {
    let readme = read("README.md");
    let block = |opens: &str| {
        let start = readme.find(opens).expect("the README has it") + opens.len();
        let end = readme[start..].find("```").expect("it ends");
        readme[start..start + end].to_owned()
    };
    let code = block("```rust,ignore\n");
    let code = code.replace(
        "bowline::include_schemas!();",
        "use bowline_examples::hello;",
    );
    let example = read("examples/readme.rs");
    assert!(bare(&example).ends_with(&bare(&code)), "examples/readme.rs");
    let schema = block("```capnp\n");
    assert_eq!(bare(&read("examples/schema/hello.capnp")), bare(&schema));
    let lines = |text: &str| text.lines().filter(|line| !line.trim().is_empty()).count();
    assert!(lines(&code) + lines(&schema) < 40);
}

#[test]
fn each_dependency_has_its_line() {
    let page = read("docs/dependencies.md");
    for manifest in ["Cargo.toml", "bowline-build/Cargo.toml"] {
        let manifest = read(manifest);
        let mut is_dependencies = false;
        for line in manifest.lines() {
            if line.starts_with('[') {
                is_dependencies = line.trim_end_matches(']').ends_with("dependencies");
            } else if let Some((name, _)) = line.split_once(" = ").filter(|_| is_dependencies) {
                let is_ours = name.starts_with("bowline");
                assert!(
                    is_ours || page.contains(&format!("`{name}`")),
                    "no line for {name}"
                );
            }
        }
    }
}

/// What makes a status that says so.
const NOT_DONE: [&str; 8] = [
    "Work::NotDone",
    "tatus::unavailable(",
    "tatus::invalid_argument(",
    "tatus::not_found(",
    "tatus::permission_denied(",
    "tatus::resource_exhausted(",
    "tatus::unknown_method(",
    "tatus::from_store(",
];

#[test]
fn the_page_of_not_done_names_each_file_that_says_it() {
    let page = read("docs/not-done.md");
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    let mut missing = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if path.is_dir() && name != "tests" {
                folders.push(path);
                continue;
            }
            if !name.ends_with(".rs") || name == "tests.rs" {
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            let text = text.split("#[cfg(test)]").next().unwrap_or_default();
            let mut code = text.lines().map(str::trim_start);
            let says = |line: &str| {
                !line.starts_with("//") && NOT_DONE.iter().any(|text| line.contains(text))
            };
            let name = path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap();
            if code.any(says) && !page.contains(&format!("`{}`", name.display())) {
                missing.push(name.display().to_string());
            }
        }
    }
    assert!(missing.is_empty(), "not in docs/not-done.md: {missing:?}");
}
