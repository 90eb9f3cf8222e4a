//! Plain Rust values of schema types: what is written into a message, and copied out of one.
//!
//! Generated structs and enums implement these traits; here are those of the types that they are
//! made of. What equals its default is not written: a null pointer reads the same.

use bytes::Bytes;
use capnp::message::{Builder, HeapAllocator};
use capnp::private::layout::{PointerReader, StructReader};
use capnp::traits::{FromPointerReader, HasStructSize, Owned};
use capnp::{
    Word, data, data_list, dynamic_struct, dynamic_value, list_list, primitive_list, text,
    text_list,
};

use super::nesting::{UNBOUNDED, check_nesting};
use super::{Limits, MessageError, canonical};

/// A list from outside may claim any length: this many elements are reserved before they are seen.
pub const ELEMENTS_RESERVED_MAX: usize = 4096;

/// A plain Rust value of a schema type.
pub trait Plain: Sized {
    /// The type in Cap'n Proto's terms.
    type Capnp: Owned + 'static;

    /// Levels of structs and lists that a value has at most; without end unless a type says so.
    #[doc(hidden)]
    const NESTING: u16 = UNBOUNDED;

    /// The largest length that a pointer can tell of.
    #[doc(hidden)]
    const LEN_MAX: u32 = ELEMENTS_MAX;

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
    /// For a union's member that this program's schema does not have, and for what is too long for any message.
    fn write(&self, to: <Self::Capnp as Owned>::Builder<'_>) -> capnp::Result<()>;

    /// Whether a null pointer reads as this value.
    #[doc(hidden)]
    fn is_default(&self) -> bool {
        false
    }

    /// A list of enums with a number that the schema does not have, as the list of numbers that it is.
    #[doc(hidden)]
    fn numbers(&self) -> Option<Numbers> {
        None
    }

    /// The value as a message of its own, which [`Msg::open`](super::Msg::open) reads: for what
    /// is stored, or travels within another.
    ///
    /// # Errors
    /// As [`write`](Self::write); [`MessageError::TooDeep`] for what readers would refuse.
    fn to_bytes(&self) -> Result<Bytes, MessageError> {
        let write = |to: <Self::Capnp as Owned>::Builder<'_>| self.write(to);
        let bytes = super::build_of_length::<Self::Capnp, capnp::Error>(len(self)?, write)?;
        check_nesting::<Self>(&bytes)?;
        Ok(bytes)
    }
}

/// The most elements that a list can have, whatever they are: a pointer has 29 bits for it.
const ELEMENTS_MAX: u32 = (1 << 29) - 1;

/// A plain Rust value that lists can be made of.
pub trait PlainElement: Sized {
    /// A list of it in Cap'n Proto's terms.
    type List: Owned + 'static;

    /// As [`Plain::NESTING`].
    #[doc(hidden)]
    const NESTING: u16 = UNBOUNDED;

    /// Of a struct: the words that each takes in a list.
    #[doc(hidden)]
    const WORDS_EACH: u32 = 0;

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

