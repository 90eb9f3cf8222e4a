//! `Link(T)` of `schema/bowline.capnp`: a reference to a resource of another service.

use std::fmt;
use std::marker::PhantomData;

use bytes::Bytes;
use capnp::struct_list;
use capnp::traits::Owned;

use super::plain::{Plain, PlainElement, len, reserved, struct_words};
use crate::bowline_capnp::link;

/// A resource of another service, as a call that yields it: which method, with which parameters.
///
/// A service hands out links in its replies, and whoever gets one follows it without knowing how
/// that service names things. Following is [`Call::follow`](crate::Call::follow).
#[derive(Clone, serde::Serialize, serde::Deserialize)]
#[serde(default, bound = "")]
pub struct Link<T> {
    /// The name of the service, as in `$service`.
    pub service: String,
    /// Type ID of the interface that declares the method.
    pub interface: u64,
    /// Its ordinal.
    pub method: u16,
    /// Its parameters, a Cap'n Proto message.
    pub parameters: Bytes,
    #[serde(skip)]
    type_: PhantomData<fn() -> T>,
}

impl<T> Link<T> {
    /// A link to what `method` of `service` yields for these parameters.
    pub fn new(
        service: impl Into<String>,
        interface: u64,
        method: u16,
        parameters: impl Into<Bytes>,
    ) -> Self {
        Self {
            service: service.into(),
            interface,
            method,
            parameters: parameters.into(),
            type_: PhantomData,
        }
    }
}

impl<T: Plain> Plain for Link<T> {
    type Capnp = link::Owned<T::Capnp>;
    const NESTING: u16 = 1;

    fn is_default(&self) -> bool {
        self.service.is_empty()
            && self.interface == 0
            && self.method == 0
            && self.parameters.is_empty()
    }

    fn read(reader: <Self::Capnp as Owned>::Reader<'_>) -> capnp::Result<Self> {
        Ok(Self::new(
            reader.get_service()?.to_str()?,
            reader.get_interface(),
            reader.get_method(),
            Bytes::copy_from_slice(reader.get_parameters()?),
        ))
    }

    fn write(&self, mut builder: <Self::Capnp as Owned>::Builder<'_>) -> capnp::Result<()> {
        // What is empty reads the same from a null pointer.
        if !self.service.is_empty() {
            len(&self.service)?;
            builder.set_service(&self.service[..]);
        }
        builder.set_interface(self.interface);
        builder.set_method(self.method);
        if !self.parameters.is_empty() {
            len(&self.parameters)?;
            builder.set_parameters(&self.parameters);
        }
        Ok(())
    }
}

impl<T: Plain> PlainElement for Link<T> {
    type List = struct_list::Owned<link::Owned<T::Capnp>>;
    const NESTING: u16 = 1;
    const WORDS_EACH: u32 = struct_words::<link::Builder<'static, T::Capnp>>();

    fn read_list(from: <Self::List as Owned>::Reader<'_>) -> capnp::Result<Vec<Self>> {
        let mut values = reserved(from.len());
        for link in from.iter() {
            values.push(Self::read(link)?);
        }
        Ok(values)
    }

    fn write_list(
        values: &[Self],
        mut to: <Self::List as Owned>::Builder<'_>,
    ) -> capnp::Result<()> {
        for (i, value) in (0u32..).zip(values) {
            value.write(to.reborrow().get(i))?;
        }
        Ok(())
    }
}

// By hand, since a link to a `T` can be compared, shown and empty whatever `T` can.

impl<T> Default for Link<T> {
    fn default() -> Self {
        Self::new("", 0, 0, Bytes::new())
    }
}

impl<T> PartialEq for Link<T> {
    fn eq(&self, other: &Self) -> bool {
        (&self.service, self.interface, self.method, &self.parameters)
            == (
                &other.service,
                other.interface,
                other.method,
                &other.parameters,
            )
    }
}

impl<T> fmt::Debug for Link<T> {
    /// Without the parameters, which may be secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            service,
            interface,
            method,
            ..
        } = self;
        write!(f, "Link({service} {interface:#x}.{method})")
    }
}
