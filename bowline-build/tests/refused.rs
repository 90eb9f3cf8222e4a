//! Each schema is compiled or refused with what can be done instead; and what several files, directories and crates
//! have to do with each other.

mod common;

use std::process::Command;

use bowline_build::{Builder, Error};
use common::{Schemas, header};

fn compile(name: &str, text: &str) -> Result<String, String> {
    let schemas = Schemas::new(name, &[("a.capnp", text)]);
    match schemas.builder().compile() {
        Ok(()) => Ok(schemas.code()),
        Err(error) => Err(error.to_string()),
    }
}

#[test]
fn what_is_refused_says_what_to_do_instead() {
    for (name, text, expected) in [
        (
            "any",
            "struct A { b @0 :AnyPointer; }",
            "AnyPointer is not supported; use a type parameter",
        ),
        (
            "generic-interface",
            "interface I(T) { b @0 () -> (); }",
            "a generic interface is not supported; give it no type parameters",
        ),
        (
            "growth",
            "struct Pair(A, B) { a @0 :A; b @1 :B; } struct G(T) { next @0 :G(Pair(T, T)); }",
            "a.capnp:3:55: G.next: a generic struct that contains itself with larger arguments is not supported; use",
        ),
        (
            "growth-in-lists",
            "struct Box(A) { a @0 :A; } struct G(T) { all @0 :List(G(Box(T))); }",
            "a generic struct that contains itself with larger arguments",
        ),
        (
            "default",
            "struct N { v @0 :UInt32 = 7; next @1 :N = (v = 3); }",
            "a.capnp:3:30: N.next: a default of a field that can contain its own struct is not supported; leave it out",
        ),
        (
            "fails-generic",
            r#"struct R(T) { why @0 :T; } interface S { go @0 () -> () $Bowline.fails("R"); }"#,
            r#"S.go: $fails("R") has type parameters; name a struct without them"#,
        ),
        (
            "fails-enum",
            r#"enum R { a @0; } interface S { go @0 () -> () $Bowline.fails("R"); }"#,
            r#"S.go: $fails("R") is not a struct"#,
        ),
        (
            "key-alone",
            "struct A { k @0 :Text $Bowline.key; }",
            "A.k: $key means something only in a struct with $topic or $queue",
        ),
        (
            "key-secret",
            r#"struct A $Bowline.topic("a") { k @0 :Text $Bowline.key $Bowline.secret; }"#,
            "A.k: $key and $secret exclude each other",
        ),
        (
            "key-in-union",
            r#"struct A $Bowline.topic("a") { u :union { g :group { k @0 :Text $Bowline.key; } b @1 :Void; } }"#,
            "$key is for Text, integers and Bool, and not for members of a union",
        ),
        (
            "star",
            r#"interface S $Bowline.service("*") { go @0 () -> (); }"#,
            r#"a.capnp:3:11: S: $service("*") is not a name: use letters"#,
        ),
        (
            "look-alike",
            "struct A $Bowline.queue(\"p\u{430}y\") { n @0 :Text; }",
            "is not a name: use letters and digits of ASCII",
        ),
        (
            "two-topics",
            r#"struct A $Bowline.topic("x") $Bowline.topic("y") { n @0 :Text; }"#,
            "a.capnp:3:8: A: $topic is there twice; remove one",
        ),
        (
            "two-timeouts",
            r#"interface S { go @0 () -> () $Bowline.timeout("1s") $Bowline.timeout("9s"); }"#,
            "S.go: $timeout is there twice",
        ),
        (
            "two-secrets",
            "struct A { n @0 :Text $Bowline.secret $Bowline.secret; }",
            "A.n: $secret is there twice",
        ),
        (
            "unknown",
            "enum State { unknown @0; on @1; }",
            "would both be `Unknown` in Rust; rename one, or give it another name in Rust only: $rustName(\"…\")",
        ),
        (
            "rust-name",
            r#"struct A { n @0 :Text $Bowline.rustName("a b"); }"#,
            r#"A.n: $rustName("a b") is no name in Rust"#,
        ),
    ] {
        let error = compile(name, text).expect_err(name);
        assert!(error.contains(expected), "{name}: {error}");
    }
}

#[test]
fn two_of_one_name_are_refused_and_two_versions_of_one_are_not() {
    for (annotation, declaration) in [
        ("topic", "struct"),
        ("queue", "struct"),
        ("service", "interface"),
    ] {
        let text =
            |name: &str| format!("{declaration} {name} $Bowline.{annotation}(\"same\") {{}}");
        let in_one = format!("{} {}", text("A"), text("B"));
        let error = compile(&format!("one-{annotation}"), &in_one).expect_err("two of one name");
        let expected = format!("B: ${annotation}(\"same\") is the name of a.capnp:A too");
        assert!(error.contains(&expected), "{error}");

        let (first, second) = (text("A"), text("B"));
        let schemas = Schemas::new(
            &format!("files-{annotation}"),
            &[("a.capnp", &first), ("bb.capnp", &second)],
        );
        let error = schemas.builder().compile().unwrap_err();
        assert!(matches!(error, Error::SameName { .. }), "{error}");

        let schemas = Schemas::new(
            &format!("versions-{annotation}"),
            &[("v1/a.capnp", &first), ("v2.1/a.capnp", &first)],
        );
        schemas.builder().compile().unwrap();
    }
    let error = compile(
        "implicit",
        "interface LogIn {} interface Other $Bowline.service(\"log_in\") {}",
    );
    assert!(error.unwrap_err().contains("$service(\"log_in\")"));
}