    /// As [`Plain::numbers`].
    #[doc(hidden)]
    fn list_of_numbers(_values: &[Self]) -> Option<Numbers> {
        None
    }
}

/// What does not fit is refused by [`len`], which is asked before anything is initialised.
fn saturated(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

/// The length to initialise for a value.
///
/// # Errors
/// For a value that no message can hold.
#[doc(hidden)]
#[inline]
pub fn len<T: Plain>(value: &T) -> capnp::Result<u32> {
    match value.init_len() {
        length if length <= T::LEN_MAX => Ok(length),
        length => Err(capnp::Error::failed(format!(
            "a value of length {length} does not fit into a message: {} is the most",
            T::LEN_MAX
        ))),
    }
}

/// An empty vector with room for a list that claims this length.
#[doc(hidden)]
pub fn reserved<T>(length: u32) -> Vec<T> {
    Vec::with_capacity((length as usize).min(ELEMENTS_RESERVED_MAX))
}

impl Plain for String {
    type Capnp = text::Owned;
    const NESTING: u16 = 0;
    // A text ends with a zero.
    const LEN_MAX: u32 = ELEMENTS_MAX - 1;

    fn is_default(&self) -> bool {
        self.is_empty()
    }

    fn init_len(&self) -> u32 {
        saturated(self.len())
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
    const NESTING: u16 = 0;

    fn is_default(&self) -> bool {
        self.is_empty()
    }

    fn init_len(&self) -> u32 {
        saturated(self.len())
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
    const NESTING: u16 = deeper(T::NESTING);
    const LEN_MAX: u32 = match T::WORDS_EACH {
        0 => ELEMENTS_MAX,
        words => ELEMENTS_MAX / words,
    };

    fn is_default(&self) -> bool {
        self.is_empty()
    }

    fn numbers(&self) -> Option<Numbers> {
        T::list_of_numbers(self)
    }

    fn init_len(&self) -> u32 {
        saturated(self.len())
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
            const NESTING: u16 = 0;

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
    const NESTING: u16 = 0;

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
    const NESTING: u16 = 0;

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
    const NESTING: u16 = 0;

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
    const NESTING: u16 = deeper(T::NESTING);

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
            match T::list_of_numbers(value) {
                Some(numbers) => to.set(i, numbers.get::<T::List>()?)?,
                None => T::write_list(value, to.reborrow().init(i, len(value)?))?,
            }
        }
        Ok(())
    }
}

// ---- what generated code is made with ----

/// One level more.
#[doc(hidden)]
pub const fn deeper(nesting: u16) -> u16 {
    nesting.saturating_add(1)
}

/// The most of several.
#[doc(hidden)]
pub const fn deepest(nestings: &[u16]) -> u16 {
    let (mut deepest, mut index) = (0, 0);
    while index < nestings.len() {
        if nestings[index] > deepest {
            deepest = nestings[index];
        }
        index += 1;
    }
    deepest
}

/// The words of a struct.
#[doc(hidden)]
pub const fn struct_words<T: HasStructSize>() -> u32 {
    T::STRUCT_SIZE.data as u32 + T::STRUCT_SIZE.pointers as u32
}

/// The error of a builder that is asked for an enumerant which the schema does not have.
#[doc(hidden)]
pub fn not_in_schema(type_: &str, number: u16) -> capnp::Error {
    capnp::Error::failed(format!(
        "{type_} has no number {number} in this program's schema"
    ))
}

/// The error of a plain value with a member of a union that the schema does not have: what the member holds is not known
/// here, so it cannot be written again.
#[doc(hidden)]
pub fn member_not_in_schema(type_: &str, number: u16) -> capnp::Error {
    capnp::Error {
        kind: capnp::ErrorKind::EnumValueOrUnionDiscriminantNotPresent(capnp::NotInSchema(number)),
        extra: format!("{type_}, member {number}"),
    }
}

/// A list of numbers, to be read as the list of enums that it is.
#[doc(hidden)]
pub struct Numbers(Builder<HeapAllocator>);

impl Numbers {
    /// The list as what the schema says.
    ///
    /// # Errors
    /// Never for a list of enums.
    pub fn get<T: Owned>(&self) -> capnp::Result<T::Reader<'_>> {
        self.0.get_root_as_reader()
    }
}

/// The numbers of a list of enums, unless its builder takes all of them.
#[doc(hidden)]
pub fn numbers_unless<T: Copy>(
    values: &[T],
    is_known: impl Fn(T) -> bool,
    number: impl Fn(T) -> u16,
) -> Option<Numbers> {
    if values.iter().all(|value| is_known(*value)) {
        return None;
    }
    let mut message = Builder::new_default();
    let length = saturated(values.len()).min(ELEMENTS_MAX);
    let mut list = message.initn_root::<primitive_list::Builder<'_, u16>>(length);
    for (i, value) in (0..length).zip(values) {
        list.set(i, number(*value));
    }
    Some(Numbers(message))
}

/// Sets a field of an enum to a number that its schema does not have.
///
/// # Errors
/// Never for generated structs.
#[doc(hidden)]
#[cold]
pub fn set_number(to: dynamic_value::Builder<'_>, field: u16, number: u16) -> capnp::Result<()> {
    let mut to: dynamic_struct::Builder<'_> = to.downcast();
    let field = to.get_schema().get_fields()?.get(field);
    let capnp::introspect::TypeVariant::Enum(schema) = field.get_type().which() else {
        return Err(capnp::Error::failed("not an enum".into()));
    };
    to.set(
        field,
        dynamic_value::Enum::new(number, schema.into()).into(),
    )
}

/// Sets a field to a null pointer; it becomes the member that its union has set.
///
/// # Errors
/// Never for generated structs.
#[doc(hidden)]
#[cold]
pub fn set_null(to: dynamic_value::Builder<'_>, field: u16) -> capnp::Result<()> {
    let mut to: dynamic_struct::Builder<'_> = to.downcast();
    let field = to.get_schema().get_fields()?.get(field);
    to.clear(field)
}

/// Whether two values are the same when they are written, to the last bit.
#[doc(hidden)]
pub fn same_bits<T: Plain>(a: &T, b: &T) -> bool {
    // One may be in more segments than the other.
    let bits = |value: &T| {
        let limits = Limits::default()
            .with_message_bytes_max(usize::MAX)
            .with_traversal(usize::MAX, usize::MAX);
        canonical(&value.to_bytes().ok()?, &limits, <[u8]>::to_vec).ok()
    };
    // What cannot be written is no default.
    matches!((bits(a), bits(b)), (Some(a), Some(b)) if a == b)
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
