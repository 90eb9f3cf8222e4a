//! Random schemas, which build.rs writes: their values are the same by every way, and what a request is known by does
//! not change where a later version of its schema reads and writes it. `SCHEMAS_SEED` and `SCHEMAS_COUNT` choose others.

use std::fmt::Debug;

use bowline::__private::capnp;
use bowline::__private::serde::Serialize;
use bowline::__private::serde::de::DeserializeOwned;
use bowline::message::{Msg, Plain};
use bowline::once::Fingerprint;
use bowline::{Limits, Link, MessageError};
use bytes::Bytes;

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 11
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}

/// A type with random values; `depth` is how many structs of its own kind may still be inside.
trait Random {
    fn random(rng: &mut Rng, depth: u32) -> Self;
}

macro_rules! numbers {
    ($($number:ty: $($value:expr),*;)*) => {$(
        impl Random for $number {
            fn random(rng: &mut Rng, _: u32) -> Self {
                *rng.pick(&[0 as $number, 1 as $number, <$number>::MAX, <$number>::MIN, $($value),*])
            }
        }
    )*};
}

numbers! {
    u8: 255; u16: 255; u32: 255; u64: 1 << 60;
    i8: -128; i16: -128; i32: -128; i64: -(1 << 60);
    f32: f32::NAN, f32::INFINITY, -0.0, 1.5, 0.1; f64: f64::NAN, f64::NEG_INFINITY, -0.0, 1.5, 0.1;
}

impl Random for () {
    fn random(_: &mut Rng, _: u32) -> Self {}
}

impl Random for bool {
    fn random(rng: &mut Rng, _: u32) -> Self {
        rng.below(2) == 0
    }
}

impl Random for String {
    fn random(rng: &mut Rng, _: u32) -> Self {
        (*rng.pick(&["", "default", "x", "\"$crate", "ünïcode", "a longer text"])).to_owned()
    }
}

impl Random for Bytes {
    fn random(rng: &mut Rng, _: u32) -> Self {
        let all: [&'static [u8]; 3] = [b"", b"\x01\xff", b"bytes"];
        Self::from_static(all[rng.below(3)])
    }
}

impl<T> Random for Link<T> {
    fn random(rng: &mut Rng, depth: u32) -> Self {
        match rng.below(2) {
            0 => Self::default(),
            _ => Self::new(
                String::random(rng, depth),
                u64::random(rng, depth),
                u16::random(rng, depth),
                Bytes::random(rng, depth),
            ),
        }
    }
}

impl<T: Random> Random for Vec<T> {
    fn random(rng: &mut Rng, depth: u32) -> Self {
        let Some(depth) = depth.checked_sub(1) else {
            return Self::new();
        };
        (0..rng.below(3)).map(|_| T::random(rng, depth)).collect()
    }
}

impl<T: Random> Random for Option<Box<T>> {
    fn random(rng: &mut Rng, depth: u32) -> Self {
        let depth = depth.checked_sub(1)?;
        (rng.below(2) == 0).then(|| Box::new(T::random(rng, depth)))
    }
}

const VALUES: u64 = 40;
const DEPTH: u32 = 3;

fn open<T: Plain>(bytes: &Bytes) -> Msg<T> {
    let limits = Limits::default().with_traversal(100, 1 << 16);
    Msg::open(bytes.clone(), &limits).expect("a message")
}

fn plain<T: Plain>(bytes: &Bytes) -> T {
    open(bytes).plain().expect("it reads back")
}

/// Equal, and NaN is itself and -0.0 is not 0.0.
fn assert_same<T: Debug>(a: &T, b: &T, how: &str) {
    assert_eq!(format!("{a:?}"), format!("{b:?}"), "{how}");
}

fn check<T>(seed: u64)
where
    T: Random + Plain + Default + Debug + Clone + PartialEq + Serialize + DeserializeOwned,
{
    let mut rng = Rng(seed);
    for n in 0..VALUES {
        let value = match n {
            0 => T::default(),
            _ => T::random(&mut rng, DEPTH),
        };
        let bytes = value.to_bytes().expect("it is written");
        assert_same(&plain::<T>(&bytes), &value, "plain");
        let again = plain::<T>(&bytes).to_bytes().expect("it is written again");
        assert_eq!(fingerprint(&again), fingerprint(&bytes));

        let mut in_place = capnp::message::Builder::new_default();
        in_place
            .set_root::<T::Capnp>(open::<T>(&bytes).get().expect("a root"))
            .expect("a copy");
        let copied = capnp::serialize::write_message_to_words(&in_place).into();
        assert_same(&plain::<T>(&copied), &value, "in place");
        assert_same(
            &plain::<T>(&open::<T>(&bytes).to_bytes()),
            &value,
            "passed on",
        );

        let json = serde_json::to_string(&value).expect("it has a form in JSON");
        let back: T = serde_json::from_str(&json).unwrap_or_else(|error| panic!("{error}: {json}"));
        assert_same(&back, &value, &json);
    }
}

fn fingerprint(bytes: &Bytes) -> Fingerprint {
    Fingerprint::of_parameters(bytes, &Limits::default().with_traversal(100, 1 << 16))
        .expect("a message")
}

fn check_versions<Old, New>(seed: u64)
where
    Old: Random + Plain + Default + Debug,
    New: Random + Plain + Default + Debug,
{
    let empty = |bytes: Result<Bytes, MessageError>| fingerprint(&bytes.expect("it is written"));
    assert_eq!(
        empty(Old::default().to_bytes()),
        empty(New::default().to_bytes())
    );
    let mut rng = Rng(seed ^ 0xdead);
    for _ in 0..VALUES {
        let value = Old::random(&mut rng, DEPTH);
        let old = value.to_bytes().expect("it is written");
        let upgraded: New = plain(&old);
        let new = upgraded.to_bytes().expect("it is written");
        assert_eq!(
            fingerprint(&old),
            fingerprint(&new),
            "{value:?} as {upgraded:?}"
        );

        // What a newer program sends, an older one reads; and passes on, or says what it does not know.
        let value = New::random(&mut rng, DEPTH);
        let new = value.to_bytes().expect("it is written");
        let old: Old = plain(&new);
        match old.to_bytes() {
            Ok(passed_on) => drop(plain::<New>(&passed_on)),
            Err(error) => assert!(matches!(error, MessageError::NotInSchema { .. }), "{error}"),
        }
    }
}

include!(concat!(env!("OUT_DIR"), "/random_tests.rs"));