#[test]
fn the_error_of_a_method_is_found_as_a_type_is() {
    let common = "struct Refused { code @0 :UInt16; struct Deep { x @0 :Text; } }";
    let other = "struct Refused { why @0 :Text; } struct Denied {}";
    let paths = |text: &str| {
        let schemas = Schemas::new(
            "fails-found",
            &[
                ("a.capnp", text),
                ("bb/common.capnp", common),
                ("other.capnp", other),
            ],
        );
        schemas
            .builder()
            .compile()
            .map(|()| schemas.code())
            .map_err(|error| error.to_string())
    };
    let using = "using Common = import \"bb/common.capnp\"; using Other = import \"other.capnp\"; using O = Other; \
                 using D = Common.Refused.Deep; using import \"other.capnp\".Denied;";
    for (name, found) in [
        ("Common.Refused", "crate::bb::common::Refused>"),
        ("Common.Refused.Deep", "crate::bb::common::RefusedDeep>"),
        ("Other.Refused", "crate::other::Refused>"),
        ("O.Refused", "crate::other::Refused>"),
        ("D", "crate::bb::common::RefusedDeep>"),
        ("Denied", "crate::other::Denied>"),
        (".Own.Inner", "crate::a::OwnInner>"),
        ("Own", "crate::a::Own>"),
        ("Inner", "crate::a::SInner>"),
        ("Within", "crate::a::SInner>"),
    ] {
        let text = format!(
            "{using} struct Own {{ struct Inner {{}} }} interface S {{ using Within = Inner; struct Inner {{}} \
             go @0 () -> () $Bowline.fails(\"{name}\"); }}"
        );
        let code = paths(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(code.contains(&format!("Failure<{found}")), "{name}: {code}");
    }
    let text = "interface S { go @0 () -> () $Bowline.fails(\"Refused\"); }";
    let error = paths(text).unwrap_err();
    assert!(
        error.contains("could be any of") && error.contains("say which"),
        "{error}"
    );
}

#[test]
fn several_compilations_of_one_build_are_included_together() {
    let first = Schemas::new("twice-a", &[("a.capnp", "struct A { x @0 :Int32; }")]);
    let second = Schemas::new(
        "twice-b",
        &[(
            "later.capnp",
            "using A = import \"/a.capnp\"; struct B { a @0 :A.A; }",
        )],
    );
    let compile_second = || {
        Builder::new(second.0.join("schema"))
            .import_path(first.0.join("schema"))
            .out_dir(first.out())
            .compile()
    };
    first.builder().compile().unwrap();
    compile_second().unwrap();
    // Again, in the other order: neither is there twice.
    first.builder().compile().unwrap();
    let root = std::fs::read_to_string(first.out().join("bowline.rs")).unwrap();
    for module in [
        "pub mod a {",
        "pub mod a_capnp {",
        "pub mod later {",
        "pub mod later_capnp {",
    ] {
        assert_eq!(root.matches(module).count(), 1, "{module}: {root}");
    }
    let code = std::fs::read_to_string(first.out().join("later_bowline.rs")).unwrap();
    assert!(code.contains("crate::a::A"), "{code}");

    // What would be overwritten or belongs elsewhere is an error.
    let third = Schemas::new("twice-c", &[("sub/a.capnp", "struct C {}")]);
    let clash = Builder::new(third.0.join("schema/sub"))
        .out_dir(first.out())
        .compile();
    let clash = clash.unwrap_err().to_string();
    assert!(clash.contains("would both be `a` in Rust"), "{clash}");
    let elsewhere = Builder::new(third.0.join("schema"))
        .out_dir(first.out())
        .parent_module("api");
    let error = elsewhere.compile().unwrap_err();
    assert!(matches!(error, Error::ParentModules { .. }), "{error}");
}

#[test]
fn types_of_another_crate_are_named_by_its_path() {
    let common = Schemas::new(
        "extern-common",
        &[(
            "v1/common.capnp",
            "struct User { name @0 :Text; } struct Page(T) { first @0 :T; }",
        )],
    );
    let text = "using Common = import \"/v1/common.capnp\"; \
                struct A { user @0 :Common.User; page @1 :Common.Page(Common.User); users @2 :List(Common.User); }";
    let schemas = Schemas::new("extern", &[("a.capnp", text)]);
    let builder = schemas
        .builder()
        .extern_crate("common::api", common.0.join("schema"));
    builder.compile().unwrap();
    let code = schemas.code();
    for path in [
        "::common::api::v1::common::User",
        "::common::api::v1::common::Page<::common::api::v1::common::User>",
    ] {
        assert!(code.contains(path), "{path}: {code}");
    }
    let readers = std::fs::read_to_string(schemas.out().join("a_capnp.rs")).unwrap();
    assert!(
        readers.contains("::common::api::v1::common_capnp::user::Reader"),
        "{readers}"
    );
    assert!(!schemas.out().join("v1/common_bowline.rs").exists());
    let root = std::fs::read_to_string(schemas.out().join("bowline.rs")).unwrap();
    assert!(!root.contains("common"), "{root}");
}

#[test]
fn files_that_editors_leave_and_links_in_a_circle_are_no_schemas() {
    let schemas = Schemas::new(
        "editors",
        &[("a.capnp", "struct A {}"), ("b/bb.capnp", "struct B {}")],
    );
    let directory = schemas.0.join("schema");
    for (name, text) in [
        (".#a.capnp", "user@host"),
        (".a.capnp", "not a schema"),
        ("#a.capnp", "not a schema"),
        ("a.capnp~", "not a schema"),
        (".a.capnp.swp", "not a schema"),
    ] {
        std::fs::write(directory.join(name), text).unwrap();
    }
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("user@host.314", directory.join("nowhere.capnp")).unwrap();
        std::os::unix::fs::symlink("..", directory.join("b/loop")).unwrap();
        std::os::unix::fs::symlink("loop2", directory.join("loop2")).unwrap();
    }
    schemas.builder().compile().unwrap();
    let root = std::fs::read_to_string(schemas.out().join("bowline.rs")).unwrap();
    assert_eq!(root.matches("pub mod ").count(), 5, "{root}");
}

