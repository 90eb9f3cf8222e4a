//! Generates the readers and builders of the crate's own schemas, from the committed request that
//! the schema compiler made of them: users of the crate need no schema compiler for these.
//!
//! `cargo run -p bowline-build --example request` makes the request anew.

use std::error::Error;
use std::fs::File;

const REQUEST: &str = "schema/bowline.request";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={REQUEST}");
    capnpc::codegen::CodeGenerationCommand::new()
        .output_directory(std::env::var("OUT_DIR")?)
        .run(File::open(REQUEST)?)?;
    Ok(())
}
