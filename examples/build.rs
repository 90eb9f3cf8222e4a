//! Turns schema/*.capnp into the modules that the examples use.

fn main() -> Result<(), bowline_build::Error> {
    bowline_build::compile("schema/")
}
