//! The connection to Redis: made when it is needed, made again when it is lost, given up when it does
//! not answer. Whenever it is made, the server is asked what it would lose.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, FromRedisValue, ProtocolVersion, PushInfo, PushKind, RedisError,
    Script, ScriptInvocation, Value,
};
use tokio::time::{Instant, timeout_at};

use super::super::remote::{Connected, Place, Reconnect, ServerClock};
use super::super::waiters::Waiters;
use super::super::{Durability, Key, StoreError};

/// Settings that lose what was confirmed unless they are as here.
const DURABLE: [(&str, &str); 4] = [
    ("appendonly", "yes"),
    ("appendfsync", "always"),
    ("no-appendfsync-on-rewrite", "no"),
    ("maxmemory-policy", "noeviction"),
];

/// How to connect, and the connection where there is one.
pub struct Connector {
    client: Client,
    durability: Durability,
    channel: Vec<u8>,
    waiters: Arc<Waiters>,
    place: Place<Connection>,
    reconnect: Reconnect,
}

/// A connection that carries any number of commands at once.
pub struct Connection {
    commands: MultiplexedConnection,
    is_given_up: AtomicBool,
    pub clock: ServerClock,
}

impl Connected for Connection {
    fn is_usable(&self) -> bool {
        !self.is_given_up.load(Ordering::Relaxed)
    }
}

impl Connection {
    /// What the script answers, if it does so in time. A connection that does not is given up.
    pub async fn run<T: FromRedisValue>(
        &self,
        script: &ScriptInvocation<'_>,
        until: Instant,
    ) -> Result<T, StoreError> {
        let mut commands = self.commands.clone();
        match timeout_at(until, script.invoke_async(&mut commands)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                if error.is_unrecoverable_error() || error.is_io_error() {
                    self.is_given_up.store(true, Ordering::Relaxed);
                }
                Err(failed(error))
            }
            Err(_) => {
                self.is_given_up.store(true, Ordering::Relaxed);
                Err(late())
            }
        }
    }
}

impl Connector {
    pub fn new(
        client: &Client,
        durability: Durability,
        channel: Vec<u8>,
        waiters: Arc<Waiters>,
    ) -> Result<Self, StoreError> {
        let info = client.get_connection_info().clone();
        // The third version, in which the server may say something unasked.
        let settings = info.redis_settings().clone();
        let settings = settings.set_protocol(ProtocolVersion::RESP3);
        let client = Client::open(info.set_redis_settings(settings)).map_err(failed)?;
        Ok(Self {
            client,
            durability,
            channel,
            waiters,
            place: Place::default(),
            reconnect: Reconnect::default(),
        })
    }

    pub async fn get(&self, until: Instant) -> Result<Arc<Connection>, StoreError> {
        let connect = Box::pin(self.connect());
        self.place.get(&self.reconnect, until, connect).await
    }

    async fn connect(&self) -> Result<Connection, StoreError> {
        let waiters = Arc::clone(&self.waiters);
        let heard = move |info: PushInfo| {
            if info.kind == PushKind::Message
                && let Some(Value::BulkString(key)) = info.data.last()
            {
                waiters.wake(&Key::from_bytes(key));
            }
            Ok::<_, redis::aio::SendError>(())
        };
        // Whoever asks bounds the time.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(None::<Duration>)
            .set_response_timeout(None::<Duration>)
            .set_push_sender(heard);
        let connecting = self
            .client
            .get_multiplexed_async_connection_with_config(&config);
        let mut commands = connecting.await.map_err(failed)?;
        self.check(&mut commands).await?;
        let (seconds, microseconds): (i64, i64) = redis::cmd("TIME")
            .query_async(&mut commands)
            .await
            .map_err(failed)?;
        commands.subscribe(&self.channel).await.map_err(failed)?;
        Ok(Connection {
            commands,
            is_given_up: AtomicBool::new(false),
            clock: ServerClock::new(seconds * 1000 + microseconds / 1000),
        })
    }

    /// What the server is set to lose.
    async fn check(&self, commands: &mut MultiplexedConnection) -> Result<(), StoreError> {
        let mut loses = Vec::new();
        for (setting, durable) in DURABLE {
            let get = redis::cmd("CONFIG").arg("GET").arg(setting).to_owned();
            match get.query_async::<Vec<(String, String)>>(commands).await {
                Ok(settings) => {
                    let is = settings.first().map_or("unknown", |(_, value)| value);
                    if is != durable {
                        loses.push(format!("{setting} is {is} and not {durable}"));
                    }
                }
                Err(error) if error.is_io_error() || error.is_unrecoverable_error() => {
                    return Err(failed(error));
                }
                Err(error) => loses.push(format!("{setting} cannot be asked for: {error}")),
            }
        }
        if loses.is_empty() {
            return Ok(());
        }
        let reason = format!("Redis may forget outcomes: {}", loses.join("; "));
        match self.durability {
            Durability::RequireFsync => Err(StoreError::new(reason)),
            Durability::AcceptLoss => {
                tracing::warn!("{reason}");
                Ok(())
            }
        }
    }
}

/// What is done in Redis.
pub fn script() -> Script {
    Script::new(include_str!("records.lua"))
}

pub fn failed(error: RedisError) -> StoreError {
    // What the server says before it runs a script.
    const REFUSED: [&str; 7] = [
        "BUSY",
        "LOADING",
        "MASTERDOWN",
        "MISCONF",
        "NOREPLICAS",
        "OOM",
        "READONLY",
    ];
    let reason = format!("Redis: {error}");
    match error.code().is_some_and(|code| REFUSED.contains(&code)) {
        true => StoreError::not_applied(reason),
        false => StoreError::new(reason),
    }
}

fn late() -> StoreError {
    StoreError::new("Redis did not answer in time")
}
