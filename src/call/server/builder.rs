//! What a server has, and how it is set.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tower_layer::Layer;
use tower_service::Service;

use super::Server;
use super::counters::Counters;
use super::desk::Desk;
use super::drive::{Drive, Shared};
use super::in_flight::Pools;
use super::pace::Pace;
use super::readiness::Readiness;
use super::replies::ReplyBacklog;
use super::running::Running;
use crate::call::service::Route;
use crate::call::{CallService, NamedService, QueueAccess, RawReply, RawRequest, ReplyFuture};
use crate::message::Limits;
use crate::once::{Keeper, MemoryStore, Once, OnceError, Store};
use crate::schema::{Effect, MethodInfo, ServiceInfo};
use crate::security::{Known, KnownService, Pool, ServerSecurity, Tally};
use crate::transport::{self, Endpoint, EndpointError, TransportError, TransportOptions};
use crate::wire::{SizesMax, Status};

/// How long a handler computes before its first await without being taken for one that blocks.
const SLOW_POLL_DEFAULT: Duration = Duration::from_millis(20);

/// Settings of a [`Server`] and its services.
#[derive(Debug)]
#[must_use]
pub struct ServerBuilder {
    services: Vec<Added>,
    once: Option<Box<dyn Keeper>>,
    concurrency_max: usize,
    concurrency_per_principal_max: usize,
    concurrency_per_connection_max: usize,
    parked_max: usize,
    parked_per_principal_max: usize,
    request_bytes_max: usize,
    principals_max: usize,
    pub(super) drain_max: Duration,
    pub(super) send_wait_max: Duration,
    slow_poll: Duration,
    pub(super) limits: Limits,
    transport: TransportOptions,
}

/// Of a service: [`NamedService::queue_of`].
type QueueOf = fn(&RawRequest) -> Result<Option<QueueAccess>, Status>;

/// Of a service: [`NamedService::drain`].
pub(super) type OnDrain = Arc<dyn Fn() + Send + Sync>;

/// A service, and what goes around it from the inside out.
struct Added {
    info: &'static ServiceInfo,
    queue_of: QueueOf,
    drain: OnDrain,
    queue_names: Option<Vec<String>>,
    route: Route,
    layers: Vec<Arc<dyn Fn(Route) -> Route + Send + Sync>>,
}

impl std::fmt::Debug for Added {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.info.name)
    }
}

