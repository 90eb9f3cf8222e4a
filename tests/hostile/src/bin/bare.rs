//! `bare [memory=<bytes>] [files=<n>]`: a REP of the `zeromq` crate that echoes, and nothing around it.

use bowline_test_hostile::process::{limit_from_arguments, say, until_input_ends};
use zeromq::{Socket, SocketRecv, SocketSend};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    limit_from_arguments()?;
    let mut socket = zeromq::RepSocket::new();
    say("calls", &socket.bind("tcp://127.0.0.1:0").await?);
    let echoing = async {
        loop {
            // What it can do about an error is to go on.
            if let Ok(message) = socket.recv().await {
                let _ = socket.send(message).await;
            }
        }
    };
    tokio::select! {
        () = echoing => {}
        () = until_input_ends() => {}
    }
    Ok(())
}
