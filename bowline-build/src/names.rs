//! Names: from the schema's to Rust's, and where two of them meet.

use std::collections::{BTreeMap, BTreeSet};

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

/// The variant of an enumerant or of a union's member.
pub(crate) fn variant(name: &str) -> String {
    identifier(&pascal(name))
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

/// The module that capnpc makes of a name by itself. It knows some of the keywords, and some words that are none.
pub(crate) fn capnpc_module(name: &str) -> String {
    const UNKNOWN_TO_CAPNPC: [&str; 5] = ["async", "await", "dyn", "gen", "try"];
    let module = snake(name);
    let is_keyword = identifier(&module) != module || KEYWORDS_OF_CAPNPC.contains(&&module[..]);
    match is_keyword && !UNKNOWN_TO_CAPNPC.contains(&&module[..]) {
        true => module + "_",
        false => module,
    }
}

const KEYWORDS_OF_CAPNPC: [&str; 7] = [
    "alignof", "be", "offsetof", "once", "proc", "pure", "sizeof",
];

/// The module that capnpc is told to make of a declaration, or the constant in lower case: it leaves this as it is.
pub(crate) fn module(name: &str) -> String {
    let module = snake(name);
    match identifier(&module) == module && !KEYWORDS_OF_CAPNPC.contains(&&module[..]) {
        true => module,
        false => module + "_",
    }
}

/// The module of a schema file or of a folder, whatever characters its name has.
pub(crate) fn module_of_file(stem: &str) -> String {
    // What a crate's root cannot have beside the crates that generated code and its macros name.
    const CRATES: [&str; 5] = ["alloc", "bowline", "core", "std", "__bowline"];
    let mut module: String = stem
        .chars()
        .map(|c| if c.is_alphanumeric() { c } else { '_' })
        .collect();
    if !module.starts_with(|c: char| c.is_alphabetic()) {
        module.insert(0, '_');
    }
    let is_only_underscores = module.chars().all(|c| c == '_');
    if is_only_underscores {
        module.push_str("file");
    }
    if CRATES.contains(&&module[..]) {
        module.push('_');
    }
    match identifier(&module) {
        // `r#type` names the module `type`; `self_` another.
        raw if raw.starts_with("r#") => module,
        safe => safe,
    }
}

/// The first of `name`, `name_`, `name__` that is free, and takes it.
pub(crate) fn free(name: &str, taken: &mut BTreeSet<String>) -> String {
    let mut free = name.to_owned();
    while !taken.insert(free.clone()) {
        free.push('_');
    }
    free
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

    pub fn has(&self, name: &str) -> bool {
        self.taken.contains_key(name)
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
        assert_eq!(module("async"), "async_");
        assert_eq!(module("once"), "once_");
        assert_eq!(variant("self"), "Self_");
    }

    #[test]
    fn any_file_name_gives_a_module() {
        for (stem, module) in [
            ("log-in", "log_in"),
            ("a.b", "a_b"),
            ("1", "_1"),
            ("a b", "a_b"),
            ("type", "type"),
            ("self", "self_"),
            ("bowline", "bowline_"),
            ("-", "__file"),
            ("", "_file"),
            ("über", "über"),
        ] {
            assert_eq!(module_of_file(stem), module, "{stem}");
        }
        assert_eq!(identifier(&module_of_file("type")), "r#type");
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
