//! Bowline: the typed client and server of schema/echo.capnp.

use std::net::SocketAddr;

use bowline::{Reply, Request, Server, Status};
use futures::FutureExt;
use futures::future::LocalBoxFuture;

use super::{AnyError, Caller, TEXT};
use crate::echo::{Echo, EchoClient, EchoServer, PingParams, PingResults};

struct Echoing;

impl Echo for Echoing {
    async fn ping(&self, request: Request<PingParams>) -> Result<Reply<PingResults>, Status> {
        let text = request.get()?.get_text()?;
        Ok(Reply::<PingResults>::build(|mut results| {
            results.set_text(text)
        }))
    }
}

pub async fn serve(tell: impl FnOnce(SocketAddr)) -> Result<(), AnyError> {
    let server = Server::builder().service(EchoServer::new(Echoing));
    let server = server.bind("tcp://127.0.0.1:0").await?;
    tell(
        server
            .endpoint()
            .to_string()
            .trim_start_matches("tcp://")
            .parse()?,
    );
    server.run().await;
    Ok(())
}

pub async fn connect(address: SocketAddr) -> Result<EchoClient, AnyError> {
    Ok(EchoClient::connect(format!("tcp://{address}")).await?)
}

impl Caller for EchoClient {
    fn call(&self) -> LocalBoxFuture<'_, Result<(), AnyError>> {
        async {
            let reply = self.ping(|mut params| params.set_text(TEXT)).await?;
            assert_eq!(reply.get()?.get_text()?, TEXT);
            Ok(())
        }
        .boxed_local()
    }
}
