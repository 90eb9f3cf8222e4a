//! Plain Rust values of schema types.
use capnp::traits::Owned;
/// A plain Rust value of a schema type.
pub trait Plain: Sized {
    /// The Cap'n Proto type.
    type Capnp: Owned + 'static;
    /// Length of a list.
    fn init_len(&self) -> u32 {
        0
    }
    /// Reads.
    fn read(reader: <Self::Capnp as Owned>::Reader<'_>) -> capnp::Result<Self>;
    /// Writes.
    fn write(&self, builder: <Self::Capnp as Owned>::Builder<'_>) -> capnp::Result<()>;
}
impl Plain for String {
    type Capnp = capnp::text::Owned;
    fn read(reader: capnp::text::Reader<'_>) -> capnp::Result<Self> {
        Ok(reader.to_str()?.to_owned())
    }
    fn write(&self, mut builder: capnp::text::Builder<'_>) -> capnp::Result<()> {
        builder.push_str(self);
        Ok(())
    }
}
