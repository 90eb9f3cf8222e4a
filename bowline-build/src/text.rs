//! The text of a schema as tokens: what the compiler's request does not say is found here, such as places,
//! imports and aliases. Any text is read to its end; finding nothing is no error.

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Token<'a> {
    Word(&'a str),
    /// What is between its quotes, as it stands.
    Quoted(&'a str),
    Open {
        block: bool,
    },
    /// Of a bracket; that of a block ends a declaration too.
    Close {
        block: bool,
    },
    /// What ends a declaration.
    End,
    Other(char),
}

pub(crate) type Tokens<'t, 'a> = &'t [(usize, Token<'a>)];

/// The tokens, each with where it begins, without comments.
pub(crate) fn tokens(text: &str) -> Vec<(usize, Token<'_>)> {
    let mut tokens = Vec::new();
    let mut chars = text.char_indices().peekable();
    while let Some((start, c)) = chars.next() {
        let token = match c {
            '#' => {
                while chars.next_if(|(_, c)| *c != '\n').is_some() {}
                continue;
            }
            '"' => {
                let mut end = text.len();
                while let Some((at, c)) = chars.next() {
                    match c {
                        '\\' => drop(chars.next()),
                        '"' => {
                            end = at;
                            break;
                        }
                        _ => {}
                    }
                }
                Token::Quoted(&text[start + 1..end])
            }
            '{' | '(' | '[' => Token::Open { block: c == '{' },
            '}' | ')' | ']' => Token::Close { block: c == '}' },
            ';' | ',' => Token::End,
            c if c.is_whitespace() => continue,
            c if c.is_alphanumeric() || c == '_' => {
                let mut end = start + c.len_utf8();
                while let Some((at, c)) = chars.next_if(|(_, c)| c.is_alphanumeric() || *c == '_') {
                    end = at + c.len_utf8();
                }
                Token::Word(&text[start..end])
            }
            c => Token::Other(c),
        };
        tokens.push((start, token));
    }
    tokens
}

/// How many tokens the first declaration has: to its end, or to the end of its block.
pub(crate) fn end_of_first(tokens: Tokens<'_, '_>) -> usize {
    let mut depth = 0usize;
    for (index, (_, token)) in tokens.iter().enumerate() {
        match token {
            Token::Open { .. } => depth += 1,
            Token::Close { block } => {
                depth = depth.saturating_sub(1);
                if depth == 0 && *block {
                    return index + 1;
                }
            }
            Token::End if depth == 0 => return index + 1,
            _ => {}
        }
    }
    tokens.len()
}

/// What is between the bracket at an index and the one that closes it.
pub(crate) fn inside<'t, 'a>(tokens: Tokens<'t, 'a>, open: usize) -> Tokens<'t, 'a> {
    let mut depth = 0usize;
    for (index, (_, token)) in tokens.iter().enumerate().skip(open) {
        match token {
            Token::Open { .. } => depth += 1,
            Token::Close { .. } if depth == 1 => return &tokens[open + 1..index],
            Token::Close { .. } => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    &tokens[(open + 1).min(tokens.len())..]
}

/// The declarations that are not inside others.
pub(crate) fn declarations<'t, 'a>(tokens: Tokens<'t, 'a>) -> impl Iterator<Item = Tokens<'t, 'a>> {
    let mut rest = tokens;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (declaration, behind) = rest.split_at(end_of_first(rest));
        rest = behind;
        Some(declaration)
    })
}

/// The file's ID.
pub(crate) fn file_id(text: &str) -> Option<u64> {
    let tokens = tokens(text);
    let at = tokens.windows(2).find_map(|pair| match pair {
        [(_, Token::Other('@')), (_, Token::Word(id))] => Some(*id),
        _ => None,
    })?;
    u64::from_str_radix(at.strip_prefix("0x")?, 16).ok()
}

