//! Plain structs: into messages and out of them, as JSON, as text.

use bowline::call::{MethodError, answer};
use bowline::message::{Msg, Plain};
use bowline::{Limits, Reply};
use bowline_test_schemas::everything::*;
use bytes::Bytes;
use proptest::prelude::*;

fn encoded<T: Plain>(value: T) -> Result<Bytes, bowline::Status> {
    answer::<T, bowline::Status>(Ok(Reply::from(value))).map(|reply| reply.body)
}

fn round_trip<T: Plain>(value: T) -> T {
    let bytes = encoded(value).expect("it has an encoding");
    Msg::<T>::open(bytes, &Limits::default())
        .and_then(|message| message.plain())
        .expect("it reads back")
}

fn colour() -> impl Strategy<Value = Colour> {
    prop_oneof![Just(Colour::Red), Just(Colour::Green), Just(Colour::Type)]
}

prop_compose! {
    fn numbers()(
        flag in any::<bool>(), i8 in any::<i8>(), i16 in any::<i16>(), i32 in any::<i32>(), i64 in any::<i64>(),
        u8 in any::<u8>(), u16 in any::<u16>(), u32 in any::<u32>(), u64 in any::<u64>(),
        f32 in -1e9f32..1e9, f64 in -1e18..1e18, colour in colour(),
    ) -> Numbers {
        Numbers { void: (), flag, i8, i16, i32, i64, u8, u16, u32, u64, f32, f64, colour }
    }
}

fn bytes() -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..20).prop_map(Bytes::from)
}

prop_compose! {
    fn lists()(
        flags in prop::collection::vec(any::<bool>(), 0..20),
        numbers in prop::collection::vec(any::<i32>(), 0..20),
        octets in prop::collection::vec(any::<u8>(), 0..20),
        texts in prop::collection::vec(".{0,8}", 0..5),
        datas in prop::collection::vec(bytes(), 0..5),
        structs in prop::collection::vec(self::numbers(), 0..4),
        colours in prop::collection::vec(colour(), 0..5),
        lists in prop::collection::vec(prop::collection::vec(".{0,8}", 0..4), 0..4),
        text in ".{0,20}", data in bytes(),
    ) -> Lists {
        Lists { flags, numbers, bytes: octets, texts, datas, structs, colours, lists, text, data }
    }
}

fn shape() -> impl Strategy<Value = Shape> {
    prop_oneof![
        Just(Shape::None),
        (-1e9..1e9).prop_map(Shape::Circle),
        ".{0,8}".prop_map(Shape::Name),
        prop::collection::vec(-1e9..1e9, 0..4).prop_map(Shape::Sides),
        colour().prop_map(Shape::Colour),
        numbers().prop_map(Shape::Numbers),
        (any::<u32>(), any::<u32>())
            .prop_map(|(width, height)| Shape::Rectangle(ShapeRectangle { width, height })),
    ]
}

fn tree() -> impl Strategy<Value = Tree> {
    let leaf = any::<i64>().prop_map(|value| Tree {
        value,
        ..Tree::default()
    });
    leaf.prop_recursive(4, 24, 3, |inner| {
        let child = || prop::option::of(inner.clone().prop_map(Box::new));
        let more = prop_oneof![
            Just(TreeMore::Leaf),
            inner
                .clone()
                .prop_map(|tree| TreeMore::Node(Some(Box::new(tree)))),
        ];
        (
            any::<i64>(),
            child(),
            child(),
            prop::collection::vec(inner.clone(), 0..3),
            more,
        )
            .prop_map(|(value, left, right, children, more)| Tree {
                value,
                left,
                right,
                children,
                more,
            })
    })
}

proptest! {
    #[test]
    fn numbers_round_trip(value in numbers()) {
        prop_assert_eq!(round_trip(value.clone()), value);
    }

    #[test]
    fn lists_round_trip_even_those_with_defaults(value in lists()) {
        prop_assert_eq!(round_trip(value.clone()), value);
    }

    #[test]
    fn unions_round_trip(name in ".{0,8}", password in ".{0,8}", paid in any::<u32>(), shape in shape()) {
        for which in [AccountWhich::Free, AccountWhich::Paid(paid), AccountWhich::Token(name.clone())] {
            let value = Account { name: name.clone(), password: password.clone(), shape: shape.clone(), which };
            prop_assert_eq!(round_trip(value.clone()), value);
        }
    }

    #[test]
    fn what_contains_itself_round_trips(value in tree()) {
        prop_assert_eq!(round_trip(value.clone()), value);
    }

    #[test]
    fn generics_round_trip(text in ".{0,8}", data in bytes(), numbers in numbers(), texts in prop::collection::vec(".{0,4}", 0..4)) {
        let value = Pairs {
            texts: Pair { first: text.clone(), second: data },
            structs: Pair { first: numbers.clone(), second: Pair { first: text.clone(), second: texts } },
            list: vec![Pair { first: text, second: numbers }],
            ..Pairs::default()
        };
        prop_assert_eq!(round_trip(value.clone()), value);
    }

    #[test]
    fn json_round_trips(lists in lists(), shape in shape(), tree in tree()) {
        fn json<T: serde_json_bound::Both>(value: &T) -> T {
            serde_json::from_str(&serde_json::to_string(value).unwrap()).unwrap()
        }
        prop_assert_eq!(json(&lists).texts, lists.texts);
        prop_assert_eq!(json(&tree), tree);
        let _ = json(&shape);
    }
}