/// Why a server could not be bound. Nothing is left open.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// Two services of one server answer to the same interface.
    ///
    /// Where both extend it, a service of that interface itself, added to the same server, answers its methods.
    #[error(
        "services `{first}` and `{second}` both answer to interface {interface:#x}; where both extend it, add a service \
         of that interface itself"
    )]
    Ambiguous {
        /// The name of the one that was added first.
        first: &'static str,
        /// The name of the other.
        second: &'static str,
        /// The interface that both have.
        interface: u64,
    },
    /// The outcomes of a `$once` method cannot be kept as asked.
    #[error(transparent)]
    Once(#[from] OnceError),
    /// The socket could not be bound.
    #[error(transparent)]
    Transport(#[from] TransportError),
}

impl From<EndpointError> for BindError {
    fn from(error: EndpointError) -> Self {
        Self::Transport(error.into())
    }
}

impl Default for ServerBuilder {
    fn default() -> Self {
        Self {
            services: Vec::new(),
            once: None,
            concurrency_max: 1024,
            concurrency_per_principal_max: usize::MAX,
            concurrency_per_connection_max: 512,
            parked_max: 4096,
            parked_per_principal_max: usize::MAX,
            request_bytes_max: 64 << 20,
            principals_max: 1024,
            drain_max: Duration::from_secs(10),
            send_wait_max: Duration::from_secs(1),
            slow_poll: SLOW_POLL_DEFAULT,
            limits: Limits::default(),
            transport: TransportOptions::default(),
        }
    }
}

impl ServerBuilder {
    /// Adds a generated server.
    pub fn service<S>(mut self, service: S) -> Self
    where
        S: NamedService
            + Service<RawRequest, Response = RawReply, Error = Status, Future = ReplyFuture>
            + Clone
            + Send
            + Sync
            + 'static,
    {
        let drained = service.clone();
        self.services.push(Added {
            info: S::INFO,
            queue_of: S::queue_of,
            drain: Arc::new(move || drained.drain()),
            queue_names: service.queue_names(),
            route: Route::direct(service),
            layers: Vec::new(),
        });
        self
    }

    /// Puts a tower layer around each service that was added so far. It sees every request, also
    /// one that is answered with a stored outcome.
    pub fn layer<L>(mut self, layer: L) -> Self
    where
        L: Layer<Route> + Send + Sync + 'static,
        L::Service: CallService + Sync + 'static,
    {
        let layer: Arc<dyn Fn(Route) -> Route + Send + Sync> =
            Arc::new(move |route| Route::layered(layer.layer(route)));
        for service in &mut self.services {
            service.layers.push(Arc::clone(&layer));
        }
        self
    }

    /// Where the outcomes of `$once` methods are kept, and on what terms. Default: in memory.
    pub fn once<S: Store>(mut self, once: Once<S>) -> Self {
        self.once = Some(Box::new(once.with_own_jobs()));
        self
    }

    /// Handlers that may be waiting at once; a request beyond them is refused with
    /// `ResourceExhausted`, not done. Default: 1,024.
    ///
    /// One principal, or one address where there are no keys, may have up to three times as many as are left free: 768 where
    /// no other has any, 439 each of two that take all they can. So there is always room for others. What is
    /// over its share is refused for that one alone, and counted for it.
    pub fn concurrency_max(mut self, handlers: usize) -> Self {
        self.concurrency_max = handlers;
        self
    }

    /// Handlers that may be waiting at once for one principal, or for one address where there are no keys, within what its
    /// [share](Self::concurrency_max) allows. Default: no other limit than that.
    pub fn concurrency_per_principal_max(mut self, handlers: usize) -> Self {
        self.concurrency_per_principal_max = handlers;
        self
    }

    /// Handlers that may be waiting at once for one connection, over `tcp` and `ipc` by `omq`; a
    /// request beyond them is refused with `ResourceExhausted`, not done. Default: 512.
    pub fn concurrency_per_connection_max(mut self, handlers: usize) -> Self {
        self.concurrency_per_connection_max = handlers;
        self
    }

    /// Calls that may be [parked](crate::call::park) at once, as a queue's workers' are that wait for jobs; they are not among those
    /// of [`concurrency_max`](Self::concurrency_max), and one principal or address has a share of them by the same rule. One
    /// beyond them is refused with `ResourceExhausted`, not done. Default: 4,096.
    pub fn parked_max(mut self, calls: usize) -> Self {
        self.parked_max = calls;
        self
    }

    /// Calls that may be parked at once for one principal, or for one address where there are no keys, within what its
    /// [share](Self::parked_max) allows. Default: no other limit than that.
    pub fn parked_per_principal_max(mut self, calls: usize) -> Self {
        self.parked_per_principal_max = calls;
        self
    }

    /// Bytes of the requests of handlers that wait, of all together; one principal or address has a share of them by the same
    /// rule as of [`concurrency_max`](Self::concurrency_max), and one request alone always fits. One beyond them is refused with
    /// `ResourceExhausted`, not done. Default: 64 MiB.
    pub fn request_bytes_max(mut self, bytes: usize) -> Self {
        self.request_bytes_max = bytes;
        self
    }

    /// Principals that are [counted](super::ServerHandle::by_principal) each by itself; those that come later
    /// are counted together. Default: 1,024.
    pub fn principals_max(mut self, principals: usize) -> Self {
        self.principals_max = principals;
        self
    }

    /// Keys, who is let in, and what they may do; without, the server binds only where no other
    /// machine can reach it.
    pub fn security(mut self, security: ServerSecurity) -> Self {
        self.transport.server_security = Some(security);
        self
    }

    /// How long a shutdown waits for running handlers. Default: 10 s.
    pub fn drain_max(mut self, time: Duration) -> Self {
        self.drain_max = time;
        self
    }

    /// How long a reply waits for a client that does not read; then it is dropped and counted.
    /// Default: 1 s.
    pub fn send_wait_max(mut self, time: Duration) -> Self {
        self.send_wait_max = time;
        self
    }

    /// Sets how long a handler may compute before its first await. A method whose handler computes for longer has its
    /// first polls on a thread of their own from then on, which costs some microseconds a call, and a line in the
    /// log says so: such work belongs in `tokio::task::spawn_blocking`. Meanwhile another task serves the other calls,
    /// where the runtime has more than one worker thread. Default: 20 ms.
    pub fn slow_first_poll(mut self, time: Duration) -> Self {
        self.slow_poll = time;
        self
    }

    /// Limits what reading a request may cost. Clients are told the largest body, and send no larger one.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Settings of the socket. Keys that were given before stay where these have none.
    pub fn transport(mut self, mut options: TransportOptions) -> Self {
        let before = self.transport.server_security.take();
        options.server_security = options.server_security.or(before);
        self.transport = options;
        self
    }

    /// Opens the socket. Requests wait there until the server is run.
    ///
    /// # Errors
    /// For what is no endpoint or is in use, for one that other machines could reach without
    /// [keys](Self::security) or [`insecure`](TransportOptions::insecure), and for services that get in each other's way.
    ///
    /// # Panics
    /// Outside a tokio runtime with time and I/O enabled.
    pub async fn bind(mut self, endpoint: impl AsRef<str>) -> Result<Server, BindError> {
        let endpoint: Endpoint = endpoint.as_ref().parse()?;
        let once = self.keeper()?;
        let routes = self.routes(once.as_deref())?;
        let (sender, receiver, endpoint) =
            transport::bind_router(&endpoint, &self.transport).await?;
        let takes_compact = transport::takes_compact(&endpoint, &self.transport);
        let message_bytes_max = self.transport.message_bytes_max;
        let linger = self.transport.linger;
        let known = Arc::new(self.known(&endpoint));
        let access = match (&endpoint, self.transport.server_security) {
            // Whoever calls is this process itself.
            (Endpoint::Inproc(_), _) | (_, None) => None,
            (_, Some(security)) => Some(security.access),
        };
        if let Some(access) = &access {
            access.compare_with(&known);
        }
        let shared = Arc::new(Shared {
            sender,
            endpoint,
            routes,
            once,
            counters: Counters::default(),
            by_principal: Tally::new(self.principals_max),
            limits: self.limits,
            sizes: SizesMax::new(&self.limits, message_bytes_max),
            access,
            _known: known,
            pools: Pools::new(
                Pool::new(self.concurrency_max, self.concurrency_per_principal_max),
                Pool::new(self.parked_max, self.parked_per_principal_max),
                Pool::new(self.request_bytes_max, usize::MAX),
                self.concurrency_per_connection_max,
            ),
            drain_max: self.drain_max,
            linger,
            draining: Notify::new(),
            send_wait_max: self.send_wait_max,
            slow_poll: self.slow_poll,
            backlog: ReplyBacklog::new(self.transport.send_bytes_total_max / 2),
            takes_compact,
            readiness: Readiness::default(),
            running: Arc::new(Running::default()),
            desk: Desk::default(),
            on_drain: OnDrains(
                self.services
                    .iter()
                    .map(|of| Arc::clone(&of.drain))
                    .collect(),
            ),
        });
        Ok(Server {
            drive: Drive { shared, receiver },
        })
    }

    /// What access rules can be about.
    fn known(&self, endpoint: &Endpoint) -> Known {
        let services = self.services.iter().map(|added| KnownService {
            name: added.info.name,
            methods: added
                .info
                .methods
                .iter()
                .map(|method| method.name)
                .collect(),
        });
        let services: Vec<_> = services.collect();
        let queues = self
            .services
            .iter()
            .filter_map(|added| added.queue_names.as_ref());
        let queues: Vec<_> = queues.flatten().cloned().collect();
        Known {
            endpoint: endpoint.to_string(),
            services: Some(services),
            queues: (!queues.is_empty()).then_some(queues),
            topics: None,
        }
    }

    /// What keeps outcomes, where there are any to keep.
    fn keeper(&mut self) -> Result<Option<Box<dyn Keeper>>, BindError> {
        let methods = || {
            self.services
                .iter()
                .flat_map(|service| service.info.methods)
        };
        let is_once = |method: &MethodInfo| matches!(method.effect, Effect::Once(_));
        if !methods().any(is_once) {
            return Ok(None);
        }
        let once = match self.once.take() {
            Some(once) => once,
            None => Box::new(Once::builder().build(MemoryStore::new())?),
        };
        for method in self
            .services
            .iter()
            .flat_map(|service| service.info.methods)
        {
            once.check(method)?;
        }
        Ok(Some(once))
    }

    fn routes(&self, once: Option<&dyn Keeper>) -> Result<Routes, BindError> {
        let mut routes = Routes::default();
        let mut owners: HashMap<u64, &'static str> = HashMap::new();
        for Added {
            info,
            queue_of,
            drain: _,
            route,
            layers,
            ..
        } in &self.services
        {
            let direct = match once {
                Some(once) => once.wrap(route.clone()),
                None => route.clone(),
            };
            let route = layers.iter().fold(direct, |route, layer| layer(route));
            let mut interfaces: Vec<u64> = info.methods.iter().map(|m| m.interface).collect();
            interfaces.push(info.interface);
            interfaces.sort_unstable();
            interfaces.dedup();
            let service_name = info.name;
            for interface in interfaces {
                // Methods belong to the interface that declares them: to its own service, where there is one.
                let declares = |other: &Added| other.info.interface == interface;
                if interface != info.interface && self.services.iter().any(declares) {
                    continue;
                }
                if let Some(first) = owners.insert(interface, info.name) {
                    return Err(BindError::Ambiguous {
                        first,
                        second: info.name,
                        interface,
                    });
                }
                let methods = info.methods.iter();
                let methods = methods.filter(|method| method.interface == interface);
                let first = routes.methods.len();
                routes.methods.extend(methods.map(|info| Method {
                    info,
                    service: service_name,
                    queue_of: *queue_of,
                    route: route.clone(),
                    pace: Pace::default(),
                }));
                routes.interfaces.push(Interface {
                    id: interface,
                    methods: first..routes.methods.len(),
                });
            }
        }
        Ok(routes)
    }
}

/// What is told that the server shuts down.
pub(super) struct OnDrains(pub Vec<OnDrain>);

impl std::fmt::Debug for OnDrains {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OnDrains")
    }
}

