//! Names: from the schema's to Rust's, and where two of them meet.

use std::collections::BTreeMap;

use crate::Error;

/// `logIn` to `log_in`, the way that capnpc does it: its accessors are named so.
pub(crate) fn snake(name: &str) -> String {
    let mut snake = String::with_capacity(name.len() + 4);
    for (i, c) in name.chars().enumerate() {
        if c.is_uppercase() && i > 0 {
            snake.push('_');
        }
        snake.push(c.to_ascii_lowercase());
    }
    snake
}

/// `logIn` to `LogIn`.
pub(crate) fn pascal(name: &str) -> String {
    let mut chars = name.chars();
    match chars.next() {
        Some(first) => first.to_ascii_uppercase().to_string() + chars.as_str(),
        None => String::new(),
    }
}

/// The name of an enumerant or a union's member; capnpc has none for what would be `Self`.
pub(crate) fn variant(name: &str, place: &str) -> Result<String, Error> {
    match pascal(name) {
        variant if variant == "Self" => {
            Err(Error::unsupported(place, "a member of the name `self`"))
        }
        variant => Ok(variant),
    }
}

/// `logIn` to `LOG_IN`.
pub(crate) fn screaming(name: &str) -> String {
    snake(name).to_ascii_uppercase()
}

/// The static that describes an interface.
pub(crate) fn service_static(interface: &str) -> String {
    format!("{}_SERVICE", screaming(interface))
}

/// The name as an identifier, whatever it means to Rust.
pub(crate) fn identifier(name: &str) -> String {
    const RAW_IMPOSSIBLE: [&str; 4] = ["self", "Self", "super", "crate"];
    const KEYWORDS: &[&str] = &[
        "abstract", "as", "async", "await", "become", "box", "break", "const", "continue", "do",
        "dyn", "else", "enum", "extern", "false", "final", "fn", "for", "gen", "if", "impl", "in",
        "let", "loop", "macro", "match", "mod", "move", "mut", "override", "priv", "pub", "ref",
        "return", "static", "struct", "trait", "true", "try", "type", "typeof", "unsafe",
        "unsized", "use", "virtual", "where", "while", "yield",
    ];
    if RAW_IMPOSSIBLE.contains(&name) {
        format!("{name}_")
    } else if KEYWORDS.contains(&name) {
        format!("r#{name}")
    } else {
        name.to_owned()
    }
}

/// The module of an interface's anonymous struct, the way that capnpc names it.
pub(crate) fn module(name: &str) -> String {
    let mut module = snake(name);
    if identifier(&module) != module {
        module.push('_');
    }
    module
}

/// The names of one Rust scope.
#[derive(Default)]
pub(crate) struct Scope {
    taken: BTreeMap<String, String>,
}

impl Scope {
    /// Takes a name for what the schema calls `owner`, at `place`.
    pub fn take(
        &mut self,
        name: impl Into<String>,
        owner: impl Into<String>,
        place: &str,
    ) -> Result<(), Error> {
        let (name, owner) = (name.into(), owner.into());
        match self.taken.insert(name.clone(), owner.clone()) {
            None => Ok(()),
            Some(first) => Err(Error::NameClash {
                place: place.to_owned(),
                name,
                first,
                second: owner,
            }),
        }
    }

    /// Takes a name that no declaration may have.
    pub fn reserve(&mut self, name: &str, owner: &str) {
        self.taken.insert(name.to_owned(), owner.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_rust() {
        assert_eq!(snake("logIn"), "log_in");
        assert_eq!(pascal("logIn"), "LogIn");
        assert_eq!(screaming("logIn"), "LOG_IN");
        assert_eq!(identifier("type"), "r#type");
        assert_eq!(identifier("self"), "self_");
        assert_eq!(module("matchParams"), "match_params");
        assert_eq!(module("match"), "match_");
    }

    #[test]
    fn the_second_owner_of_a_name_is_told_of_the_first() {
        let mut scope = Scope::default();
        scope.take("LogIn", "struct LogIn", "a.capnp").unwrap();
        let clash = scope.take("LogIn", "struct logIn", "b.capnp");
        let clash = clash.unwrap_err().to_string();
        assert!(clash.contains("struct LogIn and struct logIn"), "{clash}");
        assert!(clash.starts_with("b.capnp"), "{clash}");
    }
}
