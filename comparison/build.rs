//! The same service for each contender that generates code.

use std::error::Error;
use std::path::PathBuf;

use tonic_build::manual::{Builder, Method, Service};

fn main() -> Result<(), Box<dyn Error>> {
    let out_dir = PathBuf::from(std::env::var("OUT_DIR")?);
    let request = out_dir.join("echo.request");
    bowline_build::Builder::new("schema/")
        .write_request(&request)
        .compile()?;

    // capnp-rpc takes capnpc's own code, in a module that is not Bowline's.
    capnpc::codegen::CodeGenerationCommand::new()
        .output_directory(out_dir.join("rpc"))
        .default_parent_module(vec!["contenders".into(), "capnp_rpc".into()])
        .run(std::fs::File::open(&request)?)?;

    let ping = Method::builder()
        .name("ping")
        .route_name("Ping")
        .input_type("crate::contenders::tonic::Ping")
        .output_type("crate::contenders::tonic::Ping")
        .codec_path("tonic_prost::ProstCodec")
        .build();
    let echo = Service::builder()
        .name("Echo")
        .package("echo")
        .method(ping)
        .build();
    Builder::new().compile(&[echo]);
    Ok(())
}
