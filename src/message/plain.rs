//! Plain Rust values of schema types: what is written into a message, and copied out of one.
//!
//! Generated structs and enums implement these traits; here are those of the types that they are
//! made of.

use bytes::Bytes;
use capnp::message::Builder;
use capnp::private::layout::{PointerReader, StructReader};
use capnp::traits::{FromPointerReader, Owned};
use capnp::{Word, data, data_list, list_list, primitive_list, text, text_list};

/// A list from outside may claim any length: this many elements are reserved before they are seen.
pub const ELEMENTS_RESERVED_MAX: usize = 4096;

/// A plain Rust value of a schema type.
pub trait Plain: Sized {
    /// The type in Cap'n Proto's terms.
    type Capnp: Owned + 'static;

    /// The length of what is to be initialised for it: of text, data or a list.
    fn init_len(&self) -> u32 {
        0
    }

    /// Copies the value out of a message.
    ///
    /// # Errors
    /// For what is not of this type, and over the limits of the reader.
    fn read(from: <Self::Capnp as Owned>::Reader<'_>) -> capnp::Result<Self>;

    /// Writes the value into a message.
    ///
    /// # Errors
    /// For an enumerant or a union's member that this program's schema does not have.
    fn write(&self, to: <Self::Capnp as Owned>::Builder<'_>) -> capnp::Result<()>;

    /// The value as a message of its own, which [`Msg::open`](super::Msg::open) reads: for what
    /// is stored, or travels within another.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    fn to_bytes(&self) -> Result<Bytes, super::MessageError> {
        let write = |to: <Self::Capnp as Owned>::Builder<'_>| self.write(to);
        Ok(super::build_of_length::<Self::Capnp, capnp::Error>(
            self.init_len(),
            write,
        )?)
    }
}

/// A plain Rust value that lists can be made of.
pub trait PlainElement: Sized {
    /// A list of it in Cap'n Proto's terms.
    type List: Owned + 'static;

