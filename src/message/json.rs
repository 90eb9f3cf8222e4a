//! Plain values as JSON, where serde's own form loses something: NaN and the infinities are no numbers there.
//!
//! They are the words `"NaN"`, `"Infinity"` and `"-Infinity"`, in formats that are for people to read; the bits of a NaN
//! are not kept. All else is as serde has it.

use std::fmt;

use bytes::Bytes;
use serde::de::{Error, SeqAccess, Visitor};
use serde::ser::SerializeSeq;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Link, plain};

/// A plain value that has a form in JSON; generated structs and enums implement it.
#[doc(hidden)]
pub trait JsonValue: Sized {
    /// As [`Serialize::serialize`].
    ///
    /// # Errors
    /// Those of the format.
    fn to_json<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error>;

    /// As [`Deserialize::deserialize`].
    ///
    /// # Errors
    /// Those of the format.
    fn from_json<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error>;
}

/// For `#[serde(with = …)]`.
///
/// # Errors
/// Those of the format.
pub fn serialize<T: JsonValue, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
    value.to_json(to)
}

/// For `#[serde(with = …)]`.
///
/// # Errors
/// Those of the format.
pub fn deserialize<'de, T: JsonValue, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    T::from_json(from)
}

macro_rules! as_serde {
    ($($type_:ty),*) => {$(
        impl JsonValue for $type_ {
            fn to_json<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                self.serialize(to)
            }

            fn from_json<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                Self::deserialize(from)
            }
        }
    )*};
}

as_serde!(bool, u8, i8, u16, i16, u32, i32, u64, i64, String, Bytes);

impl<T> JsonValue for Link<T> {
    fn to_json<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.serialize(to)
    }

    fn from_json<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Self::deserialize(from)
    }
}

macro_rules! float {
    ($($float:ident $serialize:ident),*) => {$(
        impl JsonValue for $float {
            fn to_json<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                match (self.is_finite(), to.is_human_readable()) {
                    (true, _) | (_, false) => to.$serialize(*self),
                    _ if self.is_nan() => to.serialize_str("NaN"),
                    _ if *self > 0.0 => to.serialize_str("Infinity"),
                    _ => to.serialize_str("-Infinity"),
                }
            }

            fn from_json<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                struct Number;
                impl Visitor<'_> for Number {
                    type Value = $float;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("a number, \"NaN\", \"Infinity\" or \"-Infinity\"")
                    }

                    fn visit_f64<E: Error>(self, value: f64) -> Result<$float, E> {
                        Ok(value as $float)
                    }

                    fn visit_f32<E: Error>(self, value: f32) -> Result<$float, E> {
                        Ok(value.into())
                    }

                    fn visit_i64<E: Error>(self, value: i64) -> Result<$float, E> {
                        Ok(value as $float)
                    }

                    fn visit_u64<E: Error>(self, value: u64) -> Result<$float, E> {
                        Ok(value as $float)
                    }

                    fn visit_str<E: Error>(self, value: &str) -> Result<$float, E> {
                        match value {
                            "NaN" => Ok($float::NAN),
                            "Infinity" => Ok($float::INFINITY),
                            "-Infinity" => Ok($float::NEG_INFINITY),
                            other => Err(E::invalid_value(serde::de::Unexpected::Str(other), &self)),
                        }
                    }
                }
                match from.is_human_readable() {
                    true => from.deserialize_any(Number),
                    false => $float::deserialize(from),
                }
            }
        }
    )*};
}

float!(f32 serialize_f32, f64 serialize_f64);

impl<T: JsonValue> JsonValue for Vec<T> {
    fn to_json<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        struct Element<'a, T>(&'a T);
        impl<T: JsonValue> Serialize for Element<'_, T> {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                self.0.to_json(to)
            }
        }
        let mut list = to.serialize_seq(Some(self.len()))?;
        for value in self {
            list.serialize_element(&Element(value))?;
        }
        list.end()
    }

    fn from_json<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Element<T>(T);
        impl<'de, T: JsonValue> Deserialize<'de> for Element<T> {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                T::from_json(from).map(Self)
            }
        }
        struct List<T>(std::marker::PhantomData<T>);
        impl<'de, T: JsonValue> Visitor<'de> for List<T> {
            type Value = Vec<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
                let claimed = u32::try_from(list.size_hint().unwrap_or(0)).unwrap_or(u32::MAX);
                let mut values = plain::reserved(claimed);
                while let Some(Element(value)) = list.next_element()? {
                    values.push(value);
                }
                Ok(values)
            }
        }
        from.deserialize_seq(List(std::marker::PhantomData))
    }
}
