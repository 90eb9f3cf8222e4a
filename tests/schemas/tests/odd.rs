//! Schemas as people write them: any name, any comment, any file, folders, other crates, and shapes that are natural in a
//! schema and awkward in Rust. That they compile is the most of it.

use std::boxed::Box;
use std::fmt::Debug;

use bowline::__private::serde::Serialize;
use bowline::__private::serde::de::DeserializeOwned;
use bowline::message::{Msg, Plain};
use bowline::queue::Queueable;
use bowline::schema::Described;
use bowline::{Failure, Limits, Link, MessageError, Reply, Request, Status};
use bowline_test_common::users::common::{Page as CommonPage, Refused, Role, User};
use bowline_test_schemas::later::Later;
use bowline_test_schemas::odd::keywords::{
    AsyncParams, AsyncResults, K, KClient, KServer, SelfParams, SelfResults,
};
use bowline_test_schemas::odd::new_names::{
    Customer, JoinResults, LIMIT, MakeParams, MakeResults, State, THINGS_SERVICE, Thing,
    ThingCrate2, ThingWhich, Things, ThingsClient, ThingsServer,
};
use bowline_test_schemas::odd::other_crate::{
    GetParams, GetResults, Users, UsersClient, UsersServer,
};
use bowline_test_schemas::odd::prelude::{self, Members, MembersAsync, MembersColour};
use bowline_test_schemas::odd::shapes::{Box as Box2, *};
use bowline_test_schemas::odd::{_1::One, bowline_::Named, self_::Own};
use bytes::Bytes;

fn written<T: Plain>(value: &T) -> Bytes {
    value.to_bytes().expect("it is written")
}

fn read<T: Plain>(bytes: Bytes) -> T {
    let message = Msg::<T>::open(bytes, &Limits::default()).expect("a message");
    message.plain().expect("it reads back")
}

/// Through a message and through JSON.
fn comes_back<T>(value: &T)
where
    T: Plain + Debug + PartialEq + Serialize + DeserializeOwned,
{
    assert_eq!(&read::<T>(written(value)), value);
    let json = serde_json::to_string(value).expect("it has a form in JSON");
    assert_eq!(
        &serde_json::from_str::<T>(&json).expect("it reads back"),
        value
    );
}

struct Keywords;

