//! Plain structs: into messages and out of them, as JSON, as text.

use std::fmt::Debug;

use bowline::__private::serde::Serialize;
use bowline::__private::serde::de::DeserializeOwned;
use bowline::call::{MethodError, answer};
use bowline::message::{MessageError, Msg, Plain};
use bowline::{Limits, Reply};
use bowline_test_schemas::everything::*;
use bowline_test_schemas::sub::common::{Painted, Point, Refused};
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
        prop_assert_eq!(json(&lists), lists);
        prop_assert_eq!(json(&tree), tree);
        prop_assert_eq!(json(&shape), shape);
    }
}

fn json<T: Serialize + DeserializeOwned>(value: &T) -> T {
    serde_json::from_str(&serde_json::to_string(value).unwrap()).unwrap()
}

/// All that a plain struct or enum is promised to have, used.
fn is_plain<T>(value: &T)
where
    T: Clone + Debug + PartialEq + Default + Serialize + DeserializeOwned + Plain,
{
    assert_eq!(&value.clone(), value);
    assert!(!format!("{value:?}").is_empty());
    assert_eq!(&json(value), value);
    assert_eq!(&round_trip(value.clone()), value);
    assert_eq!(json(&T::default()), T::default());
    assert_eq!(round_trip(T::default()), T::default());
}

#[test]
fn every_shape_has_all_that_is_promised() {
    let numbers = Numbers {
        i64: i64::MIN,
        f64: 0.1,
        ..Numbers::default()
    };
    is_plain(&numbers);
    is_plain(&Lists {
        structs: vec![numbers.clone()],
        colours: vec![Colour::Type],
        lists: vec![vec!["a".into()], vec![]],
        ..Lists::default()
    });
    is_plain(&Keywords {
        r#type: "t".into(),
        r#match: 7,
        self_: true,
        r#box: KeywordsBox {
            r#async: "a".into(),
            crate_: 8,
        },
    });
    is_plain(&Shape::Rectangle(ShapeRectangle {
        width: 1,
        height: 2,
    }));
    is_plain(&Tree {
        left: Some(Box::default()),
        more: TreeMore::Node(Some(Box::default())),
        ..Tree::default()
    });
    is_plain(&Pair {
        first: numbers,
        second: vec![Bytes::from_static(b"x")],
    });
    is_plain(&Pairs {
        link: bowline::Link::new("login", 1, 2, Bytes::from_static(b"params")),
        common: Point { x: -1, y: 1 },
        ..Pairs::default()
    });
    is_plain(&OuterInner {
        deep: OuterInnerDeep::Two,
    });
    is_plain(&Painted::default());
    is_plain(&vault());
    is_plain(&LoginLogInParams {
        user: "ann".into(),
        password: "x".into(),
    });
    for colour in [Colour::Red, Colour::Unknown(9)] {
        assert_eq!(json(&colour), colour);
    }
    assert_eq!(json(&Shape::Unknown(99)), Shape::Unknown(99));
}

fn account(secret: &str) -> Account {
    Account {
        name: "ann".into(),
        password: secret.into(),
        which: AccountWhich::Token(secret.into()),
        shape: Shape::None,
    }
}

fn vault() -> Vault {
    let inner = Vault {
        account: account("s3cret"),
        r#box: VaultBox {
            label: "spare".into(),
            pin: "s3cret".into(),
        },
        lock: VaultLock::Code("s3cret".into()),
        ..Vault::default()
    };
    Vault {
        account: account("s3cret"),
        accounts: vec![account("s3cret"), account("s3cret")],
        pair: Pair {
            first: account("s3cret"),
            second: "second".into(),
        },
        lock: VaultLock::Owner(account("s3cret")),
        spare: Some(Box::new(inner)),
        ..Vault::default()
    }
}