/// What the file imports and embeds, as it names it.
pub(crate) fn imports(text: &str) -> Vec<String> {
    let tokens = tokens(text);
    let named = tokens.windows(2).filter_map(|pair| match pair {
        [
            (_, Token::Word("import" | "embed")),
            (_, Token::Quoted(path)),
        ] => Some((*path).to_owned()),
        _ => None,
    });
    named.collect()
}

/// What a name stands for: the file that it begins in, where that is another one, and the names from there.
#[derive(Debug, PartialEq)]
pub(crate) struct Alias {
    pub import: Option<String>,
    pub names: Vec<String>,
}

/// What `using name = …` says in the scope of these declarations, or of the whole file where there are none.
pub(crate) fn alias(text: &str, scope: &[&str], name: &str) -> Option<Alias> {
    let tokens = tokens(text);
    let mut within = &tokens[..];
    for outer in scope {
        within = declarations(within).find_map(|declaration| match declaration {
            [
                (_, Token::Word("struct" | "interface")),
                (_, Token::Word(named)),
                ..,
            ] if named == outer => {
                let open = declaration
                    .iter()
                    .position(|(_, token)| *token == Token::Open { block: true })?;
                Some(inside(declaration, open))
            }
            _ => None,
        })?;
    }
    declarations(within).find_map(|declaration| {
        let (used, named) = match declaration {
            [
                (_, Token::Word("using")),
                (_, Token::Word(named)),
                (_, Token::Other('=')),
                rest @ ..,
            ] => (rest, Some(*named)),
            [(_, Token::Word("using")), rest @ ..] => (rest, None),
            _ => return None,
        };
        let alias = expression(used)?;
        let stands_for = named.or(alias.names.last().map(String::as_str))?;
        (stands_for == name).then_some(alias)
    })
}

/// `import "file".A.B` or `A.B`.
fn expression(tokens: Tokens<'_, '_>) -> Option<Alias> {
    let (import, rest) = match tokens {
        [
            (_, Token::Word("import")),
            (_, Token::Quoted(path)),
            rest @ ..,
        ] => (Some((*path).to_owned()), rest),
        rest => (None, rest),
    };
    let names: Vec<String> = rest
        .iter()
        .take_while(|(_, token)| matches!(token, Token::Word(_) | Token::Other('.')))
        .filter_map(|(_, token)| match token {
            Token::Word(name) => Some((*name).to_owned()),
            _ => None,
        })
        .collect();
    (import.is_some() || !names.is_empty()).then_some(Alias { import, names })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"@0xb0f1a3c5d7e90401; # import "not.capnp"
using Common = import "/common.capnp"; using import "x.capnp".Foo;
using C = Common.Inner;
const text :Text = "import \"nor.capnp\"";
interface Outer extends(Common.Base) { using D = C.Deep; go @0 () -> (); struct In { using E = D; } }
const bytes :Data = embed "bytes.bin";
"#;

    #[test]
    fn imports_and_embedded_files_are_found() {
        assert_eq!(imports(TEXT), ["/common.capnp", "x.capnp", "bytes.bin"]);
        assert_eq!(file_id(TEXT), Some(0xb0f1_a3c5_d7e9_0401));
    }

    #[test]
    fn aliases_are_found_in_their_scope() {
        let found = |scope: &[&str], name: &str| {
            alias(TEXT, scope, name).map(|alias| (alias.import, alias.names.join(".")))
        };
        let import = |path: &str| Some(path.to_owned());
        assert_eq!(
            found(&[], "Common"),
            Some((import("/common.capnp"), String::new()))
        );
        assert_eq!(found(&[], "Foo"), Some((import("x.capnp"), "Foo".into())));
        assert_eq!(found(&[], "C"), Some((None, "Common.Inner".into())));
        assert_eq!(found(&["Outer"], "D"), Some((None, "C.Deep".into())));
        assert_eq!(found(&["Outer", "In"], "E"), Some((None, "D".into())));
        assert_eq!(found(&[], "D"), None);
        assert_eq!(found(&["Nowhere"], "C"), None);
    }
}