impl K for Keywords {
    async fn r#async(&self, request: Request<AsyncParams>) -> Result<Reply<AsyncResults>, Status> {
        let r#async = request.plain()?.r#async;
        Ok(AsyncResults { r#async }.into())
    }

    async fn self_(&self, request: Request<SelfParams>) -> Result<Reply<SelfResults>, Status> {
        let self_ = request.plain()?.self_;
        Ok(SelfResults { self_ }.into())
    }
}

#[tokio::test]
async fn methods_and_parameters_may_be_keywords() {
    let client = KClient::new(KServer::new(Keywords));
    let called = client.r#async(|mut to| to.set_async("a")).await;
    assert_eq!(called.unwrap().plain().unwrap().r#async, "a");
    let params = SelfParams { self_: "s".into() };
    let called = client.self_plain(&params).await.unwrap();
    assert_eq!(called.plain().unwrap().self_, "s");
}

#[test]
fn types_and_members_may_have_the_names_of_generated_code() {
    for value in [
        Members::Which(3),
        Members::Reader("r".into()),
        Members::Builder(None),
        Members::Builder(Some(Box::new(Members::Owned))),
        Members::Owned,
        Members::Self_,
        Members::Colour(MembersColour::Self_),
        Members::Async(MembersAsync {
            r#await: "w".into(),
            r#match: prelude::Nothing::Unknown(0),
        }),
    ] {
        comes_back(&value);
    }
    comes_back(&prelude::Result::<String, Bytes> {
        ok: "ok".into(),
        err: Bytes::from_static(b"err"),
    });
    comes_back(&prelude::Default::default());
    assert!(prelude::Default::default().clone);
    assert_eq!((prelude::OK, prelude::SELF), (1, "self"));
}

#[test]
fn any_file_name_and_any_folder_is_a_module() {
    comes_back(&One { n: 1 });
    comes_back(&Own { n: 2 });
    comes_back(&Named { n: 3 });
    let first = bowline_test_schemas::v1::user::Foo::default();
    let second = bowline_test_schemas::v2::user::Foo::default();
    comes_back(&first);
    comes_back(&second);
}

struct Renamed;

impl Things for Renamed {
    async fn make(&self, request: Request<MakeParams>) -> Result<Reply<MakeResults>, Status> {
        assert_eq!(request.plain()?.text, "text");
        Ok(MakeResults {}.into())
    }
}

#[tokio::test]
async fn a_name_in_rust_may_be_another_than_in_the_schema() {
    let client = ThingsClient::new(ThingsServer::new(Renamed));
    let params = MakeParams {
        text: "text".into(),
    };
    client.make_plain(&params).await.unwrap();
    let thing = Thing {
        choice: "c".into(),
        state: State::NotKnown,
        crate2: ThingCrate2 { x: "x".into() },
        which: ThingWhich::Other("o".into()),
    };
    comes_back(&thing);
    // What is sent and what JSON has is the schema's name.
    let json = serde_json::to_string(&thing).unwrap();
    for name in ["\"which\"", "\"unknown\"", "\"box\""] {
        assert!(json.contains(name), "{json}");
    }
    let names: Vec<_> = THINGS_SERVICE.methods.iter().map(|m| m.name).collect();
    assert_eq!(
        (THINGS_SERVICE.name, &names[..]),
        ("things", &["new", "connect"][..])
    );
    comes_back(&Customer::default());
    comes_back(&JoinResults::default());
    assert_eq!(LIMIT, 1);
}

struct Directory;

impl bowline_test_common::users::common::Directory for Directory {}

impl Users for Directory {
    async fn get(
        &self,
        request: Request<GetParams>,
    ) -> Result<Reply<GetResults>, Failure<Refused>> {
        match &request.plain()?.name[..] {
            "ann" => Ok(GetResults {
                user: User {
                    name: "ann".into(),
                    role: Role::Guest,
                },
                page: CommonPage::default(),
            }
            .into()),
            other => Err(Refused { why: other.into() }.into()),
        }
    }
}

#[tokio::test]
async fn types_of_another_crate_are_those_of_that_crate() {
    let client = UsersClient::new(UsersServer::new(Directory));
    let got = client.get(|mut to| to.set_name("ann")).await.unwrap();
    assert_eq!(got.plain().unwrap().user.role, Role::Guest);
    let refused = client.get(|mut to| to.set_name("bob")).await.unwrap_err();
    assert_eq!(refused, Failure::Application(Refused { why: "bob".into() }));
    assert!(client.all(|_| {}).await.is_err(), "it is not written");
}

#[test]
fn a_second_compilation_has_its_modules_beside_the_first_and_its_types() {
    comes_back(&Later {
        shape: bowline_test_schemas::everything::Shape::Circle(1.5),
        colours: vec![bowline_test_schemas::everything::Colour::Unknown(9)],
    });
}

#[test]
fn generic_types_nest_and_contain_each_other() {
    let entry = MapEntry {
        key: "k".to_owned(),
        value: Item::default(),
        which: MapEntryWhich::Old(MapEntryOld {
            was: Item::default(),
            why: "w".into(),
            _key: std::marker::PhantomData,
        }),
    };
    let node = Node {
        n: 1,
        next: Some(Box::new(Box2 {
            value: Node::default(),
            note: "n".into(),
        })),
        all: vec![Box2::default()],
    };
    comes_back(&Page {
        items: vec![
            Link::new("items", 1, 2, Bytes::from_static(b"p")),
            Link::default(),
        ],
        names: Map {
            entries: vec![entry.clone(), MapEntry::default()],
            first: entry,
        },
        cached: Cached {
            value: Item::default(),
            which: CachedWhich::Age(-3),
        },
        maybe: Maybe::Number(7),
        node,
        swap: Swap {
            a: "a".into(),
            b: Bytes::from_static(b"b"),
            again: Some(Box::default()),
        },
        ..Page::default()
    });
}

#[test]
fn enumerants_of_a_newer_schema_pass_through_at_any_place() {
    let newer = Kind::Unknown(7);
    let item = Item {
        n: 1,
        kinds: vec![Kind::One, newer],
        grid: vec![vec![], vec![newer, Kind::Two], vec![Kind::Three]],
        pair: Cached {
            value: vec![newer],
            ..Cached::default()
        },
        kind: newer,
    };
    comes_back(&item);
    comes_back(&Page {
        cached: Cached {
            value: item,
            which: CachedWhich::Fresh,
        },
        ..Page::default()
    });
    // The number of one that is known is that one.
    let known = Item {
        kind: Kind::Unknown(2),
        ..Item::default()
    };
    assert_eq!(read::<Item>(written(&known)).kind, Kind::Three);
}

#[tokio::test]
async fn methods_of_one_name_belong_to_the_interfaces_that_declare_them() {
    struct All;
    impl Left for All {
        async fn ping(
            &self,
            request: Request<LeftPingParams>,
        ) -> Result<Reply<LeftPingResults>, Status> {
            let x = request.plain()?.x;
            Ok(LeftPingResults { x }.into())
        }
    }
    impl Right for All {
        async fn ping(
            &self,
            _: Request<RightPingParams>,
        ) -> Result<Reply<RightPingResults>, Status> {
            Ok(RightPingResults { y: "right".into() }.into())
        }
    }
    impl Both for All {}
    impl Again for All {}
    impl Deeper for All {}

    let client = DeeperClient::new(DeeperServer::new(All));
    let left = client.left_ping(|mut to| to.set_x("left")).await.unwrap();
    assert_eq!(left.plain().unwrap().x, "left");
    let right = client.right_ping(|_| {}).await.unwrap();
    assert_eq!(right.plain().unwrap().y, "right");
    let own = AgainClient::new(AgainServer::new(All));
    assert!(own.ping(|_| {}).await.is_err(), "it is not written");
    assert!(own.left_ping(|_| {}).await.is_ok());
}

#[tokio::test]
async fn two_services_over_one_base_share_a_server_with_a_service_of_the_base() {
    #[derive(Clone, Copy)]
    struct Pings(&'static str);
    impl Left for Pings {
        async fn left(&self, _: Request<LeftParams>) -> Result<Reply<LeftResults>, Status> {
            Err(Status::not_found(self.0))
        }
    }
    impl Again for Pings {}
    impl Further for Pings {}

    let without = bowline::Server::builder()
        .service(AgainServer::new(Pings("again")))
        .service(FurtherServer::new(Pings("further")));
    let refused = without.bind("inproc://over-one-base").await.unwrap_err();
    assert!(refused.to_string().contains("add a service"), "{refused}");
    let server = bowline::Server::builder()
        .service(AgainServer::new(Pings("again")))
        .service(FurtherServer::new(Pings("further")))
        .service(LeftServer::new(Pings("left")));
    let server = server.bind("inproc://over-one-base").await.unwrap().spawn();
    let client = FurtherClient::connect("inproc://over-one-base")
        .await
        .unwrap();
    let answered = client.left(|_| {}).await.unwrap_err();
    assert_eq!(answered.message(), "left");
    server.shutdown().await;
}

#[test]
fn the_key_of_a_job_may_be_in_a_group() {
    let mut order = Order::default();
    order.customer.id = "c-1".into();
    assert_eq!(order.key().as_deref(), Some("c-1"));
    assert_eq!(Order::INFO.key, Some("customer.id"));
}

#[test]
fn floats_are_the_same_by_every_way_to_the_last_bit() {
    let values = Values {
        point: Point { x: -0.0, y: 0.0 },
        points: vec![Point {
            x: -0.0,
            y: f32::NAN,
        }],
        infinite: vec![f32::INFINITY, f32::NEG_INFINITY],
        ..Values::default()
    };
    assert!(values.nan.is_nan() && values.inner.f.is_nan() && values.inner.list[0].is_nan());
    let back = read::<Values>(written(&values));
    assert!(back.point.x.is_sign_negative() && back.points[0].x.is_sign_negative());
    let json = serde_json::to_string(&values).unwrap();
    let from_json: Values = serde_json::from_str(&json).unwrap();
    for other in [back, from_json] {
        assert_eq!(format!("{other:?}"), format!("{values:?}"), "{json}");
    }
}

fn deep(levels: u32) -> Deep {
    (1..levels).fold(Deep::default(), |inner, v| Deep {
        v,
        next: Some(Box::new(inner)),
        ..Deep::default()
    })
}

#[test]
fn what_nests_too_deep_to_be_read_is_refused_when_it_is_written() {
    let max = Limits::default().nesting_max;
    let deepest = deep(u32::from(max));
    assert_eq!(read::<Deep>(written(&deepest)), deepest);
    let refused = deep(u32::from(max) + 1).to_bytes().unwrap_err();
    assert!(
        matches!(refused, MessageError::TooDeep { nesting_max: 32 }),
        "{refused}"
    );
    // Built in place, too.
    fn build(to: bowline_test_schemas::odd::shapes_capnp::deep::Builder<'_>, levels: u32) {
        if levels > 1 {
            build(to.init_next(), levels - 1);
        }
    }
    for (levels, is_ok) in [(32, true), (33, false)] {
        let reply = Reply::<Deep>::build(|to| build(to, levels));
        assert_eq!(
            bowline::call::answer::<Deep, Status>(Ok(reply)).is_ok(),
            is_ok
        );
    }
}

#[test]
fn what_no_message_can_hold_is_refused_when_it_is_written() {
    struct Long(u32);
    impl Plain for Long {
        type Capnp = <String as Plain>::Capnp;
        const LEN_MAX: u32 = <String as Plain>::LEN_MAX;

        fn init_len(&self) -> u32 {
            self.0
        }

        fn read(_: capnp::text::Reader<'_>) -> capnp::Result<Self> {
            Ok(Self(0))
        }

        fn write(&self, _: capnp::text::Builder<'_>) -> capnp::Result<()> {
            Ok(())
        }
    }
    use bowline::__private::capnp;

    assert_eq!(<String as Plain>::LEN_MAX, (1 << 29) - 2);
    assert!(bowline::message::len(&Long((1 << 29) - 2)).is_ok());
    for length in [(1 << 29) - 1, u32::MAX] {
        let refused = Long(length).to_bytes().unwrap_err().to_string();
        assert!(refused.contains("does not fit"), "{refused}");
    }
    // Of a list of structs, the words count.
    const { assert!(<Vec<Values> as Plain>::LEN_MAX < (1 << 29) / 4) };
}
