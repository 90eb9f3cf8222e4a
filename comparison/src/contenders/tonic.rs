//! tonic, with prost.

use std::net::SocketAddr;

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};

use super::{AnyError, Caller, TEXT};

#[derive(Clone, PartialEq, prost::Message)]
pub struct Ping {
    #[prost(string, tag = "1")]
    pub text: String,
}

mod generated {
    include!(concat!(env!("OUT_DIR"), "/echo.Echo.rs"));
}

use generated::echo_client::EchoClient;
use generated::echo_server::{Echo, EchoServer};

struct Echoing;

#[tonic::async_trait]
impl Echo for Echoing {
    async fn ping(&self, request: Request<Ping>) -> Result<Response<Ping>, Status> {
        Ok(Response::new(request.into_inner()))
    }
}

pub async fn serve(tell: impl FnOnce(SocketAddr)) -> Result<(), AnyError> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    tell(listener.local_addr()?);
    let service = EchoServer::new(Echoing);
    let incoming = TcpListenerStream::new(listener);
    Ok(Server::builder()
        .tcp_nodelay(true)
        .add_service(service)
        .serve_with_incoming(incoming)
        .await?)
}

pub async fn connect(address: SocketAddr) -> Result<EchoClient<Channel>, AnyError> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?.tcp_nodelay(true);
    Ok(EchoClient::new(endpoint.connect().await?))
}

impl Caller for EchoClient<Channel> {
    fn call(&self) -> LocalBoxFuture<'_, Result<(), AnyError>> {
        let mut client = self.clone();
        async move {
            let text = TEXT.to_owned();
            let reply = client.ping(Ping { text }).await?;
            assert_eq!(reply.get_ref().text, TEXT);
            Ok(())
        }
        .boxed_local()
    }
}
