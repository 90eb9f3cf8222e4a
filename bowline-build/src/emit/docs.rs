//! Comments of a schema as rustdoc: text, whatever is in it. Nothing becomes a doctest, a link to an item, or HTML;
//! what is indented or fenced is shown as it stands, and code within a line too.

/// Doc attributes, a line each.
pub(super) fn docs(comment: &str) -> String {
    markdown(comment)
        .iter()
        .map(|line| format!("#[doc = {}]\n", literal(line)))
        .collect()
}

/// A string literal, without the word that generated code has for its crate.
fn literal(text: &str) -> String {
    format!("{text:?}").replace('$', "\\u{24}")
}

fn markdown(comment: &str) -> Vec<String> {
    let lines: Vec<&str> = comment.lines().map(str::trim_end).collect();
    let fence = "`".repeat(longest_run(comment).max(2) + 1);
    let mut out = Vec::new();
    let mut at = 0;
    while at < lines.len() {
        let line = lines[at];
        let block_end = match fence_of(line) {
            Some(own) => {
                let close = lines[at + 1..].iter().position(|line| closes(line, own));
                Some(close.map_or(lines.len(), |inner| at + 1 + inner))
            }
            None if is_indented(line) => {
                let is_part = |line: &&str| line.is_empty() || is_indented(line);
                let end = lines[at..].iter().position(|line| !is_part(line));
                let mut end = at + end.unwrap_or(lines.len() - at);
                while lines[end - 1].is_empty() {
                    end -= 1;
                }
                Some(end)
            }
            None => None,
        };
        let Some(end) = block_end else {
            out.push(escaped(line));
            at += 1;
            continue;
        };
        let is_fenced = fence_of(line).is_some();
        let begin = at + usize::from(is_fenced);
        out.push(format!("{fence}text"));
        out.extend(
            lines[begin.min(end)..end]
                .iter()
                .map(|line| (*line).to_owned()),
        );
        out.push(fence.clone());
        at = end + usize::from(is_fenced);
    }
    out
}

fn is_indented(line: &str) -> bool {
    line.starts_with('\t') || line.starts_with("    ")
}

/// The mark that begins a fenced block; an indented line begins none.
fn fence_of(line: &str) -> Option<&str> {
    if is_indented(line) {
        return None;
    }
    let line = line.trim_start();
    ["```", "~~~"]
        .into_iter()
        .find(|mark| line.starts_with(mark))
}

fn closes(line: &str, mark: &str) -> bool {
    let line = line.trim();
    line.starts_with(mark) && line.chars().all(|c| mark.starts_with(c))
}

/// The longest run of backticks.
fn longest_run(text: &str) -> usize {
    let runs = text.split(|c| c != '`').map(str::len);
    runs.max().unwrap_or(0)
}

/// A line of text, with what Markdown would take for more escaped. What is between two single backticks stays code.
fn escaped(line: &str) -> String {
    let line = line.trim_start();
    let pieces: Vec<&str> = line.split('`').collect();
    // An even number of backticks, none beside another: every second piece is code.
    let has_code = pieces.len() % 2 == 1
        && pieces[1..]
            .iter()
            .step_by(2)
            .all(|piece| !piece.trim().is_empty());
    let mut out = String::new();
    for (index, piece) in pieces.iter().enumerate() {
        if index > 0 {
            out.push_str(if has_code { "`" } else { "\\`" });
        }
        match has_code && index % 2 == 1 {
            true => out.push_str(piece),
            false => text(piece, &mut out),
        }
    }
    out
}

fn text(piece: &str, out: &mut String) {
    let mut rest = piece;
    while let Some(start) = ["http://", "https://"]
        .iter()
        .filter_map(|scheme| rest.find(scheme))
        .min()
    {
        let (before, url) = rest.split_at(start);
        plain(before, out);
        let is_end = |c: char| c.is_whitespace() || "<>\"`|\\^{}[]()'".contains(c);
        let mut end = url.find(is_end).unwrap_or(url.len());
        end = url[..end]
            .trim_end_matches(['.', ',', ';', ':', '!', '?'])
            .len();
        let (url, behind) = url.split_at(end);
        // A scheme alone is no address.
        match url.ends_with("://") {
            true => plain(&url.replace("://", ": //"), out),
            false => out.push_str(&format!("<{url}>")),
        }
        rest = behind;
    }
    plain(rest, out);
}

fn plain(text: &str, out: &mut String) {
    for c in text.chars() {
        if "\\[]<>*_~|&#".contains(c) {
            out.push('\\');
        }
        out.push(c);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_indented_or_fenced_is_text() {
        let comment =
            "Usage:\n\n    let x = 1;\n\n    y\n\nEnd.\n```rust\nfn f() {}\n```\n~~~\nopen";
        let expected = [
            "Usage:",
            "",
            "````text",
            "    let x = 1;",
            "",
            "    y",
            "````",
            "",
            "End.",
            "````text",
            "fn f() {}",
            "````",
            "````text",
            "open",
            "````",
        ];
        assert_eq!(markdown(comment), expected);
        assert_eq!(
            markdown("    ````\n    x"),
            ["`````text", "    ````", "    x", "`````"]
        );
    }

    #[test]
    fn marks_are_escaped_and_code_and_addresses_stay() {
        for (text, shown) in [
            (
                "See [x] of List<Text> *now*",
                "See \\[x\\] of List\\<Text\\> \\*now\\*",
            ),
            ("# a | b", "\\# a \\| b"),
            ("`List<Text>` and `y`", "`List<Text>` and `y`"),
            ("one ` only", "one \\` only"),
            ("``two`` marks", "\\`\\`two\\`\\` marks"),
            ("at https://a.b/c_d.", "at <https://a.b/c_d>."),
            ("https:// alone", "https: // alone"),
            ("C:\\new \"quoted\"", "C:\\\\new \"quoted\""),
        ] {
            assert_eq!(escaped(text), shown);
        }
    }

    #[test]
    fn generated_code_does_not_take_the_word_of_a_comment_for_its_crate() {
        assert!(!docs("a $crate::b").contains('$'));
        assert_eq!(docs("a \"b\""), "#[doc = \"a \\\"b\\\"\"]\n");
    }
}
