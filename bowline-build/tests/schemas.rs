//! What is wrong with a schema is said at build time, with its place, and never with a panic.

mod common;

use bowline_build::{Builder, Error};
use common::Schemas;

fn error_of(name: &str, text: &str) -> String {
    let schemas = Schemas::new(name, &[("a.capnp", text)]);
    schemas.builder().compile().unwrap_err().to_string()
}

#[test]
fn the_docs_of_every_kind_of_declaration_become_rustdoc() {
    let text = r#"
struct A {
  # Docs of a struct.
  name @0 :Text;
  # Docs of a field.
  union {
    one @1 :Void;
    # Docs of a member.
    two @2 :Text;
  }
  struct Inner {
    # Docs of a nested "struct" with a \\.
    x @0 :Text;
  }
}
enum E {
  # Docs of an enum.
  first @0;
  # Docs of an enumerant.
}
interface I {
  # Docs of an interface.
  call @0 () -> ();
  # Docs of a method,
  # in two lines.
}
const c :UInt32 = 1;
# Docs of a constant.
"#;
    let schemas = Schemas::new("docs", &[("a.capnp", text)]);
    schemas.builder().compile().unwrap();
    let code = schemas.code();
    for (docs, of) in [
        ("Docs of a struct.", "pub struct A "),
        ("Docs of a field.", "pub name: "),
        ("Docs of a member.", "One,"),
        (
            r#"Docs of a nested \"struct\" with a \\\\\\\\."#,
            "pub struct AInner ",
        ),
        ("Docs of an enum.", "pub enum E "),
        ("Docs of an enumerant.", "First,"),
        ("Docs of an interface.", "pub trait I"),
        ("in two lines.", "fn call(&self, request"),
        ("in two lines.", "pub fn call(&self, build"),
        ("in two lines.", "pub fn call_plain("),
        ("Docs of a constant.", "pub use crate::a_capnp::C as C;"),
    ] {
        let docs = format!("#[doc = \"{docs}\"]");
        // Nothing but other attributes may be in between.
        let other = |line: &&str| !line.starts_with("#[serde") && !line.starts_with("#[derive");
        let is_there = code
            .match_indices(of)
            .any(|(at, _)| code[..at].lines().rev().find(other) == Some(&docs));
        assert!(is_there, "{docs} of {of}: {code}");
    }
}

#[test]
fn the_same_schema_makes_the_same_code() {
    let text = "struct A { b @0 :B; } struct B { c @0 :List(A); } interface C { d @0 A -> B; e @1 () -> (); }";
    let schemas = Schemas::new("same", &[("a.capnp", text)]);
    let mut codes = Vec::new();
    for _ in 0..3 {
        schemas.builder().compile().unwrap();
        codes.push(std::fs::read_to_string(schemas.out().join("a_bowline.rs")).unwrap());
    }
    assert_eq!(codes[0], codes[1]);
    assert_eq!(codes[1], codes[2]);
}

#[test]
fn what_the_compiler_finds_reaches_the_person_with_file_line_and_column() {
    for (name, text, expected) in [
        (
            "syntax",
            "struct A {\n  name @0 :Txet;\n}",
            "a.capnp:4:12-16: error: Not defined: Txet",
        ),
        (
            "ordinals",
            "struct A {\n  name @0 :Text;\n  age @2 :UInt8;\n}",
            "a.capnp:5:8-9: error: Skipped ordinal @1",
        ),
        (
            "import",
            "using B = import \"b.capnp\"; struct A { b @0 :B.B; }",
            "a.capnp:3:18-27: error: Import failed: b.capnp",
        ),
    ] {
        let schemas = Schemas::new(name, &[("a.capnp", text)]);
        let error = schemas.builder().compile().unwrap_err();
        assert!(matches!(error, Error::Schema { .. }), "{name}: {error}");
        assert!(error.to_string().contains(expected), "{name}: {error}");
    }
}

#[test]
fn no_schemas_are_an_error() {
    let schemas = Schemas::new("none", &[]);
    std::fs::create_dir_all(schemas.0.join("schema")).unwrap();
    assert!(matches!(
        schemas.builder().compile(),
        Err(Error::Empty { .. })
    ));
    let nowhere = Builder::new(schemas.0.join("nowhere")).out_dir(schemas.out());
    assert!(matches!(nowhere.compile(), Err(Error::File { .. })));
}

#[test]
fn annotations_that_mean_nothing_are_errors_with_their_place() {
    for (name, text, expected) in [
        (
            "parsecs",
            r#"interface A { b @0 () -> () $Bowline.timeout("5 parsecs"); }"#,
            r#"a.capnp:3:15: A.b: $timeout("5 parsecs") has an unknown unit"#,
        ),
        (
            "nothing",
            r#"interface A $Bowline.timeout("0s") { b @0 () -> (); }"#,
            r#"a.capnp:3:11: A: $timeout("0s") is no time at all"#,
        ),
        (
            "both",
            "interface A { b @0 () -> () $Bowline.once $Bowline.idempotent; }",
            "a.capnp:3:15: A.b: $once",
        ),
        (
            "rerun",
            "interface A { b @0 () -> () $Bowline.rerun; }",
            "a.capnp:3:15: A.b: $rerun means something only beside $once",
        ),
        (
            "atomic",
            "interface A { b @0 () -> () $Bowline.once $Bowline.rerun $Bowline.atomic; }",
            "a.capnp:3:15: A.b: $rerun is said already by $atomic",
        ),
        (
            "fails",
            r#"interface A { b @0 () -> () $Bowline.fails("Nowhere"); }"#,
            r#"a.capnp:3:15: A.b: $fails("Nowhere") names no struct"#,
        ),
        (
            "topic",
            r#"struct A $Bowline.topic("") { b @0 :Text; }"#,
            "a.capnp:3:8: A: $topic(\"\") is not a name",
        ),
        (
            "key",
            r#"struct A $Bowline.topic("a") { b @0 :List(Text) $Bowline.key; }"#,
            "a.capnp:3:32: A.b: $key is for Text",
        ),
        (
            "keys",
            r#"struct A $Bowline.topic("a") { b @0 :Text $Bowline.key; c @1 :Text $Bowline.key; }"#,
            "a.capnp:3:57: A.c: $key is on another field",
        ),
    ] {
        let error = error_of(name, text);
        assert!(error.contains(expected), "{name}: {error}");
    }
}

