//! Traits to implement, clients to call, servers that dispatch, and their descriptions.

use std::fmt::Write;

use super::docs;
use crate::model::{Interface, Method};
use crate::names::{identifier, service_static};

pub(super) fn interface(code: &mut String, interface: &Interface) {
    description(code, interface);
    implement(code, interface);
    client(code, interface);
    server(code, interface);
}

/// Its own methods and those of all that it extends, with the path of each one's trait.
fn all_methods(interface: &Interface) -> impl Iterator<Item = (&str, &Method)> {
    let own = interface
        .methods
        .iter()
        .map(|method| (interface.name.as_str(), method));
    let inherited = interface.bases.iter().flat_map(|base| {
        base.methods
            .iter()
            .map(|method| (base.path.as_str(), method))
    });
    own.chain(inherited)
}

fn description(code: &mut String, interface: &Interface) {
    let mut methods = String::new();
    for (_, method) in all_methods(interface) {
        let timeout = match method.timeout {
            Some(timeout) => format!(
                "Some(::core::time::Duration::new({}, {}))",
                timeout.as_secs(),
                timeout.subsec_nanos()
            ),
            None => "None".into(),
        };
        let fails = match &method.fails {
            Some((_, id)) => format!("Some({id:#x})"),
            None => "None".into(),
        };
        let _ = writeln!(
            methods,
            "$crate::schema::MethodInfo {{ service: {:?}, name: {:?}, interface: {:#x}, ordinal: {}, \
             effect: $crate::schema::{}, timeout: {timeout}, params: {:#x}, results: {:#x}, fails: {fails} }},",
            interface.service,
            method.name,
            method.interface,
            method.ordinal,
            method.effect,
            method.params.id,
            method.results.id,
        );
    }
    *code += &format!(
        "/// What the schema says about [`{name}`].\n\
         pub static {upper}: $crate::schema::ServiceInfo = $crate::schema::ServiceInfo {{\n\
         name: {:?}, interface: {:#x}, methods: &[\n{methods}],\n}};\n",
        interface.service,
        interface.id,
        name = interface.name,
        upper = service_static(&interface.name),
    );
}

fn error_type(method: &Method) -> String {
    match &method.fails {
        Some((path, _)) => format!("$crate::Failure<{path}>"),
        None => "$crate::Status".into(),
    }
}

fn implement(code: &mut String, interface: &Interface) {
    let mut supertraits = String::from("::core::marker::Send + ::core::marker::Sync + 'static");
    for supertrait in &interface.supertraits {
        supertraits += &format!(" + {supertrait}");
    }
    *code += &docs(&interface.docs);
    *code += &format!("pub trait {}: {supertraits} {{\n", interface.name);
    for method in &interface.methods {
        *code += &docs(&method.docs);
        *code += &format!(
            "fn {}(&self, request: $crate::Request<{}>) -> impl ::core::future::Future<\
             Output = ::core::result::Result<$crate::Reply<{}>, {}>> + ::core::marker::Send {{\n\
             async {{ Err($crate::Status::unknown_method({:#x}, {}).into()) }}\n}}\n",
            identifier(&method.rust),
            method.params.type_.rust(),
            method.results.type_.rust(),
            error_type(method),
            method.interface,
            method.ordinal,
        );
    }
    *code += "}\n";
}

