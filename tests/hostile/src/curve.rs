//! Keys that everybody knows, and the first words of a handshake with them, as a client says them.

use std::io;
use std::net::TcpListener;

use bowline::Client;
use bowline::security::{ClientSecurity, KeyError, Keys, PublicKey};

use crate::zmtp::{Wire, greeting_for};

/// Of the manual of `zmq_curve`.
const SERVER: &str = "JTKVSB%%)wK0E.X)V>+}o?pNmC{O&4W4b!Ni{Lh6";
const CLIENT: &str = "D:)Q[IlAW!ahhC2ac:9*A}h:p?([4%wOTJ%JR%cs";

/// Of one that may call and push.
const HARM: &str = r#"1jSaz)DcYx!A%b7u@5)uQIeHiDU68Z@W/Y!FVR)J"#;

/// Of a principal that may call and push, and means harm.
///
/// # Errors
/// None: it is a key.
pub fn harmful_keys() -> Result<Keys, KeyError> {
    Keys::from_secret_text(HARM)
}

/// The service's.
///
/// # Errors
/// None: it is a key.
pub fn server_keys() -> Result<Keys, KeyError> {
    Keys::from_secret_text(SERVER)
}

/// Of the good client.
///
/// # Errors
/// None: it is a key.
pub fn client_keys() -> Result<Keys, KeyError> {
    Keys::from_secret_text(CLIENT)
}

/// The HELLO of a client that means to call the server with this key: it is right, and whoever has heard it can
/// say it again.
///
/// # Errors
/// Where it is not said.
pub fn hello(server: PublicKey) -> io::Result<Vec<u8>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let endpoint = format!("tcp://{}", listener.local_addr()?);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let security = ClientSecurity::new(Keys::generate(), server);
    let client = Client::builder().security(security).connect(endpoint);
    let client = runtime.block_on(client).map_err(io::Error::other)?;
    let (stream, _) = listener.accept()?;
    let mut wire = Wire::new(stream)?.greet_with(&greeting_for("CURVE", true))?;
    let (_, hello) = wire.receive()?;
    drop(client);
    runtime.shutdown_background();
    Ok(hello)
}
