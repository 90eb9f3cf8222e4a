//! Generates the code of schema/.

fn main() -> Result<(), bowline_build::Error> {
    bowline_build::compile("schema/")
}
