//! Mends what capnpc 0.27 writes for a union in a generic struct where one of its groups does not use all type parameters:
//! the types `WhichReader` and `WhichBuilder` lack those that the group's reader is named with.

use std::collections::{BTreeSet, HashMap};

/// The code with all parameters that each of these types mentions.
pub(crate) fn mend(code: &str, parameters: &BTreeSet<&str>) -> String {
    let mut lines: Vec<String> = code.lines().map(str::to_owned).collect();
    // Where `which()` was seen, by indentation and type, since the last type of that module.
    let mut seen: HashMap<(usize, &str), Vec<usize>> = HashMap::new();
    for at in 0..lines.len() {
        let line = lines[at].clone();
        let indent = line.len() - line.trim_start().len();
        for which in ["WhichReader", "WhichBuilder"] {
            if line.trim_start().starts_with("pub fn which(self)") && line.contains(which) {
                seen.entry((indent, which)).or_default().push(at);
            }
            let alias = format!("pub type {which}<'a,");
            let Some((old, type_)) = line
                .trim_start()
                .strip_prefix(&alias)
                .and_then(|rest| rest.split_once("> = "))
            else {
                continue;
            };
            let mentioned: Vec<&str> = words(type_)
                .filter(|word| parameters.contains(word))
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect();
            let (old, new) = (
                format!("{which}<'a,{old}>"),
                format!("{which}<'a,{}>", mentioned.join(",")),
            );
            lines[at] = line.replacen(&old, &new, 1);
            for at in seen.remove(&(indent + 4, which)).unwrap_or_default() {
                lines[at] = lines[at].replacen(&old, &new, 1);
            }
        }
    }
    lines.join("\n") + "\n"
}

/// The words that are not behind a `::`, so that they name no item of a module.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    text.split(move |c: char| !is_part(c) && c != ':')
        .filter(|word| !word.contains(':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_has_the_parameters_that_it_mentions() {
        let code = "mod a {\n    impl A {\n        pub fn which(self) -> Result<WhichReader<'a,T>, E> {\n    }\n    \
                    pub type WhichReader<'a,T> = Which<crate::a::g::Reader<'a,T,T_>,crate::T::Reader<'a>>;\n    mod b {\n        \
                    pub fn which(self) -> Result<WhichReader<'a,>, E> {\n";
        let mended = mend(code, &BTreeSet::from(["T", "T_"]));
        assert_eq!(
            mended.matches("WhichReader<'a,T,T_>").count(),
            2,
            "{mended}"
        );
        assert_eq!(mended.matches("WhichReader<'a,>").count(), 1, "{mended}");
    }
}