    /// Copies a list out of a message.
    ///
    /// # Errors
    /// As [`Plain::read`].
    fn read_list(from: <Self::List as Owned>::Reader<'_>) -> capnp::Result<Vec<Self>>;

    /// Writes a list that has room for all values.
    ///
    /// # Errors
    /// As [`Plain::write`].
    fn write_list(values: &[Self], to: <Self::List as Owned>::Builder<'_>) -> capnp::Result<()>;
}

/// A length that does not fit is refused by the message's own limits long before.
fn len(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

/// An empty vector with room for a list that claims this length.
#[doc(hidden)]
pub fn reserved<T>(length: u32) -> Vec<T> {
    Vec::with_capacity((length as usize).min(ELEMENTS_RESERVED_MAX))
}

impl Plain for String {
    type Capnp = text::Owned;

    fn init_len(&self) -> u32 {
        len(self.len())
    }

    fn read(from: text::Reader<'_>) -> capnp::Result<Self> {
        Ok(from.to_str()?.to_owned())
    }

    fn write(&self, mut to: text::Builder<'_>) -> capnp::Result<()> {
        to.push_str(self);
        Ok(())
    }
}

impl Plain for Bytes {
    type Capnp = data::Owned;

    fn init_len(&self) -> u32 {
        len(self.len())
    }

    fn read(from: data::Reader<'_>) -> capnp::Result<Self> {
        Ok(Self::copy_from_slice(from))
    }

    fn write(&self, to: data::Builder<'_>) -> capnp::Result<()> {
        to.copy_from_slice(self);
        Ok(())
    }
}

impl<T: PlainElement> Plain for Vec<T> {
    type Capnp = T::List;

    fn init_len(&self) -> u32 {
        len(self.len())
    }

    fn read(from: <T::List as Owned>::Reader<'_>) -> capnp::Result<Self> {
        T::read_list(from)
    }

    fn write(&self, to: <T::List as Owned>::Builder<'_>) -> capnp::Result<()> {
        T::write_list(self, to)
    }
}

macro_rules! number {
    ($($number:ty),*) => {$(
        impl PlainElement for $number {
            type List = primitive_list::Owned<$number>;

            fn read_list(from: primitive_list::Reader<'_, $number>) -> capnp::Result<Vec<Self>> {
                match from.as_slice() {
                    Some(slice) => Ok(slice.to_vec()),
                    // Elements that another schema made wider.
                    None => Ok(from.iter().collect()),
                }
            }

            fn write_list(values: &[Self], mut to: primitive_list::Builder<'_, $number>) -> capnp::Result<()> {
                match to.as_slice() {
                    Some(slice) => slice.copy_from_slice(values),
                    None => for (i, value) in (0u32..).zip(values) {
                        to.set(i, *value);
                    },
                }
                Ok(())
            }
        }
    )*};
}

number!(u8, i8, u16, i16, u32, i32, u64, i64, f32, f64);

impl PlainElement for bool {
    type List = primitive_list::Owned<bool>;

    fn read_list(from: primitive_list::Reader<'_, bool>) -> capnp::Result<Vec<Self>> {
        let mut values = reserved(from.len());
        values.extend(from.iter());
        Ok(values)
    }

    fn write_list(values: &[Self], mut to: primitive_list::Builder<'_, bool>) -> capnp::Result<()> {
        for (i, value) in (0u32..).zip(values) {
            to.set(i, *value);
        }
        Ok(())
    }
}

impl PlainElement for String {
    type List = text_list::Owned;

    fn read_list(from: text_list::Reader<'_>) -> capnp::Result<Vec<Self>> {
        let mut values = reserved(from.len());
        for text in from.iter() {
            values.push(Plain::read(text?)?);
        }
        Ok(values)
    }

    fn write_list(values: &[Self], mut to: text_list::Builder<'_>) -> capnp::Result<()> {
        for (i, value) in (0u32..).zip(values) {
            to.set(i, &value[..]);
        }
        Ok(())
    }
}

impl PlainElement for Bytes {
    type List = data_list::Owned;

    fn read_list(from: data_list::Reader<'_>) -> capnp::Result<Vec<Self>> {
        let mut values = reserved(from.len());
        for data in from.iter() {
            values.push(Plain::read(data?)?);
        }
        Ok(values)
    }

    fn write_list(values: &[Self], mut to: data_list::Builder<'_>) -> capnp::Result<()> {
        for (i, value) in (0u32..).zip(values) {
            to.set(i, value);
        }
        Ok(())
    }
}

impl<T: PlainElement> PlainElement for Vec<T> {
    type List = list_list::Owned<T::List>;

    fn read_list(from: <Self::List as Owned>::Reader<'_>) -> capnp::Result<Vec<Self>> {
        let mut values = reserved(from.len());
        for i in 0..from.len() {
            values.push(T::read_list(from.get(i)?)?);
        }
        Ok(values)
    }

    fn write_list(
        values: &[Self],
        mut to: <Self::List as Owned>::Builder<'_>,
    ) -> capnp::Result<()> {
        for (i, value) in (0u32..).zip(values) {
            T::write_list(value, to.reborrow().init(i, len(value.len())))?;
        }
        Ok(())
    }
}

// ---- what generated code is made with ----

/// The error of a builder that is asked for what the schema does not have.
#[doc(hidden)]
pub fn not_in_schema(type_: &str, number: u16) -> capnp::Error {
    capnp::Error::failed(format!(
        "{type_} has no number {number} in this program's schema"
    ))
}

/// The value that a null pointer to a struct reads as: the defaults of its schema.
///
/// # Panics
/// Never for generated structs, whose null is always readable.
#[doc(hidden)]
pub fn default_struct<T: Plain>() -> T {
    let empty = Builder::new_default();
    empty
        .get_root_as_reader()
        .and_then(T::read)
        .expect("the null struct is readable")
}

/// The same for a group, which has no pointer of its own.
///
/// # Panics
/// As [`default_struct`].
#[doc(hidden)]
pub fn default_group<T>(read: impl FnOnce(StructReader<'_>) -> capnp::Result<T>) -> T {
    struct AnyStruct<'a>(StructReader<'a>);
    impl<'a> FromPointerReader<'a> for AnyStruct<'a> {
        fn get_from_pointer(
            pointer: &PointerReader<'a>,
            default: Option<&'a [Word]>,
        ) -> capnp::Result<Self> {
            Ok(Self(pointer.get_struct(default)?))
        }
    }
    let empty = Builder::new_default();
    empty
        .get_root_as_reader::<AnyStruct<'_>>()
        .and_then(|any| read(any.0))
        .expect("the null struct is readable")
}
