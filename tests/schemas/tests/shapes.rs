//! What a schema may be made of besides structs of numbers: interfaces that extend others, files that import each
//! other, names that mean something to Rust, errors that other files declare.

use bowline::{Code, Failure, Reply, Request, Server, Status, Work};
use bowline_test_schemas::everything::*;
use bowline_test_schemas::sub::common::{Painted, Point, Refused, Versioned};
use bowline_test_schemas::sub::r#type::{
    Break, FnParams, FnResults, Loop, LoopIn, Match, Trait, TraitClient, TraitServer, USE,
};

struct House;

impl Base for House {
    async fn ping(&self, request: Request<PingParams>) -> Result<Reply<PingResults>, Status> {
        let text = request.plain()?.text;
        Ok(PingResults { text }.into())
    }
}

impl Versioned for House {}

impl Login for House {
    async fn pair(
        &self,
        request: Request<Pair<String, String>>,
    ) -> Result<Reply<Pair<String, String>>, Status> {
        let Pair { first, second } = request.plain()?;
        let swapped = Pair {
            first: second,
            second: first,
        };
        Ok(swapped.into())
    }
}

impl Admin for House {
    async fn ban(
        &self,
        request: Request<BanParams>,
    ) -> Result<Reply<BanResults>, Failure<Refused>> {
        match &request.plain()?.user[..] {
            "root" => Err(Refused { code: 7 }.into()),
            _ => Ok(BanResults::default().into()),
        }
    }
}

#[tokio::test]
async fn an_interface_has_the_methods_of_all_that_it_extends_each_once() {
    let admin = AdminClient::new(AdminServer::new(House));
    let pong = admin.ping(|mut params| params.set_text("x")).await.unwrap();
    assert_eq!(pong.plain().unwrap().text, "x");
    let pair = Pair {
        first: "a".to_owned(),
        second: "b".to_owned(),
    };
    let swapped = admin.pair_plain(&pair).await.unwrap().plain().unwrap();
    assert_eq!((&swapped.first[..], &swapped.second[..]), ("b", "a"));
    let missing = admin.version(|_| {}).await.unwrap_err();
    assert_eq!(
        (missing.code(), missing.work()),
        (Code::Unimplemented, Work::NotDone)
    );
    let names: Vec<_> = ADMIN_SERVICE.methods.iter().map(|m| m.name).collect();
    let all = [
        "ban", "wipe", "logIn", "logOut", "match", "pair", "ping", "version",
    ];
    assert_eq!(names, all);
}

#[tokio::test]
async fn an_error_of_another_file_comes_back_as_itself() {
    let admin = AdminClient::new(AdminServer::new(House));
    let banned = admin.ban(|mut params| params.set_user("ann")).await;
    assert_eq!(banned.unwrap().plain().unwrap(), BanResults::default());
    let refused = admin.ban(|mut params| params.set_user("root")).await;
    assert_eq!(
        refused.unwrap_err(),
        Failure::Application(Refused { code: 7 })
    );
}

#[test]
fn files_that_import_each_other_have_each_others_types() {
    let painted = Painted {
        point: Point { x: 1, y: 2 },
        ..Painted::default()
    };
    assert_eq!(painted.colour, Colour::Type, "the default of the schema");
    let vault = Vault {
        painted: painted.clone(),
        ..Vault::default()
    };
    assert_eq!(vault.painted, painted);
}

struct Keywords;

impl Trait for Keywords {
    async fn r#fn(&self, request: Request<FnParams>) -> Result<Reply<FnResults>, Failure<Break>> {
        let FnParams { r#impl, r#where } = request.plain()?;
        if r#impl.is_empty() {
            return Err(Break {
                r#static: "empty".into(),
            }
            .into());
        }
        Ok(FnResults {
            r#return: r#impl,
            r#else: r#where,
        }
        .into())
    }
}

#[tokio::test]
async fn every_name_may_be_a_keyword_that_of_the_file_too() {
    let server = Server::builder().service(TraitServer::new(Keywords));
    let server = server.bind("inproc://keywords").await.unwrap().spawn();
    let client = TraitClient::connect("inproc://keywords").await.unwrap();
    let r#where = Loop::In(LoopIn {
        r#mut: true,
        r#ref: vec![Match::If, Match::Async],
    });
    let params = FnParams {
        r#impl: "x".into(),
        r#where: r#where.clone(),
    };
    let reply = client.fn_plain(&params).await.unwrap().plain().unwrap();
    assert_eq!((&reply.r#return[..], reply.r#else), ("x", r#where));
    let failed = client.r#fn(|_| {}).await.unwrap_err();
    assert_eq!(
        failed,
        Failure::Application(Break {
            r#static: "empty".into()
        })
    );
    assert_eq!(USE, 7);
    server.shutdown().await;
}
