//! A house with a lock: its keys, one key that is let in, its server, publisher, and those who come.

#![allow(dead_code, reason = "each test file uses its part")]

use std::time::Duration;

use bowline::security::{
    AccessRules, AllowedKeys, ClientSecurity, Keys, PublicKey, ServerSecurity,
};
use bowline::{Client, Publisher, Server, ServerHandle, Subscriber};
use bowline_test_schemas::everything::Progress;

use crate::common::Probe;

/// Everything that a door needs, with one key that is let in and may do all.
pub struct House {
    pub server: Keys,
    pub web: Keys,
    pub allowed: AllowedKeys,
}

impl House {
    pub fn new() -> Self {
        let house = Self {
            server: Keys::generate(),
            web: Keys::generate(),
            allowed: AllowedKeys::new(),
        };
        house.allowed.allow("web", house.web.public()).unwrap();
        house
    }

    pub fn rules(&self) -> AccessRules {
        AccessRules::new()
            .call("web", "probe", "echo")
            .subscribe("web", "progress/")
    }

    pub fn security(&self) -> ServerSecurity {
        ServerSecurity::new(self.server.clone(), self.allowed.clone()).with_access(self.rules())
    }

    pub async fn serve(&self, endpoint: &str) -> ServerHandle {
        let server = Server::builder()
            .service(Probe::default())
            .security(self.security());
        server.bind(endpoint).await.unwrap().spawn()
    }

    pub async fn publish(&self) -> Publisher<Progress> {
        Publisher::builder()
            .security(self.security())
            .bind("tcp://127.0.0.1:0")
            .await
            .unwrap()
    }
}

pub async fn client(endpoint: impl ToString, security: Option<ClientSecurity>) -> Client {
    let mut builder = Client::builder().connect_wait(Duration::from_millis(700));
    if let Some(security) = security {
        builder = builder.security(security);
    }
    builder.connect(endpoint.to_string()).await.unwrap()
}

pub async fn subscriber(
    endpoint: impl ToString,
    security: Option<ClientSecurity>,
) -> Subscriber<Progress> {
    let mut builder = Subscriber::<()>::builder().confirm_within(Duration::from_millis(1500));
    if let Some(security) = security {
        builder = builder.security(security);
    }
    builder.connect(endpoint.to_string()).await.unwrap()
}

/// The keys that a peer may come with.
pub fn security(keys: &Keys, server: PublicKey) -> Option<ClientSecurity> {
    Some(ClientSecurity::new(keys.clone(), server))
}

pub fn progress(done: u32) -> Progress {
    Progress {
        job: "job".into(),
        done,
    }
}