#[test]
fn secrets_do_not_show_at_any_depth() {
    let shown = format!("{:?} {:#?}", vault(), vault());
    assert!(!shown.contains("s3cret"), "{shown}");
    for visible in ["ann", "second", "spare", "redacted"] {
        assert!(shown.contains(visible), "{shown}");
    }
    let secrets = <Vault as bowline::schema::Described>::INFO.secrets;
    assert_eq!(secrets, ["box.pin", "lock.code"]);
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
fn unknown_enumerants_are_passed_on_and_unknown_members_are_not_sent() {
    assert_eq!(
        Colour::from_capnp(Err(bowline::__private::capnp::NotInSchema(99))),
        Colour::Unknown(99)
    );
    let numbers = Numbers {
        colour: Colour::Unknown(99),
        ..Numbers::default()
    };
    assert_eq!(round_trip(numbers.clone()), numbers);
    let refused = encoded(Older {
        state: OlderState::Unknown(99),
        ..Older::default()
    });
    let refused = refused.unwrap_err();
    assert_eq!(refused.reason(), Some(bowline::Reason::NotInSchema));
    assert!(
        refused.message().contains("OlderState, member 99"),
        "{refused}"
    );
}

#[test]
fn descriptions_have_what_every_annotation_says() {
    use bowline::schema::{Described, Effect, Recovery};
    use std::time::Duration;
    let of = |service: &'static bowline::schema::ServiceInfo| -> Vec<_> {
        let methods = service.methods.iter();
        methods
            .map(|m| (m.name, m.effect, m.timeout, m.fails))
            .collect()
    };
    let denied = Some(<Denied as Described>::INFO.id);
    let refused = Some(<Refused as Described>::INFO.id);
    let (two_seconds, quarter) = (Duration::from_secs(2), Duration::from_millis(250));
    let login = [
        (
            "logIn",
            Effect::Once(Recovery::InDoubt),
            Some(quarter),
            denied,
        ),
        ("logOut", Effect::Unsafe, Some(two_seconds), None),
        ("match", Effect::Unsafe, Some(two_seconds), None),
        ("pair", Effect::Unsafe, Some(two_seconds), None),
        ("ping", Effect::Idempotent, None, None),
        ("version", Effect::Unsafe, None, None),
    ];
    assert_eq!(
        (LOGIN_SERVICE.name, of(&LOGIN_SERVICE)),
        ("logins", login.to_vec())
    );
    let admin = [
        ("ban", Effect::Once(Recovery::Rerun), None, refused),
        ("wipe", Effect::Once(Recovery::Atomic), None, None),
    ];
    assert_eq!(ADMIN_SERVICE.name, "admin");
    assert_eq!(of(&ADMIN_SERVICE), [&admin[..], &login[..]].concat());
    assert!(ADMIN_SERVICE.methods.iter().all(|m| m.service == "admin"));

    let (progress, tick) = (<Progress as Described>::INFO, <Tick as Described>::INFO);
    assert_eq!(
        (progress.name, progress.topic),
        ("Progress", Some("progress"))
    );
    assert_eq!((progress.key, progress.queue), (Some("job"), None));
    assert_eq!((tick.topic, tick.queue), (Some("tick"), Some("ticks")));
    assert_eq!(<Account as Described>::INFO.secrets, ["password", "token"]);
    let params = <LoginLogInParams as Described>::INFO;
    assert_eq!(params.secrets, ["password"]);
    assert_eq!(LOGIN_SERVICE.methods[0].params, params.id);
}

#[test]
fn what_a_newer_peers_body_has_besides_is_ignored() {
    let newer = |state| Newer {
        name: "lamp".into(),
        state,
        more: "new".into(),
        numbers: vec![Numbers::default()],
    };
    let as_older = |newer: Newer| {
        let bytes = encoded(newer).unwrap();
        let message = Msg::<Older>::open(bytes, &Limits::default()).unwrap();
        message.plain().unwrap()
    };
    let older = as_older(newer(NewerState::On(7)));
    let expected = Older {
        name: "lamp".into(),
        state: OlderState::On(7),
    };
    assert_eq!(older, expected);
    // A member of the union that is new is not taken for another.
    assert_eq!(
        as_older(newer(NewerState::Dimmed(7))).state,
        OlderState::Unknown(2)
    );
    let bytes = encoded(older).unwrap();
    let message = Msg::<Newer>::open(bytes, &Limits::default()).unwrap();
    let back = message.plain().unwrap();
    assert_eq!((back.state, &back.more[..]), (NewerState::On(7), ""));
}

#[test]
fn constants_are_there() {
    assert_eq!(MAX_LENGTH, 314);
    assert_eq!(OUTER_INNER_LIMIT, 7);
}

#[test]
fn a_few_bytes_that_claim_millions_of_elements_are_refused() {
    // A struct of six pointers; the sixth is a list of eight million structs without any size.
    let pointers = [0, 0, 0, 0, 0, 7 << 32 | 1];
    let mut words = vec![8 << 32, 6 << 48];
    words.extend(pointers);
    words.push(8_000_000 << 2);
    let body: Vec<u8> = words
        .iter()
        .flat_map(|word: &u64| word.to_le_bytes())
        .collect();
    let refused = Msg::<Lists>::open(body.into(), &Limits::default()).unwrap_err();
    assert!(
        matches!(refused, MessageError::TooManyWords { .. }),
        "{refused}"
    );
}

#[test]
fn structs_are_read_as_deep_as_the_limit_says_and_no_deeper() {
    let of_depth = |depth: u16| {
        let tree = (1..depth).fold(Tree::default(), |inner, _| Tree {
            left: Some(Box::new(inner)),
            ..Tree::default()
        });
        encoded(tree)
    };
    for nesting in [5, 32] {
        let limits = Limits::default().with_nesting_max(nesting);
        let reads = |depth| {
            // What no reader takes by default is not written.
            of_depth(depth).is_ok_and(|body| {
                let message = Msg::<Tree>::open(body, &limits);
                message.and_then(|message| message.plain()).is_ok()
            })
        };
        let deepest = (1..100).take_while(|depth| reads(*depth)).count();
        // The list of children that each has is one more.
        assert!(
            (nesting as usize - 1..=nesting as usize).contains(&deepest),
            "{nesting}: {deepest}"
        );
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
