//! The stores on servers over TLS, and a server that nobody they know answers for.

use std::sync::Arc;

use bowline::once::{Bounds, Change, Clock, Durability, RedisStore, Store, StoreError, Verdict};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::subjects::*;

/// Trusts the authority of these servers, or nobody.
fn postgres_tls(trusts: bool) -> MakeRustlsConnect {
    let mut roots = rustls::RootCertStore::empty();
    if trusts {
        let authority = CertificateDer::from_pem_file(url("BOWLINE_AUTHORITY"));
        roots
            .add(authority.expect("readable"))
            .expect("an authority");
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("what the provider has")
        .with_root_certificates(roots)
        .with_no_client_auth();
    MakeRustlsConnect::new(config)
}

async fn redis(records: &Redis, authority: Option<Vec<u8>>) -> Result<RedisStore, StoreError> {
    // Several users of the library in one build: each says which provider it means, this one for all.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let tls = redis::TlsCertificates {
        client_tls: None,
        root_cert: authority,
    };
    let client = redis::Client::build_with_tls(url("BOWLINE_REDIS_TLS"), tls);
    let client = client.expect("a URL and certificates");
    let builder = records.builder();
    builder.connect_with(client, Durability::RequireFsync).await
}

/// Claims, records, is woken by it, and is told.
async fn works<S: Store + Clone>(store: S) {
    assert_eq!(
        apply(&store, "a", Change::Begin(claim(1))).await,
        Verdict::Run
    );
    let watching = store.clone();
    let watching = tokio::spawn(async move { watching.watch(&key("a")).await });
    let done = complete(1, "one");
    assert_eq!(apply(&store, "a", done).await, Verdict::Applied);
    watching
        .await
        .expect("no panic")
        .expect("the store is there");
    let told = apply(&store, "a", Change::Begin(claim(2))).await;
    assert_eq!(told, Verdict::Done(reply("one")));
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_over_tls() {
    let _undisturbed = undisturbed().await;
    let records = Postgres::new(Bounds::default(), Clock::System).await;
    let url = format!("{}?sslmode=require", url("BOWLINE_POSTGRES"));
    records
        .builder()
        .connect(&url)
        .await
        .expect_err("it cannot");
    let stranger = records.builder().tls(postgres_tls(false));
    let error = stranger.connect(&url).await.expect_err("nobody it trusts");
    assert!(error.reason.contains("UnknownIssuer"), "{error}");
    let store = records
        .builder()
        .tls(postgres_tls(true))
        .connect(&url)
        .await;
    works(store.expect("connected")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_over_tls() {
    let _undisturbed = undisturbed().await;
    let records = Redis::new(Bounds::default(), Clock::System).await;
    let error = redis(&records, None).await.expect_err("nobody it trusts");
    assert!(error.reason.contains("UnknownIssuer"), "{error}");
    let authority = std::fs::read(url("BOWLINE_AUTHORITY")).expect("readable");
    works(redis(&records, Some(authority)).await.expect("connected")).await;
}
