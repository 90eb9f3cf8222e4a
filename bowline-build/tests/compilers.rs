//! What compiles the schemas: the compiler in the crate, one on the machine, or nobody.

mod common;

use std::path::Path;
use std::process::Command;

use bowline_build::{Builder, Compiler, Error};
use common::Schemas;

const GOOD: &str = "struct A { name @0 :Text; }";

#[test]
fn a_committed_request_needs_no_compiler() {
    let schemas = Schemas::new("request", &[("a.capnp", "struct A { name @0 :Text; }")]);
    let request = schemas.0.join("request");
    schemas.builder().write_request(&request).compile().unwrap();
    let expected = schemas.code();
    std::fs::remove_dir_all(schemas.0.join("schema")).unwrap();
    std::fs::remove_file(schemas.out().join("a_bowline.rs")).unwrap();
    schemas
        .builder()
        .compiler(Compiler::Request(request))
        .compile()
        .unwrap();
    let code = schemas.code();
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
fn a_request_that_is_not_there_is_an_error_with_its_path() {
    let schemas = Schemas::new("nowhere", &[("a.capnp", GOOD)]);
    let nowhere = schemas.0.join("nowhere.request");
    let builder = schemas.builder().compiler(Compiler::Request(nowhere));
    let error = builder.compile().unwrap_err();
    assert!(matches!(error, Error::File { .. }), "{error}");
    assert!(error.to_string().contains("nowhere.request"), "{error}");
}

/// A program that answers as a `capnp` would, and notes what it was asked.
#[cfg(unix)]
fn answering(schemas: &Schemas, program: &str, script: &str) -> std::path::PathBuf {
    use std::os::unix::fs::PermissionsExt;

    let directory = schemas.0.join("bin");
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join(program);
    let asked = schemas.0.join("asked");
    let script = format!(
        "#!/bin/sh\necho \"$0 $@\" >> {}\n{script}\n",
        asked.display()
    );
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// Compiles what `SCHEMAS` says, in a process whose environment a test has set.
#[test]
#[ignore = "the process that the other tests start: cargo test -p bowline-build --test compilers"]
fn compiles_in_its_environment() {
    let root = std::path::PathBuf::from(std::env::var_os("SCHEMAS").unwrap());
    let builder = Builder::new(root.join("schema")).out_dir(root.join("out"));
    let builder = match std::env::var("COMPILER").unwrap().as_str() {
        "installed" => builder.compiler(Compiler::Installed),
        _ => builder,
    };
    if let Err(error) = builder.compile() {
        eprintln!("{error}");
        std::process::exit(1);
    }
}

/// The command that runs it. What it says goes to stderr, to be seen.
fn compiling(schemas: &Schemas, compiler: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([
            "--exact",
            "compiles_in_its_environment",
            "--ignored",
            "--nocapture",
        ])
        .env("SCHEMAS", &schemas.0)
        .env("COMPILER", compiler)
        .env_remove("CAPNP");
    command
}

fn asked(schemas: &Schemas) -> String {
    std::fs::read_to_string(schemas.0.join("asked")).unwrap_or_default()
}

/// Schemas, and the request that a compiler makes of them.
fn with_request(name: &str) -> (Schemas, String) {
    let schemas = Schemas::new(name, &[("a.capnp", GOOD)]);
    let request = schemas.0.join("request");
    schemas.builder().write_request(&request).compile().unwrap();
    std::fs::remove_file(schemas.out().join("a_bowline.rs")).unwrap();
    let print = format!("cat {}", request.display());
    (schemas, print)
}

#[cfg(unix)]
#[test]
fn the_compiler_that_capnp_names_is_asked_before_the_one_on_the_path() {
    let (schemas, print) = with_request("named");
    let named = answering(&schemas, "my-capnp", &print);
    let on_path = answering(&schemas, "capnp", &print);
    let path = std::env::join_paths([
        on_path.parent().unwrap(),
        Path::new("/usr/bin"),
        Path::new("/bin"),
    ]);
    let path = path.unwrap();

    let run = compiling(&schemas, "installed")
        .env("CAPNP", &named)
        .env("PATH", &path)
        .output();
    assert!(run.unwrap().status.success());
    assert!(schemas.code().contains("pub struct A"));
    let first = asked(&schemas);
    assert!(first.starts_with(&named.display().to_string()), "{first}");
    for argument in ["compile", "-o-", "--src-prefix=", "a.capnp", "-I"] {
        assert!(first.contains(argument), "{first}");
    }

    let run = compiling(&schemas, "installed").env("PATH", &path).output();
    assert!(run.unwrap().status.success());
    let second = asked(&schemas)[first.len()..].to_owned();
    assert!(
        second.starts_with(&on_path.display().to_string()),
        "{second}"
    );
}

#[cfg(unix)]
#[test]
fn no_compiler_on_the_machine_is_asked_unless_the_build_says_so() {
    let (schemas, _) = with_request("not-asked");
    let wrong = answering(&schemas, "capnp", "exit 1");
    let run = compiling(&schemas, "default")
        .env("CAPNP", &wrong)
        .env("PATH", wrong.parent().unwrap())
        .output();
    assert!(run.unwrap().status.success());
    assert_eq!(asked(&schemas), "");
    assert!(schemas.code().contains("pub struct A"));
}

#[cfg(unix)]
#[test]
fn what_a_compiler_on_the_machine_finds_reaches_the_person_as_it_is() {
    let (schemas, _) = with_request("complains");
    let complaint = "a.capnp:3:20-24: error: Not defined: Txet";
    let complains = answering(
        &schemas,
        "capnp",
        &format!("echo '{complaint}' >&2; exit 1"),
    );
    let run = compiling(&schemas, "installed")
        .env("CAPNP", complains)
        .output()
        .unwrap();
    assert!(!run.status.success());
    let said = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(said.contains(complaint), "{said}");
}

#[test]
fn a_compiler_that_cannot_be_run_is_named() {
    let (schemas, _) = with_request("missing");
    let empty = schemas.0.join("empty");
    for (variable, value, named) in [
        ("CAPNP", "/nowhere/my-capnp", "`/nowhere/my-capnp`"),
        ("PATH", empty.to_str().unwrap(), "`capnp`"),
    ] {
        let run = compiling(&schemas, "installed")
            .env(variable, value)
            .output()
            .unwrap();
        assert!(!run.status.success());
        let said = String::from_utf8_lossy(&run.stderr).into_owned();
        assert!(said.contains(named), "{said}");
    }
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