#[test]
fn any_file_name_is_compiled() {
    let files = [
        "1.capnp",
        "a.b.capnp",
        "self.capnp",
        "ü-ü.capnp",
        "x/1/yy.capnp",
        "bowline.capnp",
        "subd/std.capnp",
        "a b c d e.capnp",
    ];
    let schemas = Schemas::new("file-name", &files.map(|file| (file, "struct A {}")));
    schemas.builder().compile().unwrap();
    let root = std::fs::read_to_string(schemas.out().join("bowline.rs")).unwrap();
    for module in [
        "_1",
        "a_b",
        "self_",
        "ü_ü",
        "yy",
        "bowline_",
        "std_",
        "a_b_c_d_e",
    ] {
        assert!(
            root.contains(&format!("pub mod {module} {{")),
            "{module}: {root}"
        );
    }
}

/// Compiles what `SCHEMAS` says, with `IMPORTS` as a further directory.
#[test]
#[ignore = "the process that the other tests start: cargo test -p bowline-build --test refused"]
fn compiles_with_imports() {
    let root = std::path::PathBuf::from(std::env::var_os("SCHEMAS").unwrap());
    let imports = std::env::var_os("IMPORTS").unwrap();
    Builder::new(root.join("schema"))
        .out_dir(root.join("out"))
        .import_path(imports)
        .compile()
        .unwrap();
}

#[test]
fn cargo_watches_all_that_is_read() {
    let outside = Schemas::new(
        "watched-outside",
        &[
            (
                "limits.capnp",
                "using More = import \"more/more.capnp\"; const wait :Text = More.wait;",
            ),
            (
                "more/more.capnp",
                "const wait :Text = \"9s\"; const bytes :Data = embed \"bytes.bin\";",
            ),
        ],
    );
    std::fs::write(outside.0.join("schema/more/bytes.bin"), b"\xff").unwrap();
    let text = "using Limits = import \"/limits.capnp\"; \
                interface S { get @0 () -> () $Bowline.timeout(Limits.wait); }";
    let schemas = Schemas::new("watched", &[("a.capnp", text)]);
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "compiles_with_imports",
            "--ignored",
            "--nocapture",
        ])
        .env("SCHEMAS", &schemas.0)
        .env("IMPORTS", outside.0.join("schema"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}");
    for file in ["limits.capnp", "more/more.capnp", "more/bytes.bin"] {
        let line = format!(
            "cargo:rerun-if-changed={}",
            outside.0.join("schema").join(file).display()
        );
        assert!(said.contains(&line), "{line}: {said}");
    }
    assert!(schemas.code().contains("Duration::new(9, 0)"));
}

#[test]
fn comments_become_text() {
    let text = "struct A {\n  # Usage:\n  #\n  #     let x = 1;\n  #\n  # See [other] and https://a.b/c, of List<Text>.\n  n @0 :Text;\n}\n";
    let code = compile("comments", text).unwrap();
    for line in [
        "```text",
        "    let x = 1;",
        "See \\\\[other\\\\] and <https://a.b/c>, of List\\\\<Text\\\\>.",
    ] {
        let docs = format!("#[doc = \"{line}\"]");
        assert!(code.contains(&docs), "{docs}: {code}");
    }
    assert_ne!(header("a.capnp"), "");
}
