//! What is wrong with a schema is said at build time, with its place, and never with a panic.

use std::path::{Path, PathBuf};

use bowline_build::{Builder, Compiler, Error};

/// A directory of schemas that goes away with the test.
struct Schemas(PathBuf);

impl Schemas {
    fn new(name: &str, files: &[(&str, &str)]) -> Self {
        let root =
            std::env::temp_dir().join(format!("bowline-build-{}-{name}", std::process::id()));
        for (file, text) in files {
            let path = root.join("schema").join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            let header = format!(
                "@0xb0f1a3c5d7e9{:04x};\nusing Bowline = import \"/bowline/bowline.capnp\";\n",
                0x500 + file.len()
            );
            std::fs::write(path, header + text).unwrap();
        }
        std::fs::create_dir_all(root.join("out")).unwrap();
        Self(root)
    }

    fn builder(&self) -> Builder {
        Builder::new(self.0.join("schema")).out_dir(self.out())
    }

    fn out(&self) -> PathBuf {
        self.0.join("out")
    }
}

impl Drop for Schemas {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn error_of(name: &str, text: &str) -> String {
    let schemas = Schemas::new(name, &[("a.capnp", text)]);
    schemas.builder().compile().unwrap_err().to_string()
}

#[test]
fn a_good_schema_compiles_and_its_docs_become_rustdoc() {
    let schemas = Schemas::new(
        "good",
        &[(
            "a.capnp",
            "struct A {\n  # What it is for.\n  name @0 :Text;\n  # Its name.\n}",
        )],
    );
    schemas.builder().compile().unwrap();
    let code = std::fs::read_to_string(schemas.out().join("a_bowline.rs")).unwrap();
    assert!(code.contains(r#"#[doc = "What it is for."]"#), "{code}");
    assert!(code.contains(r#"#[doc = "Its name."]"#), "{code}");
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
fn a_committed_request_needs_no_compiler() {
    let schemas = Schemas::new("request", &[("a.capnp", "struct A { name @0 :Text; }")]);
    let request = schemas.0.join("request");
    schemas.builder().write_request(&request).compile().unwrap();
    let expected = std::fs::read_to_string(schemas.out().join("a_bowline.rs")).unwrap();
    std::fs::remove_dir_all(schemas.0.join("schema")).unwrap();
    std::fs::remove_file(schemas.out().join("a_bowline.rs")).unwrap();
    schemas
        .builder()
        .compiler(Compiler::Request(request))
        .compile()
        .unwrap();
    let code = std::fs::read_to_string(schemas.out().join("a_bowline.rs")).unwrap();
    assert_eq!(code, expected);
}

#[test]
fn a_damaged_request_is_an_error() {
    let schemas = Schemas::new("damaged", &[("a.capnp", "struct A { name @0 :Text; }")]);
    let request = schemas.0.join("request");
    schemas.builder().write_request(&request).compile().unwrap();
    let whole = std::fs::read(&request).unwrap();
    for end in (0..whole.len()).step_by(97) {
        std::fs::write(&request, &whole[..end]).unwrap();
        let builder = schemas
            .builder()
            .compiler(Compiler::Request(request.clone()));
        assert!(builder.compile().is_err(), "cut at {end}");
    }
}

#[test]
fn a_syntax_error_and_a_missing_import_are_errors_of_the_compiler() {
    for (name, text) in [
        ("syntax", "struct A { name @0 :Txet; }"),
        (
            "import",
            "using B = import \"b.capnp\"; struct A { b @0 :B.B; }",
        ),
    ] {
        let schemas = Schemas::new(name, &[("a.capnp", text)]);
        assert!(
            matches!(schemas.builder().compile(), Err(Error::Schema { .. })),
            "{name}"
        );
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
fn a_compiler_that_cannot_be_run_is_named() {
    let schemas = Schemas::new("path", &[("a.capnp", "struct A {}")]);
    if std::env::var_os("CAPNP").is_none() && which("capnp").is_none() {
        let error = schemas
            .builder()
            .compiler(Compiler::Installed)
            .compile()
            .unwrap_err();
        assert!(error.to_string().contains("`capnp`"), "{error}");
    } else {
        schemas
            .builder()
            .compiler(Compiler::Installed)
            .compile()
            .unwrap();
    }
}

fn which(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|directory| directory.join(program))
        .find(|path| path.is_file())
}

#[test]
fn annotations_that_mean_nothing_are_errors_with_their_place() {
    for (name, text, expected) in [
        (
            "parsecs",
            r#"interface A { b @0 () -> () $Bowline.timeout("5 parsecs"); }"#,
            r#"a.capnp:A.b: $timeout("5 parsecs") has an unknown unit"#,
        ),
        (
            "nothing",
            r#"interface A $Bowline.timeout("0s") { b @0 () -> (); }"#,
            r#"a.capnp:A: $timeout("0s") is no time at all"#,
        ),
        (
            "both",
            "interface A { b @0 () -> () $Bowline.once $Bowline.idempotent; }",
            "a.capnp:A.b: $once",
        ),
        (
            "rerun",
            "interface A { b @0 () -> () $Bowline.rerun; }",
            "a.capnp:A.b: $rerun means something only beside $once",
        ),
        (
            "atomic",
            "interface A { b @0 () -> () $Bowline.once $Bowline.rerun $Bowline.atomic; }",
            "a.capnp:A.b: $rerun is said already by $atomic",
        ),
        (
            "fails",
            r#"interface A { b @0 () -> () $Bowline.fails("Nowhere"); }"#,
            r#"$fails("Nowhere") names no struct"#,
        ),
        (
            "topic",
            r#"struct A $Bowline.topic("") { b @0 :Text; }"#,
            "$topic(\"\") is empty",
        ),
        (
            "key",
            r#"struct A $Bowline.topic("a") { b @0 :List(Text) $Bowline.key; }"#,
            "$key(\"b\") must be Text",
        ),
        (
            "keys",
            r#"struct A $Bowline.topic("a") { b @0 :Text $Bowline.key; c @1 :Text $Bowline.key; }"#,
            "second key",
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
            "a.capnp:A.b: AnyPointer",
        ),
        (
            "capability",
            "interface I {} struct A { b @0 :I; }",
            "a.capnp:A.b: a capability",
        ),
        (
            "parameter",
            "interface I { b @0 (i :I) -> (); }",
            "a capability",
        ),
        (
            "stream",
            "interface I { b @0 () -> stream; }",
            "a.capnp:I.b: `-> stream`",
        ),
        (
            "generic",
            "interface I(T) { b @0 () -> (); }",
            "a.capnp:I: a generic interface",
        ),
        (
            "method",
            "interface I { b @0 [T] (t :T) -> (); }",
            "a.capnp:I.b: a generic method",
        ),
        ("void", "struct A { b @0 :List(Void); }", "a list of Void"),
        ("self", "enum A { self @0; }", "a member of the name `self`"),
    ] {
        let error = error_of(name, text);
        assert!(error.contains(expected), "{name}: {error}");
    }
}

#[test]
fn names_that_meet_in_rust_are_errors_with_both_owners() {
    for (name, text, expected) in [
        (
            "types",
            "struct AB {} struct A { struct B {} }",
            "`AB` in Rust",
        ),
        (
            "client",
            "interface A {} struct AClient {}",
            "`AClient` in Rust",
        ),
        (
            "which",
            "struct A { which @0 :Text; c @1 :Text; union { a @2 :Void; b @3 :Void; } }",
            "`which` in Rust",
        ),
        (
            "own",
            "interface A { connect @0 () -> (); }",
            "`connect` in Rust",
        ),
        (
            "plain",
            "interface A { b @0 () -> (); bPlain @1 () -> (); }",
            "`b_plain` in Rust",
        ),
        ("unknown", "enum A { unknown @0; }", "`Unknown` in Rust"),
    ] {
        let error = error_of(name, text);
        assert!(error.contains(expected), "{name}: {error}");
    }
    let schemas = Schemas::new(
        "stems",
        &[("a.capnp", "struct A {}"), ("other/a.capnp", "struct B {}")],
    );
    let error = schemas.builder().compile().unwrap_err().to_string();
    assert!(error.contains("a.capnp and file other/a.capnp"), "{error}");
}

/// The runtime's own schemas are committed compiled: is what is committed what they say?
#[test]
fn the_committed_request_is_that_of_the_schemas() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let schemas = Schemas::new("committed", &[]);
    let made = schemas.0.join("request");
    Builder::new(root.join("schema"))
        .out_dir(schemas.out())
        .write_request(&made)
        .compile()
        .unwrap();
    let nodes = |path: &Path| {
        let bytes = std::fs::read(path).unwrap();
        let message = capnp::serialize::read_message(&bytes[..], Default::default()).unwrap();
        let request = message
            .get_root::<capnp::schema_capnp::code_generator_request::Reader<'_>>()
            .unwrap();
        // By their text, without versions and positions in the source, which compilers add as they like.
        let mut nodes: Vec<String> = request
            .get_nodes()
            .unwrap()
            .iter()
            .map(|node| {
                let which = node
                    .which()
                    .ok()
                    .map(|_| format!("{node:?}"))
                    .unwrap_or_default();
                without_positions(&which)
            })
            .collect();
        nodes.sort();
        nodes
    };
    assert_eq!(
        nodes(&made),
        nodes(&root.join("schema/bowline.request")),
        "run `cargo run -p bowline-build --example request`"
    );
}

fn without_positions(text: &str) -> String {
    let mut kept = String::new();
    let mut rest = text;
    while let Some(start) = rest.find("startByte").or_else(|| rest.find("endByte")) {
        kept.push_str(&rest[..start]);
        let value = rest[start..].find([',', ')']).unwrap_or(0);
        rest = &rest[start + value.max(1)..];
    }
    kept + rest
}