mod serde_json_bound {
    pub trait Both:
        bowline::__private::serde::Serialize + bowline::__private::serde::de::DeserializeOwned
    {
    }
    impl<T: bowline::__private::serde::Serialize + bowline::__private::serde::de::DeserializeOwned>
        Both for T
    {
    }
}

#[test]
fn defaults_are_those_of_the_schema() {
    let numbers = Numbers::default();
    assert!(numbers.flag);
    assert_eq!((numbers.i8, numbers.u32, numbers.f64), (-8, 32, 0.5));
    assert_eq!(numbers.colour, Colour::Green);
    let lists = Lists::default();
    assert_eq!(lists.numbers, [1, 2, 3]);
    assert_eq!(lists.text, "default");
    assert_eq!(Shape::default(), Shape::None);
    assert_eq!(Account::default().which, AccountWhich::Free);
}

#[test]
fn json_has_the_schemas_names_and_may_leave_fields_out() {
    let keywords: Keywords =
        serde_json::from_str(r#"{"match": 3, "box": {"async": "x"}}"#).unwrap();
    assert_eq!((keywords.r#match, &keywords.r#box.r#async[..]), (3, "x"));
    assert_eq!(keywords.r#type, "");
    let account = serde_json::to_string(&Account::default()).unwrap();
    assert!(account.contains(r#""which":"free""#), "{account}");
}

#[test]
fn secrets_do_not_show() {
    let account = Account {
        name: "ann".into(),
        password: "hunter2".into(),
        which: AccountWhich::Token("t0ken".into()),
        shape: Shape::None,
    };
    let shown = format!("{account:?}");
    assert!(shown.contains("ann"), "{shown}");
    assert!(
        !shown.contains("hunter2") && !shown.contains("t0ken"),
        "{shown}"
    );
    let params = LoginLogInParams {
        user: "ann".into(),
        password: "hunter2".into(),
    };
    assert!(!format!("{params:?}").contains("hunter2"));
}

#[test]
fn what_the_schema_does_not_have_is_kept_and_not_sent() {
    assert_eq!(
        Colour::from_capnp(Err(bowline::__private::capnp::NotInSchema(99))),
        Colour::Unknown(99)
    );
    let refused = encoded(Numbers {
        colour: Colour::Unknown(99),
        ..Numbers::default()
    });
    assert!(refused.unwrap_err().message().contains("99"));
}

#[test]
fn descriptions_have_what_the_annotations_say() {
    use bowline::schema::{Described, Effect, Recovery};
    use std::time::Duration;
    assert_eq!(LOGIN_SERVICE.name, "logins");
    let log_in = &LOGIN_SERVICE.methods[0];
    assert_eq!(
        (log_in.name, log_in.effect),
        ("logIn", Effect::Once(Recovery::InDoubt))
    );
    assert_eq!(log_in.timeout, Some(Duration::from_millis(250)));
    assert_eq!(log_in.fails, Some(<Denied as Described>::INFO.id));
    assert_eq!(
        LOGIN_SERVICE.methods[1].timeout,
        Some(Duration::from_secs(2))
    );
    let inherited: Vec<_> = LOGIN_SERVICE.methods.iter().map(|m| m.name).collect();
    assert_eq!(
        inherited,
        ["logIn", "logOut", "match", "pair", "ping", "version"]
    );
    assert_eq!(<Account as Described>::INFO.secrets, ["password", "token"]);
    assert_eq!(<Tick as Described>::INFO.queue, Some("ticks"));
    assert_eq!(<Progress as Described>::INFO.key, Some("job"));
}

#[test]
fn constants_are_there() {
    assert_eq!(MAX_LENGTH, 314);
    assert_eq!(OUTER_INNER_LIMIT, 7);
}

#[test]
fn a_body_of_lies_is_refused_in_place() {
    // Claims eight million elements without size.
    let mut body = vec![0; 16];
    body[4..8].copy_from_slice(&1u32.to_le_bytes());
    for word in 0..=255u8 {
        let mut lie = body.clone();
        lie.extend([word; 64]);
        lie[4..8].copy_from_slice(&9u32.to_le_bytes());
        if let Ok(message) = Msg::<Lists>::open(lie.into(), &Limits::default()) {
            let _ = message.plain();
        }
    }
}

#[test]
fn an_application_error_comes_back_as_itself() {
    let sent = bowline::Failure::Application(Denied {
        reason: "no".into(),
    });
    let reply = sent.clone().into_reply().unwrap();
    assert_eq!(bowline::Failure::<Denied>::from_reply(reply), sent);
}