#[test]
fn what_is_not_supported_is_named() {
    for (name, text, expected) in [
        (
            "any",
            "struct A { b @0 :AnyPointer; }",
            "a.capnp:3:12: A.b: AnyPointer",
        ),
        (
            "capability",
            "interface I {} struct A { b @0 :I; }",
            "a.capnp:3:27: A.b: a capability",
        ),
        (
            "parameter",
            "interface I { b @0 (i :I) -> (); }",
            "a.capnp:3:21: I.b$Params.i: a capability",
        ),
        (
            "stream",
            "interface I { b @0 () -> stream; }",
            "a.capnp:3:15: I.b: `-> stream`",
        ),
        (
            "generic",
            "interface I(T) { b @0 () -> (); }",
            "a.capnp:3:11: I: a generic interface",
        ),
        (
            "method",
            "interface I { b @0 [T] (t :T) -> (); }",
            "a.capnp:3:15: I.b: a generic method",
        ),
        (
            "void",
            "struct A { b @0 :List(Void); }",
            "a.capnp:3:12: A.b: a list of Void",
        ),
    ] {
        let error = error_of(name, text);
        assert!(error.contains(expected), "{name}: {error}");
    }
}

#[test]
fn names_that_meet_in_rust_are_errors_with_both_owners_and_the_place_of_the_second() {
    for (name, text, expected) in [
        (
            "types",
            "struct AB {} struct A { struct B {} }",
            "a.capnp:3:32: A.B: `AB` and `B` would both be `AB` in Rust",
        ),
        (
            "client",
            "interface A {} struct AClient {}",
            "a.capnp:3:23: AClient: `A` and `AClient` would both be `AClient` in Rust",
        ),
        (
            "fields",
            "struct A { fooBar @0 :Text; fooBAR @1 :Text; foo :group { x @2 :Text; } }\nstruct AFoo {}",
            "a.capnp:4:8: AFoo: the group `foo` of `A` and `AFoo` would both be `AFoo` in Rust",
        ),
        (
            "which",
            "struct A { which @0 :Text; c @1 :Text; union { a @2 :Void; b @3 :Void; } }",
            "a.capnp:3:12: A.which: the field for the union and `which` would both be `which` in Rust",
        ),
        (
            "own",
            "interface A { connect @0 () -> (); }",
            "a.capnp:3:15: A.connect: the client's own function and method `connect`",
        ),
        (
            "plain",
            "interface A { b @0 () -> (); bPlain @1 () -> (); }",
            "a.capnp:3:30: A.bPlain: method `b` and method `bPlain` would both be `b_plain` in Rust",
        ),
        (
            "unknown",
            "enum A { unknown @0; }",
            "a.capnp:3:10: A.unknown: the variant for what the schema does not have and `unknown`",
        ),
    ] {
        let error = error_of(name, text);
        assert!(error.contains(expected), "{name}: {error}");
    }
    let schemas = Schemas::new(
        "stems",
        &[
            ("a-b.capnp", "struct A {}"),
            ("aa/../a_b.capnp", "struct B {}"),
        ],
    );
    let error = schemas.builder().compile().unwrap_err().to_string();
    assert!(
        error.contains("file a-b.capnp and file a_b.capnp"),
        "{error}"
    );
    assert!(error.contains("$rustName"), "{error}");
    let schemas = Schemas::new(
        "readers",
        &[("x.capnp", "struct A {}"), ("x_capnp.capnp", "struct B {}")],
    );
    let error = schemas.builder().compile().unwrap_err().to_string();
    assert!(
        error.contains("file x.capnp and file x_capnp.capnp"),
        "{error}"
    );
}

#[test]
fn an_error_that_could_be_of_several_files_names_them_all() {
    let schemas = Schemas::new(
        "several",
        &[
            (
                "a.capnp",
                r#"interface A { b @0 () -> () $Bowline.fails("Denied"); }"#,
            ),
            ("bb.capnp", "struct Denied {}"),
            ("ccc.capnp", "struct Denied {}"),
        ],
    );
    let error = schemas.builder().compile().unwrap_err().to_string();
    let expected = r#"$fails("Denied") could be any of "#;
    assert!(error.contains(expected), "{error}");
    for place in ["bb.capnp:Denied", "ccc.capnp:Denied"] {
        assert!(error.contains(place), "{error}");
    }
}

#[test]
fn a_type_of_a_file_that_is_not_compiled_along_is_named() {
    let schemas = Schemas::new(
        "along",
        &[(
            "a.capnp",
            "using O = import \"/other.capnp\"; struct A { b @0 :O.B; }",
        )],
    );
    let other = schemas.0.join("import");
    std::fs::create_dir_all(&other).unwrap();
    let text = "@0xb0f1a3c5d7e90599; struct B {}";
    std::fs::write(other.join("other.capnp"), text).unwrap();
    let error = schemas.builder().import_path(other).compile().unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("a.capnp:3:45: A.b: `other.capnp:B`, of a file"),
        "{error}"
    );
}