/// Which service answers to which interface. A server has few, so that looking through them takes
/// less time than hashing one.
#[derive(Debug, Default)]
pub(super) struct Routes {
    interfaces: Vec<Interface>,
    methods: Vec<Method>,
}

#[derive(Debug)]
struct Interface {
    id: u64,
    /// Where its methods are.
    methods: Range<usize>,
}

#[derive(Debug)]
struct Method {
    info: &'static MethodInfo,
    service: &'static str,
    queue_of: QueueOf,
    route: Route,
    pace: Pace,
}

/// A method, and the service that has it.
pub(super) struct Found {
    /// Its place among all methods.
    pub index: usize,
    pub service: &'static str,
    pub queue_of: QueueOf,
    pub method: &'static MethodInfo,
}

impl Routes {
    pub fn find(&self, interface: u64, ordinal: u16) -> Option<Found> {
        let interface = self.interfaces.iter().find(|of| of.id == interface)?;
        let mut places = interface.methods.clone();
        let index = places.find(|index| self.methods[*index].info.ordinal == ordinal)?;
        let method = &self.methods[index];
        Some(Found {
            index,
            service: method.service,
            queue_of: method.queue_of,
            method: method.info,
        })
    }

    pub fn route(&self, method: usize) -> &Route {
        &self.methods[method].route
    }

    pub fn pace(&self, method: usize) -> &Pace {
        &self.methods[method].pace
    }

    /// The names of its service and of itself.
    pub fn name(&self, method: usize) -> (&'static str, &'static str) {
        let method = &self.methods[method];
        (method.service, method.info.name)
    }
}
