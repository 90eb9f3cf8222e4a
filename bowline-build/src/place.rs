//! Where in its file a declaration stands, for messages: reads the schema's text, since the compiler's
//! request says it in some versions only, and of fields and methods in none. Finding nothing is no error.

use std::path::{Path, PathBuf};

use crate::text::{Token, Tokens, declarations, inside, tokens};

/// The directories in which schema files lie.
pub(crate) struct Sources<'a> {
    pub directory: &'a Path,
    /// Further ones, in which `import "/…"` looks.
    pub import_paths: &'a [PathBuf],
}

impl Sources<'_> {
    /// `login.capnp:Login.logIn` to `/…/schema/login.capnp:7:3: Login.logIn`.
    pub fn locate(&self, place: &str) -> String {
        let (file, name) = place.split_once(':').unwrap_or((place, ""));
        let Some((path, text)) = self.read(file) else {
            return place.replacen(':', ": ", 1);
        };
        // As the compiler has it, whose messages stand beside these.
        let path = path.canonicalize().unwrap_or(path);
        let (line, column) = find(&text, name).unwrap_or((1, 1));
        match name {
            "" => format!("{}:{line}:{column}", path.display()),
            name => format!("{}:{line}:{column}: {name}", path.display()),
        }
    }

    /// A schema file that the request names, and its text.
    pub fn read(&self, file: &str) -> Option<(PathBuf, String)> {
        let directories =
            std::iter::once(self.directory).chain(self.import_paths.iter().map(PathBuf::as_path));
        directories
            .map(|directory| directory.join(file))
            .find_map(|path| {
                let text = std::fs::read_to_string(&path).ok()?;
                Some((path, text))
            })
    }

    /// The file that `import` names in another one.
    pub fn imported(&self, from: &Path, import: &str) -> Option<PathBuf> {
        let is_file = |path: &PathBuf| path.is_file();
        match import.strip_prefix('/') {
            Some(absolute) => {
                let directories = self.import_paths.iter().map(PathBuf::as_path);
                let directories = directories.chain([self.directory]);
                directories
                    .map(|directory| directory.join(absolute))
                    .find(is_file)
            }
            None => Some(from.parent()?.join(import)).filter(is_file),
        }
    }
}

/// Line and column of a declaration, each counted from 1; the name is as the compiler shows it: `Login.logIn$Params.user`.
fn find(text: &str, name: &str) -> Option<(usize, usize)> {
    let tokens = tokens(text);
    let name = name.replace('$', ".");
    let names: Vec<&str> = name.split('.').collect();
    let before = &text[..find_in(&tokens, &names)?];
    let line_start = before.rfind('\n').map_or(0, |end| end + 1);
    let line = before.matches('\n').count() + 1;
    Some((line, before[line_start..].chars().count() + 1))
}

/// Where the name of a declaration begins, among those that are not inside others.
fn find_in(tokens: Tokens<'_, '_>, names: &[&str]) -> Option<usize> {
    let (&first, inner) = names.split_first()?;
    for declaration in declarations(tokens) {
        let named = match declaration {
            // The members of a union without a name are those of the struct around it.
            [(_, Token::Word("union")), (_, Token::Open { .. }), ..] => {
                match find_in(inside(declaration, 1), names) {
                    Some(found) => return Some(found),
                    None => continue,
                }
            }
            [
                (
                    _,
                    Token::Word("struct" | "enum" | "interface" | "const" | "annotation" | "using"),
                ),
                (at, Token::Word(name)),
                ..,
            ]
            | [(at, Token::Word(name)), ..] => (*at, *name),
            _ => continue,
        };
        if named.1 != first {
            continue;
        }
        let is_open = |at: &usize| matches!(declaration[*at].1, Token::Open { .. });
        let mut opened = (0..declaration.len()).filter(is_open);
        return match inner {
            [] => Some(named.0),
            // A signature: the first brackets are those of the parameters, the last those of the results.
            ["Params", field] => find_in(inside(declaration, opened.next()?), &[field]),
            ["Results", field] => opened
                .filter_map(|at| find_in(inside(declaration, at), &[field]))
                .next_back(),
            _ => opened.find_map(|at| find_in(inside(declaration, at), inner)),
        }
        // Better the declaration around it than nothing.
        .or(Some(named.0));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"@0xb0f1a3c5d7e90401;
using Bowline = import "/bowline/bowline.capnp"; # struct Not { here @0 :Text; }
const text :Text = "struct Nor { here @0 :Text; }";

struct Outer(T) {
  name @0 :Text = "}"; # a }
  union { one @1 :Void; ü @2 :Void; }
  box :group { deep @3 :T; }
  struct Inner { name @0 :Text; enum Kind { a @0; b @1; } }
}
interface Login extends(Base) $Bowline.timeout("2s") {
  logIn @0 (user :Text, session :Text) -> (session :Text);
  logOut @1 Outer -> (at :Int64);
}
"#;

    #[test]
    fn declarations_are_found_by_their_names() {
        for (name, place) in [
            ("text", (3, 7)),
            ("Outer", (5, 8)),
            ("Outer.name", (6, 3)),
            ("Outer.one", (7, 11)),
            ("Outer.ü", (7, 25)),
            ("Outer.box", (8, 3)),
            ("Outer.box.deep", (8, 16)),
            ("Outer.Inner", (9, 10)),
            ("Outer.Inner.name", (9, 18)),
            ("Outer.Inner.Kind.b", (9, 51)),
            ("Login", (11, 11)),
            ("Login.logIn", (12, 3)),
            ("Login.logIn$Params", (12, 3)),
            ("Login.logIn$Params.session", (12, 25)),
            ("Login.logIn$Results.session", (12, 44)),
            ("Login.logOut$Results.at", (13, 23)),
            ("Login.logOut.nowhere", (13, 3)),
        ] {
            assert_eq!(find(TEXT, name), Some(place), "{name}");
        }
        for name in ["Not", "Nor", "Not.here", "", "Bowline.x.y"] {
            assert!(find(TEXT, name).is_none_or(|at| at == (2, 7)), "{name}");
        }
    }

    #[test]
    fn any_text_is_read_to_its_end() {
        for end in (0..TEXT.len()).filter(|end| TEXT.is_char_boundary(*end)) {
            for name in ["Outer.Inner.Kind.b", "Login.logIn$Results.session"] {
                let _ = (find(&TEXT[..end], name), find(&TEXT[end..], name));
            }
        }
    }
}
