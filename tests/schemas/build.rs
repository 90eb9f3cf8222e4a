//! Generates the code of schema/, of what is compiled after it, and of random schemas.

#[path = "random/mod.rs"]
mod random;

use std::path::PathBuf;

use bowline_build::Builder;

fn main() -> Result<(), bowline_build::Error> {
    Builder::new("schema/")
        .extern_crate("bowline_test_common", "common/schema")
        .compile()?;
    Builder::new("more/").import_path("schema/").compile()?;
    Builder::new("newer/").compile()?;

    println!("cargo:rerun-if-changed=random");
    println!("cargo:rerun-if-env-changed=SCHEMAS_SEED");
    println!("cargo:rerun-if-env-changed=SCHEMAS_COUNT");
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seed = number("SCHEMAS_SEED").unwrap_or(1);
    let count = number("SCHEMAS_COUNT").unwrap_or(6);
    let out_dir = PathBuf::from(std::env::var_os("OUT_DIR").ok_or(bowline_build::Error::NoOutDir)?);
    random::write(&out_dir, seed, count).map_err(|reason| bowline_build::Error::File {
        path: out_dir.clone(),
        reason,
    })?;
    Builder::new(out_dir.join("random")).compile()
}
