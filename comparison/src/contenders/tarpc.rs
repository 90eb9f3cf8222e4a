//! tarpc over its TCP transport, with bincode.

use std::net::SocketAddr;

use futures::future::LocalBoxFuture;
use futures::{FutureExt, StreamExt};
use tarpc::server::{BaseChannel, Channel};
use tarpc::tokio_serde::formats::Bincode;
use tarpc::{client, context};

use super::{AnyError, Caller, TEXT};

#[tarpc::service]
pub trait Echo {
    async fn ping(text: String) -> String;
}

#[derive(Clone)]
struct Echoing;

impl Echo for Echoing {
    async fn ping(self, _: context::Context, text: String) -> String {
        text
    }
}

pub async fn serve(tell: impl FnOnce(SocketAddr)) -> Result<(), AnyError> {
    let mut listener = tarpc::serde_transport::tcp::listen("127.0.0.1:0", Bincode::default).await?;
    tell(listener.local_addr());
    while let Some(transport) = listener.next().await {
        let requests = BaseChannel::with_defaults(transport?).execute(Echoing.serve());
        tokio::spawn(requests.for_each(|response| async {
            tokio::spawn(response);
        }));
    }
    Ok(())
}

pub async fn connect(address: SocketAddr) -> Result<EchoClient, AnyError> {
    let transport = tarpc::serde_transport::tcp::connect(address, Bincode::default).await?;
    Ok(EchoClient::new(client::Config::default(), transport).spawn())
}

impl Caller for EchoClient {
    fn call(&self) -> LocalBoxFuture<'_, Result<(), AnyError>> {
        async {
            let reply = self.ping(context::current(), TEXT.to_owned()).await?;
            assert_eq!(reply, TEXT);
            Ok(())
        }
        .boxed_local()
    }
}
