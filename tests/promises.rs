//! docs/promises.md names what shows each promise. Here: that what it names is there.
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