fn client(code: &mut String, interface: &Interface) {
    let name = &interface.name;
    let description = service_static(name);
    *code += &format!(
        "/// Calls a [`{name}`]: over a [`Client`]($crate::Client), through a tower stack, or in process.\n\
         #[derive(Clone, Debug)]\n\
         pub struct {name}Client<S = $crate::Client> {{ service: S }}\n\
         impl {name}Client {{\n\
         /// Connects with default settings.\n///\n/// # Errors\n/// For what is no endpoint.\n\
         pub async fn connect(endpoint: impl ::core::convert::AsRef<str>) \
         -> ::core::result::Result<Self, $crate::ConnectError> {{\n\
         Ok(Self::new($crate::Client::connect(endpoint).await?))\n}}\n}}\n\
         impl<S: $crate::call::CallService> {name}Client<S> {{\n\
         /// Puts the client on what carries its calls.\n\
         pub fn new(service: S) -> Self {{ Self {{ service }} }}\n"
    );
    for (index, (_, method)) in all_methods(interface).enumerate() {
        let params = method.params.type_.rust();
        let call = format!(
            "$crate::Call<S, {}, {}>",
            method.results.type_.rust(),
            error_type(method)
        );
        let docs = docs(&method.docs);
        let snake = &method.client;
        *code += &format!(
            "{docs}pub fn {}(&self, build: impl ::core::ops::FnOnce(\
             <<{params} as $crate::message::Plain>::Capnp as $crate::__private::capnp::traits::Owned>::Builder<'_>)) -> {call} {{\n\
             $crate::Call::build::<{params}>(&self.service, &{description}.methods[{index}], build)\n}}\n\
             {docs}pub fn {snake}_plain(&self, params: &{params}) -> {call} {{\n\
             $crate::Call::plain(&self.service, &{description}.methods[{index}], params)\n}}\n\
             /// The call of `{snake}` with parameters that are a message already, such as those of a request that is passed on:\n\
             /// whole, with what this program's schema does not have.\n\
             pub fn {snake}_message(&self, params: &$crate::Msg<{params}>) -> {call} {{\n\
             $crate::Call::message(&self.service, &{description}.methods[{index}], params)\n}}\n",
            identifier(snake),
        );
        if method.effect.starts_with("Effect::Once") {
            *code += &format!(
                "/// How the call of `{snake}` with this request ID ended. Does nothing, and sends no parameters.\n\
                 pub fn {snake}_outcome(&self, id: impl ::core::convert::Into<$crate::RequestId>) -> {call} {{\n\
                 $crate::Call::outcome(&self.service, &{description}.methods[{index}], id)\n}}\n",
            );
        }
    }
    *code += "}\n";
}

fn server(code: &mut String, interface: &Interface) {
    let name = &interface.name;
    let mut arms = String::new();
    for (trait_, method) in all_methods(interface) {
        let _ = writeln!(
            arms,
            "({:#x}, {}) => $crate::call::answer(<T as {trait_}>::{}(&*service, $crate::Request::open(request)?).await),",
            method.interface,
            method.ordinal,
            identifier(&method.rust),
        );
    }
    *code += &format!(
        "/// Makes a [`{name}`] a service that a [`Server`]($crate::Server) can have, or a [`{name}Client`] call in process.\n\
         pub struct {name}Server<T>(::std::sync::Arc<T>);\n\
         impl<T: {name}> {name}Server<T> {{\n\
         /// Takes what implements the trait.\n\
         pub fn new(service: T) -> Self {{ Self(::std::sync::Arc::new(service)) }}\n\
         /// Takes what is shared with others.\n\
         pub fn from_arc(service: ::std::sync::Arc<T>) -> Self {{ Self(service) }}\n}}\n\
         impl<T> ::core::clone::Clone for {name}Server<T> {{ fn clone(&self) -> Self {{ Self(::std::sync::Arc::clone(&self.0)) }} }}\n\
         impl<T> ::core::fmt::Debug for {name}Server<T> {{\n\
         fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {{ f.write_str(\"{name}Server\") }}\n}}\n\
         impl<T: {name}> $crate::call::NamedService for {name}Server<T> {{\n\
         const INFO: &'static $crate::schema::ServiceInfo = &{description};\n}}\n\
         impl<T: {name}> $crate::__private::tower_service::Service<$crate::call::RawRequest> for {name}Server<T> {{\n\
         type Response = $crate::call::RawReply;\ntype Error = $crate::Status;\ntype Future = $crate::call::ReplyFuture;\n\
         fn poll_ready(&mut self, _: &mut ::core::task::Context<'_>) -> ::core::task::Poll<::core::result::Result<(), Self::Error>> {{\n\
         ::core::task::Poll::Ready(Ok(()))\n}}\n\
         fn call(&mut self, request: $crate::call::RawRequest) -> Self::Future {{\n\
         let service = ::std::sync::Arc::clone(&self.0);\n\
         ::std::boxed::Box::pin(async move {{ match (request.interface, request.method) {{\n\
         {arms}\
         (interface, method) => Err($crate::Status::unknown_method(interface, method)),\n}} }})\n}}\n}}\n",
        description = service_static(name),
    );
}
