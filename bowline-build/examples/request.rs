//! Makes `schema/bowline.request` anew: the compiled form of the runtime's own schemas.
//!
//! Run at the root of the repository, after a change to `schema/*.capnp`.

fn main() -> Result<(), bowline_build::Error> {
    let scratch = std::env::temp_dir().join("bowline-request");
    std::fs::create_dir_all(&scratch).map_err(|reason| bowline_build::Error::File {
        path: scratch.clone(),
        reason,
    })?;
    bowline_build::Builder::new("schema")
        .out_dir(&scratch)
        .write_request("schema/bowline.request")
        .compile()
}
